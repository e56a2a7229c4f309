"""Fit the cluster tree by hierarchical k-means, level by level (CRISP, arXiv 2410.03735).

Each node is fitted on a hash-chosen subset of its windows. A level is one shuffle: the mappers assign the windows that they read to
nodes of the tree fitted so far, and keep those whose hash is below the threshold of their node; each reducer fits one large node or
several small ones. So a worker holds at most the windows that one large node is fitted on, however large the corpus.

Shapes: N windows, D width of the embedding, K children of a node, V nodes.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import config
from pipeline.clustering.kmeans import KMeansFit, fit_kmeans
from pipeline.clustering.tree import Tree, count_children
from pipeline.config import Config
from pipeline.engine import Engine
from pipeline.errors import InputError
from pipeline.execution.step import MOST_PARTITIONS, Step, groups, mapper_groups, part_names, runs_within
from pipeline.hashing import keyed_uniform
from pipeline.stages.embed import read_embeddings
from pipeline.storage import Folder
from pipeline.tables import tree_schema

HELD_BYTES = 8 << 20  # of vectors that one mapper keeps from the parts that it reads
RUNS_PER_WORKER = 4  # runs of nodes that are fitted together
# A node's size is an estimate, so mappers keep this factor of windows more, and the reducer cuts to the exact number.
_SLACK = 1.1

# Hashes, keys and vectors of a node's windows, as aligned arrays.
Piece = tuple[NDArray[Any], ...]


def cluster_step(config: Config, embedded: Step) -> Step:
    """Build the step that fits the tree on the generalist corpus."""
    settings = config.cluster

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        windows = embedded.manifest["windows"] - embedded.manifest["invalid"]
        if windows < settings.branching:
            raise InputError(
                f"the generalist corpus has {windows} windows, fewer than cluster.branching = {settings.branching}; "
                "give it more text, or set cluster.branching lower"
            )
        tree = Tree.root_only(float(windows), embedded.manifest["dim"])
        for level in range(settings.depth):
            name = f"level-{level + 1}.parquet"
            if folder.exists(name):
                tree = Tree.from_table(folder.read_table(name))
                continue
            grown = _grow(engine, tree, level, part_names(embedded), embedded.folder, settings, config.seed)
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


def _grow(
    engine: Engine, tree: Tree, level: int, parts: Sequence[str], embeddings: Folder, settings: config.Cluster, seed: int
) -> Tree | None:
    """Return the tree with one more level, or None if no node of the deepest level can be split."""
    fan = {int(node): _fan_out(tree, int(node), settings) for node in np.flatnonzero(tree.level_V == level)}
    nodes = [node for node, num_children in fan.items() if num_children > 1]
    work = LevelFit(tree, level, {node: fan[node] for node in nodes}, settings, seed)
    runs = _runs(nodes, work, RUNS_PER_WORKER * engine.num_workers)
    threads = engine.threads_for(len(runs))
    moved_bytes = sum(map(work.sample_size, nodes)) * (tree.dim * 2 + 16)
    fits: dict[int, KMeansFit] = {}
    for together in groups(runs, -(-len(runs) // MOST_PARTITIONS)):  # each shuffle reads all vectors
        items = mapper_groups(
            engine, parts, moved_bytes=moved_bytes * len(together) / len(runs), partitions=len(together), held_bytes=HELD_BYTES
        )
        fitted = engine.shuffle(
            _sample_parts,
            items,
            _fit_nodes,
            together,
            title=f"cluster level {level + 1}",
            unit="nodes",
            shared=(work, embeddings, threads),
            threads=threads,
        )
        for index, of_run in fitted:
            # A node whose vectors are all equal stays a leaf.
            fits |= {node: fit for node, fit in zip(together[index], of_run, strict=True) if len(fit.centroid_KD) > 1}
    return tree.grow(fits) if fits else None


def _runs(nodes: Sequence[int], work: "LevelFit", least: int) -> list[list[int]]:
    """Split the nodes into runs, each fitted by one worker.

    There are about `least` runs or more, if there are enough nodes. A run of several nodes has at most `fit_windows` windows. The
    fit of a node does not depend on the other nodes of its run.
    """
    windows = [work.sample_size(node) for node in nodes]
    return runs_within(nodes, windows, min(work.settings.fit_windows, sum(windows) / least))


def _fan_out(tree: Tree, node: int, settings: config.Cluster) -> int:
    return count_children(float(tree.size_V[node]), branching=settings.branching, min_windows=settings.min_windows)


class LevelFit:
    """How the nodes of one level are fitted: on which windows, and into how many children (`fan`, by node)."""

    def __init__(self, tree: Tree, level: int, fan: dict[int, int], settings: config.Cluster, seed: int) -> None:
        self.tree, self.fan, self.settings, self.seed = tree, fan, settings, seed
        self.purpose = f"fit-{level}"
        self.limit_V = np.zeros(tree.num_nodes)
        for node in fan:
            self.limit_V[node] = min(1.0, _SLACK * self.num_windows(node) / tree.size_V[node])

    def num_windows(self, node: int) -> int:
        """Return the maximum number of windows that a node is fitted on: `fit_windows`, or 100 per child if that is more."""
        return max(self.settings.fit_windows, 100 * self.fan[node])

    def sample_size(self, node: int) -> float:
        """Return the estimated number of windows that a node is fitted on."""
        return min(self.num_windows(node), float(self.tree.size_V[node]))

    def sample(
        self, key_N: NDArray[np.uint64], valid_N: NDArray[np.bool_], x_ND: NDArray[np.float16], nodes: Sequence[int]
    ) -> list[Piece]:
        """Return, for each of the nodes, (hash, key, vector) arrays of the windows of a part that are kept for its fit."""
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
        u_N, key_N, x_ND = _joined(pieces)
        order_N = np.lexsort((key_N, u_N))[: self.num_windows(node)]
        return fit_kmeans(
            x_ND[order_N],
            k=self.fan[node],
            key_N=key_N[order_N],
            seed=self.seed,
            steps=self.settings.steps,
            balance=self.settings.balance,
            threads=threads,
        )


def _sample_parts(
    parts: Sequence[str], runs: Sequence[Sequence[int]], work: LevelFit, embeddings: Folder, _threads: int
) -> list[list[Piece]]:
    """Return, for each run of nodes, the pieces of several parts, concatenated node by node."""
    nodes = [node for run in runs for node in run]
    of_parts = [work.sample(*read_embeddings(embeddings, name), nodes) for name in parts]
    joined = iter(_joined(pieces) for pieces in zip(*of_parts, strict=True))
    return [list(itertools.islice(joined, len(run))) for run in runs]


def _joined(pieces: Sequence[Piece]) -> Piece:
    return tuple(np.concatenate(columns) for columns in zip(*pieces, strict=True))


def _fit_nodes(
    nodes: Sequence[int], pieces: Sequence[Sequence[Piece]], work: LevelFit, _embeddings: Folder, threads: int
) -> list[KMeansFit]:
    return [work.fit(node, of_node, threads) for node, of_node in zip(nodes, zip(*pieces, strict=True), strict=True)]
