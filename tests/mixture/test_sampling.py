"""Copies per window: they meet the allocation, are unbiased, and do not depend on the split into parts."""

import sys
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.hashing import keyed_hash
from pipeline.mixture.rounding import round_balanced
from pipeline.mixture.sampling import (
    Candidates,
    Decision,
    SamplingPlan,
    attribute_copies,
    count_copies,
    decide,
    find_candidates,
    first_band,
)
from pipeline.tables import DRAWS
from tests.support.trees import list_leaves_below, make_random_tree, make_two_level_tree

METHODS = ["rounded", "multinomial"]


def make_corpus(rng, tree, num_windows, budget, *, factors=False, skew=1.0):
    """Return windows of very unequal length in leaves of very unequal size, and a plan that spends the budget."""
    num_leaves = int(tree.num_leaves_V[0])
    leaf = rng.choice(num_leaves, num_windows, p=rng.dirichlet(np.full(num_leaves, skew))).astype(np.int32)
    tokens = rng.integers(1, 300, num_windows).astype(np.int32)
    key = keyed_hash(np.arange(num_windows, dtype=np.uint64), seed=int(rng.integers(10**6)), purpose="corpus")
    factor = rng.exponential(size=num_windows) if factors else np.ones(num_windows)
    tokens_L = np.bincount(leaf, weights=tokens, minlength=num_leaves)
    factor /= (np.bincount(leaf, weights=factor * tokens, minlength=num_leaves) / np.maximum(tokens_L, 1))[leaf]
    planned = rng.dirichlet(np.full(num_leaves, 0.5)) * (tokens_L > 0)
    planned *= budget / planned.sum()
    plan = SamplingPlan(
        method="rounded", seed=0, epochs_L=planned / np.maximum(tokens_L, 1), allocated_L=planned,
        windows_L=np.bincount(leaf, minlength=num_leaves),
    )  # fmt: skip
    return SimpleNamespace(key=key, leaf=leaf, tokens=tokens, factor=factor.astype(np.float32), plan=plan, tree=tree)


def sample_copies(case, plan, parts=None, band=None):
    """Return the copies of each window, and the number of first passes that were needed."""
    parts = parts if parts is not None else [np.arange(len(case.key))]
    band, passes = first_band(plan) if band is None else band, 0
    while True:
        passes += 1
        states = [find_candidates(case.key[p], case.leaf[p], case.tokens[p], case.factor[p], plan, band) for p in parts]
        decision = decide(Candidates.combine(states), plan, band, case.tree)
        if isinstance(decision, Decision):
            break
        band = decision
    result = np.full(len(case.key), -1)
    for p in parts:
        table = count_copies(case.key[p], case.leaf[p], case.factor[p], plan, decision)
        assert table.schema == DRAWS
        result[p] = table["copies"].to_numpy()
    return result, passes


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(METHODS), st.lists(st.integers(0, 10**6), max_size=5), st.booleans())
def test_copies_do_not_depend_on_the_split_and_order_of_parts(seed, method, cuts, factors):
    rng = np.random.default_rng(seed)
    case = make_corpus(rng, make_random_tree(rng), 3000, int(rng.integers(1, 600_000)), factors=factors, skew=0.2)
    plan = replace(case.plan, method=method, seed=seed)
    whole, _ = sample_copies(case, plan)
    shuffled = rng.permutation(3000)
    edges = [0, *sorted(cut % 3001 for cut in cuts), 3000]
    np.testing.assert_array_equal(sample_copies(case, plan, [shuffled[a:b] for a, b in pairwise(edges)])[0], whole)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 6), st.booleans())
