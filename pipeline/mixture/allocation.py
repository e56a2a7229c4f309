"""The allocation: tokens to take from each cluster, given its share, the budget and a limit on repeats.

Shapes: L clusters (or strata, or any other groups with a share and a size), M the clusters with tokens and a claim, R rows: the
specialists, then natural text.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrays import F64, Ints
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.mixture.sums import sum_by_group
from pipeline.tables import ALLOCATION, cast

Overflow = Literal["spread", "leave"]

_MAX_LEVEL = 2048.0  # nats; a higher level adds no tokens
_MAX_LOG_EPOCHS = 600.0  # largest log of epochs: e^600 does not overflow
_PRECISION = 1e-13  # nats
_MAX_SWEEPS = 100  # a few are enough for a `repeat_exponent` of 0.25 or more
_TOLERANCE = 1e-6  # tolerance, as a share of the tokens that a row wants


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The token budget and the limits on repeated text."""

    budget_tokens: int
    max_epochs: float
    overflow: Overflow
    repeat_exponent: float = 1.0  # used only with `overflow: spread`

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """The limits that a config sets."""
        return cls(
            budget_tokens=config.sample.budget_tokens,
            max_epochs=config.weights.max_epochs,
            overflow=config.weights.overflow,
            repeat_exponent=config.repeat_exponent,
        )

    def allowed_share(self, epochs_L: F64) -> F64:
        """(L,) allowed epochs as a share of the requested epochs `epochs_L`; 0 where none are requested.

        Under `spread`, requests above one epoch are damped to `epochs ** repeat_exponent`. Then all are capped at `max_epochs`.
        """
        undamped = self.overflow == "leave" or self.repeat_exponent == 1.0
        damped_L = epochs_L if undamped else np.where(epochs_L > 1, epochs_L**self.repeat_exponent, epochs_L)
        return _safe_ratio(np.minimum(damped_L, self.max_epochs), epochs_L)


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """The allocation: requested, allocated and missing tokens of each cluster."""

    tokens_L: Ints
    requested_L: F64
    allocated_RL: F64  # raw tokens, repeats included
    rewritten_L: F64  # tokens of rewrites
    deficit_L: F64  # requested beyond the cap and not covered by rewrites, even where `spread` moved it to other clusters
    budget_tokens: int

    @property
    def allocated_L(self) -> F64:
        """(L,) allocated raw tokens, repeats included."""
        return np.asarray(self.allocated_RL.sum(axis=0), np.float64)

    @property
    def epochs_L(self) -> F64:
        """(L,) allocated / available raw tokens; 0 for a cluster without text."""
        return np.asarray(self.allocated_L / np.maximum(self.tokens_L, 1), np.float64)

    @property
    def clipped_mass(self) -> float:
        """Share of the budget that was requested beyond the cap and is not covered by rewrites."""
        return float(self.deficit_L.sum() / self.budget_tokens)

    @property
    def deficit_share(self) -> float:
        """Share of the budget that stays unfilled.

        For `allocate_capped` under `leave` this is `clipped_mass`. Under `spread` it is 0 unless every cluster with a claim is
        at the cap.
        """
        return max(0.0, float(1.0 - (self.allocated_L.sum() + self.rewritten_L.sum()) / self.budget_tokens))

    def sum_groups(self, group_L: Ints, num_groups: int) -> "Allocation":
        """The allocation of groups, e.g. of clusters from that of their strata; `group_L` is the group of each row."""

        def total(x_L: NDArray[Any]) -> F64:
            return np.bincount(group_L, weights=x_L, minlength=num_groups).astype(np.float64)

        return Allocation(
            tokens_L=sum_by_group(group_L, self.tokens_L, num_groups),
            requested_L=total(self.requested_L),
            allocated_RL=np.stack([total(allocated_L) for allocated_L in self.allocated_RL]),
            rewritten_L=total(self.rewritten_L),
            deficit_L=total(self.deficit_L),
            budget_tokens=self.budget_tokens,
        )

    def to_table(self) -> pa.Table:
        """The allocation as an ALLOCATION table, one row per cluster."""
        return cast(
            pa.table(
                {
                    "leaf": np.arange(len(self.tokens_L)),
                    "tokens": self.tokens_L,
                    "requested_tokens": self.requested_L,
                    "allocated_tokens": self.allocated_L,
                    "epochs": self.epochs_L,
                    "rewritten_tokens": self.rewritten_L,
                    "deficit_tokens": self.deficit_L,
                }
            ),
            ALLOCATION,
        )


