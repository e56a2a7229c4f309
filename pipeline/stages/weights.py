"""Compute histograms over the tree, and from them the mixture: the share of each cluster in the new corpus.

One fold over the assignments of each corpus; the rest is arithmetic on the driver (`pipeline.mixture`). The most important clusters
are named with characteristic terms of their windows, read from a few parts.

Shapes: L leaves, N windows of a part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.clustering.tree import read_tree
from pipeline.config import CLUSTER_WEIGHTED_ESTIMATORS, GENERALIST, Config
from pipeline.engine import Engine
from pipeline.execution.step import Step, choose_by_hash, group_for_fold, part_names
from pipeline.hashing import find_lowest_by_group, keyed_uniform, merge_lowest
from pipeline.mixture.allocation import Limits
from pipeline.mixture.estimators import ESTIMATORS
from pipeline.mixture.histograms import DocumentCounts, LeafCounts
from pipeline.mixture.weights_tables import build_tables
from pipeline.stages.strata import build_strata, fit_target
from pipeline.storage import Folder
from pipeline.tables import DIAGNOSTICS, MIXTURE, NAMES, SPECIALISTS, STRATA
from pipeline.text.terms import cluster_terms

# Names are for people only, so a few leaves, windows, parts and characters are enough.
_NAMED_LEAVES = 256
_WINDOWS_PER_NAME = 20
_PARTS_FOR_NAMES = 64
_CHARACTERS_PER_WINDOW = 2000

LeafTexts = dict[int, list[tuple[float, str]]]  # (hash of the window, beginning of its text), by leaf


@dataclass(frozen=True)
class _SampleFolders:
    windows: Folder
    assignments: Folder


@dataclass(frozen=True)
class _LeafTextInputs:
    windows: Folder
    assignments: Folder
    leaves: Sequence[int]
    seed: int


def weights_step(
    config: Config,
    prepared: Mapping[str, Step],
    assigned: Mapping[str, Step],
    clustered: Step,
    scored: Step | None,
    *,
    corpus: str = "",
) -> Step:
    """Build the step that computes the mixture over leaves, and over their strata if windows are scored.

    `prepared` and `assigned` contain the step of each corpus: the generalist corpus under `GENERALIST`, and each specialist.
    """
    settings = config.weights
    shares = {name: specialist.share for name, specialist in config.specialists.items()}

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        tree = read_tree(clustered.folder)
        counts = engine.fold(
            _count_leaves,
            group_for_fold(engine, part_names(assigned[GENERALIST])),
            LeafCounts.add,
            LeafCounts(),
            shared=assigned[GENERALIST].folder,
            title="histogram generalist",
        )
        generalist = counts.histogram(tree.num_leaves)
        samples = {
            name: engine.fold(
                _count_documents,
                group_for_fold(engine, part_names(assigned[name])),
                lambda a, b: DocumentCounts.combine([a, b]),
                DocumentCounts(),
                shared=_SampleFolders(prepared[name].folder, assigned[name].folder),
                title=f"histogram {name}",
            )
            for name in shares
        }
        clusters = ESTIMATORS["crisp" if scored else settings.estimator].estimate(tree, generalist, samples, settings, config.seed)
        mixtures, strata = clusters, None
        if scored:
            target = fit_target(engine, config, assigned[GENERALIST], scored, generalist, clusters)
            mixtures, strata = build_strata(engine, target, assigned[GENERALIST], scored, clusters, folder)
            folder.write_table("strata.parquet", strata.to_table(), STRATA)
        tables = build_tables(
            tree,
            generalist,
            samples,
            mixtures,
            settings,
            Limits.from_config(config),
            shares=shares,
            natural_share=config.natural_share,
            sharpness=config.sharpness,
            draw=config.sample.draw,
            seed=config.seed,
            strata=strata,
            clusters=clusters if settings.estimator in CLUSTER_WEIGHTED_ESTIMATORS else None,
        )
        leaves = _leaves_to_name(tables.mixture)
        texts = read_leaf_texts(engine, prepared[GENERALIST], assigned[GENERALIST], leaves, seed=config.seed, title="names")
        names = cluster_terms({leaf: [text for _, text in of_leaf] for leaf, of_leaf in texts.items()})
        name_table = pa.table({"leaf": list(names), "terms": list(names.values())}, schema=NAMES)
        folder.write_table("mixture.parquet", tables.mixture, MIXTURE)
        folder.write_table("specialists.parquet", tables.specialists, SPECIALISTS)
        folder.write_table("diagnostics.parquet", tables.diagnostics, DIAGNOSTICS)
        folder.write_table("names.parquet", name_table, NAMES)
        return {"leaves": tree.num_leaves, "invalid": generalist.invalid}

    return Step(
        stage="weights",
        corpus=corpus,
        version=4,
        # The diagnostics report repeats, so they also depend on the budget and the sampling method.
        settings={
            "weights": config.resolved_weights.identity(),
            "shares": {name: share / sum(shares.values()) for name, share in shares.items()},
            "budget_tokens": config.sample.budget_tokens,
            "draw": config.sample.draw,
            "seed": config.seed,
        },
        inputs={**assigned, **({"scores": scored} if scored else {})},
        workdir=clustered.workdir,
        work=work,
    )


def _count_leaves(names: Sequence[str], assignments: Folder) -> LeafCounts:
    tables = (assignments.read_table(f"{name}.parquet", columns=["leaf", "tokens"]) for name in names)
    return LeafCounts.combine(LeafCounts.of_part(table["leaf"].to_numpy(), table["tokens"].to_numpy()) for table in tables)


def _count_documents(names: Sequence[str], sample: _SampleFolders) -> DocumentCounts:
    parts = []
    for name in names:
        table = sample.assignments.read_table(f"{name}.parquet", columns=["leaf", "tokens"])
        doc_id_N = sample.windows.read_table(f"{name}.parquet", columns=["doc_id"])["doc_id"].to_pylist()
        parts.append(DocumentCounts.of_part(doc_id_N, table["leaf"].to_numpy(), table["tokens"].to_numpy()))
    return DocumentCounts.combine(parts)


def _leaves_to_name(mixture: pa.Table) -> list[int]:
    """Return up to 256 leaves, ascending, with the largest shares before or after and the largest changes of share."""
    p_L, target_L = mixture["p_generalist"].to_numpy(), mixture["p_target"].to_numpy()
    interest_L = np.maximum(p_L, target_L) + np.abs(target_L - p_L)
    leaf_M = np.argsort(-interest_L, kind="stable")[:_NAMED_LEAVES]
    return sorted(int(leaf) for leaf in leaf_M if p_L[leaf] > 0)


def read_leaf_texts(engine: Engine, windows: Step, assigned: Step, leaves: Sequence[int], *, seed: int, title: str) -> LeafTexts:
    """Map each leaf to (hash, beginning of text) of up to 20 windows, lowest hash first, from at most 64 parts of the corpus."""
    return engine.fold(
        _read_texts_of_part,
        choose_by_hash(part_names(assigned), _PARTS_FOR_NAMES, seed=seed, purpose="names.parts"),
        _keep_lowest,
        {},
        shared=_LeafTextInputs(windows.folder, assigned.folder, leaves, seed),
        title=title,
    )


def _read_texts_of_part(name: str, inputs: _LeafTextInputs) -> LeafTexts:
    """Map each leaf to (hash, beginning of text) of the windows of a part with the lowest hashes."""
    leaf_N = inputs.assignments.read_table(f"{name}.parquet", columns=["leaf"])["leaf"].to_numpy()
    table = inputs.windows.read_table(f"{name}.parquet", columns=["key", "text"])
    u_N = keyed_uniform(table["key"].to_numpy(), seed=inputs.seed, purpose="names.windows")
    texts: LeafTexts = {leaf: [] for leaf in inputs.leaves}
    wanted_N = np.where(np.isin(leaf_N, inputs.leaves), leaf_N, -1)
    for row in find_lowest_by_group(wanted_N, u_N, _WINDOWS_PER_NAME):
        texts[int(leaf_N[row])].append((float(u_N[row]), table["text"][int(row)].as_py()[:_CHARACTERS_PER_WINDOW]))
    return texts


def _keep_lowest(a: LeafTexts, b: LeafTexts) -> LeafTexts:
    return merge_lowest(a, b, _WINDOWS_PER_NAME)
