"""Choose which windows are rewritten in which style, by thresholds on keyed hashes that rise each round until the plan is met.

Each pair of a window and a style variant has a uniform hash `u` in (0, 1). The pair is requested once `u ≤ rate · weight`, with the
rate of the window's cluster and the weight of the style variant. Rates only rise, so a later round, a larger budget or an
additional style requests only new pairs. See docs/decisions/0008-rewrites-serve-deficits-in-rounds.md.

Shapes: N windows of a part, L clusters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays import F64, I64, Ints
from pipeline.hashing import keyed_uniform

# The assumed share of accepted answers before any answer is seen, from the numbers that WRAP and FinePhrase report.
_PRIOR_ACCEPTANCE = 0.85
_PRIOR_TOKENS = 2_000.0  # source tokens a cluster must have sent before its own yield counts as much as the overall yield
_MIN_RELATIVE_YIELD = 0.25  # of the overall yield: bounds the requests in clusters whose rewrites all fall into other clusters
_MAX_GROWTH = 3.0  # factor on a cluster's requested share in one round, because its yield is only an estimate
_MIN_ROUND_GAIN = 0.02  # share of the missing tokens that a round must promise, else rewriting ends
_MET_TOLERANCE = 0.005  # share of the wanted tokens that may be missing when the plan counts as met


@dataclass(frozen=True)
class StyleVariant:
    """One variant of one style: its weight relative to the others (mean 1), and its answer tokens per passage token."""

    style: str
    variant: int
    weight: float
    expected_ratio: float


def list_style_variants(shares: Mapping[str, float], expected_ratios: Mapping[str, float], num_variants: int) -> list[StyleVariant]:
    """Return `num_variants` variants of each style, numbered from 0."""
    return [
        StyleVariant(style, variant, share * len(shares), expected_ratios[style])
        for style, share in shares.items()
        for variant in range(num_variants)
    ]


def select_new_rows(
    key_N: NDArray[np.uint64], leaf_N: Ints, before_L: F64, after_L: F64, style_variants: Sequence[StyleVariant], *, seed: int
) -> list[I64]:
    """Return for each style variant the rows newly requested as rates rise from `before_L` to `after_L`.

    Rows without a cluster (leaf -1) are never requested.
    """
    valid_N = leaf_N >= 0
    selected = []
    for style_variant in style_variants:
        u_N = keyed_uniform(key_N, seed=seed, purpose=f"rephrase.{style_variant.style}.{style_variant.variant}")
        before_N, after_N = before_L[leaf_N] * style_variant.weight, after_L[leaf_N] * style_variant.weight
        selected.append(np.flatnonzero(valid_N & (u_N > before_N) & (u_N <= after_N)))
    return selected


def compute_requested_share(rate_L: F64, style_variants: Sequence[StyleVariant]) -> F64:
    """Return (L,) the expected share of pairs requested at these rates."""
    return np.asarray(np.mean([np.minimum(1.0, rate_L * style_variant.weight) for style_variant in style_variants], axis=0))


@dataclass(frozen=True)
class RewritingProgress:
    """The progress of rewriting, per cluster: source tokens requested and rewrite tokens used."""

    wanted_L: F64  # tokens of rewrites
    tokens_L: Ints  # tokens of the generalist corpus, which can be rewritten
    requested_L: F64  # source tokens of all requests, by the cluster of the source window
    filled_L: F64  # tokens of rewrites used for each cluster
    accepted_tokens: int  # of all rewrites, used or not
    rate_L: F64

    def compute_missing(self, *, by_leaf: bool) -> F64:
        """Return (L,) tokens still wanted: for each cluster, or in total, divided among clusters in proportion to `wanted_L`."""
        if by_leaf:
            return np.maximum(self.wanted_L - self.filled_L, 0.0)
        total = self.wanted_L.sum()
        return np.asarray(self.wanted_L * (max(0.0, total - self.filled_L.sum()) / max(total, 1e-300)))

    def compute_next_rates(self, style_variants: Sequence[StyleVariant], *, by_leaf: bool) -> F64 | None:
        """Return (L,) the rates of the next round, or None if the plan is met or a round would gain too little."""
        missing_L = self.compute_missing(by_leaf=by_leaf)
        if missing_L.sum() <= _MET_TOLERANCE * self.wanted_L.sum():
            return None
        all_source_L = self.tokens_L * float(len(style_variants))
        weights = [style_variant.weight for style_variant in style_variants]
        ratio = float(np.average([style_variant.expected_ratio for style_variant in style_variants], weights=weights))
        overall_yield = (self.accepted_tokens + _PRIOR_TOKENS * ratio * _PRIOR_ACCEPTANCE) / (
            self.requested_L.sum() + _PRIOR_TOKENS
        )
        yield_L = (
            (self.filled_L + _PRIOR_TOKENS * overall_yield) / (self.requested_L + _PRIOR_TOKENS)
            if by_leaf
            else np.full(len(missing_L), overall_yield)
        )
        yield_L = np.maximum(yield_L, _MIN_RELATIVE_YIELD * max(overall_yield, 1e-6))
        share_L = compute_requested_share(self.rate_L, style_variants)
        more_L = missing_L / yield_L / np.maximum(all_source_L, 1.0)
        # Shares of pairs, not rates: as a rate rises, style variants with a weight above 1 are exhausted first.
        next_share_L = np.where((all_source_L > 0) & (missing_L > 0), np.minimum(share_L + more_L, 1.0), share_L)
        if by_leaf:
            next_share_L = np.where(share_L > 0, np.minimum(next_share_L, _MAX_GROWTH * share_L), next_share_L)
        # What remains in clusters with a small deficit cannot compensate for exhausted clusters.
        if float(((next_share_L - share_L) * all_source_L * yield_L).sum()) < _MIN_ROUND_GAIN * missing_L.sum():
            return None
        return np.maximum(_rates_for_shares(next_share_L, style_variants), self.rate_L)


def _rates_for_shares(share_L: F64, style_variants: Sequence[StyleVariant]) -> F64:
    """Return (L,) the rates at which these shares of pairs are requested: the inverse of `compute_requested_share`."""
    # The share is piecewise linear in the rate, with a knot where a style variant is exhausted.
    knots = np.unique([0.0, *(1.0 / style_variant.weight for style_variant in style_variants)])
    return np.asarray(np.interp(share_L, compute_requested_share(knots, style_variants), knots))
