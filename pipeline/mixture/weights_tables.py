"""The tables of the weights stage: shares, weights and diagnostics of a mixture, with intervals from the bootstrap.

Shapes: L clusters (leaves of the tree), A atoms (`tree_shape.prune`), C cells (units of the allocation: atoms, or strata of
clusters), R rows of claims (specialists, then natural text), B replicates, S specialists.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pipeline.arrays import F64, I64
from pipeline.config import Weights
from pipeline.mixture.allocation import Limits, allocate_capped
from pipeline.mixture.bootstrap import TAILS, Resampler, apply_cluster_factor, compute_intervals, sum_by_atom
from pipeline.mixture.diagnostics import Atoms, SamplingMethod, describe, diagnose_mixture, diagnose_specialist
from pipeline.mixture.estimators import RESAMPLING_ESTIMATORS, SpecialistMixture, compute_claims
from pipeline.mixture.histograms import DocumentCounts, LeafHistogram
from pipeline.mixture.strata import Strata
from pipeline.mixture.tree_shape import TreeShape, prune
from pipeline.tables import DIAGNOSTICS, MIXTURE, SPECIALISTS, cast

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
    point_of = {name: replace(mixture, p_L=sum_by_atom(mixture.p_L, atoms)) for name, mixture in mixtures.items()}

    def find_claims(mixture_of: Mapping[str, SpecialistMixture]) -> F64:
        """(R, C) claims on atoms; or on strata, where they are the same for all resamples."""
        if strata is not None:
            return strata.claim_RC
        p_A_of = {name: mixture.p_L for name, mixture in mixture_of.items()}
        return compute_claims(p_A_of, shares, natural_share, atoms.histogram.p_L)[1]

    cells = _Cells.of(strata, atoms)

    def diagnose(mixture_of: Mapping[str, SpecialistMixture]) -> dict[tuple[str, str], float]:
        allocation = allocate_capped(find_claims(mixture_of), cells.tokens_C, limits)
        allocated_A = np.bincount(cells.atom_C, weights=allocation.allocated_L, minlength=len(atoms.inner_entropy_A)).astype(
            np.float64
        )
        found = {
            ("", name): value for name, value in diagnose_mixture(allocation, cells.windows_C, allocated_A, atoms, draw).items()
        }
        for specialist, mixture in mixture_of.items():
            found |= {(specialist, name): value for name, value in diagnose_specialist(mixture, allocated_A, atoms).items()}
        return found

    values = diagnose(point_of)
    for name, mixture in mixtures.items():
        values |= _diagnose_sample(name, specialists[name], mixture)

    resampled_values: dict[tuple[str, str], list[float]] = defaultdict(list)
    can_resample = settings.estimator in RESAMPLING_ESTIMATORS
    has_interval = {
        name: can_resample and settings.bootstrap > 0 and sample.document_rows()[0] > 1 for name, sample in specialists.items()
    }
    known = [name for name, known_here in has_interval.items() if known_here]
    p_BA_of = {name: np.empty((settings.bootstrap, len(touched.inner_entropy_A)), dtype=np.float32) for name in known}
    resamplers = {name: Resampler(name, specialists[name], pruned, touched, mixtures[name], settings, seed) for name in known}
    for replicate in range(settings.bootstrap if resamplers else 0):
        mixture_of = dict(point_of) | {name: resampler.estimate(replicate) for name, resampler in resamplers.items()}
        for name, p_BA in p_BA_of.items():
            p_BA[replicate] = mixture_of[name].p_L
        if not clusters:
            for key, value in diagnose(mixture_of).items():
                resampled_values[key].append(value)

    if clusters:
        for name, p_BA in p_BA_of.items():
            apply_cluster_factor(
                p_BA, sum_by_atom(mixtures[name].p_L, touched), sum_by_atom(clusters[name].p_L, touched), sharpness / 2
            )
    low_high_of = {name: compute_intervals(p_BA, touched, generalist, mixtures[name].p_L) for name, p_BA in p_BA_of.items()}
    return MixtureTables(
        specialists=_build_specialists_table(specialists, mixtures, low_high_of),
        mixture=_build_mixture_table(generalist, mixtures, shares, natural_share),
        diagnostics=_build_diagnostics_table(values, resampled_values, has_interval),
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


def _diagnose_sample(name: str, sample: DocumentCounts, mixture: SpecialistMixture) -> dict[tuple[str, str], float]:
    """The diagnostics of a specialist that are the same for all resamples."""
    found = {
        "documents": float(sample.document_rows()[0]),
        "windows": float(sample.num_windows),
    }
    found |= {f"alpha_level_{level}": float(alpha) for level, alpha in enumerate(mixture.alpha_H, start=1)}
    return {(name, fact): value for fact, value in found.items()}


def _build_specialists_table(
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


def _build_mixture_table(
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


def _build_diagnostics_table(
    values: Mapping[tuple[str, str], float],
    resampled_values: Mapping[tuple[str, str], list[float]],
    has_interval: Mapping[str, bool],
) -> pa.Table:
    rows = []
    for (specialist, name), value in values.items():
        # The whole mixture has intervals only if all samples are resampled; else they would be too narrow.
        known = (has_interval[specialist] if specialist else all(has_interval.values())) and not name.startswith("generalist_")
        spread = resampled_values.get((specialist, name), []) if known else []
        low, high = (float(x) for x in np.quantile(spread, TAILS)) if spread else (None, None)
        rows.append({"specialist": specialist, "name": name, "value": value, "low": low, "high": high, "meaning": describe(name)})
    rows.sort(key=lambda row: str(row["specialist"]) != "")  # the whole mixture first; the sort is stable
    return pa.Table.from_pylist(rows, schema=DIAGNOSTICS)
