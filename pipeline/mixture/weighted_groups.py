"""Groups with weights, for trainers that mix by weight: each window once, and a weight per group that gives the allocation.

A group is the windows below one node of the tree in one band of epochs (a window's expected copies): up to 1, 2, 4, … epochs.
Windows of a band differ in their epochs. Each is kept with a probability proportional to its epochs, so all kept windows of a group
are to be sampled equally often. Above one epoch a band spans a factor of two, so at least half of its windows are expected to be
kept, and a kept window is repeated at most twice as often as planned. If no window of a group has half an epoch, twice the planned
tokens are kept, because a trainer that samples by weight repeats some windows by chance (docs/decisions/0015).

All sums are of integers (tokens and windows times epochs, in fixed point), so parts can be added in any order.

Shapes: N windows of a part, M windows with epochs (or entries to merge), G groups, L clusters (leaves of the tree).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np

from pipeline.arrays import F64, I64, Ints
from pipeline.mixture.sums import FIXED, sum_by_group, to_fixed_point
from pipeline.mixture.tree_shape import TreeShape, find_leaf_nodes

_BANDS = 64
_MIN_CERTAIN_EPOCHS = 0.5


def assign_bands(epochs_N: F64) -> I64:
    """(N,) the band of each window: 0 up to one epoch, else the smallest k with at most 2^k epochs."""
    return np.asarray(np.ceil(np.log2(np.maximum(epochs_N, 1.0))), np.int64)


def group_keys(node_N: Ints, epochs_N: F64) -> I64:
    """(N,) the key of each window's group, made of node and band."""
    return np.asarray(np.asarray(node_N, np.int64) * _BANDS + assign_bands(epochs_N), np.int64)


def split_key(key: int) -> tuple[int, int]:
    """The node and the band of a group's key."""
    return divmod(key, _BANDS)


def find_nodes_at(tree: TreeShape, level: int) -> I64:
    """(L,) the node at `level` above each leaf, or the leaf's own node if that is no deeper."""
    node_L = find_leaf_nodes(tree)
    level_V, parent_V = np.asarray(tree.level_V), np.asarray(tree.parent_V)
    while (below_L := level_V[node_L] > level).any():
        node_L = np.where(below_L, parent_V[node_L], node_L)
    return node_L


@dataclass(frozen=True, kw_only=True)
class GroupCounts:
    """Allocated tokens and windows of the groups; the state of a fold over parts."""

    key_G: I64  # ascending
    max_epochs_G: F64  # largest epochs of a window
    tokens_G: I64  # Σ tokens · epochs, in fixed point
    documents_G: I64  # Σ epochs, in fixed point: a window is one document to a trainer

    @classmethod
    def zero(cls) -> Self:
        """The initial state."""
        none = np.empty(0, np.int64)
        return cls(key_G=none, max_epochs_G=none.astype(np.float64), tokens_G=none, documents_G=none)

    @classmethod
    def of_part(cls, key_N: Ints, epochs_N: F64, tokens_N: Ints) -> Self:
        """The counts of one part; windows with 0 epochs are in no group."""
        wanted_N = epochs_N > 0
        epochs_M, tokens_M = epochs_N[wanted_N], np.asarray(tokens_N)[wanted_N]
        columns = (epochs_M, to_fixed_point(epochs_M * tokens_M), to_fixed_point(epochs_M))
        return cls._merged(np.asarray(key_N, np.int64)[wanted_N], *columns)

    @classmethod
    def combine(cls, parts: Iterable[Self]) -> Self:
        """The merged counts of several parts, in any order and grouping."""
        columns = zip(
            *((part.key_G, part.max_epochs_G, part.tokens_G, part.documents_G) for part in (cls.zero(), *parts)), strict=True
        )
        return cls._merged(*(np.concatenate(column) for column in columns))

    @classmethod
    def _merged(cls, key_M: Ints, max_epochs_M: F64, tokens_M: Ints, documents_M: Ints) -> Self:
        key_G, row_M = np.unique(key_M, return_inverse=True)
        max_epochs_G = np.zeros(len(key_G))
        np.maximum.at(max_epochs_G, row_M, max_epochs_M)
        tokens_G, documents_G = (sum_by_group(row_M, x_M, len(key_G)) for x_M in (tokens_M, documents_M))
        return cls(key_G=np.asarray(key_G, np.int64), max_epochs_G=max_epochs_G, tokens_G=tokens_G, documents_G=documents_G)

    @property
    def certain_epochs_G(self) -> F64:
        """(G,) p, where a window with e epochs is kept with probability min(1, e / p).

        inf, so that nothing is kept, if less than one window of the group is allocated.
        """
        return np.where(self.allocated_documents_G < 1.0, np.inf, np.maximum(self.max_epochs_G, _MIN_CERTAIN_EPOCHS))

    @property
    def allocated_tokens_G(self) -> F64:
        """(G,) allocated tokens, repeats included."""
        return np.asarray(self.tokens_G / FIXED, np.float64)

    @property
    def allocated_documents_G(self) -> F64:
        """(G,) allocated windows, repeats included."""
        return np.asarray(self.documents_G / FIXED, np.float64)
