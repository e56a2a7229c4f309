"""The allocation, against an iterative oracle and cases computed by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.mixture.allocation import Limits, allocate, allocate_capped, allocate_with_rewrite_share
from pipeline.tables import ALLOCATION

seeds = st.integers(0, 10**6)


def fill_iteratively(wanted, cap):
    """Move tokens above the cap to leaves below their cap, in proportion to their tokens, until no leaf exceeds its cap."""
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


def make_case(seed):
    rng = np.random.default_rng(seed)
    num = int(rng.integers(1, 30))
    wanted = rng.exponential(size=num) ** 3 * (rng.random(num) > 0.2)
    wanted[0] += 0.1
    return wanted, rng.exponential(size=num) * (rng.random(num) > 0.1), rng


def make_limits(budget=1, **changes):
    return Limits(**{"budget_tokens": budget, "max_epochs": 1.5, "overflow": "spread", **changes})


@settings(max_examples=200, deadline=None)
@given(seeds)
def test_spread_allocation_equals_the_iterative_oracle(seed):
    """One claim row, and a natural share of zero."""
    wanted, tokens, rng = make_case(seed)
    wanted[tokens == 0] = 0
    wanted[0], tokens[0] = wanted[0] + 0.1, tokens[0] + 0.1
    if 1.5 * tokens[wanted > 0].sum() < wanted.sum():
        tokens[0] += wanted.sum() * (1 + rng.random())
    claim = np.stack([wanted, np.zeros_like(wanted)]) / wanted.sum()
    allocation = allocate_capped(claim, tokens, make_limits(wanted.sum()))
    np.testing.assert_allclose(allocation.allocated_L, fill_iteratively(wanted, 1.5 * tokens), rtol=1e-9, atol=1e-9)
    assert not allocation.allocated_RL[1].any()


@settings(max_examples=100, deadline=None)
@given(seeds, st.integers(1, 3), st.floats(0.05, 1.0), st.sampled_from([0.0, 0.25, 0.6]))
def test_each_claim_row_gets_its_share_under_any_limits(seed, specialists, exponent, natural):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 1000, 40)
    claim = rng.exponential(size=(specialists, 40)) ** 4 * (rng.random((specialists, 40)) > 0.3)
    claim[:, 0] += 1e-3
    claim *= (1 - natural) * rng.dirichlet(np.ones(specialists))[:, None] / claim.sum(axis=1, keepdims=True)
    claim = np.concatenate([claim, natural * tokens[None] / tokens.sum()])
    budget = int(tokens.sum() * rng.uniform(0.05, 0.6))
    allocation = allocate_capped(claim, tokens, make_limits(budget, max_epochs=3.0, repeat_exponent=exponent))
    assert (allocation.allocated_L <= 3.0 * tokens * (1 + 1e-9)).all()
    assert allocation.allocated_L.sum() == pytest.approx(budget, rel=1e-9)
    np.testing.assert_allclose(allocation.allocated_RL.sum(axis=1), budget * claim.sum(axis=1), rtol=1e-4)
    # Each leaf gets the claims of its rows at their levels; the limits on repeats apply to the sum over rows.
    asked = budget * claim / tokens
    epochs = allocation.allocated_RL / tokens
    total = epochs.sum(axis=0)
    undamped = np.where(total > 1, total ** (1 / exponent), total)
    free = total < 3.0 * (1 - 1e-9)
    for row in range(len(claim)):
        used = free & (asked[row] > 0)
        level = epochs[row, used] / total[used] * undamped[used] / asked[row, used]
        assert level.size < 2 or np.ptp(np.log(level)) < 1e-6
        assert level.size == 0 or level.min() > 1 - 1e-6


def test_a_row_without_text_left_gives_its_remainder_to_other_rows():
    tokens = np.array([10, 1000])
    claim = np.array([[0.5, 0.0], [0.0, 0.0], [0.005, 0.495]])
    allocation = allocate_capped(claim, tokens, make_limits(200, max_epochs=2.0))
    assert allocation.allocated_L == pytest.approx([20, 180])
    assert allocation.allocated_RL[2].sum() > 180


def test_a_budget_above_all_caps_fills_every_claimed_leaf():
    claim = np.array([[0.7, 5e-324, 0.0], [0.3, 0.0, 0.0]])
    allocation = allocate_capped(claim, np.array([10, 10, 10]), make_limits(10_000))
    np.testing.assert_allclose(allocation.allocated_L, [15, 15, 0])


P, TOKENS = np.array([[0.7, 0.2, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0]]), np.array([100, 100, 100, 100])


def test_overflow_spread_moves_the_clipped_mass_to_other_leaves():
    allocation = allocate(P, TOKENS, Limits(budget_tokens=300, max_epochs=1.5, overflow="spread"))
    np.testing.assert_allclose(allocation.allocated_L, [150, 100, 50, 0])
    np.testing.assert_allclose(allocation.epochs_L, [1.5, 1.0, 0.5, 0])
    np.testing.assert_allclose(allocation.deficit_L, [60, 0, 0, 0])
    assert allocation.clipped_mass == pytest.approx(0.2)
    assert allocation.deficit_share == pytest.approx(0)
    assert allocation.to_table().schema == ALLOCATION


def test_overflow_leave_keeps_the_clipped_mass_as_a_deficit():
    allocation = allocate(P, TOKENS, Limits(budget_tokens=300, max_epochs=1.5, overflow="leave"))
    np.testing.assert_allclose(allocation.allocated_L, [150, 60, 30, 0])
    assert allocation.deficit_share == pytest.approx(0.2)
    np.testing.assert_allclose(allocation.allocated_L + allocation.deficit_L, allocation.requested_L)


def test_a_budget_above_the_cap_is_an_error_with_the_available_tokens():
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
def test_rewrites_fill_deficits_without_replacing_text(seed):
    wanted, cap, rng = make_case(seed)
    p, tokens = wanted[None] / wanted.sum(), np.ceil(cap * 1000).astype(np.int64)
    budget = int(rng.integers(1, 20_000))
    leave, fill = (Limits(budget_tokens=budget, max_epochs=2.0, overflow=overflow) for overflow in ("leave", "spread"))
    without_rewrites = allocate_capped(p, tokens, leave)
    rewrites = rng.exponential(size=p.shape[1]) * 1000
    filled = allocate_capped(p, tokens, leave, rewrites)
    np.testing.assert_allclose(filled.allocated_L, without_rewrites.allocated_L, atol=1e-6)
    np.testing.assert_allclose(filled.rewritten_L, np.minimum(without_rewrites.deficit_L, rewrites))
    spread = allocate_capped(p, tokens, fill, rewrites)
    np.testing.assert_allclose(spread.rewritten_L, filled.rewritten_L)
    assert (spread.allocated_L >= filled.allocated_L - 1e-6).all()
    assert (spread.allocated_L <= 2.0 * tokens + 1e-6).all()
    enough = 2.0 * tokens[p[0] > 0].sum() + spread.rewritten_L.sum()
    assert spread.allocated_L.sum() + spread.rewritten_L.sum() == pytest.approx(min(budget, enough), rel=1e-9, abs=1e-6)


def test_a_share_of_rewrites_keeps_the_requested_mixture():
    p, tokens = np.array([[0.5, 0.3, 0.2]]), np.array([10_000, 10_000, 10_000])
    four_epochs = make_limits(9000, max_epochs=4.0)
    allocation = allocate_with_rewrite_share(p, tokens, four_epochs, np.array([5000.0, 500.0, 500.0]), real_to_synthetic=2.0)
    assert allocation.rewritten_L.sum() == pytest.approx(3000)
    np.testing.assert_allclose(allocation.allocated_L + allocation.rewritten_L, 9000 * p[0])
    few_rewrites = allocate_with_rewrite_share(p, tokens, four_epochs, np.array([500.0, 0.0, 0.0]), real_to_synthetic=2.0)
    assert few_rewrites.rewritten_L.sum() == 500
    np.testing.assert_allclose(few_rewrites.allocated_L + few_rewrites.rewritten_L, 9000 * p[0])
    left_over = allocate_with_rewrite_share(
        p, tokens, replace(four_epochs, overflow="leave"), np.array([500.0, 0.0, 0.0]), real_to_synthetic=2.0
    )
    assert left_over.allocated_L.sum() == pytest.approx(6000)
