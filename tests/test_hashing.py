import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.hashing import keyed_hash, keyed_uniform, window_keys


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


def test_copies_of_an_array_equal_copies_one_by_one() -> None:
    key_N = np.arange(50, dtype=np.uint64)
    together = keyed_hash(key_N, seed=1, purpose="x", copy=np.arange(50))
    apart = [keyed_hash(key_N[i : i + 1], seed=1, purpose="x", copy=i)[0] for i in range(50)]
    assert together.tolist() == apart


@pytest.mark.parametrize(
    "keys", [np.arange(100_000), np.arange(100_000) << 40, np.arange(100_000) * 3], ids=["low", "high", "even"]
)
def test_uniforms_of_regular_keys_are_uniform_and_open(keys: np.ndarray) -> None:
    u_N = keyed_uniform(keys.astype(np.uint64), seed=0, purpose="test")
    assert u_N.min() > 0
    assert u_N.max() < 1
    assert stats.kstest(u_N, "uniform").pvalue > 1e-4


def test_purposes_seeds_and_copies_are_independent() -> None:
    key_N = np.arange(100_000, dtype=np.uint64)
    streams = [
        keyed_uniform(key_N, seed=seed, purpose=purpose, copy=copy)
        for seed, purpose, copy in [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1), (0, "a", 2)]
    ]
    correlation = np.corrcoef(streams)
    assert np.abs(correlation - np.eye(len(streams))).max() < 0.02


def test_window_keys_tell_documents_and_windows_apart() -> None:
    keys = window_keys(["a", "a", "a1", "b"], [1, 11, 1, 1])
    assert len(set(keys.tolist())) == 4
    assert keys.tolist() == window_keys(["a", "a", "a1", "b"], [1, 11, 1, 1]).tolist()
