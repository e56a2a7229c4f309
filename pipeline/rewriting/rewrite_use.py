"""Decide which deficit a rewrite fills: that of its own cluster first, then that of its source window's cluster.

A rewrite in another style often falls into another cluster than its source window (its parent). It still has the same content,
which the rule `similarity` ensures. So if its own cluster needs no rewrites, it is used for the source window's cluster, which has
a deficit. See docs/decisions/0008-rewrites-serve-deficits-in-rounds.md.

Shapes: L clusters, P pairs (own cluster, source window's cluster), R rewrites.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.arrays import F64, Ints


@dataclass(frozen=True)
class RewriteUse:
    """The probabilities with which rewrites are used."""

    own_L: F64  # probability that a rewrite in this cluster is used for it
    parent_L: F64  # probability that a rewrite of this cluster's text, in another cluster and unused there, is used for this one
    filled_L: F64  # expected tokens of rewrites used for each cluster

    def compute_expected_copies(self, leaf_R: Ints, parent_R: Ints) -> F64:
        """Return (R,) the expected copies of each rewrite, at most 1; 0 for a rewrite without a cluster (leaf -1)."""
        own_R = self.own_L[leaf_R]
        expected_R = own_R + np.where(parent_R != leaf_R, (1.0 - own_R) * self.parent_L[parent_R], 0.0)
        return np.where(leaf_R >= 0, expected_R, 0.0)


def fill_deficits(wanted_L: F64, leaf_P: Ints, parent_P: Ints, tokens_P: Ints) -> RewriteUse:
    """Fill the deficit of each cluster with rewrites in it, then with unused rewrites of its own text that fell elsewhere.

    The expected tokens used are `filled_L.sum()`; no cluster gets more than `wanted_L`.
    """
    num_leaves = len(wanted_L)
    valid_P = leaf_P >= 0
    leaf_P, parent_P, tokens_P = leaf_P[valid_P], parent_P[valid_P], tokens_P[valid_P].astype(np.float64)
    available_L = np.bincount(leaf_P, weights=tokens_P, minlength=num_leaves)
    filled_by_own_L = np.minimum(wanted_L, available_L)
    own_L = np.divide(filled_by_own_L, available_L, out=np.zeros(num_leaves), where=available_L > 0)
    moved_P = leaf_P != parent_P
    unused_P = tokens_P * (1.0 - own_L[leaf_P])
    unused_L = np.bincount(parent_P[moved_P], weights=unused_P[moved_P], minlength=num_leaves)
    filled_by_moved_L = np.minimum(wanted_L - filled_by_own_L, unused_L)
    parent_L = np.divide(filled_by_moved_L, unused_L, out=np.zeros(num_leaves), where=unused_L > 0)
    return RewriteUse(own_L, parent_L, filled_by_own_L + filled_by_moved_L)


def fill_uniformly(wanted_tokens: float, leaf_P: Ints, tokens_P: Ints, num_leaves: int) -> RewriteUse:
    """Use every rewrite with the same probability, whatever its cluster, up to `wanted_tokens` in total."""
    valid_P = leaf_P >= 0
    available_L = np.bincount(leaf_P[valid_P], weights=tokens_P[valid_P], minlength=num_leaves)
    share = min(1.0, wanted_tokens / available_L.sum()) if available_L.sum() else 0.0
    return RewriteUse(np.full(num_leaves, share), np.zeros(num_leaves), np.asarray(share * available_L, np.float64))
