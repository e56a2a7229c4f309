"""Strata of a scored corpus: the folds over the scores that compute them, and readers for the tables of a weights step.

A cell is the unit of allocation: a leaf, or a stratum of a leaf if windows are scored. The stratum of each window is computed once
and stored in `strata/`, aligned with the windows; later stages read it there and look up what was allocated to its cell.

Shapes: N windows of a part, S specialists, R rows of a mixture (the specialists, then natural text), L leaves, C cells, B bins.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from loguru import logger

from pipeline.arrays import F32, F64, I32, I64, Ints
from pipeline.config import WINDOW_ESTIMATORS, Config
from pipeline.engine import Engine
from pipeline.execution.step import Step, group_for_fold, part_names
from pipeline.mixture.estimators import SpecialistMixture, compute_claims
from pipeline.mixture.histograms import LeafHistogram
from pipeline.mixture.strata import (
    BINS,
    Odds,
    Strata,
    StrataCounts,
    Target,
    Top,
    bin_codes,
    bin_odds,
    find_threshold_bin,
    log_weights,
)
from pipeline.scoring import make_scorer
from pipeline.stages.score import read_scores
from pipeline.storage import Folder
from pipeline.tables import WINDOW_STRATA

_WINDOW_STRATA = "strata"  # folder of the stratum of each window


@dataclass(frozen=True)
class Cells:
    """Finds the cell of each window: its leaf, or the row in `strata` of its stratum."""

    strata: Strata | None  # None if windows are not scored
    folder: Folder  # of the stratum of each window, in parts aligned with the windows

    def read(self, part_name: str, leaf_N: I32) -> Ints:
        """Return (N,): the cell of each window of a part; any cell for a window without a leaf."""
        if self.strata is None:
            return leaf_N
        table = self.folder.read_table(f"{part_name}.parquet", columns=["stratum"])
        return self.strata.index_of(leaf_N, table["stratum"].to_numpy())


@dataclass(frozen=True)
class TargetMixture:
    """The target mixture over cells; the windows of a cell are sampled alike."""

    claim_RC: F64  # shares of the new corpus; rows as in `estimators.compute_claims`
    tokens_C: I64
    leaf_C: I64
    windows_L: I64
    cells: Cells

    @classmethod
    def read(cls, weights: Folder, config: Config) -> "TargetMixture":
        """Read the mixture from the tables of a weights step."""
        mixture = weights.read_table("mixture.parquet")
        windows_L, folder = mixture["windows"].to_numpy(), weights.child(_WINDOW_STRATA)
        if config.weights.estimator in WINDOW_ESTIMATORS:
            strata = Strata.from_table(weights.read_table("strata.parquet"))
            return cls(strata.claim_RC, strata.tokens_C, strata.leaf_C, windows_L, Cells(strata, folder))
        _, claim_RL = read_leaf_shares(weights, config)
        return cls(claim_RL, mixture["tokens"].to_numpy(), np.arange(len(mixture)), windows_L, Cells(None, folder))

    @property
    def num_leaves(self) -> int:
        return len(self.windows_L)

    def split(self, x_L: F64, weight_C: F64) -> F64:
        """Return (C,): the values of the leaves, split over their cells in proportion to `weight_C`."""
        weight_L = np.bincount(self.leaf_C, weights=weight_C, minlength=self.num_leaves)
        # If all cells of a leaf have weight 0, split by their tokens instead, so that the value of the leaf is not lost.
        weight_C = np.where(weight_L[self.leaf_C] > 0, weight_C, self.tokens_C)
        weight_L = np.bincount(self.leaf_C, weights=weight_C, minlength=self.num_leaves)
        part_C = np.divide(weight_C, weight_L[self.leaf_C], out=np.zeros_like(weight_C), where=weight_C > 0)
        return np.asarray(x_L[self.leaf_C] * part_C, np.float64)


def read_leaf_shares(weights: Folder, config: Config) -> tuple[list[str], F64]:
    """Return R names and (R, L) shares of the new corpus, from the tables of a weights step (`estimators.compute_claims`)."""
    p_generalist_L = weights.read_table("mixture.parquet")["p_generalist"].to_numpy()
    table = weights.read_table("specialists.parquet")
    p_L_of = {}
    for name in config.specialists:
        rows = table.filter(pc.field("specialist") == name)
        p_L_of[name] = np.zeros(len(p_generalist_L))
        p_L_of[name][rows["leaf"].to_numpy()] = rows["p"].to_numpy()
    shares = {name: specialist.share for name, specialist in config.specialists.items()}
    return compute_claims(p_L_of, shares, config.natural_share, p_generalist_L)


@dataclass(frozen=True)
class _ScoredParts:
    """The scores of the generalist windows, and the leaves and tokens aligned with them."""

    assignments: Folder
    scores: Folder

    def read(self, part_name: str) -> tuple[I32, I32, F32]:
        """Return leaf_N, tokens_N and the (N, S) scores of a part."""
        table = self.assignments.read_table(f"{part_name}.parquet", columns=["leaf", "tokens"])
        return table["leaf"].to_numpy(), table["tokens"].to_numpy(), read_scores(self.scores, part_name)


@dataclass(frozen=True)
class _OddsInputs:
    parts: _ScoredParts
    log_weight_SL: F64
    sharpness: float


@dataclass(frozen=True)
class _ThresholdInputs:
    parts: _ScoredParts
    high_S: Ints | None  # upper 16 bits of the threshold's code, once they are known


@dataclass(frozen=True)
class _StrataInputs:
    parts: _ScoredParts
    target: Target
    folder: Folder  # for the stratum of each window


def fit_target(
    engine: Engine,
    config: Config,
    assigned: Step,
    scored: Step,
    generalist: LeafHistogram,
    clusters: Mapping[str, SpecialistMixture],
) -> Target:
    """Fit the conversion of scores to density ratios: one fold over the scores for `odds`, two for `top`."""
    natural = config.natural_share
    shares = {name: specialist.share for name, specialist in config.specialists.items()}
    share_S = (1.0 - natural) * np.array([shares[name] for name in clusters]) / sum(shares.values())
    items = group_for_fold(engine, part_names(scored))
    parts = _ScoredParts(assigned.folder, scored.folder)
    zero_SB = np.zeros((len(clusters), BINS), np.int64)
    ratios: Odds | Top
    if make_scorer(config.weights.estimator).ratio_kind == "odds":
        log_weight_SL = log_weights([mixture.p_L for mixture in clusters.values()], generalist.p_L)
        inputs = _OddsInputs(parts, log_weight_SL, config.sharpness)
        bins_SB = engine.fold(_bin_odds, items, np.add, zero_SB, shared=inputs, title="odds")
        ratios = Odds.from_bins(log_weight_SL, config.sharpness, bins_SB)
    else:
        requested_S = np.maximum(share_S * config.sample.budget_tokens, 1.0)
        high_SB = engine.fold(_bin_codes, items, np.add, zero_SB, shared=_ThresholdInputs(parts, None), title="threshold")
        for name, wanted, held in zip(clusters, requested_S, high_SB.sum(1), strict=True):
            if held < wanted:
                logger.warning(
                    f"weights.estimator {config.weights.estimator}: {name} needs {wanted:,.0f} tokens, but only {held:,} have a "
                    "score, so all of them are repeated; lower sample.budget_tokens"
                )
        high_S, above_S = find_threshold_bin(high_SB, requested_S)
        low_SB = engine.fold(_bin_codes, items, np.add, zero_SB, shared=_ThresholdInputs(parts, high_S), title="threshold")
        ratios = Top.from_bins(high_S, above_S, low_SB, requested_S, int(generalist.tokens_L.sum()))
    return Target(ratios=ratios, share_S=share_S, natural_share=natural)


def build_strata(
    engine: Engine, target: Target, assigned: Step, scored: Step, clusters: Mapping[str, SpecialistMixture], weights: Folder
) -> tuple[dict[str, SpecialistMixture], Strata]:
    """Return the mixture of each specialist over the leaves, computed from the window scores, and the strata.

    Writes the stratum of each window to the folder of the weights step.
    """
    num_leaves = len(next(iter(clusters.values())).p_L)
    inputs = _StrataInputs(_ScoredParts(assigned.folder, scored.folder), target, weights.child(_WINDOW_STRATA))
    counts = engine.fold(
        _write_strata,
        group_for_fold(engine, part_names(scored)),
        StrataCounts.add,
        StrataCounts.zero(len(clusters)),
        shared=inputs,
        title="strata",
    )
    mixtures = {
        name: replace(mixture, p_L=p_L)
        for (name, mixture), p_L in zip(clusters.items(), counts.mixture_SL(num_leaves), strict=True)
    }
    if isinstance(target.ratios, Top):  # `top` uses neither cluster weights nor their smoothing
        mixtures = {name: replace(mixture, alpha_H=np.empty(0), backed_off=0.0) for name, mixture in mixtures.items()}
    return mixtures, counts.strata(target)


def _bin_odds(names: Sequence[str], inputs: _OddsInputs) -> I64:
    return _sum(bin_odds(inputs.log_weight_SL, inputs.sharpness, *inputs.parts.read(name)) for name in names)


def _bin_codes(names: Sequence[str], inputs: _ThresholdInputs) -> I64:
    return _sum(bin_codes(*inputs.parts.read(name), inputs.high_S) for name in names)


def _sum(bins: Iterator[I64]) -> I64:
    return functools.reduce(np.add, bins)


def _write_strata(names: Sequence[str], inputs: _StrataInputs) -> StrataCounts:
    """Write the stratum of each window of some parts; return their counts."""
    counts = []
    for name in names:
        leaf_N, tokens_N, score_NS = inputs.parts.read(name)
        stratum_N, of_part = StrataCounts.of_part(inputs.target, leaf_N, tokens_N, score_NS)
        inputs.folder.write_table(f"{name}.parquet", pa.table({"stratum": stratum_N}), WINDOW_STRATA)
        counts.append(of_part)
    return StrataCounts.combine(counts)
