"""From scores to strata: density ratios of windows, and groups of windows of one cluster with nearly equal ratio.

A scorer (`pipeline.scoring`) gives each window x a score for each specialist s. The score is turned into a ratio r_s(x) to the
generalist's density, with mean 1 over the generalist's tokens:

- `odds`: r ∝ (w(cluster) · exp(score))^(sharpness/2). With sharpness 1 this is the geometric mean of CRISP's weight of the window's
  cluster and the window's own odds, with 2 their product;
- `top`: r is one constant for the windows with the highest scores, as many as fill the specialist's share of the budget, and 0 for
  the others.

The target is q(x) = Σ share_s r_s(x) + natural share, relative to the generalist. Windows of one cluster with q in the same eighth
of a nat form a stratum and are sampled alike, so allocation, cap and rewrites treat strata like clusters.

All sums are of integers (tokens, or tokens times a ratio in fixed point), so parts can be added in any order.

Shapes: N windows of a part, M windows with a leaf (or entries to merge), S specialists, L clusters (leaves of the tree), E leaves
with strata, C strata (by leaf, then by q, ascending), R rows of claims (specialists, then natural text), B bins.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrays import F32, F64, I64, Ints
from pipeline.mixture.sums import FIXED, sum_by_group, to_fixed_point
from pipeline.tables import STRATA, cast

_STRATUM_NATS = 1 / 8  # of a stratum, in nats of q: finer than the precision of any estimator
BINS = 1 << 16  # of a histogram of scores, and strata per cluster at most
_BIN_OFFSET = BINS >> 1
_PER_NAT = 256  # bins per nat in a histogram of odds
_MIN_EXACT_MASS = 1 << 10  # fixed-point units of mass per window, from which on rounding changes a mass by at most a thousandth
_MIN_LOG_WEIGHT = -20.0  # floor of the log of a cluster's weight, which may be 0 after smoothing


@dataclass(frozen=True, kw_only=True)
class Odds:
    """Ratios proportional to a power of (weight of the cluster × odds of the window)."""

    log_weight_SL: F64
    sharpness: float  # twice the power: 1 is the square root, 2 the product itself
    log_mean_S: F64  # log of the mean unnormalised ratio over the generalist's tokens

    def log_ratio(self, leaf_N: Ints, score_NS: F32) -> F64:
        """(N, S) log of the ratio of each window."""
        return _find_bins(self.log_weight_SL, self.sharpness, leaf_N, score_NS) / _PER_NAT - self.log_mean_S

    @classmethod
    def from_bins(cls, log_weight_SL: F64, sharpness: float, bins_SB: Ints) -> Self:
        """The ratios with mean 1, given the tokens in each bin (`bin_odds`)."""
        value_B = (np.arange(BINS) - _BIN_OFFSET) / _PER_NAT
        share_SB = bins_SB / np.maximum(bins_SB.sum(axis=1, keepdims=True), 1)
        most_S = np.array([value_B[np.flatnonzero(share_B)[-1]] if share_B.any() else 0.0 for share_B in share_SB])
        mean_S = (share_SB * np.exp(np.minimum(value_B - most_S[:, None], 0.0))).sum(axis=1)
        log_mean_S = np.log(np.maximum(mean_S, 1e-300)) + most_S
        return cls(log_weight_SL=log_weight_SL, sharpness=sharpness, log_mean_S=log_mean_S)


@dataclass(frozen=True, kw_only=True)
class Top:
    """One ratio for the windows with scores at or above a threshold, and 0 for the others."""

    threshold_S: Ints  # code of the threshold (`order_codes`)
    log_ratio_S: F64  # log of (generalist tokens / tokens at or above the threshold)

    @classmethod
    def from_bins(cls, high_S: Ints, above_S: Ints, low_SB: Ints, requested_S: F64, generalist_tokens: int) -> Self:
        """The threshold at which there are `requested_S` tokens, found in two steps of 16 bits.

        Args:
            high_S: upper 16 bits of the threshold's code.
            above_S: tokens of windows with higher upper bits.
            low_SB: tokens of windows with these upper bits, by the lower 16 bits.
        """
        low_S, higher_S = find_threshold_bin(low_SB, requested_S - above_S)
        taken_S = above_S + higher_S + low_SB[np.arange(len(low_S)), low_S]
        log_ratio_S = np.log(generalist_tokens) - np.log(np.maximum(taken_S, 1))
        return cls(threshold_S=(np.asarray(high_S) << 16) + low_S, log_ratio_S=log_ratio_S)

    def log_ratio(self, leaf_N: Ints, score_NS: F32) -> F64:
        """(N, S) log of the ratio of each window."""
        del leaf_N
        return np.where((order_codes(score_NS) >= self.threshold_S) & np.isfinite(score_NS), self.log_ratio_S, -np.inf)


@dataclass(frozen=True, kw_only=True)
class Target:
    """The target density of a window, relative to the generalist's."""

    ratios: Odds | Top
    share_S: F64  # share of each specialist in the new corpus
    natural_share: float

    def ratios_of(self, leaf_N: Ints, score_NS: F32) -> tuple[F64, F64]:
        """(N, S) r of each specialist, and (N,) q; both 0 for windows without a leaf."""
        r_NS = np.where(np.asarray(leaf_N)[:, None] >= 0, np.exp(self.ratios.log_ratio(leaf_N, score_NS)), 0.0)
        # Not r_NS @ share_S: BLAS rounds by the number of rows, and a window's stratum must not depend on the size of its part.
        q_N = np.full(len(r_NS), self.natural_share)
        for s, share in enumerate(self.share_S):
            q_N += share * r_NS[:, s]
        return r_NS, np.where(np.asarray(leaf_N) >= 0, q_N, 0.0)


