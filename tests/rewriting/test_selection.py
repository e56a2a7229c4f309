"""Selection of windows: monotone in the rates, proportional to the shares, and sufficient in the end."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.rewriting.selection import (
    RewritingProgress,
    compute_requested_share,
    list_style_variants,
    select_new_rows,
)

SHARES = {"qa": 0.25, "wikipedia": 0.75}
RATIOS = {"qa": 1.2, "wikipedia": 0.9}


def keys(count, seed=0):
    return np.random.default_rng(seed).integers(0, 2**63, size=count, dtype=np.uint64)


def select(key_N, leaf_N, before, after, style_variants):
    rows_by_variant = select_new_rows(key_N, leaf_N, np.asarray(before, float), np.asarray(after, float), style_variants, seed=0)
    return {(one.style, one.variant, int(row)) for one, rows in zip(style_variants, rows_by_variant, strict=True) for row in rows}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.floats(0, 2), min_size=2, max_size=4))
def test_rounds_request_what_one_round_to_the_same_rate_would_and_nothing_twice(seed, rates):
    style_variants = list_style_variants(SHARES, RATIOS, 2)
    key_N, leaf_N = keys(200, seed), np.random.default_rng(seed).integers(-1, 3, size=200)
    steps = [0.0, *sorted(rates)]
    rounds = [select(key_N, leaf_N, [a] * 3, [b] * 3, style_variants) for a, b in itertools.pairwise(steps)]
    assert sum(len(pairs) for pairs in rounds) == len(set.union(*rounds))
    assert set.union(*rounds) == select(key_N, leaf_N, [0.0] * 3, [steps[-1]] * 3, style_variants)


def test_each_style_is_used_in_proportion_to_its_share_until_exhausted():
    style_variants = list_style_variants(SHARES, RATIOS, 1)
    key_N, leaf_N = keys(40_000), np.zeros(40_000, int)
    selected = select(key_N, leaf_N, [0.0], [0.4], style_variants)
    counts = {style: sum(1 for name, *_ in selected if name == style) for style in SHARES}
    assert counts["wikipedia"] / counts["qa"] == pytest.approx(3.0, rel=0.05)
    assert sum(counts.values()) / 80_000 == pytest.approx(compute_requested_share(np.array([0.4]), style_variants)[0], rel=0.02)
    exhaustion_rate = 1.0 / min(one.weight for one in style_variants)
    assert len(select(key_N, leaf_N, [0.0], [exhaustion_rate], style_variants)) == 80_000


def test_an_additional_style_requests_nothing_new_of_the_other():
    key_N, leaf_N = keys(5000), np.zeros(5000, int)
    alone = select(key_N, leaf_N, [0.0], [0.3], list_style_variants({"qa": 1.0}, RATIOS, 1))
    with_other = select(key_N, leaf_N, [0.0], [0.3], list_style_variants({"qa": 0.5, "wikipedia": 0.5}, RATIOS, 1))
    assert {pair for pair in with_other if pair[0] == "qa"} <= alone


def test_windows_without_a_leaf_are_never_requested():
    assert select(keys(100), np.full(100, -1), [0.0], [9.0], list_style_variants(SHARES, RATIOS, 1)) == set()


def simulate(wanted_L, tokens_L, true_yield_L, *, by_leaf, rounds=12):
    """Run rounds in which the passages of each leaf have the given yield; return the progress and the number of rounds."""
    style_variants = list_style_variants({"wikipedia": 1.0}, RATIOS, 1)
    zeros = np.zeros(len(wanted_L))
    progress = RewritingProgress(np.asarray(wanted_L, float), np.asarray(tokens_L), zeros, zeros, 0, zeros)
    for number in range(rounds):
        rate_L = progress.compute_next_rates(style_variants, by_leaf=by_leaf)
        if rate_L is None:
            return progress, number
        requested_L = compute_requested_share(rate_L, style_variants) * progress.tokens_L
        filled_L = requested_L * true_yield_L
        progress = RewritingProgress(progress.wanted_L, progress.tokens_L, requested_L, filled_L, int(filled_L.sum()), rate_L)
    return progress, rounds


@pytest.mark.parametrize("by_leaf", [True, False])
def test_the_plan_is_met_in_few_rounds_with_unknown_yields(by_leaf):
    rng = np.random.default_rng(1)
    tokens_L = rng.integers(5_000, 500_000, size=40)
    progress, rounds = simulate(0.1 * tokens_L, tokens_L, rng.uniform(0.3, 0.9, size=40), by_leaf=by_leaf)
    assert progress.compute_missing(by_leaf=by_leaf).sum() <= 0.01 * progress.wanted_L.sum()
    assert rounds <= 4
    assert progress.filled_L.sum() <= 1.25 * progress.wanted_L.sum()  # little more is rewritten than wanted


def test_a_deficit_that_cannot_be_met_exhausts_its_leaf_and_ends():
    progress, rounds = simulate([50_000.0, 1000.0], [10_000, 100_000], np.array([0.8, 0.8]), by_leaf=True)
    assert progress.rate_L[0] == 1.0
    assert rounds < 12
    assert progress.compute_missing(by_leaf=True)[1] <= 10


def test_growth_is_bounded_in_a_leaf_whose_rewrites_all_fall_elsewhere():
    style_variants = list_style_variants({"wikipedia": 1.0}, RATIOS, 1)
    progress = RewritingProgress(np.array([1000.0]), np.array([1_000_000]), np.array([1_500.0]), np.zeros(1), 0, np.array([0.0015]))
    assert progress.compute_next_rates(style_variants, by_leaf=True)[0] <= 0.0045 + 1e-9
    # In the other mode a rewrite counts in any cluster.
    assert (
        RewritingProgress(
            np.array([0.0, 900.0]), np.array([9, 9]), np.zeros(2), np.array([900.0, 0.0]), 900, np.zeros(2)
        ).compute_next_rates(style_variants, by_leaf=False)
        is None
    )
