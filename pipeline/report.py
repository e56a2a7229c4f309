"""What a person reads in the terminal: a line a step, and at the end what changed in the mixture and how sure we are."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.engine import Usage
from pipeline.step import Step

if TYPE_CHECKING:
    from pipeline.run import Run

# A log has no width: there, lines are as long as tables like.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)

_MOVERS = 6  # clusters and sources shown at each end
_HEADLINE = ("unique_share", "epochs_max", "repeats_value", "effective_share", "clipped_mass", "deficit_share")
_OF_SPECIALIST = ("kl_generalist", "kl_output", "effective_leaves", "without_text")


def stage_line(step: Step, usage: Usage | None, seconds: float) -> str:
    """One line on a step that is done: what it holds, and what making it took."""
    manifest = step.manifest
    counts = {
        "prepare": ("documents", "windows", "tokens", "quarantined"),
        "embed": ("windows", "invalid"),
        "cluster": ("leaves", "depth"),
        "assign": ("windows",),
        "weights": ("leaves",),
        "sample": ("rows", "tokens"),
    }.get(step.stage, ())
    said = ", ".join(f"{manifest[name]:,} {name}" for name in counts if manifest[name] or name not in ("invalid", "quarantined"))
    if usage is None:
        cost = "was there"
    else:
        cost = f"{seconds:.1f} s"
        if usage.tasks:
            cost += f", {usage.tasks} tasks busy {usage.busy_s:.1f} s, peak {usage.peak_rss_bytes / 2**20:,.0f} MiB a worker"
    return f"{step.title:<28} {said or 'ready':<58} {cost}"


def summary(run: "Run", until: str) -> Iterator[RenderableType]:
    """What there is to say at the end of a job."""
    if until in ("weights", "sample"):
        yield from _mixture(run)
    if until == "sample":
        yield from _sources(run)
        manifest = run.step("sample").manifest
        yield Text(
            f"\n{manifest['rows']:,} windows, {manifest['tokens']:,} tokens (asked for {manifest['budget_tokens']:,}) "
            f"in {len(manifest['shards'])} shards: {run.shards.url}"
        )


def _mixture(run: "Run") -> Iterator[RenderableType]:
    folder = run.step("weights").folder
    mixture = folder.read_table("mixture.parquet")
    names = dict(zip(*folder.read_table("names.parquet").to_pydict().values(), strict=True))
    specialists = folder.read_table("specialists.parquet").to_pylist()
    p_L, target_L = mixture["p_generalist"].to_numpy(), mixture["p_target"].to_numpy()
    weight_L = mixture["weight"].to_numpy()
    moved_L = target_L - p_L
    order = [int(i) for i in np.argsort(-moved_L, kind="stable") if p_L[i] > 0]
    up = [i for i in order[:_MOVERS] if moved_L[i] > 0]
    down = [i for i in order[-_MOVERS:] if moved_L[i] < 0 and i not in up]
    sure = {(row["specialist"], row["leaf"]): row for row in specialists}
    only = next(iter(run.config.specialists)) if len(run.config.specialists) == 1 else None
    table = Table(title="\nClusters that moved most (share of tokens)", title_justify="left", box=None, pad_edge=False)
    for heading, justify in [("cluster", "right"), ("what sets its text apart", "left"), ("generalist", "right")]:
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    if only:
        table.add_column(f"{only} (90% interval)", justify="right")
    table.add_column("new corpus", justify="right")
    table.add_column("weight", justify="right")
    for i in [*up, *down]:
        row = [str(i), names.get(i, "") or "-", _percent(p_L[i])]
        if only:
            found = sure.get((only, i), {"p": 0.0, "p_low": 0.0, "p_high": 0.0})
            row.append(f"{_percent(found['p'])} ({_percent(found['p_low'])}–{_percent(found['p_high'])})")
        table.add_row(*row, _percent(target_L[i]), f"{weight_L[i]:.2f}×")
    yield table

    facts = folder.read_table("diagnostics.parquet").to_pylist()
    shown = Table(title="\nWhat that does", title_justify="left", box=None, pad_edge=False)
    shown.add_column("")
    shown.add_column("value", justify="right")
    shown.add_column("90% interval", justify="right")
    shown.add_column("meaning")
    for fact in facts:
        if fact["name"] in (_OF_SPECIALIST if fact["specialist"] else _HEADLINE) or fact["name"].startswith("alpha_"):
            interval = f"{_number(fact['low'])}–{_number(fact['high'])}" if fact["low"] is not None else ""
            label = f"{fact['specialist']}: {fact['name']}" if fact["specialist"] else fact["name"]
            shown.add_row(label, _number(fact["value"]), interval, fact["meaning"])
    yield shown


def _sources(run: "Run") -> Iterator[RenderableType]:
    manifest = run.step("sample").manifest
    sources: dict[str, list[int]] = manifest["tokens_by_source"]
    held, drawn = (sum(counts[i] for counts in sources.values()) for i in (0, 1))
    rows = sorted(
        ((name, a / max(held, 1), b / max(drawn, 1)) for name, (a, b) in sources.items()), key=lambda row: (row[1] - row[2], row[0])
    )
    if len(rows) > 2 * _MOVERS:
        rows = rows[:_MOVERS] + rows[-_MOVERS:]
    table = Table(title="\nSources that moved most (share of tokens)", title_justify="left", box=None, pad_edge=False)
    table.add_column("source")
    for heading in ("generalist", "new corpus", "change"):
        table.add_column(heading, justify="right")
    for name, before, after in rows:
        table.add_row(name, _percent(before), _percent(after), f"{after / before:.2f}×" if before else "")
    yield table


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _number(value: Any) -> str:
    if abs(value) < 1e-9:  # what is left of sums that cancel
        return "0"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
