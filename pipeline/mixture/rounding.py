"""Balanced rounding of probabilities to 0 or 1: unbiased for each window, and within one window of the target in every subtree.

The cube method (Deville and Tillé, Biometrika 91, 2004) with one balancing variable, tokens, run as a tournament up the tree. Two
undecided windows of a leaf meet in a duel: probability moves from one to the other, in a random direction, until one of them is at
0 or 1. The sum of tokens × probability stays the same. The odds of the two directions make each duel a fair game, so every window
ends at 1 with exactly the probability that it began with. A window that is still undecided meets the next one: in its leaf, then in
the parent, up to the root. After its round, a node has at most one undecided window, so its tokens end within one window of the
target; so do the tokens of the whole tree.

A simpler rule walks the leaves and takes a window whenever that brings the running total nearer to the target. It keeps the totals
too, but it is biased: a short window is taken as soon as a few tokens are missing, a long one has to wait, and where leaves are
small, long windows are hardly ever sampled.

Shapes: C candidates, sorted by leaf and then by key; U those undecided; M duels of one round.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays import F64, I64, Ints
from pipeline.hashing import keyed_uniform
from pipeline.mixture.tree_shape import TreeShape, find_leaf_nodes

_DECIDED = 1e-14  # a probability this close to 0 or 1 differs from it by rounding only


def round_balanced(
    probability_C: F64, tokens_C: Ints, key_C: NDArray[np.uint64], leaf_C: Ints, tree: TreeShape, seed: int
) -> NDArray[np.bool_]:
    """(C,) which candidates are taken: each with its probability, and Σ tokens within one window of Σ p · tokens per node."""
    probability_C = probability_C.copy()
    size_C = np.maximum(np.asarray(tokens_C, dtype=np.float64), 1.0)
    node_C = find_leaf_nodes(tree)[leaf_C]
    alive_U = _undecided(probability_C, np.arange(len(probability_C)))
    turn = 0
    for level in range(int(tree.level_V[-1]), -1, -1):
        while True:
            first_M, second_M = _pair_neighbours(node_C[alive_U])
            if not len(first_M):
                break
            i_M, j_M = alive_U[first_M], alive_U[second_M]
            u_M = keyed_uniform(key_C[i_M], seed=seed, purpose="draw.duel", copy=np.full(len(i_M), turn))
            probability_C[i_M], probability_C[j_M] = _play_duel(
                probability_C[i_M], probability_C[j_M], size_C[i_M], size_C[j_M], u_M
            )
            alive_U = _undecided(probability_C, alive_U)
            turn += 1
        node_U = node_C[alive_U]
        node_C[alive_U] = np.where(tree.level_V[node_U] == level, tree.parent_V[node_U], node_U)
    last_U = alive_U  # at the root: at most one window
    probability_C[last_U] = keyed_uniform(key_C[last_U], seed=seed, purpose="draw.last") < probability_C[last_U]
    return probability_C > 0.5


def _undecided(probability_C: F64, among_U: I64) -> I64:
    probability_U = probability_C[among_U]
    return among_U[(probability_U > _DECIDED) & (probability_U < 1.0 - _DECIDED)]


def _pair_neighbours(node_U: I64) -> tuple[I64, I64]:
    """Positions of the first and second window of each pair: neighbours in the same node, each in at most one pair."""
    new_U = np.ones(len(node_U), dtype=bool)
    new_U[1:] = node_U[1:] != node_U[:-1]
    place_U = np.arange(len(node_U)) - np.flatnonzero(new_U)[np.cumsum(new_U) - 1]
    first_M = np.flatnonzero((place_U[:-1] % 2 == 0) & ~new_U[1:])
    return first_M, first_M + 1


def _play_duel(p_M: F64, q_M: F64, s_M: F64, t_M: F64, u_M: F64) -> tuple[F64, F64]:
    """New probabilities of two windows of s and t tokens: at least one is 0 or 1, and p s + q t is unchanged."""
    p_up_M, q_down_M = (1.0 - p_M) * s_M, q_M * t_M  # tokens that can move from the second to the first
    p_down_M, q_up_M = p_M * s_M, (1.0 - q_M) * t_M
    up_M, down_M = np.minimum(p_up_M, q_down_M), np.minimum(p_down_M, q_up_M)
    rise_M = u_M * (up_M + down_M) < down_M  # a fair game: up · P(rise) = down · P(fall)
    to_p_M = np.where(
        rise_M, np.where(p_up_M <= q_down_M, 1.0, p_M + up_M / s_M), np.where(p_down_M <= q_up_M, 0.0, p_M - down_M / s_M)
    )
    to_q_M = np.where(
        rise_M, np.where(q_down_M <= p_up_M, 0.0, q_M - up_M / t_M), np.where(q_up_M <= p_down_M, 1.0, q_M + down_M / t_M)
    )
    return to_p_M, to_q_M
