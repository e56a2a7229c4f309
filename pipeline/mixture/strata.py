"""From the scores of windows to what is asked of them: density ratios, and strata of windows that are drawn alike.

A scorer (`pipeline.scoring`) gives each window x a score for each specialist s. It becomes a ratio r_s(x) to the generalist's
density, whose mean over the generalist's tokens is 1:

- `odds`: r ∝ (w(leaf) · exp(score))^(sharpness/2): with 1 the geometric mean of CRISP's weight of the window's cluster and of its
  own odds, with 2 their product;
- `top`: r is one number for the windows with the highest scores, as many as fill the specialist's part of the budget, else 0.

What is asked for is the mixture q(x) = Σ share_s r_s(x) + natural share. Windows of one leaf whose q lies in the same eighth of a
nat are a stratum, and are drawn alike: so plan, cap and rewrites work on strata as they do on leaves.

Every sum here is one of integers (tokens, or tokens times a ratio in fixed point), so parts may be added in any order.

Shapes: N windows of a part, S specialists, L leaves, C strata (leaf by leaf, ascending), B bins.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrays import F32, F64, I64, Ints
from pipeline.mixture.sums import FIXED, fixed, sums_by
from pipeline.tables import STRATA, cast

_WIDTH = 1 / 8  # nats of a stratum: finer than any estimator is sure
BINS = 1 << 16  # of a histogram of scores
_HALF = BINS >> 1
_PER_NAT = 256  # bins of a nat, where odds are counted
_EXACT = 1 << 10  # of a window's mass: rounding it to a whole number changes it by a thousandth at most
_LEAST_WEIGHT = -20.0  # log of a cluster's weight where smoothing left it none


@dataclass(frozen=True, kw_only=True)
class Odds:
    """Ratios in proportion to a power of the cluster's weight times the window's odds."""

    log_weight_SL: F64
    sharpness: float  # 1: the square root
    log_mean_S: F64  # of that product over the generalist's tokens

    def log_ratio(self, leaf_N: Ints, score_NS: F32) -> F64:
        """(N, S) log of the ratio of each window."""
        return _per_bin(self.log_weight_SL, self.sharpness, leaf_N, score_NS) / _PER_NAT - self.log_mean_S

    @classmethod
    def fitted(cls, log_weight_SL: F64, sharpness: float, bins_SB: Ints) -> Self:
        """From the tokens in each bin (`odds_bins`)."""
        value_B = (np.arange(BINS) - _HALF) / _PER_NAT
        share_SB = bins_SB / np.maximum(bins_SB.sum(axis=1, keepdims=True), 1)
        most_S = np.array([value_B[np.flatnonzero(share_B)[-1]] if share_B.any() else 0.0 for share_B in share_SB])
        mean_S = (share_SB * np.exp(np.minimum(value_B - most_S[:, None], 0.0))).sum(axis=1)
        log_mean_S = np.log(np.maximum(mean_S, 1e-300)) + most_S
        return cls(log_weight_SL=log_weight_SL, sharpness=sharpness, log_mean_S=log_mean_S)


@dataclass(frozen=True, kw_only=True)
class Top:
    """One ratio for the windows whose scores reach a threshold, and 0 for the others."""

    least_S: Ints  # code of the lowest score that is taken (`codes`)
    log_ratio_S: F64  # log of generalist tokens / tokens taken

    @classmethod
    def fitted(cls, high_S: Ints, above_S: Ints, low_SB: Ints, wanted_S: F64, generalist_tokens: int) -> Self:
        """From the upper half of the code at which the budget is full, the tokens above it, and those in it by the lower half."""
        low_S, higher_S = last_bin(low_SB, wanted_S - above_S)
        taken_S = above_S + higher_S + low_SB[np.arange(len(low_S)), low_S]
        log_ratio_S = np.log(generalist_tokens) - np.log(np.maximum(taken_S, 1))
        return cls(least_S=(np.asarray(high_S) << 16) + low_S, log_ratio_S=log_ratio_S)

    def log_ratio(self, leaf_N: Ints, score_NS: F32) -> F64:
        """(N, S) log of the ratio of each window."""
        del leaf_N
        return np.where((codes(score_NS) >= self.least_S) & np.isfinite(score_NS), self.log_ratio_S, -np.inf)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is asked of a window, as a multiple of what the generalist gives it."""

    ratios: Odds | Top
    share_S: F64  # of each specialist in the corpus
    natural_share: float

    def to_bytes(self) -> bytes:
        """As a NumPy archive."""
        sink = io.BytesIO()
        np.savez(sink, share_S=self.share_S, natural_share=self.natural_share, **vars(self.ratios))
        return sink.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """What `to_bytes` wrote."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            found = dict(arrays)
        share_S, natural_share = found.pop("share_S"), float(found.pop("natural_share"))
        return cls(ratios=(Odds if "log_mean_S" in found else Top)(**found), share_S=share_S, natural_share=natural_share)

    def of(self, leaf_N: Ints, score_NS: F32) -> tuple[F64, F64]:
        """(N, S) r of each specialist, and (N,) q; 0 without a leaf."""
        r_NS = np.where(np.asarray(leaf_N)[:, None] >= 0, np.exp(self.ratios.log_ratio(leaf_N, score_NS)), 0.0)
        # Not r_NS @ share_S: how BLAS sums a row depends on how many there are, and a window must find its stratum again.
        q_N = np.full(len(r_NS), self.natural_share)
        for s, share in enumerate(self.share_S):
            q_N += share * r_NS[:, s]
        return r_NS, np.where(np.asarray(leaf_N) >= 0, q_N, 0.0)


def odds_bins(log_weight_SL: F64, sharpness: float, leaf_N: Ints, tokens_N: Ints, score_NS: F32) -> I64:
    """(S, B) tokens of a part by the log of its unnormalised odds, in bins of a 256th of a nat."""
    keep_N = np.asarray(leaf_N) >= 0
    bin_NS = _per_bin(log_weight_SL, sharpness, np.asarray(leaf_N)[keep_N], score_NS[keep_N]) + _HALF
    return _tokens_by(bin_NS, np.asarray(tokens_N)[keep_N])


def codes(score_NS: F32) -> NDArray[np.uint32]:
    """Whole numbers in the order of the scores: the bits of an IEEE float, so flipped that they ascend."""
    bits_NS = np.ascontiguousarray(score_NS + np.float32(0), dtype=np.float32).view(np.uint32)  # -0 is 0
    return np.where(bits_NS >> 31, ~bits_NS, bits_NS | np.uint32(1 << 31))


def code_bins(leaf_N: Ints, tokens_N: Ints, score_NS: F32, high_S: Ints | None) -> I64:
    """(S, B) tokens of a part by the upper half of their codes; or by the lower, of those whose upper half is `high_S`."""
    keep_N = np.asarray(leaf_N) >= 0
    code_NS, tokens_N = codes(score_NS[keep_N]), np.asarray(tokens_N)[keep_N]
    finite_NS = np.isfinite(score_NS[keep_N])
    if high_S is None:
        return _tokens_by((code_NS >> 16).astype(np.int64), tokens_N, finite_NS)
    return _tokens_by((code_NS & 0xFFFF).astype(np.int64), tokens_N, finite_NS & (code_NS >> 16 == high_S))


def last_bin(bins_SB: Ints, wanted_S: F64) -> tuple[Ints, Ints]:
    """(S,) the highest bin down to which there are `wanted_S` tokens, and the tokens above it.

    Where there are fewer, it is the lowest bin that holds any.
    """
    from_top_SB = np.cumsum(bins_SB[:, ::-1], axis=1)[:, ::-1]
    found_S, above_S = np.zeros(len(bins_SB), np.int64), np.zeros(len(bins_SB), np.int64)
    for s, (upto_B, wanted) in enumerate(zip(from_top_SB, wanted_S, strict=True)):
        enough = np.flatnonzero(upto_B >= wanted)
        occupied = np.flatnonzero(bins_SB[s])
        found_S[s] = enough[-1] if len(enough) else (occupied[0] if len(occupied) else BINS - 1)
        above_S[s] = upto_B[found_S[s] + 1] if found_S[s] + 1 < BINS else 0
    return found_S, above_S


@dataclass(frozen=True, kw_only=True)
class StrataCounts:
    """What the strata of some parts hold; a fold, as large as the strata that were seen, however many leaves there are."""

    key_C: I64  # leaf · 2^16 + stratum, ascending
    windows_C: I64
    tokens_C: I64
    mass_SC: I64  # Σ tokens · share · r of each specialist, in fixed point
    unshared_SC: I64  # Σ tokens · r of each specialist, in fixed point

    @classmethod
    def zero(cls, num_specialists: int) -> Self:
        """Nothing counted yet."""
        none, none_S = np.empty(0, np.int64), np.zeros((num_specialists, 0), np.int64)
        return cls(key_C=none, windows_C=none, tokens_C=none, mass_SC=none_S, unshared_SC=none_S)

    @classmethod
    def of_part(cls, target: Target, leaf_N: Ints, tokens_N: Ints, score_NS: F32) -> Self:
        """The counts of one part."""
        keep_N = np.asarray(leaf_N) >= 0
        leaf_M, tokens_M = np.asarray(leaf_N)[keep_N].astype(np.int64), np.asarray(tokens_N)[keep_N].astype(np.int64)
        r_MS, q_M = target.of(leaf_M, score_NS[keep_N])
        unshared_SM = fixed(tokens_M * r_MS.T)
        mass_SM = fixed(tokens_M * target.share_S[:, None] * r_MS.T)
        return cls._merged(_keys(leaf_M, q_M), np.ones_like(tokens_M), tokens_M, mass_SM, unshared_SM)

    def add(self, other: Self) -> Self:
        """Both together."""
        return self.combine([self, other])

    @classmethod
    def combine(cls, parts: Iterable[Self]) -> Self:
        """Everything in one or more parts, in any order and grouping."""
        columns = zip(*((part.key_C, part.windows_C, part.tokens_C, part.mass_SC, part.unshared_SC) for part in parts), strict=True)
        return cls._merged(*(np.concatenate(column, axis=-1) for column in columns))

    @classmethod
    def _merged(cls, key_M: Any, windows_M: Any, tokens_M: Any, mass_SM: Any, unshared_SM: Any) -> Self:
        key_C, row_M = np.unique(key_M, return_inverse=True)
        windows_C, tokens_C, *sum_C = (sums_by(row_M, x_M, len(key_C)) for x_M in (windows_M, tokens_M, *mass_SM, *unshared_SM))
        mass_C, unshared_C = sum_C[: len(mass_SM)], sum_C[len(mass_SM) :]
        return cls(key_C=key_C, windows_C=windows_C, tokens_C=tokens_C, mass_SC=np.stack(mass_C), unshared_SC=np.stack(unshared_C))

    def asked_SL(self, num_leaves: int) -> F64:
        """(S, L) what each specialist asks of each leaf."""
        mass_SL = np.stack([sums_by(self.key_C >> 16, unshared_C, num_leaves) for unshared_C in self.unshared_SC])
        return np.asarray(mass_SL / np.maximum(mass_SL.sum(axis=1, keepdims=True), 1), np.float64)

    def strata(self, target: Target) -> "Strata":
        """The strata, with what is asked of them."""
        asked_SC = self.mass_SC.astype(np.float64)
        if not target.natural_share:
            # What is next to nothing is lost in fixed point, and would be missing where a large budget needs it. The stratum says
            # how much it is, and all its leaf, or the shares, who asks.
            stratum_C = self.key_C & 0xFFFF
            q_C = np.where(stratum_C > 0, np.exp((stratum_C - _HALF + 0.5) * _WIDTH), 0.0)
            leaf_E, row_C = np.unique(self.key_C >> 16, return_inverse=True)
            mass_SE = np.stack([sums_by(row_C, unshared_C, len(leaf_E)) for unshared_C in self.unshared_SC])
            leaf_SC = (mass_SE[:, row_C] + 1) * target.share_S[:, None]
            lost_C = self.mass_SC.sum(axis=0) < _EXACT * self.windows_C
            asked_SC = np.where(lost_C, self.tokens_C * q_C * FIXED * leaf_SC / leaf_SC.sum(axis=0), asked_SC)
        total_S = np.maximum(asked_SC.sum(axis=1, keepdims=True), 1e-300)
        natural_C = target.natural_share * self.tokens_C / max(1, int(self.tokens_C.sum()))
        return Strata(
            key_C=self.key_C,
            windows_C=self.windows_C,
            tokens_C=self.tokens_C,
            claim_RC=np.concatenate([target.share_S[:, None] * asked_SC / total_S, natural_C[None]]),
        )


@dataclass(frozen=True, kw_only=True)
class Strata:
    """Windows of a leaf of which about as much is asked, as one."""

    key_C: I64
    windows_C: I64
    tokens_C: I64
    claim_RC: F64  # shares of the corpus that each specialist, and last natural text, asks of it (`estimators.claims`)

    @property
    def leaf_C(self) -> I64:
        return self.key_C >> 16

    def rows(self, leaf_N: Ints, q_N: F64) -> I64:
        """(N,) the stratum of each window; windows without a leaf are in the first."""
        key_N = _keys(np.maximum(leaf_N, 0).astype(np.int64), q_N)
        row_N = np.minimum(np.searchsorted(self.key_C, key_N), len(self.key_C) - 1)
        assert (self.key_C[row_N] == key_N)[np.asarray(leaf_N) >= 0].all(), "a window lies in no stratum"
        return row_N

    def table(self) -> pa.Table:
        """As a STRATA table."""
        columns = {"leaf": self.leaf_C, "stratum": (self.key_C & 0xFFFF) - _HALF, "windows": self.windows_C}
        claims = pa.array(self.claim_RC.T.tolist(), pa.list_(pa.float64()))
        return cast(pa.table({**columns, "tokens": self.tokens_C, "claims": claims}), STRATA)

    @classmethod
    def from_table(cls, table: pa.Table) -> Self:
        """The strata of a STRATA table."""
        key_C = (table["leaf"].to_numpy().astype(np.int64) << 16) + table["stratum"].to_numpy() + _HALF
        windows_C, tokens_C = (table[name].to_numpy() for name in ("windows", "tokens"))
        claim_RC = table["claims"].combine_chunks().flatten().to_numpy().reshape(len(table), -1).T
        return cls(key_C=key_C, windows_C=windows_C, tokens_C=tokens_C, claim_RC=claim_RC)


def log_weights(p_L_of: Iterable[F64], p_generalist_L: F64) -> F64:
    """(S, L) log of P(leaf | specialist) / P(leaf | generalist), with a floor."""
    rows: Sequence[F64] = [np.log(np.maximum(p_L, 1e-300)) - np.log(np.maximum(p_generalist_L, 1e-300)) for p_L in p_L_of]
    return np.maximum(np.stack(rows), _LEAST_WEIGHT)


def _per_bin(log_weight_SL: F64, sharpness: float, leaf_N: Ints, score_NS: F32) -> I64:
    """(N, S) log of the weight of the leaf times the odds, to a power, in whole 256ths of a nat: the same on every machine."""
    score_NS = np.nan_to_num(score_NS.astype(np.float64), neginf=-1e6)
    log_NS = (log_weight_SL.T[np.maximum(leaf_N, 0)] + score_NS) * (float(sharpness) / 2)
    return np.asarray(np.clip(np.rint(log_NS * _PER_NAT), -_HALF, _HALF - 1), np.int64)


def _keys(leaf_N: I64, q_N: F64) -> I64:
    with np.errstate(divide="ignore"):
        stratum_N = np.floor(np.log(q_N) / _WIDTH)
    return np.asarray((leaf_N << 16) + np.clip(stratum_N, -_HALF, _HALF - 1).astype(np.int64) + _HALF, np.int64)


def _tokens_by(bin_NS: I64, tokens_N: Ints, keep_NS: NDArray[np.bool_] | None = None) -> I64:
    found_SB = np.zeros((bin_NS.shape[1], BINS), np.int64)
    for s in range(len(found_SB)):
        keep_N = slice(None) if keep_NS is None else keep_NS[:, s]
        np.add.at(found_SB[s], bin_NS[keep_N, s], np.asarray(tokens_N, np.int64)[keep_N])
    return found_SB
