"""From shares to tokens: what is asked of each leaf, under limits on how often its text may be repeated.

Shapes: L leaves (any clusters with a share and a size will do), S specialists, R rows: the specialists, then natural text.
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

_MOST_LEVEL = 2048.0  # nats: beyond, more level fills no more
_MOST_LOG = 600.0
_PRECISION = 1e-13  # nats
_SWEEPS = 100  # at exponents of 0.25 and more, a few are enough
_CLOSE = 1e-6  # of what a row asks for


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much text there is to be, and how often the same."""

    budget_tokens: int
    max_epochs: float
    overflow: Overflow
    repeat_exponent: float = 1.0  # under `spread`

    @classmethod
    def of(cls, config: Config) -> Self:
        """Those of a config."""
        return cls(
            budget_tokens=config.sample.budget_tokens,
            max_epochs=config.weights.max_epochs,
            overflow=config.weights.overflow,
            repeat_exponent=config.repeat_exponent,
        )

    def part(self, asked_L: F64) -> F64:
        """The part that is drawn of text that is asked for so often (epochs)."""
        as_asked = self.overflow == "leave" or self.repeat_exponent == 1.0
        damped_L = asked_L if as_asked else np.where(asked_L > 1, asked_L**self.repeat_exponent, asked_L)
        return _part(np.minimum(damped_L, self.max_epochs), asked_L)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Tokens wanted, planned and missing of each leaf."""

    tokens_L: Ints
    wanted_L: F64
    planned_RL: F64  # of the text itself, repeats counted, for each specialist and as natural text
    rewritten_L: F64  # of rewrites
    deficit_L: F64  # wanted beyond the cap and not rewritten: what rewrites could fill, also where `spread` gave it to others
    budget_tokens: int

    @property
    def planned_L(self) -> F64:
        """(L,) tokens of the text itself, repeats counted."""
        return np.asarray(self.planned_RL.sum(axis=0), np.float64)

    @property
    def epochs_L(self) -> F64:
        """(L,) how often the text of each leaf is passed over; 0 where it has none."""
        return np.asarray(self.planned_L / np.maximum(self.tokens_L, 1), np.float64)

    @property
    def clipped_mass(self) -> float:
        """Share of the budget that was wanted beyond the cap."""
        return float(self.deficit_L.sum() / self.budget_tokens)

    @property
    def deficit_share(self) -> float:
        """Share of the budget that stays unfilled: under `leave` the clipped mass without rewrites, nothing under `spread`."""
        return max(0.0, float(1.0 - (self.planned_L.sum() + self.rewritten_L.sum()) / self.budget_tokens))

    def summed(self, group_L: Ints, num_groups: int) -> "Plan":
        """The plan of groups of leaves: the leaf of each stratum, say."""

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
        """The plan as a PLAN table, one row a leaf."""
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
    """What to draw of each leaf: `budget · claim` tokens, at most `max_epochs` times what it holds (METHODS, Cap).

    Args:
        claim_RL: shares of the corpus that each specialist, and last natural text, asks of the leaves (`estimators.claims`).

    Raises:
        ConfigError: under `spread`, the budget is more than every leaf of which anything is asked can give at `max_epochs`.
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
    """As `plan`, but where the budget cannot be met every leaf with mass is at its cap, and the rest is a deficit.

    `rewrites_L` are tokens of rewrites that lie in each leaf: they fill its deficit, and what is left of that is spread.
    """
    wanted_RL = limits.budget_tokens * np.asarray(claim_RL, dtype=np.float64)
    wanted_L = wanted_RL.sum(axis=0)
    deficit_L = np.maximum(wanted_L - limits.max_epochs * np.asarray(tokens_L, np.float64), 0.0)
    # A leaf with a deficit is still asked for all that it may give, so that rewrites never take the place of its own text.
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
    """A plan in which rewrites are one part of `1 + real_to_synthetic` (WRAP, arXiv 2401.16380: 1 : 1 in tokens), all used alike.

    The text itself makes up the mixture around them, so that the whole is as asked. With too few rewrites it takes their place too.
    `elsewhere` are tokens of rewrites that lie in none of the leaves.
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
    """(R, L) tokens of the text itself within the limits."""
    held_L = np.asarray(tokens_L, np.float64)
    planned_RL = np.zeros_like(wanted_RL)
    used_L = (held_L > 0) & wanted_RL.any(axis=0)
    asked_RM = wanted_RL[:, used_L] / held_L[used_L]
    if limits.overflow == "spread":
        asked_RM = spread(asked_RM, held_L[used_L], wanted_RL.sum(axis=1), limits)
    planned_RL[:, used_L] = asked_RM * (limits.part(asked_RM.sum(axis=0)) * held_L[used_L])
    return planned_RL


def spread(asked_RM: F64, tokens_M: F64, wanted_R: F64, limits: Limits) -> F64:
    """(R, M) epochs asked of each leaf, raised until each row has as many tokens as it wants, within the limits.

    Where limits take text from a row it gets more of what else it asks for: `level_r · asked_r`, one level a row, so that each
    keeps its share of the corpus. What a row cannot use, for all it asks for is at the cap, the others make up in proportion.
    The levels are found in turn until they agree. Every leaf has tokens, and something is asked of it.
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
    # All alike, by what is missing: next to nothing, but where a row cannot use its share.
    more = _root(lambda level: float(tokens_R(level_R + level).sum()), float(wanted_R.sum()), 0.0)
    return _raised(log_RM, level_R[:, None] + more)


def _raised(log_asked: F64, level: Any) -> F64:
    """Epochs asked at a level; beyond e^600 it is as good as e^600, and does not overflow."""
    return np.asarray(np.exp(np.minimum(log_asked + level, _MOST_LOG)), np.float64)


def _root(function: Callable[[float], float], wanted: float, start: float) -> float:
    """Where a function that never falls reaches `wanted`, to rounding; as far as it goes where it does not."""
    low, high, step = start, start, 1.0
    while function(low) > wanted and low > -_MOST_LEVEL:
        low, step = low - step, 2 * step
    step = 1.0
    while function(high) < wanted and high < _MOST_LEVEL:
        high, step = high + step, 2 * step
    if low == high or function(high) < wanted:
        return high
    from scipy.optimize import brentq  # half a second, which a run that only plans, and workers that draw, need not pay

    return float(brentq(lambda level: function(level) - wanted, low, high, xtol=_PRECISION))
