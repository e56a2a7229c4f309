"""Keyed hashes in place of random number generators.

Every random choice is `hash(seed, purpose, key, copy)`, so it does not depend on the order of work or the number of workers.
`key` is the 64-bit identity of a window. The mixer is the finaliser of MurmurHash3 (fmix64), applied twice: each input bit
flips each output bit with probability near one half.

Shapes: N keys.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipeline.arrays import F64, I64, Ints

Group = TypeVar("Group")
Hashed = TypeVar("Hashed", bound=tuple[Any, ...])

_MIX_1 = np.uint64(0xFF51AFD7ED558CCD)
_MIX_2 = np.uint64(0xC4CEB9FE1A85EC53)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(33)


def window_keys(doc_ids: Sequence[str], windows: Sequence[int]) -> NDArray[np.uint64]:
    """(N,) 64-bit identities of windows: xxh3 of the document's id and the window's number in it."""
    return np.fromiter(
        (xxhash.xxh3_64_intdigest(f"{doc_id}\0{window}".encode()) for doc_id, window in zip(doc_ids, windows, strict=True)),
        dtype=np.uint64,
        count=len(doc_ids),
    )


def _fmix(x_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x_N = (x_N ^ (x_N >> _SHIFT)) * _MIX_1
    x_N = (x_N ^ (x_N >> _SHIFT)) * _MIX_2
    return x_N ^ (x_N >> _SHIFT)


def keyed_hash(key_N: NDArray[np.uint64], *, seed: int, purpose: str, copy: int | NDArray[np.integer] = 0) -> NDArray[np.uint64]:
    """(N,) 64-bit hashes; each `seed`, `purpose` and `copy` gives an independent stream."""
    salt = np.uint64(xxhash.xxh3_64_intdigest(f"{seed}\0{purpose}".encode()))
    copy_N = np.asarray(copy).astype(np.uint64) * _GOLDEN
    return _fmix(_fmix(np.asarray(key_N, dtype=np.uint64) ^ salt) + copy_N)


def keyed_uniform(key_N: NDArray[np.uint64], *, seed: int, purpose: str, copy: int | NDArray[np.integer] = 0) -> F64:
    """(N,) uniform numbers in the open interval (0, 1): never 0, so their logarithm is finite."""
    bits_N = keyed_hash(key_N, seed=seed, purpose=purpose, copy=copy) >> np.uint64(11)
    return (bits_N.astype(np.float64) + 0.5) * 2.0**-53


def document_uniform(identifier: str, *, seed: int, purpose: str) -> float:
    """Like `keyed_uniform`, but keyed by a document's id; one number."""
    key = np.array([xxhash.xxh3_64_intdigest(identifier.encode())], np.uint64)
    return float(keyed_uniform(key, seed=seed, purpose=purpose)[0])


def find_lowest(hash_N: NDArray[Any], count: int) -> I64:
    """The rows with the `count` lowest hashes, or all rows if there are fewer; lowest hash first, ties in the order of the rows."""
    return np.argsort(hash_N, kind="stable")[:count]


def find_lowest_by_group(group_N: Ints, hash_N: NDArray[Any], count: int) -> I64:
    """As `find_lowest`, within each group: ordered by group, then by hash. Rows of a group below 0 are skipped."""
    rows = np.flatnonzero(np.asarray(group_N) >= 0)
    rows = rows[np.lexsort((hash_N[rows], group_N[rows]))]
    first = np.searchsorted(group_N[rows], group_N[rows])  # position of the first row of the row's group
    return np.asarray(rows[np.arange(len(rows)) - first < count])


def merge_lowest(a: Mapping[Group, list[Hashed]], b: Mapping[Group, list[Hashed]], count: int) -> dict[Group, list[Hashed]]:
    """Merge two results of lowest rows: the `count` lowest tuples of each group, in order. A tuple starts with its hash.

    Associative and commutative, so that it can combine the results of a fold.
    """
    return {group: sorted([*a.get(group, ()), *b.get(group, ())])[:count] for group in a.keys() | b.keys()}
