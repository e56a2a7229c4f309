import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.hashing import find_lowest, find_lowest_by_group, keyed_hash, keyed_uniform, merge_lowest, window_keys


def fmix64(x: int) -> int:
    """MurmurHash3's finaliser in plain integers."""
    mask = 2**64 - 1
    x = ((x ^ (x >> 33)) * 0xFF51AFD7ED558CCD) & mask
    x = ((x ^ (x >> 33)) * 0xC4CEB9FE1A85EC53) & mask
    return x ^ (x >> 33)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1), st.integers(0, 2**31), st.text(max_size=8), st.integers(0, 1000))
def test_keyed_hash_equals_plain_integers(keys: list[int], seed: int, purpose: str, copy: int) -> None:
    import xxhash

    salt = xxhash.xxh3_64_intdigest(f"{seed}\0{purpose}".encode())
    golden = copy * 0x9E3779B97F4A7C15
    expected = [fmix64((fmix64(key ^ salt) + golden) % 2**64) for key in keys]
    actual = keyed_hash(np.array(keys, np.uint64), seed=seed, purpose=purpose, copy=copy)
    assert actual.tolist() == expected


def test_keyed_hash_with_an_array_of_copies_equals_one_call_per_copy() -> None:
    key_N = np.arange(50, dtype=np.uint64)
    together = keyed_hash(key_N, seed=1, purpose="x", copy=np.arange(50))
    apart = [keyed_hash(key_N[i : i + 1], seed=1, purpose="x", copy=i)[0] for i in range(50)]
    assert together.tolist() == apart


@pytest.mark.parametrize(
    "keys", [np.arange(100_000), np.arange(100_000) << 40, np.arange(100_000) * 3], ids=["low", "high", "even"]
)
def test_uniforms_of_regular_keys_are_uniform_in_the_open_interval(keys: np.ndarray) -> None:
    u_N = keyed_uniform(keys.astype(np.uint64), seed=0, purpose="test")
    assert u_N.min() > 0
    assert u_N.max() < 1
    assert stats.kstest(u_N, "uniform").pvalue > 1e-4


def test_uniforms_of_different_purposes_seeds_and_copies_are_uncorrelated() -> None:
    key_N = np.arange(100_000, dtype=np.uint64)
    streams = [
        keyed_uniform(key_N, seed=seed, purpose=purpose, copy=copy)
        for seed, purpose, copy in [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1), (0, "a", 2)]
    ]
    correlation = np.corrcoef(streams)
    assert np.abs(correlation - np.eye(len(streams))).max() < 0.02


def test_window_keys_differ_by_document_and_window() -> None:
    keys = window_keys(["a", "a", "a1", "b"], [1, 11, 1, 1])
    assert len(set(keys.tolist())) == 4
    assert keys.tolist() == window_keys(["a", "a", "a1", "b"], [1, 11, 1, 1]).tolist()


HASHES = st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 5)), max_size=30)  # (group, hash), with ties


@given(HASHES, st.integers(0, 6))
def test_lowest_rows_of_each_group_equal_a_sort(rows: list[tuple[int, int]], count: int) -> None:
    group_N, hash_N = np.array(rows, np.int64).reshape(-1, 2).T
    order = sorted(range(len(rows)), key=lambda row: (rows[row][1], row))
    assert find_lowest(hash_N, count).tolist() == order[:count]
    expected = [row for group in range(4) for row in [r for r in order if rows[r][0] == group][:count]]
    assert find_lowest_by_group(group_N, hash_N, count).tolist() == expected


@given(HASHES, st.integers(0, 6), st.randoms(use_true_random=False))
def test_merged_lowest_tuples_do_not_depend_on_the_order(rows: list[tuple[int, int]], count: int, order) -> None:
    tuples = [(group, (value, number)) for number, (group, value) in enumerate(rows)]
    whole = {group: sorted(value for g, value in tuples if g == group)[:count] for group, _ in tuples}
    order.shuffle(tuples)
    merged: dict[int, list[tuple[int, int]]] = {}
    for group, value in tuples:
        merged = merge_lowest(merged, {group: [value]}, count)
    assert merged == whole
