"""The cluster tree fitted in memory, level by level and node by node: an oracle for the cluster stage."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.clustering.kmeans import fit_kmeans
from pipeline.clustering.tree import Tree, count_children
from pipeline.hashing import keyed_hash


def fit_tree(
    x_ND: NDArray[Any],
    key_N: NDArray[np.uint64],
    *,
    branching: int,
    depth: int,
    fit_windows: int,
    steps: int,
    balance: float,
    min_windows: int,
    seed: int,
    threads: int = 1,
) -> Tree:
    """Fit a tree of at most `depth` levels to rows in memory; settings as in `config.Cluster`.

    A node is fitted on those of its rows with the lowest hashes: `fit_windows` of them, but at least 100 per child.
    """
    tree = Tree.root_only(float(len(x_ND)), x_ND.shape[1])
    for level in range(depth):
        hash_N = keyed_hash(key_N, seed=seed, purpose=f"fit-{level}")
        node_N = tree.descend_nodes(x_ND, threads=threads)
        order_N = np.lexsort((key_N, hash_N, node_N))
        fits = {}
        for node in np.flatnonzero(tree.level_V == level):
            k = count_children(float(tree.size_V[node]), branching=branching, min_windows=min_windows)
            first, last = np.searchsorted(node_N[order_N], [node, node + 1])
            rows = order_N[first : min(last, first + max(fit_windows, 100 * k))]
            if k > 1 and len(rows):
                fit = fit_kmeans(x_ND[rows], k=k, key_N=key_N[rows], seed=seed, steps=steps, balance=balance, threads=threads)
                if len(fit.centroid_KD) > 1:  # equal rows cannot be split
                    fits[int(node)] = fit
        if not fits:
            break
        tree = tree.grow(fits)
    return tree
