"""The cluster tree: hierarchical k-means, and assignment by greedy descent (CRISP, arXiv 2410.03735).

Shapes: V nodes, breadth first (node 0 is the root, siblings are adjacent); L leaves, numbered depth first, so the leaves below a
node are a contiguous range; N rows, D width, M rows (or nodes) processed together, B rows of a block, C new children, G nodes that
hold rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrays import F32, F64, I32, I64
from pipeline.clustering.assignment import block_map, blocks, check_width, half_sq_norms, nearest_in_block, sq_dists, to_float32
from pipeline.clustering.kmeans import KMeansFit
from pipeline.storage import Folder
from pipeline.tables import tree_schema

_ROWS = 1 << 16  # rows that descend together: on average they fill one block at each of 64 nodes


@dataclass(frozen=True, eq=False)
class Tree:
    """A cluster tree: the columns of `tables.tree_schema`, which describes them, as arrays over the nodes."""

    parent_V: I32
    level_V: I32
    first_leaf_V: I32
    num_leaves_V: I32
    count_V: I64
    size_V: F64
    sq_dist_V: F64
    fit_windows_V: I64
    fit_steps_V: I32
    fit_moved_V: F64
    centroid_VD: F32

    @classmethod
    def root_only(cls, size: float, dim: int) -> "Tree":
        """A tree of the root only: a leaf of `size` windows with its centroid at zero."""
        return cls(
            parent_V=np.array([-1], np.int32),
            level_V=np.zeros(1, np.int32),
            first_leaf_V=np.zeros(1, np.int32),
            num_leaves_V=np.ones(1, np.int32),
            count_V=np.zeros(1, np.int64),
            size_V=np.array([size], np.float64),
            sq_dist_V=np.zeros(1, np.float64),
            fit_windows_V=np.zeros(1, np.int64),
            fit_steps_V=np.zeros(1, np.int32),
            fit_moved_V=np.zeros(1, np.float64),
            centroid_VD=np.zeros((1, dim), np.float32),
        )

    def grow(self, fits: Mapping[int, KMeansFit]) -> "Tree":
        """A new tree in which the given nodes of the deepest level have children, one per centroid; leaves are renumbered.

        The size of a child is its parent's size times its share of the fitting rows.

        Raises:
            ValueError: a node is not on the deepest level, or a fit has fewer than two centroids or another width.
        """
        nodes = sorted(fits)
        for node in nodes:
            if not 0 <= node < self.num_nodes or self.level_V[node] != self.depth:
                raise ValueError(
                    f"node {node} is not on level {self.depth}; only nodes on the deepest level, {self.depth}, can get children"
                )
            if len(fits[node].centroid_KD) < 2:
                raise ValueError(f"a node has two children or more, or none; the fit of node {node} has one centroid")
            check_width(fits[node].centroid_KD, self.dim)
        if not nodes:
            return self
        chosen = [fits[node] for node in nodes]
        windows, steps, moved = self.fit_windows_V.copy(), self.fit_steps_V.copy(), self.fit_moved_V.copy()
        windows[nodes] = [fit.count_K.sum() for fit in chosen]
        steps[nodes] = [fit.steps for fit in chosen]
        moved[nodes] = [fit.moved_share for fit in chosen]
        count_C = np.concatenate([fit.count_K for fit in chosen])
        parent_C = np.repeat(np.array(nodes, np.int32), [len(fit.count_K) for fit in chosen])
        parent_V = np.concatenate([self.parent_V, parent_C])
        level_V = np.concatenate([self.level_V, np.full(len(parent_C), self.depth + 1, np.int32)])
        first_leaf_V, num_leaves_V = _number_leaves(parent_V, level_V)
        zeros_C = np.zeros(len(parent_C))
        return Tree(
            parent_V=parent_V,
            level_V=level_V,
            first_leaf_V=first_leaf_V,
            num_leaves_V=num_leaves_V,
            count_V=np.concatenate([self.count_V, count_C]),
            size_V=np.concatenate([self.size_V, self.size_V[parent_C] * count_C / windows[parent_C]]),
            sq_dist_V=np.concatenate([self.sq_dist_V, *(fit.sq_dist_K for fit in chosen)]),
            fit_windows_V=np.concatenate([windows, zeros_C.astype(np.int64)]),
            fit_steps_V=np.concatenate([steps, zeros_C.astype(np.int32)]),
            fit_moved_V=np.concatenate([moved, zeros_C]),
            centroid_VD=np.concatenate([self.centroid_VD, *(fit.centroid_KD for fit in chosen)]),
        )

    @property
    def num_nodes(self) -> int:
        return len(self.parent_V)

    @property
    def num_leaves(self) -> int:
        return int(self.num_leaves_V[0])

    @property
    def depth(self) -> int:
        """Levels below the root."""
        return int(self.level_V[-1])

    @property
    def dim(self) -> int:
        return int(self.centroid_VD.shape[1])

    @cached_property
    def leaf_nodes(self) -> I32:
        """(L,) the node of each leaf."""
        node_L = np.flatnonzero(self.num_leaves_V == 1).astype(np.int32)
        return node_L[np.argsort(self.first_leaf_V[node_L])]

    def children(self, node: int) -> range:
        """The children of a node; empty for a leaf."""
        first, last = np.searchsorted(self.parent_V, [node, node + 1])  # breadth first, so parents are sorted
        return range(int(first), int(last))

    def ancestor_at(self, level: int) -> I32:
        """(L,) the node at `level` above each leaf, or the leaf's own node if that is no deeper."""
        node_L = self.leaf_nodes
        for _ in range(self.depth - level):
            node_L = np.where(self.level_V[node_L] > level, self.parent_V[node_L], node_L)
        return node_L

    @cached_property
    def _half_sq_V(self) -> F32:
        return half_sq_norms(self.centroid_VD)

    def descend(self, x_ND: NDArray[Any], *, threads: int = 1) -> tuple[I32, F32]:
        """(N,) the leaf that each row reaches (see `descend_nodes`), and (N,) squared L2 distances to the leaf's centroid."""
        node_N, sq_dist_N = self.descend_nodes(x_ND, threads=threads), np.empty(len(x_ND), np.float32)

        def measure(block: slice) -> None:
            sq_dist_N[block] = sq_dists(to_float32(x_ND[block]), self.centroid_VD, node_N[block])

        with block_map(threads) as run:
            list(run(measure, blocks(len(x_ND))))
        return self.first_leaf_V[node_N], sq_dist_N

    def descend_nodes(self, x_ND: NDArray[Any], *, threads: int = 1) -> I32:
        """(N,) the node of the leaf that each row reaches: from the root, always to the nearest child by L2, ties to the lowest.

        This need not be the nearest leaf overall. The result for a row does not depend on the other rows or on `threads`. Rows are
        float16 or float32, and finite.

        Raises:
            ValueError: rows and tree differ in width.
        """
        check_width(x_ND, self.dim)
        node_N = np.zeros(len(x_ND), np.int32)
        with block_map(threads) as run:
            list(run(lambda rows: self._descend(x_ND[rows], node_N[rows]), blocks(len(x_ND), _ROWS)))
        return node_N

    def _descend(self, x_MD: NDArray[Any], node_M: I32) -> None:
        """Update `node_M`, all 0 (the root), to the leaf nodes; level by level, so that the rows of a node share one sgemm."""
        for level in range(self.depth):
            order_M = np.argsort(node_M, kind="stable")
            node_G, start_G = np.unique(node_M[order_M], return_index=True)
            for node, rows in zip(node_G, np.split(order_M, start_G[1:]), strict=True):
                children = self.children(node)
                if not children:
                    continue
                span = slice(children.start, children.stop)
                for block in blocks(len(rows)):
                    x_BD = to_float32(x_MD[rows[block]] if level else x_MD[block])  # at the root the rows are in order: no gather
                    label_B = nearest_in_block(x_BD, self.centroid_VD[span], self._half_sq_V[span])
                    node_M[rows[block]] = children.start + label_B

    def to_table(self) -> pa.Table:
        """The tree as a table of `tables.tree_schema`, one row per node."""
        schema = tree_schema(self.dim)
        columns = {field.name.rpartition("_")[0]: getattr(self, field.name) for field in fields(self)}
        columns["node"] = np.arange(self.num_nodes, dtype=np.int32)
        centroid_type = schema.field("centroid").type
        columns["centroid"] = pa.FixedSizeListArray.from_arrays(pa.array(self.centroid_VD.ravel()), type=centroid_type)
        return pa.table([pa.array(columns[name]) for name in schema.names], schema=schema)

    @classmethod
    def from_table(cls, table: pa.Table) -> "Tree":
        """The tree of a table written by `to_table`."""
        dim = table.schema.field("centroid").type.list_size
        columns = {field.name: table[field.name.rpartition("_")[0]].combine_chunks() for field in fields(cls)}
        flat = columns.pop("centroid_VD").flatten().to_numpy()
        return cls(centroid_VD=flat.reshape(-1, dim), **{name: column.to_numpy() for name, column in columns.items()})


