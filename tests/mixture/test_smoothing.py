"""Smoothing down the tree, against recursive loops over the formula, and against deleting each document."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from pipeline.mixture.histograms import LeafHistogram
from pipeline.mixture.smoothing import build_terms, fit_alpha, fit_alphas, smooth
from pipeline.mixture.tree_shape import find_leaf_nodes, find_paths, prune, slice_levels, sum_below_nodes
from tests.support.trees import (
    count_documents,
    list_leaves_below,
    make_random_generalist,
    make_random_sample,
    make_random_tree,
    make_two_level_tree,
)


def smooth_recursively(tree, text_L, n_L, alpha_H):
    """Walk down the tree, divide mass by the formula, and move the mass of children without text to their siblings."""
    total = lambda x_L, v: sum(x_L[leaf] for leaf in list_leaves_below(tree, v))  # noqa: E731
    p_L, moved = np.zeros(len(text_L)), 0.0

    def walk(u, mass):
        nonlocal moved
        children = [v for v in range(len(tree.parent_V)) if tree.parent_V[v] == u]
        if not children:
            p_L[tree.first_leaf_V[u]] += mass
            return
        alpha = alpha_H[tree.level_V[children[0]] - 1]
        g = [total(text_L, v) / total(text_L, u) for v in children]
        n, n_u = [total(n_L, v) for v in children], total(n_L, u)
        if np.isinf(alpha) or n_u + alpha == 0:
            share = g
        else:
            share = [(n_v + alpha * g_v) / (n_u + alpha) for n_v, g_v in zip(n, g, strict=True)]
        with_text = [s if g_v > 0 else 0.0 for s, g_v in zip(share, g, strict=True)]
        moved += mass * (sum(share) - sum(with_text))
        if sum(with_text) == 0:
            with_text = g
        for v, s in zip(children, with_text, strict=True):
            if s > 0:
                walk(v, mass * s / sum(with_text))

    walk(0, 1.0)
    return p_L, moved


seeds = st.integers(0, 10**6)
alphas = st.sampled_from([0.0, 0.01, 1.0, 7.5, 1e4, np.inf])


@settings(max_examples=60, deadline=None)
@given(seeds, st.lists(alphas, min_size=3, max_size=3), st.sampled_from([0.0, 0.3, 0.7]))
def test_smoothing_of_any_tree_equals_the_recursive_formula(seed, alpha_H, empty):
    rng = np.random.default_rng(seed)
    tree = make_random_tree(rng)
    levels = int(tree.level_V[-1])
    generalist, sample = make_random_generalist(rng, tree, empty), count_documents(make_random_sample(rng, tree))
    n_L = sample.histogram(len(generalist.tokens_L)).tokens_L * 0.1
    p_L, moved = smooth(tree, generalist.node_tokens(tree), sum_below_nodes(tree, n_L), np.array(alpha_H[:levels]))
    expected_L, expected_moved = smooth_recursively(tree, generalist.tokens_L, n_L, alpha_H)
    np.testing.assert_allclose(p_L, expected_L, atol=1e-12)
    assert moved == pytest.approx(expected_moved, abs=1e-12)
    assert p_L.sum() == pytest.approx(1.0, abs=1e-12)
    assert not p_L[generalist.tokens_L == 0].any()


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_smoothing_with_alpha_zero_and_infinity_gives_the_sample_and_the_generalist(seed):
    rng = np.random.default_rng(seed)
    tree = make_random_tree(rng)
    levels = int(tree.level_V[-1])
    generalist, sample = make_random_generalist(rng, tree), count_documents(make_random_sample(rng, tree))
    tokens_L = sample.histogram(len(generalist.tokens_L)).tokens_L
    text_V, n_V = generalist.node_tokens(tree), sum_below_nodes(tree, tokens_L * 0.1)
    np.testing.assert_allclose(smooth(tree, text_V, n_V, np.zeros(levels))[0], tokens_L / tokens_L.sum(), atol=1e-12)
    np.testing.assert_allclose(smooth(tree, text_V, n_V, np.full(levels, 1e13))[0], generalist.p_L, atol=1e-9)
    np.testing.assert_allclose(smooth(tree, text_V, n_V, np.full(levels, np.inf))[0], generalist.p_L, atol=1e-12)


def test_backoff_without_siblings_with_text_moves_mass_up():
    text_L, n_L = np.array([0, 0, 30, 10]), np.array([4.0, 4.0, 2.0, 0.0])  # most of the sample is in leaves without text
    p_L, moved = smooth(
        make_two_level_tree(),
        sum_below_nodes(make_two_level_tree(), text_L),
        sum_below_nodes(make_two_level_tree(), n_L),
        np.zeros(2),
    )
    np.testing.assert_allclose(p_L, [0, 0, 1, 0])
    assert moved == pytest.approx(0.8)


def test_backoff_to_siblings_outside_the_sample_follows_the_generalist_shares():
    text_L, n_L = np.array([0, 6, 30, 10]), np.array([8.0, 0.0, 1.0, 1.0])
    p_L, moved = smooth(
        make_two_level_tree(),
        sum_below_nodes(make_two_level_tree(), text_L),
        sum_below_nodes(make_two_level_tree(), n_L),
        np.zeros(2),
    )
    np.testing.assert_allclose(p_L, [0, 0.8, 0.1, 0.1])
    assert moved == pytest.approx(0.8)


def compute_likelihood_by_deletion(tree, text_L, rows, level, alpha):
    """Sum the log-likelihood of each document's windows at `level` under the counts of all other documents."""
    mean = sum(r[2] for r in rows) / len(rows)
    text = lambda v: sum(text_L[leaf] for leaf in list_leaves_below(tree, v))  # noqa: E731
    total = 0.0
    for document in sorted({r[0] for r in rows}):
        others = [r for r in rows if r[0] != document]
        for _, leaf, tokens in (r for r in rows if r[0] == document):
            for v in range(len(tree.parent_V)):
                if tree.level_V[v] != level or leaf not in list_leaves_below(tree, v) or not text(v):
                    continue
                u = tree.parent_V[v]
                texts = [w for w in range(len(tree.parent_V)) if tree.parent_V[w] == u and text(w)]
                count = {w: sum(t for _, x, t in others if x in list_leaves_below(tree, w)) / mean for w in texts}
                if sum(count.values()) == 0:
                    continue
                g = text(v) / text(u)
                p = g if np.isinf(alpha) else (count[v] + alpha * g) / (sum(count.values()) + alpha)
                total += tokens / mean * (np.log(p) if p > 0 else -np.inf)
    return total


