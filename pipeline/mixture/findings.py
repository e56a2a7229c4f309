"""The tables of the weights stage, with intervals from a bootstrap over the documents of the specialist samples.

Documents are resampled, not windows: windows of a document share its subject, and treating them as independent would make the
intervals too narrow. The smoothing's α stay as fitted on the sample. A resample repeats documents, so a document left out of it
would be predicted by its own copy; a refit would trust the leaves too much, unlike the estimator in use.

Shapes: L clusters (leaves of the tree), A atoms (`tree_shape.prune`), C cells (units of the allocation: atoms, or strata of
clusters), R rows of claims (specialists, then natural text), B replicates, D documents, E entries of a sample, S specialists.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pipeline.arrays import F32, F64, I64
from pipeline.config import Weights
from pipeline.hashing import keyed_uniform
from pipeline.mixture.allocation import Limits, capped_plan
from pipeline.mixture.diagnostics import Atoms, Draw, meaning, mixture_facts, specialist_facts
from pipeline.mixture.estimators import RESAMPLED, SpecialistMix, claims
from pipeline.mixture.histograms import DocumentCounts, LeafHistogram
from pipeline.mixture.strata import Strata
from pipeline.mixture.tree_shape import PrunedTree, TreeShape, prune
from pipeline.tables import DIAGNOSTICS, MIXTURE, SPECIALISTS, cast

_TAILS = (0.05, 0.95)
# Estimators whose shares below every node without sample windows are proportional to the generalist's.
_PRUNED = ("crisp", "natural", "top-cluster")


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The SPECIALISTS, MIXTURE and DIAGNOSTICS tables of a mixture."""

    specialists: pa.Table
    mixture: pa.Table
    diagnostics: pa.Table


def findings(
    tree: TreeShape,
    generalist: LeafHistogram,
    specialists: Mapping[str, DocumentCounts],
    mixes: Mapping[str, SpecialistMix],
    settings: Weights,
    limits: Limits,
    *,
    shares: Mapping[str, float],
    natural_share: float,
    sharpness: float = 1.0,
    draw: Draw,
    seed: int,
    strata: Strata | None = None,
    clusters: Mapping[str, SpecialistMix] | None = None,
) -> Findings:
    """The tables for the mixtures that the estimator of `settings` found.

    Intervals are the 5th and 95th percentile over `settings.bootstrap` resamples. They are missing (NaN in SPECIALISTS, null in
    DIAGNOSTICS) with 0 resamples, for a sample of a single document, and for estimators that are not in `RESAMPLED`. Memory for
    resamples is B · S · A float32, so it grows with the leaves that samples touch, not with those of the tree.

    Args:
        mixes: the estimate for each specialist.
        shares: the share of each specialist among the specialists; normalised here.
        sharpness: the power of the estimate (`strata.Odds`); used with `clusters` only.
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
    point_of = {name: replace(mix, p_L=_gather(mix.p_L, atoms)) for name, mix in mixes.items()}

    def claimed(mix_of: Mapping[str, SpecialistMix]) -> F64:
        """(R, C) claims on atoms; or on strata, where they are the same for all resamples."""
        if strata is not None:
            return strata.claim_RC
        p_A_of = {name: mix.p_L for name, mix in mix_of.items()}
        return claims(p_A_of, shares, natural_share, atoms.histogram.p_L)[1]

    cells = _Cells.of(strata, atoms)

    def facts(mix_of: Mapping[str, SpecialistMix]) -> dict[tuple[str, str], float]:
        plan = capped_plan(claimed(mix_of), cells.tokens_C, limits)
        planned_A = np.bincount(cells.atom_C, weights=plan.planned_L, minlength=len(atoms.within_A)).astype(np.float64)
        found = {("", name): value for name, value in mixture_facts(plan, cells.windows_C, planned_A, atoms, draw).items()}
        for specialist, mix in mix_of.items():
            found |= {(specialist, name): value for name, value in specialist_facts(mix, planned_A, atoms).items()}
        return found

    values = facts(point_of)
    for name, mix in mixes.items():
        values |= _fixed(name, specialists[name], mix)

    drawn: dict[tuple[str, str], list[float]] = defaultdict(list)
    resampled = settings.estimator in RESAMPLED
    sure = {name: resampled and settings.bootstrap > 0 and sample.document_rows()[0] > 1 for name, sample in specialists.items()}
    known = [name for name, is_sure in sure.items() if is_sure]
    p_BA_of = {name: np.empty((settings.bootstrap, len(touched.within_A)), dtype=np.float32) for name in known}
    resamplers = {name: _Resampler(name, specialists[name], pruned, touched, mixes[name], settings, seed) for name in known}
    for replicate in range(settings.bootstrap if resamplers else 0):
        mix_of = dict(point_of) | {name: resampler.mix(replicate) for name, resampler in resamplers.items()}
        for name, p_BA in p_BA_of.items():
            p_BA[replicate] = mix_of[name].p_L
        if not clusters:
            for key, value in facts(mix_of).items():
                drawn[key].append(value)

    if clusters:
        for name, p_BA in p_BA_of.items():
            _move(p_BA, _gather(mixes[name].p_L, touched), _gather(clusters[name].p_L, touched), sharpness / 2)
    low_high_of = {name: _interval(p_BA, touched, generalist, mixes[name].p_L) for name, p_BA in p_BA_of.items()}
    return Findings(
        specialists=_specialists(specialists, mixes, low_high_of),
        mixture=_mixture(generalist, mixes, shares, natural_share),
        diagnostics=_diagnostics(values, drawn, sure),
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
            return cls(atom_C=np.arange(len(atoms.within_A)), windows_C=held.windows_L, tokens_C=held.tokens_L)
        return cls(atom_C=atoms.atom_L[strata.leaf_C], windows_C=strata.windows_C, tokens_C=strata.tokens_C)


class _Resampler:
    """The mixture of one specialist for resamples of its documents: as many as the sample has, with replacement."""

    def __init__(
        self, name: str, sample: DocumentCounts, pruned: PrunedTree, atoms: Atoms, mix: SpecialistMix, settings: Weights, seed: int
    ) -> None:
        self._num_documents, self._document_E = sample.document_rows()
        self._sample, self._pruned, self._atoms = sample, pruned, atoms
        self._alpha_H = mix.alpha_H[: int(pruned.level_V[-1])]  # the pruned tree may have fewer levels
        self._estimator = RESAMPLED[settings.estimator]
        self._atom_E = pruned.atom_L[sample.leaf_E]
        self._seed, self._purpose = seed, f"bootstrap.{name}"

    def mix(self, replicate: int) -> SpecialistMix:
        """The mixture of one resample over atoms. It depends on seed, specialist, documents and the replicate's number only."""
        slot_D = np.arange(self._num_documents, dtype=np.uint64)
        u_D = keyed_uniform(slot_D, seed=self._seed, purpose=self._purpose, copy=np.full(self._num_documents, replicate))
        times_D = np.bincount((u_D * self._num_documents).astype(np.int64), minlength=self._num_documents)
        times_E = times_D[self._document_E]
        tokens_A = np.zeros(len(self._atoms.within_A), dtype=np.int64)
        np.add.at(tokens_A, self._atom_E, times_E * self._sample.tokens_E)
        scale = self._sample.num_windows / self._sample.num_tokens
        return self._estimator.resampled(self._pruned, self._atoms.histogram, tokens_A, scale, self._alpha_H)


