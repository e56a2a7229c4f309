"""Progress of a run: its steps and the running activity, for a terminal, a log, and the run record that other processes read.

A step is a stage of one corpus; an activity is one map, fold or shuffle in it. The working thread updates the progress; the threads
that draw the line and write the record read it.

On a terminal, one live line shows the running step, and disappears when the step is done. Elsewhere, as in the log of a submitted
job, a line is logged at most once a minute.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from loguru import logger
from rich.console import OverflowMethod, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.terminal.formatting import format_duration, format_rate
from pipeline.terminal.output import log_console

PENDING, RUNNING, DONE, CACHED, FAILED = "pending", "running", "done", "cached", "failed"

_LOG_INTERVAL_S = 60.0  # without a terminal
_REFRESH_PER_S = 4
_BAR_WIDTH = 20
_MIN_WIDTH_FOR_BAR = 90  # columns of the terminal
# The rate is that of the last two minutes: an overall rate would include the slow start of the first workers for hours.
_MARK_INTERVAL_S, _MAX_MARKS = 5.0, 25


@dataclass(frozen=True)
class ActivityProgress:
    """Progress of an activity; `quarantined` are rows of its step so far."""

    title: str
    unit: str
    done: int
    total: int
    rate_per_s: float
    quarantined: int

    @property
    def remaining_s(self) -> float | None:
        """Remaining time at the current rate; None if nothing has been done yet."""
        return (self.total - self.done) / self.rate_per_s if self.rate_per_s > 0 else None

    def describe(self) -> str:
        """Done of total, rate, remaining time and quarantined rows, as far as known."""
        parts = [f"{self.done:,} of {self.total:,} {self.unit}"]
        if self.remaining_s is not None and self.done < self.total:
            parts += [format_rate(self.rate_per_s), f"{format_duration(self.remaining_s)} left"]
        if self.quarantined:
            parts.append(f"{self.quarantined:,} quarantined")
        return ", ".join(parts)


class Activity:
    """Counts completed units out of `total`, of which `before` were complete at the beginning."""

    def __init__(self, title: str, total: int, unit: str, *, before: int, quarantined: int, on_advance: Callable[[], None]) -> None:
        self.title, self.total, self.unit, self.done, self.quarantined = title, total, unit, before, quarantined
        self._on_advance = on_advance
        self._marks = deque([(time.monotonic(), before)], maxlen=_MAX_MARKS)

    def advance(self, units: int = 1, quarantined: int = 0) -> None:
        """Add completed units and quarantined rows."""
        self.done += units
        self.quarantined += quarantined
        now = time.monotonic()
        if now - self._marks[-1][0] >= _MARK_INTERVAL_S:
            self._marks.append((now, self.done))
        self._on_advance()

    def snapshot(self) -> ActivityProgress:
        """The progress now, with the rate of the last two minutes."""
        since, before = self._marks[0]
        rate_per_s = (self.done - before) / max(1e-9, time.monotonic() - since)
        return ActivityProgress(self.title, self.unit, self.done, self.total, rate_per_s, self.quarantined)


@dataclass
class _Step:
    title: str
    output: str
    state: str = PENDING


class Progress:
    """Progress of a run. `on_change` is called when a step begins or ends."""

    def __init__(self) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self._started = self._step_started = self._logged = time.monotonic()
        self._steps: list[_Step] = []
        self._step: _Step | None = None
        self._activities: list[Activity] = []  # the last is running; a slow consumer of an activity's results may start another one
        self._quarantined = 0  # by the finished activities of this step
        self._live: Live | None = None

    def add(self, steps: Sequence[tuple[str, str]]) -> int:
        """Add pending steps, by title and output; return the number of the first."""
        first = len(self._steps)
        self._steps += [_Step(title, output) for title, output in steps]
        return first

    def mark_cached(self, number: int) -> None:
        """Mark the step of this number as cached."""
        self._steps[number].state = CACHED

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Mark the step of this number as running in the block, and as done or failed afterwards."""
        step = self._steps[number]
        step.state = RUNNING
        self._step, self._quarantined = step, 0
        self._step_started = self._logged = time.monotonic()
        self.on_change()
        try:
            with self._show_live_line():
                yield
            step.state = DONE
        except BaseException:
            step.state = FAILED
            raise
        finally:
            self._step = None
            self.on_change()

    @contextmanager
    def activity(self, title: str, total: int, unit: str, *, before: int = 0) -> Iterator[Activity]:
        """Show an activity during the block; the caller advances it."""
        activity = Activity(title, total, unit, before=before, quarantined=self._quarantined, on_advance=self._log_progress)
        self._activities.append(activity)
        try:
            with self._show_live_line():
                yield activity
        finally:
            self._activities.remove(activity)
            self._quarantined = activity.quarantined

    def add_quarantined(self, rows: int) -> None:
        """Add rows of this step that were quarantined between its activities, or by an earlier run."""
        self._quarantined += rows

    def steps(self) -> list[dict[str, str]]:
        """Title, output and state of each step."""
        return [asdict(step) for step in self._steps]

    def to_record(self) -> dict[str, Any]:
        """The fields of the run record that describe progress: JSON, with durations but no clock times."""
        now = time.monotonic()
        count = self._current_activity()
        return {
            "seconds": round(now - self._started, 1),
            "steps": self.steps(),
            "step_seconds": round(now - self._step_started, 1),
            "count": asdict(count) if count else None,
        }

    def _current_activity(self) -> ActivityProgress | None:
        activities = self._activities[-1:]  # a copy, because the activity may end at any time
        return activities[0].snapshot() if activities else None

    def _log_progress(self) -> None:
        now, count = time.monotonic(), self._current_activity()
        if self._live or count is None or now - self._logged < _LOG_INTERVAL_S or count.done >= count.total:
            return
        logger.info(f"{count.title}: {count.describe()}")
        self._logged = now

    @contextmanager
    def _show_live_line(self) -> Iterator[None]:
        """Show the live line during the block if there is a terminal; nested blocks share it."""
        if self._live or not log_console.file.isatty() or log_console.is_dumb_terminal:
            yield
            return
        self._live = Live(
            get_renderable=self._render,
            console=log_console,
            refresh_per_second=_REFRESH_PER_S,
            transient=True,
            redirect_stdout=False,  # standard output is for results, and may be a file
            redirect_stderr=log_console.file is sys.stderr,
        )
        try:
            with self._live:
                yield
        finally:
            self._live = None

    def _render(self) -> RenderableType:
        activity, step = self._current_activity(), self._step
        if activity is None:
            waited = time.monotonic() - self._step_started
            title = log_console.as_encoded(step.title) if step else ""
            return Text(f"{title}  {format_duration(waited)}", no_wrap=True, overflow=_overflow())
        line = Table.grid(padding=(0, 2))
        for _ in range(3 if log_console.width >= _MIN_WIDTH_FOR_BAR else 2):
            line.add_column(no_wrap=True, overflow=_overflow())
        bar = (
            [ProgressBar(total=max(1, activity.total), completed=activity.done, width=_BAR_WIDTH)]
            if log_console.width >= _MIN_WIDTH_FOR_BAR
            else []
        )
        line.add_row(log_console.as_encoded(activity.title), *bar, activity.describe())
        return line


def _overflow() -> OverflowMethod:
    """How to shorten a line that is too long; an ASCII terminal cannot show an ellipsis in one column."""
    return "crop" if log_console.options.ascii_only else "ellipsis"


def write_log_line(message: str) -> None:
    """Write a log line to the terminal above the live line; a loguru sink."""
    log_console.print(Text.from_ansi(message.rstrip("\n")), soft_wrap=True)
