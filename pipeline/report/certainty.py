"""How sure a sample lets us be of a mixture, and what more of it would change.

Shapes: L leaves, U nodes of a level.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.arrays import F64, I64
from pipeline.clustering.tree import Tree

MULTIPLES = (1, 2, 4, 8, 16)  # of the sample that there is
_SIGMAS = 2 * 1.6448536269514722  # between the 5th and the 95th percentile of a normal distribution


@dataclass(frozen=True)
class Level:
    """How far down the tree the sample decides."""

    level: int
    nodes: int  # that the sample touches
    alpha: float  # pseudo-windows of the generalist's mix
    decided: tuple[float, ...]  # the sample's part in the shares of this level, for each of MULTIPLES


def expected_error(p_low_L: F64, p_high_L: F64) -> float | None:
    """How much of the mixture another sample of this size would put elsewhere, on the mean; None without intervals.

    Half of Σ E|p' - p|, the total variation distance, with each share normally distributed over its 90% interval, as half the mean
    distance between an estimate and the truth would be. It falls with the square root of the number of documents.
    """
    known_L = np.isfinite(p_low_L) & np.isfinite(p_high_L)
    if not known_L.any():
        return None
    sigma_L = (p_high_L - p_low_L)[known_L] / _SIGMAS
    return float(np.sqrt(2 / np.pi) * sigma_L.sum() / 2)


def levels(tree: Tree, windows_L: I64, alphas: list[float]) -> list[Level]:
    """For each level of the tree what the sample decides there: n / (n + α), with n the windows of the node above.

    By windows of the sample: the mean over them, so that where most of it lies counts most. `windows_L` are the sample's, `alphas`
    those of levels 1, 2, … (docs/decisions/0004; `pipeline.mixture.smoothing`). A level without an α is left out.
    """
    found = []
    total = max(1, int(windows_L.sum()))
    for level, alpha in enumerate(alphas, start=1):
        above_L, here_L = tree.ancestor_at(level - 1), tree.ancestor_at(level)
        there = np.bincount(above_L, weights=windows_L, minlength=tree.num_nodes)
        n_U = there[there > 0].astype(np.float64)
        decided = [float((n_U * _part(times * n_U, alpha)).sum() / total) for times in MULTIPLES]
        touched = int((np.bincount(here_L, weights=windows_L) > 0).sum())
        found.append(Level(level, touched, alpha, tuple(decided)))
    return found


def _part(n_U: F64, alpha: float) -> F64:
    return np.zeros_like(n_U) if np.isinf(alpha) else n_U / (n_U + alpha)