def bin_odds(log_weight_SL: F64, sharpness: float, leaf_N: Ints, tokens_N: Ints, score_NS: F32) -> I64:
    """(S, B) tokens of a part, windows without a leaf skipped, by the log of the unnormalised ratio in bins of a 256th of a nat."""
    keep_N = np.asarray(leaf_N) >= 0
    bin_NS = _find_bins(log_weight_SL, sharpness, np.asarray(leaf_N)[keep_N], score_NS[keep_N]) + _BIN_OFFSET
    return _sum_tokens_by_bin(bin_NS, np.asarray(tokens_N)[keep_N])


def order_codes(score_NS: F32) -> NDArray[np.uint32]:
    """(N, S) integers in the order of the scores: the bits of the float32, flipped so that they ascend."""
    bits_NS = np.ascontiguousarray(score_NS + np.float32(0), dtype=np.float32).view(np.uint32)  # -0 becomes 0
    return np.where(bits_NS >> 31, ~bits_NS, bits_NS | np.uint32(1 << 31))


def bin_codes(leaf_N: Ints, tokens_N: Ints, score_NS: F32, high_S: Ints | None) -> I64:
    """(S, B) tokens of a part, by the upper 16 bits of the windows' codes.

    Given `high_S`: only windows with these upper bits, by the lower 16 bits. Windows without a leaf or a finite score are skipped.
    """
    keep_N = np.asarray(leaf_N) >= 0
    code_NS, tokens_N = order_codes(score_NS[keep_N]), np.asarray(tokens_N)[keep_N]
    finite_NS = np.isfinite(score_NS[keep_N])
    if high_S is None:
        return _sum_tokens_by_bin((code_NS >> 16).astype(np.int64), tokens_N, finite_NS)
    return _sum_tokens_by_bin((code_NS & 0xFFFF).astype(np.int64), tokens_N, finite_NS & (code_NS >> 16 == high_S))


def find_threshold_bin(bins_SB: Ints, requested_S: F64) -> tuple[Ints, Ints]:
    """(S,) the highest bin that holds, with all bins above it, at least `requested_S` tokens; and (S,) the tokens above it.

    If all bins together hold fewer, it is the lowest bin that is not empty.
    """
    from_top_SB = np.cumsum(bins_SB[:, ::-1], axis=1)[:, ::-1]
    found_S, above_S = np.zeros(len(bins_SB), np.int64), np.zeros(len(bins_SB), np.int64)
    for s, (upto_B, wanted) in enumerate(zip(from_top_SB, requested_S, strict=True)):
        enough = np.flatnonzero(upto_B >= wanted)
        occupied = np.flatnonzero(bins_SB[s])
        found_S[s] = enough[-1] if len(enough) else (occupied[0] if len(occupied) else BINS - 1)
        above_S[s] = upto_B[found_S[s] + 1] if found_S[s] + 1 < BINS else 0
    return found_S, above_S


