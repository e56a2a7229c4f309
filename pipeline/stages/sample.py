"""Allocate the token budget, sample copies of windows, and write the shards of the new corpus.

Three passes over the parts of the generalist corpus: a fold that collects the windows whose number of copies the driver must decide
(`mixture.sampling`), a map that writes the copies of each window (`draws/`, aligned with the windows), and the only shuffle that
moves text. Rewrites are sampled in the same way from their own parts, and join the shuffle.

Shapes: L leaves, C cells (leaves, or strata if windows are scored), N windows of a part, R rows of a mixture (the specialists, then
natural text), P pairs of a rewrite's own leaf and its parent's leaf.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrays import F64, I32, I64
from pipeline.clustering.tree import Tree, read_tree
from pipeline.config import Config
from pipeline.engine import Engine
from pipeline.errors import ConfigError
from pipeline.execution.step import Step, group_for_fold, map_parts
from pipeline.hashing import keyed_hash
from pipeline.manifest import versions
from pipeline.mixture.allocation import Allocation, Limits, allocate, allocate_capped, allocate_with_rewrite_share
from pipeline.mixture.sampling import Candidates, Decision, SamplingPlan, count_copies, decide, find_candidates, first_band
from pipeline.rewriting.rewrite_use import RewriteUse
from pipeline.stages.shards import (
    Attribution,
    Pool,
    ShuffleInputs,
    list_pools,
    read_shard_facts,
    shard_name,
    sum_counts,
)
from pipeline.stages.shuffle_rounds import SampledPart, write_shards
from pipeline.stages.strata import Cells, TargetMixture, read_leaf_shares
from pipeline.storage import Folder
from pipeline.tables import ALLOCATION, DRAWS, REWRITE_CLUSTERS

_MAX_SOURCES = 256
_OTHER = "(other sources)"


def sample_step(
    config: Config,
    prepared: Step,
    embedded: Step,
    assigned: Step,
    clustered: Step,
    weighted: Step,
    rephrased: Step | None,
    *,
    previous: Step | None = None,
    prefixed_share: float = 0.0,
) -> Step:
    """Build the step that samples the generalist corpus and its rewrites, and writes the shards.

    Args:
        previous: the step that wrote the preceding shards. Copy numbers continue from it; the two samplings are independent.
        prefixed_share: share of the shards, counted from the first, whose texts begin with their source (`schedule.conditioning`).
    """
    settings, conditioning = config.sample, config.conditioning if prefixed_share else None
    seed = config.seed if previous is None else int(keyed_hash(np.zeros(1, np.uint64), seed=config.seed, purpose="ending")[0] >> 1)

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        target = TargetMixture.read(weighted.folder, config)
        rewrite_use = _read_rewrite_use(config, rephrased) if rephrased else None
        try:
            of_cells = allocate_cells(config, target, rewrite_use.filled_L if rewrite_use else None)
        except ConfigError as error:
            raise ConfigError(f"schedule.ending: {error}" if previous else str(error)) from error
        allocation = of_cells.sum_groups(target.leaf_C, target.num_leaves)
        folder.write_table("allocation.parquet", allocation.to_table(), ALLOCATION)
        plan = SamplingPlan(
            method=settings.draw,
            seed=seed,
            epochs_L=allocation.epochs_L,
            allocated_L=allocation.allocated_L,
            windows_L=target.windows_L,
        )
        tree = read_tree(clustered.folder)
        pools = list_pools(prepared, assigned, rephrased, folder)
        raw = _sample_pool(engine, pools["raw"], plan, tree, _compute_factors(target.cells, of_cells, allocation))
        sampled = {"raw": raw}
        if rephrased and rewrite_use and (rewrites := pools.get("rephrased")):
            plan = _plan_rewrites(rephrased, rewrite_use, config.seed)
            sampled["rephrased"] = _sample_pool(engine, rewrites, plan, tree, RewriteFactors(rewrites.windows, rewrite_use))
        parts = [part for of_pool in sampled.values() for part in of_pool]

        sampled_parts = _estimate_bytes(prepared, sampled)
        sampled_bytes = sum(part.sampled_bytes for part in sampled_parts)
        specialists, claim_RL = read_leaf_shares(weighted.folder, config)
        num_shards = _num_shards(sampled_bytes / settings.shard_bytes, prefixed_share)
        inputs = ShuffleInputs(
            pools=pools,
            output=folder,
            num_shards=num_shards,
            shard_bytes=settings.shard_bytes,
            seed=config.seed,
            first_shard=len(previous.manifest["shards"]) if previous else 0,
            previous_draws=previous.folder.child("draws") if previous else None,
            conditioning=conditioning,
            num_prefixed_shards=round(prefixed_share * num_shards),
            attribution=Attribution(specialists, of_cells.allocated_RL, claim_RL, target.cells),
        )
        present = set(folder.names(".parquet"))
        names = [f"{shard_name(inputs.first_shard + number)}.parquet" for number in range(num_shards)]
        missing = [number for number, name in enumerate(names) if name not in present]
        written = write_shards(engine, sampled_parts, inputs, missing)
        facts = [written.get(number) or read_shard_facts(folder, name) for number, name in enumerate(names)]
        return {
            "budget_tokens": settings.budget_tokens,
            "seed": config.seed,
            "deficit_tokens": float(allocation.deficit_L.sum()),
            "rewritten_tokens": float(allocation.rewritten_L.sum()),
            "clipped_mass": allocation.clipped_mass,
            "deficit_share": allocation.deficit_share,
            "rows": sum(shard["rows"] for shard in facts),
            "tokens": sum(shard["tokens"] for shard in facts),
            "windows": sum(part["sampled_windows"] for part in parts),
            "first_tokens": sum(shard["first_tokens"] for shard in facts),
            "first_rows": sum(shard["first_rows"] for shard in facts),
            "prefixed_rows": sum(shard["prefixed_rows"] for shard in facts),
            "segments": [number for number in (inputs.num_prefixed_shards, num_shards - inputs.num_prefixed_shards) if number],
            "tokens_by_specialist": sum_counts([shard["tokens_by_specialist"] for shard in facts]),
            "tokens_by_origin": sum_counts([shard["tokens_by_origin"] for shard in facts]),
            "tokens_by_style": sum_counts([shard["tokens_by_style"] for shard in facts]),
            "tokens_by_source": _sum_sources(raw, parts),
            "hardware": embedded.manifest["hardware"],
            "versions": versions(),
            "shards": [
                {"name": name, **{key: shard[key] for key in ("rows", "tokens", "bytes", "sha256")}}
                for name, shard in zip(names, facts, strict=True)
            ],
        }

    return Step(
        stage="sample",
        corpus="ending" if previous else "",
        version=4,
        settings={
            **({"conditioning": {**conditioning.identity(), "prefixed_share": prefixed_share}} if conditioning else {}),
            "sample": settings.identity(),
            "max_epochs": config.weights.max_epochs,
            "overflow": config.weights.overflow,
            "repeat_exponent": config.repeat_exponent,
            "seed": config.seed,
        },
        inputs={
            "windows": prepared,
            "assignments": assigned,
            "weights": weighted,
            **({"rewrites": rephrased} if rephrased else {}),
            **({"previous": previous} if previous else {}),
        },
        workdir=prepared.workdir,
        work=work,
    )


def _estimate_bytes(prepared: Step, sampled: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[SampledPart]:
    """Estimate the bytes sampled from each part, from its bytes per token; for rewrites, from those of the whole corpus."""
    parts = prepared.manifest["parts"]
    of_part = {part["name"]: part["all_bytes"] / max(1, part["tokens"]) for part in parts}
    of_all = sum(part["all_bytes"] for part in parts) / max(1, sum(part["tokens"] for part in parts))
    return [
        SampledPart(origin, part["name"], (of_part[part["name"]] if origin == "raw" else of_all) * part["sampled_tokens"])
        for origin, of_pool in sampled.items()
        for part in of_pool
        if part["sampled_tokens"]
    ]


def _num_shards(wanted: float, share: float) -> int:
    """Return a number of shards near `wanted` of which a whole number is as close as possible to `share`; on ties, the smallest."""
    least = _least_shards(share)
    first = max(1, round(wanted), least)
    return min(range(first, first + least), key=lambda number: (abs(round(share * number) / number - share), number))


def _least_shards(share: float) -> int:
    """Return the fewest shards of which about `share` (in hundredths) can be set apart; 1 for a share of 0 or 1."""
    rest = min(share, 1.0 - share)
    return math.ceil(1.0 / rest) if rest > 0 else 1


def _read_rewrite_use(config: Config, rephrased: Step) -> RewriteUse:
    """Return how the rewrites are used."""
    from pipeline.stages.rephrase import plan_rewrite_use

    wanted_L = rephrased.folder.read_table("rewriting.parquet")["wanted_tokens"].to_numpy()
    return plan_rewrite_use(config, wanted_L, rephrased.folder.read_table("landed.parquet"))


def _plan_rewrites(rephrased: Step, rewrite_use: RewriteUse, seed: int) -> SamplingPlan:
    """Return how rewrites are sampled: each at most once, whatever the sampling method of raw text.

    All epochs are 1, so the factor of a rewrite is the chance that it is used.
    """
    landed = rephrased.folder.read_table("landed.parquet")
    leaf_P, parent_P, windows_P, tokens_P = (landed[name].to_numpy() for name in REWRITE_CLUSTERS.names)
    valid_P = leaf_P >= 0
    expected_P = rewrite_use.compute_expected_copies(leaf_P, parent_P) * tokens_P
    num_leaves = len(rewrite_use.own_L)
    return SamplingPlan(
        method="rounded",
        seed=seed,
        epochs_L=np.ones(num_leaves),
        allocated_L=np.asarray(np.bincount(leaf_P[valid_P], weights=expected_P[valid_P], minlength=num_leaves), np.float64),
        windows_L=np.bincount(leaf_P[valid_P], weights=windows_P[valid_P], minlength=num_leaves),
    )


class Factors(Protocol):
    """Expected copies of windows, divided by the epochs of their leaves."""

    def of(self, part_name: str, leaf_N: I32) -> NDArray[np.floating]:
        """Return (N,): the factors of the windows of a part."""


@dataclass(frozen=True)
class RawFactors:
    """The factors of generalist windows: the epochs of a window's cell, divided by the epochs of its leaf."""

    cells: Cells
    factor_C: F64

    def of(self, part_name: str, leaf_N: I32) -> NDArray[np.floating]:
        return self.factor_C[self.cells.read(part_name, leaf_N)]


