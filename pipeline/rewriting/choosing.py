"""Which windows are rewritten, in which style: thresholds on keyed hashes, raised from round to round until the plan is met.

Each pair of a window and a way (a style and a variant of it) has a hash `u` in (0, 1), and is asked for once its leaf's rate
exceeds it: `u ≤ rate · weight`. Rates only rise, so a later round, a larger budget or a further style asks
for what is new and no more.

Shapes: N windows of a part, L leaves, M pairs asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays import F64, I64, Ints
from pipeline.hashing import keyed_uniform

# Before any answer is seen: what is kept of the answers, by WRAP's and FinePhrase's accounts.
_FIRST_ACCEPTANCE = 0.85
_PRIOR_TOKENS = 2_000.0  # how much a leaf must have been asked before its own yield counts as much as that of all leaves
_LEAST_YIELD = 0.25  # in shares of the overall one: leaves whose rewrites all land elsewhere are not asked for without end
_MOST_GROWTH = 3.0  # of a leaf's rate in a round, where its yield is still a guess
_WORTH = 0.02  # of what is missing, that a round must promise
_MET = 0.005  # what may be missing of the wanted tokens


@dataclass(frozen=True)
class Way:
    """One style and variant: how often it is used, relative to the others (mean 1), and how long its answers are."""

    style: str
    variant: int
    weight: float
    expected_ratio: float


def ways(shares: Mapping[str, float], expected_ratios: Mapping[str, float], variants: int) -> list[Way]:
    """All styles in all variants."""
    return [
        Way(style, variant, share * len(shares), expected_ratios[style])
        for style, share in shares.items()
        for variant in range(variants)
    ]


def pairs(key_N: NDArray[np.uint64], leaf_N: Ints, before_L: F64, after_L: F64, used: list[Way], *, seed: int) -> list[I64]:
    """For each way the rows asked for when rates rise from `before_L` to `after_L`; rows without a leaf never are."""
    valid_N = leaf_N >= 0
    found = []
    for way in used:
        u_N = keyed_uniform(key_N, seed=seed, purpose=f"rephrase.{way.style}.{way.variant}")
        before_N, after_N = before_L[leaf_N] * way.weight, after_L[leaf_N] * way.weight
        found.append(np.flatnonzero(valid_N & (u_N > before_N) & (u_N <= after_N)))
    return found


def asked_share(rate_L: F64, used: list[Way]) -> F64:
    """(L,) expected share of all pairs that is asked for at these rates."""
    return np.asarray(np.mean([np.minimum(1.0, rate_L * way.weight) for way in used], axis=0))


def exhausted_rate(used: list[Way]) -> float:
    """The rate at which every pair is asked for."""
    return 1.0 / min(way.weight for way in used)


@dataclass(frozen=True)
class Tally:
    """How far it has come: tokens of passages sent and of rewrites gained, by leaf."""

    wanted_L: F64  # of rewrites
    tokens_L: Ints  # generalist text that can be rewritten
    asked_L: F64  # source tokens sent, by the leaf of the parent
    gained_L: F64  # tokens of rewrites that are used for each leaf
    accepted: int  # tokens of rewrites, used or not
    rate_L: F64

    def missing(self, *, by_leaf: bool) -> F64:
        """(L,) tokens still wanted: of each leaf, or of the whole, put down to the leaves as they are wanted."""
        if by_leaf:
            return np.maximum(self.wanted_L - self.gained_L, 0.0)
        total = self.wanted_L.sum()
        return np.asarray(self.wanted_L * (max(0.0, total - self.gained_L.sum()) / max(total, 1e-300)))

    def next_rates(self, used: list[Way], *, by_leaf: bool) -> F64 | None:
        """(L,) rates of the next round, or None when the plan is met or nothing is left to ask for."""
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
        # Which shares are open: as a rate rises, ways with a weight above 1 run out first.
        target_L = np.where((all_source_L > 0) & (missing_L > 0), np.minimum(share_L + more_L, 1.0), share_L)
        if by_leaf:
            target_L = np.where(share_L > 0, np.minimum(target_L, _MOST_GROWTH * share_L), target_L)
        # What is open in leaves that are hardly wanted does not make up for those that are asked for whole.
        if float(((target_L - share_L) * all_source_L * yield_L).sum()) < _WORTH * missing_L.sum():
            return None
        return np.maximum(_rate_for(target_L, used), self.rate_L)


def _rate_for(share_L: F64, used: list[Way]) -> F64:
    """(L,) the rates at which these shares of the pairs are asked for: the inverse of `asked_share`, piecewise linear."""
    knots = np.unique([0.0, *(1.0 / way.weight for way in used)])
    return np.asarray(np.interp(share_L, asked_share(knots, used), knots))
