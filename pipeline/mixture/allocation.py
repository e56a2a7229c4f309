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
from pipeline.mixture.sums import sums_by
from pipeline.tables import PLAN, cast

Overflow = Literal["spread", "leave"]

_MOST_LEVEL = 2048.0  # nats; a higher level adds no tokens
_MOST_LOG = 600.0  # largest log of epochs: e^600 does not overflow
_PRECISION = 1e-13  # nats
_SWEEPS = 100  # a few are enough for a `repeat_exponent` of 0.25 or more
_CLOSE = 1e-6  # tolerance, as a share of the tokens that a row wants


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The token budget and the limits on repeated text."""

    budget_tokens: int
    max_epochs: float
    overflow: Overflow
    repeat_exponent: float = 1.0  # used only with `overflow: spread`

    @classmethod
    def of(cls, config: Config) -> Self:
        """The limits that a config sets."""
        return cls(
            budget_tokens=config.sample.budget_tokens,
            max_epochs=config.weights.max_epochs,
            overflow=config.weights.overflow,
            repeat_exponent=config.repeat_exponent,
        )

    def part(self, asked_L: F64) -> F64:
        """(L,) allowed epochs as a share of the requested epochs `asked_L`; 0 where none are requested.

        Under `spread`, requests above one epoch are damped to `asked ** repeat_exponent`. Then all are capped at `max_epochs`.
        """
        as_asked = self.overflow == "leave" or self.repeat_exponent == 1.0
        damped_L = asked_L if as_asked else np.where(asked_L > 1, asked_L**self.repeat_exponent, asked_L)
        return _part(np.minimum(damped_L, self.max_epochs), asked_L)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The allocation: requested, allocated and missing tokens of each cluster."""

    tokens_L: Ints
    wanted_L: F64
    planned_RL: F64  # raw tokens, repeats included
    rewritten_L: F64  # tokens of rewrites
    deficit_L: F64  # requested beyond the cap and not covered by rewrites, even where `spread` moved it to other clusters
    budget_tokens: int

    @property
    def planned_L(self) -> F64:
        """(L,) allocated raw tokens, repeats included."""
        return np.asarray(self.planned_RL.sum(axis=0), np.float64)

    @property
    def epochs_L(self) -> F64:
        """(L,) allocated / available raw tokens; 0 for a cluster without text."""
        return np.asarray(self.planned_L / np.maximum(self.tokens_L, 1), np.float64)

    @property
    def clipped_mass(self) -> float:
        """Share of the budget that was requested beyond the cap and is not covered by rewrites."""
        return float(self.deficit_L.sum() / self.budget_tokens)

    @property
    def deficit_share(self) -> float:
        """Share of the budget that stays unfilled.

        For a `capped_plan` under `leave` this is `clipped_mass`. Under `spread` it is 0 unless every cluster with a claim is at the
        cap.
        """
        return max(0.0, float(1.0 - (self.planned_L.sum() + self.rewritten_L.sum()) / self.budget_tokens))

    def summed(self, group_L: Ints, num_groups: int) -> "Plan":
        """The allocation of groups, e.g. of clusters from that of their strata; `group_L` is the group of each row."""

        def total(x_L: NDArray[Any]) -> F64:
            return np.bincount(group_L, weights=x_L, minlength=num_groups).astype(np.float64)

        return Plan(
            tokens_L=sums_by(group_L, self.tokens_L, num_groups),
            wanted_L=total(self.wanted_L),
            planned_RL=np.stack([total(planned_L) for planned_L in self.planned_RL]),
            rewritten_L=total(self.rewritten_L),
            deficit_L=total(self.deficit_L),
            budget_tokens=self.budget_tokens,
        )

    def table(self) -> pa.Table:
        """The allocation as a PLAN table, one row per cluster."""
        return cast(
            pa.table(
                {
                    "leaf": np.arange(len(self.tokens_L)),
                    "tokens": self.tokens_L,
                    "wanted_tokens": self.wanted_L,
                    "planned_tokens": self.planned_L,
                    "epochs": self.epochs_L,
                    "rewritten_tokens": self.rewritten_L,
                    "deficit_tokens": self.deficit_L,
                }
            ),
            PLAN,
        )