def _compute_factors(cells: Cells, of_cells: Allocation, allocation: Allocation) -> RawFactors:
    if cells.strata is None:
        return RawFactors(cells, np.ones_like(allocation.epochs_L))
    epochs_C = allocation.epochs_L[cells.strata.leaf_C]
    factor_C = np.divide(of_cells.epochs_L, epochs_C, out=np.zeros_like(epochs_C), where=epochs_C > 0)
    return RawFactors(cells, factor_C.astype(np.float32).astype(np.float64))


@dataclass(frozen=True)
class RewriteFactors:
    """The factors of rewrites: the chance that each is used."""

    rewrites: Folder
    rewrite_use: RewriteUse

    def of(self, part_name: str, leaf_N: I32) -> NDArray[np.floating]:
        parent_N = self.rewrites.read_table(f"{part_name}.parquet", columns=["parent_leaf"])["parent_leaf"].to_numpy()
        return self.rewrite_use.compute_expected_copies(leaf_N, parent_N)


def allocate_cells(config: Config, target: TargetMixture, rewrites_L: F64 | None) -> Allocation:
    """Return the allocation to each cell: its own text, and up to `rewrites_L` tokens of rewrites in each leaf.

    Raises:
        ConfigError: there are no rewrites, and the budget is more than the text can fill (only if `overflow` is `spread`).
    """
    limits = Limits.from_config(config)
    if rewrites_L is None:
        return allocate(target.claim_RC, target.tokens_C, limits)
    assert config.rephrase
    if config.rephrase.mode == "share":
        ratio = config.rephrase.real_to_synthetic
        rewrites_C = target.split(rewrites_L, target.claim_RC.sum(axis=0))
        elsewhere = float(rewrites_L.sum() - rewrites_C.sum())
        return allocate_with_rewrite_share(
            target.claim_RC, target.tokens_C, limits, rewrites_C, real_to_synthetic=ratio, elsewhere=elsewhere
        )
    beyond_C = allocate_capped(target.claim_RC, target.tokens_C, limits).deficit_L
    return allocate_capped(target.claim_RC, target.tokens_C, limits, target.split(rewrites_L, beyond_C))