def allocate(claim_RL: F64, tokens_L: Ints, limits: Limits) -> Allocation:
    """The allocation: `budget · claim` tokens of each cluster, at most `max_epochs` times the tokens that it holds.

    Args:
        claim_RL: the share of the new corpus that each row wants from each cluster (`estimators.compute_claims`).

    Raises:
        ConfigError: under `spread`, the budget exceeds `max_epochs` times the tokens of all clusters with a claim.
    """
    held = int(tokens_L[claim_RL.any(axis=0)].sum())
    most = limits.max_epochs * held
    if limits.overflow == "spread" and limits.budget_tokens > most * (1 + 1e-12):
        raise ConfigError(
            f"weights.max_epochs is {limits.max_epochs:g} and the clusters of the mixture have {held:,} tokens, so at most "
            f"{int(most):,} tokens are available; sample.budget_tokens is {limits.budget_tokens:,}. Lower the budget, raise "
            "weights.max_epochs, set weights.overflow: leave, or add generalist text."
        )
    return allocate_capped(claim_RL, tokens_L, limits)


def allocate_capped(claim_RL: F64, tokens_L: Ints, limits: Limits, rewrites_L: F64 | None = None) -> Allocation:
    """Like `allocate`, but without the check: if `spread` cannot meet the budget, every cluster with a claim is at its cap.

    `rewrites_L` are the available tokens of rewrites in each cluster. They fill its deficit. Under `spread`, what remains of the
    deficit goes to other clusters.
    """
    requested_RL = limits.budget_tokens * np.asarray(claim_RL, dtype=np.float64)
    requested_L = requested_RL.sum(axis=0)
    deficit_L = np.maximum(requested_L - limits.max_epochs * np.asarray(tokens_L, np.float64), 0.0)
    # Rewrites fill the deficit only, so a cluster with a deficit stays at its cap and rewrites never replace its own text.
    rewritten_L = np.zeros(len(requested_L)) if rewrites_L is None else np.minimum(deficit_L, rewrites_L)
    return Allocation(
        tokens_L=tokens_L,
        requested_L=requested_L,
        allocated_RL=_allocate_raw(requested_RL * _safe_ratio(requested_L - rewritten_L, requested_L), tokens_L, limits),
        rewritten_L=rewritten_L,
        deficit_L=deficit_L - rewritten_L,
        budget_tokens=limits.budget_tokens,
    )


def allocate_with_rewrite_share(
    claim_RL: F64, tokens_L: Ints, limits: Limits, rewrites_L: F64, *, real_to_synthetic: float, elsewhere: float = 0.0
) -> Allocation:
    """An allocation in which rewrites are `1 / (1 + real_to_synthetic)` of the budget (WRAP, arXiv 2401.16380: 1 : 1 in tokens).

    The same share of every cluster's rewrites is used. Raw text fills what they leave of each cluster's request, so that the two
    together follow the claims. If there are too few rewrites, raw text makes up the difference under `spread`; under `leave` the
    difference stays unfilled. `elsewhere` are tokens of rewrites outside the given clusters.
    """
    requested_RL = limits.budget_tokens * np.asarray(claim_RL, dtype=np.float64)
    requested_L = requested_RL.sum(axis=0)
    synthetic = limits.budget_tokens / (1.0 + real_to_synthetic)
    held = float(rewrites_L.sum()) + elsewhere
    used = min(1.0, synthetic / held) if held else 0.0
    rewritten_L = rewrites_L * used
    rest_L = np.maximum(requested_L - rewritten_L, 0.0)
    raw = float(limits.budget_tokens - (held * used if limits.overflow == "spread" else synthetic))
    rest_L *= raw / max(rest_L.sum(), 1e-300)
    return Allocation(
        tokens_L=tokens_L,
        requested_L=requested_L,
        allocated_RL=_allocate_raw(requested_RL * _safe_ratio(rest_L, requested_L), tokens_L, limits),
        rewritten_L=rewritten_L,
        deficit_L=np.maximum(rest_L - limits.max_epochs * np.asarray(tokens_L, np.float64), 0.0),
        budget_tokens=limits.budget_tokens,
    )


