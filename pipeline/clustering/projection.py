"""A 2-D projection of tree nodes in which similar nodes are close (t-SNE, van der Maaten and Hinton 2008).

Shapes: N nodes of a level, D principal components, A width of centroids joined with their ancestors', K singular values.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays import F32, F64, I32
from pipeline.clustering.tree import Tree

_PERPLEXITY = 30.0  # effective number of neighbours; scikit-learn's default
_ITERATIONS = 750
_WIDTH = 50  # principal components given to t-SNE, as its authors do
_MIN_TSNE_NODES = 8  # with fewer nodes there are no neighbourhoods: use two principal components
_ANCESTOR_WEIGHT = 0.6  # weight of an ancestor's centroid next to the node's own, so that siblings are close together


def project_nodes(tree: Tree, node_N: I32, *, seed: int) -> F32:
    """(N, 2) coordinates from -1 to 1; the same for the same tree and seed on one kind of machine."""
    x_NA = _with_ancestors(tree, node_N)
    x_NA = x_NA - x_NA.mean(axis=0)
    if len(node_N) < 2:
        return np.zeros((len(node_N), 2), np.float32)
    principal_ND = _principal(x_NA)
    place_N2 = principal_ND[:, :2] if len(node_N) < _MIN_TSNE_NODES else _tsne(principal_ND, seed)
    place_N2 = place_N2 - (place_N2.max(axis=0) + place_N2.min(axis=0)) / 2
    return np.asarray(place_N2 / max(1e-12, float(np.abs(place_N2).max())), np.float32)


def _with_ancestors(tree: Tree, node_N: I32) -> F64:
    """(N, A) centroids, each joined with the weighted centroids of its ancestors below the root."""
    blocks: list[NDArray[Any]] = [tree.centroid_VD[node_N]]
    above_N = node_N
    for _ in range(int(tree.level_V[node_N].max(initial=0)) - 1):
        parent_N = tree.parent_V[above_N]
        above_N = np.where(parent_N > 0, parent_N, above_N)  # a node of level 1 stands in for itself: only the root is above it
        blocks.append(_ANCESTOR_WEIGHT * tree.centroid_VD[above_N])
    return np.asarray(np.concatenate(blocks, axis=1), np.float64)


def _principal(x_NA: F64) -> F64:
    """(N, D) coordinates on at least 2 principal components; the entry of largest magnitude of each is positive."""
    u_NK, s_K, _ = np.linalg.svd(x_NA, full_matrices=False)
    u_NK, s_K = u_NK[:, :_WIDTH], s_K[:_WIDTH]
    sign_K = np.sign(u_NK[np.abs(u_NK).argmax(axis=0), np.arange(u_NK.shape[1])])
    principal: F64 = u_NK * (s_K * np.where(sign_K == 0, 1.0, sign_K))
    return principal if principal.shape[1] > 1 else np.column_stack([principal, np.zeros(len(principal))])


def _tsne(principal_ND: F64, seed: int) -> F64:
    import threadpoolctl
    from sklearn.manifold import TSNE

    perplexity = min(_PERPLEXITY, (len(principal_ND) - 1) / 3)
    spread = max(1e-12, float(np.std(principal_ND[:, 0])))
    start_N2 = 1e-4 * principal_ND[:, :2] / spread
    fitted = TSNE(perplexity=perplexity, init=start_N2, max_iter=_ITERATIONS, random_state=seed % (1 << 32), n_jobs=1)
    with threadpoolctl.threadpool_limits(1):  # threads sum in any order, and t-SNE amplifies differences in the last bits
        return np.asarray(fitted.fit_transform(principal_ND.astype(np.float32)), np.float64)
