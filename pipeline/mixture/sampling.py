"""Sampling: the number of copies of each window in the new corpus. Two passes over the parts, with a decision in between.

The expected copies of a window are `λ = epochs(cluster) · factor`. All randomness is a keyed hash of the window, so the result does
not depend on the parts, their order or the workers. No process holds all windows. Most are decided by their own hash; only those
near the threshold (about √n of n) are sent to the driver, which makes the sampled tokens meet the allocation (docs/decisions/0003).

- `rounded`: ⌊λ⌋ copies, and one extra copy with probability f = λ - ⌊λ⌋. Order sampling (Rosén 1997): with u uniform and ξ = u / f,
  a window gets the extra copy iff ξ ≤ 1. Below `1 - band` it always does, above `1 + band` never. Windows in between are the
  candidates. The driver rounds them so that the tokens of every subtree are within one window of the allocation
  (`mixture.rounding`).
- `multinomial`: sampling with replacement as in the CRISP paper (arXiv 2410.03735). The copies of a window arrive as a Poisson
  process with rate λ; all copies that arrive before a common time τ are sampled. In order of time, the arrivals of all windows are
  independent draws: of a cluster in proportion to its allocated tokens (counted in windows of its mean length), and of a window in
  it in proportion to the window's factor. τ is the time at which they fill the budget, so this is the paper's sampler, stopped at
  the budget.

    band = first_band(plan)
    while True:
        state = Candidates.combine(find_candidates(part…, plan, band) for every part)
        decision = decide(state, plan, band, tree)
        if isinstance(decision, Decision): break
        band = decision                            # rare: the threshold was not among the candidates
    count_copies(part…, plan, decision) for every part

Shapes: N windows of a part, L clusters (leaves of the tree), C candidates, T candidates with an extra copy, G groups (the clusters;
one group for `multinomial`), F groups that occur in a state, S specialists and natural text, M copies that arrive.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrays import F64, I64, Ints, Keys
from pipeline.hashing import keyed_uniform
from pipeline.mixture.rounding import round_balanced
from pipeline.mixture.tree_shape import TreeShape
from pipeline.tables import DRAWS, cast

_BAND_STDDEVS = (
    8.0  # half-width of the band in standard deviations of the threshold if windows have one length; else about half as many
)
_MIN_CANDIDATES = 128  # expected candidates per group: with fewer, adjusting their probabilities would favour short windows
_SMALL_CLUSTER_WINDOWS = 512  # a cluster with at most so many windows sends all to the driver
_BAND_GROWTH = 4.0  # factor on the band for another first pass


@dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """What every worker needs: the epochs of each cluster."""

    method: Literal["rounded", "multinomial"]
    seed: int
    epochs_L: F64
    allocated_L: F64  # tokens; equal to Σ λ · tokens, as factors average 1 over a cluster's tokens
    windows_L: Ints  # windows of the text to sample from; they decide the width of the band

    def expected(self, leaf_N: Ints, factor_N: NDArray[np.floating]) -> F64:
        """(N,) λ, the expected copies of each window; 0 for a window without a cluster."""
        return np.where(leaf_N >= 0, self.epochs_L[leaf_N] * np.asarray(factor_N, dtype=np.float64), 0.0)


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Tokens that are certain to be sampled, by group, and the copies that the driver decides on. The state of a fold."""

    group_F: I64
    certain_tokens_F: I64
    key_C: Keys
    group_C: I64
    tokens_C: I64
    value_C: F64  # rounded: probability of the extra copy, given the band; multinomial: time of arrival

    @classmethod
    def zero(cls) -> Self:
        """The initial state."""
        ints, keys = np.empty(0, np.int64), np.empty(0, np.uint64)
        return cls(group_F=ints, certain_tokens_F=ints, key_C=keys, group_C=ints, tokens_C=ints, value_C=np.empty(0))

    def add(self, other: Self) -> Self:
        """This and another state, merged."""
        return self.combine([self, other])

    @classmethod
    def combine(cls, states: Iterable[Self]) -> Self:
        """One or more states merged, in any order and grouping."""
        states = list(states)
        group_F, row = np.unique(np.concatenate([s.group_F for s in states]), return_inverse=True)
        certain_F = np.zeros(len(group_F), dtype=np.int64)
        np.add.at(certain_F, row, np.concatenate([s.certain_tokens_F for s in states]))
        return cls(
            group_F=group_F,
            certain_tokens_F=certain_F,
            key_C=np.concatenate([s.key_C for s in states]),
            group_C=np.concatenate([s.group_C for s in states]),
            tokens_C=np.concatenate([s.tokens_C for s in states]),
            value_C=np.concatenate([s.value_C for s in states]),
        )


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The decision: all that a worker needs to count the copies of any window."""

    band_G: F64
    extra_T: Keys  # rounded: keys of candidates with an extra copy, sorted
    max_time: float  # multinomial: copies that arrive up to this time are sampled


def first_band(plan: SamplingPlan) -> F64:
    """(G,) half-width of the band around 1; inf: every window with f > 0 is a candidate."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if plan.method == "multinomial":
            draws_G = np.array([plan.epochs_L @ plan.windows_L])
            return np.asarray(np.maximum(_BAND_STDDEVS / np.sqrt(draws_G), _MIN_CANDIDATES / draws_G))
        f_L = plan.epochs_L - np.floor(plan.epochs_L)
        extras_L = f_L * plan.windows_L
        band_L = np.maximum(_BAND_STDDEVS * np.sqrt((1.0 - f_L) / extras_L), _MIN_CANDIDATES / extras_L)
    return np.where((plan.windows_L <= _SMALL_CLUSTER_WINDOWS) | (extras_L == 0), np.inf, band_L)