@settings(max_examples=15, deadline=None)
@given(seeds, st.sampled_from([0.0, 0.3]))
def test_alpha_likelihood_equals_deleting_each_document(seed, empty):
    rng = np.random.default_rng(seed)
    tree = make_random_tree(rng)
    generalist, rows = make_random_generalist(rng, tree, empty), make_random_sample(rng, tree)
    sample, text_V = count_documents(rows), generalist.node_tokens(tree)
    path_HE, unit_E, tokens_E = find_paths(tree, sample.leaf_E), sample.document_rows()[1], sample.tokens_E.astype(float)
    for level in range(1, int(tree.level_V[-1]) + 1):
        node_E = path_HE[level - 1]
        keep = (node_E >= 0) & (text_V[node_E] > 0)
        terms = build_terms(
            tree, text_V, node_E[keep], unit_E[keep], tokens_E[keep], tokens_E[keep], sample.num_windows / sample.num_tokens
        )
        for alpha in (0.0, 0.3, 5.0, np.inf):
            expected = compute_likelihood_by_deletion(tree, generalist.tokens_L, rows, level, alpha)
            assert terms.log_likelihood(alpha) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(seeds)
def test_alphas_with_one_window_per_document_equal_leave_one_out(seed):
    rng = np.random.default_rng(seed)
    tree = make_two_level_tree()
    generalist = make_random_generalist(rng, tree)
    leaves = rng.choice(4, size=25, p=rng.dirichlet(np.ones(4)))
    found_H = fit_alphas(tree, generalist.node_tokens(tree), count_documents([(f"d{i}", leaf, 7) for i, leaf in enumerate(leaves)]))
    n_V, g_V = sum_below_nodes(tree, np.bincount(leaves, minlength=4)), generalist.node_tokens(tree)

    def compute_leave_one_out(alpha, level):
        total = 0.0
        for v in np.flatnonzero((tree.level_V == level) & (n_V > 0)):
            u = tree.parent_V[v]
            p = (n_V[v] - 1 + alpha * g_V[v] / g_V[u]) / (n_V[u] - 1 + alpha) if n_V[u] > 1 else 1.0
            total += n_V[v] * np.log(p) if p > 0 else -np.inf
        return total

    for level in (1, 2):
        grid = [compute_leave_one_out(a, level) for a in [1e-9, *np.exp(np.linspace(-8, 12, 400)), 1e12]]
        refined = minimize_scalar(
            lambda x, level=level: -compute_leave_one_out(np.exp(x), level), bounds=(-8, 12), method="bounded"
        )
        found = found_H[level - 1] if np.isfinite(found_H[level - 1]) else 1e12
        assert compute_leave_one_out(max(found, 1e-9), level) >= max(*grid, -refined.fun) - 1e-5


