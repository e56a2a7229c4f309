"""Plots of a comparison: gain on specialist text against loss on other text, and training curves."""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.errors import ConfigError
from pipeline.evidence.curves import find_curves, list_plain_arms
from pipeline.evidence.steps import Comparison
from pipeline.evidence.table import HeldOutResult, Row
from pipeline.storage import Folder

_SIZE = (7.0, 4.8)  # inches
# Keep text as text, for search and screen readers. With a fixed salt, the same comparison gives the same file.
_STYLE: Any = {
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "crispwrap",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def check_matplotlib() -> None:
    """Check that plots can be written, before hours of training.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError('plots need matplotlib, which is not installed: run `pip install "crispwrap[evidence]"`') from error


def write_plots(comparison: Comparison, rows: Sequence[Row], folder: Folder) -> list[str]:
    """Write the plots as SVG files to `folder`; return their paths."""
    import matplotlib

    paths = []
    with matplotlib.rc_context(_STYLE):
        for name, figure in (*_plot_curves(comparison, rows), _plot_training(comparison)):
            sink = io.BytesIO()
            figure.savefig(sink, format="svg", metadata={"Date": None})
            folder.write_bytes(f"{name}.svg", sink.getvalue())
            paths.append(folder.file(f"{name}.svg"))
    return paths


def _make_figure(columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_SIZE[0] * columns, _SIZE[1]), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _plot_curves(comparison: Comparison, rows: Sequence[Row]) -> Iterator[tuple[str, Any]]:
    """The first held-out text against each other one: a point per arm or its curve up to the natural arm, with 90% intervals.

    Yields the name and the figure; nothing if the comparison has only one held-out text.
    """
    row_by_arm = {row.arm: row for row in rows}
    first, *others = comparison.held_out
    if not others:
        return
    curves, number_by_arm = find_curves(comparison), {arm: number for number, arm in enumerate(comparison.runs)}
    figure, all_axes = _make_figure(len(others))
    for axes, other in zip(all_axes, others, strict=True):
        for arm in list_plain_arms(comparison):
            number = number_by_arm[arm]
            points = [row_by_arm[name] for name in curves.get(arm, [arm])]
            x, y = ([row.figures[name].mean for row in points] for name in (other, first))
            error_bars = {name: _compute_error_bars([row.figures[name] for row in points]) for name in (other, first)}
            axes.errorbar(
                x,
                y,
                xerr=error_bars[other],
                yerr=error_bars[first],
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
        title = f"Lower left is better; bars: 90% interval of the difference to {comparison.evidence.baseline}"
        axes.set_title(title, fontsize=9, loc="left")
    all_axes[-1].legend(frameon=False, fontsize=8)
    yield "curves", figure


def _compute_error_bars(results: Sequence[HeldOutResult]) -> Any:
    """(2, points) distances from each difference to the lower and the upper end of its interval, as matplotlib takes them."""
    differences = [result.difference for result in results]
    return np.array([[each.value - each.low, each.high - each.value] for each in differences]).T


def _plot_training(comparison: Comparison) -> tuple[str, Any]:
    """The name and the figure of the training curves: bits per byte of the first held-out text, mean over seeds."""
    first = next(iter(comparison.held_out))
    figure, (axes,) = _make_figure()
    for number, (arm, step) in enumerate(comparison.proxies.items()):
        points_by_seed = [seed["points"] for seed in step.manifest["seeds"]]
        tokens = [point["tokens"] for point in points_by_seed[0]]
        mean = np.mean([[point["bits_per_byte"][first] for point in points] for points in points_by_seed], axis=0)
        axes.plot(tokens, mean, label=arm, color=f"C{number % 10}", linestyle=("-", "--", ":")[number // 10 % 3], marker=".")
    axes.set_xlabel("training tokens")
    axes.set_ylabel(f"{first}, bits per byte")
    axes.legend(frameon=False, fontsize=8)
    return "training", figure
