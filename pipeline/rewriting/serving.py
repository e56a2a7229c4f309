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
class Serving:
    """How rewrites are used."""

    own_L: F64  # probability that a rewrite in this cluster is used for it
    parent_L: F64  # probability that a rewrite of this cluster's text, in another cluster and unused there, is used for this one
    filled_L: F64  # expected tokens of rewrites used for each cluster

    def chance(self, leaf_R: Ints, parent_R: Ints) -> F64:
        """Return (R,) the expected copies of each rewrite, at most 1; 0 for a rewrite without a cluster (leaf -1)."""
        own_R = self.own_L[leaf_R]
        served_R = own_R + np.where(parent_R != leaf_R, (1.0 - own_R) * self.parent_L[parent_R], 0.0)
        return np.where(leaf_R >= 0, served_R, 0.0)


def serve(wanted_L: F64, leaf_P: Ints, parent_P: Ints, tokens_P: Ints) -> Serving:
    """Fill the deficit of each cluster with rewrites in it, then with unused rewrites of its own text that fell elsewhere.

    The expected tokens used are `filled_L.sum()`; no cluster gets more than `wanted_L`.
    """
    num_leaves = len(wanted_L)
    valid_P = leaf_P >= 0
    leaf_P, parent_P, tokens_P = leaf_P[valid_P], parent_P[valid_P], tokens_P[valid_P].astype(np.float64)
    held_L = np.bincount(leaf_P, weights=tokens_P, minlength=num_leaves)
    by_own_L = np.minimum(wanted_L, held_L)
    own_L = np.divide(by_own_L, held_L, out=np.zeros(num_leaves), where=held_L > 0)
    moved_P = leaf_P != parent_P
    spare_L = np.bincount(parent_P[moved_P], weights=(tokens_P * (1.0 - own_L[leaf_P]))[moved_P], minlength=num_leaves)
    by_parent_L = np.minimum(wanted_L - by_own_L, spare_L)
    parent_L = np.divide(by_parent_L, spare_L, out=np.zeros(num_leaves), where=spare_L > 0)
    return Serving(own_L, parent_L, by_own_L + by_parent_L)


def serve_alike(wanted: float, leaf_P: Ints, tokens_P: Ints, num_leaves: int) -> Serving:
    """Use every rewrite with the same probability, whatever its cluster, up to `wanted` tokens in total."""
    valid_P = leaf_P >= 0
    held_L = np.bincount(leaf_P[valid_P], weights=tokens_P[valid_P], minlength=num_leaves)
    share = min(1.0, wanted / held_L.sum()) if held_L.sum() else 0.0
    return Serving(np.full(num_leaves, share), np.zeros(num_leaves), np.asarray(share * held_L, np.float64))
