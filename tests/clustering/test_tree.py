"""The tree, against a descent written as a loop and trees numbered by hand."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clustering.kmeans import KMeansFit, fit_kmeans
from pipeline.clustering.tree import Tree, count_children
from pipeline.tables import cast, tree_schema
from tests.support.tree_oracle import fit_tree

SETTINGS = {"fit_windows": 5000, "steps": 5, "balance": 1.5, "min_windows": 8, "seed": 0}


def make_fit(count: list[int], dim: int = 3, seed: int = 0) -> KMeansFit:
    rng = np.random.default_rng(seed)
    centroid_KD = rng.standard_normal((len(count), dim), dtype=np.float32)
    return KMeansFit(centroid_KD, np.array(count), rng.random(len(count)), 7, 0.25, 1.0)


def make_rows(num: int, dim: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x_ND = rng.standard_normal((30, dim))[rng.integers(30, size=num)] + 0.5 * rng.standard_normal((num, dim))
    return x_ND.astype(np.float32)


def make_keys(num: int) -> np.ndarray:
    return np.arange(num, dtype=np.uint64)


def make_random_tree(seed: int, dim: int = 3) -> Tree:
    """Return an uneven tree: each node of the deepest level gets 0 or 2 to 5 children, up to three times."""
    rng = np.random.default_rng(seed)
    tree = Tree.root_only(1000.0, dim)
    for level in range(int(rng.integers(4))):
        nodes = [int(node) for node in np.flatnonzero(tree.level_V == level) if level == 0 or rng.random() < 0.6]
        tree = tree.grow({v: make_fit(list(rng.integers(1, 50, size=rng.integers(2, 6))), dim, seed + v) for v in nodes})
    return tree


def descend_by_loop(tree: Tree, x_D: np.ndarray) -> int:
    """Return the leaf node that a row reaches, computed from the parents in float64."""
    node = 0
    while children := [v for v in range(tree.num_nodes) if tree.parent_V[v] == node]:
        sq_dist = [((x_D.astype(np.float64) - tree.centroid_VD[v].astype(np.float64)) ** 2).sum() for v in children]
        node = children[int(np.argmin(sq_dist))]
    return node


def test_a_tree_with_only_a_root_is_one_leaf() -> None:
    tree = Tree.root_only(12.0, 4)
    assert (tree.num_nodes, tree.num_leaves, tree.depth, tree.dim) == (1, 1, 0, 4)
    assert list(tree.children(0)) == []
    leaf_N, sq_dist_N = tree.descend(np.ones((3, 4), np.float32))
    np.testing.assert_array_equal(leaf_N, [0, 0, 0])
    np.testing.assert_array_equal(sq_dist_N, [4, 4, 4])


def test_grow_numbers_nodes_by_breadth_and_leaves_by_depth() -> None:
    #        0
    #   1    2    3        sizes of 100: 50, 30, 20
    #  4 5       6 7 8     halves of 50; 5, 5 and 10
    tree = Tree.root_only(100.0, 3).grow({0: make_fit([5, 3, 2])}).grow({3: make_fit([1, 1, 2]), 1: make_fit([6, 6])})
    np.testing.assert_array_equal(tree.parent_V, [-1, 0, 0, 0, 1, 1, 3, 3, 3])
    np.testing.assert_array_equal(tree.level_V, [0, 1, 1, 1, 2, 2, 2, 2, 2])
    np.testing.assert_array_equal(tree.first_leaf_V, [0, 0, 2, 3, 0, 1, 3, 4, 5])
    np.testing.assert_array_equal(tree.num_leaves_V, [6, 2, 1, 3, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(tree.count_V, [0, 5, 3, 2, 6, 6, 1, 1, 2])
    np.testing.assert_allclose(tree.size_V, [100, 50, 30, 20, 25, 25, 5, 5, 10])
    np.testing.assert_array_equal(tree.fit_windows_V, [10, 12, 0, 4, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(tree.fit_steps_V, [7, 7, 0, 7, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(tree.fit_moved_V, [0.25, 0.25, 0, 0.25, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(tree.leaf_nodes, [4, 5, 2, 6, 7, 8])
    np.testing.assert_array_equal(tree.ancestor_at(0), [0] * 6)
    np.testing.assert_array_equal(tree.ancestor_at(1), [1, 1, 2, 3, 3, 3])
    np.testing.assert_array_equal(tree.ancestor_at(2), tree.leaf_nodes)
    assert [list(tree.children(node)) for node in (0, 1, 2, 3, 8)] == [[1, 2, 3], [4, 5], [], [6, 7, 8], []]


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_leaves_below_a_node_are_a_range_that_its_children_partition(seed: int) -> None:
    tree = make_random_tree(seed)
    assert sorted(tree.first_leaf_V[tree.leaf_nodes]) == list(range(tree.num_leaves))
    for node in range(tree.num_nodes):
        children = tree.children(node)
        assert all(tree.parent_V[child] == node for child in children)
        if not children:
            assert tree.num_leaves_V[node] == 1
            continue
        ends = [tree.first_leaf_V[child] + tree.num_leaves_V[child] for child in children]
        assert tree.first_leaf_V[children[0]] == tree.first_leaf_V[node]
        assert [tree.first_leaf_V[child] for child in children[1:]] == ends[:-1]
        assert ends[-1] == tree.first_leaf_V[node] + tree.num_leaves_V[node]
        assert tree.size_V[children.start : children.stop].sum() == pytest.approx(tree.size_V[node])


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_a_tree_is_unchanged_after_a_table_round_trip(seed: int) -> None:
    tree = make_random_tree(seed, dim=5)
    table = tree.to_table()
    assert table.schema == tree_schema(5)
    assert cast(table, tree_schema(5)).equals(table)
    sliced = pa.concat_tables([table.slice(0, 1), table.slice(1)])  # in several chunks, as files are read
    reread = Tree.from_table(sliced)
    for name in Tree.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(reread, name), getattr(tree, name))
        assert getattr(reread, name).dtype == getattr(tree, name).dtype


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from([np.float16, np.float32]))
def test_descent_equals_a_loop_over_levels(seed: int, dtype: type) -> None:
    tree, x_ND = make_random_tree(seed), np.random.default_rng(seed).standard_normal((40, 3)).astype(dtype)
    expected_N = np.array([descend_by_loop(tree, x_D) for x_D in x_ND])
    np.testing.assert_array_equal(tree.descend_nodes(x_ND), expected_N)
    leaf_N, sq_dist_N = tree.descend(x_ND)
    assert (leaf_N.dtype, sq_dist_N.dtype) == (np.int32, np.float32)
    np.testing.assert_array_equal(tree.leaf_nodes[leaf_N], expected_N)
    gap_ND = x_ND.astype(np.float64) - tree.centroid_VD[expected_N]
    np.testing.assert_allclose(sq_dist_N, (gap_ND**2).sum(axis=1), rtol=1e-5)


def test_descent_is_greedy_even_if_another_leaf_is_nearer() -> None:
    def fit(*x: float) -> KMeansFit:
        return KMeansFit(np.array(x, np.float32)[:, None], np.ones(len(x), np.int64), np.zeros(len(x)), 1, 0.0, 0.0)

    tree = Tree.root_only(1.0, 1).grow({0: fit(0, 10)}).grow({1: fit(-3, 0), 2: fit(6, 12)})
    leaf_N, sq_dist_N = tree.descend(np.array([[4.0]], np.float32))
    assert (leaf_N[0], sq_dist_N[0]) == (1, 16)  # the leaf at 6 is nearer, but below the other child


def test_descent_of_a_tie_goes_to_the_lowest_child() -> None:
    twins = KMeansFit(np.ones((5, 4), np.float32), np.ones(5, np.int64), np.zeros(5), 1, 0.0, 0.0)
    tree = Tree.root_only(1.0, 4).grow({0: twins})
    np.testing.assert_array_equal(tree.descend(make_rows(50, 4))[0], np.zeros(50))


def test_descent_does_not_depend_on_other_rows_or_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    x_ND = make_rows(5000, 48).astype(np.float16)
    tree = fit_tree(x_ND, make_keys(5000), branching=6, depth=3, **SETTINGS)
    whole = tree.descend(x_ND)
    order_N = np.random.default_rng(0).permutation(5000)
    shuffled = tree.descend(x_ND[order_N])
    monkeypatch.setattr("pipeline.clustering.tree._ROWS", 700)  # so that there are several blocks
    threaded = [tree.descend(x_ND, threads=threads) for threads in (1, 2, 3)]
    for column in (0, 1):
        np.testing.assert_array_equal(shuffled[column], whole[column][order_N])
        for other in threaded:
            np.testing.assert_array_equal(other[column], whole[column])


def test_descent_of_no_rows_is_empty() -> None:
    leaf_N, sq_dist_N = make_random_tree(3).descend(np.zeros((0, 3), np.float32))
    assert (len(leaf_N), len(sq_dist_N)) == (0, 0)


def test_descent_with_another_width_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"shape \(N, 3\)"):
        make_random_tree(0).descend(np.zeros((2, 4), np.float32))


@pytest.mark.parametrize(
    ("fits", "message"),
    [
        ({0: make_fit([1, 1])}, "node 0 is not on level 1; only nodes on the deepest level, 1"),
        ({9: make_fit([1, 1])}, "node 9 is not on level 1; only nodes on the deepest level, 1, can get children"),
        ({1: make_fit([5])}, "a node has two children or more, or none; the fit of node 1 has one centroid"),
        ({1: make_fit([5, 5], dim=4)}, r"vectors must have shape \(N, 3\) to fit the centroids, got \(2, 4\)"),
    ],
)
def test_grow_rejects_invalid_fits(fits: dict[int, KMeansFit], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tree.root_only(10.0, 3).grow({0: make_fit([1, 2])}).grow(fits)


@pytest.mark.parametrize(("size", "expected"), [(0, 0), (63, 0), (64, 2), (100, 3), (32 * 64, 64), (1e9, 64)])
def test_number_of_children_leaves_each_child_min_windows(size: float, expected: int) -> None:
    assert count_children(size, branching=64, min_windows=32) == expected


def test_tree_of_one_level_equals_flat_kmeans() -> None:
    x_ND = make_rows(3000, 16)
    tree = fit_tree(x_ND, make_keys(3000), branching=12, depth=1, **SETTINGS)
    flat = fit_kmeans(x_ND, k=12, key_N=make_keys(3000), seed=0, steps=5)
    np.testing.assert_array_equal(tree.centroid_VD[1:], flat.centroid_KD)
    np.testing.assert_array_equal(tree.count_V[1:], np.bincount(tree.descend(x_ND)[0]))


def test_tree_is_the_same_for_any_threads_and_order() -> None:
    x_ND, key_N = make_rows(4000, 24), make_keys(4000)
    order_N = np.random.default_rng(1).permutation(4000)
    trees = [fit_tree(x_ND, key_N, branching=6, depth=2, threads=threads, **SETTINGS) for threads in (1, 2, 3)]
    trees.append(fit_tree(x_ND[order_N], key_N[order_N], branching=6, depth=2, **SETTINGS))
    assert all(tree.to_table().equals(trees[0].to_table()) for tree in trees[1:])


def test_tree_sizes_equal_row_counts_when_all_rows_are_fitted() -> None:
    x_ND = make_rows(4000, 24)
    tree = fit_tree(x_ND, make_keys(4000), branching=6, depth=2, **SETTINGS)
    leaf_N, sq_dist_N = tree.descend(x_ND)
    np.testing.assert_array_equal(np.bincount(leaf_N, minlength=tree.num_leaves), tree.count_V[tree.leaf_nodes])
    np.testing.assert_allclose(tree.size_V[tree.leaf_nodes], tree.count_V[tree.leaf_nodes])
    shallow = fit_tree(x_ND, make_keys(4000), branching=6, depth=1, **SETTINGS)
    assert sq_dist_N.sum() < shallow.descend(x_ND)[1].sum()


def test_tree_stops_at_few_or_equal_rows() -> None:
    x_ND = np.repeat(np.eye(3, dtype=np.float32), 200, axis=0)
    tree = fit_tree(x_ND, make_keys(600), branching=4, depth=3, **SETTINGS)
    assert (tree.depth, tree.num_leaves) == (1, 3)  # three points, each a leaf that cannot be split
    assert fit_tree(x_ND[:10], make_keys(10), branching=4, depth=3, **SETTINGS).num_leaves == 1