def plan(claim_RL: F64, tokens_L: Ints, limits: Limits) -> Plan:
    """The allocation: `budget · claim` tokens of each cluster, at most `max_epochs` times the tokens that it holds.

    Args:
        claim_RL: the share of the new corpus that each row wants from each cluster (`estimators.claims`).

    Raises:
        ConfigError: under `spread`, the budget exceeds `max_epochs` times the tokens of all clusters with a claim.
    """
    held = int(tokens_L[claim_RL.any(axis=0)].sum())
    most = limits.max_epochs * held
    if limits.overflow == "spread" and limits.budget_tokens > most * (1 + 1e-12):
        raise ConfigError(
            f"sample.budget_tokens {limits.budget_tokens:,} is more than weights.max_epochs {limits.max_epochs:g} allows: the "
            f"clusters that the mixture uses hold {held:,} tokens, so at most {int(most):,} can be had; lower the budget, raise "
            "weights.max_epochs, set weights.overflow: leave, or add generalist text"
        )
    return capped_plan(claim_RL, tokens_L, limits)


def capped_plan(claim_RL: F64, tokens_L: Ints, limits: Limits, rewrites_L: F64 | None = None) -> Plan:
    """Like `plan`, but without the check: if `spread` cannot meet the budget, every cluster with a claim is at its cap.

    `rewrites_L` are the available tokens of rewrites in each cluster. They fill its deficit. Under `spread`, what remains of the
    deficit goes to other clusters.
    """
    wanted_RL = limits.budget_tokens * np.asarray(claim_RL, dtype=np.float64)
    wanted_L = wanted_RL.sum(axis=0)
    deficit_L = np.maximum(wanted_L - limits.max_epochs * np.asarray(tokens_L, np.float64), 0.0)
    # Rewrites fill the deficit only, so a cluster with a deficit stays at its cap and rewrites never replace its own text.
    rewritten_L = np.zeros(len(wanted_L)) if rewrites_L is None else np.minimum(deficit_L, rewrites_L)
    return Plan(
        tokens_L=tokens_L,
        wanted_L=wanted_L,
        planned_RL=_of_text(wanted_RL * _part(wanted_L - rewritten_L, wanted_L), tokens_L, limits),
        rewritten_L=rewritten_L,
        deficit_L=deficit_L - rewritten_L,
        budget_tokens=limits.budget_tokens,
    )


def shared_plan(
    claim_RL: F64, tokens_L: Ints, limits: Limits, rewrites_L: F64, *, real_to_synthetic: float, elsewhere: float = 0.0
) -> Plan:
    """An allocation in which rewrites are `1 / (1 + real_to_synthetic)` of the budget (WRAP, arXiv 2401.16380: 1 : 1 in tokens).

    The same share of every cluster's rewrites is used. Raw text fills what they leave of each cluster's request, so that the two
    together follow the claims. If there are too few rewrites, raw text makes up the difference under `spread`; under `leave` the
    difference stays unfilled. `elsewhere` are tokens of rewrites outside the given clusters.
    """
    wanted_RL = limits.budget_tokens * np.asarray(claim_RL, dtype=np.float64)
    wanted_L = wanted_RL.sum(axis=0)
    synthetic = limits.budget_tokens / (1.0 + real_to_synthetic)
    held = float(rewrites_L.sum()) + elsewhere
    used = min(1.0, synthetic / held) if held else 0.0
    rewritten_L = rewrites_L * used
    rest_L = np.maximum(wanted_L - rewritten_L, 0.0)
    raw = float(limits.budget_tokens - (held * used if limits.overflow == "spread" else synthetic))
    rest_L *= raw / max(rest_L.sum(), 1e-300)
    return Plan(
        tokens_L=tokens_L,
        wanted_L=wanted_L,
        planned_RL=_of_text(wanted_RL * _part(rest_L, wanted_L), tokens_L, limits),
        rewritten_L=rewritten_L,
        deficit_L=np.maximum(rest_L - limits.max_epochs * np.asarray(tokens_L, np.float64), 0.0),
        budget_tokens=limits.budget_tokens,
    )


