"""Strata of a scored corpus: the folds over the scores that compute them, and readers for the tables of a weights step.

A cell is the unit of allocation: a leaf, or a stratum of a leaf if windows are scored.

Shapes: N windows of a part, S specialists, R rows of a mixture (the specialists, then natural text), L leaves, C cells, B bins.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc
from loguru import logger

from pipeline.arrays import F64, I32, I64
from pipeline.config import WINDOW_ESTIMATORS, Config
from pipeline.engine import Engine
from pipeline.execution.step import Step, fold_groups, part_names
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

_TARGET = "target.npz"


@dataclass(frozen=True)
class Asked:
    """The target mixture over cells; the windows of a cell are sampled alike."""

    claim_RC: F64  # shares of the new corpus; rows as in `estimators.compute_claims`
    tokens_C: I64
    leaf_C: I64
    windows_L: I64
    strata: Strata | None

    @classmethod
    def read(cls, weights: Folder, config: Config) -> "Asked":
        """Read the mixture from the tables of a weights step."""
        mixture = weights.read_table("mixture.parquet")
        windows_L = mixture["windows"].to_numpy()
        if config.weights.estimator in WINDOW_ESTIMATORS:
            strata = Strata.from_table(weights.read_table("strata.parquet"))
            return cls(strata.claim_RC, strata.tokens_C, strata.leaf_C, windows_L, strata)
        _, claim_RL = asked_of_leaves(weights, config)
        return cls(claim_RL, mixture["tokens"].to_numpy(), np.arange(len(mixture)), windows_L, None)

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


def asked_of_leaves(weights: Folder, config: Config) -> tuple[list[str], F64]:
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
class WindowStrata:
    """Finds the stratum of each window again from its scores."""

    scores: Folder
    target: Target
    strata: Strata

    def of(self, name: str, leaf_N: I32) -> I64:
        """Return (N,): the row in `strata` of each window of a part."""
        _, q_N = self.target.ratios_of(leaf_N, read_scores(self.scores, name))
        return self.strata.index_of(leaf_N, q_N)


def write_target(weights: Folder, target: Target) -> None:
    """Write the target of windows to the folder of a weights step."""
    weights.write_bytes(_TARGET, target.to_bytes())


def read_target(weights: Folder) -> Target:
    """Read the target of windows that a weights step wrote."""
    return Target.from_bytes(weights.read_bytes(_TARGET))


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
    items = fold_groups(engine, part_names(scored))
    folders = (assigned.folder, scored.folder)
    zero_SB = np.zeros((len(clusters), BINS), np.int64)
    ratios: Odds | Top
    if make_scorer(config.weights.estimator).ratio_kind == "odds":
        log_weight_SL = log_weights([mixture.p_L for mixture in clusters.values()], generalist.p_L)
        bins_SB = engine.fold(_bin_odds, items, np.add, zero_SB, title="odds", shared=(*folders, log_weight_SL, config.sharpness))
        ratios = Odds.from_bins(log_weight_SL, config.sharpness, bins_SB)
    else:
        requested_S = np.maximum(share_S * config.sample.budget_tokens, 1.0)
        high_SB = engine.fold(_bin_codes, items, np.add, zero_SB, title="threshold", shared=(*folders, None))
        for name, wanted, held in zip(clusters, requested_S, high_SB.sum(1), strict=True):
            if held < wanted:
                logger.warning(
                    f"weights.estimator {config.weights.estimator}: {wanted:,.0f} tokens are asked for {name}, and {held:,} have a "
                    "score, so all of those are taken, again and again; lower sample.budget_tokens"
                )
        high_S, above_S = find_threshold_bin(high_SB, requested_S)
        low_SB = engine.fold(_bin_codes, items, np.add, zero_SB, title="threshold", shared=(*folders, high_S))
        ratios = Top.from_bins(high_S, above_S, low_SB, requested_S, int(generalist.tokens_L.sum()))
    return Target(ratios=ratios, share_S=share_S, natural_share=natural)


def stratify(
    engine: Engine, target: Target, assigned: Step, scored: Step, clusters: Mapping[str, SpecialistMixture]
) -> tuple[dict[str, SpecialistMixture], Strata]:
    """Return the mixture of each specialist over the leaves, computed from the window scores, and the strata."""
    num_leaves = len(next(iter(clusters.values())).p_L)
    counts = engine.fold(
        _strata,
        fold_groups(engine, part_names(scored)),
        StrataCounts.add,
        StrataCounts.zero(len(clusters)),
        title="strata",
        shared=(assigned.folder, scored.folder, target),
    )
    mixtures = {
        name: replace(mixture, p_L=p_L)
        for (name, mixture), p_L in zip(clusters.items(), counts.mixture_SL(num_leaves), strict=True)
    }
    if isinstance(target.ratios, Top):  # `top` uses neither cluster weights nor their smoothing
        mixtures = {name: replace(mixture, alpha_H=np.empty(0), backed_off=0.0) for name, mixture in mixtures.items()}
    return mixtures, counts.strata(target)


def _scored(names: Sequence[str], assignments: Folder, scores: Folder) -> Iterator[tuple[Any, Any, Any]]:
    for name in names:
        table = assignments.read_table(f"{name}.parquet", columns=["leaf", "tokens"])
        yield table["leaf"].to_numpy(), table["tokens"].to_numpy(), read_scores(scores, name)


def _bin_odds(names: Sequence[str], assignments: Folder, scores: Folder, log_weight_SL: F64, sharpness: float) -> I64:
    return functools.reduce(np.add, (bin_odds(log_weight_SL, sharpness, *part) for part in _scored(names, assignments, scores)))


def _bin_codes(names: Sequence[str], assignments: Folder, scores: Folder, high_S: I64 | None) -> I64:
    return functools.reduce(np.add, (bin_codes(*part, high_S) for part in _scored(names, assignments, scores)))


def _strata(names: Sequence[str], assignments: Folder, scores: Folder, target: Target) -> StrataCounts:
    return StrataCounts.combine(StrataCounts.of_part(target, *part) for part in _scored(names, assignments, scores))
