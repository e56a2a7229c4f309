"""What the steps of a run hold and what making them took: a line for each as it is done, a table of all at the end.

Read from the workdir, from what a step leaves there: `manifest.json`, and `usage.json` beside it. So the run itself, and whoever
asks for its status from elsewhere, see the same.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from pipeline.config.stages import STAGES
from pipeline.errors import shown
from pipeline.execution.step import USAGE
from pipeline.storage import MANIFEST, Folder
from pipeline.terminal.formatting import format_bytes, format_duration, format_rate
from pipeline.terminal.progress import CACHED, DONE, RUNNING

_PASSED_OVER = ("windows", "rows")  # of which a stage makes so many a second
_READERS = 16
_HEADINGS = ("step", "holds", "left out", "time", "rate", "tasks", "memory")
_WIDE, _NARROW = 90, 70  # columns of a terminal: for all of them, and for all but the last two


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """A step of a run, its state, and as far as it is done what it holds and left out, and what making it took."""

    title: str
    state: str
    holds: Mapping[str, int]
    left_out: Mapping[str, int]
    seconds: float
    tasks: int
    peak_rss_bytes: int

    @property
    def rate_per_s(self) -> float | None:
        """Windows or rows a second; None for what is not made of them."""
        unit = next(iter(self.holds), "")
        return self.holds[unit] / self.seconds if unit in _PASSED_OVER and self.seconds else None


def read_step_rows(workdir: Folder, steps: Sequence[Mapping[str, str]]) -> list[StepRow]:
    """What became of steps, given by title, output and state."""
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda step: _made(workdir, step), steps))


def _made(workdir: Folder, step: Mapping[str, str]) -> StepRow:
    manifest: Mapping[str, Any] = {}
    usage: Mapping[str, Any] = {}
    if step["state"] in (DONE, CACHED):
        folder = workdir.child(step["output"])
        manifest, usage = (folder.read_json(name) or {} for name in (MANIFEST, USAGE))
    stage = step["output"].partition("/")[0]
    return StepRow(
        title=step["title"],
        state=step["state"],
        holds={name: int(manifest[name]) for name in STAGES[stage].counts if name in manifest},
        left_out={name: int(manifest[name]) for name in STAGES[stage].left_out if manifest.get(name)},
        seconds=float(usage.get("seconds", 0.0)),
        tasks=int(usage.get("tasks", 0)),
        peak_rss_bytes=int(usage.get("peak_rss_bytes", 0)),
    )


def format_step_row(made: StepRow) -> str:
    """A line on a step that was just done."""
    counts = {**made.holds, **made.left_out}
    said = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    return f"{made.title:<22} {format_duration(made.seconds):>7}  {said or 'ready'}"


def build_step_table(steps: Sequence[StepRow], running_step: str = "", *, width: int = _WIDE) -> Table:
    """A row a step, and what those that were done took together; `running_step` is how far the one at work is.

    On a terminal of fewer columns the last ones are left out: cut off, their numbers would be wrong ones.
    """
    table = Table(box=None, pad_edge=False)
    headings = _HEADINGS if width >= _WIDE else _HEADINGS[:5] if width >= _NARROW else _HEADINGS[:4]
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("step", "holds", "left out") else "right", no_wrap=True)
    for made in steps:
        done = made.state == DONE
        rate = made.rate_per_s if done else None
        row = (
            shown(made.title),
            next((f"{count:,} {name}" for name, count in made.holds.items()), running_step if made.state == RUNNING else ""),
            ", ".join(f"{count:,} {name}" for name, count in made.left_out.items()),
            format_duration(made.seconds) if done else made.state,
            format_rate(rate) if rate else "",
            f"{made.tasks:,}" if done and made.tasks else "",
            format_bytes(made.peak_rss_bytes) if done and made.peak_rss_bytes else "",
        )
        table.add_row(*row[: len(headings)], style="dim" if not done else "")
    done_now = [made for made in steps if made.state == DONE]
    if len(done_now) > 1:
        row = (
            "together",
            "",
            "",
            format_duration(sum(made.seconds for made in done_now)),
            "",
            f"{sum(made.tasks for made in done_now):,}",
            format_bytes(max(made.peak_rss_bytes for made in done_now)),
        )
        table.add_row(*row[: len(headings)])
    return table
