"""Choose which windows are rewritten in which style, by thresholds on keyed hashes that rise each round until the plan is met.

A way is one variant of one style. Each pair of a window and a way has a uniform hash `u` in (0, 1). The pair is requested once
`u ≤ rate · weight`, with the rate of the window's cluster and the weight of the way. Rates only rise, so a later round, a larger
budget or an additional style requests only new pairs. See docs/decisions/0008-rewrites-serve-deficits-in-rounds.md.

Shapes: N windows of a part, L clusters.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays import F64, I64, Ints
from pipeline.hashing import keyed_uniform

# The assumed share of accepted answers before any answer is seen, from the numbers that WRAP and FinePhrase report.
_FIRST_ACCEPTANCE = 0.85
_PRIOR_TOKENS = 2_000.0  # source tokens a cluster must have sent before its own yield counts as much as the overall yield
_LEAST_YIELD = 0.25  # of the overall yield: bounds the requests in clusters whose rewrites all fall into other clusters
_MOST_GROWTH = 3.0  # factor on a cluster's requested share in one round, because its yield is only an estimate
_WORTH = 0.02  # share of the missing tokens that a round must promise, else rewriting ends
_MET = 0.005  # share of the wanted tokens that may be missing when the plan counts as met


@dataclass(frozen=True)
class Way:
    """One variant of one style: its weight relative to the other ways (mean 1), and its answer tokens per passage token."""

    style: str
    variant: int
    weight: float
    expected_ratio: float


def ways(shares: Mapping[str, float], expected_ratios: Mapping[str, float], variants: int) -> list[Way]:
    """Return one way for each variant of each style."""
    return [
        Way(style, variant, share * len(shares), expected_ratios[style])
        for style, share in shares.items()
        for variant in range(variants)
    ]


def pairs(key_N: NDArray[np.uint64], leaf_N: Ints, before_L: F64, after_L: F64, used: list[Way], *, seed: int) -> list[I64]:
    """Return for each way the rows newly requested as rates rise from `before_L` to `after_L`; never rows without a cluster."""
    valid_N = leaf_N >= 0
    found = []
    for way in used:
        u_N = keyed_uniform(key_N, seed=seed, purpose=f"rephrase.{way.style}.{way.variant}")
        before_N, after_N = before_L[leaf_N] * way.weight, after_L[leaf_N] * way.weight
        found.append(np.flatnonzero(valid_N & (u_N > before_N) & (u_N <= after_N)))
    return found


def asked_share(rate_L: F64, used: list[Way]) -> F64:
    """Return (L,) the expected share of pairs requested at these rates."""
    return np.asarray(np.mean([np.minimum(1.0, rate_L * way.weight) for way in used], axis=0))


def exhausted_rate(used: list[Way]) -> float:
    """Return the lowest rate at which every pair is requested."""
    return 1.0 / min(way.weight for way in used)


@dataclass(frozen=True)
class Tally:
    """The progress of rewriting, per cluster: passage tokens sent and rewrite tokens gained."""

    wanted_L: F64  # tokens of rewrites
    tokens_L: Ints  # tokens of the generalist corpus, which can be rewritten
    asked_L: F64  # source tokens sent, by the cluster of the source window
    gained_L: F64  # tokens of rewrites used for each cluster
    accepted: int  # tokens of all rewrites, used or not
    rate_L: F64

    def missing(self, *, by_leaf: bool) -> F64:
        """Return (L,) tokens still wanted: for each cluster, or in total, divided among clusters in proportion to `wanted_L`."""
        if by_leaf:
            return np.maximum(self.wanted_L - self.gained_L, 0.0)
        total = self.wanted_L.sum()
        return np.asarray(self.wanted_L * (max(0.0, total - self.gained_L.sum()) / max(total, 1e-300)))

    def next_rates(self, used: list[Way], *, by_leaf: bool) -> F64 | None:
        """Return (L,) the rates of the next round, or None if the plan is met or a round would gain too little."""
        missing_L = self.missing(by_leaf=by_leaf)
        if missing_L.sum() <= _MET * self.wanted_L.sum():
            return None
        all_source_L = self.tokens_L * float(len(used))
        ratio = float(np.average([way.expected_ratio for way in used], weights=[way.weight for way in used]))
        asked = self.asked_L.sum()
        overall = (self.accepted + _PRIOR_TOKENS * ratio * _FIRST_ACCEPTANCE) / (asked + _PRIOR_TOKENS)
        yield_L = (
            (self.gained_L + _PRIOR_TOKENS * overall) / (self.asked_L + _PRIOR_TOKENS)
            if by_leaf
            else np.full(len(missing_L), overall)
        )
        yield_L = np.maximum(yield_L, _LEAST_YIELD * max(overall, 1e-6))
        share_L = asked_share(self.rate_L, used)
        more_L = missing_L / yield_L / np.maximum(all_source_L, 1.0)
        # Shares of pairs, not rates: as a rate rises, ways with a weight above 1 are exhausted first.
        target_L = np.where((all_source_L > 0) & (missing_L > 0), np.minimum(share_L + more_L, 1.0), share_L)
        if by_leaf:
            target_L = np.where(share_L > 0, np.minimum(target_L, _MOST_GROWTH * share_L), target_L)
        # What remains in clusters with a small deficit cannot compensate for exhausted clusters.
        if float(((target_L - share_L) * all_source_L * yield_L).sum()) < _WORTH * missing_L.sum():
            return None
        return np.maximum(_rate_for(target_L, used), self.rate_L)


def _rate_for(share_L: F64, used: list[Way]) -> F64:
    """Return (L,) the rates at which these shares of pairs are requested: the inverse of `asked_share`, piecewise linear."""
    knots = np.unique([0.0, *(1.0 / way.weight for way in used)])
    return np.asarray(np.interp(share_L, asked_share(knots, used), knots))
