"""From shares to tokens: what is asked of each leaf, under a cap on how often its text may be repeated.

Shapes: L leaves (any clusters with a share and a size will do).
"""

from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import Weights
from pipeline.errors import ConfigError
from pipeline.mixture.shape import Floats, Ints
from pipeline.tables import PLAN, cast

Overflow = Literal["spread", "leave"]

_MOST_LEVEL = 2048.0  # nats: beyond, more level fills no more
_HALVINGS = 64


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much text there is to be, and how often the same."""

    budget_tokens: int
    max_epochs: float
    overflow: Overflow
    repeat_exponent: float = 1.0  # under `spread`

    @classmethod
    def of(cls, weights: Weights, budget_tokens: int) -> Self:
        """Those of a config."""
        return cls(
            budget_tokens=budget_tokens,
            max_epochs=weights.max_epochs,
            overflow=weights.overflow,
            repeat_exponent=weights.repeat_exponent,
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Tokens wanted, planned and missing of each leaf."""

    tokens_L: Ints
    wanted_L: Floats
    planned_L: Floats  # of the text itself, repeats counted
    rewritten_L: Floats  # of rewrites
    deficit_L: Floats  # wanted beyond the cap and not rewritten: what rewrites could fill, also where `spread` gave it to others
    budget_tokens: int

    @property
    def epochs_L(self) -> Floats:
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

        def total(x_L: NDArray[Any]) -> Floats:
            return np.bincount(group_L, weights=x_L, minlength=num_groups).astype(np.float64)

        tokens_G = np.zeros(num_groups, np.int64)
        np.add.at(tokens_G, group_L, self.tokens_L)
        return Plan(
            tokens_L=tokens_G,
            wanted_L=total(self.wanted_L),
            planned_L=total(self.planned_L),
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


def plan(p_target_L: Floats, tokens_L: Ints, limits: Limits) -> Plan:
    """What to draw of each leaf: `budget · p` tokens, at most `max_epochs` times what the leaf holds (METHODS, Cap and deficit).

    Raises:
        ConfigError: under `spread`, the budget is more than every leaf with mass can give at `max_epochs`.
    """
    most = float(limits.max_epochs * tokens_L[p_target_L > 0].sum())
    if limits.overflow == "spread" and limits.budget_tokens > most * (1 + 1e-12):
        raise ConfigError(
            f"sample.budget_tokens {limits.budget_tokens:,} is more than weights.max_epochs {limits.max_epochs:g} allows: the "
            f"clusters that the mixture uses hold {int(tokens_L[p_target_L > 0].sum()):,} tokens, so at most {int(most):,} can be "
            "had; lower the budget, raise weights.max_epochs, set weights.overflow: leave, or add generalist text"
        )
    return capped_plan(p_target_L, tokens_L, limits)


def capped_plan(p_target_L: Floats, tokens_L: Ints, limits: Limits, rewrites_L: Floats | None = None) -> Plan:
    """As `plan`, but where the budget cannot be met every leaf with mass is at its cap, and the rest is a deficit.

    `rewrites_L` are tokens of rewrites that lie in each leaf: they fill its deficit, and what is left of that is spread.
    """
    wanted_L = limits.budget_tokens * np.asarray(p_target_L, dtype=np.float64)
    cap_L = limits.max_epochs * np.asarray(tokens_L, dtype=np.float64)
    deficit_L = np.maximum(wanted_L - cap_L, 0.0)
    # A leaf with a deficit is full however much is spread, so that rewrites never take the place of its own text.
    rewritten_L = np.zeros(len(wanted_L)) if rewrites_L is None else np.minimum(deficit_L, rewrites_L)
    return Plan(
        tokens_L=tokens_L,
        wanted_L=wanted_L,
        planned_L=_of_text(wanted_L, tokens_L, float(wanted_L.sum() - rewritten_L.sum()), limits),
        rewritten_L=rewritten_L,
        deficit_L=deficit_L - rewritten_L,
        budget_tokens=limits.budget_tokens,
    )


def shared_plan(
    p_target_L: Floats, tokens_L: Ints, limits: Limits, rewrites_L: Floats, *, real_to_synthetic: float, elsewhere: float = 0.0
) -> Plan:
    """A plan in which rewrites are one part of `1 + real_to_synthetic` (WRAP, arXiv 2401.16380: 1 : 1 in tokens), all used alike.

    The text itself makes up the mixture around them, so that the whole is as asked. With too few rewrites it takes their place too.
    `elsewhere` are tokens of rewrites that lie in none of the leaves.
    """
    wanted_L = limits.budget_tokens * np.asarray(p_target_L, dtype=np.float64)
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
        planned_L=_of_text(rest_L, tokens_L, raw, limits),
        rewritten_L=rewritten_L,
        deficit_L=np.maximum(rest_L - limits.max_epochs * np.asarray(tokens_L, np.float64), 0.0),
        budget_tokens=limits.budget_tokens,
    )


