"""How far a run is: its steps and the phase that is at work, for a terminal, a log, and the record that others read.

A step is a stage of one corpus; a phase is one map, fold or shuffle in it. The thread that does the work writes; those that draw
the line and write the record read.

On a terminal one line is alive while a step is, and gone when it is done. Elsewhere, as in the log of a submitted job, there is
nothing to draw on: a line is logged now and then.
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
from pipeline.terminal.output import messages

PENDING, RUNNING, DONE, CACHED, FAILED = "pending", "running", "done", "cached", "failed"

_LOG_EVERY_S = 60.0  # where there is no terminal
_DRAWN_PER_S = 4
_BAR_WIDTH = 20
_WIDE = 90  # columns of a terminal that has room for the bar
# The rate is that of the last minute or two: of all the time, it would say for hours that the first workers took long to come up.
_MARK_EVERY_S, _MARKS = 5.0, 25


@dataclass(frozen=True)
class Count:
    """How far a phase is; `quarantined` are rows of its step so far."""

    title: str
    unit: str
    done: int
    total: int
    rate_per_s: float
    quarantined: int

    @property
    def left_s(self) -> float | None:
        """Time left at this rate; None where nothing has been done yet."""
        return (self.total - self.done) / self.rate_per_s if self.rate_per_s > 0 else None

    def said(self) -> str:
        """Done of total, rate, time left, quarantined, as far as there is any."""
        parts = [f"{self.done:,} of {self.total:,} {self.unit}"]
        if self.left_s is not None and self.done < self.total:
            parts += [format_rate(self.rate_per_s), f"{format_duration(self.left_s)} left"]
        if self.quarantined:
            parts.append(f"{self.quarantined:,} quarantined")
        return ", ".join(parts)


class Phase:
    """Counts units of work done out of `total`, of which `before` were there when it began."""

    def __init__(self, title: str, total: int, unit: str, *, before: int, quarantined: int, told: Callable[[], None]) -> None:
        self.title, self.total, self.unit, self.done, self.quarantined = title, total, unit, before, quarantined
        self._told = told
        self._marks = deque([(time.monotonic(), before)], maxlen=_MARKS)

    def advance(self, units: int = 1, quarantined: int = 0) -> None:
        self.done += units
        self.quarantined += quarantined
        now = time.monotonic()
        if now - self._marks[-1][0] >= _MARK_EVERY_S:
            self._marks.append((now, self.done))
        self._told()

    def count(self) -> Count:
        since, before = self._marks[0]
        rate_per_s = (self.done - before) / max(1e-9, time.monotonic() - since)
        return Count(self.title, self.unit, self.done, self.total, rate_per_s, self.quarantined)


@dataclass
class _Step:
    title: str
    output: str
    state: str = PENDING


class Progress:
    """How far a run is. `changed` is called when a step begins or ends."""

    def __init__(self) -> None:
        self.changed: Callable[[], None] = lambda: None
        self._started = self._step_started = self._logged = time.monotonic()
        self._steps: list[_Step] = []
        self._step: _Step | None = None
        self._phases: list[Phase] = []  # the last is at work; whoever reads one slowly may have begun another
        self._quarantined = 0  # by the phases of this step that are over
        self._live: Live | None = None

    def add(self, steps: Sequence[tuple[str, str]]) -> int:
        """Add steps that are to be done, by title and output; the number of the first."""
        first = len(self._steps)
        self._steps += [_Step(title, output) for title, output in steps]
        return first

    def skip(self, number: int) -> None:
        """Nothing had to be done for the step of this number."""
        self._steps[number].state = CACHED

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """While the step of this number is done."""
        step = self._steps[number]
        step.state = RUNNING
        self._step, self._quarantined = step, 0
        self._step_started = self._logged = time.monotonic()
        self.changed()
        try:
            with self._line():
                yield
            step.state = DONE
        except BaseException:
            step.state = FAILED
            raise
        finally:
            self._step = None
            self.changed()

    @contextmanager
    def phase(self, title: str, total: int, unit: str, *, before: int = 0) -> Iterator[Phase]:
        """While so many units are worked on; whoever does that advances the phase."""
        phase = Phase(title, total, unit, before=before, quarantined=self._quarantined, told=self._log)
        self._phases.append(phase)
        try:
            with self._line():
                yield phase
        finally:
            self._phases.remove(phase)
            self._quarantined = phase.quarantined

    def count_quarantined(self, rows: int) -> None:
        """Rows of this step that were quarantined between its phases, or by an earlier run."""
        self._quarantined += rows

    def steps(self) -> list[dict[str, str]]:
        """Title, output and state of each step."""
        return [asdict(step) for step in self._steps]

    def record(self) -> dict[str, Any]:
        """What the record of the run says of it: JSON, with no clock but how long things take."""
        now = time.monotonic()
        count = self._count()
        return {
            "seconds": round(now - self._started, 1),
            "steps": self.steps(),
            "step_seconds": round(now - self._step_started, 1),
            "count": asdict(count) if count else None,
        }

    def _count(self) -> Count | None:
        phases = self._phases[-1:]  # a copy: it may be over in a moment
        return phases[0].count() if phases else None

    def _log(self) -> None:
        now, count = time.monotonic(), self._count()
        if self._live or count is None or now - self._logged < _LOG_EVERY_S or count.done >= count.total:
            return
        logger.info(f"{count.title}: {count.said()}")
        self._logged = now

    @contextmanager
    def _line(self) -> Iterator[None]:
        """A line that is alive, on a terminal; one within another is the same."""
        if self._live or not messages.file.isatty() or messages.is_dumb_terminal:
            yield
            return
        self._live = Live(
            get_renderable=self._drawn,
            console=messages,
            refresh_per_second=_DRAWN_PER_S,
            transient=True,
            redirect_stdout=False,  # what is printed there is a result, and may go to a file
            redirect_stderr=messages.file is sys.stderr,
        )
        try:
            with self._live:
                yield
        finally:
            self._live = None

    def _drawn(self) -> RenderableType:
        count, step = self._count(), self._step
        if count is None:
            waited = time.monotonic() - self._step_started
            title = messages.fits(step.title) if step else ""
            return Text(f"{title}  {format_duration(waited)}", no_wrap=True, overflow=_overflow())
        line = Table.grid(padding=(0, 2))
        for _ in range(3 if messages.width >= _WIDE else 2):
            line.add_column(no_wrap=True, overflow=_overflow())
        bar = [ProgressBar(total=max(1, count.total), completed=count.done, width=_BAR_WIDTH)] if messages.width >= _WIDE else []
        line.add_row(messages.fits(count.title), *bar, count.said())
        return line


def _overflow() -> OverflowMethod:
    """What becomes of a line that is too long: no more columns may be written than were measured."""
    return "crop" if messages.options.ascii_only else "ellipsis"


def written(message: str) -> None:
    """Write a line of the log to the terminal, above the line that is alive; a sink of loguru's."""
    messages.print(Text.from_ansi(message.rstrip("\n")), soft_wrap=True)
