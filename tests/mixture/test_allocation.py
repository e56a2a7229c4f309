"""The plan: levels against the hand-over that they shorten."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.mixture.allocation import Limits, allocate, allocate_capped, allocate_with_rewrite_share
from pipeline.tables import ALLOCATION

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


def limits(budget=1, **more):
    return Limits(**{"budget_tokens": budget, "max_epochs": 1.5, "overflow": "spread", **more})


@settings(max_examples=200, deadline=None)
@given(seeds)
def test_spreading_ends_where_handing_over_ends(seed):
    """One row, and natural text of which nothing is asked."""
    wanted, tokens, rng = case(seed)
    wanted[tokens == 0] = 0
    wanted[0], tokens[0] = wanted[0] + 0.1, tokens[0] + 0.1
    if 1.5 * tokens[wanted > 0].sum() < wanted.sum():
        tokens[0] += wanted.sum() * (1 + rng.random())
    claim = np.stack([wanted, np.zeros_like(wanted)]) / wanted.sum()
    made = allocate_capped(claim, tokens, limits(wanted.sum()))
    np.testing.assert_allclose(made.allocated_L, obvious_fill(wanted, 1.5 * tokens), rtol=1e-9, atol=1e-9)
    assert not made.allocated_RL[1].any()


@settings(max_examples=100, deadline=None)
@given(seeds, st.integers(1, 3), st.floats(0.05, 1.0), st.sampled_from([0.0, 0.25, 0.6]))
def test_each_row_gets_its_share_whatever_the_limits(seed, specialists, exponent, natural):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 1000, 40)
    claim = rng.exponential(size=(specialists, 40)) ** 4 * (rng.random((specialists, 40)) > 0.3)
    claim[:, 0] += 1e-3
    claim *= (1 - natural) * rng.dirichlet(np.ones(specialists))[:, None] / claim.sum(axis=1, keepdims=True)
    claim = np.concatenate([claim, natural * tokens[None] / tokens.sum()])
    budget = int(tokens.sum() * rng.uniform(0.05, 0.6))
    made = allocate_capped(claim, tokens, limits(budget, max_epochs=3.0, repeat_exponent=exponent))
    assert (made.allocated_L <= 3.0 * tokens * (1 + 1e-9)).all()
    assert made.allocated_L.sum() == pytest.approx(budget, rel=1e-9)
    np.testing.assert_allclose(made.allocated_RL.sum(axis=1), budget * claim.sum(axis=1), rtol=1e-4)
    # Each leaf is given what its rows ask for at their levels, and the limits on repeats are of all rows together.
    asked = budget * claim / tokens
    epochs = made.allocated_RL / tokens
    total = epochs.sum(axis=0)
    undamped = np.where(total > 1, total ** (1 / exponent), total)
    free = total < 3.0 * (1 - 1e-9)
    for row in range(len(claim)):
        used = free & (asked[row] > 0)
        level = epochs[row, used] / total[used] * undamped[used] / asked[row, used]
        assert level.size < 2 or np.ptp(np.log(level)) < 1e-6
        assert level.size == 0 or level.min() > 1 - 1e-6


def test_a_row_whose_text_is_used_up_leaves_the_rest_to_others():
    tokens = np.array([10, 1000])
    claim = np.array([[0.5, 0.0], [0.0, 0.0], [0.005, 0.495]])
    made = allocate_capped(claim, tokens, limits(200, max_epochs=2.0))
    assert made.allocated_L == pytest.approx([20, 180])
    assert made.allocated_RL[2].sum() > 180


def test_of_a_budget_beyond_all_caps_every_leaf_that_is_asked_for_is_full():
    claim = np.array([[0.7, 5e-324, 0.0], [0.3, 0.0, 0.0]])
    made = allocate_capped(claim, np.array([10, 10, 10]), limits(10_000))
    np.testing.assert_allclose(made.allocated_L, [15, 15, 0])


P, TOKENS = np.array([[0.7, 0.2, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0]]), np.array([100, 100, 100, 100])


def test_plan_spread_moves_the_clipped_mass():
    made = allocate(P, TOKENS, Limits(budget_tokens=300, max_epochs=1.5, overflow="spread"))
    np.testing.assert_allclose(made.allocated_L, [150, 100, 50, 0])
    np.testing.assert_allclose(made.epochs_L, [1.5, 1.0, 0.5, 0])
    np.testing.assert_allclose(made.deficit_L, [60, 0, 0, 0])
    assert made.clipped_mass == pytest.approx(0.2)
    assert made.deficit_share == pytest.approx(0)
    assert made.to_table().schema == ALLOCATION


def test_plan_leave_leaves_it():
    made = allocate(P, TOKENS, Limits(budget_tokens=300, max_epochs=1.5, overflow="leave"))
    np.testing.assert_allclose(made.allocated_L, [150, 60, 30, 0])
    assert made.deficit_share == pytest.approx(0.2)
    np.testing.assert_allclose(made.allocated_L + made.deficit_L, made.requested_L)


def test_plan_beyond_what_the_cap_allows_says_what_is_available():
    assert allocate(P, TOKENS, Limits(budget_tokens=450, max_epochs=1.5, overflow="spread")).allocated_L.sum() == pytest.approx(450)
    with pytest.raises(ConfigError) as error:
        allocate(P, TOKENS, Limits(budget_tokens=451, max_epochs=1.5, overflow="spread"))
    text = str(error.value)
    assert all(word in text for word in ("sample.budget_tokens is 451", "weights.max_epochs is 1.5", "450", "overflow: leave"))
    assert "\n" not in text
    assert allocate_capped(P, TOKENS, Limits(budget_tokens=451, max_epochs=1.5, overflow="spread")).deficit_share == pytest.approx(
        1 / 451
    )
    assert allocate(P, TOKENS, Limits(budget_tokens=451, max_epochs=1.5, overflow="leave")).allocated_L.sum() < 451


@settings(max_examples=200, deadline=None)
@given(seeds)
def test_rewrites_fill_deficits_and_take_the_place_of_no_text(seed):
    wanted, cap, rng = case(seed)
    p, tokens = wanted[None] / wanted.sum(), np.ceil(cap * 1000).astype(np.int64)
    budget = int(rng.integers(1, 20_000))
    leave, fill = (Limits(budget_tokens=budget, max_epochs=2.0, overflow=overflow) for overflow in ("leave", "spread"))
    alone = allocate_capped(p, tokens, leave)
    rewrites = rng.exponential(size=p.shape[1]) * 1000
    filled = allocate_capped(p, tokens, leave, rewrites)
    np.testing.assert_allclose(filled.allocated_L, alone.allocated_L, atol=1e-6)
    np.testing.assert_allclose(filled.rewritten_L, np.minimum(alone.deficit_L, rewrites))
    spread = allocate_capped(p, tokens, fill, rewrites)
    np.testing.assert_allclose(spread.rewritten_L, filled.rewritten_L)
    assert (spread.allocated_L >= filled.allocated_L - 1e-6).all()
    assert (spread.allocated_L <= 2.0 * tokens + 1e-6).all()
    enough = 2.0 * tokens[p[0] > 0].sum() + spread.rewritten_L.sum()
    assert spread.allocated_L.sum() + spread.rewritten_L.sum() == pytest.approx(min(budget, enough), rel=1e-9, abs=1e-6)


def test_a_share_of_rewrites_leaves_the_mixture_as_asked():
    p, tokens = np.array([[0.5, 0.3, 0.2]]), np.array([10_000, 10_000, 10_000])
    four = limits(9000, max_epochs=4.0)
    made = allocate_with_rewrite_share(p, tokens, four, np.array([5000.0, 500.0, 500.0]), real_to_synthetic=2.0)
    assert made.rewritten_L.sum() == pytest.approx(3000)
    np.testing.assert_allclose(made.allocated_L + made.rewritten_L, 9000 * p[0])
    few = allocate_with_rewrite_share(p, tokens, four, np.array([500.0, 0.0, 0.0]), real_to_synthetic=2.0)
    assert few.rewritten_L.sum() == 500
    np.testing.assert_allclose(few.allocated_L + few.rewritten_L, 9000 * p[0])
    left = allocate_with_rewrite_share(
        p, tokens, replace(four, overflow="leave"), np.array([500.0, 0.0, 0.0]), real_to_synthetic=2.0
    )
    assert left.allocated_L.sum() == pytest.approx(6000)
