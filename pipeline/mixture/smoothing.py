"""Shrink a specialist's histogram towards the generalist's mix, level by level down the tree.

With counts n below each node, and the generalist's share G(v|u) of child v in its parent u,

    P(v|u) = (n_v + α_l G(v|u)) / (n_u + α_l)        (METHODS, "Smoothing down the tree"; Dirichlet-multinomial shrinkage)

α = 0 is raw CRISP (arXiv 2410.03735), α = ∞ keeps the generalist's mix below u. One flat pseudo-count over all leaves would
erase the signal where leaves outnumber windows; one α a level finds how deep the sample can see.

**Unit of n.** Tokens of the specialist, divided by its mean tokens a window: "windows' worth". A short last window holds little
evidence and a long one more, and the mixture is one of tokens; the division keeps α readable as a number of windows.

**Back-off.** A child without generalist text (G = 0) cannot be drawn from. Its mass goes to its siblings with text in
proportion to their smoothed P, which is the formula above with n_u counted over children with text only. Where no sibling has
text the parent has none either, and its own mass moves among *its* siblings: nothing is lost on the way up.

Shapes: V nodes, L leaves, H levels below the root, E entries of a sample, T terms of a likelihood.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays import F64, I64
from pipeline.mixture.histograms import DocumentCounts
from pipeline.mixture.tree_shape import TreeShape, leaf_nodes, level_slices, paths

_GRID = 48  # values of log α tried before the search narrows: the likelihood may have several maxima
_LEAST_ALPHA = 1e-3  # windows; below, α = 0 is as good wherever it is finite
_SURELY_INF = 1e3  # times the sample: above, α = ∞ is as good


def smooth(tree: TreeShape, text_V: NDArray[Any], n_V: NDArray[Any], alpha_H: F64) -> tuple[F64, float]:
    """The smoothed share of each leaf, and the mass that was backed off.

    Args:
        text_V: generalist tokens below each node; the root has some.
        n_V: windows' worth of the specialist below each node.
        alpha_H: pseudo-windows of levels 1 … H, each 0 … ∞.

    Returns:
        (L,) shares that sum to 1, 0 where there is no text; the mass that stood in nodes without text, from 0 to 1.
    """
    parent_V, has_text_V = tree.parent_V, text_V > 0
    usable_V = np.where(has_text_V, n_V, 0.0)
    usable_below_V = np.bincount(parent_V[1:], weights=usable_V[1:], minlength=len(parent_V))
    p_V = np.zeros(len(parent_V))
    p_V[0] = 1.0
    backed_off = 0.0
    for level, alpha in zip(level_slices(tree)[1:], alpha_H, strict=True):
        up = parent_V[level]
        share = text_V[level] / np.maximum(text_V[up], 1)
        if np.isfinite(alpha):
            total = usable_below_V[up] + alpha
            heard = total > 0  # else no child with text has counts and α is 0: the limit of α → 0 is the generalist's mix
            share = np.where(heard, (usable_V[level] + alpha * share) / np.where(heard, total, 1.0), share)
            lost = ~has_text_V[level] & (n_V[level] > 0)
            backed_off += float((p_V[up[lost]] * n_V[level][lost] / (n_V[up[lost]] + alpha)).sum())
        p_V[level] = p_V[up] * share
    p_L = p_V[leaf_nodes(tree)]
    return p_L / p_L.sum(), backed_off  # the sum is 1 but for rounding


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What a level's leave-one-out likelihood needs: one term for each unit left out and child it enters.

    `rest_*` are counts without the unit, `weight_T` is the unit's own count in the child, all in windows' worth.
    """

    rest_child_T: F64
    rest_parent_T: F64
    g_T: F64
    weight_T: F64

    def log_likelihood(self, alpha: float) -> float:
        """Σ weight · log P(child | parent) with the unit left out; -inf at α = 0 where a unit is alone in a child."""
        p_T = self.g_T if np.isinf(alpha) else (self.rest_child_T + alpha * self.g_T) / (self.rest_parent_T + alpha)
        if not p_T.all():
            return -np.inf
        return float(self.weight_T @ np.log(p_T))


