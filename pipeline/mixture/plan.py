"""From shares to tokens: what is asked of each leaf, under a cap on how often its text may be repeated.

Shapes: L leaves (any clusters with a share and a size will do).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.mixture.shape import Floats, Ints
from pipeline.tables import PLAN, cast

Overflow = Literal["spread", "leave"]


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


def plan(p_target_L: Floats, tokens_L: Ints, *, budget_tokens: int, max_epochs: float, overflow: Overflow) -> Plan:
    """What to draw of each leaf: `budget · p` tokens, at most `max_epochs` times what the leaf holds (METHODS, Cap and deficit).

    Raises:
        ConfigError: under `spread`, the budget is more than every leaf with mass can give at `max_epochs`.
    """
    made = capped_plan(p_target_L, tokens_L, budget_tokens=budget_tokens, max_epochs=max_epochs, overflow=overflow)
    most = float(max_epochs * tokens_L[p_target_L > 0].sum())
    if overflow == "spread" and budget_tokens > most * (1 + 1e-12):
        raise ConfigError(
            f"sample.budget_tokens {budget_tokens:,} is more than weights.max_epochs {max_epochs:g} allows: the clusters that the "
            f"mixture uses hold {int(tokens_L[p_target_L > 0].sum()):,} tokens, so at most {int(most):,} can be had; lower the "
            "budget, raise weights.max_epochs, set weights.overflow: leave, or add generalist text"
        )
    return made


def capped_plan(
    p_target_L: Floats,
    tokens_L: Ints,
    *,
    budget_tokens: int,
    max_epochs: float,
    overflow: Overflow,
    rewrites_L: Floats | None = None,
) -> Plan:
    """As `plan`, but where the budget cannot be met every leaf with mass is at its cap, and the rest is a deficit.

    `rewrites_L` are tokens of rewrites that lie in each leaf: they fill its deficit, and what is left of that is spread.
    """
    wanted_L = budget_tokens * np.asarray(p_target_L, dtype=np.float64)
    cap_L = max_epochs * np.asarray(tokens_L, dtype=np.float64)
    deficit_L = np.maximum(wanted_L - cap_L, 0.0)
    rewritten_L = np.zeros(len(wanted_L)) if rewrites_L is None else np.minimum(deficit_L, rewrites_L)
    # A leaf with a deficit is full at any level, so that rewrites never take the place of its own text.
    total_L = water_fill(wanted_L, cap_L + rewritten_L) if overflow == "spread" else np.minimum(wanted_L, cap_L + rewritten_L)
    return Plan(
        tokens_L=tokens_L,
        wanted_L=wanted_L,
        planned_L=np.maximum(total_L - rewritten_L, 0.0),
        rewritten_L=rewritten_L,
        deficit_L=deficit_L - rewritten_L,
        budget_tokens=budget_tokens,
    )


def shared_plan(
    p_target_L: Floats,
    tokens_L: Ints,
    *,
    budget_tokens: int,
    max_epochs: float,
    overflow: Overflow,
    rewrites_L: Floats,
    real_to_synthetic: float,
) -> Plan:
    """A plan in which rewrites are one part of `1 + real_to_synthetic` (WRAP, arXiv 2401.16380: 1 : 1 in tokens), all used alike.

    The text itself makes up the mixture around them, so that the whole is as asked. With too few rewrites it takes their place too.
    """
    wanted_L = budget_tokens * np.asarray(p_target_L, dtype=np.float64)
    cap_L = max_epochs * np.asarray(tokens_L, dtype=np.float64)
    synthetic = budget_tokens / (1.0 + real_to_synthetic)
    held = float(rewrites_L.sum())
    rewritten_L = rewrites_L * (min(1.0, synthetic / held) if held else 0.0)
    rest_L = np.maximum(wanted_L - rewritten_L, 0.0)
    raw = budget_tokens - (rewritten_L.sum() if overflow == "spread" else synthetic)
    rest_L *= raw / max(rest_L.sum(), 1e-300)
    return Plan(
        tokens_L=tokens_L,
        wanted_L=wanted_L,
        planned_L=water_fill(rest_L, cap_L) if overflow == "spread" else np.minimum(rest_L, cap_L),
        rewritten_L=rewritten_L,
        deficit_L=np.maximum(rest_L - cap_L, 0.0),
        budget_tokens=budget_tokens,
    )


def water_fill(wanted_L: Floats, cap_L: Floats) -> Floats:
    """(L,) `min(level · wanted, cap)`, at the level where the sum is that of `wanted_L`; all caps where no level is enough.

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
        level_M = (wanted_M.sum() - filled_M) / unfilled_M  # if exactly the leaves before this one are full
        full_at_M = cap_M / wanted_M
    fits_M = np.flatnonzero(level_M <= full_at_M)
    planned_L = np.zeros(len(wanted_L))
    planned_L[asked_L] = cap_L[asked_L]
    if len(fits_M):
        planned_L[asked_L] = np.minimum(max(1.0, level_M[fits_M[0]]) * wanted_L[asked_L], cap_L[asked_L])
    return planned_L
