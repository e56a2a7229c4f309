"""Write the text of a run in groups with weights instead of copies: each window at most once, and the tokens to sample per group.

A fold over the draws computes the tokens that the allocation takes from each group (`pipeline.mixture.weighted_groups`). A shuffle
then collects the text of each group, in random order, in files of about the size of a shard.

Shapes: N windows of a part, M of them kept, R rows of several parts, G groups, F files, L leaves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.arrays import F64, I32, I64
from pipeline.clustering.tree import read_tree
from pipeline.config import Config
from pipeline.engine import Engine
from pipeline.errors import ConfigError
from pipeline.execution.step import Step, group_for_fold, group_for_mappers
from pipeline.hashing import keyed_hash, keyed_uniform
from pipeline.mixture.weighted_groups import GroupCounts, find_nodes_at, group_keys, split_key
from pipeline.stages.shards import ORDER, WRITE_OPTIONS, Pool, build_ids, list_pools, merge_sorted, split_by_number
from pipeline.storage import Folder
from pipeline.tables import GROUPED, WINDOWS

_MAX_FILES = 4096  # every part contributes a piece to each file
_PIECES = pa.schema(
    [*(WINDOWS.field("metadata") if field.name == "metadata" else field for field in GROUPED), pa.field(ORDER, pa.uint64())]
)


@dataclass(frozen=True)
class CountInputs:
    """Inputs of the tasks that count the allocated tokens and windows of the groups of one pool."""

    draws: Folder
    windows: Folder
    node_L: I64  # node of each leaf at the level of the groups


@dataclass(frozen=True)
class GroupingInputs:
    """Inputs shared by the mappers and reducers of the shuffle."""

    pools: Mapping[str, Pool]  # by origin
    node_L: I64  # node of each leaf at the level of the groups
    seed: int
    output: Folder
    counts: Mapping[str, GroupCounts]  # by origin
    first_file: Mapping[str, I64]  # by origin, (G + 1,): number of the first file of each group, then the end


def groups_step(
    config: Config,
    level: int,
    windows: Step,
    assigned: Step,
    clustered: Step,
    weighted: Step,
    rephrased: Step | None,
    sampled: Step,
) -> Step:
    """Build the step that writes the groups of the nodes at one level of the tree.

    Raises:
        ConfigError: the tree has no such level.
    """
    if not 0 <= level <= config.cluster.depth:
        raise ConfigError(f"--level is {level}, but the tree has only levels 0 to {config.cluster.depth} (cluster.depth)")

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        pools = list_pools(windows, assigned, rephrased, sampled.folder)
        node_L = find_nodes_at(read_tree(clustered.folder), level)
        counts = {
            origin: engine.fold(
                _count_groups,
                group_for_fold(engine, pool.names),
                _combine_counts,
                GroupCounts.zero(),
                title=f"groups {origin}",
                shared=CountInputs(pool.draws, pool.windows, node_L),
            )
            for origin, pool in pools.items()
        }
        bytes_per_token = windows.manifest["text_bytes"] / max(1, windows.manifest["tokens"])
        first_file, num_files = {}, 0
        for origin, group_counts in counts.items():
            bytes_G = group_counts.allocated_tokens_G / group_counts.certain_epochs_G * bytes_per_token
            num_files_G = np.maximum(np.rint(bytes_G / config.sample.shard_bytes), 1).astype(np.int64)
            first_file[origin] = num_files + np.concatenate([[0], np.cumsum(num_files_G)])
            num_files = int(first_file[origin][-1])
        if num_files > _MAX_FILES:
            raise ConfigError(f"--level {level} makes {num_files:,} files; the limit is {_MAX_FILES:,}. Choose a lower level")
        inputs = GroupingInputs(pools, node_L, config.seed, folder, counts, first_file)
        present = set(folder.names(".parquet"))
        missing = [number for number in range(num_files) if f"{_file_name(number)}.parquet" not in present]
        parts = [(origin, name) for origin, pool in pools.items() for name in pool.names]
        items = (
            group_for_mappers(engine, parts, moved_bytes=windows.manifest["text_bytes"], partitions=num_files) if missing else []
        )
        results = engine.shuffle(_split_parts, items, _write_file, missing, title=f"level {level}", unit="files", shared=inputs)
        new_facts = {missing[index]: facts for index, facts in results}
        facts = [new_facts.get(number) or folder.read_facts(f"{_file_name(number)}.parquet") for number in range(num_files)]
        return {
            "level": level,
            "budget_tokens": config.sample.budget_tokens,
            "seed": config.seed,
            "groups": _describe_groups(inputs, facts, _find_node_terms(weighted, node_L)),
        }

    return Step(
        stage="groups",
        corpus=f"level {level}",
        version=1,
        settings={"level": level, "shard_bytes": config.sample.shard_bytes, "seed": config.seed},
        inputs={"shards": sampled},
        workdir=sampled.workdir,
        work=work,
    )


def _file_name(number: int) -> str:
    return f"group-{number:05d}"


@dataclass(frozen=True)
class _PartAllocation:
    """The allocation to the windows of a part."""

    key: pa.ChunkedArray
    leaf_N: I32
    epochs_N: F64
    group_N: I64  # key of the window's group

    @classmethod
    def read(cls, name: str, draws: Folder, node_L: I64) -> "_PartAllocation":
        table = draws.read_table(f"{name}.parquet", columns=["key", "leaf", "expected"])
        leaf_N = table["leaf"].to_numpy()
        epochs_N = np.where(leaf_N >= 0, table["expected"].to_numpy(), 0.0)
        return cls(table["key"], leaf_N, epochs_N, group_keys(node_L[np.maximum(leaf_N, 0)], epochs_N))


def _count_groups(names: Sequence[str], inputs: CountInputs) -> GroupCounts:
    parts = []
    for name in names:
        part = _PartAllocation.read(name, inputs.draws, inputs.node_L)
        tokens_N = inputs.windows.read_table(f"{name}.parquet", columns=["tokens"])["tokens"].to_numpy()
        parts.append(GroupCounts.of_part(part.group_N, part.epochs_N, tokens_N))
    return GroupCounts.combine(parts)


def _combine_counts(a: GroupCounts, b: GroupCounts) -> GroupCounts:
    return GroupCounts.combine([a, b])


def _split_parts(parts: Sequence[tuple[str, str]], files: Sequence[int], inputs: GroupingInputs) -> list[pa.Table]:
    """Return the kept rows of several parts (origin, name), one table for each of the files."""
    selected = [_select_windows(origin, name, inputs) for origin, name in parts]
    table = pa.concat_tables([_PIECES.empty_table(), *(rows for rows, _ in selected)])
    table_by_file = split_by_number(table, np.concatenate([file_R for _, file_R in selected]), max(files) + 1)
    return [table_by_file[file] for file in files]


def _select_windows(origin: str, name: str, inputs: GroupingInputs) -> tuple[pa.Table, I64]:
    """Return the windows of a part that are kept in their groups, and (M,) the number of the file of each."""
    pool, counts = inputs.pools[origin], inputs.counts[origin]
    if not len(counts.key_G):  # no rewrites are sampled
        return _PIECES.empty_table(), np.empty(0, np.int64)
    part = _PartAllocation.read(name, pool.draws, inputs.node_L)
    row_N = np.minimum(np.searchsorted(counts.key_G, part.group_N), len(counts.key_G) - 1)
    u_N = keyed_uniform(part.key.to_numpy(), seed=inputs.seed, purpose=f"groups.{origin}")
    kept_M = np.flatnonzero(u_N * counts.certain_epochs_G[row_N] < part.epochs_N)
    windows = pool.windows.read_table(f"{name}.parquet")
    assert windows["key"].equals(part.key), f"windows and draws of {name} are not aligned"
    table = windows.take(pa.array(kept_M))
    row_id, parent, style = build_ids(table, origin)
    order_M = keyed_hash(table["key"].to_numpy(), seed=inputs.seed, purpose="groups.order")
    columns = {
        **{column: table[column] for column in ("text", "doc_id", "window", "source", "tokens", "near_copies", "metadata")},
        "id": row_id,
        "cluster": part.leaf_N[kept_M],
        "origin": pa.repeat(pa.scalar(origin), len(table)),
        "parent": parent,
        "style": style,
        "epochs": part.epochs_N[kept_M],
        ORDER: order_M,
    }
    first_G, row_M = inputs.first_file[origin], row_N[kept_M]
    file_M = first_G[row_M] + ((order_M >> np.uint64(32)).astype(np.int64) * np.diff(first_G)[row_M] >> 32)
    return pa.table({column: columns[column] for column in _PIECES.names}).cast(_PIECES), file_M


def _write_file(number: int, pieces: Sequence[pa.Table], inputs: GroupingInputs) -> dict[str, Any]:
    table = merge_sorted(pieces, _PIECES)
    facts = {"rows": len(table), "tokens": pc.sum(table["tokens"]).as_py() or 0}
    inputs.output.write_table(f"{_file_name(number)}.parquet", table, GROUPED, facts, **WRITE_OPTIONS)
    return facts


def _describe_groups(inputs: GroupingInputs, facts: Sequence[Mapping[str, Any]], terms: Mapping[int, str]) -> list[dict[str, Any]]:
    """Return the manifest entry of each group; `facts` are those of all files, `terms` those of nodes."""
    entries = []
    for origin, counts in inputs.counts.items():
        columns = (counts.key_G, counts.allocated_tokens_G, counts.allocated_documents_G)
        for row, (key, tokens, documents) in enumerate(zip(*columns, strict=True)):
            node, band = split_key(int(key))
            files = range(*inputs.first_file[origin][row : row + 2])
            name = f"node-{node:05d}" + (f"-x{2**band}" if band else "") + ("" if origin == "raw" else f"-{origin}")
            entries.append(
                {
                    "name": name,
                    "node": node,
                    "terms": terms.get(node, ""),
                    "origin": origin,
                    "wanted_tokens": float(tokens),
                    "wanted_documents": float(documents),
                    "tokens": sum(facts[number]["tokens"] for number in files),
                    "documents": sum(facts[number]["rows"] for number in files),
                    "files": [{"name": f"{_file_name(number)}.parquet", "rows": facts[number]["rows"]} for number in files],
                }
            )
    return entries


def _find_node_terms(weighted: Step, node_L: I64) -> dict[int, str]:
    """Map each node to terms: those of the named leaf below it that has the largest share of the mixture."""
    names = weighted.folder.read_table("names.parquet")
    target_L = weighted.folder.read_table("mixture.parquet", columns=["p_target"])["p_target"].to_numpy()
    best: dict[int, tuple[float, str]] = {}
    for leaf, terms in zip(names["leaf"].to_pylist(), names["terms"].to_pylist(), strict=True):
        node = int(node_L[leaf])
        best[node] = max(best.get(node, (-1.0, "")), (float(target_L[leaf]), terms))
    return {node: terms for node, (_, terms) in best.items()}
