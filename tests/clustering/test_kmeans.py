"""k-means and nearest centroid, against loops in float64 and cases computed by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from pipeline.clustering import kmeans
from pipeline.clustering.assignment import assign_nearest, to_float32
from pipeline.clustering.kmeans import _balance_labels, fit_kmeans


def make_blobs(num: int, dim: int, centres: int, seed: int = 0, spread: float = 0.3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    middle_CD = rng.standard_normal((centres, dim))
    x_ND = middle_CD[rng.integers(centres, size=num)] + spread * rng.standard_normal((num, dim))
    return x_ND.astype(np.float32)


def make_keys(num: int) -> np.ndarray:
    return np.random.default_rng(99).permutation(num).astype(np.uint64)


def assign_by_brute_force(x_ND: np.ndarray, centroid_KD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and squared distances, computed in float64 row by row."""
    label, sq_dist = [], []
    for x_D in x_ND.astype(np.float64):
        to_K = [float(((x_D - c_D) ** 2).sum()) for c_D in centroid_KD.astype(np.float64)]
        label.append(to_K.index(min(to_K)))
        sq_dist.append(min(to_K))
    return np.array(label), np.array(sq_dist)


def are_equal(a: kmeans.KMeansFit, b: kmeans.KMeansFit) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("centroid_KD", "count_K", "sq_dist_K")) and (
        a.steps,
        a.moved_share,
        a.objective,
    ) == (b.steps, b.moved_share, b.objective)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(("num", "k"), [(1, 1), (1, 5), (1025, 7), (1500, 20)])
def test_nearest_centroid_equals_brute_force(num: int, k: int, dtype: type) -> None:
    x_ND, centroid_KD = make_blobs(num, 24, 9).astype(dtype), make_blobs(k, 24, 9, seed=1)
    label_N, sq_dist_N = assign_nearest(x_ND, centroid_KD)
    expected_N, expected_sq_N = assign_by_brute_force(x_ND, centroid_KD)
    assert (label_N.dtype, sq_dist_N.dtype) == (np.int32, np.float32)
    np.testing.assert_array_equal(label_N, expected_N)
    np.testing.assert_allclose(sq_dist_N, expected_sq_N, rtol=1e-5)


def test_nearest_of_equal_centroids_is_the_lowest_index() -> None:
    centroid_KD = make_blobs(40, 384, 40)[np.random.default_rng(0).integers(10, size=97)]
    label_N, _ = assign_nearest(make_blobs(3000, 384, 40, seed=2), centroid_KD)
    first = {centroid_D.tobytes(): k for k, centroid_D in reversed(list(enumerate(centroid_KD)))}
    assert all(first[centroid_KD[label].tobytes()] == label for label in label_N)


def test_a_row_on_a_centroid_has_distance_zero() -> None:
    centroid_KD = make_blobs(50, 384, 50) + np.float32(100)
    label_N, sq_dist_N = assign_nearest(centroid_KD, centroid_KD)
    np.testing.assert_array_equal(label_N, np.arange(50))
    assert not sq_dist_N.any()


def test_nearest_centroid_does_not_depend_on_other_rows() -> None:
    rng = np.random.default_rng(0)
    x_ND = rng.standard_normal((3000, 384), dtype=np.float32)
    # Pairs of nearly equal centroids, so that the last bits of sgemm would decide.
    centroid_KD = np.repeat(rng.standard_normal((30, 384), dtype=np.float32), 2, axis=0)
    centroid_KD[1::2] += np.float32(1e-7) * rng.standard_normal((30, 384), dtype=np.float32)
    whole = assign_nearest(x_ND, centroid_KD)
    order_N = rng.permutation(3000)
    shuffled = assign_nearest(x_ND[order_N], centroid_KD)
    alone = [assign_nearest(x_ND[i : i + 1], centroid_KD) for i in range(200)]
    for column in (0, 1):
        np.testing.assert_array_equal(shuffled[column], whole[column][order_N])
        np.testing.assert_array_equal(np.concatenate([one[column] for one in alone]), whole[column][:200])


def test_nearest_with_another_width_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"shape \(N, 3\)"):
        assign_nearest(np.zeros((2, 4), np.float32), np.zeros((2, 3), np.float32))