@dataclass(frozen=True)
class _CandidateInputs:
    assignments: Folder
    plan: SamplingPlan
    band_G: F64
    factors: Factors


@dataclass(frozen=True)
class _PartInputs:
    pool: Pool
    plan: SamplingPlan
    decision: Decision
    factors: Factors


def _sample_pool(engine: Engine, pool: Pool, plan: SamplingPlan, tree: Tree, factors: Factors) -> list[dict[str, Any]]:
    """Sample from one pool of text; return the facts of its parts."""
    title = "draw" if pool.origin == "raw" else f"draw {pool.origin}"
    decision = _decide_copies(engine, pool, plan, tree, factors, title=f"{title} plan")
    inputs = _PartInputs(pool, plan, decision, factors)
    return map_parts(engine, pool.draws, pool.names, _sample_part, shared=inputs, title=title, quick=True)


def _decide_copies(engine: Engine, pool: Pool, plan: SamplingPlan, tree: Tree, factors: Factors, *, title: str) -> Decision:
    """Decide the number of copies of the undecided windows. This takes one fold; in rare cases more, each with a wider band."""
    band_G = first_band(plan)
    while True:
        inputs = _CandidateInputs(pool.assignments, plan, band_G, factors)
        runs = group_for_fold(engine, pool.names)
        found = engine.fold(_find_candidates, runs, Candidates.add, Candidates.zero(), shared=inputs, title=title)
        decided = decide(found, plan, band_G, tree)
        if isinstance(decided, Decision):
            return decided
        band_G = decided


