"""The results table of a comparison: means, standard deviations, paired differences and their intervals.

Shapes: A arms, S seeds, D documents of a held-out text.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.evidence.curves import compare_curves
from pipeline.evidence.intervals import Estimate, estimate_mean
from pipeline.evidence.settings import SPECIALIST_ONLY
from pipeline.evidence.steps import Comparison
from pipeline.execution.step import USAGE, Step
from pipeline.storage import Folder

_TEXT_WIDTH, _MAX_TABLE_WIDTH = 130, 1000  # in characters


@dataclass(frozen=True)
class HeldOutResult:
    """Bits per byte of one arm on one held-out text."""

    mean: float  # over seeds
    deviation: float  # standard deviation between seeds
    difference: Estimate  # to the baseline


@dataclass(frozen=True)
class Row:
    """The results of one arm."""

    arm: str
    figures: Mapping[str, HeldOutResult]  # by held-out text
    epochs: float  # how often a proxy reads the arm's corpus; below 1 if it reads only the beginning
    unique: float  # fraction of the corpus's tokens that are not repeats
    selection_s: float  # seconds for all steps of its run, including steps shared with other arms
    training_s: float  # seconds to train a proxy, mean over seeds


def compute_rows(comparison: Comparison) -> list[Row]:
    """The results of each arm of a finished comparison."""
    base = comparison.proxies[comparison.evidence.baseline].manifest["seeds"]
    rows = []
    for arm, step in comparison.proxies.items():
        run, seeds = comparison.runs[arm], step.manifest["seeds"]
        sampled = {"first_tokens": 1, "tokens": 1} if arm == SPECIALIST_ONLY else run.shards_step.manifest
        selection_steps = () if arm == SPECIALIST_ONLY else run.steps
        rows.append(
            Row(
                arm=arm,
                figures={name: _compute_result(seeds, base, name) for name in comparison.held_out},
                epochs=float(seeds[0]["points"][-1]["epochs"] * seeds[0]["fraction_read"]),
                unique=sampled["first_tokens"] / max(1, sampled["tokens"]),
                selection_s=sum(_read_seconds(step) for step in selection_steps),
                training_s=float(np.mean([seed["points"][-1]["seconds"] for seed in seeds])),
            )
        )
    return rows


def _read_seconds(step: Step) -> float:
    return float((step.folder.read_json(USAGE) or {}).get("seconds", 0.0))


def _compute_result(seeds: list[dict[str, Any]], base: list[dict[str, Any]], name: str) -> HeldOutResult:
    bytes_D = np.array(seeds[0]["bytes"][name], np.float64)
    bits_SD, base_SD = (np.array([seed["bits"][name] for seed in arm_seeds]) for arm_seeds in (seeds, base))
    bits_per_byte_S = bits_SD.sum(1) / bytes_D.sum()
    difference = estimate_mean([(bits_SD - base_SD, bytes_D)])
    return HeldOutResult(float(bits_per_byte_S.mean()), float(bits_per_byte_S.std(ddof=1)), difference)


def save_tables(comparison: Comparison, rows: list[Row], text: str, folder: Folder) -> list[str]:
    """Write the tables as text (from `render_tables`) and as JSON; return the paths."""
    _, *others = comparison.held_out
    figures = {
        "arms": [asdict(row) for row in rows],
        "curves": {other: [asdict(curve) for curve in compare_curves(comparison, other)] for other in others},
    }
    folder.write_json("figures.json", figures)
    folder.write_bytes("tables.txt", text.encode())
    return [folder.file("tables.txt"), folder.file("figures.json")]


def render_tables(comparison: Comparison, rows: list[Row]) -> str:
    """Render the tables as text; each is as wide as its content, whatever the width of the terminal."""
    console = Console(file=(text := io.StringIO()), width=_MAX_TABLE_WIDTH)
    for element in _build_elements(comparison, rows):
        console.print(element, width=None if isinstance(element, Table) else _TEXT_WIDTH)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _build_elements(comparison: Comparison, rows: list[Row]) -> Iterator[RenderableType]:
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
        for result in row.figures.values():
            cells.append(f"{result.mean:.3f}±{result.deviation:.3f}")
            is_baseline = row.arm == evidence.baseline
            cells.append("" if is_baseline else _format_estimate(result.difference))
        costs = (f"{row.epochs:.1f}", f"{100 * row.unique:.0f}%", f"{row.selection_s:,.0f}s", f"{row.training_s:,.0f}s")
        table.add_row(row.arm, *cells, *costs)
    yield table
    tokens = evidence.proxy.steps * evidence.proxy.batch * evidence.proxy.context
    yield Text(
        f"\n{evidence.seeds} proxies of {evidence.proxy.size} parameters per arm, each trained on {tokens:,} tokens; ±: standard "
        f"deviation between seeds; difference: from {evidence.baseline}, with an interval over seeds and documents; epochs: over "
        "the arm's corpus, below 1 if proxies read only its beginning; unique: share of the corpus that is not repeats; select and "
        "train: seconds, with shared steps counted in each arm."
    )
    first, *others = comparison.held_out
    for other in others:
        yield from _build_curve_table(comparison, first, other)


def _build_curve_table(comparison: Comparison, first: str, other: str) -> Iterator[RenderableType]:
    """The comparison of curves with the points of other arms (`compare_curves`); nothing if no arm has a curve."""
    curves = compare_curves(comparison, other)
    if not curves:
        return
    table = Table(title=f"\nCurves over the natural share, {first} against {other}", title_justify="left", box=None, pad_edge=False)
    table.add_column("curve of", no_wrap=True)
    table.add_column("other arm", no_wrap=True)
    table.add_column(f"{first} at equal {other}", justify="right", no_wrap=True)
    table.add_column(f"loss on {other} at equal {first}", justify="right", no_wrap=True)
    table.add_column("loss of the other arm", justify="right", no_wrap=True)
    for curve in curves:
        gain, price = ("not reached" if value is None else _format_estimate(value) for value in (curve.gain, curve.price))
        table.add_row(curve.curve, curve.point, gain, price, f"{curve.point_price:+.3f}")
    yield table
    yield Text(
        "\nCurves are interpolated linearly between the measured natural shares and end at natural text. "
        f"{first} at equal {other}: bits per byte of the curve minus those of the other arm, at the smallest share at which "
        f"{other} is no worse than in the other arm. Loss on {other} at equal {first}: bits per byte of the curve minus those of "
        f"natural text, at the largest share at which {first} is no worse than in the other arm. Not reached: no share is as good."
    )


def _format_estimate(estimate: Estimate) -> str:
    return f"{estimate.value:+.3f} ({estimate.low:+.2f}, {estimate.high:+.2f})"