def _gather(p_L: F64, atoms: Atoms) -> F64:
    return np.bincount(atoms.atom_L, weights=p_L, minlength=len(atoms.within_A)).astype(np.float64)


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


def _fixed(name: str, sample: DocumentCounts, mix: SpecialistMix) -> dict[tuple[str, str], float]:
    """The diagnostics of a specialist that are the same for all resamples."""
    found = {
        "documents": float(sample.document_rows()[0]),
        "windows": float(sample.num_windows),
    }
    found |= {f"alpha_level_{level}": float(alpha) for level, alpha in enumerate(mix.alpha_H, start=1)}
    return {(name, fact): value for fact, value in found.items()}


def _specialists(
    specialists: Mapping[str, DocumentCounts],
    mixes: Mapping[str, SpecialistMix],
    low_high_of: Mapping[str, tuple[F64, F64]],
) -> pa.Table:
    """One row per specialist and cluster in which it has windows or a share above 0."""
    tables = [SPECIALISTS.empty_table()]
    for name, mix in mixes.items():
        counts = specialists[name].histogram(len(mix.p_L))
        leaf_M = np.flatnonzero((mix.p_L > 0) | (counts.windows_L > 0))
        missing_L = np.full(len(mix.p_L), np.nan)
        low_L, high_L = low_high_of.get(name, (missing_L, missing_L))
        columns = {
            "specialist": pa.array([name], pa.string()).take(pa.array(np.zeros(len(leaf_M), dtype=np.int64))),
            "leaf": leaf_M,
            "windows": counts.windows_L[leaf_M],
            "tokens": counts.tokens_L[leaf_M],
            "p_raw": mix.p_raw_L[leaf_M],
            "p": mix.p_L[leaf_M],
            "p_low": low_L[leaf_M],
            "p_high": high_L[leaf_M],
        }
        tables.append(cast(pa.table(columns), SPECIALISTS))
    return pa.concat_tables(tables)


def _mixture(
    generalist: LeafHistogram, mixes: Mapping[str, SpecialistMix], shares: Mapping[str, float], natural_share: float
) -> pa.Table:
    g_L = generalist.p_L
    target_L = claims({name: mix.p_L for name, mix in mixes.items()}, shares, natural_share, g_L)[1].sum(axis=0)
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
    values: Mapping[tuple[str, str], float], drawn: Mapping[tuple[str, str], list[float]], sure: Mapping[str, bool]
) -> pa.Table:
    rows = []
    for (specialist, name), value in values.items():
        # The whole mixture has intervals only if all samples are resampled; else they would be too narrow.
        known = (sure[specialist] if specialist else all(sure.values())) and not name.startswith("generalist_")
        spread = drawn.get((specialist, name), []) if known else []
        low, high = (float(x) for x in np.quantile(spread, _TAILS)) if spread else (None, None)
        rows.append({"specialist": specialist, "name": name, "value": value, "low": low, "high": high, "meaning": meaning(name)})
    rows.sort(key=lambda row: str(row["specialist"]) != "")  # the whole mixture first; the sort is stable
    return pa.Table.from_pylist(rows, schema=DIAGNOSTICS)
