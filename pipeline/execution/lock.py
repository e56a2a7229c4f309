"""One run at a time in a workdir, on any file system, with no server to ask and no clocks compared.

A run is a record, `runs/<number>.json`, created only if it is not there, which one of several can do. While it works it writes its
record anew every few seconds; whoever else wants the workdir watches the latest record: one that changes is at work, one that does
not is dead, and the next number is free. Records stay, so a number is never used twice: they say who ran when, and how far it came.
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

FOLDER = "runs"
_BEAT_S = 10.0
LEASE_S = 60.0  # without a beat for so long a run is dead
_POLL_S = 1.0


class WorkdirLock:
    """The right to write in a workdir; a context manager. What asks again in the same process has it already.

    `tell` gives what the record is to say beside who runs; it is called in another thread.

    Raises:
        ConfigError: another run is at work there.
    """

    _held: dict[str, "WorkdirLock"] = {}  # noqa: RUF012 - of this process, by the workdir's URL

    def __init__(
        self,
        workdir: Folder,
        *,
        tell: Callable[[], Mapping[str, Any]] = dict,
        beat_s: float = _BEAT_S,
        lease_s: float = LEASE_S,
    ) -> None:
        self.workdir, self.tell, self.beat_s, self.lease_s = workdir, tell, beat_s, lease_s
        self._records = workdir.child(FOLDER)
        self._id = uuid.uuid4().hex
        self._number = 0
        self._beats = 0
        self._stopped = False
        self._news = threading.Event()
        self._lost = False
        self._outer: WorkdirLock | None = None

    def check(self) -> None:
        """Raises:
        RunError: another run took the workdir over, as this one seemed dead (a machine asleep, a store out of reach).
        """
        if self._outer:
            self._outer.check()
        elif self._lost:
            raise RunError(
                f"another run has taken over {self.workdir.url}, since this one gave no sign of life for {self.lease_s:g} s; it "
                "stops here, what it finished is kept"
            )

    def __enter__(self) -> "WorkdirLock":
        self._outer = self._held.get(self.workdir.url)
        if self._outer:
            return self
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        while not self._take():
            pass
        self._held[self.workdir.url] = self
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._outer:
            return
        self._stopped = True
        self._news.set()
        self._thread.join()
        del self._held[self.workdir.url]
        if not self._lost:
            self._write("failed" if error else "ended")

    def tell_soon(self) -> None:
        """Write the record now, not with the next beat."""
        self._news.set()

    def _take(self) -> bool:
        """Take the next number, if the run of the latest is over; False where another was faster."""
        latest = _latest(self._records)
        if latest:
            self._wait_for_end(latest)
        self._number = latest + 1
        return self._records.create_json(_name(self._number), self._record("running"))

    def _wait_for_end(self, number: int) -> None:
        before = self._records.read_json(_name(number)) or {"state": "running"}  # none yet: it is just being written
        if before["state"] != "running" or is_gone(before):
            return
        logger.info(f"run {number} has not ended in {self.workdir.url}: is it alive?")
        deadline = time.monotonic() + self.lease_s
        while time.monotonic() < deadline:
            now = self._records.read_json(_name(number)) or before
            if now["state"] != "running" or is_gone(now):
                return
            if now != before:
                raise ConfigError(
                    f"another run is at work in {self.workdir.url} since {now['started']}: process {now['pid']} on "
                    f"{now['host']}; wait until it ends, or set another workdir"
                )
            time.sleep(_POLL_S)
        logger.warning(f"run {number} gave no sign of life for {self.lease_s:g} s; going on where it was")

    def _beat(self) -> None:
        while True:
            self._news.wait(self.beat_s)
            if self._stopped:
                return
            self._news.clear()
            try:
                if self._records.exists(_name(self._number + 1)):
                    self._lost = True
                    return
                self._beats += 1
                self._write("running")
            except StorageError as error:  # the next beat may come through
                logger.warning(f"{error}")

    def _write(self, state: str) -> None:
        self._records.write_json(_name(self._number), self._record(state))

    def _record(self, state: str) -> dict[str, Any]:
        return {
            **self.tell(),
            "id": self._id,
            "state": state,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process": _process(os.getpid()),
            "started": self._started,
            "beats": self._beats,
        }


def record_of(workdir: Folder, number: int) -> dict[str, Any] | None:
    """The record of a run; None where there is none, or it is just being written."""
    record: dict[str, Any] | None = workdir.child(FOLDER).read_json(_name(number))
    return record


def latest_run(workdir: Folder) -> int:
    """The number of the latest run, 0 where there was none."""
    return _latest(workdir.child(FOLDER))


def is_gone(record: Mapping[str, Any]) -> bool:
    """Whether this machine can tell that the process of a run has ended."""
    return _is_gone(_known(record.get("process")))


def is_here(record: Mapping[str, Any]) -> bool:
    """Whether this machine can tell that the process of a run is there."""
    process = _known(record.get("process"))
    return process is not None and _process(int(process[2])) == process


def _latest(records: Folder) -> int:
    """The highest number. A listing may not show the newest, which are asked for one by one."""
    names = (name.removesuffix(".json") for name in records.names(".json"))
    listed = max((int(name) for name in names if name.isdecimal()), default=0)  # a tool that copies files may have left others
    return next(number for number in itertools.count(listed) if not records.exists(_name(number + 1)))


def _name(number: int) -> str:
    return f"{number:06d}.json"


def _process(pid: int) -> list[str] | None:
    """What no other process has: boot of the machine, namespace of its process ids, id and time of start; None where unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            started = file.read().rpartition(")")[2].split()[19]
        return [boot, os.readlink("/proc/self/ns/pid"), str(pid), started]
    except (OSError, IndexError):
        return None


def _known(process: Any) -> list[str] | None:
    """What `_process` noted; None for what it cannot have."""
    is_one = isinstance(process, list) and len(process) == 4 and str(process[2]).isdecimal()
    return process if is_one else None


def _is_gone(process: list[str] | None) -> bool:
    """Whether this machine can tell that a process has ended."""
    here = _process(os.getpid())
    return process is not None and here is not None and process[:2] == here[:2] and _process(int(process[2])) != process