def _find_candidates(names: Sequence[str], inputs: _CandidateInputs) -> Candidates:
    states = []
    for name in names:
        table = inputs.assignments.read_table(f"{name}.parquet", columns=["key", "leaf", "tokens"])
        key_N, leaf_N, tokens_N = (table[column].to_numpy() for column in ("key", "leaf", "tokens"))
        states.append(find_candidates(key_N, leaf_N, tokens_N, inputs.factors.of(name, leaf_N), inputs.plan, inputs.band_G))
    return Candidates.combine(states)


def _sample_part(name: str, inputs: _PartInputs) -> dict[str, Any]:
    """Write the copies of each window of a part; return the part's facts."""
    pool = inputs.pool
    table = pool.assignments.read_table(f"{name}.parquet", columns=["key", "leaf", "tokens"])
    leaf_N, tokens_N = table["leaf"].to_numpy(), table["tokens"].to_numpy().astype(np.int64)
    result = count_copies(table["key"].to_numpy(), leaf_N, inputs.factors.of(name, leaf_N), inputs.plan, inputs.decision)
    copies_N = result["copies"].to_numpy()
    source = pool.windows.read_table(f"{name}.parquet", columns=["source"])["source"]
    facts = {
        "rows": len(result),
        "sampled_windows": int((copies_N > 0).sum()),
        "sampled_tokens": int(copies_N @ tokens_N),
        "sources": _sum_by_source(source, tokens_N, copies_N),
    }
    pool.draws.write_table(f"{name}.parquet", result, DRAWS, facts)
    return facts


def _sum_by_source(source: pa.ChunkedArray, tokens_N: I64, copies_N: I32) -> dict[str, list[int]]:
    """Map each source to its tokens in the part and the tokens sampled from them."""
    table = pa.table({"source": source, "corpus": tokens_N, "sampled": tokens_N * copies_N})
    rows = table.group_by("source").aggregate([("corpus", "sum"), ("sampled", "sum")]).to_pylist()
    return _keep_largest({row["source"]: [row["corpus_sum"], row["sampled_sum"]] for row in rows})


def _keep_largest(sources: dict[str, list[int]]) -> dict[str, list[int]]:
    """Keep the 256 sources with the most tokens, largest first, and sum up the others: every document may have its own source."""
    order = sorted(sources.items(), key=lambda item: (item[0] == _OTHER, -item[1][0], item[0]))
    kept, others = order[:_MAX_SOURCES], order[_MAX_SOURCES:]
    largest = dict(kept)
    if others:
        largest[_OTHER] = [sum(counts[i] for _, counts in others) for i in (0, 1)]
    return largest


def _sum_sources(raw: Sequence[dict[str, Any]], parts: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
    """Map each source to its tokens in the generalist corpus and the tokens sampled in all parts.

    A rewrite has the source of the window that it was written from. Small sources are summed up (`_keep_largest`).
    """
    corpus = sum_counts([{source: counts[0] for source, counts in part["sources"].items()} for part in raw])
    sampled = sum_counts([{source: counts[1] for source, counts in part["sources"].items()} for part in parts])
    return _keep_largest({source: [corpus.get(source, 0), sampled[source]] for source in sampled})
