"""The tables of the weights stage, with intervals from a bootstrap over the documents of the specialist samples.

Documents are resampled, not windows: windows of a document share its subject, and treating them as independent would make the
intervals too narrow. The smoothing's α stay as fitted on the sample. A resample repeats documents, so a document left out of it
would be predicted by its own copy, and a refit on the resample would make α too small.

Shapes: L clusters (leaves of the tree), A atoms (`tree_shape.prune`), C cells (units of the allocation: atoms, or strata of
clusters), R rows of claims (specialists, then natural text), B replicates, D documents, E (document, leaf) entries of a sample,
S specialists.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pipeline.arrays import F32, F64, I64
from pipeline.config import Weights
from pipeline.hashing import keyed_uniform
from pipeline.mixture.allocation import Limits, allocate_capped
from pipeline.mixture.diagnostics import Atoms, SamplingMethod, describe, diagnose_mixture, diagnose_specialist
from pipeline.mixture.estimators import RESAMPLING_ESTIMATORS, SpecialistMixture, compute_claims
from pipeline.mixture.histograms import DocumentCounts, LeafHistogram
from pipeline.mixture.strata import Strata
from pipeline.mixture.tree_shape import PrunedTree, TreeShape, prune
from pipeline.tables import DIAGNOSTICS, MIXTURE, SPECIALISTS, cast

_TAILS = (0.05, 0.95)
# Estimators whose shares below every node without sample windows are proportional to the generalist's.
_PRUNED = ("crisp", "natural", "top-cluster")


@dataclass(frozen=True, kw_only=True)
class MixtureTables:
    """The SPECIALISTS, MIXTURE and DIAGNOSTICS tables of a mixture."""

    specialists: pa.Table
    mixture: pa.Table
    diagnostics: pa.Table


def build_tables(
    tree: TreeShape,
    generalist: LeafHistogram,
    specialists: Mapping[str, DocumentCounts],
    mixtures: Mapping[str, SpecialistMixture],
    settings: Weights,
    limits: Limits,
    *,
    shares: Mapping[str, float],
    natural_share: float,
    sharpness: float = 1.0,
    draw: SamplingMethod,
    seed: int,
    strata: Strata | None = None,
    clusters: Mapping[str, SpecialistMixture] | None = None,
) -> MixtureTables:
    """The tables for the mixtures that the estimator of `settings` found.

    Intervals are the 5th and 95th percentile over `settings.bootstrap` resamples. They are missing (NaN in SPECIALISTS, null in
    DIAGNOSTICS) with 0 resamples, for a sample of a single document, and for estimators that are not in `RESAMPLING_ESTIMATORS`.
    Memory for resamples is B · S · A float32, so it grows with the leaves that samples touch, not with those of the tree.

    Args:
        mixtures: the estimate for each specialist.
        shares: the share of each specialist among the specialists; normalised here.
        sharpness: twice the power of the estimate (`strata.Odds`); used with `clusters` only.
        strata: the units of the allocation, if the estimator scores windows.
        clusters: CRISP's mixtures, if their cluster weights are a factor of an estimate that scores windows. Resamples then change
            this factor only, and the fitted scorers stay as they are; only shares have intervals, not diagnostics.
    """
    pruned = prune(tree, np.unique(np.concatenate([sample.leaf_E for sample in specialists.values()])))
    touched = Atoms.of(pruned.atom_L, generalist)
    # Untouched leaves can be merged only if their shares are proportional to the generalist's.
    atoms = (
        touched if strata is None and settings.estimator in _PRUNED else Atoms.of(np.arange(len(generalist.tokens_L)), generalist)
    )
    point_of = {name: replace(mixture, p_L=_gather(mixture.p_L, atoms)) for name, mixture in mixtures.items()}

    def claimed(mixture_of: Mapping[str, SpecialistMixture]) -> F64:
        """(R, C) claims on atoms; or on strata, where they are the same for all resamples."""
        if strata is not None:
            return strata.claim_RC
        p_A_of = {name: mixture.p_L for name, mixture in mixture_of.items()}
        return compute_claims(p_A_of, shares, natural_share, atoms.histogram.p_L)[1]

    cells = _Cells.of(strata, atoms)

    def facts(mixture_of: Mapping[str, SpecialistMixture]) -> dict[tuple[str, str], float]:
        allocation = allocate_capped(claimed(mixture_of), cells.tokens_C, limits)
        allocated_A = np.bincount(cells.atom_C, weights=allocation.allocated_L, minlength=len(atoms.inner_entropy_A)).astype(
            np.float64
        )
        found = {
            ("", name): value for name, value in diagnose_mixture(allocation, cells.windows_C, allocated_A, atoms, draw).items()
        }
        for specialist, mixture in mixture_of.items():
            found |= {(specialist, name): value for name, value in diagnose_specialist(mixture, allocated_A, atoms).items()}
        return found

    values = facts(point_of)
    for name, mixture in mixtures.items():
        values |= _diagnose_sample(name, specialists[name], mixture)

    resampled_values: dict[tuple[str, str], list[float]] = defaultdict(list)
    can_resample = settings.estimator in RESAMPLING_ESTIMATORS
    has_interval = {
        name: can_resample and settings.bootstrap > 0 and sample.document_rows()[0] > 1 for name, sample in specialists.items()
    }
    known = [name for name, known_here in has_interval.items() if known_here]
    p_BA_of = {name: np.empty((settings.bootstrap, len(touched.inner_entropy_A)), dtype=np.float32) for name in known}
    resamplers = {name: _Resampler(name, specialists[name], pruned, touched, mixtures[name], settings, seed) for name in known}
    for replicate in range(settings.bootstrap if resamplers else 0):
        mixture_of = dict(point_of) | {name: resampler.estimate(replicate) for name, resampler in resamplers.items()}
        for name, p_BA in p_BA_of.items():
            p_BA[replicate] = mixture_of[name].p_L
        if not clusters:
            for key, value in facts(mixture_of).items():
                resampled_values[key].append(value)

    if clusters:
        for name, p_BA in p_BA_of.items():
            _move(p_BA, _gather(mixtures[name].p_L, touched), _gather(clusters[name].p_L, touched), sharpness / 2)
    low_high_of = {name: _interval(p_BA, touched, generalist, mixtures[name].p_L) for name, p_BA in p_BA_of.items()}
    return MixtureTables(
        specialists=_specialists(specialists, mixtures, low_high_of),
        mixture=_mixture(generalist, mixtures, shares, natural_share),
        diagnostics=_diagnostics(values, resampled_values, has_interval),
    )


@dataclass(frozen=True, kw_only=True)
class _Cells:
    """The units of the allocation: strata if windows are scored, else atoms."""

    atom_C: I64
    windows_C: I64
    tokens_C: I64

    @classmethod
    def of(cls, strata: Strata | None, atoms: Atoms) -> "_Cells":
        if strata is None:
            held = atoms.histogram
            return cls(atom_C=np.arange(len(atoms.inner_entropy_A)), windows_C=held.windows_L, tokens_C=held.tokens_L)
        return cls(atom_C=atoms.atom_L[strata.leaf_C], windows_C=strata.windows_C, tokens_C=strata.tokens_C)


class _Resampler:
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


def _gather(p_L: F64, atoms: Atoms) -> F64:
    return np.bincount(atoms.atom_L, weights=p_L, minlength=len(atoms.inner_entropy_A)).astype(np.float64)


def _move(p_BA: F32, point_A: F64, clusters_A: F64, power: float) -> None:
    """Turn resamples of CRISP's shares, in place, into resamples of an estimate that has them as a factor (`strata.Odds`).

    `p = point · (resample / CRISP's share) ** power`, normalised; `clusters_A` are CRISP's shares.
    """
    for p_A in p_BA:
        moved_A = point_A * np.divide(p_A, clusters_A, out=np.ones_like(point_A), where=clusters_A > 0) ** power
        p_A[:] = moved_A / moved_A.sum()


def _interval(p_BA: F32, atoms: Atoms, generalist: LeafHistogram, p_L: F64) -> tuple[F64, F64]:
    """(L,) 5th and (L,) 95th percentiles. Leaves of an atom keep their proportions, so its percentiles, scaled, are theirs."""
    low_A, high_A = np.quantile(p_BA, _TAILS, axis=0, overwrite_input=True)  # saves a copy of the largest array
    p_A = _gather(p_L, atoms)
    inside_L = np.where(
        (p_A > 0)[atoms.atom_L], p_L / np.maximum(p_A, 1e-300)[atoms.atom_L], atoms.expand(np.ones_like(p_A), generalist)
    )
    return low_A[atoms.atom_L] * inside_L, high_A[atoms.atom_L] * inside_L


def _diagnose_sample(name: str, sample: DocumentCounts, mixture: SpecialistMixture) -> dict[tuple[str, str], float]:
    """The diagnostics of a specialist that are the same for all resamples."""
    found = {
        "documents": float(sample.document_rows()[0]),
        "windows": float(sample.num_windows),
    }
    found |= {f"alpha_level_{level}": float(alpha) for level, alpha in enumerate(mixture.alpha_H, start=1)}
    return {(name, fact): value for fact, value in found.items()}


def _specialists(
    specialists: Mapping[str, DocumentCounts],
    mixtures: Mapping[str, SpecialistMixture],
    low_high_of: Mapping[str, tuple[F64, F64]],
) -> pa.Table:
    """One row per specialist and cluster in which it has windows or a share above 0."""
    tables = [SPECIALISTS.empty_table()]
    for name, mixture in mixtures.items():
        counts = specialists[name].histogram(len(mixture.p_L))
        leaf_M = np.flatnonzero((mixture.p_L > 0) | (counts.windows_L > 0))
        missing_L = np.full(len(mixture.p_L), np.nan)
        low_L, high_L = low_high_of.get(name, (missing_L, missing_L))
        columns = {
            "specialist": pa.array([name], pa.string()).take(pa.array(np.zeros(len(leaf_M), dtype=np.int64))),
            "leaf": leaf_M,
            "windows": counts.windows_L[leaf_M],
            "tokens": counts.tokens_L[leaf_M],
            "p_raw": mixture.p_raw_L[leaf_M],
            "p": mixture.p_L[leaf_M],
            "p_low": low_L[leaf_M],
            "p_high": high_L[leaf_M],
        }
        tables.append(cast(pa.table(columns), SPECIALISTS))
    return pa.concat_tables(tables)


def _mixture(
    generalist: LeafHistogram, mixtures: Mapping[str, SpecialistMixture], shares: Mapping[str, float], natural_share: float
) -> pa.Table:
    g_L = generalist.p_L
    target_L = compute_claims({name: mixture.p_L for name, mixture in mixtures.items()}, shares, natural_share, g_L)[1].sum(axis=0)
    columns = {
        "leaf": np.arange(len(g_L)),
        "windows": generalist.windows_L,
        "tokens": generalist.tokens_L,
        "p_generalist": g_L,
        "p_target": target_L,
        "weight": np.divide(target_L, g_L, out=np.zeros_like(g_L), where=g_L > 0),
    }
    return cast(pa.table(columns), MIXTURE)


def _diagnostics(
    values: Mapping[tuple[str, str], float],
    resampled_values: Mapping[tuple[str, str], list[float]],
    has_interval: Mapping[str, bool],
) -> pa.Table:
    rows = []
    for (specialist, name), value in values.items():
        # The whole mixture has intervals only if all samples are resampled; else they would be too narrow.
        known = (has_interval[specialist] if specialist else all(has_interval.values())) and not name.startswith("generalist_")
        spread = resampled_values.get((specialist, name), []) if known else []
        low, high = (float(x) for x in np.quantile(spread, _TAILS)) if spread else (None, None)
        rows.append({"specialist": specialist, "name": name, "value": value, "low": low, "high": high, "meaning": describe(name)})
    rows.sort(key=lambda row: str(row["specialist"]) != "")  # the whole mixture first; the sort is stable
    return pa.Table.from_pylist(rows, schema=DIAGNOSTICS)
