"""Estimators of a specialist's share of each cluster, behind one interface, and the mixture of several specialists.

Shapes: L clusters (leaves of the tree), H levels below the root, S specialists, M clusters with generalist text.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipeline.arrays import F64, I64
from pipeline.config import CLUSTER_WEIGHTED_ESTIMATORS, NATURAL, Weights
from pipeline.errors import InputError
from pipeline.hashing import keyed_uniform
from pipeline.mixture.histograms import DocumentCounts, LeafHistogram
from pipeline.mixture.smoothing import fit_alphas, smooth
from pipeline.mixture.tree_shape import TreeShape, sum_below_nodes


@dataclass(frozen=True, kw_only=True)
class SpecialistMixture:
    """The estimated mixture of one specialist."""

    p_L: F64  # share of each cluster: sums to 1, 0 where there is no generalist text
    p_raw_L: F64  # share of the sample's tokens in each cluster
    alpha_H: F64  # pseudo-windows of each level: 0 keeps the sample's shares, inf the generalist's
    backed_off: float  # mass moved out of clusters without generalist text
    without_text: float  # share of the sample's tokens in clusters without generalist text


class Estimator(Protocol):
    """A method to get shares from histograms.

    If its shares below every node without sample windows are proportional to the generalist's, name it in `tables._PRUNED`:
    the leaves below such nodes are then merged (`tree_shape.prune`).
    """

    @property
    def name(self) -> str: ...

    def estimate(
        self,
        tree: TreeShape,
        generalist: LeafHistogram,
        specialists: Mapping[str, DocumentCounts],
        settings: Weights,
        seed: int = 0,
    ) -> dict[str, SpecialistMixture]:
        """The mixture of each specialist, by name.

        Raises:
            InputError: there is no generalist text, a specialist has no window with tokens, or no window of a specialist is in a
                cluster with generalist text.
        """


class ResamplingEstimator(Protocol):
    """An estimator whose cluster shares, or one factor of them, can be recomputed for a bootstrap resample of documents."""

    def estimate_resample(
        self, tree: TreeShape, generalist: LeafHistogram, tokens_L: I64, scale: float, alpha_H: F64
    ) -> SpecialistMixture:
        """The mixture of a resample of a specialist; α stays as fitted on the sample itself.

        Args:
            tokens_L: tokens of the resample in each leaf of `tree`.
            scale: windows per token of the sample itself.
        """


class Crisp:
    """P(c|specialist) from the sample's histogram (arXiv 2410.03735), smoothed down the tree (ours, `mixture.smoothing`)."""

    name = "crisp"

    def estimate(
        self,
        tree: TreeShape,
        generalist: LeafHistogram,
        specialists: Mapping[str, DocumentCounts],
        settings: Weights,
        seed: int = 0,
    ) -> dict[str, SpecialistMixture]:
        """See `Estimator.estimate`. α depends on `settings.smoothing`: fitted (auto), 0 (none), or one number for all levels."""
        del seed
        _check(generalist, specialists)
        text_V = generalist.node_tokens(tree)
        levels = int(tree.level_V[-1])
        mixtures = {}
        for name, sample in specialists.items():
            if settings.smoothing == "auto":
                alpha_H = fit_alphas(tree, text_V, sample)
            else:
                alpha_H = np.full(levels, 0.0 if settings.smoothing == "none" else float(settings.smoothing))
            tokens_L = sample.histogram(len(generalist.tokens_L)).tokens_L
            scale = sample.num_windows / sample.num_tokens
            mixtures[name] = self.estimate_resample(tree, generalist, tokens_L, scale, alpha_H)
        return mixtures

    def estimate_resample(
        self, tree: TreeShape, generalist: LeafHistogram, tokens_L: I64, scale: float, alpha_H: F64
    ) -> SpecialistMixture:
        """See `ResamplingEstimator.estimate_resample`."""
        p_L, backed_off = smooth(tree, generalist.node_tokens(tree), scale * sum_below_nodes(tree, tokens_L), alpha_H)
        return _build_mixture(p_L, tokens_L, generalist, alpha_H, backed_off)


class Natural:
    """The baseline: every specialist gets the generalist's own mixture."""

    name = "natural"

    def estimate(
        self,
        tree: TreeShape,
        generalist: LeafHistogram,
        specialists: Mapping[str, DocumentCounts],
        settings: Weights,
        seed: int = 0,
    ) -> dict[str, SpecialistMixture]:
        """See `Estimator.estimate`. The sample changes `p_raw_L` and `without_text` only."""
        del settings, seed
        _check(generalist, specialists)
        alpha_H = np.full(int(tree.level_V[-1]), np.inf)
        return {
            name: _build_mixture(generalist.p_L, sample.histogram(len(generalist.tokens_L)).tokens_L, generalist, alpha_H, 0.0)
            for name, sample in specialists.items()
        }

    def estimate_resample(
        self, tree: TreeShape, generalist: LeafHistogram, tokens_L: I64, scale: float, alpha_H: F64
    ) -> SpecialistMixture:
        """The generalist's mixture, whatever the resample."""
        del tree, scale
        return _build_mixture(generalist.p_L, tokens_L, generalist, alpha_H, 0.0)


