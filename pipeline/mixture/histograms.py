"""Counts of windows and tokens in each cluster, as states of folds over parts: zero, one part, combine.

Shapes: L clusters (leaves of the tree), V nodes, N windows of a part, M windows with a leaf (or entries to merge), D documents, E
entries (one per leaf, or one per document and leaf).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays import F64, I64, Ints
from pipeline.hashing import window_keys
from pipeline.mixture.sums import sum_by_group
from pipeline.mixture.tree_shape import TreeShape, sum_below_nodes


@dataclass(frozen=True, kw_only=True)
class LeafCounts:
    """Windows and tokens of some parts, by leaf. Sparse: one entry per leaf that occurs, however large the tree.

    Leaves are unique and ascending.
    """

    leaf_E: I64 = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    windows_E: I64 = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    tokens_E: I64 = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    invalid: int = 0  # windows without a leaf

    @classmethod
    def of_part(cls, leaf_N: Ints, tokens_N: Ints) -> Self:
        """The counts of one part; windows of leaf -1 (no finite embedding) are counted in `invalid` only."""
        leaf_N, tokens_N, invalid = _valid(leaf_N, tokens_N)
        return cls._merged(leaf_N, np.ones_like(leaf_N), tokens_N, invalid)

    def add(self, other: Self) -> Self:
        """This and another state, merged."""
        return self.combine([self, other])

    @classmethod
    def combine(cls, parts: Iterable[Self]) -> Self:
        """Any number of states merged, in any order and grouping; zero for none."""
        parts = [cls(), *parts]
        return cls._merged(
            np.concatenate([part.leaf_E for part in parts]),
            np.concatenate([part.windows_E for part in parts]),
            np.concatenate([part.tokens_E for part in parts]),
            sum(part.invalid for part in parts),
        )

    @classmethod
    def _merged(cls, leaf_M: I64, windows_M: Any, tokens_M: Any, invalid: int) -> Self:
        leaf_E, row_M = np.unique(leaf_M, return_inverse=True)
        windows_E, tokens_E = (sum_by_group(row_M, x_M, len(leaf_E)) for x_M in (windows_M, tokens_M))
        return cls(leaf_E=leaf_E, windows_E=windows_E, tokens_E=tokens_E, invalid=invalid)

    def histogram(self, num_leaves: int) -> "LeafHistogram":
        """The dense counts of all leaves."""
        return _dense(self.leaf_E, self.windows_E, self.tokens_E, num_leaves, self.invalid)


@dataclass(frozen=True, kw_only=True)
class LeafHistogram:
    """Windows and tokens of a corpus in each leaf. Dense, two int64 per leaf, so only the driver holds one."""

    windows_L: I64
    tokens_L: I64
    invalid: int = 0  # windows without a leaf

    @property
    def p_L(self) -> F64:
        """(L,) share of the corpus's tokens in each leaf: G, if it is the generalist."""
        return np.asarray(self.tokens_L / self.tokens_L.sum(), dtype=np.float64)

    def node_tokens(self, tree: TreeShape) -> I64:
        """(V,) tokens below each node."""
        return np.asarray(sum_below_nodes(tree, self.tokens_L), dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class DocumentCounts:
    """Windows and tokens of a specialist sample, by document and leaf.

    Sparse, so its size depends on the sample and not on the tree. Entries are unique and sorted by (document, leaf). Documents are
    identified by the 64-bit hash of their id, so a document that spans two parts is still one document.
    """

    document_E: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    leaf_E: I64 = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    windows_E: I64 = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    tokens_E: I64 = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    invalid: int = 0  # windows without a leaf

    @classmethod
    def of_part(cls, doc_id_N: Sequence[str], leaf_N: Ints, tokens_N: Ints) -> Self:
        """The counts of one part; windows of leaf -1 (no finite embedding) are counted in `invalid` only."""
        id_D, row_N = np.unique(np.asarray(doc_id_N, dtype=object), return_inverse=True)
        key_D = window_keys(id_D.tolist(), [0] * len(id_D))  # a document's hash is that of its window 0
        document_N = key_D[row_N][np.asarray(leaf_N) >= 0]
        leaf_N, tokens_N, invalid = _valid(leaf_N, tokens_N)
        return cls._merged(document_N, leaf_N, np.ones_like(leaf_N), tokens_N, invalid)

    @classmethod
    def combine(cls, parts: Iterable[Self]) -> Self:
        """Any number of states merged, in any order and grouping; zero for none."""
        parts = [cls(), *parts]
        return cls._merged(
            np.concatenate([part.document_E for part in parts]),
            np.concatenate([part.leaf_E for part in parts]),
            np.concatenate([part.windows_E for part in parts]),
            np.concatenate([part.tokens_E for part in parts]),
            sum(part.invalid for part in parts),
        )

    @classmethod
    def _merged(
        cls,
        document_N: NDArray[np.uint64],
        leaf_N: I64,
        windows_N: I64,
        tokens_N: I64,
        invalid: int,
    ) -> Self:
        order_N = np.lexsort((leaf_N, document_N))
        document_N, leaf_N = document_N[order_N], leaf_N[order_N]
        first_N = np.ones(len(order_N), dtype=bool)
        first_N[1:] = (document_N[1:] != document_N[:-1]) | (leaf_N[1:] != leaf_N[:-1])
        start_E = np.flatnonzero(first_N)
        if not len(start_E):
            return cls(invalid=invalid)
        return cls(
            document_E=document_N[start_E],
            leaf_E=leaf_N[start_E],
            windows_E=np.add.reduceat(windows_N[order_N], start_E),
            tokens_E=np.add.reduceat(tokens_N[order_N], start_E),
            invalid=invalid,
        )

    @property
    def num_windows(self) -> int:
        """Number of windows with a leaf."""
        return int(self.windows_E.sum())

    @property
    def num_tokens(self) -> int:
        """Number of tokens in windows with a leaf."""
        return int(self.tokens_E.sum())

    def document_rows(self) -> tuple[int, I64]:
        """D, and (E,) the index 0 … D-1 of each entry's document, in ascending order of hashes."""
        key_D, row_E = np.unique(self.document_E, return_inverse=True)
        return len(key_D), row_E.astype(np.int64)

    def histogram(self, num_leaves: int) -> LeafHistogram:
        """The dense counts of all leaves, summed over documents."""
        return _dense(self.leaf_E, self.windows_E, self.tokens_E, num_leaves, self.invalid)


def _dense(leaf_E: Ints, windows_E: Ints, tokens_E: Ints, num_leaves: int, invalid: int) -> LeafHistogram:
    """The histogram over all leaves; a leaf may have several entries."""
    assert not len(leaf_E) or int(np.max(leaf_E)) < num_leaves, "an assignment names a leaf that the tree does not have"
    windows_L, tokens_L = (sum_by_group(leaf_E, x_E, num_leaves) for x_E in (windows_E, tokens_E))
    return LeafHistogram(windows_L=windows_L, tokens_L=tokens_L, invalid=invalid)


def _valid(leaf_N: Ints, tokens_N: Ints) -> tuple[I64, I64, int]:
    keep_N = np.asarray(leaf_N) >= 0
    leaf_M, tokens_M = np.asarray(leaf_N)[keep_N].astype(np.int64), np.asarray(tokens_N)[keep_N].astype(np.int64)
    return leaf_M, tokens_M, int(len(keep_N) - len(leaf_M))
