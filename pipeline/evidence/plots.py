"""Plots of a comparison: gain on specialist text against loss on other text, and training curves."""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.errors import ConfigError
from pipeline.evidence.curves import curves_of, plain_arms
from pipeline.evidence.steps import Comparison
from pipeline.evidence.table import Row
from pipeline.storage import Folder

_SIZE = (7.0, 4.8)  # inches
# Keep text as text, for search and screen readers. A fixed salt makes the same comparison give the same file.
_STYLE: Any = {
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "crispwrap",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def check() -> None:
    """Check that plots can be written, before hours of training.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError('the pictures need matplotlib, which is not here: pip install "crispwrap[evidence]"') from error


def drawn(comparison: Comparison, rows: Sequence[Row], folder: Folder) -> list[str]:
    """Write the plots as SVG files to `folder`; return their paths."""
    import matplotlib

    found = []
    with matplotlib.rc_context(_STYLE):
        for name, figure in (*_curves(comparison, rows), _training(comparison)):
            sink = io.BytesIO()
            figure.savefig(sink, format="svg", metadata={"Date": None})
            folder.write_bytes(f"{name}.svg", sink.getvalue())
            found.append(folder.file(f"{name}.svg"))
    return found


def _figure(columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_SIZE[0] * columns, _SIZE[1]), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _curves(comparison: Comparison, rows: Sequence[Row]) -> Iterator[tuple[str, Any]]:
    """The first held-out set against each other one: a point per arm or its curve up to the natural arm, with 90% intervals.

    Yields the name and the figure; nothing if there is only one held-out set.
    """
    of_arm = {row.arm: row for row in rows}
    first, *others = comparison.held_out
    if not others:
        return
    curves, numbers = curves_of(comparison), {arm: number for number, arm in enumerate(comparison.runs)}
    figure, all_axes = _figure(len(others))
    for axes, other in zip(all_axes, others, strict=True):
        for arm in plain_arms(comparison):
            number = numbers[arm]
            points = [of_arm[name] for name in curves.get(arm, [arm])]
            x, y = ([row.figures[name].mean for row in points] for name in (other, first))
            spread = {name: _around([row.figures[name] for row in points]) for name in (other, first)}
            axes.errorbar(
                x,
                y,
                xerr=spread[other],
                yerr=spread[first],
                label=arm,
                color=f"C{number % 10}",
                marker="os^vD<>ph*"[(number + number // 10) % 10],
                markersize=5,
                linewidth=1.2,
                elinewidth=0.6,
                zorder=2 if arm in curves else 3,  # single points above the curves, which end at the natural arm
            )
        axes.set_xlabel(f"{other}, bits per byte")
        axes.set_ylabel(f"{first}, bits per byte")
        title = f"Lower left is better; bars: 90% of the difference to {comparison.evidence.baseline}"
        axes.set_title(title, fontsize=9, loc="left")
    all_axes[-1].legend(frameon=False, fontsize=8)
    yield "curves", figure


def _around(figures: Sequence[Any]) -> Any:
    """(2, points) distances from each difference to the lower and the upper end of its interval: error bars for matplotlib."""
    return np.array([[one.difference.value - one.difference.low, one.difference.high - one.difference.value] for one in figures]).T


def _training(comparison: Comparison) -> tuple[str, Any]:
    """The name and the figure of the training curves: bits per byte of the first held-out set, mean over seeds."""
    first = next(iter(comparison.held_out))
    figure, (axes,) = _figure()
    for number, (arm, step) in enumerate(comparison.proxies.items()):
        of_seeds = [seed["points"] for seed in step.manifest["seeds"]]
        tokens = [point["tokens"] for point in of_seeds[0]]
        mean = np.mean([[point["bits_per_byte"][first] for point in points] for points in of_seeds], axis=0)
        axes.plot(tokens, mean, label=arm, color=f"C{number % 10}", linestyle=("-", "--", ":")[number // 10 % 3], marker=".")
    axes.set_xlabel("tokens trained on")
    axes.set_ylabel(f"{first}, bits per byte")
    axes.legend(frameon=False, fontsize=8)
    return "training", figure
