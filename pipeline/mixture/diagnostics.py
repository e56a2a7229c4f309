"""Diagnostics: numbers that say what a mixture does to the corpus, each with one line of explanation.

Shapes: L clusters (leaves of the tree); A atoms (groups of leaves with one common ratio of target to generalist, see
`tree_shape.prune`; an atom may be a single leaf); C cells (the units of the allocation: atoms, or strata of clusters); M atoms in
which p is not 0.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.arrays import F64, I64, Ints
from pipeline.mixture.allocation import Allocation
from pipeline.mixture.estimators import SpecialistMixture
from pipeline.mixture.histograms import LeafHistogram

SamplingMethod = Literal["rounded", "multinomial"]

_R_STAR = 15.39  # R* for repeated data, arXiv 2305.16264. The paper repeats a whole corpus; applying it per cluster is ours

DESCRIPTIONS = {
    "epochs_max": "largest epochs of any cluster",
    "epochs_p99": "99% of the output's tokens come from text with at most this many epochs",
    "repeats_value": "value of an output token relative to a new token, with repeats discounted as in arXiv 2305.16264",
    "unique_share": "expected share of the output's tokens that are not repeats",
    "effective_windows": "generalist windows that the weighting uses, (sum w n)^2 / sum w^2 n",
    "effective_share": "effective_windows as a share of all generalist windows",
    "clipped_mass": "share of the budget requested beyond max_epochs and not covered by rewrites",
    "deficit_share": "share of the budget that stays unfilled",
    "output_entropy": "entropy of the output over leaves, nats",
    "output_effective_leaves": "leaves that the output is spread over, exp(entropy)",
    "output_top_share": "share of the output in its most frequent cluster",
    "generalist_entropy": "entropy of the generalist corpus over leaves, nats",
    "generalist_top_share": "share of the generalist corpus in its most frequent cluster",
    "documents": "documents of the sample; the intervals resample these",
    "windows": "windows of the sample",
    "entropy": "entropy of the smoothed specialist over leaves, nats",
    "effective_leaves": "leaves that the smoothed specialist is spread over, exp(entropy)",
    "top_share": "share of the smoothed specialist in its most frequent cluster",
    "kl_generalist": "KL(smoothed specialist || generalist) over leaves, nats",
    "kl_output": "KL(smoothed specialist || output) over leaves, nats: remaining divergence after cap and natural share",
    "without_text": "share of the sample in clusters without generalist text",
    "backed_off": "share moved from clusters without generalist text to their siblings",
}


def describe(name: str) -> str:
    """The explanation of a diagnostic, one line."""
    if name.startswith("alpha_level_"):
        level = name.removeprefix("alpha_level_")
        return f"pseudo-windows of the generalist's mixture at level {level}: 0 trusts the sample, inf ignores it"
    return DESCRIPTIONS[name]


@dataclass(frozen=True, kw_only=True)
class Atoms:
    """Groups of leaves; inside a group all shares are proportional to the generalist's tokens."""

    atom_L: I64
    histogram: LeafHistogram  # generalist windows and tokens of each atom
    inner_entropy_A: F64  # entropy of the generalist's mixture inside the atom, nats
    largest_share_A: F64  # share of the atom's largest leaf in the atom

    @classmethod
    def of(cls, atom_L: I64, generalist: LeafHistogram) -> "Atoms":
        """The atoms numbered by `atom_L`; every number from 0 to the largest has a leaf."""
        num_atoms = int(atom_L.max()) + 1
        tokens_A, windows_A = np.zeros(num_atoms, dtype=np.int64), np.zeros(num_atoms, dtype=np.int64)
        np.add.at(tokens_A, atom_L, generalist.tokens_L)
        np.add.at(windows_A, atom_L, generalist.windows_L)
        inside_L = generalist.tokens_L / np.maximum(tokens_A, 1)[atom_L]
        inner_entropy_A = np.bincount(atom_L, weights=-_p_log_p(inside_L), minlength=num_atoms).astype(np.float64)
        largest_share_A = np.zeros(num_atoms)
        np.maximum.at(largest_share_A, atom_L, inside_L)
        histogram = LeafHistogram(windows_L=windows_A, tokens_L=tokens_A)
        return cls(atom_L=atom_L, histogram=histogram, inner_entropy_A=inner_entropy_A, largest_share_A=largest_share_A)

    def expand(self, p_A: F64, generalist: LeafHistogram) -> F64:
        """(L,) shares of leaves, given those of atoms; 0 in an atom without text."""
        return np.asarray((p_A / np.maximum(self.histogram.tokens_L, 1))[self.atom_L] * generalist.tokens_L, np.float64)

    def entropy(self, p_A: F64) -> float:
        """Entropy over leaves in nats, given shares of atoms."""
        return float(p_A @ self.inner_entropy_A - _p_log_p(p_A).sum())

    def top_share(self, p_A: F64) -> float:
        """Share of the most frequent leaf, given shares of atoms."""
        return float((p_A * self.largest_share_A).max())


