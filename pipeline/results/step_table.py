"""The outputs of a run's steps and their cost: a line for each finished step, and a table of all.

Read from the `manifest.json` and `usage.json` of each step in the workdir, so the run itself and `crispwrap status` show the same.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from pipeline.config.stages import STAGES
from pipeline.errors import replace_controls
from pipeline.execution.step import USAGE
from pipeline.storage import MANIFEST, Folder
from pipeline.terminal.formatting import format_bytes, format_duration, format_rate
from pipeline.terminal.progress import CACHED, DONE, RUNNING

_RATE_UNITS = ("windows", "rows")  # units whose rate is shown
_READERS = 16
_HEADINGS = ("step", "output", "excluded", "time", "rate", "tasks", "memory")
_WIDE, _NARROW = 90, 70  # terminal columns needed for all headings, and for all but the last two


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """A step of a run: its state, and, once it is done, counts of its output, excluded rows, time and memory."""

    title: str
    state: str
    counts: Mapping[str, int]
    excluded: Mapping[str, int]
    seconds: float
    tasks: int
    peak_rss_bytes: int

    @property
    def rate_per_s(self) -> float | None:
        """Windows or rows per second; None for other outputs."""
        unit = next(iter(self.counts), "")
        return self.counts[unit] / self.seconds if unit in _RATE_UNITS and self.seconds else None


def read_step_rows(workdir: Folder, steps: Sequence[Mapping[str, str]]) -> list[StepRow]:
    """Read the rows of steps, which are given by title, output and state."""
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda step: _read_step_row(workdir, step), steps))


def _read_step_row(workdir: Folder, step: Mapping[str, str]) -> StepRow:
    manifest: Mapping[str, Any] = {}
    usage: Mapping[str, Any] = {}
    if step["state"] in (DONE, CACHED):
        folder = workdir.child(step["output"])
        manifest, usage = (folder.read_json(name) or {} for name in (MANIFEST, USAGE))
    stage = step["output"].partition("/")[0]
    return StepRow(
        title=step["title"],
        state=step["state"],
        counts={name: int(manifest[name]) for name in STAGES[stage].output_counts if name in manifest},
        excluded={name: int(manifest[name]) for name in STAGES[stage].excluded_counts if manifest.get(name)},
        seconds=float(usage.get("seconds", 0.0)),
        tasks=int(usage.get("tasks", 0)),
        peak_rss_bytes=int(usage.get("peak_rss_bytes", 0)),
    )


def format_step_row(row: StepRow) -> str:
    """A line about a step that has just finished."""
    counts = {**row.counts, **row.excluded}
    description = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    return f"{row.title:<22} {format_duration(row.seconds):>7}  {description or 'done'}"


def build_step_table(steps: Sequence[StepRow], running_step: str = "", *, width: int = _WIDE) -> Table:
    """Build a table with a row per step and a total; `running_step` is the progress of the running step.

    On a narrow terminal the last columns are omitted: truncated numbers would be misleading.
    """
    table = Table(box=None, pad_edge=False)
    headings = _HEADINGS if width >= _WIDE else _HEADINGS[:5] if width >= _NARROW else _HEADINGS[:4]
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("step", "output", "excluded") else "right", no_wrap=True)
    for step in steps:
        is_done = step.state == DONE
        rate = step.rate_per_s if is_done else None
        cells = (
            replace_controls(step.title),
            next((f"{count:,} {name}" for name, count in step.counts.items()), running_step if step.state == RUNNING else ""),
            ", ".join(f"{count:,} {name}" for name, count in step.excluded.items()),
            format_duration(step.seconds) if is_done else step.state,
            format_rate(rate) if rate else "",
            f"{step.tasks:,}" if is_done and step.tasks else "",
            format_bytes(step.peak_rss_bytes) if is_done and step.peak_rss_bytes else "",
        )
        table.add_row(*cells[: len(headings)], style="dim" if not is_done else "")
    done_now = [step for step in steps if step.state == DONE]
    if len(done_now) > 1:
        cells = (
            "total",
            "",
            "",
            format_duration(sum(step.seconds for step in done_now)),
            "",
            f"{sum(step.tasks for step in done_now):,}",
            format_bytes(max(step.peak_rss_bytes for step in done_now)),
        )
        table.add_row(*cells[: len(headings)])
    return table
