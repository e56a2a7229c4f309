"""The structure of a cluster tree, without centroids: which leaves lie below which node; and pruning of untouched leaves.

Shapes: V nodes breadth first (0 is the root), L leaves numbered depth first, H levels below the root, E chosen leaves, T kept
nodes, R merged leaves (and their parents, in the same order), U nodes of the pruned tree (kept nodes, then merged leaves).
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays import I64, Ints


class TreeShape(Protocol):
    """The arrays that this package reads of a tree.

    Nodes are in breadth-first order. The leaves below node v are numbered from `first_leaf_V[v]`, `num_leaves_V[v]` of them.
    """

    @property
    def parent_V(self) -> Ints: ...
    @property
    def level_V(self) -> Ints: ...
    @property
    def first_leaf_V(self) -> Ints: ...
    @property
    def num_leaves_V(self) -> Ints: ...


def sum_below_nodes(tree: TreeShape, x_L: NDArray[Any]) -> Any:
    """(V,) sums of `x_L` over the leaves below each node; exact for integers."""
    sum_M = np.zeros(len(x_L) + 1, dtype=x_L.dtype)
    np.cumsum(x_L, out=sum_M[1:])
    first_V = np.asarray(tree.first_leaf_V, dtype=np.int64)
    return sum_M[first_V + tree.num_leaves_V] - sum_M[first_V]


def slice_levels(tree: TreeShape) -> list[slice]:
    """The nodes of levels 0, 1, …, H: breadth first, so each level is contiguous."""
    level_V = np.asarray(tree.level_V)
    starts = np.searchsorted(level_V, np.arange(int(level_V[-1]) + 2))
    return [slice(int(start), int(end)) for start, end in pairwise(starts)]


def find_leaf_nodes(tree: TreeShape) -> I64:
    """(L,) the node of each leaf, a node without children."""
    childless_V = np.ones(len(tree.parent_V), dtype=bool)
    childless_V[tree.parent_V[1:]] = False
    node_L = np.empty(int(tree.num_leaves_V[0]), dtype=np.int64)
    node_L[tree.first_leaf_V[childless_V]] = np.flatnonzero(childless_V)
    return node_L


def find_paths(tree: TreeShape, leaf_E: Ints) -> I64:
    """(H, E) the nodes on the path to each leaf at levels 1, …, H, the leaf included; -1 at levels deeper than the leaf."""
    node_E = find_leaf_nodes(tree)[leaf_E]
    path_HE = np.full((int(tree.level_V[-1]), len(node_E)), -1, dtype=np.int64)
    for level in range(len(path_HE), 0, -1):
        here_E = tree.level_V[node_E] == level
        path_HE[level - 1, here_E] = node_E[here_E]
        node_E = np.where(here_E, tree.parent_V[node_E], node_E)
    return path_HE


@dataclass(frozen=True, kw_only=True)
class PrunedTree:
    """A tree in which the leaves without sample windows are merged. Its leaves are the atoms of the mixture.

    Below a node without sample windows, the estimators for which the tree is pruned keep the generalist's proportions. So the
    untouched children of a node share one ratio P/G and act as one child. Merging them is exact, and the size of the pruned tree
    depends on the sample: a bootstrap over a tree of 16 million leaves costs no more than its few thousand touched leaves.
    """

    parent_V: I64
    level_V: I64
    first_leaf_V: I64
    num_leaves_V: I64
    atom_L: I64  # atom of each leaf of the full tree


def prune(tree: TreeShape, leaf_E: Ints) -> PrunedTree:
    """Keep the leaves `leaf_E` and the nodes above them; merge all other children of a kept node into one more leaf."""
    num_leaves = int(tree.num_leaves_V[0])
    touched_L = np.zeros(num_leaves, dtype=np.int64)
    touched_L[leaf_E] = 1
    touched_V = sum_below_nodes(tree, touched_L) > 0
    touched_V[0] = True
    parent_V, level_V = np.asarray(tree.parent_V, dtype=np.int64), np.asarray(tree.level_V, dtype=np.int64)
    first_V = np.asarray(tree.first_leaf_V, dtype=np.int64)
    kept_T = np.flatnonzero(touched_V)
    rest_R = np.unique(parent_V[1:][~touched_V[1:] & touched_V[parent_V[1:]]])  # kept nodes with merged children

    # A merged leaf is numbered last below its node, so that the leaves below every node stay contiguous.
    end_R = first_V[rest_R] + np.asarray(tree.num_leaves_V, dtype=np.int64)[rest_R]
    rest_before_M = np.concatenate([[0], np.cumsum(np.bincount(end_R, minlength=num_leaves + 1))])
    first_T = np.concatenate([[0], np.cumsum(touched_L)])[first_V[kept_T]] + rest_before_M[first_V[kept_T] + 1]
    leaf_T = np.isin(kept_T, find_leaf_nodes(tree))
    num_V = np.zeros(len(parent_V), dtype=np.int64)
    num_V[kept_T[leaf_T]] = 1
    num_V[rest_R] += 1
    for level in reversed(slice_levels(tree)[1:]):
        np.add.at(num_V, parent_V[level], num_V[level])
    num_T = num_V[kept_T]
    row_V = np.full(len(parent_V), -1, dtype=np.int64)
    row_V[kept_T] = np.arange(len(kept_T))

    up_T = np.where(kept_T == 0, -1, row_V[parent_V[kept_T]])
    rest_atom_R = first_T[row_V[rest_R]] + num_T[row_V[rest_R]] - 1
    level_U = np.concatenate([level_V[kept_T], level_V[rest_R] + 1])
    first_U = np.concatenate([first_T, rest_atom_R])
    order_U = np.lexsort((first_U, level_U))
    new_U = np.empty_like(order_U)
    new_U[order_U] = np.arange(len(order_U))
    up_U = np.concatenate([up_T, row_V[rest_R]])[order_U]

    atom_V = np.full(len(parent_V), -1, dtype=np.int64)
    atom_V[kept_T[leaf_T]] = first_T[leaf_T]
    atom_V[rest_R] = rest_atom_R
    for level in slice_levels(tree)[1:]:
        up = parent_V[level]
        atom_V[level] = np.where(touched_V[level], atom_V[level], atom_V[up])
    return PrunedTree(
        parent_V=np.where(up_U < 0, -1, new_U[up_U]),
        level_V=level_U[order_U],
        first_leaf_V=first_U[order_U],
        num_leaves_V=np.concatenate([num_T, np.ones_like(rest_R)])[order_U],
        atom_L=atom_V[find_leaf_nodes(tree)],
    )