@dataclass(frozen=True, kw_only=True)
class StrataCounts:
    """Counts of the strata of some parts; the state of a fold. Sparse: one entry per stratum that occurs."""

    key_C: I64  # leaf · 2^16 + stratum, ascending
    windows_C: I64
    tokens_C: I64
    mass_SC: I64  # Σ tokens · share · r of each specialist, in fixed point
    unshared_SC: I64  # Σ tokens · r of each specialist, in fixed point

    @classmethod
    def zero(cls, num_specialists: int) -> Self:
        """The initial state."""
        none, none_S = np.empty(0, np.int64), np.zeros((num_specialists, 0), np.int64)
        return cls(key_C=none, windows_C=none, tokens_C=none, mass_SC=none_S, unshared_SC=none_S)

    @classmethod
    def of_part(cls, target: Target, leaf_N: Ints, tokens_N: Ints, score_NS: F32) -> tuple[NDArray[np.int16], Self]:
        """(N,) the stratum within its cluster of each window of a part, any for a window without a leaf; and the part's counts."""
        r_NS, q_N = target.ratios_of(leaf_N, score_NS)
        stratum_N = _find_strata(q_N)
        keep_N = np.asarray(leaf_N) >= 0
        tokens_M, r_SM = np.asarray(tokens_N)[keep_N].astype(np.int64), r_NS[keep_N].T
        key_M = _make_keys(np.asarray(leaf_N)[keep_N], stratum_N[keep_N])
        mass_SM = to_fixed_point(tokens_M * target.share_S[:, None] * r_SM)
        return stratum_N, cls._merged(key_M, np.ones_like(tokens_M), tokens_M, mass_SM, to_fixed_point(tokens_M * r_SM))

    def add(self, other: Self) -> Self:
        """This and another state, merged."""
        return self.combine([self, other])

    @classmethod
    def combine(cls, parts: Iterable[Self]) -> Self:
        """One or more states merged, in any order and grouping."""
        columns = zip(*((part.key_C, part.windows_C, part.tokens_C, part.mass_SC, part.unshared_SC) for part in parts), strict=True)
        return cls._merged(*(np.concatenate(column, axis=-1) for column in columns))

    @classmethod
    def _merged(cls, key_M: Any, windows_M: Any, tokens_M: Any, mass_SM: Any, unshared_SM: Any) -> Self:
        key_C, row_M = np.unique(key_M, return_inverse=True)
        windows_C, tokens_C, *sum_C = (
            sum_by_group(row_M, x_M, len(key_C)) for x_M in (windows_M, tokens_M, *mass_SM, *unshared_SM)
        )
        mass_C, unshared_C = sum_C[: len(mass_SM)], sum_C[len(mass_SM) :]
        return cls(key_C=key_C, windows_C=windows_C, tokens_C=tokens_C, mass_SC=np.stack(mass_C), unshared_SC=np.stack(unshared_C))

    def mixture_SL(self, num_leaves: int) -> F64:
        """(S, L) the share of each specialist's mixture in each cluster; rows sum to 1."""
        mass_SL = np.stack([sum_by_group(self.key_C >> 16, unshared_C, num_leaves) for unshared_C in self.unshared_SC])
        return np.asarray(mass_SL / np.maximum(mass_SL.sum(axis=1, keepdims=True), 1), np.float64)

    def strata(self, target: Target) -> "Strata":
        """The strata, with the claims on them."""
        claimed_SC = self.mass_SC.astype(np.float64)
        if not target.natural_share:
            # A very small mass is lost in fixed point, but a large budget may need it. So take the mass from the stratum's q, and
            # divide it among specialists as in the whole leaf, or by their shares if the leaf's masses are lost too.
            stratum_C = self.key_C & 0xFFFF
            q_C = np.where(stratum_C > 0, np.exp((stratum_C - _BIN_OFFSET + 0.5) * _STRATUM_NATS), 0.0)
            leaf_E, row_C = np.unique(self.key_C >> 16, return_inverse=True)
            mass_SE = np.stack([sum_by_group(row_C, unshared_C, len(leaf_E)) for unshared_C in self.unshared_SC])
            leaf_SC = (mass_SE[:, row_C] + 1) * target.share_S[:, None]
            lost_C = self.mass_SC.sum(axis=0) < _MIN_EXACT_MASS * self.windows_C
            claimed_SC = np.where(lost_C, self.tokens_C * q_C * FIXED * leaf_SC / leaf_SC.sum(axis=0), claimed_SC)
        total_S = np.maximum(claimed_SC.sum(axis=1, keepdims=True), 1e-300)
        natural_C = target.natural_share * self.tokens_C / max(1, int(self.tokens_C.sum()))
        return Strata(
            key_C=self.key_C,
            windows_C=self.windows_C,
            tokens_C=self.tokens_C,
            claim_RC=np.concatenate([target.share_S[:, None] * claimed_SC / total_S, natural_C[None]]),
        )


