"""The plan: water-filling against the hand-over that it shortens."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.mixture.plan import Limits, capped_plan, plan, shared_plan, water_fill
from pipeline.tables import PLAN

seeds = st.integers(0, 10**6)


def obvious_fill(wanted, cap):
    """Hand what is beyond the cap to leaves below theirs, in proportion to what they have, until nothing is."""
    planned = [float(w) for w in wanted]
    full = [False] * len(planned)
    for _ in range(len(planned) + 1):
        excess = 0.0
        for i, c in enumerate(cap):
            if planned[i] > c or full[i]:
                excess += planned[i] - c
                planned[i], full[i] = float(c), True
        open_mass = sum(p for p, f in zip(planned, full, strict=True) if not f)
        if excess <= 0 or open_mass == 0:
            break
        planned = [p if f else p * (1 + excess / open_mass) for p, f in zip(planned, full, strict=True)]
    return planned


def case(seed):
    rng = np.random.default_rng(seed)
    num = int(rng.integers(1, 30))
    wanted = rng.exponential(size=num) ** 3 * (rng.random(num) > 0.2)
    wanted[0] += 0.1
    return wanted, rng.exponential(size=num) * (rng.random(num) > 0.1), rng


@settings(max_examples=200, deadline=None)
@given(seeds)
def test_water_fill_is_where_handing_over_ends(seed):
    wanted, cap, rng = case(seed)
    if cap[wanted > 0].sum() < wanted.sum():
        cap[0] += wanted.sum() * (1 + rng.random())
    planned = water_fill(wanted, cap, wanted.sum())
    np.testing.assert_allclose(planned, obvious_fill(wanted, cap), rtol=1e-9, atol=1e-9)
    assert (planned <= cap).all()
    assert planned.sum() == pytest.approx(wanted.sum())
    assert not planned[wanted == 0].any()
    open_leaves = (planned < cap) & (wanted > 0)  # below the cap every leaf got the same multiple: the order is kept
    assert np.ptp(planned[open_leaves] / wanted[open_leaves]) < 1e-9 if open_leaves.any() else True
    np.testing.assert_allclose(water_fill(planned, cap, planned.sum()), planned, rtol=1e-9)


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_water_fill_that_cannot_hold_all_is_full_where_anything_is_wanted(seed):
    wanted, cap, _ = case(seed)
    wanted *= (cap.sum() + 1) / wanted.sum() * 2
    np.testing.assert_array_equal(water_fill(wanted, cap, wanted.sum()), np.where(wanted > 0, cap, 0))


def test_water_fill_of_next_to_nothing_does_not_overflow():
    np.testing.assert_allclose(water_fill(np.array([5e-324, 3.0]), np.array([1e9, 4.0]), 3.0), [5e-324, 3.0])


P, TOKENS = np.array([0.7, 0.2, 0.1, 0.0]), np.array([100, 100, 100, 100])


def test_plan_spread_moves_the_clipped_mass():
    made = plan(P, TOKENS, Limits(budget_tokens=300, max_epochs=1.5, overflow="spread"))
    np.testing.assert_allclose(made.planned_L, [150, 100, 50, 0])
    np.testing.assert_allclose(made.epochs_L, [1.5, 1.0, 0.5, 0])
    np.testing.assert_allclose(made.deficit_L, [60, 0, 0, 0])
    assert made.clipped_mass == pytest.approx(0.2)
    assert made.deficit_share == pytest.approx(0)
    assert made.table().schema == PLAN


def test_plan_leave_leaves_it():
    made = plan(P, TOKENS, Limits(budget_tokens=300, max_epochs=1.5, overflow="leave"))
    np.testing.assert_allclose(made.planned_L, [150, 60, 30, 0])
    assert made.deficit_share == pytest.approx(0.2)
    np.testing.assert_allclose(made.planned_L + made.deficit_L, made.wanted_L)


def test_plan_beyond_what_the_cap_allows_says_what_can_be_had():
    assert plan(P, TOKENS, Limits(budget_tokens=450, max_epochs=1.5, overflow="spread")).planned_L.sum() == pytest.approx(450)
    with pytest.raises(ConfigError) as error:
        plan(P, TOKENS, Limits(budget_tokens=451, max_epochs=1.5, overflow="spread"))
    text = str(error.value)
    assert all(word in text for word in ("sample.budget_tokens 451", "weights.max_epochs 1.5", "450", "overflow: leave"))
    assert "\n" not in text
    assert capped_plan(P, TOKENS, Limits(budget_tokens=451, max_epochs=1.5, overflow="spread")).deficit_share == pytest.approx(
        1 / 451
    )
    assert plan(P, TOKENS, Limits(budget_tokens=451, max_epochs=1.5, overflow="leave")).planned_L.sum() < 451


@settings(max_examples=200, deadline=None)
@given(seeds)
def test_rewrites_fill_deficits_and_take_the_place_of_no_text(seed):
    wanted, cap, rng = case(seed)
    p, tokens = wanted / wanted.sum(), np.ceil(cap * 1000).astype(np.int64)
    budget = int(rng.integers(1, 20_000))
    leave, fill = (Limits(budget_tokens=budget, max_epochs=2.0, overflow=overflow) for overflow in ("leave", "spread"))
    alone = capped_plan(p, tokens, leave)
    rewrites = rng.exponential(size=len(p)) * 1000
    filled = capped_plan(p, tokens, leave, rewrites)
    np.testing.assert_allclose(filled.planned_L, alone.planned_L, atol=1e-6)
    np.testing.assert_allclose(filled.rewritten_L, np.minimum(alone.deficit_L, rewrites))
    spread = capped_plan(p, tokens, fill, rewrites)
    np.testing.assert_allclose(spread.rewritten_L, filled.rewritten_L)
    assert (spread.planned_L >= filled.planned_L - 1e-6).all()
    assert (spread.planned_L <= 2.0 * tokens + 1e-6).all()
    enough = 2.0 * tokens[p > 0].sum() + spread.rewritten_L.sum()
    assert spread.planned_L.sum() + spread.rewritten_L.sum() == pytest.approx(min(budget, enough), rel=1e-9, abs=1e-6)


def test_a_share_of_rewrites_leaves_the_mixture_as_asked():
    p, tokens = np.array([0.5, 0.3, 0.2]), np.array([10_000, 10_000, 10_000])
    limits = Limits(budget_tokens=9000, max_epochs=4.0, overflow="spread")
    made = shared_plan(p, tokens, limits, np.array([5000.0, 500.0, 500.0]), real_to_synthetic=2.0)
    assert made.rewritten_L.sum() == pytest.approx(3000)
    np.testing.assert_allclose(made.planned_L + made.rewritten_L, 9000 * p)
    few = shared_plan(p, tokens, limits, np.array([500.0, 0.0, 0.0]), real_to_synthetic=2.0)
    assert few.rewritten_L.sum() == 500
    np.testing.assert_allclose(few.planned_L + few.rewritten_L, 9000 * p)
    left = shared_plan(p, tokens, replace(limits, overflow="leave"), np.array([500.0, 0.0, 0.0]), real_to_synthetic=2.0)
    assert left.planned_L.sum() == pytest.approx(6000)
