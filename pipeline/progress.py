"""What a person sees while a stage runs: one live line on a terminal, one line now and then in a log."""

import sys
import time
from types import TracebackType

from loguru import logger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_LOG_EVERY_S = 15.0


class Progress:
    """Counts units of work done out of `total`; use as a context manager."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit, self.done = title, total, unit, 0
        self._started = self._logged = time.monotonic()
        self._bar: Bar | None = None
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description:<24}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(unit),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(title, total=total)

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, units: int = 1) -> None:
        self.done += units
        if self._bar:
            self._bar.advance(self._task, units)
            return
        now = time.monotonic()
        if now - self._logged >= _LOG_EVERY_S and self.done < self.total:
            left_s = (now - self._started) / self.done * (self.total - self.done)
            logger.info(f"{self.title}: {self.done} of {self.total} {self.unit}, about {left_s:.0f} s left")
            self._logged = now