def find_candidates(
    key_N: Keys, leaf_N: Ints, tokens_N: Ints, factor_N: NDArray[np.floating], plan: SamplingPlan, band_G: F64
) -> Candidates:
    """First pass: the certain tokens and the candidates of one part."""
    lambda_N = plan.expected(leaf_N, factor_N)
    tokens_N = np.asarray(tokens_N, dtype=np.int64)
    if plan.method == "multinomial":
        low, high = 1.0 - band_G[0], 1.0 + band_G[0]
        certain, found = 0, [(np.empty(0, dtype=np.int64), np.empty(0))]
        for row_M, time_M in _iter_arrivals(key_N, lambda_N, high, plan.seed):
            near_M = time_M >= low
            certain += int(tokens_N[row_M[~near_M]].sum())
            found.append((row_M[near_M], time_M[near_M]))
        row_C, value_C = (np.concatenate(column) for column in zip(*found, strict=True))
        group_F, certain_F, group_C = np.zeros(1, dtype=np.int64), np.array([certain]), np.zeros(len(row_C), dtype=np.int64)
    else:
        certain_N, near_N, probability_N = _split_copies(key_N, leaf_N, lambda_N, plan, band_G)
        group_F, group_N = np.unique(leaf_N[lambda_N > 0], return_inverse=True)
        certain_F = np.zeros(len(group_F), dtype=np.int64)
        np.add.at(certain_F, group_N, (certain_N * tokens_N)[lambda_N > 0])
        row_C = np.flatnonzero(near_N)
        group_C, value_C = leaf_N[row_C].astype(np.int64), probability_N[row_C]
    return Candidates(
        group_F=group_F.astype(np.int64),
        certain_tokens_F=certain_F,
        key_C=np.asarray(key_N, dtype=np.uint64)[row_C],
        group_C=group_C,
        tokens_C=tokens_N[row_C],
        value_C=value_C,
    )


def decide(state: Candidates, plan: SamplingPlan, band_G: F64, tree: TreeShape) -> Decision | F64:
    """The decision; or wider bands for another first pass, if the threshold is not among the candidates."""
    return _decide_arrivals(state, plan, band_G) if plan.method == "multinomial" else _decide_extras(state, plan, band_G, tree)


def count_copies(key_N: Keys, leaf_N: Ints, factor_N: NDArray[np.floating], plan: SamplingPlan, decision: Decision) -> pa.Table:
    """Second pass: the DRAWS table of one part, in the order of its rows."""
    lambda_N = plan.expected(leaf_N, factor_N)
    key_N = np.asarray(key_N, dtype=np.uint64)
    if plan.method == "multinomial":
        copies_N = np.zeros(len(key_N), dtype=np.int64)
        for row_M, _ in _iter_arrivals(key_N, lambda_N, decision.max_time, plan.seed):
            copies_N[row_M] += 1
    else:
        copies_N, near_N, _ = _split_copies(key_N, leaf_N, lambda_N, plan, decision.band_G)
        if len(decision.extra_T):
            place_C = np.searchsorted(decision.extra_T, key_N[near_N]).clip(max=len(decision.extra_T) - 1)
            copies_N[near_N] += decision.extra_T[place_C] == key_N[near_N]
    columns = {"key": key_N, "leaf": leaf_N, "factor": factor_N, "expected": lambda_N, "copies": copies_N}
    return cast(pa.table(columns), DRAWS)


def attribute_copies(key_N: Keys, copy_N: Ints, claim_SN: F64, seed: int) -> I64:
    """(N,) the row of `claim_SN` that each copy is attributed to, at random in proportion to the rows' claims on its text."""
    upto_SN = np.cumsum(claim_SN, axis=0)
    u_N = keyed_uniform(key_N, seed=seed, purpose="attribute", copy=copy_N)
    return np.asarray((upto_SN[:-1] <= u_N * upto_SN[-1]).sum(axis=0), dtype=np.int64)


