"""The mixture's tables, with how sure the sample lets us be: a bootstrap over its documents.

Documents, not windows, are resampled: windows of a document share its subject, and counting them as independent would make the
intervals too narrow. The smoothing's α stay as fitted on the sample: a resample repeats documents, and a document left out of it
would be predicted by its own copy, so a refit would trust the leaves too much and show an estimator that nobody uses.

Shapes: L leaves, A atoms (`shape.prune`), C cells, B replicates, D documents, E entries of a sample, S specialists.
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
# Estimators that keep the generalist's mix below a node that no sample touches.
_PRUNED = ("crisp", "natural", "top-cluster")


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The tables of a mixture, and what they were made from."""

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
    """SPECIALISTS, MIXTURE and DIAGNOSTICS of what the estimator of `settings` found.

    Where windows are scored, `strata` are what is drawn alike, and `clusters` what CRISP gives the leaves, where that is a part of
    the estimate: resamples then change this part, and leave what was learnt of windows as it is. Only shares have intervals then.

    Intervals are the 5th and 95th percentile over `settings.bootstrap` resamples; with none of them, or a sample of a single
    document, they are missing (NaN in SPECIALISTS, null in DIAGNOSTICS). Work and memory grow with the leaves that samples
    touch, not with those of the tree: B · S · A float32.
    """
    pruned = prune(tree, np.unique(np.concatenate([sample.leaf_E for sample in specialists.values()])))
    touched = Atoms.of(pruned.atom_L, generalist)
    # Where leaves that the sample does not touch are not in proportion to the generalist, they cannot be merged.
    atoms = (
        touched if strata is None and settings.estimator in _PRUNED else Atoms.of(np.arange(len(generalist.tokens_L)), generalist)
    )
    point_of = {name: replace(mix, p_L=_gather(mix.p_L, atoms)) for name, mix in mixes.items()}

    def claimed(mix_of: Mapping[str, SpecialistMix]) -> F64:
        """(R, C) what is asked of the atoms, or of strata, whose resamples are not planned."""
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
    """What is drawn alike: atoms, or where windows are scored strata."""

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
    """Shares of one specialist for resamples of its documents, with replacement, as many as there are."""

    def __init__(
        self, name: str, sample: DocumentCounts, pruned: PrunedTree, atoms: Atoms, mix: SpecialistMix, settings: Weights, seed: int
    ) -> None:
        self._num_documents, self._document_E = sample.document_rows()
        self._sample, self._pruned, self._atoms = sample, pruned, atoms
        self._alpha_H = mix.alpha_H[: int(pruned.level_V[-1])]  # what no sample touches may be all of the lowest levels
        self._estimator = RESAMPLED[settings.estimator]
        self._atom_E = pruned.atom_L[sample.leaf_E]
        self._seed, self._purpose = seed, f"bootstrap.{name}"

    def mix(self, replicate: int) -> SpecialistMix:
        """What a resample wants of the atoms; a function of seed, documents and the replicate's number only."""
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
    """From what resamples give the leaves to what they want where that is one factor of the estimate (`strata.Odds`)."""
    for p_A in p_BA:
        moved_A = point_A * np.divide(p_A, clusters_A, out=np.ones_like(point_A), where=clusters_A > 0) ** power
        p_A[:] = moved_A / moved_A.sum()


def _interval(p_BA: F32, atoms: Atoms, generalist: LeafHistogram, p_L: F64) -> tuple[F64, F64]:
    """(L,) 5th and 95th percentiles: inside an atom leaves keep their proportions, so its percentiles are theirs."""
    low_A, high_A = np.quantile(p_BA, _TAILS, axis=0, overwrite_input=True)  # no second copy of the largest array here
    p_A = _gather(p_L, atoms)
    inside_L = np.where(
        (p_A > 0)[atoms.atom_L], p_L / np.maximum(p_A, 1e-300)[atoms.atom_L], atoms.expand(np.ones_like(p_A), generalist)
    )
    return low_A[atoms.atom_L] * inside_L, high_A[atoms.atom_L] * inside_L


def _fixed(name: str, sample: DocumentCounts, mix: SpecialistMix) -> dict[tuple[str, str], float]:
    """The facts that a resample keeps."""
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
    """One row for each specialist and leaf that its sample or its smoothed shares touch."""
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
        # The mixture's interval needs every sample to be resampled: else it would look surer than its parts are.
        known = (sure[specialist] if specialist else all(sure.values())) and not name.startswith("generalist_")
        spread = drawn.get((specialist, name), []) if known else []
        low, high = (float(x) for x in np.quantile(spread, _TAILS)) if spread else (None, None)
        rows.append({"specialist": specialist, "name": name, "value": value, "low": low, "high": high, "meaning": meaning(name)})
    rows.sort(key=lambda row: str(row["specialist"]) != "")  # the whole mixture first; the order within stays
    return pa.Table.from_pylist(rows, schema=DIAGNOSTICS)