def diagnose_mixture(
    allocation: Allocation, windows_C: Ints, allocated_A: F64, atoms: Atoms, draw: SamplingMethod
) -> dict[str, float]:
    """The diagnostics of the whole output.

    Args:
        allocation: the allocation over C cells.
        windows_C: generalist windows.
        allocated_A: allocated tokens.
    """
    allocated_C, epochs_C, tokens_C = allocation.allocated_L, allocation.epochs_L, allocation.tokens_L
    total = allocated_C.sum()
    output_A, generalist_A = allocated_A / total, atoms.histogram.p_L
    repeats_C = np.maximum(epochs_C - 1.0, 0.0)
    value_C = np.minimum(allocated_C, tokens_C) + np.where(repeats_C > 0, tokens_C * _R_STAR * -np.expm1(-repeats_C / _R_STAR), 0.0)
    # The probability that a window occurs at all.
    p_present_C = np.minimum(epochs_C, 1.0) if draw == "rounded" else -np.expm1(-epochs_C)
    effective = float((epochs_C @ windows_C) ** 2 / (epochs_C**2 @ windows_C))
    order_C = np.argsort(epochs_C, kind="stable")
    upto_C = np.cumsum(allocated_C[order_C])
    p99 = epochs_C[order_C[min(int(np.searchsorted(upto_C, 0.99 * upto_C[-1])), len(order_C) - 1)]]
    entropy = atoms.entropy(output_A)
    return {
        "epochs_max": float(epochs_C.max()),
        "epochs_p99": float(p99),
        "repeats_value": float(value_C.sum() / total),
        "unique_share": float((p_present_C * tokens_C).sum() / total),
        "effective_windows": effective,
        "effective_share": effective / float(windows_C.sum()),
        "clipped_mass": allocation.clipped_mass,
        "deficit_share": allocation.deficit_share,
        "output_entropy": entropy,
        "output_effective_leaves": float(np.exp(entropy)),
        "output_top_share": atoms.top_share(output_A),
        "generalist_entropy": atoms.entropy(generalist_A),
        "generalist_top_share": atoms.top_share(generalist_A),
    }


def diagnose_specialist(mixture: SpecialistMixture, allocated_A: F64, atoms: Atoms) -> dict[str, float]:
    """The diagnostics of one specialist that depend on its documents, and so vary under the bootstrap.

    `allocated_A` are the allocated tokens of the whole mixture.
    """
    p_A = mixture.p_L
    entropy = atoms.entropy(p_A)
    return {
        "entropy": entropy,
        "effective_leaves": float(np.exp(entropy)),
        "top_share": atoms.top_share(p_A),
        "kl_generalist": _kl(p_A, atoms.histogram.p_L),
        "kl_output": _kl(p_A, allocated_A / allocated_A.sum()),
        "without_text": mixture.without_text,
        "backed_off": mixture.backed_off,
    }


def _p_log_p(p_A: F64) -> F64:
    return np.asarray(p_A * np.log(p_A, out=np.zeros_like(p_A), where=p_A > 0))


def _kl(p_A: F64, q_A: F64) -> float:
    """KL(p ‖ q) = Σ p log p/q, nats; inf if q is 0 where p is not."""
    has_A = p_A > 0
    p_M, q_M = p_A[has_A], q_A[has_A]
    return float(p_M @ np.log(p_M / q_M)) if q_M.all() else float("inf")