def test_to_float32_is_exact_for_every_finite_float16() -> None:
    half_N = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    half_N = half_N[np.isfinite(half_N)]
    wide_N = to_float32(half_N)
    np.testing.assert_array_equal(wide_N, half_N.astype(np.float32))
    np.testing.assert_array_equal(np.signbit(wide_N), np.signbit(half_N))  # -0 too


def test_fit_of_six_points_equals_the_result_by_hand() -> None:
    # Two groups on a line: means 1 and 11, each with squared distances 1 + 0 + 1.
    x_ND = np.array([[0], [1], [2], [10], [11], [12]], np.float32)
    fit = fit_kmeans(x_ND, k=2, key_N=make_keys(6), seed=0)
    order_K = np.argsort(fit.centroid_KD[:, 0])
    np.testing.assert_array_equal(fit.centroid_KD[order_K, 0], [1, 11])
    np.testing.assert_array_equal(fit.count_K, [3, 3])
    np.testing.assert_allclose(fit.sq_dist_K, [2 / 3, 2 / 3])
    assert fit.objective == 4.0


def test_fit_with_one_centroid_is_the_mean() -> None:
    x_ND = make_blobs(2000, 8, 3)
    fit = fit_kmeans(x_ND, k=1, key_N=make_keys(2000), seed=0)
    np.testing.assert_allclose(fit.centroid_KD[0], x_ND.astype(np.float64).mean(axis=0), atol=1e-6)
    assert fit.moved_share == 0


def test_fit_reaches_the_objective_of_scikit_learn() -> None:
    x_ND = make_blobs(6000, 32, 200, spread=0.8)
    ours = [fit_kmeans(x_ND, k=64, key_N=make_keys(6000), seed=seed).objective for seed in range(3)]
    reference = [KMeans(64, n_init=1, random_state=seed).fit(x_ND).inertia_ for seed in range(3)]
    assert np.median(ours) <= 1.01 * np.median(reference)


def test_fit_finds_planted_groups_of_unequal_size() -> None:
    rng = np.random.default_rng(0)
    middle_CD = 20 * np.eye(8, dtype=np.float32)
    group_N = np.repeat(np.arange(8), [4000, 20, 20, 500, 20, 20, 20, 400])
    x_ND = middle_CD[group_N] + rng.standard_normal((5000, 8), dtype=np.float32)
    fit = fit_kmeans(x_ND, k=8, key_N=make_keys(5000), seed=0, steps=0)
    assert sorted(fit.count_K) == sorted(np.bincount(group_N))


def test_fit_reports_counts_and_distances_of_the_nearest_assignment() -> None:
    x_ND = make_blobs(5000, 16, 40)
    fit = fit_kmeans(x_ND, k=20, key_N=make_keys(5000), seed=3)
    label_N, sq_dist_N = assign_by_brute_force(x_ND, fit.centroid_KD)
    np.testing.assert_array_equal(fit.count_K, np.bincount(label_N, minlength=20))
    np.testing.assert_allclose(fit.sq_dist_K * fit.count_K, np.bincount(label_N, weights=sq_dist_N), rtol=1e-5)
    assert fit.objective == pytest.approx(sq_dist_N.sum(), rel=1e-6)
    assert fit.count_K.max() > 1.5 * 5000 / 20  # the sizes are not balanced by force
    assert 0 < fit.moved_share < 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_fit_is_the_same_for_any_threads_and_order(dtype: type) -> None:
    x_ND, key_N = make_blobs(6000, 40, 30).astype(dtype), make_keys(6000)
    fits = [fit_kmeans(x_ND, k=24, key_N=key_N, seed=1, threads=threads) for threads in (1, 2, 3)]
    order_N = np.random.default_rng(5).permutation(6000)
    fits.append(fit_kmeans(x_ND[order_N], k=24, key_N=key_N[order_N], seed=1, threads=2))
    assert all(are_equal(fits[0], fit) for fit in fits[1:])
    assert not are_equal(fits[0], fit_kmeans(x_ND, k=24, key_N=key_N, seed=2))


