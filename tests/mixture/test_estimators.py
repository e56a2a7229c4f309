"""Histograms as folds, the estimators' checks, and the mixture of several specialists."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Weights
from pipeline.errors import InputError
from pipeline.mixture.estimators import ESTIMATORS, compute_claims
from pipeline.mixture.histograms import DocumentCounts, LeafCounts, LeafHistogram
from tests.support.trees import count_documents, make_two_level_tree

TREE = make_two_level_tree()
GENERALIST = LeafHistogram(windows_L=np.array([50, 25, 20, 0]), tokens_L=np.array([500, 300, 200, 0]))
ROW_LISTS = st.lists(st.tuples(st.sampled_from("abcde"), st.integers(-1, 3), st.integers(1, 9)), min_size=1, max_size=40)


def split_rows(rows, cuts, order):
    edges = sorted({0, len(rows), *(cut % (len(rows) + 1) for cut in cuts)})
    parts = [rows[a:b] for a, b in pairwise(edges)]
    order.shuffle(parts)
    return parts


@settings(max_examples=40, deadline=None)
@given(ROW_LISTS, st.lists(st.integers(0, 99), max_size=4), st.randoms(use_true_random=False))
def test_histograms_of_any_split_and_order_of_rows_equal_plain_counts(rows, cuts, order):
    def columns(part):
        return np.array([r[1] for r in part], dtype=np.int32), np.array([r[2] for r in part], dtype=np.int32)

    parts = split_rows(rows, cuts, order)
    half = len(parts) // 2
    halves = [LeafCounts.combine(LeafCounts.of_part(*columns(part)) for part in run) for run in (parts[:half], parts[half:])]
    histogram = halves[0].add(halves[1]).histogram(4)
    sample = DocumentCounts.combine([DocumentCounts.of_part([r[0] for r in part], *columns(part)) for part in parts])
    for leaf in range(4):
        assert histogram.windows_L[leaf] == sum(r[1] == leaf for r in rows)
        assert histogram.tokens_L[leaf] == sum(r[2] for r in rows if r[1] == leaf)
    assert histogram.invalid == sample.invalid == sum(r[1] < 0 for r in rows)
    np.testing.assert_array_equal(sample.histogram(4).tokens_L, histogram.tokens_L)
    np.testing.assert_array_equal(sample.histogram(4).windows_L, histogram.windows_L)
    entries = {(d, leaf) for d, leaf, _ in rows if leaf >= 0}
    assert len(sample.leaf_E) == len(entries)  # a document that spans parts is counted once
    assert sample.document_rows()[0] == len({d for d, _ in entries})
    whole = DocumentCounts.of_part([r[0] for r in rows], *columns(rows))
    for name in ("document_E", "leaf_E", "windows_E", "tokens_E"):
        np.testing.assert_array_equal(getattr(sample, name), getattr(whole, name))


@pytest.mark.parametrize("smoothing", ["auto", "none", 3.0])
def test_crisp_uses_the_configured_smoothing(smoothing):
    sample = count_documents([("a", 0, 10), ("a", 0, 10), ("b", 1, 10), ("b", 3, 10), ("c", 0, 10)])
    mixture = ESTIMATORS["crisp"].estimate(TREE, GENERALIST, {"x": sample}, Weights(smoothing=smoothing))["x"]
    assert mixture.p_L.sum() == pytest.approx(1)
    np.testing.assert_allclose(mixture.p_raw_L, [0.6, 0.2, 0, 0.2])
    assert mixture.without_text == pytest.approx(0.2)
    if smoothing == "none":
        np.testing.assert_allclose(mixture.p_L, [0.6, 0.2, 0.2, 0])
        assert mixture.backed_off == pytest.approx(0.2)
    if smoothing == 3.0:  # by hand: 5 windows at the root, 4 of them in the left child
        left = (4 + 3 * 0.8) / (5 + 3)
        np.testing.assert_allclose(mixture.p_L[:2], [left * (3 + 3 * 5 / 8) / 7, left * (1 + 3 * 3 / 8) / 7])
        np.testing.assert_array_equal(mixture.alpha_H, [3, 3])


def test_natural_estimator_returns_the_generalist_shares():
    mixture = ESTIMATORS["natural"].estimate(TREE, GENERALIST, {"x": count_documents([("a", 0, 10)])}, Weights())["x"]
    np.testing.assert_allclose(mixture.p_L, GENERALIST.p_L)


@pytest.mark.parametrize(
    ("generalist", "rows", "words"),
    [
        (GENERALIST, [("a", -1, 10)], "specialists.law: no window with tokens was assigned to a cluster (1 have no finite"),
        (GENERALIST, [("a", 3, 10)], "specialists.law: none of its 1 windows falls into a cluster that has generalist text"),
        (LeafCounts().histogram(4), [("a", 0, 10)], "generalist: no window with tokens"),
    ],
)
def test_estimate_without_usable_windows_names_the_corpus(generalist, rows, words):
    with pytest.raises(InputError) as error:
        ESTIMATORS["crisp"].estimate(TREE, generalist, {"law": count_documents(rows)}, Weights())
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_claims_of_two_specialists_sum_to_the_target():
    a_L, b_L, g_L = np.array([1.0, 0.0]), np.array([0.25, 0.75]), np.array([0.5, 0.5])
    names, claim_SL = compute_claims({"a": a_L, "b": b_L}, {"a": 3.0, "b": 1.0}, 0.2, g_L)
    assert names == ["a", "b", "natural"]
    np.testing.assert_allclose(claim_SL.sum(axis=0), 0.8 * (0.75 * a_L + 0.25 * b_L) + 0.2 * g_L)
    np.testing.assert_allclose(claim_SL[2], [0.1, 0.1])


def test_shuffled_estimator_permutes_the_shares_by_seed() -> None:
    samples = {"x": count_documents([("a", 0, 10), ("b", 1, 30), ("c", 0, 2)])}
    shares_by_seed = {
        seed: ESTIMATORS["shuffled"].estimate(TREE, GENERALIST, samples, Weights(), seed)["x"].p_L for seed in range(8)
    }
    for p_L in shares_by_seed.values():
        np.testing.assert_allclose(np.sort(p_L)[-2:], [12 / 42, 30 / 42])
    assert len({tuple(p_L) for p_L in shares_by_seed.values()}) > 1