def _of_text(wanted_L: Floats, tokens_L: Ints, total: float, limits: Limits) -> Floats:
    """(L,) tokens of the text itself within the limits: under `spread` as many as make `total`, where there are."""
    held_L = np.asarray(tokens_L, np.float64)
    if limits.overflow == "leave":
        return np.minimum(wanted_L, limits.max_epochs * held_L)
    if limits.repeat_exponent == 1.0:
        return water_fill(wanted_L, limits.max_epochs * held_L, total)
    return damped_fill(wanted_L, held_L, total, limits.max_epochs, limits.repeat_exponent)


def water_fill(wanted_L: Floats, cap_L: Floats, total: float) -> Floats:
    """(L,) `min(level · wanted, cap)`, at the level of at least 1 where the sum is `total`; all caps where no level is enough.

    It is where handing clipped mass to unclipped leaves in proportion, again and again, ends; found exactly, by sorting the
    leaves by the level at which each fills up.
    """
    asked_L = wanted_L > 0
    wanted_M, cap_M = wanted_L[asked_L], cap_L[asked_L]
    with np.errstate(over="ignore"):  # next to nothing wanted of a leaf with text: it never fills up
        order_M = np.argsort(cap_M / wanted_M, kind="stable")
        wanted_M, cap_M = wanted_M[order_M], cap_M[order_M]
        filled_M = np.concatenate([[0.0], np.cumsum(cap_M)[:-1]])  # by the leaves that fill up before this one
        unfilled_M = np.cumsum(wanted_M[::-1])[::-1]  # wanted of this leaf and those that fill up later
        level_M = (total - filled_M) / unfilled_M  # if exactly the leaves before this one are full
        full_at_M = cap_M / wanted_M
    fits_M = np.flatnonzero(level_M <= full_at_M)
    planned_L = np.zeros(len(wanted_L))
    planned_L[asked_L] = cap_L[asked_L]
    if len(fits_M):
        planned_L[asked_L] = np.minimum(max(1.0, level_M[fits_M[0]]) * wanted_L[asked_L], cap_L[asked_L])
    return planned_L


def damped_fill(wanted_L: Floats, tokens_L: Floats, total: float, max_epochs: float, exponent: float) -> Floats:
    """(L,) tokens of each leaf where repeats are damped: epochs e = level · wanted / tokens to 1, e^exponent above, to the cap.

    The level is that at which the sum is `total`; all caps where no level is enough. A second copy of a text teaches
    less than a new text that is about as good (docs/decisions/0011).
    """
    asked_L = (wanted_L > 0) & (tokens_L > 0)
    tokens_M, log_M = tokens_L[asked_L], np.log(wanted_L[asked_L]) - np.log(tokens_L[asked_L])
    most = float(np.log(max_epochs))

    def filled(log_level: float) -> Floats:
        log_epochs_M = log_M + log_level
        damped_M = np.where(log_epochs_M > 0, exponent * log_epochs_M, log_epochs_M)
        return np.asarray(tokens_M * np.exp(np.minimum(damped_M, most)), np.float64)

    planned_L = np.zeros(len(wanted_L))
    if not len(tokens_M):
        return planned_L
    low, high = 0.0, 1.0
    while filled(high).sum() < total and high < _MOST_LEVEL:
        low, high = high, 2 * high
    while filled(low).sum() > total and low > -_MOST_LEVEL:  # a cap below 1 epoch apart, level 0 gives no more than is wanted
        low = low - 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if filled(middle).sum() < total else (low, middle)
    planned_L[asked_L] = filled(high)
    return planned_L