def test_alphas_by_document_are_larger_than_alphas_by_window():
    tree, generalist = make_two_level_tree(), LeafHistogram(windows_L=np.full(4, 50), tokens_L=np.full(4, 500))
    rows = [(f"d{d}", leaf, 10) for d, leaf in enumerate([0] * 7 + [1, 1, 2, 3, 3]) for _ in range(8)]
    by_document = fit_alphas(tree, generalist.node_tokens(tree), count_documents(rows))
    by_window = fit_alphas(tree, generalist.node_tokens(tree), count_documents([(f"w{i}", r[1], r[2]) for i, r in enumerate(rows)]))
    assert np.isfinite(by_window).all()
    assert (by_document > 2 * by_window).all()


def test_alpha_recovers_the_concentration_of_simulated_documents():
    rng = np.random.default_rng(1)
    leaves, alpha = 400, 50.0
    flat = SimpleNamespace(
        parent_V=np.array([-1] + [0] * leaves), level_V=np.array([0] + [1] * leaves),
        first_leaf_V=np.array([0, *range(leaves)]), num_leaves_V=np.array([leaves] + [1] * leaves),
    )  # fmt: skip
    generalist = LeafHistogram(windows_L=np.full(leaves, 10), tokens_L=np.full(leaves, 100))
    p = rng.dirichlet(np.full(leaves, alpha / leaves))
    rows = [(f"d{i}", leaf, 5) for i, leaf in enumerate(rng.choice(leaves, 1500, p=p))]
    assert 25 < fit_alphas(flat, generalist.node_tokens(flat), count_documents(rows))[0] < 100


@pytest.mark.parametrize(("leaves", "expected"), [([2], [1.0, 1.0]), ([2, 2, 2], [3.0, 3.0])])
def test_alphas_of_a_single_document_equal_its_number_of_windows(leaves, expected):
    tree, generalist = make_two_level_tree(), LeafHistogram(windows_L=np.full(4, 50), tokens_L=np.full(4, 500))
    np.testing.assert_allclose(
        fit_alphas(tree, generalist.node_tokens(tree), count_documents([("d", leaf, 10) for leaf in leaves])), expected
    )