@dataclass(frozen=True)
class Control:
    """A control: shares from the raw histogram by `compute_shares(p_raw_L, generalist, seed)`. It has no intervals."""

    name: str
    compute_shares: Callable[[F64, LeafHistogram, int], F64]

    def estimate(
        self,
        tree: TreeShape,
        generalist: LeafHistogram,
        specialists: Mapping[str, DocumentCounts],
        settings: Weights,
        seed: int = 0,
    ) -> dict[str, SpecialistMixture]:
        """See `Estimator.estimate`."""
        del settings
        _check(generalist, specialists)
        alpha_H = np.zeros(int(tree.level_V[-1]))
        mixtures = {}
        for name, sample in specialists.items():
            tokens_L = sample.histogram(len(generalist.tokens_L)).tokens_L
            p_raw_L = tokens_L / tokens_L.sum()
            lost = float(p_raw_L[generalist.tokens_L == 0].sum())
            mixtures[name] = _build_mixture(self.compute_shares(p_raw_L, generalist, seed), tokens_L, generalist, alpha_H, lost)
        return mixtures


def top_cluster(p_raw_L: F64, generalist: LeafHistogram, seed: int) -> F64:
    """(L,) 1 for the cluster with generalist text that holds most of the sample (the paper's ablation: worse than CRISP)."""
    del seed
    p_L = np.zeros(len(p_raw_L))
    p_L[np.argmax(np.where(generalist.tokens_L > 0, p_raw_L, -1.0))] = 1.0
    return p_L


def shuffle_histogram(p_raw_L: F64, generalist: LeafHistogram, seed: int) -> F64:
    """(L,) the sample's histogram, permuted at random among the clusters with generalist text: a control that must not help."""
    with_text_M = np.flatnonzero(generalist.tokens_L > 0)
    order_M = np.argsort(keyed_uniform(with_text_M.astype(np.uint64), seed=seed, purpose="shuffled"), kind="stable")
    p_L = np.zeros(len(p_raw_L))
    p_L[with_text_M[order_M]] = p_raw_L[with_text_M]
    return np.asarray(p_L / p_L.sum(), np.float64)


CRISP, NATURAL_ESTIMATOR = Crisp(), Natural()
ESTIMATORS: dict[str, Estimator] = {
    estimator.name: estimator
    for estimator in (CRISP, NATURAL_ESTIMATOR, Control("top-cluster", top_cluster), Control("shuffled", shuffle_histogram))
}
# What recomputes the mixture of a resample, by name of the estimator; other estimators have no intervals.
RESAMPLING_ESTIMATORS: dict[str, ResamplingEstimator] = {
    "crisp": CRISP,
    "natural": NATURAL_ESTIMATOR,
    **dict.fromkeys(CLUSTER_WEIGHTED_ESTIMATORS, CRISP),
}


def compute_claims(
    p_L_of: Mapping[str, F64], shares: Mapping[str, float], natural_share: float, p_generalist_L: F64
) -> tuple[list[str], F64]:
    """The claims on each cluster: names (the specialists in order, then `natural`), and (S+1, L) shares of the new corpus.

    The sum over rows is the target, `(1 - natural_share) Σ share_s p_s + natural_share G`. Specialists' shares are normalised to
    sum to 1.
    """
    total = sum(shares[name] for name in p_L_of)
    rows = [(1.0 - natural_share) * (shares[name] / total) * p_L for name, p_L in p_L_of.items()]
    return [*p_L_of, NATURAL], np.stack([*rows, natural_share * p_generalist_L])


def _build_mixture(p_L: F64, tokens_L: I64, generalist: LeafHistogram, alpha_H: F64, backed_off: float) -> SpecialistMixture:
    raw_L = tokens_L / max(int(tokens_L.sum()), 1)
    without_text = float(raw_L[generalist.tokens_L == 0].sum())
    return SpecialistMixture(p_L=p_L, p_raw_L=raw_L, alpha_H=alpha_H, backed_off=backed_off, without_text=without_text)


def _check(generalist: LeafHistogram, specialists: Mapping[str, DocumentCounts]) -> None:
    if not generalist.tokens_L.any():
        raise InputError(
            "generalist: no window with tokens was assigned to a cluster, so nothing can be sampled; check generalist.paths"
        )
    for name, sample in specialists.items():
        if not sample.num_tokens:
            more = f" ({sample.invalid:,} have no finite embedding)" if sample.invalid else ""
            raise InputError(
                f"specialists.{name}: no window with tokens was assigned to a cluster{more}; check specialists.{name}.paths"
            )
        if not generalist.tokens_L[sample.leaf_E[sample.tokens_E > 0]].any():
            raise InputError(
                f"specialists.{name}: none of its {sample.num_windows:,} windows falls into a cluster that has generalist text, so "
                "no similar text can be sampled; check that it is the right text, add generalist text, or lower cluster.depth or "
                "cluster.branching"
            )
