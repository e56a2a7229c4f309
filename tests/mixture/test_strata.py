"""Ratios, strata and damped repeats, against brute force over windows."""

import itertools
import pickle
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.mixture.allocation import Limits, allocate, allocate_capped
from pipeline.mixture.histograms import LeafCounts
from pipeline.mixture.strata import (
    BINS,
    Odds,
    Strata,
    StrataCounts,
    Target,
    Top,
    bin_codes,
    bin_odds,
    find_threshold_bin,
    log_weights,
    order_codes,
)
from pipeline.tables import STRATA, cast


def make_corpus(seed: int, count: int = 400, leaves: int = 5, specialists: int = 2):
    """Return leaves (-1 for some windows), tokens and scores (-inf for some)."""
    rng = np.random.default_rng(seed)
    leaf_N = rng.integers(-1, leaves, count).astype(np.int32)
    tokens_N = rng.integers(1, 300, count).astype(np.int32)
    score_NS = rng.normal(0, 3, (count, specialists)).astype(np.float32)
    score_NS[rng.random((count, specialists)) < 0.05] = -np.inf
    return leaf_N, tokens_N, score_NS


def split_columns(columns, cuts):
    edges = sorted({0, len(columns[0]), *(cut % (len(columns[0]) + 1) for cut in cuts)})
    return [tuple(column[a:b] for column in columns) for a, b in itertools.pairwise(edges)]


def make_odds_target(columns, natural=0.25, leaves=5, sharpness=1.0):
    rng = np.random.default_rng(9)
    p_L_of = [rng.dirichlet(np.ones(leaves)) for _ in range(2)]
    weight_SL = log_weights(p_L_of, np.full(leaves, 1 / leaves))
    odds = Odds.from_bins(weight_SL, sharpness, bin_odds(weight_SL, sharpness, *columns))
    return Target(ratios=odds, share_S=np.array([0.5, 0.25]), natural_share=natural)


@pytest.mark.parametrize("sharpness", [1.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_odds_have_mean_one_over_the_corpus_for_any_sharpness(seed, sharpness):
    leaf_N, tokens_N, score_NS = columns = make_corpus(seed)
    target = make_odds_target(columns, sharpness=sharpness)
    ratio_NS, q_N = target.ratios_of(leaf_N, score_NS)
    valid_N = leaf_N >= 0
    log_NS = (target.ratios.log_weight_SL.T[leaf_N] + score_NS) * sharpness / 2
    with np.errstate(over="ignore"):
        by_hand_NS = np.where(valid_N[:, None], np.exp(log_NS), 0)
    by_hand_NS /= (tokens_N @ by_hand_NS) / tokens_N[valid_N].sum()
    np.testing.assert_allclose(ratio_NS, by_hand_NS, rtol=0.005, atol=1e-12)  # odds lie in bins of a 256th of a nat
    np.testing.assert_allclose(tokens_N @ ratio_NS / tokens_N[valid_N].sum(), 1, rtol=1e-9)
    np.testing.assert_allclose(q_N[valid_N], (ratio_NS @ [0.5, 0.25] + 0.25)[valid_N])
    assert not q_N[~valid_N].any()


@settings(max_examples=40)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=30))
def test_order_codes_sort_as_the_scores(scores):
    score_N = np.array(scores, np.float32)
    code_N = order_codes(score_N[:, None])[:, 0].astype(np.int64)
    np.testing.assert_array_equal(np.less.outer(code_N, code_N), np.less.outer(score_N, score_N))