def fit_alphas(tree: TreeShape, text_V: NDArray[Any], sample: DocumentCounts) -> F64:
    """(H,) the α of each level that best predicts the sample's own paths, each *document* left out in turn.

    Windows of a document share leaves. Were one window left out, its siblings would predict it, and α would come out near 0:
    the sample would look far surer of its leaves than the next document proves it. With one window a document this is the
    leave-one-out rule of METHODS. Levels factor, so each α is found alone: closed form for an α, a grid and a bounded search
    over log α, and the ends 0 and ∞. Equal likelihoods go to the larger α; so does a level about which the sample says nothing
    (no two documents share a parent).

    A single document cannot be left out. Then windows are, and since it is but one draw of its domain, however many windows it
    has, α is at least its number of windows: the generalist keeps half at each level. A single window so has α = 1.
    """
    path_HE = paths(tree, sample.leaf_E)
    num_windows = sample.num_windows
    scale = num_windows / sample.num_tokens
    num_documents, document_E = sample.document_rows()
    alone = num_documents == 1
    tokens_E = sample.tokens_E.astype(np.float64)
    unit_E = np.arange(len(tokens_E)) if alone else document_E
    # Windows of one entry are left out one at a time, each as its entry's mean: they differ only in length.
    held_E = tokens_E / sample.windows_E if alone else tokens_E
    if num_windows == 1:
        return np.ones(len(path_HE))
    alpha_H = np.empty(len(path_HE))
    for row, node_E in enumerate(path_HE):
        keep_E = (node_E >= 0) & (text_V[node_E] > 0)  # mass without text is backed off: no evidence about this split
        terms = held_out_terms(tree, text_V, node_E[keep_E], unit_E[keep_E], held_E[keep_E], tokens_E[keep_E], scale)
        alpha_H[row] = best_alpha(terms, num_windows)
    return np.maximum(alpha_H, num_windows) if alone else alpha_H


def held_out_terms(
    tree: TreeShape,
    text_V: NDArray[Any],
    node_E: I64,
    unit_E: I64,
    held_E: F64,
    tokens_E: F64,
    scale: float,
) -> HeldOut:
    """The terms of one level: each entry lies in child `node_E`, and leaves with its unit, taking `held_E` tokens along.

    Terms whose parent is empty without the unit are left out: they are log G(v|u) for every α.
    """
    parent_E = np.asarray(tree.parent_V, dtype=np.int64)[node_E]
    num_nodes = len(tree.parent_V)
    child_total_E = _sum_by(node_E, tokens_E)
    parent_total_E = _sum_by(parent_E, tokens_E)
    child_key_E = unit_E * num_nodes + node_E
    held_parent_E = _sum_by(unit_E * num_nodes + parent_E, held_E)
    held_child_E = _sum_by(child_key_E, held_E)
    _, first_T, term_E = np.unique(child_key_E, return_index=True, return_inverse=True)
    weight_T = np.bincount(term_E, weights=tokens_E, minlength=len(first_T)).astype(np.float64)
    rest_parent_T = (parent_total_E - held_parent_E)[first_T]
    keep_T = rest_parent_T > 0
    first_T = first_T[keep_T]
    return HeldOut(
        rest_child_T=scale * (child_total_E - held_child_E)[first_T],
        rest_parent_T=scale * rest_parent_T[keep_T],
        g_T=text_V[node_E[first_T]] / text_V[parent_E[first_T]],
        weight_T=scale * weight_T[keep_T],
    )


def best_alpha(terms: HeldOut, num_windows: int) -> float:
    """The α in [0, ∞] with the largest likelihood; the largest of those that are equal within rounding."""
    from scipy.optimize import minimize_scalar  # half a second, which a run that only plans need not pay

    at_inf = terms.log_likelihood(np.inf)
    log_G = np.linspace(np.log(_LEAST_ALPHA), np.log(_SURELY_INF * num_windows), _GRID)
    likelihood_G = np.array([terms.log_likelihood(float(np.exp(x))) for x in log_G])
    best = int(likelihood_G.argmax())
    around = (log_G[max(best - 1, 0)], log_G[min(best + 1, _GRID - 1)])
    found = minimize_scalar(lambda x: -terms.log_likelihood(float(np.exp(x))), bounds=around, method="bounded")
    slack = 1e-9 * (1.0 + abs(at_inf))
    choices = [(0.0, terms.log_likelihood(0.0)), (float(np.exp(found.x)), -float(found.fun)), (np.inf, at_inf)]
    most = max(value for _, value in choices)
    return max(alpha for alpha, value in choices if value >= most - slack)


def _sum_by(group_E: I64, x_E: F64) -> F64:
    """(E,) the sum of `x_E` over each entry's group; exact for whole tokens."""
    _, row_E = np.unique(group_E, return_inverse=True)
    return np.asarray(np.bincount(row_E, weights=x_E)[row_E], dtype=np.float64)