def _number_leaves(parent_V: I32, level_V: I32) -> tuple[I32, I32]:
    """(V,) first leaf below each node, and number of leaves below it."""
    num_V = np.ones(len(parent_V), np.int32)
    num_V[parent_V[1:]] = 0
    for level in range(int(level_V[-1]), 0, -1):
        node_M = np.flatnonzero(level_V == level)
        np.add.at(num_V, parent_V[node_M], num_V[node_M])
    first_V = np.zeros(len(parent_V), np.int32)
    for level in range(1, int(level_V[-1]) + 1):
        node_M = np.flatnonzero(level_V == level)
        before_M = np.cumsum(num_V[node_M]) - num_V[node_M]  # leaves below earlier nodes of the level
        eldest_M = np.searchsorted(parent_V[node_M], parent_V[node_M])
        first_V[node_M] = first_V[parent_V[node_M]] + before_M - before_M[eldest_M]
    return first_V, num_V


def count_children(size: float, *, branching: int, min_windows: int) -> int:
    """Number of children of a node of `size` windows: at least `min_windows` windows each on average; 0 instead of 1."""
    children = min(branching, int(size // min_windows))
    return children if children > 1 else 0


def read_tree(folder: Folder) -> Tree:
    """The tree in the folder of a cluster step."""
    return Tree.from_table(folder.read_table("tree.parquet"))
