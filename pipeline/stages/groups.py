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
from pipeline.execution.step import Step, fold_groups, mapper_groups
from pipeline.hashing import keyed_hash, keyed_uniform
from pipeline.mixture.weighted_groups import GroupCounts, find_nodes_at, group_keys, split_key
from pipeline.stages.shards import ORDER, WRITE_OPTIONS, Pool, identifiers, in_order, pools_of, split_by
from pipeline.storage import Folder
from pipeline.tables import GROUPED, WINDOWS

_MOST_FILES = 4096  # every part contributes a piece to each file
_PIECES = pa.schema(
    [*(WINDOWS.field("metadata") if field.name == "metadata" else field for field in GROUPED), pa.field(ORDER, pa.uint64())]
)


@dataclass(frozen=True)
class Grouping:
    """Inputs shared by the mappers and reducers."""

    pools: Mapping[str, Pool]
    node_L: I64
    seed: int
    output: Folder
    counts: Mapping[str, GroupCounts]
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
        raise ConfigError(f"--level {level}: the tree has levels 0 to {config.cluster.depth} (cluster.depth)")

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        pools = pools_of(windows, assigned, rephrased, sampled.folder)
        node_L = find_nodes_at(read_tree(clustered.folder), level)
        counts = {
            origin: engine.fold(
                _counted,
                fold_groups(engine, pool.names),
                lambda a, b: GroupCounts.combine([a, b]),
                GroupCounts.zero(),
                title=f"groups {origin}",
                shared=(pool.draws, pool.windows, node_L),
            )
            for origin, pool in pools.items()
        }
        text_bytes = windows.manifest["text_bytes"] / max(1, windows.manifest["tokens"])
        first_file, num_files = {}, 0
        for origin, of_origin in counts.items():
            held_G = of_origin.allocated_tokens_G / of_origin.certain_epochs_G * text_bytes
            files_G = np.maximum(np.rint(held_G / config.sample.shard_bytes), 1).astype(np.int64)
            first_file[origin] = num_files + np.concatenate([[0], np.cumsum(files_G)])
            num_files = int(first_file[origin][-1])
        if num_files > _MOST_FILES:
            raise ConfigError(f"--level {level} makes {num_files:,} files, more than {_MOST_FILES:,}; choose a lower level")
        grouping = Grouping(pools, node_L, config.seed, folder, counts, first_file)
        present = set(folder.names(".parquet"))
        missing = [number for number in range(num_files) if f"{_file(number)}.parquet" not in present]
        named = [(origin, name) for origin, pool in pools.items() for name in pool.names]
        items = mapper_groups(engine, named, moved_bytes=windows.manifest["text_bytes"], partitions=num_files) if missing else []
        shared = (grouping,)
        written = engine.shuffle(_pieces, items, _write_file, missing, title=f"level {level}", unit="files", shared=shared)
        made = {missing[index]: facts for index, facts in written}
        facts = [made.get(number) or folder.read_facts(f"{_file(number)}.parquet") for number in range(num_files)]
        return {
            "level": level,
            "budget_tokens": config.sample.budget_tokens,
            "seed": config.seed,
            "groups": _described(grouping, facts, _terms(weighted, node_L)),
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


def _file(number: int) -> str:
    return f"group-{number:05d}"


@dataclass(frozen=True)
class _Drawn:
    """The allocation for the windows of a part."""

    key: pa.ChunkedArray
    leaf_N: I32
    epochs_N: F64
    group_N: I64

    @classmethod
    def read(cls, name: str, draws: Folder, node_L: I64) -> "_Drawn":
        table = draws.read_table(f"{name}.parquet", columns=["key", "leaf", "expected"])
        leaf_N = table["leaf"].to_numpy()
        epochs_N = np.where(leaf_N >= 0, table["expected"].to_numpy(), 0.0)
        return cls(table["key"], leaf_N, epochs_N, group_keys(node_L[np.maximum(leaf_N, 0)], epochs_N))


def _counted(names: Sequence[str], draws: Folder, windows: Folder, node_L: I64) -> GroupCounts:
    parts = []
    for name in names:
        drawn = _Drawn.read(name, draws, node_L)
        tokens_N = windows.read_table(f"{name}.parquet", columns=["tokens"])["tokens"].to_numpy()
        parts.append(GroupCounts.of_part(drawn.group_N, drawn.epochs_N, tokens_N))
    return GroupCounts.combine(parts)


def _pieces(parts: Sequence[tuple[str, str]], files: Sequence[int], grouping: Grouping) -> list[pa.Table]:
    """Return the rows of several parts (origin, name), one table for each of the files."""
    kept = [_kept(origin, name, grouping) for origin, name in parts]
    table = pa.concat_tables([_PIECES.empty_table(), *(of_part for of_part, _ in kept)])
    of_file = split_by(table, np.concatenate([file_R for _, file_R in kept]), max(files) + 1)
    return [of_file[file] for file in files]


def _kept(origin: str, name: str, grouping: Grouping) -> tuple[pa.Table, I64]:
    """Return the windows of a part that are kept in their groups, and (M,) the number of the file of each."""
    pool, counts = grouping.pools[origin], grouping.counts[origin]
    if not len(counts.key_G):  # no rewrites are sampled
        return _PIECES.empty_table(), np.empty(0, np.int64)
    drawn = _Drawn.read(name, pool.draws, grouping.node_L)
    row_N = np.minimum(np.searchsorted(counts.key_G, drawn.group_N), len(counts.key_G) - 1)
    u_N = keyed_uniform(drawn.key.to_numpy(), seed=grouping.seed, purpose=f"groups.{origin}")
    kept_M = np.flatnonzero(u_N * counts.certain_epochs_G[row_N] < drawn.epochs_N)
    windows = pool.windows.read_table(f"{name}.parquet")
    assert windows["key"].equals(drawn.key), f"windows and draws of {name} are not aligned"
    table = windows.take(pa.array(kept_M))
    identifier, parent, style = identifiers(table, origin)
    order_M = keyed_hash(table["key"].to_numpy(), seed=grouping.seed, purpose="groups.order")
    columns = {
        **{column: table[column] for column in ("text", "doc_id", "window", "source", "tokens", "near_copies", "metadata")},
        "id": identifier,
        "cluster": drawn.leaf_N[kept_M],
        "origin": pa.repeat(pa.scalar(origin), len(table)),
        "parent": parent,
        "style": style,
        "epochs": drawn.epochs_N[kept_M],
        ORDER: order_M,
    }
    first_G, row_M = grouping.first_file[origin], row_N[kept_M]
    file_M = first_G[row_M] + ((order_M >> np.uint64(32)).astype(np.int64) * np.diff(first_G)[row_M] >> 32)
    return pa.table({column: columns[column] for column in _PIECES.names}).cast(_PIECES), file_M


def _write_file(number: int, pieces: Sequence[pa.Table], grouping: Grouping) -> dict[str, Any]:
    table = in_order(pieces, _PIECES)
    facts = {"rows": len(table), "tokens": pc.sum(table["tokens"]).as_py() or 0}
    grouping.output.write_table(f"{_file(number)}.parquet", table, GROUPED, facts, **WRITE_OPTIONS)
    return facts


def _described(grouping: Grouping, facts: Sequence[Mapping[str, Any]], terms: Mapping[int, str]) -> list[dict[str, Any]]:
    """Describe each group for the manifest."""
    found = []
    for origin, counts in grouping.counts.items():
        columns = (counts.key_G, counts.allocated_tokens_G, counts.allocated_documents_G)
        for row, (key, tokens, documents) in enumerate(zip(*columns, strict=True)):
            node, band = split_key(int(key))
            files = range(*grouping.first_file[origin][row : row + 2])
            name = f"node-{node:05d}" + (f"-x{2**band}" if band else "") + ("" if origin == "raw" else f"-{origin}")
            found.append(
                {
                    "name": name,
                    "node": node,
                    "terms": terms.get(node, ""),
                    "origin": origin,
                    "wanted_tokens": float(tokens),
                    "wanted_documents": float(documents),
                    "tokens": sum(facts[number]["tokens"] for number in files),
                    "documents": sum(facts[number]["rows"] for number in files),
                    "files": [{"name": f"{_file(number)}.parquet", "rows": facts[number]["rows"]} for number in files],
                }
            )
    return found


def _terms(weighted: Step, node_L: I64) -> dict[int, str]:
    """Map each node to terms: those of the named leaf below it that has the largest share of the mixture."""
    names = weighted.folder.read_table("names.parquet")
    target_L = weighted.folder.read_table("mixture.parquet", columns=["p_target"])["p_target"].to_numpy()
    found: dict[int, tuple[float, str]] = {}
    for leaf, terms in zip(names["leaf"].to_pylist(), names["terms"].to_pylist(), strict=True):
        node = int(node_L[leaf])
        found[node] = max(found.get(node, (-1.0, "")), (float(target_L[leaf]), terms))
    return {node: terms for node, (_, terms) in found.items()}
