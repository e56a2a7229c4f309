"""Fit the cluster tree by hierarchical k-means, level by level (CRISP, arXiv 2410.03735).

Each node is fitted on a hash-chosen subset of its windows. A level is one shuffle: the mappers assign the windows that they read to
nodes of the tree fitted so far, and keep those whose hash is below the threshold of their node; each reducer fits one large node or
several small ones. So a worker holds at most the windows that one large node is fitted on, however large the corpus.

Shapes: N windows, D width of the embedding, K children of a node, V nodes.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import config
from pipeline.arrays import F64, Keys
from pipeline.clustering.kmeans import KMeansFit, fit_kmeans
from pipeline.clustering.tree import Tree, count_children
from pipeline.config import Config
from pipeline.engine import Engine
from pipeline.errors import InputError
from pipeline.execution.step import MAX_PARTITIONS, Step, group_for_mappers, part_names, split_by_size, split_evenly
from pipeline.hashing import keyed_uniform
from pipeline.stages.embed import read_embeddings
from pipeline.storage import Folder
from pipeline.tables import tree_schema

MAPPER_VECTOR_BYTES = 8 << 20  # of vectors that one mapper keeps from the parts that it reads
BATCHES_PER_WORKER = 4  # batches of nodes that one task fits
# A node's size is an estimate, so mappers keep more windows by this factor, and the reducer cuts to the exact number.
_SLACK = 1.1

# Hashes, keys and vectors of a node's windows, as aligned arrays.
Piece = tuple[F64, Keys, NDArray[np.float16]]


def cluster_step(config: Config, embedded: Step) -> Step:
    """Build the step that fits the tree on the generalist corpus."""
    settings = config.cluster

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        windows = embedded.manifest["windows"] - embedded.manifest["invalid"]
        if windows < settings.branching:
            raise InputError(
                f"the generalist corpus has {windows:,} windows, fewer than cluster.branching = {settings.branching:,}; "
                "add generalist text or lower cluster.branching"
            )
        tree = Tree.root_only(float(windows), embedded.manifest["dim"])
        for level in range(settings.depth):
            name = f"level-{level + 1}.parquet"
            if folder.exists(name):
                tree = Tree.from_table(folder.read_table(name))
                continue
            grown = _fit_level(engine, tree, level, part_names(embedded), embedded.folder, settings, config.seed)
            if grown is None:
                break
            tree = grown
            folder.write_table(name, tree.to_table(), tree_schema(tree.dim))
        folder.write_table("tree.parquet", tree.to_table(), tree_schema(tree.dim))
        return {"windows": windows, "nodes": tree.num_nodes, "leaves": tree.num_leaves, "depth": tree.depth, "dim": tree.dim}

    return Step(
        stage="cluster",
        version=1,
        settings={"cluster": settings.identity(), "seed": config.seed},
        inputs={"embeddings": embedded},
        workdir=embedded.workdir,
        work=work,
    )


def _fit_level(
    engine: Engine, tree: Tree, level: int, parts: Sequence[str], embeddings: Folder, settings: config.Cluster, seed: int
) -> Tree | None:
    """Return the tree with one more level, or None if no node of the deepest level can be split."""
    sizes = {int(node): float(tree.size_V[node]) for node in np.flatnonzero(tree.level_V == level)}
    num_children = {
        node: count_children(size, branching=settings.branching, min_windows=settings.min_windows) for node, size in sizes.items()
    }
    nodes = [node for node, count in num_children.items() if count > 1]
    level_fit = LevelFit(tree, level, {node: num_children[node] for node in nodes}, settings, seed)
    batches = _batch_nodes(nodes, level_fit, BATCHES_PER_WORKER * engine.num_workers)
    inputs = LevelInputs(level_fit, embeddings, engine.threads_for(len(batches)))
    moved_bytes = sum(map(level_fit.expected_windows, nodes)) * (tree.dim * 2 + 16)
    fits: dict[int, KMeansFit] = {}
    for partitions in split_evenly(batches, -(-len(batches) // MAX_PARTITIONS)):  # each shuffle reads all vectors
        items = group_for_mappers(
            engine,
            parts,
            moved_bytes=moved_bytes * len(partitions) / len(batches),
            partitions=len(partitions),
            held_bytes=MAPPER_VECTOR_BYTES,
        )
        fitted = engine.shuffle(
            _select_from_parts,
            items,
            _fit_nodes,
            partitions,
            title=f"cluster level {level + 1}",
            unit="nodes",
            shared=inputs,
            threads=inputs.threads,
        )
        for index, batch_fits in fitted:
            # A node whose vectors are all equal stays a leaf.
            fits |= {node: fit for node, fit in zip(partitions[index], batch_fits, strict=True) if len(fit.centroid_KD) > 1}
    return tree.grow(fits) if fits else None


def _batch_nodes(nodes: Sequence[int], level_fit: "LevelFit", min_batches: int) -> list[list[int]]:
    """Split the nodes into batches, each fitted by one task.

    Returns about `min_batches` batches or more, if there are enough nodes. A batch of several nodes has at most `fit_windows`
    windows. The fit of a node does not depend on the other nodes of its batch.
    """
    windows = [level_fit.expected_windows(node) for node in nodes]
    return split_by_size(nodes, windows, min(level_fit.settings.fit_windows, sum(windows) / min_batches))


class LevelFit:
    """How the nodes of one level are fitted: on which windows, and into how many children (`num_children`, by node)."""

    def __init__(self, tree: Tree, level: int, num_children: Mapping[int, int], settings: config.Cluster, seed: int) -> None:
        self.tree, self.num_children, self.settings, self.seed = tree, num_children, settings, seed
        self.purpose = f"fit-{level}"
        self.limit_V = np.zeros(tree.num_nodes)
        for node in num_children:
            self.limit_V[node] = min(1.0, _SLACK * self.max_windows(node) / tree.size_V[node])

    def max_windows(self, node: int) -> int:
        """Return the maximum number of windows that a node is fitted on: `fit_windows`, or 100 per child if that is more."""
        return max(self.settings.fit_windows, 100 * self.num_children[node])

    def expected_windows(self, node: int) -> float:
        """Return the estimated number of windows that a node is fitted on."""
        return min(self.max_windows(node), float(self.tree.size_V[node]))

    def select(self, key_N: Keys, valid_N: NDArray[np.bool_], x_ND: NDArray[np.float16], nodes: Sequence[int]) -> list[Piece]:
        """Select the windows of a part that the nodes are fitted on; return their (hash, key, vector) arrays for each node."""
        u_N = keyed_uniform(key_N, seed=self.seed, purpose=self.purpose)
        rows_N = np.flatnonzero(valid_N & (u_N <= self.limit_V.max()))
        node_N = self.tree.descend_nodes(x_ND[rows_N])
        chosen_N = u_N[rows_N] <= self.limit_V[node_N]
        rows_N, node_N = rows_N[chosen_N], node_N[chosen_N]
        order_N = np.argsort(node_N, kind="stable")
        rows_N, node_N = rows_N[order_N], node_N[order_N]
        bounds = zip(np.searchsorted(node_N, nodes, "left"), np.searchsorted(node_N, nodes, "right"), strict=True)
        return [(u_N[rows], key_N[rows], x_ND[rows]) for rows in (rows_N[a:b] for a, b in bounds)]

    def fit(self, node: int, pieces: Sequence[Piece], threads: int) -> KMeansFit:
        """Fit the children of one node on its windows with the lowest hashes. The order and split of the pieces do not matter."""
        u_N, key_N, x_ND = _concatenate(pieces)
        order_N = np.lexsort((key_N, u_N))[: self.max_windows(node)]
        return fit_kmeans(
            x_ND[order_N],
            k=self.num_children[node],
            key_N=key_N[order_N],
            seed=self.seed,
            steps=self.settings.steps,
            balance=self.settings.balance,
            threads=threads,
        )


@dataclass(frozen=True)
class LevelInputs:
    """Inputs shared by the tasks that fit the nodes of one level."""

    level_fit: LevelFit
    embeddings: Folder
    threads: int  # of a task that fits nodes


def _select_from_parts(parts: Sequence[str], batches: Sequence[Sequence[int]], inputs: LevelInputs) -> list[list[Piece]]:
    """Return, for each batch of nodes, the selected windows of several parts, concatenated node by node."""
    nodes = [node for batch in batches for node in batch]
    by_part = [inputs.level_fit.select(*read_embeddings(inputs.embeddings, name), nodes) for name in parts]
    by_node = iter(_concatenate(pieces) for pieces in zip(*by_part, strict=True))
    return [list(itertools.islice(by_node, len(batch))) for batch in batches]


def _concatenate(pieces: Sequence[Piece]) -> Piece:
    hashes, keys, vectors = zip(*pieces, strict=True)
    return np.concatenate(hashes), np.concatenate(keys), np.concatenate(vectors)


def _fit_nodes(nodes: Sequence[int], pieces: Sequence[Sequence[Piece]], inputs: LevelInputs) -> list[KMeansFit]:
    by_node = zip(*pieces, strict=True)
    return [inputs.level_fit.fit(node, of_node, inputs.threads) for node, of_node in zip(nodes, by_node, strict=True)]
