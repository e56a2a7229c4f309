"""Which deficit a rewrite fills: that of the cluster in which it lies, else that of its parent's.

A rewrite in another manner often lies in another cluster than the text it was made from. It is of the same matter all the same (the
filter on similarity sees to that), so where its own cluster needs nothing it is used for its parent's, which ran short.

Shapes: L leaves, P pairs of an own and a parent's leaf, R rewrites.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.arrays import F64, Ints


@dataclass(frozen=True)
class Serving:
    """How rewrites are used: the chance that one is used for its own leaf, the chance that what is left serves its parent's."""

    own_L: F64
    parent_L: F64
    filled_L: F64  # tokens that each leaf gets

    def chance(self, leaf_R: Ints, parent_R: Ints) -> F64:
        """(R,) expected copies of each rewrite, at most 1; 0 without a leaf."""
        own_R = self.own_L[leaf_R]
        served_R = own_R + np.where(parent_R != leaf_R, (1.0 - own_R) * self.parent_L[parent_R], 0.0)
        return np.where(leaf_R >= 0, served_R, 0.0)


def serve(wanted_L: F64, leaf_P: Ints, parent_P: Ints, tokens_P: Ints) -> Serving:
    """Fill each leaf's deficit with rewrites that lie in it, then with what is left of those made from its text.

    The expected tokens used are `filled_L.sum()`; no leaf gets more than it wants.
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
    """Use all rewrites alike, wherever they lie, up to `wanted` tokens."""
    valid_P = leaf_P >= 0
    held_L = np.bincount(leaf_P[valid_P], weights=tokens_P[valid_P], minlength=num_leaves)
    share = min(1.0, wanted / held_L.sum()) if held_L.sum() else 0.0
    return Serving(np.full(num_leaves, share), np.zeros(num_leaves), np.asarray(share * held_L, np.float64))