def test_alphas_of_a_single_document_with_generalist_shares_are_infinite():
    tree, generalist = make_two_level_tree(), LeafHistogram(windows_L=np.full(4, 50), tokens_L=np.full(4, 500))
    alpha_H = fit_alphas(tree, generalist.node_tokens(tree), count_documents([("d", leaf, 10) for leaf in [0, 1, 2, 3]]))
    assert np.isinf(alpha_H).all()  # the shares equal the generalist's, so no window predicts another


def test_alphas_ignore_windows_in_clusters_without_text():
    tree, generalist = (
        make_two_level_tree(),
        LeafHistogram(windows_L=np.array([50, 50, 50, 0]), tokens_L=np.array([500, 500, 500, 0])),
    )
    rows = [(f"d{i}", leaf, 10) for i, leaf in enumerate([0] * 30 + [1] * 6 + [2] * 5)]
    without_text = [(f"e{i}", 3, 10) for i in range(7)]
    text_V = generalist.node_tokens(tree)
    alpha, with_lost = (
        fit_alphas(tree, text_V, count_documents(rows))[1],
        fit_alphas(tree, text_V, count_documents(rows + without_text))[1],
    )
    assert np.isfinite(alpha)
    assert with_lost == pytest.approx(alpha, rel=1e-3)


def test_alpha_without_evidence_is_infinite():
    tree, generalist = make_two_level_tree(), LeafHistogram(windows_L=np.full(4, 50), tokens_L=np.full(4, 500))
    alpha_H = fit_alphas(tree, generalist.node_tokens(tree), count_documents([("a", 0, 10), ("b", 2, 10)]))
    assert np.isinf(alpha_H[1])
    none = np.empty(0)
    assert np.isinf(fit_alpha(build_terms(tree, generalist.node_tokens(tree), *(none.astype(int),) * 2, none, none, 1.0), 2))


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_prune_merges_only_untouched_leaves_and_keeps_the_smoothed_shares(seed):
    rng = np.random.default_rng(seed)
    tree = make_random_tree(rng, depth=4)
    generalist, sample = (
        make_random_generalist(rng, tree, 0.2),
        count_documents(make_random_sample(rng, tree, documents=3, max_windows=2)),
    )
    pruned = prune(tree, np.unique(sample.leaf_E))
    num_atoms = int(pruned.num_leaves_V[0])
    assert set(pruned.atom_L) == set(range(num_atoms))
    assert (np.diff(pruned.level_V) >= 0).all()
    assert sorted(find_leaf_nodes(pruned)) == [v for v in range(len(pruned.parent_V)) if v not in set(pruned.parent_V)]
    for v in range(len(pruned.parent_V)):  # the leaves of a node are a range: the adjacent ranges of its children
        children = np.flatnonzero(pruned.parent_V == v)
        covered = sorted(leaf for child in children for leaf in list_leaves_below(pruned, child))
        assert covered == list(list_leaves_below(pruned, v)) or not len(children)
    tokens_A, n_A = np.zeros(num_atoms, dtype=int), np.zeros(num_atoms)
    n_L = sample.histogram(len(generalist.tokens_L)).tokens_L * 0.1
    np.add.at(tokens_A, pruned.atom_L, generalist.tokens_L)
    np.add.at(n_A, pruned.atom_L, n_L)
    alpha_H = np.array([0.5, 2.0, 0.0, 8.0])
    whole, _ = smooth(tree, generalist.node_tokens(tree), sum_below_nodes(tree, n_L), alpha_H[: tree.level_V[-1]])
    merged, _ = smooth(pruned, sum_below_nodes(pruned, tokens_A), sum_below_nodes(pruned, n_A), alpha_H[: pruned.level_V[-1]])
    expanded = (merged / np.maximum(tokens_A, 1))[pruned.atom_L] * generalist.tokens_L
    np.testing.assert_allclose(expanded, whole, atol=1e-12)


def test_level_slices_contain_every_node_once():
    assert slice_levels(make_two_level_tree()) == [slice(0, 1), slice(1, 3), slice(3, 7)]
