"""What the proxies say of each arm: means, deviations, paired differences and their intervals.

Shapes: A arms, S seeds, D documents of a held-out set.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.evidence.curves import Estimate, versus
from pipeline.evidence.settings import SPECIALIST_ONLY
from pipeline.evidence.steps import Comparison
from pipeline.step import USAGE, Step

_RESAMPLES = 2000


@dataclass(frozen=True)
class Figure:
    """Bits per byte of one arm on one held-out set, over its seeds; differences are to the baseline."""

    mean: float
    deviation: float  # of single seeds
    difference: float
    low: float  # 5th percentile of the difference
    high: float  # 95th


@dataclass(frozen=True)
class Row:
    """One arm."""

    arm: str
    figures: Mapping[str, Figure]  # by held-out set
    epochs: float  # passes of a proxy over the arm's corpus
    unique: float  # share of the corpus's tokens that are not repeats
    selection_s: float  # of all stages of its run, shared ones included
    training_s: float  # mean of a proxy


def rows_of(comparison: Comparison) -> list[Row]:
    """The figures of a comparison that is done."""
    base = comparison.proxies[comparison.evidence.baseline].manifest["seeds"]
    rows = []
    for arm, step in comparison.proxies.items():
        run, seeds = comparison.runs[arm], step.manifest["seeds"]
        sampled = {"first_tokens": 1, "tokens": 1} if arm == SPECIALIST_ONLY else run.step("sample").manifest
        selecting = () if arm == SPECIALIST_ONLY else run.steps
        rows.append(
            Row(
                arm=arm,
                figures={name: _figure(seeds, base, name) for name in comparison.held_out},
                epochs=float(seeds[0]["points"][-1]["epochs"]),
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
    low, high = difference_interval(bits_SD - base_SD, bytes_D)
    return Figure(
        mean=float(each_S.mean()),
        deviation=float(each_S.std(ddof=1)),
        difference=float((bits_SD - base_SD).sum() / len(bits_SD) / bytes_D.sum()),
        low=low,
        high=high,
    )


def difference_interval(difference_SD: NDArray[np.float64], bytes_D: NDArray[np.float64]) -> tuple[float, float]:
    """5th and 95th percentile of the mean difference in bits per byte, over resamples of seeds and of documents.

    Differences are paired: the same seed and the same document on both sides.
    """
    rng = np.random.default_rng(0)
    num_seeds, num_documents = difference_SD.shape
    found = np.empty(_RESAMPLES)
    for i in range(_RESAMPLES):
        weight_S = np.bincount(rng.integers(num_seeds, size=num_seeds), minlength=num_seeds) / num_seeds
        weight_D = np.bincount(rng.integers(num_documents, size=num_documents), minlength=num_documents)
        found[i] = (weight_S @ difference_SD @ weight_D) / (bytes_D @ weight_D)
    low, high = np.percentile(found, [5, 95])
    return float(low), float(high)


def rendered(comparison: Comparison, rows: list[Row]) -> Iterator[RenderableType]:
    """The table, for a person to read."""
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
            cells.append("" if same else f"{figure.difference:+.3f} ({figure.low:+.2f}, {figure.high:+.2f})")
        costs = (f"{row.epochs:.1f}", f"{100 * row.unique:.0f}%", f"{row.selection_s:,.0f}s", f"{row.training_s:,.0f}s")
        table.add_row(row.arm, *cells, *costs)
    yield table
    tokens = evidence.proxy.steps * evidence.proxy.batch * evidence.proxy.context
    yield Text(
        f"\n{evidence.seeds} proxies of {evidence.proxy.size} an arm, each trained on {tokens:,} tokens; ± is between seeds; "
        f"differences are to {evidence.baseline}, their intervals over seeds and documents. epochs: passes over the arm's corpus; "
        "unique: what of that is no repeat; select and train: seconds, shared steps counted in each arm."
    )
    first, *others = comparison.held_out
    for other in others:
        yield from _curves(comparison, first, other)


def _curves(comparison: Comparison, first: str, other: str) -> Iterator[RenderableType]:
    """Where arms have curves: what these say at the points of the others."""
    found = versus(comparison, other)
    if not found:
        return
    table = Table(title=f"\nCurves over the natural share, {first} against {other}", title_justify="left", box=None, pad_edge=False)
    table.add_column("curve of", no_wrap=True)
    table.add_column("at the point of", no_wrap=True)
    table.add_column(f"{first}, at its loss on {other}", justify="right", no_wrap=True)
    table.add_column(f"loss on {other}, at its {first}", justify="right", no_wrap=True)
    for one in found:
        price = f"{_estimate(one.price)} for {one.point_price:+.3f}" if one.price else "not reached"
        table.add_row(one.curve, one.point, _estimate(one.gain) if one.gain else "not reached", price)
    yield table
    yield Text(
        f"\nOn the lines between the measured shares, natural text at their end: {first} less the other arm's, where {other} is no "
        f"worse than there; what {other} loses to natural text where {first} is no worse, for what it loses at the other arm. "
        "Intervals (90%) are over seeds and documents."
    )


def _estimate(found: Estimate) -> str:
    return f"{found.value:+.3f} ({found.low:+.2f}, {found.high:+.2f})"
