"""Histograms over the tree, and how much of each leaf the new corpus is to hold.

A fold over the assignments of each corpus; the rest is arithmetic on the driver (`pipeline.mixture`). Leaves that matter most are
named by their own words, read from a few parts.

Shapes: L leaves, N windows of a part.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import CLUSTER_WEIGHTED, GENERALIST, WINDOW_ESTIMATORS, Config
from pipeline.engine import Engine
from pipeline.hashing import keyed_uniform
from pipeline.mixture.estimators import ESTIMATORS, SpecialistMix
from pipeline.mixture.histograms import DocumentCounts, LeafHistogram
from pipeline.mixture.report import report
from pipeline.mixture.strata import (
    BINS,
    Odds,
    Strata,
    StrataCounts,
    Target,
    Top,
    code_bins,
    last_bin,
    log_weights,
    odds_bins,
)
from pipeline.names import cluster_terms
from pipeline.scoring import scorer
from pipeline.stages.assign import read_tree
from pipeline.stages.score import read_scores
from pipeline.step import Step, groups, part_names
from pipeline.storage import Folder
from pipeline.tables import DIAGNOSTICS, MIXTURE, NAMES, SPECIALISTS, STRATA

_TARGET = "target.npz"
_FOLD_GROUPS = 256
# Names are for people: so many leaves, from so many windows each, in so many parts, are enough to read.
_NAMED_LEAVES = 256
_WINDOWS_PER_NAME = 20
_PARTS_FOR_NAMES = 64
_CHARACTERS = 4000

Texts = dict[int, list[tuple[float, str]]]


def weights_step(
    config: Config, prepared: Mapping[str, Step], assigned: Mapping[str, Step], clustered: Step, scored: Step | None
) -> Step:
    """The step that weighs the leaves, or with scores their strata.

    `prepared` and `assigned` hold the generalist, under that name, and each specialist.
    """
    settings = config.weights
    shares = {name: specialist.share for name, specialist in config.specialists.items()}

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        tree = read_tree(clustered.folder)
        generalist = engine.fold(
            _histogram,
            groups(part_names(assigned[GENERALIST]), _FOLD_GROUPS),
            lambda a, b: LeafHistogram.combine([a, b]),
            LeafHistogram.zero(tree.num_leaves),
            title="histogram generalist",
            shared=(assigned[GENERALIST].folder, tree.num_leaves),
        )
        samples = {
            name: engine.fold(
                _documents,
                groups(part_names(assigned[name]), _FOLD_GROUPS),
                lambda a, b: DocumentCounts.combine([a, b]),
                DocumentCounts(),
                title=f"histogram {name}",
                shared=(prepared[name].folder, assigned[name].folder),
            )
            for name in shares
        }
        clusters = ESTIMATORS["crisp" if scored else settings.estimator].estimate(tree, generalist, samples, settings)
        mixes, strata = clusters, None
        if scored:
            target = _target(engine, config, assigned[GENERALIST], scored, generalist, clusters)
            mixes, strata = _stratify(engine, target, assigned[GENERALIST], scored, clusters)
            folder.write_table("strata.parquet", strata.table(), STRATA)
            folder.write_bytes(_TARGET, target.to_bytes())
        tables = report(
            tree,
            generalist,
            samples,
            mixes,
            settings,
            shares=shares,
            budget_tokens=config.sample.budget_tokens,
            draw=config.sample.draw,
            seed=config.seed,
            strata=strata,
            clusters=clusters if settings.estimator in CLUSTER_WEIGHTED else None,
        )
        leaves = _leaves_to_name(tables.mixture)
        texts: Texts = engine.fold(
            _texts_of_leaves,
            _hash_chosen(part_names(assigned[GENERALIST]), config.seed),
            _lowest,
            {},
            title="names",
            shared=(prepared[GENERALIST].folder, assigned[GENERALIST].folder, leaves, config.seed),
        )
        names = cluster_terms({leaf: [text for _, text in found] for leaf, found in texts.items()})
        name_table = pa.table({"leaf": list(names), "terms": list(names.values())}, schema=NAMES)
        folder.write_table("mixture.parquet", tables.mixture, MIXTURE)
        folder.write_table("specialists.parquet", tables.specialists, SPECIALISTS)
        folder.write_table("diagnostics.parquet", tables.diagnostics, DIAGNOSTICS)
        folder.write_table("names.parquet", name_table, NAMES)
        return {"leaves": tree.num_leaves, "invalid": generalist.invalid}

    return Step(
        stage="weights",
        version=1,
        # The diagnostics speak of repeats, so they depend on the budget and the way of drawing too.
        settings={
            "weights": settings.identity(),
            "shares": {name: share / sum(shares.values()) for name, share in shares.items()},
            "budget_tokens": config.sample.budget_tokens,
            "draw": config.sample.draw,
            "seed": config.seed,
        },
        inputs={**assigned, **({"scores": scored} if scored else {})},
        workdir=clustered.workdir,
        work=work,
    )


@dataclass(frozen=True)
class Asked:
    """What is asked of the text, by cells that are drawn alike: leaves, or where windows are scored strata of them."""

    p_C: NDArray[np.float64]
    tokens_C: NDArray[np.int64]
    leaf_C: NDArray[np.int64]
    windows_L: NDArray[np.int64]
    strata: Strata | None

    @classmethod
    def read(cls, weights: Folder, config: Config) -> "Asked":
        """From the tables of a weights step."""
        mixture = weights.read_table("mixture.parquet")
        windows_L = mixture["windows"].to_numpy()
        if config.weights.estimator in WINDOW_ESTIMATORS:
            strata = Strata.from_table(weights.read_table("strata.parquet"))
            return cls(strata.p_target_C, strata.tokens_C, strata.leaf_C, windows_L, strata)
        p_L, tokens_L = mixture["p_target"].to_numpy(), mixture["tokens"].to_numpy()
        return cls(p_L, tokens_L, np.arange(len(mixture)), windows_L, None)

    @property
    def num_leaves(self) -> int:
        return len(self.windows_L)

    def split(self, x_L: NDArray[np.float64], weight_C: NDArray[np.float64]) -> NDArray[np.float64]:
        """(C,) what is said of leaves, over their cells in proportion to `weight_C`."""
        weight_L = np.bincount(self.leaf_C, weights=weight_C, minlength=self.num_leaves)
        # Where nothing is asked of a leaf, by what its cells hold: what is said of it must not be lost.
        weight_C = np.where(weight_L[self.leaf_C] > 0, weight_C, self.tokens_C)
        weight_L = np.bincount(self.leaf_C, weights=weight_C, minlength=self.num_leaves)
        part_C = np.divide(weight_C, weight_L[self.leaf_C], out=np.zeros_like(weight_C), where=weight_C > 0)
        return np.asarray(x_L[self.leaf_C] * part_C, np.float64)


def read_target(weights: Folder) -> Target:
    """What is asked of a window, as the weights step found it."""
    return Target.from_bytes(weights.read_bytes(_TARGET))


def _target(
    engine: Engine, config: Config, assigned: Step, scored: Step, generalist: LeafHistogram, clusters: Mapping[str, SpecialistMix]
) -> Target:
    """Scores into ratios: one or two folds over the scores."""
    natural = config.weights.natural_share
    shares = {name: specialist.share for name, specialist in config.specialists.items()}
    share_S = (1.0 - natural) * np.array([shares[name] for name in clusters]) / sum(shares.values())
    items = groups(part_names(scored), _FOLD_GROUPS)
    folders = (assigned.folder, scored.folder)
    zero_SB = np.zeros((len(clusters), BINS), np.int64)
    ratios: Odds | Top
    if scorer(config.weights.estimator).draws == "odds":
        log_weight_SL = log_weights([mix.p_L for mix in clusters.values()], generalist.p_L)
        bins_SB = engine.fold(_odds_bins, items, np.add, zero_SB, title="odds", shared=(*folders, log_weight_SL))
        ratios = Odds.fitted(log_weight_SL, bins_SB)
    else:
        wanted_S = np.maximum(share_S * config.sample.budget_tokens, 1.0)
        high_SB = engine.fold(_code_bins, items, np.add, zero_SB, title="threshold", shared=(*folders, None))
        high_S, above_S = last_bin(high_SB, wanted_S)
        low_SB = engine.fold(_code_bins, items, np.add, zero_SB, title="threshold", shared=(*folders, high_S))
        ratios = Top.fitted(high_S, above_S, low_SB, wanted_S, int(generalist.tokens_L.sum()))
    return Target(ratios=ratios, share_S=share_S, natural_share=natural)


def _stratify(
    engine: Engine, target: Target, assigned: Step, scored: Step, clusters: Mapping[str, SpecialistMix]
) -> tuple[dict[str, SpecialistMix], Strata]:
    """What each specialist asks of the leaves, and the strata."""
    num_leaves = len(next(iter(clusters.values())).p_L)
    counts = engine.fold(
        _strata,
        groups(part_names(scored), _FOLD_GROUPS),
        StrataCounts.add,
        StrataCounts.zero(len(clusters), num_leaves),
        title="strata",
        shared=(assigned.folder, scored.folder, target, num_leaves),
    )
    mixes = {name: replace(mix, p_L=p_L) for (name, mix), p_L in zip(clusters.items(), counts.p_SL, strict=True)}
    if isinstance(target.ratios, Top):  # clusters, and what smooths them, have no part in it
        mixes = {name: replace(mix, alpha_H=np.empty(0), backed_off=0.0) for name, mix in mixes.items()}
    return mixes, counts.strata()


def _scored(names: Sequence[str], assignments: Folder, scores: Folder) -> Iterator[tuple[Any, Any, Any]]:
    for name in names:
        table = assignments.read_table(f"{name}.parquet", columns=["leaf", "tokens"])
        yield table["leaf"].to_numpy(), table["tokens"].to_numpy(), read_scores(scores, name)


def _odds_bins(names: Sequence[str], assignments: Folder, scores: Folder, log_weight_SL: NDArray[np.float64]) -> NDArray[np.int64]:
    return functools.reduce(np.add, (odds_bins(log_weight_SL, *part) for part in _scored(names, assignments, scores)))


def _code_bins(names: Sequence[str], assignments: Folder, scores: Folder, high_S: NDArray[np.int64] | None) -> NDArray[np.int64]:
    return functools.reduce(np.add, (code_bins(*part, high_S) for part in _scored(names, assignments, scores)))


def _strata(names: Sequence[str], assignments: Folder, scores: Folder, target: Target, num_leaves: int) -> StrataCounts:
    return StrataCounts.combine(StrataCounts.of_part(target, *part, num_leaves) for part in _scored(names, assignments, scores))


def _histogram(names: Sequence[str], assignments: Folder, num_leaves: int) -> LeafHistogram:
    tables = (assignments.read_table(f"{name}.parquet", columns=["leaf", "tokens"]) for name in names)
    return LeafHistogram.combine(
        LeafHistogram.of_part(table["leaf"].to_numpy(), table["tokens"].to_numpy(), num_leaves) for table in tables
    )


def _documents(names: Sequence[str], windows: Folder, assignments: Folder) -> DocumentCounts:
    parts = []
    for name in names:
        table = assignments.read_table(f"{name}.parquet", columns=["leaf", "tokens"])
        doc_id_N = windows.read_table(f"{name}.parquet", columns=["doc_id"])["doc_id"].to_pylist()
        parts.append(DocumentCounts.of_part(doc_id_N, table["leaf"].to_numpy(), table["tokens"].to_numpy()))
    return DocumentCounts.combine(parts)


def _leaves_to_name(mixture: pa.Table) -> list[int]:
    """The leaves that people will ask about: those that hold most of the corpus before, or after, or moved most."""
    p_L, target_L = mixture["p_generalist"].to_numpy(), mixture["p_target"].to_numpy()
    interest_L = np.maximum(p_L, target_L) + np.abs(target_L - p_L)
    leaf_M = np.argsort(-interest_L, kind="stable")[:_NAMED_LEAVES]
    return sorted(int(leaf) for leaf in leaf_M if p_L[leaf] > 0)


def _hash_chosen(names: Sequence[str], seed: int) -> list[str]:
    u_N = keyed_uniform(np.arange(len(names), dtype=np.uint64), seed=seed, purpose="names.parts")
    return [names[i] for i in sorted(np.argsort(u_N, kind="stable")[:_PARTS_FOR_NAMES])]


def _texts_of_leaves(name: str, windows: Folder, assignments: Folder, leaves: Sequence[int], seed: int) -> Texts:
    """For each leaf the windows with the lowest hashes in a part: (hash, beginning of the text)."""
    leaf_N = assignments.read_table(f"{name}.parquet", columns=["leaf"])["leaf"].to_numpy()
    table = windows.read_table(f"{name}.parquet", columns=["key", "text"])
    u_N = keyed_uniform(table["key"].to_numpy(), seed=seed, purpose="names.windows")
    found: Texts = {}
    for leaf in leaves:
        rows = np.flatnonzero(leaf_N == leaf)
        rows = rows[np.argsort(u_N[rows], kind="stable")[:_WINDOWS_PER_NAME]]
        found[leaf] = [(float(u_N[row]), table["text"][int(row)].as_py()[:_CHARACTERS]) for row in rows]
    return found


def _lowest(a: Texts, b: Texts) -> Texts:
    return {leaf: sorted(a.get(leaf, []) + b.get(leaf, []))[:_WINDOWS_PER_NAME] for leaf in a.keys() | b.keys()}
