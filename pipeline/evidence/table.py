"""The results table of a comparison: means, standard deviations, paired differences and their intervals.

Shapes: A arms, S seeds, D documents of a held-out set.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.evidence.curves import versus
from pipeline.evidence.intervals import Estimate, estimate
from pipeline.evidence.settings import SPECIALIST_ONLY
from pipeline.evidence.steps import Comparison
from pipeline.execution.step import USAGE, Step
from pipeline.storage import Folder

_WIDTH, _WIDEST = 130, 1000  # width in characters of sentences, and of tables at most


@dataclass(frozen=True)
class Figure:
    """Bits per byte of one arm on one held-out set."""

    mean: float  # over seeds
    deviation: float  # standard deviation between seeds
    difference: Estimate  # to the baseline


@dataclass(frozen=True)
class Row:
    """The results of one arm."""

    arm: str
    figures: Mapping[str, Figure]  # by held-out set
    epochs: float  # passes of a proxy over the arm's corpus; below 1 if it read only the beginning
    unique: float  # fraction of the corpus's tokens that are not repeats
    selection_s: float  # seconds for all steps of its run, including steps shared with other arms
    training_s: float  # seconds to train a proxy, mean over seeds


def rows_of(comparison: Comparison) -> list[Row]:
    """The results of each arm of a finished comparison."""
    base = comparison.proxies[comparison.evidence.baseline].manifest["seeds"]
    rows = []
    for arm, step in comparison.proxies.items():
        run, seeds = comparison.runs[arm], step.manifest["seeds"]
        sampled = {"first_tokens": 1, "tokens": 1} if arm == SPECIALIST_ONLY else run.corpus.manifest
        selecting = () if arm == SPECIALIST_ONLY else run.steps
        rows.append(
            Row(
                arm=arm,
                figures={name: _figure(seeds, base, name) for name in comparison.held_out},
                epochs=float(seeds[0]["points"][-1]["epochs"] * seeds[0]["given"]),
                unique=sampled["first_tokens"] / max(1, sampled["tokens"]),
                selection_s=sum(_seconds(made) for made in selecting),
                training_s=float(np.mean([seed["points"][-1]["seconds"] for seed in seeds])),
            )
        )
    return rows


def _seconds(step: Step) -> float:
    return float((step.folder.read_json(USAGE) or {}).get("seconds", 0.0))


def _figure(seeds: list[dict[str, Any]], base: list[dict[str, Any]], name: str) -> Figure:
    bytes_D = np.array(seeds[0]["bytes"][name], np.float64)
    bits_SD, base_SD = (np.array([seed["bits"][name] for seed in of_arm]) for of_arm in (seeds, base))
    each_S = bits_SD.sum(1) / bytes_D.sum()
    return Figure(float(each_S.mean()), float(each_S.std(ddof=1)), estimate([(bits_SD - base_SD, bytes_D)]))


def saved(comparison: Comparison, rows: list[Row], text: str, folder: Folder) -> list[str]:
    """Write the tables as text (`rendered`) and as JSON; return the paths."""
    _, *others = comparison.held_out
    figures = {
        "arms": [asdict(row) for row in rows],
        "curves": {other: [asdict(one) for one in versus(comparison, other)] for other in others},
    }
    folder.write_json("figures.json", figures)
    folder.write_bytes("tables.txt", text.encode())
    return [folder.file("tables.txt"), folder.file("figures.json")]


def rendered(comparison: Comparison, rows: list[Row]) -> str:
    """The tables as text; each is as wide as its content, whatever the width of the terminal."""
    console = Console(file=(text := io.StringIO()), width=_WIDEST)
    for part in _parts(comparison, rows):
        console.print(part, width=None if isinstance(part, Table) else _WIDTH)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _parts(comparison: Comparison, rows: list[Row]) -> Iterator[RenderableType]:
    evidence = comparison.evidence
    table = Table(title="\nBits per byte of held-out text; lower is better", title_justify="left", box=None, pad_edge=False)
    table.add_column("arm", no_wrap=True)
    for name in comparison.held_out:
        table.add_column(name, justify="right", no_wrap=True)
        table.add_column("difference (90%)", justify="right", no_wrap=True)
    for heading in ("epochs", "unique", "select", "train"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        cells = []
        for figure in row.figures.values():
            cells.append(f"{figure.mean:.3f}±{figure.deviation:.3f}")
            same = row.arm == evidence.baseline
            cells.append("" if same else _written(figure.difference))
        costs = (f"{row.epochs:.1f}", f"{100 * row.unique:.0f}%", f"{row.selection_s:,.0f}s", f"{row.training_s:,.0f}s")
        table.add_row(row.arm, *cells, *costs)
    yield table
    tokens = evidence.proxy.steps * evidence.proxy.batch * evidence.proxy.context
    yield Text(
        f"\n{evidence.seeds} proxies of {evidence.proxy.size} an arm, each trained on {tokens:,} tokens; ± is between seeds; "
        f"differences are to {evidence.baseline}, their intervals over seeds and documents. epochs: passes over the arm's corpus, "
        "below 1 where proxies were given its beginning alone; unique: what of it is no repeat; select and train: seconds, steps "
        "that arms share counted in each."
    )
    first, *others = comparison.held_out
    for other in others:
        yield from _curves(comparison, first, other)


def _curves(comparison: Comparison, first: str, other: str) -> Iterator[RenderableType]:
    """The comparison of curves with the points of other arms (`versus`); nothing if there are no curves."""
    found = versus(comparison, other)
    if not found:
        return
    table = Table(title=f"\nCurves over the natural share, {first} against {other}", title_justify="left", box=None, pad_edge=False)
    table.add_column("curve of", no_wrap=True)
    table.add_column("at", no_wrap=True)
    table.add_column(f"{first}, at its {other}", justify="right", no_wrap=True)
    table.add_column(f"loss on {other}, at its {first}", justify="right", no_wrap=True)
    table.add_column("its loss", justify="right", no_wrap=True)
    for one in found:
        gain, price = ("not reached" if read is None else _written(read) for read in (one.gain, one.price))
        table.add_row(one.curve, one.point, gain, price, f"{one.point_price:+.3f}")
    yield table
    yield Text(
        f"\nRead on the lines between measured shares, natural text at their end: {first} less the other arm's, at the smallest "
        f"share that costs {other} no more than that arm does; and what {other} loses to natural text at the largest share with "
        f"which {first} is no worse than there, beside what the other arm loses. Not reached: no share is as good."
    )


def _written(found: Estimate) -> str:
    return f"{found.value:+.3f} ({found.low:+.2f}, {found.high:+.2f})"
