"""Collect what the report page shows and no other stage stores: a map of the clusters, and excerpts and sampled tokens of each.

The stage reads columns of some parts, and the shards. The page itself (`pipeline.report`) is built from the resulting tables.

Shapes: V nodes of the tree, M of them mapped, L leaves, N windows of a part, R judged passages of a part.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from pipeline.arrays import I32
from pipeline.clustering.projection import project_nodes
from pipeline.clustering.tree import Tree, read_tree
from pipeline.config import GENERALIST, Config
from pipeline.engine import Engine
from pipeline.execution.step import Step, choose_by_hash, group_for_fold, part_names
from pipeline.hashing import find_lowest_by_group, keyed_hash, keyed_uniform, merge_lowest
from pipeline.storage import Folder
from pipeline.tables import EXCERPTS, NODES, REWRITE_EXAMPLES, SAMPLE_SOURCES, SAMPLED_TOKENS
from pipeline.text.terms import cluster_terms

NEW_CORPUS = "new corpus:"  # names the sampled generalist windows as a corpus of excerpts; not a valid name of a specialist
_MAX_MAP_NODES = 4096  # of the mapped level: more would be unreadable, and take hundreds of bytes each
_NUM_EXCERPT_PARTS = 64  # parts that are read for excerpts, chosen by hash
_NUM_NAMING_WINDOWS, _NAMING_CHARACTERS = 8, 600  # windows that a node's terms are chosen from, and characters read of each
_NUM_EXCERPTS = 3  # stored for each corpus and node
_EXCERPT_CHARACTERS = 1200  # the page may show fewer
_NUM_EXAMPLES = 4  # passages with their rewrites, for each style and verdict
_NUM_EXAMPLE_PARTS = 16  # parts of the rewrites that are read for examples

Excerpt = tuple[float, str, int, int, str]  # hash, document id, window, copies, text
Excerpts = dict[tuple[str, int], list[Excerpt]]  # by corpus or `NEW_CORPUS`, and node
SampledCounts = Counter[tuple[str, int, str, str, int]]  # by unit (tokens, rows), leaf, specialist, origin and copy
SourceTokens = Counter[tuple[str, str]]  # by specialist and source
Key = TypeVar("Key")


@dataclass(frozen=True)
class ExcerptInputs:
    """Inputs shared by the tasks that select excerpts of one corpus."""

    corpus: str
    windows: Folder
    assignments: Folder
    node_L: I32  # node on the map that represents each leaf
    draws: Sequence[Folder]  # copies of the windows in the new corpus
    seed: int


@dataclass(frozen=True)
class SourceInputs:
    """Inputs shared by the tasks that count the tokens of the sources of one specialist sample."""

    specialist: str
    windows: Folder


def report_step(
    config: Config,
    windows: Mapping[str, Step],
    assigned: Mapping[str, Step],
    clustered: Step,
    weighted: Step,
    samples: Sequence[Step],
    rephrased: Step | None,
) -> Step:
    """Build the report step.

    Args:
        windows: the step of each corpus: the generalist corpus under `GENERALIST`, and each specialist.
        assigned: likewise.
        samples: the steps that sampled the new corpus; empty if nothing is sampled yet.
    """

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        tree = read_tree(clustered.folder)
        node_L = map_leaves_to_nodes(tree)
        draws = [sample.folder.child("draws") for sample in samples]
        excerpts: Excerpts = {}
        for corpus, step in assigned.items():
            corpus_draws = draws if corpus == GENERALIST else []
            corpus_excerpts: Excerpts = engine.fold(
                _select_excerpts,
                choose_by_hash(part_names(step), _NUM_EXCERPT_PARTS, seed=config.seed, purpose="report.parts"),
                _merge_excerpts,
                {},
                title=f"excerpts {corpus}",
                shared=ExcerptInputs(corpus, windows[corpus].folder, step.folder, node_L, corpus_draws, config.seed),
            )
            excerpts |= corpus_excerpts
        folder.write_table("nodes.parquet", _build_nodes(tree, node_L, excerpts, weighted, config.seed), NODES)
        folder.write_table("excerpts.parquet", _build_excerpts(excerpts), EXCERPTS)
        shards = [(sample.folder, shard["name"]) for sample in samples for shard in sample.manifest["shards"]]
        sampled: SampledCounts = engine.fold(
            _count_sampled, group_for_fold(engine, shards), _add_counts, Counter(), title="sampled tokens", shared=None
        )
        folder.write_table("sampled_tokens.parquet", _build_sampled_tokens(sampled), SAMPLED_TOKENS)
        sources: SourceTokens = Counter()
        for name in config.specialists:
            names = group_for_fold(engine, part_names(windows[name]))
            inputs = SourceInputs(name, windows[name].folder)
            tokens: SourceTokens = engine.fold(
                _count_sources, names, _add_counts, Counter(), title=f"sources {name}", shared=inputs
            )
            sources += tokens
        rows = [{"specialist": name, "source": source, "tokens": count} for (name, source), count in sorted(sources.items())]
        folder.write_table("sample_sources.parquet", pa.Table.from_pylist(rows, SAMPLE_SOURCES), SAMPLE_SOURCES)
        examples = _select_rewrite_examples(rephrased, config.seed) if rephrased else REWRITE_EXAMPLES.empty_table()
        folder.write_table("rewrite_examples.parquet", examples, REWRITE_EXAMPLES)
        return {"nodes": len(np.unique(node_L)), "leaves": tree.num_leaves}

    return Step(
        stage="report",
        version=2,
        settings={"seed": config.seed},
        inputs={
            **{f"windows.{name}": step for name, step in windows.items()},
            **{f"assignments.{name}": step for name, step in assigned.items()},
            "tree": clustered,
            "weights": weighted,
            **({"rewrites": rephrased} if rephrased else {}),
            **{f"shards.{sample.corpus}".rstrip("."): sample for sample in samples},
        },
        workdir=clustered.workdir,
        work=work,
    )


def map_leaves_to_nodes(tree: Tree) -> I32:
    """Return (L,): the node that represents each leaf on the map.

    It is the leaf's ancestor at the deepest level that has at most 4,096 nodes; the root, if no level below it has so few.
    """
    levels = (tree.ancestor_at(level) for level in range(tree.depth, 0, -1))
    return next((node_L for node_L in levels if len(np.unique(node_L)) <= _MAX_MAP_NODES), np.zeros(tree.num_leaves, np.int32))


def _select_excerpts(name: str, inputs: ExcerptInputs) -> Excerpts:
    """Return the windows of a part with the lowest hashes of each node, and those with the lowest hashes among sampled windows."""
    leaf_N = inputs.assignments.read_table(f"{name}.parquet", columns=["leaf"])["leaf"].to_numpy()
    table = inputs.windows.read_table(f"{name}.parquet", columns=["key", "doc_id", "window", "text"])
    copies_N = np.zeros(len(leaf_N), np.int64)
    for draws in inputs.draws:
        copies_N += draws.read_table(f"{name}.parquet", columns=["copies"])["copies"].to_numpy()
    node_N = np.where(leaf_N >= 0, inputs.node_L[np.maximum(leaf_N, 0)], -1)
    u_N = keyed_uniform(table["key"].to_numpy(), seed=inputs.seed, purpose="report.windows")
    excerpts: Excerpts = {}
    for corpus, max_rows, eligible_N in (
        (inputs.corpus, _NUM_NAMING_WINDOWS, True),
        (NEW_CORPUS, _NUM_EXCERPTS, copies_N > 0),
    ):
        for row in find_lowest_by_group(np.where(eligible_N, node_N, -1), u_N, max_rows):
            doc_id, window, text = (table[column][int(row)].as_py() for column in ("doc_id", "window", "text"))
            excerpt = (float(u_N[row]), doc_id, window, int(copies_N[row]), text[:_EXCERPT_CHARACTERS])
            excerpts.setdefault((corpus, int(node_N[row])), []).append(excerpt)
    return excerpts


def _merge_excerpts(a: Excerpts, b: Excerpts) -> Excerpts:
    return merge_lowest(a, b, _NUM_NAMING_WINDOWS)


def _build_excerpts(excerpts: Excerpts) -> pa.Table:
    rows = [
        {"node": node, "corpus": corpus, "doc_id": doc_id, "window": window, "copies": copies, "text": text}
        for (corpus, node), node_excerpts in sorted(excerpts.items())
        for _, doc_id, window, copies, text in node_excerpts[:_NUM_EXCERPTS]
    ]
    return pa.Table.from_pylist(rows, EXCERPTS)


def _build_nodes(tree: Tree, node_L: I32, excerpts: Excerpts, weighted: Step, seed: int) -> pa.Table:
    """Return the NODES table: the mapped nodes, and their ancestors, placed at the mean of their descendants weighted by tokens."""
    mixture = weighted.folder.read_table("mixture.parquet", columns=["tokens"])
    node_M = np.unique(node_L)
    position_V2, size_V = np.zeros((tree.num_nodes, 2)), np.zeros(tree.num_nodes)
    position_V2[node_M] = project_nodes(tree, node_M, seed=seed)
    np.add.at(size_V, node_L, 1.0 + mixture["tokens"].to_numpy())
    kept = set(node_M.tolist())
    texts = {node: [text[:_NAMING_CHARACTERS] for *_, text in excerpts.get((GENERALIST, node), [])] for node in node_M.tolist()}
    pooled: dict[int, list[Excerpt]] = {node: excerpts.get((GENERALIST, node), []) for node in node_M.tolist()}
    for node in sorted(kept, reverse=True):
        parent = int(tree.parent_V[node])
        while parent >= 0:
            kept.add(parent)
            parent = int(tree.parent_V[parent])
    for node in sorted(kept, reverse=True):  # nodes are numbered breadth first, so descendants come first
        parent = int(tree.parent_V[node])
        if parent >= 0:
            total = size_V[parent] + size_V[node]
            position_V2[parent] += (position_V2[node] - position_V2[parent]) * size_V[node] / max(total, 1e-9)
            size_V[parent] = total
            pooled[parent] = sorted(pooled.get(parent, []) + pooled.get(node, []))[: 4 * _NUM_NAMING_WINDOWS]
    ancestors = sorted(kept - set(node_M.tolist()) - {0})
    leaf_terms = dict(zip(*weighted.folder.read_table("names.parquet").to_pydict().values(), strict=True))
    terms = cluster_terms(texts) | {
        node: leaf_terms[leaf]
        for node in node_M.tolist()
        if tree.num_leaves_V[node] == 1 and (leaf := int(tree.first_leaf_V[node])) in leaf_terms
    }
    for level in sorted({int(tree.level_V[node]) for node in ancestors}):  # level by level: terms distinguish nodes of a level
        nodes = [node for node in ancestors if tree.level_V[node] == level]
        terms |= cluster_terms({node: [text[:_NAMING_CHARACTERS] for *_, text in pooled.get(node, [])] for node in nodes})
    nodes = sorted(kept)
    return pa.table(
        {
            "node": nodes,
            "parent": tree.parent_V[nodes],
            "level": tree.level_V[nodes],
            "first_leaf": tree.first_leaf_V[nodes],
            "num_leaves": tree.num_leaves_V[nodes],
            "x": position_V2[nodes, 0],
            "y": position_V2[nodes, 1],
            "terms": [terms.get(node, "") for node in nodes],
        }
    )


def _count_sampled(shards: Sequence[tuple[Folder, str]], _: None) -> SampledCounts:
    """Count tokens and rows of some shards by leaf, specialist, origin and copy."""
    counts: SampledCounts = Counter()
    keys = ["cluster", "specialist", "origin", "copy"]
    for folder, name in shards:
        table = folder.read_table(name, columns=[*keys, "tokens"])
        for row in table.group_by(keys).aggregate([("tokens", "sum"), ("tokens", "count")]).to_pylist():
            key = (row["cluster"], row["specialist"], row["origin"], row["copy"])
            counts["tokens", *key] += row["tokens_sum"]
            counts["rows", *key] += row["tokens_count"]
    return counts


def _build_sampled_tokens(counts: SampledCounts) -> pa.Table:
    rows = [
        {
            "leaf": leaf,
            "specialist": name,
            "origin": origin,
            "copy": copy,
            "tokens": tokens,
            "rows": counts["rows", leaf, name, origin, copy],
        }
        for (unit, leaf, name, origin, copy), tokens in sorted(counts.items())
        if unit == "tokens"
    ]
    return pa.Table.from_pylist(rows, SAMPLED_TOKENS)


def _count_sources(names: Sequence[str], inputs: SourceInputs) -> SourceTokens:
    """Count tokens of some parts of a specialist sample by specialist and source."""
    counts: SourceTokens = Counter()
    for name in names:
        table = inputs.windows.read_table(f"{name}.parquet", columns=["source", "tokens"])
        for row in table.group_by("source").aggregate([("tokens", "sum")]).to_pylist():
            counts[inputs.specialist, row["source"]] += row["tokens_sum"]
    return counts


def _add_counts(a: Counter[Key], b: Counter[Key]) -> Counter[Key]:
    return a + b


def _select_rewrite_examples(rephrased: Step, seed: int) -> pa.Table:
    """Return the REWRITE_EXAMPLES table: up to four passages of each style and verdict, each with its rewrite."""
    requests, passages = rephrased.folder.child("requests"), rephrased.folder.child("passages")
    examples: dict[tuple[str, str], list[tuple[int, dict[str, Any]]]] = {}  # by style and verdict; each with its hash
    for name in choose_by_hash(part_names(rephrased), _NUM_EXAMPLE_PARTS, seed=seed, purpose="report.pairs"):
        source_text = dict(zip(*requests.read_table(f"{name}.parquet", columns=["key", "text"]).to_pydict().values(), strict=True))
        judged = passages.read_table(f"{name}.parquet").to_pylist()
        hash_R = keyed_hash(np.array([row["key"] for row in judged], np.uint64), seed=seed, purpose="report.pairs")
        for row_hash, row in zip(hash_R.tolist(), judged, strict=True):
            kept = examples.setdefault((row["style"], row["verdict"]), [])
            texts = {"source_text": source_text[row["key"]][:_EXCERPT_CHARACTERS], "text": row["text"][:_EXCERPT_CHARACTERS]}
            kept.append((row_hash, {**row, **texts}))
            kept.sort(key=lambda example: example[0])
            del kept[_NUM_EXAMPLES:]
    rows = [{name: row[name] for name in REWRITE_EXAMPLES.names} for _, kept in sorted(examples.items()) for _, row in kept]
    return pa.Table.from_pylist(rows, REWRITE_EXAMPLES)
