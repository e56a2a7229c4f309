"""The status of the latest run in a workdir: who runs it, whether it is alive, how far it is.

Read from the run's record (`pipeline/execution/lock.py`) and from the outputs of its steps; Ray is neither used nor started. If the
record changes, the run is alive. Clocks are never compared, because those of two machines differ.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from loguru import logger
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from pipeline.errors import replace_controls
from pipeline.execution.lock import LEASE_S, is_known_alive, is_known_dead, latest_run_number, read_run_record
from pipeline.results.step_table import build_step_table, format_step_row, read_step_rows
from pipeline.storage import Folder
from pipeline.terminal.formatting import format_duration
from pipeline.terminal.output import console
from pipeline.terminal.progress import DONE, FAILED, RUNNING, ActivityProgress

ENDED, KILLED, SILENT = "ended", "killed", "silent"  # in addition to RUNNING and FAILED

_LISTEN_S = 25.0  # how long to wait for a heartbeat, which a run writes every ten seconds
_POLL_S = 2.0
_LOG_INTERVAL_S = 60.0  # without a terminal
_RESUME_HINT = "Finished parts are kept: run the same command to resume."


@dataclass(frozen=True)
class Status:
    """A run's record, and its state: running, ended, failed, killed, or silent (running, killed or unreachable)."""

    number: int
    state: str
    record: Mapping[str, Any]

    @property
    def activity(self) -> ActivityProgress | None:
        """The progress of the running activity."""
        count = self.record.get("count")
        if not count or self.state not in (RUNNING, SILENT):
            return None
        try:
            return ActivityProgress(**count)
        except TypeError:  # a run of another version, with other fields
            return None

    @property
    def steps(self) -> list[dict[str, str]]:
        """Title, output and state of the steps; the step that was running when the run died counts as failed."""
        steps: list[dict[str, str]] = self.record.get("steps", [])
        if self.state == KILLED:
            return [{**step, "state": FAILED if step["state"] == RUNNING else step["state"]} for step in steps]
        return steps


class RunWatcher:
    """Observes the latest run of a workdir."""

    def __init__(self, workdir: Folder) -> None:
        self.workdir = workdir
        self.number = latest_run_number(workdir)
        self._record: dict[str, Any] = {}
        self._changed_at: float | None = None  # no change seen yet
        self._started_at = time.monotonic()

    def poll(self) -> Status | None:
        """The status now; None if the run may be alive, but its record has not changed since the first poll."""
        record = read_run_record(self.workdir, self.number) or self._record
        now = time.monotonic()
        if self._record and record != self._record:
            self._changed_at = now
        self._record = record
        return self._status(record, now)

    def _status(self, record: dict[str, Any], now: float) -> Status | None:
        if record.get("state", "running") != "running":
            return Status(self.number, FAILED if record["state"] == "failed" else ENDED, record)
        if is_known_dead(record) or read_run_record(
            self.workdir, self.number + 1
        ):  # the next run starts only when this one is dead
            return Status(self.number, KILLED, record)
        if is_known_alive(record):
            return Status(self.number, RUNNING, record)
        if self._changed_at is not None:
            return Status(self.number, SILENT if now - self._changed_at > LEASE_S else RUNNING, record)
        return Status(self.number, SILENT, record) if now - self._started_at > _LISTEN_S else None


def wait_for_status(watcher: RunWatcher) -> Status:
    """The status of a run; waits for a heartbeat if the state is not known at once."""
    status = watcher.poll()
    if status is None:
        logger.info(f"run {watcher.number} is on another machine: waiting up to {_LISTEN_S:.0f} s for its heartbeat")
    while status is None:
        time.sleep(1.0)
        status = watcher.poll()
    return status


def describe_no_run(workdir: Folder) -> str:
    """The message for a workdir without any run."""
    return f"no run has been started in {workdir.url} yet"


def render_status(workdir: Folder, status: Status, *, width: int) -> Iterator[RenderableType]:
    """Render a sentence about the run, its progress, and a table of its steps, for a terminal of `width` columns."""
    yield Text(_describe_run(status))
    if line := describe_progress(status):
        yield Text(line)
    if status.steps:
        activity = status.activity
        yield Text()
        done = f"{activity.done:,} of {activity.total:,} {replace_controls(activity.unit)}" if activity else ""
        yield build_step_table(read_step_rows(workdir, status.steps), done, width=width)


def describe_progress(status: Status) -> str:
    """The running step and its progress; empty if no step is running."""
    step = next((step["title"] for step in status.steps if step["state"] == RUNNING), "")
    activity = status.activity
    if not activity:
        seconds = status.record.get("step_seconds", 0.0)
        return replace_controls(step + (f", for {format_duration(seconds)}" if step and seconds >= 1 else ""))
    title = f"{step}: {activity.title}" if step and step != activity.title else activity.title
    return replace_controls(f"{title}, {activity.describe()}")


def _describe_run(status: Status) -> str:
    record = status.record
    who = replace_controls(f"process {record.get('pid')} on {record.get('host')}, since {record.get('started')}")
    duration = f" after {format_duration(record['seconds'])}" if "seconds" in record else ""
    return {
        RUNNING: f"run {status.number} is running: {who}{duration.replace('after', 'for')}",
        ENDED: f"run {status.number} succeeded{duration}: {who}",
        FAILED: f"run {status.number} failed or was interrupted{duration}: {who}; see its terminal or log. {_RESUME_HINT}",
        KILLED: f"run {status.number} was killed; last heartbeat{duration}: {who}, which is gone. {_RESUME_HINT}",
        SILENT: f"run {status.number} writes no heartbeat: {who}; it is dead, suspended or offline. {_RESUME_HINT}",
    }[status.state]


def _completed_steps(status: Status) -> list[dict[str, str]]:
    """The steps that the run has completed."""
    return [step for step in status.steps if step["state"] == DONE]


def follow_run(watcher: RunWatcher) -> bool:
    """Show the status until the run ends; return whether it succeeded.

    On a terminal the status is updated in place; otherwise a line is printed now and then.
    """
    status = wait_for_status(watcher)
    if console.file.isatty() and not console.is_dumb_terminal:
        with Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
            while True:
                live.update(Group(*render_status(watcher.workdir, status, width=console.width)), refresh=True)
                if status.state != RUNNING:
                    break
                time.sleep(_POLL_S)
                status = watcher.poll() or status
        return status.state == ENDED
    completed, printed_step, printed_at = _completed_steps(status), "", 0.0
    while status.state == RUNNING:
        step = next((step["title"] for step in status.steps if step["state"] == RUNNING), "")
        if step != printed_step or time.monotonic() - printed_at > _LOG_INTERVAL_S:
            console.print(describe_progress(status) or _describe_run(status), soft_wrap=True)
            printed_step, printed_at = step, time.monotonic()
        time.sleep(_POLL_S)
        status = watcher.poll() or status
        before, completed = completed, _completed_steps(status)
        for row in read_step_rows(watcher.workdir, [step for step in completed if step not in before]):
            console.print(replace_controls(format_step_row(row)), soft_wrap=True)
    for line in render_status(watcher.workdir, status, width=console.width):
        console.print(line)
    return status.state == ENDED
