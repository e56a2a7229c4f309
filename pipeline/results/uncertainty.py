"""The uncertainty of a mixture estimated from a specialist sample, and how it shrinks as the sample grows.

Shapes: L leaves, M leaves where two distributions are positive, U nodes of one level with sample windows below them.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.arrays import F64, I64
from pipeline.clustering.tree import Tree

SAMPLE_MULTIPLES = (1, 2, 4, 8, 16)  # of the present sample size
_SIGMAS = 2 * 1.6448536269514722  # standard deviations between the 5th and 95th percentile of a normal distribution


@dataclass(frozen=True)
class SampleInfluence:
    """How much the specialist sample, rather than the generalist corpus, determines the shares of one level of the tree."""

    level: int
    num_nodes: int  # with sample windows below them
    alpha: float  # pseudo-windows of the generalist's shares; inf: the level keeps the generalist's shares
    fractions: tuple[float, ...]  # of the estimate that the sample determines, from 0 to 1, for each of SAMPLE_MULTIPLES


@dataclass(frozen=True)
class SampleUncertainty:
    """How much the mixture of one specialist depends on which documents its sample happens to have."""

    documents: int  # of the specialist sample
    windows: int
    error: float | None  # expected share of the mixture in other clusters than with an unlimited sample; None without intervals
    levels: tuple[SampleInfluence, ...]
    kl_before: float  # KL(specialist sample || generalist corpus) over clusters, in nats
    kl_after: float  # KL(specialist sample || new corpus)


def kl_divergence(p_L: F64, q_L: F64) -> float:
    """KL(p || q) in nats over the leaves where both are positive, with p normalised there; 0 if there is none."""
    both_L = (p_L > 0) & (q_L > 0)
    if not both_L.any():
        return 0.0
    p_M, q_M = p_L[both_L] / p_L[both_L].sum(), q_L[both_L]
    return float(p_M @ np.log(p_M / q_M))


def estimate_error(p_low_L: F64, p_high_L: F64) -> float | None:
    """The expected total variation distance between the estimated and the true mixture, from 0 to 1; None without intervals.

    This is ½ Σ E|p̂ - p| over the leaves with an interval. The error of each share is taken to be normal, with σ from the width of
    the 90% interval, so E|p̂ - p| = σ √(2/π). It shrinks as 1 / √(number of documents).

    Args:
        p_low_L: 5th percentile of each share; NaN: unknown.
        p_high_L: 95th percentile.
    """
    known_L = np.isfinite(p_low_L) & np.isfinite(p_high_L)
    if not known_L.any():
        return None
    sigma_L = (p_high_L - p_low_L)[known_L] / _SIGMAS
    return float(np.sqrt(2 / np.pi) * sigma_L.sum() / 2)


def measure_sample_influence(tree: Tree, windows_L: I64, alphas: list[float]) -> list[SampleInfluence]:
    """How much of each level's shares the specialist sample determines.

    A parent with n sample windows determines the fraction n / (n + α) of the shares of its children (docs/decisions/0004;
    `pipeline.mixture.smoothing`). A level's value is the mean over sample windows, so parents with many windows count more.

    Args:
        windows_L: windows of the specialist sample.
        alphas: pseudo-windows of levels 1, 2, … in order; deeper levels are omitted.
    """
    influences = []
    total = max(1, int(windows_L.sum()))
    for level, alpha in enumerate(alphas, start=1):
        parent_L, node_L = tree.ancestor_at(level - 1), tree.ancestor_at(level)
        windows_V = np.bincount(parent_L, weights=windows_L, minlength=tree.num_nodes)
        n_U = windows_V[windows_V > 0].astype(np.float64)
        fractions = [float((n_U * _sample_fraction(multiple * n_U, alpha)).sum() / total) for multiple in SAMPLE_MULTIPLES]
        num_nodes = int((np.bincount(node_L, weights=windows_L) > 0).sum())
        influences.append(SampleInfluence(level, num_nodes, alpha, tuple(fractions)))
    return influences


def _sample_fraction(n_U: F64, alpha: float) -> F64:
    return np.zeros_like(n_U) if np.isinf(alpha) else n_U / (n_U + alpha)