def _split_copies(key_N: Keys, leaf_N: Ints, lambda_N: F64, plan: SamplingPlan, band_G: F64) -> tuple[I64, NDArray[np.bool_], F64]:
    """(N,) each, for `rounded`: certain copies; whether the driver decides on one more; its probability, given that it does."""
    whole_N = np.floor(lambda_N)
    f_N = lambda_N - whole_N
    u_N = keyed_uniform(key_N, seed=plan.seed, purpose="draw.extra")
    band_N = np.where(f_N > 0, band_G[leaf_N], 0.0)
    low_N = f_N * np.maximum(1.0 - band_N, 0.0)
    high_N = np.minimum(f_N * (1.0 + np.minimum(band_N, 1e300)), 1.0)
    near_N = (u_N >= low_N) & (u_N <= high_N) & (f_N > 0)
    probability_N = np.divide(f_N - low_N, high_N - low_N, out=np.zeros_like(f_N), where=near_N)
    return whole_N.astype(np.int64) + (u_N < low_N), near_N, probability_N


def _decide_extras(state: Candidates, plan: SamplingPlan, band_L: F64, tree: TreeShape) -> Decision | F64:
    order_C = np.lexsort((state.key_C, state.group_C))
    key_C, leaf_C = state.key_C[order_C], state.group_C[order_C]
    tokens_C, probability_C = state.tokens_C[order_C], state.value_C[order_C]
    num_leaves = len(plan.allocated_L)
    due_L = plan.allocated_L.copy()
    due_L[state.group_F] -= state.certain_tokens_F
    held_L = np.bincount(leaf_C, weights=tokens_C, minlength=num_leaves)
    mean_L = np.bincount(leaf_C, weights=probability_C * tokens_C, minlength=num_leaves)
    slack_L = 0.5 + 1e-6 * plan.allocated_L  # half a token, and the rounding of float32 factors
    missed_L = ((due_L < -slack_L) | (due_L > held_L + slack_L)) & np.isfinite(band_L)
    if missed_L.any():
        return np.where(missed_L, np.where(band_L < 1e6, band_L * _BAND_GROWTH, np.inf), band_L)
    # The other windows of a cluster are decided. Adjust the candidates' probabilities so that their expected tokens are `due_L`.
    due_L = np.clip(due_L, 0.0, held_L)
    shrink_L = np.divide(due_L, mean_L, out=np.ones(num_leaves), where=(due_L < mean_L))
    grow_L = np.divide(held_L - due_L, held_L - mean_L, out=np.ones(num_leaves), where=(due_L > mean_L) & (held_L > mean_L))
    probability_C = np.where(
        due_L[leaf_C] <= mean_L[leaf_C], probability_C * shrink_L[leaf_C], 1.0 - (1.0 - probability_C) * grow_L[leaf_C]
    )
    taken_C = round_balanced(probability_C, tokens_C, key_C, leaf_C, tree, plan.seed)
    return Decision(band_G=band_L, extra_T=np.sort(key_C[taken_C]), max_time=1.0)


def _iter_arrivals(key_N: Keys, lambda_N: F64, max_time: float, seed: int) -> Iterator[tuple[I64, F64]]:
    """`multinomial`: yields rows and times of all first copies that arrive by `max_time`, then of all second copies, and so on."""
    row_M = np.flatnonzero(lambda_N > 0)
    time_M = np.zeros(len(row_M))
    copy = 0
    while len(row_M):
        u_M = keyed_uniform(key_N[row_M], seed=seed, purpose="draw.arrival", copy=copy)
        time_M = time_M - np.log(u_M) / lambda_N[row_M]
        row_M, time_M = row_M[time_M <= max_time], time_M[time_M <= max_time]
        yield row_M, time_M
        copy += 1


def _decide_arrivals(state: Candidates, plan: SamplingPlan, band_G: F64) -> Decision | F64:
    budget = plan.allocated_L.sum()
    order_C = np.lexsort((state.key_C, state.value_C))
    time_C = state.value_C[order_C]
    upto_M = int(state.certain_tokens_F.sum()) + np.concatenate([[0], np.cumsum(state.tokens_C[order_C])])
    cross = int(np.searchsorted(upto_M, budget))  # the fewest arrivals that fill the budget
    if budget < upto_M[0] or cross >= len(time_C):
        return band_G * _BAND_GROWTH
    taken = cross if cross == 0 or upto_M[cross] - budget <= budget - upto_M[cross - 1] else cross - 1
    # Halfway between two arrivals, so the last bit of a logarithm on another CPU changes nothing. Equal times stay together.
    before = time_C[taken - 1] if taken else max(0.0, 1.0 - float(band_G[0]))
    return Decision(band_G=band_G, extra_T=np.empty(0, dtype=np.uint64), max_time=float((before + time_C[taken]) / 2))
