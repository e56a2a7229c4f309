"""Allow one run at a time in a workdir, on any file system, without a lock server and without comparing clocks.

A run is a record, `runs/<number>.json`, which is created only if it does not exist, so exactly one process can create it. The
running process rewrites its record every few seconds (a heartbeat). Another process that wants the workdir watches the latest
record: if it changes, that run is alive; if it does not, that run is dead, and the next number is free. Records are kept, so a
number is never used twice; they show who ran when, and how far each run came.
"""

import itertools
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from loguru import logger

from pipeline.errors import ConfigError, RunError, StorageError
from pipeline.storage import Folder

RUNS_FOLDER = "runs"
_HEARTBEAT_S = 10.0
LEASE_S = 60.0  # a run without a heartbeat for this long is dead
_POLL_S = 1.0


class WorkdirLock:
    """Exclusive write access to a workdir; a reentrant context manager within one process.

    `describe_run` returns further fields of the record; it is called in another thread.

    Raises:
        ConfigError: another run is running there.
    """

    _locks: dict[str, "WorkdirLock"] = {}  # noqa: RUF012 - locks of this process by workdir URL

    def __init__(
        self,
        workdir: Folder,
        *,
        describe_run: Callable[[], Mapping[str, Any]] = dict,
        heartbeat_s: float = _HEARTBEAT_S,
        lease_s: float = LEASE_S,
    ) -> None:
        self.workdir, self.describe_run, self.heartbeat_s, self.lease_s = workdir, describe_run, heartbeat_s, lease_s
        self._records = workdir.child(RUNS_FOLDER)
        self._id = uuid.uuid4().hex
        self._number = 0
        self._beats = 0
        self._stopped = False
        self._wake = threading.Event()
        self._is_taken_over = False
        self._outer_lock: WorkdirLock | None = None

    def check(self) -> None:
        """Check that this run still holds the lock.

        Raises:
            RunError: another run took the workdir over, because this one seemed dead (a sleeping machine, an unreachable store).
        """
        if self._outer_lock:
            self._outer_lock.check()
        elif self._is_taken_over:
            raise RunError(
                f"another run has taken over {self.workdir.url}, because this one wrote no heartbeat for {self.lease_s:g} s; "
                "this run stops, its finished parts are kept"
            )

    def __enter__(self) -> "WorkdirLock":
        self._outer_lock = self._locks.get(self.workdir.url)
        if self._outer_lock:
            return self
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        while not self._try_acquire():
            pass
        self._locks[self.workdir.url] = self
        self._thread = threading.Thread(target=self._write_heartbeats, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._outer_lock:
            return
        self._stopped = True
        self._wake.set()
        self._thread.join()
        del self._locks[self.workdir.url]
        if not self._is_taken_over:
            self._write("failed" if error else "ended")

    def write_soon(self) -> None:
        """Write the record now instead of with the next heartbeat."""
        self._wake.set()

    def _try_acquire(self) -> bool:
        """Create the next record once the latest run has ended; False if another process was faster."""
        latest = _find_latest(self._records)
        if latest:
            self._wait_for_end(latest)
        self._number = latest + 1
        return self._records.create_json(_file_name(self._number), self._record("running"))

    def _wait_for_end(self, number: int) -> None:
        before = self._records.read_json(_file_name(number)) or {"state": "running"}  # empty while the record is being written
        if before["state"] != "running" or is_known_dead(before):
            return
        logger.info(f"run {number} in {self.workdir.url} has not ended: waiting up to {self.lease_s:g} s for its heartbeat")
        deadline = time.monotonic() + self.lease_s
        while time.monotonic() < deadline:
            now = self._records.read_json(_file_name(number)) or before
            if now["state"] != "running" or is_known_dead(now):
                return
            if now != before:
                raise ConfigError(
                    f"another run has been using {self.workdir.url} since {now['started']}: process {now['pid']} on "
                    f"{now['host']}; wait until it ends, or set another workdir"
                )
            time.sleep(_POLL_S)
        logger.warning(f"run {number} wrote no heartbeat for {self.lease_s:g} s: taking over and resuming its work")

    def _write_heartbeats(self) -> None:
        while True:
            self._wake.wait(self.heartbeat_s)
            if self._stopped:
                return
            self._wake.clear()
            try:
                if self._records.exists(_file_name(self._number + 1)):
                    self._is_taken_over = True
                    return
                self._beats += 1
                self._write("running")
            except StorageError as error:  # the next heartbeat may succeed
                logger.warning(f"{error}")

    def _write(self, state: str) -> None:
        self._records.write_json(_file_name(self._number), self._record(state))

    def _record(self, state: str) -> dict[str, Any]:
        return {
            **self.describe_run(),
            "id": self._id,
            "state": state,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process": _identify_process(os.getpid()),
            "started": self._started,
            "beats": self._beats,
        }


def read_run_record(workdir: Folder, number: int) -> dict[str, Any] | None:
    """The record of a run; None if it does not exist or is being written."""
    record: dict[str, Any] | None = workdir.child(RUNS_FOLDER).read_json(_file_name(number))
    return record


def latest_run_number(workdir: Folder) -> int:
    """The number of the latest run; 0 without any."""
    return _find_latest(workdir.child(RUNS_FOLDER))


def is_known_dead(record: Mapping[str, Any]) -> bool:
    """Whether this machine knows that the process of a run has ended."""
    return _has_ended(_parse_process(record.get("process")))


def is_known_alive(record: Mapping[str, Any]) -> bool:
    """Whether this machine knows that the process of a run is alive."""
    process = _parse_process(record.get("process"))
    return process is not None and _identify_process(int(process[2])) == process


def _find_latest(records: Folder) -> int:
    """The highest number. A listing may not show the newest records, so these are looked up one by one."""
    stems = (name.removesuffix(".json") for name in records.names(".json"))
    listed = max((int(name) for name in stems if name.isdecimal()), default=0)  # file synchronisation tools may add other files
    return next(number for number in itertools.count(listed) if not records.exists(_file_name(number + 1)))


def _file_name(number: int) -> str:
    return f"{number:06d}.json"


def _identify_process(pid: int) -> list[str] | None:
    """Identify a process uniquely: boot id, namespace of process ids, process id, start time; None if unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            started = file.read().rpartition(")")[2].split()[19]
        return [boot, os.readlink("/proc/self/ns/pid"), str(pid), started]
    except (OSError, IndexError):
        return None


def _parse_process(process: Any) -> list[str] | None:
    """The identity from a record, as `_identify_process` returned it; None if it is not valid."""
    is_valid = isinstance(process, list) and len(process) == 4 and str(process[2]).isdecimal()
    return process if is_valid else None


def _has_ended(process: list[str] | None) -> bool:
    """Whether this machine knows that a process has ended."""
    own = _identify_process(os.getpid())
    return process is not None and own is not None and process[:2] == own[:2] and _identify_process(int(process[2])) != process
