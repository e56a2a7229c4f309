"""Groups of requests, the unit of work in rewriting: choose passages of windows; later judge, embed and assign the answers.

Shapes: L leaves, N windows of a part, R rewrites, D width of the embedding.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.arrays import F64
from pipeline.clustering.tree import Tree
from pipeline.embedders import load_cached_embedder
from pipeline.execution.step import groups
from pipeline.rewriting.answers import FrozenIndex
from pipeline.rewriting.choosing import Tally, Way, asked_share
from pipeline.rewriting.filters import HeldOut
from pipeline.rewriting.judging import facts_of, judge_answers, rewrites_table
from pipeline.rewriting.requests import Task, choose, requests_table
from pipeline.stages.assign import assign_table
from pipeline.stages.embed import embed_table
from pipeline.stages.held_out import HELD_OUT
from pipeline.storage import Folder
from pipeline.tables import ASSIGNMENTS, PASSAGES, REQUESTS, REWRITES, embeddings_schema

_GROUP_PASSAGES = 2048  # per request file, which one worker holds in memory and judges


@dataclass(frozen=True)
class Slice:
    """The windows of some parts whose key modulo `of` is `number`."""

    parts: Sequence[str]
    number: int = 0
    of: int = 1


def groups_of_round(number: int, names: Sequence[str], tally: Tally, rate_L: F64, used: list[Way], size: float) -> dict[str, Slice]:
    """Map the name of each group of requests in a round to its windows.

    They are the windows of several parts, or a slice of one part if this round requests many of its passages.
    """
    more_L = (asked_share(rate_L, used) - asked_share(tally.rate_L, used)) * tally.tokens_L * len(used)
    count = max(1, round(float(more_L.sum()) / size / _GROUP_PASSAGES))
    of = max(1, round(count / max(1, len(names))))
    slices = [Slice(parts, i, of) for parts in groups(names, count) for i in range(of)]
    return {f"round-{number}-{i:06d}": one for i, one in enumerate(slices)}


def choose_group(
    name: str,
    slices: dict[str, Slice],
    windows: Folder,
    assignments: Folder,
    before_L: F64,
    after_L: F64,
    task: Task,
    folder: Folder,
) -> dict[str, Any]:
    """Write the requests of a group: for the windows of its slice that this round requests and earlier rounds did not."""
    tables, wanted = [REQUESTS.empty_table()], slices[name]
    for part in wanted.parts:
        assigned = assignments.read_table(f"{part}.parquet", columns=["key", "leaf"])
        key_N, leaf_N = assigned["key"].to_numpy(), assigned["leaf"].to_numpy()
        leaf_N = np.where(key_N % wanted.of == wanted.number, leaf_N, -1)  # windows without a leaf are never chosen
        chosen = choose(key_N, leaf_N, before_L, after_L, task)
        if chosen:
            tables.append(requests_table(windows.read_table(f"{part}.parquet"), leaf_N, chosen, task))
    table = pa.concat_tables(tables)
    facts = {"rows": len(table)}
    folder.write_table(f"{name}.parquet", table, REQUESTS, facts)
    return facts


def judge_group(
    name: str,
    requests: Folder,
    store: Folder,
    index: FrozenIndex,
    errors: dict[int, str],
    task: Task,
    embed: Any,
    artifact: Folder | None,
    tree: Tree,
    held_out: Folder | None,
    provenance: dict[str, str],
    folder: Folder,
    openings_share: float,
) -> dict[str, Any]:
    """Judge the answers to a group of requests; return the facts of the group.

    Writes the accepted rewrites as windows, their embeddings and assignments, and the verdict on each passage.
    """
    asked = requests.read_table(f"{name}.parquet")
    embedder = load_cached_embedder(embed, artifact.url if artifact else None)
    key_R = asked["key"].to_numpy()
    answers = index.read(store, key_R[~np.isin(key_R, np.array(sorted(errors), np.uint64))])
    passages = judge_answers(
        asked, answers, errors, task, embedder.encode, _loaded_held_out(held_out.url) if held_out else None, provenance
    )
    rewrites = rewrites_table(asked, passages, task)
    vectors = embed_table(rewrites, embedder)
    x_RD = vectors["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, embedder.dim)
    valid_R = vectors["valid"].to_numpy(zero_copy_only=False)
    key_R, tokens_R = rewrites["key"].to_numpy(), rewrites["tokens"].to_numpy()
    assignments = assign_table(key_R, tokens_R, valid_R, x_RD, tree)
    facts = facts_of(asked, passages, rewrites, assignments["leaf"].to_numpy(), openings_share)
    folder.child("rewrites").write_table(f"{name}.parquet", rewrites, REWRITES)
    folder.child("embeddings").write_table(f"{name}.parquet", vectors, embeddings_schema(embedder.dim), compression="none")
    folder.child("assignments").write_table(f"{name}.parquet", assignments, ASSIGNMENTS)
    # Written last: this file marks the group as done.
    folder.child("passages").write_table(f"{name}.parquet", passages, PASSAGES, facts)
    return facts


@functools.lru_cache(maxsize=1)
def _loaded_held_out(url: str) -> HeldOut:
    return HeldOut.from_table(Folder(url).read_table(HELD_OUT))