def test_rounded_copies_are_floor_or_ceil_and_every_subtree_is_within_a_window_of_its_allocation(seed, digits, factors):
    rng = np.random.default_rng(seed)
    case = make_corpus(rng, make_random_tree(rng), 2500, int(rng.integers(10**digits)) + 1, factors=factors, skew=0.3)
    copies, _ = sample_copies(case, replace(case.plan, seed=seed))
    expected = case.plan.epochs_L[case.leaf] * case.factor.astype(np.float64)
    assert ((copies == np.floor(expected)) | (copies == np.ceil(expected))).all()
    for v in range(len(case.tree.parent_V)):
        inside = np.isin(case.leaf, list_leaves_below(case.tree, v))
        difference = (copies * case.tokens)[inside].sum() - case.plan.allocated_L[list_leaves_below(case.tree, v)].sum()
        longest = case.tokens[inside].max() if inside.any() else 0
        assert abs(difference) <= longest + 1e-5 * case.plan.allocated_L.sum()  # the factors are float32


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [1, 40, 700, 9_000, 123_457, 3_000_001])
def test_sampling_meets_any_budget(method, budget):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        case = make_corpus(rng, make_random_tree(rng), 20_000, budget)
        copies, _ = sample_copies(case, replace(case.plan, method=method, seed=seed))
        assert abs((copies * case.tokens).sum() - budget) <= max(0.005 * budget, case.tokens.max())


def compute_mean_copies(case, method, seeds, band=None):
    total = np.zeros(len(case.key))
    for seed in range(seeds):
        total += sample_copies(case, replace(case.plan, method=method, seed=seed), band=band)[0]
    return total / seeds


def assert_unbiased(case, mean, seeds, slack=0.0):
    """Check that each window's mean is within 5 standard errors, and that short and long windows have no bias."""
    expected = case.plan.epochs_L[case.leaf] * case.factor.astype(np.float64)
    error = np.sqrt(np.maximum(expected, 0.02) / seeds)
    assert (np.abs(mean - expected) <= 5 * error + slack).all()
    for chosen in (case.tokens < 60, case.tokens > 240):
        assert mean[chosen].sum() == pytest.approx(expected[chosen].sum(), abs=4 * np.sqrt(expected[chosen].sum() / seeds) + slack)


@pytest.mark.parametrize("budget", [150, 4_000, 40_000])
def test_mean_of_rounded_copies_over_seeds_is_the_expectation_for_short_and_long_windows(budget):
    rng = np.random.default_rng(5)
    case = make_corpus(rng, make_random_tree(rng, depth=3, branching=4, stop=0.0), 200, budget, factors=True)
    assert_unbiased(case, compute_mean_copies(case, "rounded", 400), 400)


def test_mean_of_rounded_copies_with_a_band_is_the_expectation():
    rng = np.random.default_rng(6)
    case = make_corpus(rng, make_two_level_tree(), 4_000, 150_000)
    band = first_band(case.plan)
    assert np.isfinite(band).any()
    assert_unbiased(case, compute_mean_copies(case, "rounded", 250, band=band), 250)


def test_certain_copies_and_candidates_with_a_band_average_to_the_expectation():
    """For any band, certain copies and candidate probabilities average to the expected copies; each window has one token."""
    epochs_L, each = np.array([0.03, 0.3, 0.6, 0.95, 1.5, 2.97, 0.5, 1.0]), 40_000
    plan = SamplingPlan(method="rounded", seed=1, epochs_L=epochs_L, allocated_L=epochs_L * each, windows_L=np.full(8, each))
    key, leaf = keyed_hash(np.arange(8 * each, dtype=np.uint64), seed=0, purpose="x"), np.repeat(np.arange(8), each)
    ones = np.ones(8 * each)
    for band in (0.02, 0.5, 3.0):
        state = find_candidates(key, leaf, ones.astype(int), ones, plan, np.full(8, band))
        mean_L = np.bincount(state.group_C, weights=state.value_C, minlength=8) / each
        mean_L[state.group_F] += state.certain_tokens_F / each
        np.testing.assert_allclose(mean_L, epochs_L, atol=5 * 0.5 / np.sqrt(each))
        assert len(state.key_C) < 8 * each


def test_multinomial_copies_over_seeds_have_the_mean_and_variance_of_a_poisson():
    rng = np.random.default_rng(7)
    case = make_corpus(rng, make_two_level_tree(), 300, 60_000)
    all_copies = np.stack([sample_copies(case, replace(case.plan, method="multinomial", seed=seed))[0] for seed in range(800)])
    assert_unbiased(case, all_copies.mean(axis=0), 800, slack=0.02)
    expected = case.plan.epochs_L[case.leaf]
    often = expected > 0.3
    ratio = all_copies.var(axis=0)[often] / expected[often]
    assert 0.9 < ratio.mean() < 1.05  # a little under 1: the budget is fixed
    assert all_copies.max() > np.ceil(expected).max()