def _part(of_L: F64, whole_L: F64) -> F64:
    return np.divide(of_L, whole_L, out=np.zeros_like(whole_L), where=whole_L > 0)


def _of_text(wanted_RL: F64, tokens_L: Ints, limits: Limits) -> F64:
    """(R, L) raw tokens within the limits, for a request of `wanted_RL` tokens."""
    held_L = np.asarray(tokens_L, np.float64)
    planned_RL = np.zeros_like(wanted_RL)
    used_L = (held_L > 0) & wanted_RL.any(axis=0)
    asked_RM = wanted_RL[:, used_L] / held_L[used_L]
    if limits.overflow == "spread":
        asked_RM = spread(asked_RM, held_L[used_L], wanted_RL.sum(axis=1), limits)
    planned_RL[:, used_L] = asked_RM * (limits.part(asked_RM.sum(axis=0)) * held_L[used_L])
    return planned_RL


def spread(asked_RM: F64, tokens_M: F64, wanted_R: F64, limits: Limits) -> F64:
    """(R, M) requested epochs, raised until each row gets the tokens that it wants within the limits.

    Where the limits take tokens from a row, all requests of the row are raised by one factor: `e^level_r · asked_r`. So each row
    keeps its share of the corpus. If a row cannot get its tokens because all clusters that it requests are at the cap, one more
    level, common to all rows, makes up the difference. The levels are solved one row at a time, in sweeps, until they agree.

    Args:
        asked_RM: requested epochs; every cluster has tokens and a request.
        wanted_R: tokens that each row wants in all, those of clusters without tokens included.
    """
    with np.errstate(divide="ignore"):
        log_RM = np.log(asked_RM)
    level_R = np.zeros(len(wanted_R))
    rows = np.flatnonzero(asked_RM.any(axis=1))

    def tokens_R(level_R: F64) -> F64:
        raised_RM = _raised(log_RM, level_R[:, None])
        return np.asarray(raised_RM @ (limits.part(raised_RM.sum(axis=0)) * tokens_M), np.float64)

    for _ in range(_SWEEPS):
        if (np.abs(tokens_R(level_R) - wanted_R) <= _CLOSE * wanted_R).all():
            break
        for row in rows:
            others_M = _raised(np.delete(log_RM, row, axis=0), np.delete(level_R, row)[:, None]).sum(axis=0)

            def own(level: float, log_M: F64 = log_RM[row], others_M: F64 = others_M) -> float:
                raised_M = _raised(log_M, level)
                return float(raised_M @ (limits.part(raised_M + others_M) * tokens_M))

            level_R[row] = _root(own, float(wanted_R[row]), level_R[row])
    # One level for all rows, for the tokens still missing: close to 0 unless a row cannot use its share.
    more = _root(lambda level: float(tokens_R(level_R + level).sum()), float(wanted_R.sum()), 0.0)
    return _raised(log_RM, level_R[:, None] + more)


def _raised(log_asked: F64, level: Any) -> F64:
    """Requested epochs at a level, at most e^600 to avoid overflow; the cap is far below that."""
    return np.asarray(np.exp(np.minimum(log_asked + level, _MOST_LOG)), np.float64)


def _root(function: Callable[[float], float], wanted: float, start: float) -> float:
    """Where a non-decreasing function reaches `wanted`, to rounding; the end of the searched range if it does not.

    The search begins at `start` and doubles its step.
    """
    low, high, step = start, start, 1.0
    while function(low) > wanted and low > -_MOST_LEVEL:
        low, step = low - step, 2 * step
    step = 1.0
    while function(high) < wanted and high < _MOST_LEVEL:
        high, step = high + step, 2 * step
    if low == high or function(high) < wanted:
        return high
    from scipy.optimize import brentq  # the import takes half a second; dry runs and sampling workers do not need it

    return float(brentq(lambda level: function(level) - wanted, low, high, xtol=_PRECISION))