@dataclass(frozen=True, kw_only=True)
class Strata:
    """All strata of the generalist corpus, with the claims on them."""

    key_C: I64  # leaf · 2^16 + stratum, ascending
    windows_C: I64
    tokens_C: I64
    claim_RC: F64  # share of the new corpus that each row wants from each stratum (`estimators.compute_claims`)

    @property
    def leaf_C(self) -> I64:
        return self.key_C >> 16

    def index_of(self, leaf_N: Ints, stratum_N: Ints) -> I64:
        """(N,) the index of each window's stratum, given its leaf and its stratum there; any index for windows without a leaf."""
        key_N = _make_keys(np.maximum(leaf_N, 0), stratum_N)
        row_N = np.minimum(np.searchsorted(self.key_C, key_N), len(self.key_C) - 1)
        assert (self.key_C[row_N] == key_N)[np.asarray(leaf_N) >= 0].all(), "a window's stratum is missing from strata.parquet"
        return row_N

    def to_table(self) -> pa.Table:
        """The strata as a STRATA table, one row per stratum."""
        columns = {"leaf": self.leaf_C, "stratum": (self.key_C & 0xFFFF) - _BIN_OFFSET, "windows": self.windows_C}
        claims = pa.array(self.claim_RC.T.tolist(), pa.list_(pa.float64()))
        return cast(pa.table({**columns, "tokens": self.tokens_C, "claims": claims}), STRATA)

    @classmethod
    def from_table(cls, table: pa.Table) -> Self:
        """The strata of a STRATA table."""
        key_C = (table["leaf"].to_numpy().astype(np.int64) << 16) + table["stratum"].to_numpy() + _BIN_OFFSET
        windows_C, tokens_C = (table[name].to_numpy() for name in ("windows", "tokens"))
        claim_RC = table["claims"].combine_chunks().flatten().to_numpy().reshape(len(table), -1).T
        return cls(key_C=key_C, windows_C=windows_C, tokens_C=tokens_C, claim_RC=claim_RC)


def log_weights(mixtures: Iterable[F64], p_generalist_L: F64) -> F64:
    """(S, L) log of the weight P(cluster | specialist) / P(cluster | generalist), at least -20."""
    rows: Sequence[F64] = [np.log(np.maximum(p_L, 1e-300)) - np.log(np.maximum(p_generalist_L, 1e-300)) for p_L in mixtures]
    return np.maximum(np.stack(rows), _MIN_LOG_WEIGHT)


def _find_bins(log_weight_SL: F64, sharpness: float, leaf_N: Ints, score_NS: F32) -> I64:
    """(N, S) log of the unnormalised ratio, rounded to a 256th of a nat so that it is the same on every machine."""
    score_NS = np.nan_to_num(score_NS.astype(np.float64), neginf=-1e6)
    log_NS = (log_weight_SL.T[np.maximum(leaf_N, 0)] + score_NS) * (float(sharpness) / 2)
    return np.asarray(np.clip(np.rint(log_NS * _PER_NAT), -_BIN_OFFSET, _BIN_OFFSET - 1), np.int64)


def _find_strata(q_N: F64) -> NDArray[np.int16]:
    """(N,) the eighth of a nat that log q lies in; the lowest stratum for q = 0."""
    with np.errstate(divide="ignore"):
        stratum_N = np.floor(np.log(q_N) / _STRATUM_NATS)
    return np.clip(stratum_N, -_BIN_OFFSET, _BIN_OFFSET - 1).astype(np.int16)


def _make_keys(leaf_N: Ints, stratum_N: Ints) -> I64:
    return np.asarray((leaf_N.astype(np.int64) << 16) + stratum_N.astype(np.int64) + _BIN_OFFSET, np.int64)


def _sum_tokens_by_bin(bin_NS: I64, tokens_N: Ints, keep_NS: NDArray[np.bool_] | None = None) -> I64:
    found_SB = np.zeros((bin_NS.shape[1], BINS), np.int64)
    for s in range(len(found_SB)):
        keep_N = slice(None) if keep_NS is None else keep_NS[:, s]
        np.add.at(found_SB[s], bin_NS[keep_N, s], np.asarray(tokens_N, np.int64)[keep_N])
    return found_SB