def _safe_ratio(of_L: F64, whole_L: F64) -> F64:
    return np.divide(of_L, whole_L, out=np.zeros_like(whole_L), where=whole_L > 0)


def _allocate_raw(requested_RL: F64, tokens_L: Ints, limits: Limits) -> F64:
    """(R, L) raw tokens within the limits, for a request of `requested_RL` tokens."""
    held_L = np.asarray(tokens_L, np.float64)
    allocated_RL = np.zeros_like(requested_RL)
    used_L = (held_L > 0) & requested_RL.any(axis=0)
    epochs_RM = requested_RL[:, used_L] / held_L[used_L]
    if limits.overflow == "spread":
        epochs_RM = raise_to_budget(epochs_RM, held_L[used_L], requested_RL.sum(axis=1), limits)
    allocated_RL[:, used_L] = epochs_RM * (limits.allowed_share(epochs_RM.sum(axis=0)) * held_L[used_L])
    return allocated_RL


def raise_to_budget(epochs_RM: F64, tokens_M: F64, requested_R: F64, limits: Limits) -> F64:
    """(R, M) requested epochs, raised until each row gets the tokens that it wants within the limits.

    Where the limits take tokens from a row, all requests of the row are raised by one factor: `e^level_r · epochs_r`. So each row
    keeps its share of the corpus. If a row cannot get its tokens because all clusters that it requests are at the cap, one more
    level, common to all rows, makes up the difference. The levels are solved one row at a time, in sweeps, until they agree.

    Args:
        epochs_RM: requested epochs; every cluster has tokens and a request.
        requested_R: tokens that each row wants in all, those of clusters without tokens included.
    """
    with np.errstate(divide="ignore"):
        log_RM = np.log(epochs_RM)
    level_R = np.zeros(len(requested_R))
    rows = np.flatnonzero(epochs_RM.any(axis=1))

    def tokens_R(level_R: F64) -> F64:
        raised_RM = _epochs_at_level(log_RM, level_R[:, None])
        return np.asarray(raised_RM @ (limits.allowed_share(raised_RM.sum(axis=0)) * tokens_M), np.float64)

    for _ in range(_MAX_SWEEPS):
        if (np.abs(tokens_R(level_R) - requested_R) <= _TOLERANCE * requested_R).all():
            break
        for row in rows:
            others_M = _epochs_at_level(np.delete(log_RM, row, axis=0), np.delete(level_R, row)[:, None]).sum(axis=0)

            def own(level: float, log_M: F64 = log_RM[row], others_M: F64 = others_M) -> float:
                raised_M = _epochs_at_level(log_M, level)
                return float(raised_M @ (limits.allowed_share(raised_M + others_M) * tokens_M))

            level_R[row] = _solve_monotone(own, float(requested_R[row]), level_R[row])
    # One level for all rows, for the tokens still missing: close to 0 unless a row cannot use its share.
    more = _solve_monotone(lambda level: float(tokens_R(level_R + level).sum()), float(requested_R.sum()), 0.0)
    return _epochs_at_level(log_RM, level_R[:, None] + more)


def _epochs_at_level(log_epochs: F64, level: Any) -> F64:
    """Requested epochs at a level, at most e^600 to avoid overflow; the cap is far below that."""
    return np.asarray(np.exp(np.minimum(log_epochs + level, _MAX_LOG_EPOCHS)), np.float64)


def _solve_monotone(function: Callable[[float], float], wanted: float, start: float) -> float:
    """Where a non-decreasing function reaches `wanted`, to rounding; the end of the searched range if it does not.

    The search begins at `start` and doubles its step.
    """
    low, high, step = start, start, 1.0
    while function(low) > wanted and low > -_MAX_LEVEL:
        low, step = low - step, 2 * step
    step = 1.0
    while function(high) < wanted and high < _MAX_LEVEL:
        high, step = high + step, 2 * step
    if low == high or function(high) < wanted:
        return high
    from scipy.optimize import brentq  # the import takes half a second; dry runs and sampling workers do not need it

    return float(brentq(lambda level: function(level) - wanted, low, high, xtol=_PRECISION))