@settings(max_examples=60)
@given(st.integers(0, 999), st.floats(0.001, 1.2), st.lists(st.integers(0, 999), max_size=3))
def test_top_selects_the_fewest_highest_scores_that_fill_the_budget(seed, share, cuts):
    leaf_N, tokens_N, score_NS = columns = make_corpus(seed, count=60)
    score_NS[::7] = 1.5  # ties
    total = int(tokens_N[leaf_N >= 0].sum())
    requested_S = np.array([share * total, 1.0])
    parts = split_columns(columns, cuts)
    high_SB = sum(bin_codes(*part, None) for part in parts)
    high_S, above_S = find_threshold_bin(high_SB, requested_S)
    low_SB = sum(bin_codes(*part, high_S) for part in parts)
    assert high_SB.shape == low_SB.shape == (2, BINS)
    top = Top.from_bins(high_S, above_S, low_SB, requested_S, total)
    ratio_NS, _ = Target(ratios=top, share_S=np.ones(2), natural_share=0.0).ratios_of(leaf_N, score_NS)
    for s, wanted in enumerate(requested_S):
        usable = [i for i in np.argsort(-score_NS[:, s], kind="stable") if leaf_N[i] >= 0 and np.isfinite(score_NS[i, s])]
        cumulative = np.cumsum(tokens_N[usable])
        crossing = usable[min(int(np.searchsorted(cumulative, wanted)), len(usable) - 1)]
        expected = {i for i in usable if score_NS[i, s] >= score_NS[crossing, s]}
        assert set(np.flatnonzero(ratio_NS[:, s])) == expected
        np.testing.assert_allclose(tokens_N @ ratio_NS[:, s], total)


@settings(max_examples=30)
@given(st.integers(0, 99), st.lists(st.integers(0, 999), max_size=4), st.randoms(use_true_random=False))
def test_strata_do_not_depend_on_split_and_order_and_hold_every_window(seed, cuts, order):
    leaf_N, tokens_N, score_NS = columns = make_corpus(seed)
    target = make_odds_target(columns)
    stratum_N, whole = StrataCounts.of_part(target, *columns)
    parts = split_columns(columns, cuts)
    order.shuffle(parts)
    added = StrataCounts.zero(2)
    for part in parts:
        added = added.add(StrataCounts.of_part(target, *part)[1])
    for name in ("key_C", "windows_C", "tokens_C", "mass_SC", "unshared_SC"):
        np.testing.assert_array_equal(getattr(added, name), getattr(whole, name))
    strata = whole.strata(target)
    ratio_NS, q_N = target.ratios_of(leaf_N, score_NS)
    valid = leaf_N >= 0
    row_N = strata.index_of(leaf_N, stratum_N)
    np.testing.assert_array_equal(
        np.concatenate([StrataCounts.of_part(target, *part)[0] for part in split_columns(columns, cuts)]), stratum_N
    )
    np.testing.assert_array_equal(strata.leaf_C[row_N][valid], leaf_N[valid])
    np.testing.assert_array_equal(np.bincount(row_N[valid], minlength=len(strata.key_C)), strata.windows_C)
    np.testing.assert_array_equal(np.bincount(row_N[valid], tokens_N[valid], len(strata.key_C)), strata.tokens_C)
    for claim_C, by_window in zip(strata.claim_RC, [*(ratio_NS * target.share_S).T, np.full(len(q_N), 0.25)], strict=True):
        claimed_C = np.bincount(row_N[valid], (tokens_N * by_window)[valid], len(strata.key_C))
        np.testing.assert_allclose(claim_C, claimed_C / tokens_N[valid].sum(), rtol=1e-4, atol=1e-9)
    for s in range(2):
        claimed_L = np.bincount(leaf_N[valid], (tokens_N * ratio_NS[:, s])[valid], 5)
        np.testing.assert_allclose(whole.mixture_SL(5)[s], claimed_L / claimed_L.sum(), rtol=1e-6)
    # The ratios within a stratum differ by at most an eighth of a nat.
    for row in np.unique(row_N[valid]):
        inside = q_N[valid & (row_N == row)]
        assert inside.max() / inside.min() <= np.exp(1 / 8) * (1 + 1e-9)


def test_a_window_with_a_tiny_ratio_keeps_its_claim():
    """A ratio of e^-60 rounds to zero in fixed point, but a budget as large as the corpus needs that text."""
    score_NS = np.array([[30.0], [0.0], [-30.0]], np.float32)
    columns = np.array([0, 0, 0], np.int32), np.array([100, 100, 100], np.int32), score_NS
    weight_SL = np.zeros((1, 1))
    odds = Odds.from_bins(weight_SL, 2.0, bin_odds(weight_SL, 2.0, *columns))
    target = Target(ratios=odds, share_S=np.ones(1), natural_share=0.0)
    strata = StrataCounts.of_part(target, *columns)[1].strata(target)
    assert strata.tokens_C.tolist() == [100, 100, 100]
    assert np.diff(np.log(strata.claim_RC[0])) == pytest.approx([30, 30], abs=0.1)
    allocation = allocate(strata.claim_RC, strata.tokens_C, Limits(budget_tokens=290, max_epochs=1.2, overflow="spread"))
    assert allocation.allocated_L == pytest.approx([50, 120, 120], rel=1e-6)


