"""Groups of requests, the unit of work in rewriting: choose passages of windows; later judge, embed and assign the answers.

Shapes: L leaves, N windows of a part, R rewrites, D width of the embedding.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.arrays import F64
from pipeline.clustering.tree import Tree
from pipeline.config import Embed
from pipeline.embedders import load_cached_embedder
from pipeline.execution.step import split_evenly
from pipeline.rewriting.answers import FrozenIndex
from pipeline.rewriting.filters import HeldOut
from pipeline.rewriting.judging import build_rewrites, judge_answers, summarise_group
from pipeline.rewriting.requests import RewriteInputs, build_requests, choose_windows
from pipeline.rewriting.selection import RewritingProgress, StyleVariant, compute_requested_share
from pipeline.stages.assign import assign_table
from pipeline.stages.embed import embed_table
from pipeline.stages.held_out import HELD_OUT_FILE
from pipeline.storage import Folder
from pipeline.tables import ASSIGNMENTS, PASSAGES, REQUESTS, REWRITES, embeddings_schema

_GROUP_PASSAGES = 2048  # per request file, which one worker holds in memory and judges


@dataclass(frozen=True)
class KeySlice:
    """The windows of some parts whose key modulo `num_slices` is `remainder`."""

    parts: Sequence[str]
    remainder: int = 0
    num_slices: int = 1


@dataclass(frozen=True)
class ChooseInputs:
    """The inputs shared by the tasks that choose the requests of one round."""

    slices: Mapping[str, KeySlice]  # by group
    windows: Folder
    assignments: Folder
    previous_rate_L: F64
    rate_L: F64
    rewrite: RewriteInputs
    requests: Folder


@dataclass(frozen=True)
class JudgeInputs:
    """The inputs shared by the tasks that judge the answers of one round."""

    requests: Folder
    store: Folder  # of answers
    index: FrozenIndex  # of the store
    errors: Mapping[int, str]  # of the requests without an answer, by key
    rewrite: RewriteInputs
    embed: Embed
    fitted_embedder: Folder | None
    tree: Tree
    held_out: Folder | None
    provenance: dict[str, str]  # model, revision and sampling
    openings_share: float  # share of the accepted answers whose openings are counted
    folder: Folder


def plan_round_groups(
    round_number: int,
    parts: Sequence[str],
    progress: RewritingProgress,
    rate_L: F64,
    style_variants: Sequence[StyleVariant],
    passage_tokens: float,
) -> dict[str, KeySlice]:
    """Map the name of each group of requests in a round to its windows.

    They are the windows of several parts, or a slice of one part if this round requests many of its passages.
    """
    share_L = compute_requested_share(rate_L, style_variants) - compute_requested_share(progress.rate_L, style_variants)
    source_tokens_L = share_L * progress.tokens_L * len(style_variants)
    num_groups = max(1, round(float(source_tokens_L.sum()) / passage_tokens / _GROUP_PASSAGES))
    num_slices = max(1, round(num_groups / max(1, len(parts))))
    slices = [KeySlice(run, i, num_slices) for run in split_evenly(parts, num_groups) for i in range(num_slices)]
    return {f"round-{round_number}-{i:06d}": key_slice for i, key_slice in enumerate(slices)}


def choose_group(name: str, inputs: ChooseInputs) -> dict[str, Any]:
    """Write the requests of a group: for the windows of its slice that this round requests and earlier rounds did not."""
    tables, key_slice = [REQUESTS.empty_table()], inputs.slices[name]
    for part in key_slice.parts:
        assignments = inputs.assignments.read_table(f"{part}.parquet", columns=["key", "leaf"])
        key_N, leaf_N = assignments["key"].to_numpy(), assignments["leaf"].to_numpy()
        # Windows without a leaf are never chosen.
        leaf_N = np.where(key_N % key_slice.num_slices == key_slice.remainder, leaf_N, -1)
        chosen = choose_windows(key_N, leaf_N, inputs.previous_rate_L, inputs.rate_L, inputs.rewrite)
        if chosen:
            tables.append(build_requests(inputs.windows.read_table(f"{part}.parquet"), leaf_N, chosen, inputs.rewrite))
    table = pa.concat_tables(tables)
    facts = {"rows": len(table)}
    inputs.requests.write_table(f"{name}.parquet", table, REQUESTS, facts)
    return facts


def judge_group(name: str, inputs: JudgeInputs) -> dict[str, Any]:
    """Judge the answers to a group of requests; return the facts of the group.

    Writes the accepted rewrites as windows, their embeddings and assignments, and the verdict on each passage.
    """
    requests = inputs.requests.read_table(f"{name}.parquet")
    embedder = load_cached_embedder(inputs.embed, inputs.fitted_embedder.url if inputs.fitted_embedder else None)
    key_R = requests["key"].to_numpy()
    answers = inputs.index.read_answers(inputs.store, key_R[~np.isin(key_R, np.array(sorted(inputs.errors), np.uint64))])
    held_out = _load_held_out(inputs.held_out.url) if inputs.held_out else None
    passages = judge_answers(requests, answers, inputs.errors, inputs.rewrite, embedder.encode, held_out, inputs.provenance)
    rewrites = build_rewrites(requests, passages, inputs.rewrite)
    embeddings = embed_table(rewrites, embedder)
    x_RD = embeddings["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, embedder.dim)
    valid_R = embeddings["valid"].to_numpy(zero_copy_only=False)
    assignments = assign_table(rewrites["key"].to_numpy(), rewrites["tokens"].to_numpy(), valid_R, x_RD, inputs.tree)
    facts = summarise_group(requests, passages, rewrites, assignments["leaf"].to_numpy(), inputs.openings_share)
    file, folder = f"{name}.parquet", inputs.folder
    folder.child("rewrites").write_table(file, rewrites, REWRITES)
    folder.child("embeddings").write_table(file, embeddings, embeddings_schema(embedder.dim), compression="none")
    folder.child("assignments").write_table(file, assignments, ASSIGNMENTS)
    # Written last: this file marks the group as done.
    folder.child("passages").write_table(file, passages, PASSAGES, facts)
    return facts


@functools.lru_cache(maxsize=1)
def _load_held_out(url: str) -> HeldOut:
    return HeldOut.from_table(Folder(url).read_table(HELD_OUT_FILE))
