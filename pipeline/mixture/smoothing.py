"""Smoothing: shrink a specialist's histogram towards the generalist's, level by level down the cluster tree.

With counts n below each node, and the generalist's share G(v|u) of child v in its parent u,

    P(v|u) = (n_v + α_l G(v|u)) / (n_u + α_l)        (Dirichlet-multinomial shrinkage; docs/decisions/0004)

α = 0 is raw CRISP (arXiv 2410.03735); α = ∞ keeps the generalist's proportions below u. One flat pseudo-count over all leaves would
erase the signal where leaves outnumber windows. One α per level finds the depth that the sample supports.

**Unit of n.** Tokens of the specialist, divided by its mean tokens per window; in short, windows. A short last window is less
evidence than a long one, and the mixture is over tokens. After the division α reads as a number of windows.

**Back-off.** A child without generalist text (G = 0) cannot be sampled from. Its mass goes to its siblings with text in proportion
to their smoothed P. This is the formula above with n_u counted over children with text only. If no sibling has text, the parent has
none either, and the parent's mass moves to *its* siblings, so no mass is lost.

Shapes: V nodes, L leaves, H levels below the root, E entries of a sample (a document in a leaf), T terms of a likelihood, G grid.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays import F64, I64
from pipeline.mixture.histograms import DocumentCounts
from pipeline.mixture.tree_shape import TreeShape, find_leaf_nodes, find_paths, slice_levels

_GRID = 48  # values of log α to try before the local search: the likelihood may have several maxima
_MIN_ALPHA = 1e-3  # windows; below this, α = 0 is as good, if its likelihood is finite
_INF_FACTOR = 1e3  # times the windows of the sample; above this, α = ∞ is as good


def smooth(tree: TreeShape, text_V: NDArray[Any], n_V: NDArray[Any], alpha_H: F64) -> tuple[F64, float]:
    """The smoothed share of each leaf, and the mass that back-off moved.

    Args:
        text_V: generalist tokens below each node; more than 0 at the root.
        n_V: the specialist's counts below each node, in windows.
        alpha_H: pseudo-windows of levels 1 … H, each 0 … ∞.

    Returns:
        (L,) shares that sum to 1, 0 where there is no text; the mass of nodes without text, from 0 to 1.
    """
    parent_V, has_text_V = tree.parent_V, text_V > 0
    usable_V = np.where(has_text_V, n_V, 0.0)
    usable_below_V = np.bincount(parent_V[1:], weights=usable_V[1:], minlength=len(parent_V))
    p_V = np.zeros(len(parent_V))
    p_V[0] = 1.0
    backed_off = 0.0
    for level, alpha in zip(slice_levels(tree)[1:], alpha_H, strict=True):
        up = parent_V[level]
        share = text_V[level] / np.maximum(text_V[up], 1)
        if np.isfinite(alpha):
            total = usable_below_V[up] + alpha
            heard = total > 0  # else no child with text has counts and α is 0: as for α → 0, keep the generalist's share
            share = np.where(heard, (usable_V[level] + alpha * share) / np.where(heard, total, 1.0), share)
            lost = ~has_text_V[level] & (n_V[level] > 0)
            backed_off += float((p_V[up[lost]] * n_V[level][lost] / (n_V[up[lost]] + alpha)).sum())
        p_V[level] = p_V[up] * share
    p_L = p_V[find_leaf_nodes(tree)]
    return p_L / p_L.sum(), backed_off  # removes rounding error: the sum is 1 up to rounding


@dataclass(frozen=True, kw_only=True)
class LeaveOneOutTerms:
    """The terms of one level's leave-one-out likelihood: one per unit (document or window) and child that it occurs in.

    `rest_*` are counts without the unit, `weight_T` is the unit's own count in the child, all in windows; `g_T` is G(child|parent).
    """

    rest_child_T: F64
    rest_parent_T: F64
    g_T: F64
    weight_T: F64

    def log_likelihood(self, alpha: float) -> float:
        """Σ weight · log P(child | parent), the unit left out; -inf at α = 0 if a unit is the only one in a child."""
        p_T = self.g_T if np.isinf(alpha) else (self.rest_child_T + alpha * self.g_T) / (self.rest_parent_T + alpha)
        if not p_T.all():
            return -np.inf
        return float(self.weight_T @ np.log(p_T))


def fit_alphas(tree: TreeShape, text_V: NDArray[Any], sample: DocumentCounts) -> F64:
    """(H,) the α of each level that best predicts the sample's own paths, leaving out one *document* at a time.

    Windows of a document share leaves. If single windows were left out, the other windows of the document would predict them, and α
    would be near 0, although another document would fall into other leaves. With one window per document the two rules agree.

    The likelihood factors over levels, so each α is fitted alone. For a given α it has a closed form. Candidates are 0, ∞, and the
    best of a grid over log α, refined by a bounded search. Ties go to the larger α, so α = ∞ for a level without evidence (no two
    documents share a parent).

    With a single document, windows are left out instead. However many windows it has, it is one observation of its domain. So α is
    at least its number of windows, which gives the generalist half the weight or more at each level. A single window has α = 1.
    """
    path_HE = find_paths(tree, sample.leaf_E)
    num_windows = sample.num_windows
    scale = num_windows / sample.num_tokens
    num_documents, document_E = sample.document_rows()
    alone = num_documents == 1
    tokens_E = sample.tokens_E.astype(np.float64)
    unit_E = np.arange(len(tokens_E)) if alone else document_E
    # Windows of one entry differ only in length, so each is left out with the entry's mean tokens.
    held_E = tokens_E / sample.windows_E if alone else tokens_E
    if num_windows == 1:
        return np.ones(len(path_HE))
    alpha_H = np.empty(len(path_HE))
    for row, node_E in enumerate(path_HE):
        keep_E = (node_E >= 0) & (text_V[node_E] > 0)  # windows in nodes without text are backed off: no evidence for this level
        terms = build_terms(tree, text_V, node_E[keep_E], unit_E[keep_E], held_E[keep_E], tokens_E[keep_E], scale)
        alpha_H[row] = fit_alpha(terms, num_windows)
    return np.maximum(alpha_H, num_windows) if alone else alpha_H


def build_terms(
    tree: TreeShape,
    text_V: NDArray[Any],
    node_E: I64,
    unit_E: I64,
    held_E: F64,
    tokens_E: F64,
    scale: float,
) -> LeaveOneOutTerms:
    """The terms of one level. Entry e lies in child `node_E`; leaving out its unit `unit_E` removes `held_E` tokens of it.

    Terms whose parent is empty without the unit are omitted: they are log G(v|u) for every α. `scale` is windows per token.
    """
    parent_E = np.asarray(tree.parent_V, dtype=np.int64)[node_E]
    num_nodes = len(tree.parent_V)
    child_total_E = _sum_by_group(node_E, tokens_E)
    parent_total_E = _sum_by_group(parent_E, tokens_E)
    child_key_E = unit_E * num_nodes + node_E
    held_parent_E = _sum_by_group(unit_E * num_nodes + parent_E, held_E)
    held_child_E = _sum_by_group(child_key_E, held_E)
    _, first_T, term_E = np.unique(child_key_E, return_index=True, return_inverse=True)
    weight_T = np.bincount(term_E, weights=tokens_E, minlength=len(first_T)).astype(np.float64)
    rest_parent_T = (parent_total_E - held_parent_E)[first_T]
    keep_T = rest_parent_T > 0
    first_T = first_T[keep_T]
    return LeaveOneOutTerms(
        rest_child_T=scale * (child_total_E - held_child_E)[first_T],
        rest_parent_T=scale * rest_parent_T[keep_T],
        g_T=text_V[node_E[first_T]] / text_V[parent_E[first_T]],
        weight_T=scale * weight_T[keep_T],
    )


def fit_alpha(terms: LeaveOneOutTerms, num_windows: int) -> float:
    """The α in [0, ∞] with the largest likelihood; the largest α of those equal within rounding."""
    from scipy.optimize import minimize_scalar  # the import takes half a second; dry runs do not need it

    at_inf = terms.log_likelihood(np.inf)
    log_G = np.linspace(np.log(_MIN_ALPHA), np.log(_INF_FACTOR * num_windows), _GRID)
    likelihood_G = np.array([terms.log_likelihood(float(np.exp(x))) for x in log_G])
    best = int(likelihood_G.argmax())
    around = (log_G[max(best - 1, 0)], log_G[min(best + 1, _GRID - 1)])
    found = minimize_scalar(lambda x: -terms.log_likelihood(float(np.exp(x))), bounds=around, method="bounded")
    slack = 1e-9 * (1.0 + abs(at_inf))
    choices = [(0.0, terms.log_likelihood(0.0)), (float(np.exp(found.x)), -float(found.fun)), (np.inf, at_inf)]
    most = max(value for _, value in choices)
    return max(alpha for alpha, value in choices if value >= most - slack)


def _sum_by_group(group_E: I64, x_E: F64) -> F64:
    """(E,) the sum of `x_E` over each entry's group; exact for integers."""
    _, row_E = np.unique(group_E, return_inverse=True)
    return np.asarray(np.bincount(row_E, weights=x_E)[row_E], dtype=np.float64)
