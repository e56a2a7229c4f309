"""Collect what the report page shows and no other stage keeps: a map of the clusters, and excerpts and sampled tokens of each.

A few passes over columns of some parts and over the shards. The page itself (`pipeline.report`) is built from the resulting tables.

Shapes: V nodes of the tree, M of them mapped, L leaves, N windows of a part, R requests of a group.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrays import F64, I32, I64
from pipeline.clustering.projection import project_nodes
from pipeline.clustering.tree import Tree, read_tree
from pipeline.config import GENERALIST, Config
from pipeline.engine import Engine
from pipeline.execution.step import Step, fold_groups, hash_chosen, part_names
from pipeline.hashing import keyed_hash, keyed_uniform
from pipeline.storage import Folder
from pipeline.tables import DRAWN, EXCERPTS, NODES, PAIRS, SAMPLE_SOURCES
from pipeline.text.terms import cluster_terms

OF_DRAWN = "drawn:"  # excerpts of generalist windows in the new corpus; not a valid name of a specialist
_MOST_NODES = 4096  # of the mapped level: more would be unreadable, and take hundreds of bytes each
_PARTS = 64  # parts that are read for excerpts, chosen by hash
_NAMED_BY, _NAME_CHARACTERS = 8, 600  # windows that a node is named from, and characters read of each
_EXCERPTS = 3
_CHARACTERS = 1200  # of an excerpt; the page may show fewer
_PAIRS_EACH = 4  # pairs of a passage and its rewrite, for each style and verdict
_PAIR_GROUPS = 16  # groups of requests that are read for pairs

Excerpt = tuple[float, str, int, int, str]  # hash, document id, window, copies, text
Excerpts = dict[tuple[str, int], list[Excerpt]]  # by corpus or `OF_DRAWN`, and node
Tokens = Counter[tuple[Any, ...]]


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
        node_L = mapped(tree)
        draws = [sample.folder.child("draws") for sample in samples]
        found: Excerpts = {}
        for corpus, step in assigned.items():
            named = hash_chosen(part_names(step), _PARTS, seed=config.seed, purpose="report.parts")
            found |= engine.fold(
                _excerpts_of_part,
                named,
                _first,
                {},
                title=f"excerpts {corpus}",
                shared=(corpus, windows[corpus].folder, step.folder, node_L, draws if corpus == GENERALIST else [], config.seed),
            )
        folder.write_table("nodes.parquet", _nodes(tree, node_L, found, weighted, config.seed), NODES)
        folder.write_table("excerpts.parquet", _excerpts(found), EXCERPTS)
        shards = [(sample.folder, shard["name"]) for sample in samples for shard in sample.manifest["shards"]]
        drawn: Tokens = engine.fold(_drawn_of, fold_groups(engine, shards), _summed, Counter(), title="what was drawn")
        folder.write_table("drawn.parquet", _drawn_table(drawn), DRAWN)
        sources: Tokens = Counter()
        for name in config.specialists:
            names = fold_groups(engine, part_names(windows[name]))
            shared = (name, windows[name].folder)
            sources += engine.fold(_sources_of, names, _summed, Counter(), title=f"sources {name}", shared=shared)
        rows = [{"specialist": name, "source": source, "tokens": tokens} for (name, source), tokens in sorted(sources.items())]
        folder.write_table("sample_sources.parquet", pa.Table.from_pylist(rows, SAMPLE_SOURCES), SAMPLE_SOURCES)
        folder.write_table("pairs.parquet", _pairs(rephrased, config.seed) if rephrased else PAIRS.empty_table(), PAIRS)
        return {"nodes": len(np.unique(node_L)), "leaves": tree.num_leaves}

    return Step(
        stage="report",
        version=1,
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


def mapped(tree: Tree) -> I32:
    """Return (L,): the node that represents each leaf on the map.

    It is the leaf's ancestor at the deepest level that has at most 4,096 nodes; the root, if no level below it has so few.
    """
    at_level = (tree.ancestor_at(level) for level in range(tree.depth, 0, -1))
    return next((node_L for node_L in at_level if len(np.unique(node_L)) <= _MOST_NODES), np.zeros(tree.num_leaves, np.int32))


def _excerpts_of_part(
    name: str, corpus: str, windows: Folder, assignments: Folder, node_L: I32, draws: Sequence[Folder], seed: int
) -> Excerpts:
    """Return, for each node, the windows of a part with the lowest hashes; of sampled windows also those with the lowest hashes."""
    leaf_N = assignments.read_table(f"{name}.parquet", columns=["leaf"])["leaf"].to_numpy()
    table = windows.read_table(f"{name}.parquet", columns=["key", "doc_id", "window", "text"])
    copies_N = np.zeros(len(leaf_N), np.int64)
    for drawn in draws:
        copies_N += drawn.read_table(f"{name}.parquet", columns=["copies"])["copies"].to_numpy()
    node_N = np.where(leaf_N >= 0, node_L[np.maximum(leaf_N, 0)], -1)
    u_N = keyed_uniform(table["key"].to_numpy(), seed=seed, purpose="report.windows")
    found: Excerpts = {}
    for of, most, eligible_N in ((corpus, _NAMED_BY, node_N >= 0), (OF_DRAWN, _EXCERPTS, (node_N >= 0) & (copies_N > 0))):
        for row in _lowest_of_each(node_N, u_N, eligible_N, most):
            identifier, window, text = (table[column][int(row)].as_py() for column in ("doc_id", "window", "text"))
            excerpt = (float(u_N[row]), identifier, window, int(copies_N[row]), text[:_CHARACTERS])
            found.setdefault((of, int(node_N[row])), []).append(excerpt)
    return found


def _lowest_of_each(node_N: I32, u_N: F64, eligible_N: NDArray[np.bool_], most: int) -> I64:
    """Return up to `most` eligible rows of each node, those with the lowest hashes."""
    rows = np.flatnonzero(eligible_N)
    rows = rows[np.lexsort((u_N[rows], node_N[rows]))]
    first = np.searchsorted(node_N[rows], node_N[rows])  # position of the first row of the row's node
    return np.asarray(rows[np.arange(len(rows)) - first < most])


def _first(a: Excerpts, b: Excerpts) -> Excerpts:
    return {key: sorted(a.get(key, []) + b.get(key, []))[: _EXCERPTS if key[0] == OF_DRAWN else _NAMED_BY] for key in a.keys() | b}


def _excerpts(found: Excerpts) -> pa.Table:
    rows = [
        {"node": node, "of": of, "doc_id": identifier, "window": window, "copies": copies, "text": text}
        for (of, node), excerpts in sorted(found.items())
        for _, identifier, window, copies, text in excerpts[:_EXCERPTS]
    ]
    return pa.Table.from_pylist(rows, EXCERPTS)


def _nodes(tree: Tree, node_L: I32, found: Excerpts, weighted: Step, seed: int) -> pa.Table:
    """Return the NODES table: the mapped nodes, and their ancestors, placed at the mean of their descendants weighted by tokens."""
    mixture = weighted.folder.read_table("mixture.parquet", columns=["tokens"])
    node_M = np.unique(node_L)
    place_V2, size_V = np.zeros((tree.num_nodes, 2)), np.zeros(tree.num_nodes)
    place_V2[node_M] = project_nodes(tree, node_M, seed=seed)
    np.add.at(size_V, node_L, 1.0 + mixture["tokens"].to_numpy())
    kept = set(node_M.tolist())
    texts = {node: [text[:_NAME_CHARACTERS] for *_, text in found.get((GENERALIST, node), [])] for node in node_M.tolist()}
    pooled: dict[int, list[Excerpt]] = {node: found.get((GENERALIST, node), []) for node in node_M.tolist()}
    for node in sorted(kept, reverse=True):
        parent = int(tree.parent_V[node])
        while parent >= 0:
            kept.add(parent)
            parent = int(tree.parent_V[parent])
    for node in sorted(kept, reverse=True):  # nodes are numbered breadth first, so descendants come first
        parent = int(tree.parent_V[node])
        if parent >= 0:
            total = size_V[parent] + size_V[node]
            place_V2[parent] += (place_V2[node] - place_V2[parent]) * size_V[node] / max(total, 1e-9)
            size_V[parent] = total
            pooled[parent] = sorted(pooled.get(parent, []) + pooled.get(node, []))[: 4 * _NAMED_BY]
    above = sorted(kept - set(node_M.tolist()) - {0})
    known = dict(zip(*weighted.folder.read_table("names.parquet").to_pydict().values(), strict=True))
    terms = cluster_terms(texts) | {
        node: known[leaf]
        for node in node_M.tolist()
        if tree.num_leaves_V[node] == 1 and (leaf := int(tree.first_leaf_V[node])) in known
    }
    for level in sorted({int(tree.level_V[node]) for node in above}):  # level by level: terms distinguish nodes of a level
        nodes = [node for node in above if tree.level_V[node] == level]
        terms |= cluster_terms({node: [text[:_NAME_CHARACTERS] for *_, text in pooled.get(node, [])] for node in nodes})
    chosen = sorted(kept)
    return pa.table(
        {
            "node": chosen,
            "parent": tree.parent_V[chosen],
            "level": tree.level_V[chosen],
            "first_leaf": tree.first_leaf_V[chosen],
            "num_leaves": tree.num_leaves_V[chosen],
            "x": place_V2[chosen, 0],
            "y": place_V2[chosen, 1],
            "terms": [terms.get(node, "") for node in chosen],
        }
    )


def _drawn_of(shards: Sequence[tuple[Folder, str]]) -> Tokens:
    """Count tokens and rows of some shards by (leaf, specialist, origin, copy)."""
    found: Tokens = Counter()
    keys = ["cluster", "specialist", "origin", "copy"]
    for folder, name in shards:
        table = folder.read_table(name, columns=[*keys, "tokens"])
        for row in table.group_by(keys).aggregate([("tokens", "sum"), ("tokens", "count")]).to_pylist():
            key = tuple(row[column] for column in keys)
            found["tokens", *key] += row["tokens_sum"]
            found["rows", *key] += row["tokens_count"]
    return found


def _drawn_table(found: Tokens) -> pa.Table:
    rows = [
        {
            "leaf": leaf,
            "specialist": name,
            "origin": origin,
            "copy": copy,
            "tokens": tokens,
            "rows": found["rows", leaf, name, origin, copy],
        }
        for (what, leaf, name, origin, copy), tokens in sorted(found.items())
        if what == "tokens"
    ]
    return pa.Table.from_pylist(rows, DRAWN)


def _sources_of(names: Sequence[str], specialist: str, windows: Folder) -> Tokens:
    found: Tokens = Counter()
    for name in names:
        table = windows.read_table(f"{name}.parquet", columns=["source", "tokens"])
        for row in table.group_by("source").aggregate([("tokens", "sum")]).to_pylist():
            found[specialist, row["source"]] += row["tokens_sum"]
    return found


def _summed(a: Tokens, b: Tokens) -> Tokens:
    return a + b


def _pairs(rephrased: Step, seed: int) -> pa.Table:
    """Return the PAIRS table: up to four passages of each style and verdict, each with its rewrite."""
    requests, passages = rephrased.folder.child("requests"), rephrased.folder.child("passages")
    found: dict[tuple[str, str], list[tuple[int, dict[str, Any]]]] = {}
    for name in hash_chosen(part_names(rephrased), _PAIR_GROUPS, seed=seed, purpose="report.pairs"):
        source_of = dict(zip(*requests.read_table(f"{name}.parquet", columns=["key", "text"]).to_pydict().values(), strict=True))
        judged = passages.read_table(f"{name}.parquet").to_pylist()
        place_R = keyed_hash(np.array([row["key"] for row in judged], np.uint64), seed=seed, purpose="report.pairs")
        for place, row in zip(place_R.tolist(), judged, strict=True):
            kept = found.setdefault((row["style"], row["verdict"]), [])
            kept.append((place, {**row, "source_text": source_of[row["key"]][:_CHARACTERS], "text": row["text"][:_CHARACTERS]}))
            kept.sort(key=lambda one: one[0])
            del kept[_PAIRS_EACH:]
    rows = [{name: row[name] for name in PAIRS.names} for _, kept in sorted(found.items()) for _, row in kept]
    return pa.Table.from_pylist(rows, PAIRS)