def test_strata_are_unchanged_after_a_table_round_trip():
    columns = make_corpus(4)
    target = make_odds_target(columns)
    strata = StrataCounts.of_part(target, *columns)[1].strata(target)
    reread = Strata.from_table(cast(strata.to_table(), STRATA))
    for name in ("key_C", "windows_C", "tokens_C", "claim_RC"):
        np.testing.assert_array_equal(getattr(reread, name), getattr(strata, name))


def test_a_cluster_without_weight_keeps_a_small_share():
    weight_SL = log_weights([np.array([1.0, 0.0])], np.array([0.5, 0.5]))
    np.testing.assert_allclose(weight_SL, [[np.log(2), -20]])


def test_repeat_exponent_of_one_changes_nothing_and_a_lower_one_repeats_less():
    p, tokens = np.array([[0.6, 0.3, 0.1]]), np.array([100, 1000, 1000])
    plain = allocate(p, tokens, Limits(budget_tokens=500, max_epochs=4, overflow="spread"))
    one = allocate(p, tokens, Limits(budget_tokens=500, max_epochs=4, overflow="spread", repeat_exponent=1.0))
    damped = allocate(p, tokens, Limits(budget_tokens=500, max_epochs=4, overflow="spread", repeat_exponent=0.5))
    np.testing.assert_array_equal(plain.allocated_L, one.allocated_L)
    assert damped.epochs_L[0] < plain.epochs_L[0]
    assert damped.allocated_L.sum() == pytest.approx(500)
    assert damped.allocated_L[1] / damped.allocated_L[2] == pytest.approx(3)  # below one epoch, in proportion
    with_deficit = allocate_capped(p, tokens, Limits(budget_tokens=500, max_epochs=2, overflow="leave", repeat_exponent=0.5))
    np.testing.assert_allclose(with_deficit.allocated_L, [200, 150, 50])  # a deficit left for rewrites is not spread


def test_allocation_of_strata_sums_to_leaves():
    allocation = allocate(
        np.array([[0.5, 0.3, 0.2]]), np.array([10, 100, 100]), Limits(budget_tokens=60, max_epochs=2, overflow="leave")
    )
    summed = allocation.sum_groups(np.array([0, 0, 2]), 3)
    np.testing.assert_allclose(summed.allocated_L, [38, 0, 12])
    np.testing.assert_allclose(summed.deficit_L, [10, 0, 0])
    np.testing.assert_array_equal(summed.tokens_L, [110, 0, 100])
    assert summed.deficit_share == pytest.approx(allocation.deficit_share)


def test_counts_over_16_million_leaves_have_the_size_of_the_windows_seen():
    """256 tasks return such counts to the driver; as three dense columns they would take 100 GB."""
    leaves = 64**4
    leaf_N, tokens_N, score_NS = make_corpus(1, count=8192, leaves=leaves)
    columns = leaf_N, tokens_N, score_NS
    weight_SL = np.zeros((2, 1))
    odds = Odds.from_bins(weight_SL, 1.0, bin_odds(weight_SL, 1.0, np.minimum(leaf_N, 0), tokens_N, score_NS))
    ratios = replace(odds, log_weight_SL=np.broadcast_to(np.zeros((2, 1)), (2, leaves)))  # without allocating memory
    target = Target(ratios=ratios, share_S=np.array([0.5, 0.25]), natural_share=0.25)
    tracemalloc.start()
    counts = LeafCounts.combine([LeafCounts.of_part(leaf_N, tokens_N), LeafCounts.of_part(leaf_N, tokens_N)])
    strata = StrataCounts.of_part(target, *columns)[1].add(StrataCounts.of_part(target, *columns)[1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6
    assert len(pickle.dumps((counts, strata))) < 1e6
    histogram = counts.histogram(leaves)
    assert len(histogram.tokens_L) == leaves
    assert histogram.tokens_L.sum() == 2 * tokens_N[leaf_N >= 0].sum()
    assert histogram.tokens_L[leaf_N[leaf_N >= 0]].min() > 0
