"""The bootstrap over the documents of a specialist sample: resampled mixtures, and intervals of their shares.

Documents are resampled, not windows: windows of a document share its subject, and treating them as independent would make the
intervals too narrow. The smoothing's α stay as fitted on the sample. A resample repeats documents, so a document left out of it
would be predicted by its own copy, and a refit on the resample would make α too small.

Shapes: L clusters (leaves of the tree), A atoms (`tree_shape.prune`), B replicates, D documents, E (document, leaf) entries of a
sample.
"""

import numpy as np

from pipeline.arrays import F32, F64
from pipeline.config import Weights
from pipeline.hashing import keyed_uniform
from pipeline.mixture.diagnostics import Atoms
from pipeline.mixture.estimators import RESAMPLING_ESTIMATORS, SpecialistMixture
from pipeline.mixture.histograms import DocumentCounts, LeafHistogram
from pipeline.mixture.tree_shape import PrunedTree

TAILS = (0.05, 0.95)  # quantiles of the resamples that bound an interval


class Resampler:
    """The mixture of one specialist for resamples of its documents: as many as the sample has, with replacement."""

    def __init__(
        self,
        name: str,
        sample: DocumentCounts,
        pruned: PrunedTree,
        atoms: Atoms,
        mixture: SpecialistMixture,
        settings: Weights,
        seed: int,
    ) -> None:
        self._num_documents, self._document_E = sample.document_rows()
        self._sample, self._pruned, self._atoms = sample, pruned, atoms
        self._alpha_H = mixture.alpha_H[: int(pruned.level_V[-1])]  # the pruned tree may have fewer levels
        self._estimator = RESAMPLING_ESTIMATORS[settings.estimator]
        self._atom_E = pruned.atom_L[sample.leaf_E]
        self._seed, self._purpose = seed, f"bootstrap.{name}"

    def estimate(self, replicate: int) -> SpecialistMixture:
        """The mixture of one resample over atoms. It depends on seed, specialist, documents and the replicate's number only."""
        slot_D = np.arange(self._num_documents, dtype=np.uint64)
        u_D = keyed_uniform(slot_D, seed=self._seed, purpose=self._purpose, copy=np.full(self._num_documents, replicate))
        times_D = np.bincount((u_D * self._num_documents).astype(np.int64), minlength=self._num_documents)
        times_E = times_D[self._document_E]
        tokens_A = np.zeros(len(self._atoms.inner_entropy_A), dtype=np.int64)
        np.add.at(tokens_A, self._atom_E, times_E * self._sample.tokens_E)
        scale = self._sample.num_windows / self._sample.num_tokens
        return self._estimator.estimate_resample(self._pruned, self._atoms.histogram, tokens_A, scale, self._alpha_H)


def sum_by_atom(p_L: F64, atoms: Atoms) -> F64:
    """(A,) shares of the atoms."""
    return np.bincount(atoms.atom_L, weights=p_L, minlength=len(atoms.inner_entropy_A)).astype(np.float64)


def apply_cluster_factor(p_BA: F32, point_A: F64, clusters_A: F64, power: float) -> None:
    """Turn resamples of CRISP's shares, in place, into resamples of an estimate that has them as a factor (`strata.Odds`).

    `p = point · (resample / CRISP's share) ** power`, normalised; `clusters_A` are CRISP's shares.
    """
    for p_A in p_BA:
        moved_A = point_A * np.divide(p_A, clusters_A, out=np.ones_like(point_A), where=clusters_A > 0) ** power
        p_A[:] = moved_A / moved_A.sum()


def compute_intervals(p_BA: F32, atoms: Atoms, generalist: LeafHistogram, p_L: F64) -> tuple[F64, F64]:
    """(L,) 5th and (L,) 95th percentiles. Leaves of an atom keep their proportions, so its percentiles, scaled, are theirs."""
    low_A, high_A = np.quantile(p_BA, TAILS, axis=0, overwrite_input=True)  # saves a copy of the largest array
    p_A = sum_by_atom(p_L, atoms)
    inside_L = np.where(
        (p_A > 0)[atoms.atom_L], p_L / np.maximum(p_A, 1e-300)[atoms.atom_L], atoms.expand(np.ones_like(p_A), generalist)
    )
    return low_A[atoms.atom_L] * inside_L, high_A[atoms.atom_L] * inside_L