def test_fit_of_float16_equals_the_fit_of_float32() -> None:
    x_ND = make_blobs(3000, 20, 30).astype(np.float16)
    fits = [fit_kmeans(x, k=10, key_N=make_keys(3000), seed=0) for x in (x_ND, x_ND.astype(np.float32))]
    assert are_equal(*fits)


@settings(max_examples=25)
@given(
    num=st.integers(1, 300),
    distinct=st.integers(1, 40),
    k=st.integers(1, 45),
    steps=st.integers(0, 25),
    balance=st.floats(1.01, 4),
    seed=st.integers(0, 5),
)
def test_fit_leaves_no_centroid_empty(num: int, distinct: int, k: int, steps: int, balance: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x_ND = rng.standard_normal((distinct, 5), dtype=np.float32)[rng.integers(distinct, size=num)]
    present = len(np.unique(x_ND, axis=0))
    fit = fit_kmeans(x_ND, k=k, key_N=make_keys(num), seed=seed, steps=steps, balance=balance)
    assert len(fit.centroid_KD) == min(k, present)
    assert fit.count_K.min() > 0
    assert fit.count_K.sum() == num
    if k > present:
        assert fit.objective < 1e-6
    assert np.isfinite(fit.centroid_KD).all()


def test_fit_with_one_repeated_row_leaves_no_centroid_empty() -> None:
    x_ND = np.zeros((5000, 12), np.float32)
    x_ND[:9] = np.eye(12, dtype=np.float32)[:9]
    x_ND[9:12] = -0.0  # the same point as 0
    fit = fit_kmeans(x_ND, k=8, key_N=make_keys(5000), seed=0)
    assert len(fit.centroid_KD) == 8
    assert fit.count_K.min() > 0


@settings(max_examples=8)
@given(seed=st.integers(0, 1000), k=st.integers(2, 30), dim=st.integers(1, 20))
def test_objective_never_rises_between_full_steps(seed: int, k: int, dim: int) -> None:
    x_ND = make_blobs(600, dim, 25, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kmeans, "_CLOSING_GAIN", 0.0)
        objective = []
        for limit in range(8):
            patch.setattr(kmeans, "_CLOSING_STEPS", limit)
            objective.append(fit_kmeans(x_ND, k=k, key_N=make_keys(600), seed=seed).objective)
    assert all(after <= before * (1 + 1e-6) for before, after in itertools.pairwise(objective))


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 7), min_size=1, max_size=200),
    st.floats(1.01, 4),
)
def test_balanced_labels_equal_row_by_row_reassignment(label: list[int], balance: float) -> None:
    limit = int(np.ceil(balance * len(label) / 8))
    count = [label.count(k) for k in range(8)]
    excess = sum(max(c - limit, 0) for c in count)
    count = [min(c, limit) for c in count]
    for _ in range(excess):
        count[count.index(min(count))] += 1
    balanced_M = _balance_labels(np.array(label), 8, balance)
    np.testing.assert_array_equal(np.bincount(balanced_M, minlength=8), count)
    assert np.count_nonzero(balanced_M != label) == excess
    for k in range(8):  # the first rows of a cluster keep their label
        kept = [i for i, own in enumerate(label) if own == k][:limit]
        assert all(balanced_M[kept] == k)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k, threads >= 1"),
        ({"balance": 1.0}, "balance > 1"),
        ({"balance": float("nan")}, "balance > 1"),
        ({"steps": -1}, "steps >= 0"),
        ({"key_N": make_keys(4)}, "their keys"),
        ({"x_ND": np.zeros((0, 2), np.float32), "key_N": make_keys(0)}, "N > 0"),
        ({"x_ND": np.array([[1, np.nan]] * 5, np.float32)}, "5 of 5 rows are not finite"),
        ({"x_ND": np.array([[1, np.nan]] * 5, np.float16)}, "5 of 5 rows are not finite"),
        ({"x_ND": np.array([[1, np.inf]] * 5, np.float16)}, "5 of 5 rows are not finite"),
    ],
)
def test_fit_rejects_invalid_arguments(change: dict, message: str) -> None:
    arguments = {"x_ND": np.ones((5, 2), np.float32), "k": 2, "key_N": make_keys(5), "seed": 0}
    with pytest.raises(ValueError, match=message):
        fit_kmeans(**(arguments | change))
