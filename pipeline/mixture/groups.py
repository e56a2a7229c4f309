"""Weights instead of copies: text in groups, each once, such that a share of each group gives what the plan draws.

A group is what lies below a node of the tree, in bands of epochs: up to 1, 2, 4, … passes. In a band windows differ in how often
they are wanted; each is kept with a chance in proportion to that, so that within a group all that is there is wanted alike. Above
one pass a band is a factor of two wide, so that at most every other window is left out, and what is there is repeated no more than
twice as often as the plan says. Where less than half a pass is wanted, twice as much text is kept as the plan draws: what a trainer
draws by weight it draws with some luck.

Sums are of integers (tokens and windows times epochs, in fixed point), so parts may be added in any order.

Shapes: N windows of a part, G groups.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np

from pipeline.arrays import F64, I64, Ints
from pipeline.mixture.sums import FIXED, fixed, sums_by
from pipeline.mixture.tree_shape import TreeShape, leaf_nodes

_BANDS = 64
_LEAST_PASSES = 0.5


def bands(epochs_N: F64) -> I64:
    """0 up to one pass, k up to 2^k."""
    return np.asarray(np.ceil(np.log2(np.maximum(epochs_N, 1.0))), np.int64)


def group_keys(node_N: Ints, epochs_N: F64) -> I64:
    """(N,) the group of each window: its node and its band."""
    return np.asarray(np.asarray(node_N, np.int64) * _BANDS + bands(epochs_N), np.int64)


def node_and_band(key: int) -> tuple[int, int]:
    """What a group's key says."""
    return divmod(key, _BANDS)


def nodes_at(tree: TreeShape, level: int) -> I64:
    """(L,) the node above each leaf at a level, or the leaf itself where it ends higher up."""
    node_L = leaf_nodes(tree)
    level_V, parent_V = np.asarray(tree.level_V), np.asarray(tree.parent_V)
    while (below_L := level_V[node_L] > level).any():
        node_L = np.where(below_L, parent_V[node_L], node_L)
    return node_L


@dataclass(frozen=True, kw_only=True)
class GroupCounts:
    """What is wanted of the groups; a fold."""

    key_G: I64  # ascending
    most_G: F64  # epochs of the window that is wanted most
    tokens_G: I64  # Σ tokens · epochs, in fixed point
    documents_G: I64  # Σ epochs of windows, in fixed point: a window is a trainer's document

    @classmethod
    def zero(cls) -> Self:
        """Nothing counted yet."""
        none = np.empty(0, np.int64)
        return cls(key_G=none, most_G=none.astype(np.float64), tokens_G=none, documents_G=none)

    @classmethod
    def of_part(cls, key_N: Ints, epochs_N: F64, tokens_N: Ints) -> Self:
        """The counts of one part; windows of which nothing is wanted are in no group."""
        wanted_N = epochs_N > 0
        epochs_M, tokens_M = epochs_N[wanted_N], np.asarray(tokens_N)[wanted_N]
        columns = (epochs_M, fixed(epochs_M * tokens_M), fixed(epochs_M))
        return cls._merged(np.asarray(key_N, np.int64)[wanted_N], *columns)

    @classmethod
    def combine(cls, parts: Iterable[Self]) -> Self:
        """Everything in some parts, in any order and grouping."""
        columns = zip(*((part.key_G, part.most_G, part.tokens_G, part.documents_G) for part in (cls.zero(), *parts)), strict=True)
        return cls._merged(*(np.concatenate(column) for column in columns))

    @classmethod
    def _merged(cls, key_M: Ints, most_M: F64, tokens_M: Ints, documents_M: Ints) -> Self:
        key_G, row_M = np.unique(key_M, return_inverse=True)
        most_G = np.zeros(len(key_G))
        np.maximum.at(most_G, row_M, most_M)
        tokens_G, documents_G = (sums_by(row_M, x_M, len(key_G)) for x_M in (tokens_M, documents_M))
        return cls(key_G=np.asarray(key_G, np.int64), most_G=most_G, tokens_G=tokens_G, documents_G=documents_G)

    @property
    def passes_G(self) -> F64:
        """(G,) epochs of a window that is kept for sure; inf where the plan draws less than one window of the group."""
        return np.where(self.wanted_documents_G < 1.0, np.inf, np.maximum(self.most_G, _LEAST_PASSES))

    @property
    def wanted_tokens_G(self) -> F64:
        """(G,) tokens that the plan draws, repeats counted."""
        return np.asarray(self.tokens_G / FIXED, np.float64)

    @property
    def wanted_documents_G(self) -> F64:
        """(G,) windows that the plan draws, repeats counted."""
        return np.asarray(self.documents_G / FIXED, np.float64)