@pytest.mark.parametrize("method", METHODS)
def test_a_too_narrow_band_is_widened_and_the_allocation_is_met(method):
    rng = np.random.default_rng(8)
    case = make_corpus(rng, make_two_level_tree(), 5_000, 300_000)
    plan = replace(case.plan, method=method)
    copies, passes = sample_copies(case, plan, band=np.full_like(first_band(plan), 1e-7))
    assert passes > 1
    assert abs((copies * case.tokens).sum() - 300_000) <= case.tokens.max()


def test_balanced_rounding_keeps_each_probability_and_the_total_tokens():
    tree, rng = make_two_level_tree(), np.random.default_rng(9)
    chance, tokens = rng.random(12), rng.integers(1, 500, 12)
    leaf, key = np.sort(rng.integers(0, 4, 12)), keyed_hash(np.arange(12, dtype=np.uint64), seed=0, purpose="x")
    rounded = np.stack([round_balanced(chance, tokens, key, leaf, tree, seed) for seed in range(1000)])
    np.testing.assert_allclose(rounded.mean(axis=0), chance, atol=5 * 0.5 / np.sqrt(1000))
    assert (np.abs(rounded @ tokens - chance @ tokens) <= tokens.max()).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_window_without_a_leaf_has_no_copies(method):
    case = make_corpus(np.random.default_rng(10), make_two_level_tree(), 50, 5_000)
    case.leaf[7] = -1
    case.plan.epochs_L[-1] = 3.0  # the value that index -1 would read
    decision = Decision(band_G=np.full(4, np.inf), extra_T=case.key, max_time=1e3)
    assert count_copies(case.key, case.leaf, case.factor, replace(case.plan, method=method), decision)["copies"][7].as_py() == 0


def test_copies_are_attributed_in_proportion_to_the_claims_on_their_leaf():
    claim_SL = np.array([[0.3, 0.0], [0.1, 0.0], [0.1, 0.5]])
    key = keyed_hash(np.arange(20_000, dtype=np.uint64), seed=1, purpose="x")
    for leaf, expected in ((0, [0.6, 0.2, 0.2]), (1, [0.0, 0.0, 1.0])):
        row = attribute_copies(key, np.zeros(20_000, dtype=int), claim_SL[:, np.full(20_000, leaf)], seed=3)
        np.testing.assert_allclose(np.bincount(row, minlength=3) / 20_000, expected, atol=0.015)
    again = attribute_copies(key, np.ones(20_000, dtype=int), claim_SL[:, np.zeros(20_000, dtype=int)], seed=3)
    first = attribute_copies(key, np.zeros(20_000, dtype=int), claim_SL[:, np.zeros(20_000, dtype=int)], seed=3)
    assert (again != first).mean() > 0.4  # each copy is attributed independently


@pytest.mark.parametrize("method", METHODS)
def test_a_million_windows_reach_the_driver_as_few_candidates_without_python_loops(method):
    rng = np.random.default_rng(11)
    flat = SimpleNamespace(
        parent_V=np.array([-1] + [0] * 64), level_V=np.array([0] + [1] * 64),
        first_leaf_V=np.array([0, *range(64)]), num_leaves_V=np.array([64] + [1] * 64),
    )  # fmt: skip
    case = make_corpus(rng, flat, 1_000_000, 40_000_000, skew=5.0)
    plan = replace(case.plan, method=method)
    state = find_candidates(case.key, case.leaf, case.tokens, case.factor, plan, first_band(plan))
    assert len(state.key_C) < 100_000
    num_lines = 0

    def count_line(_frame, event, _arg):
        nonlocal num_lines
        num_lines += event == "line"
        return count_line

    tracer = sys.gettrace()
    sys.settrace(count_line)
    try:
        copies, passes = sample_copies(case, plan)
    finally:
        sys.settrace(tracer)
    assert passes == 1
    assert num_lines < len(case.key)  # executed lines of Python: no loop over windows
    assert abs((copies * case.tokens).sum() - 40_000_000) <= 300
