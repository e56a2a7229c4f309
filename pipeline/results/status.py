"""The status of the latest run in a workdir, for whoever shares its storage: who runs, whether it lives, how far it is.

Read from the record that a run keeps of itself (`pipeline/execution/lock.py`) and from what its steps left; no Ray is asked or
started. A record that changes is of a run that lives: no clocks are compared, as those of two machines differ.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from loguru import logger
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from pipeline.errors import shown
from pipeline.execution.lock import LEASE_S, is_gone, is_here, latest_run, record_of
from pipeline.results.step_table import build_step_table, format_step_row, read_step_rows
from pipeline.storage import Folder
from pipeline.terminal.formatting import format_duration
from pipeline.terminal.output import console
from pipeline.terminal.progress import DONE, FAILED, RUNNING, Count

ENDED, KILLED, SILENT = "ended", "killed", "silent"  # beside RUNNING and FAILED

_LISTEN_S = 25.0  # for a sign of life, of which a run gives one every ten seconds
_POLL_S = 2.0
_LOG_EVERY_S = 60.0  # where there is no terminal
_KEPT = "What it finished is kept: run the same command to go on."


@dataclass(frozen=True)
class Status:
    """A run as its record has it, and its state: at work, ended, failed, killed, or silent, which may be any but ended."""

    number: int
    state: str
    record: Mapping[str, Any]

    @property
    def count(self) -> Count | None:
        """How far the phase is that is at work."""
        count = self.record.get("count")
        if not count or self.state not in (RUNNING, SILENT):
            return None
        try:
            return Count(**count)
        except TypeError:  # a run of another version, which counts otherwise
            return None

    @property
    def steps(self) -> list[dict[str, str]]:
        """Title, output and state of the steps; the one at which a run died has failed."""
        steps: list[dict[str, str]] = self.record.get("steps", [])
        if self.state == KILLED:
            return [{**step, "state": FAILED if step["state"] == RUNNING else step["state"]} for step in steps]
        return steps


class Watch:
    """Looks at the latest run of a workdir, as often as it is asked to."""

    def __init__(self, workdir: Folder) -> None:
        self.workdir = workdir
        self.number = latest_run(workdir)
        self._record: dict[str, Any] = {}
        self._changed_at: float | None = None  # never seen to change yet
        self._began = time.monotonic()

    def look(self) -> Status | None:
        """The state now; None for a run that may live, and has given no sign of it since the first look."""
        record = record_of(self.workdir, self.number) or self._record
        now = time.monotonic()
        if self._record and record != self._record:
            self._changed_at = now
        self._record = record
        return self._status(record, now)

    def _status(self, record: dict[str, Any], now: float) -> Status | None:
        if record.get("state", "running") != "running":
            return Status(self.number, FAILED if record["state"] == "failed" else ENDED, record)
        if is_gone(record) or record_of(self.workdir, self.number + 1):  # the next begins when this one is dead
            return Status(self.number, KILLED, record)
        if is_here(record):
            return Status(self.number, RUNNING, record)
        if self._changed_at is not None:
            return Status(self.number, SILENT if now - self._changed_at > LEASE_S else RUNNING, record)
        return Status(self.number, SILENT, record) if now - self._began > _LISTEN_S else None


def wait_for_status(watch: Watch) -> Status:
    """The status of a run, after listening for a sign of life where that is not known at once."""
    status = watch.look()
    if status is None:
        logger.info(f"run {watch.number} is not of this machine: waiting for a sign of life, up to {_LISTEN_S:.0f} s")
    while status is None:
        time.sleep(1.0)
        status = watch.look()
    return status


def no_run(workdir: Folder) -> str:
    return f"no run has been started in {workdir.url} yet"


def render_status(workdir: Folder, status: Status, *, width: int) -> Iterator[RenderableType]:
    """The run in a sentence, how far it is, and a table of its steps, for a terminal of so many columns."""
    yield Text(_sentence(status))
    if line := describe_progress(status):
        yield Text(line)
    if status.steps:
        count = status.count
        yield Text()
        done = f"{count.done:,} of {count.total:,} {shown(count.unit)}" if count else ""
        yield build_step_table(read_step_rows(workdir, status.steps), done, width=width)


def describe_progress(status: Status) -> str:
    """The step at work, and how far it is; empty where none is."""
    step = next((step["title"] for step in status.steps if step["state"] == RUNNING), "")
    count = status.count
    if not count:
        seconds = status.record.get("step_seconds", 0.0)
        return shown(step + (f", for {format_duration(seconds)}" if step and seconds >= 1 else ""))
    phase = f"{step}: {count.title}" if step and step != count.title else count.title
    return shown(f"{phase}, {count.said()}")


def _sentence(status: Status) -> str:
    record = status.record
    who = shown(f"process {record.get('pid')} on {record.get('host')}, since {record.get('started')}")
    took = f" after {format_duration(record['seconds'])}" if "seconds" in record else ""
    return {
        RUNNING: f"run {status.number} is running: {who}{took.replace('after', 'for')}",
        ENDED: f"run {status.number} ended well{took}: {who}",
        FAILED: f"run {status.number} failed or was interrupted{took}: {who}; its terminal or log says why. {_KEPT}",
        KILLED: f"run {status.number} was killed, and last heard of{took}: {who}, which is gone. {_KEPT}",
        SILENT: f"run {status.number} gives no sign of life: {who}; it is dead, asleep, or cut off from the storage. {_KEPT}",
    }[status.state]


def _ended(status: Status) -> list[dict[str, str]]:
    """The steps that the run has made."""
    return [step for step in status.steps if step["state"] == DONE]


def follow(watch: Watch) -> bool:
    """Show the status until the run is over, on a terminal in place, else in lines now and then; whether it ended well."""
    status = wait_for_status(watch)
    if console.file.isatty() and not console.is_dumb_terminal:
        with Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
            while True:
                live.update(Group(*render_status(watch.workdir, status, width=console.width)), refresh=True)
                if status.state != RUNNING:
                    break
                time.sleep(_POLL_S)
                status = watch.look() or status
        return status.state == ENDED
    ended, said, said_at = _ended(status), "", 0.0
    while status.state == RUNNING:
        step = next((step["title"] for step in status.steps if step["state"] == RUNNING), "")
        if step != said or time.monotonic() - said_at > _LOG_EVERY_S:
            console.print(describe_progress(status) or _sentence(status), soft_wrap=True)
            said, said_at = step, time.monotonic()
        time.sleep(_POLL_S)
        status = watch.look() or status
        before, ended = ended, _ended(status)
        for made in read_step_rows(watch.workdir, [step for step in ended if step not in before]):
            console.print(shown(format_step_row(made)), soft_wrap=True)
    for line in render_status(watch.workdir, status, width=console.width):
        console.print(line)
    return status.state == ENDED
