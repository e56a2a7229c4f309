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
from pipeline.execution.step import Step, fold_groups, map_parts
from pipeline.hashing import keyed_hash
from pipeline.manifest import versions
from pipeline.mixture.allocation import Allocation, Limits, allocate, allocate_capped, allocate_with_rewrite_share
from pipeline.mixture.sampling import Candidates, Decision, SamplingPlan, count_copies, decide, find_candidates, first_band
from pipeline.rewriting.serving import Serving
from pipeline.stages.rounds import DrawnPart, moved
from pipeline.stages.shards import (
    Attribution,
    Pool,
    Shuffle,
    pools_of,
    shard_facts,
    shard_name,
    sum_counts,
)
from pipeline.stages.strata import Asked, WindowStrata, asked_of_leaves, read_target
from pipeline.storage import Folder
from pipeline.tables import ALLOCATION, DRAWS, LANDED

_MOST_SOURCES = 256
_OTHER = "(other sources)"


def sample_step(
    config: Config,
    prepared: Step,
    embedded: Step,
    assigned: Step,
    clustered: Step,
    scored: Step | None,
    weighted: Step,
    rephrased: Step | None,
    *,
    after: Step | None = None,
    prefixed_share: float = 0.0,
) -> Step:
    """Build the step that samples the generalist corpus and its rewrites, and writes the shards.

    Args:
        after: the step that wrote the preceding shards. Copy numbers continue from it; the two samplings are independent.
        prefixed_share: share of the shards, counted from the first, whose texts begin with their source (`schedule.conditioning`).
    """
    settings, conditioning = config.sample, config.conditioning if prefixed_share else None
    seed = config.seed if after is None else int(keyed_hash(np.zeros(1, np.uint64), seed=config.seed, purpose="ending")[0] >> 1)

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        asked = Asked.read(weighted.folder, config)
        used = _used(config, rephrased) if rephrased else None
        try:
            of_cells = planned(config, asked, used.filled_L if used else None)
        except ConfigError as error:
            raise ConfigError(f"schedule.ending, of its own budget and weights: {error}" if after else str(error)) from error
        allocation = of_cells.sum_groups(asked.leaf_C, asked.num_leaves)
        folder.write_table("allocation.parquet", allocation.to_table(), ALLOCATION)
        draw = SamplingPlan(
            method=settings.draw,
            seed=seed,
            epochs_L=allocation.epochs_L,
            allocated_L=allocation.allocated_L,
            windows_L=asked.windows_L,
        )
        tree = read_tree(clustered.folder)
        strata = WindowStrata(scored.folder, read_target(weighted.folder), asked.strata) if scored and asked.strata else None
        pools = pools_of(prepared, assigned, rephrased, folder)
        raw = _draw(engine, pools["raw"], draw, tree, _factors(strata, of_cells, allocation))
        drawn = {"raw": raw}
        if rephrased and used and (rewrites := pools.get("rephrased")):
            draw = _rewrites_plan(rephrased, used, config.seed)
            drawn["rephrased"] = _draw(engine, rewrites, draw, tree, ServingFactors(rewrites.windows, used))
        parts = [part for of_pool in drawn.values() for part in of_pool]

        named = _drawn_parts(prepared, drawn)
        drawn_bytes = sum(part.drawn_bytes for part in named)
        asked_by, claim_RL = asked_of_leaves(weighted.folder, config)
        num_shards = _num_shards(drawn_bytes / settings.shard_bytes, prefixed_share)
        work = Shuffle(
            pools=pools,
            output=folder,
            num_shards=num_shards,
            shard_bytes=settings.shard_bytes,
            seed=config.seed,
            first_shard=len(after.manifest["shards"]) if after else 0,
            before=after.folder.child("draws") if after else None,
            conditioning=conditioning,
            num_prefixed=round(prefixed_share * num_shards),
            attribution=Attribution(asked_by, of_cells.allocated_RL, claim_RL, strata),
        )
        present = set(folder.names(".parquet"))
        names = [f"{shard_name(work.first_shard + number)}.parquet" for number in range(num_shards)]
        missing = [number for number, name in enumerate(names) if name not in present]
        made = moved(engine, named, work, missing)
        facts = [made.get(number) or shard_facts(folder, name) for number, name in enumerate(names)]
        return {
            "budget_tokens": settings.budget_tokens,
            "seed": config.seed,
            "deficit_tokens": float(allocation.deficit_L.sum()),
            "rewritten_tokens": float(allocation.rewritten_L.sum()),
            "clipped_mass": allocation.clipped_mass,
            "deficit_share": allocation.deficit_share,
            "rows": sum(shard["rows"] for shard in facts),
            "tokens": sum(shard["tokens"] for shard in facts),
            "windows": sum(part["drawn_windows"] for part in parts),
            "first_tokens": sum(shard["first_tokens"] for shard in facts),
            "first_rows": sum(shard["first_rows"] for shard in facts),
            "prefixed_rows": sum(shard["prefixed_rows"] for shard in facts),
            "segments": [number for number in (work.num_prefixed, num_shards - work.num_prefixed) if number],
            "tokens_by_specialist": sum_counts([shard["tokens_by_specialist"] for shard in facts]),
            "tokens_by_origin": sum_counts([shard["tokens_by_origin"] for shard in facts]),
            "tokens_by_style": sum_counts([shard["tokens_by_style"] for shard in facts]),
            "tokens_by_source": _before_after(raw, parts),
            "hardware": embedded.manifest["hardware"],
            "versions": versions(),
            "shards": [
                {"name": name, **{key: shard[key] for key in ("rows", "tokens", "bytes", "sha256")}}
                for name, shard in zip(names, facts, strict=True)
            ],
        }

    return Step(
        stage="sample",
        corpus="ending" if after else "",
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
            **({"scores": scored} if scored else {}),
            **({"rewrites": rephrased} if rephrased else {}),
            **({"after": after} if after else {}),
        },
        workdir=prepared.workdir,
        work=work,
    )


def _drawn_parts(prepared: Step, drawn: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[DrawnPart]:
    """Estimate the bytes sampled from each part, from its bytes per token; for rewrites, from those of the whole corpus."""
    parts = prepared.manifest["parts"]
    of_part = {part["name"]: part["all_bytes"] / max(1, part["tokens"]) for part in parts}
    of_all = sum(part["all_bytes"] for part in parts) / max(1, sum(part["tokens"] for part in parts))
    return [
        DrawnPart(origin, part["name"], (of_part[part["name"]] if origin == "raw" else of_all) * part["drawn_tokens"])
        for origin, of_pool in drawn.items()
        for part in of_pool
        if part["drawn_tokens"]
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


def _used(config: Config, rephrased: Step) -> Serving:
    """Return how the rewrites are used."""
    from pipeline.stages.rephrase import serving

    wanted_L = rephrased.folder.read_table("rewriting.parquet")["wanted_tokens"].to_numpy()
    return serving(config, wanted_L, rephrased.folder.read_table("landed.parquet"))


def _rewrites_plan(rephrased: Step, used: Serving, seed: int) -> SamplingPlan:
    """Return how rewrites are sampled: each at most once, whatever the sampling method of raw text.

    All epochs are 1, so the factor of a rewrite is the chance that it is used.
    """
    landed = rephrased.folder.read_table("landed.parquet")
    leaf_P, parent_P, windows_P, tokens_P = (landed[name].to_numpy() for name in LANDED.names)
    valid_P = leaf_P >= 0
    expected_P = used.chance(leaf_P, parent_P) * tokens_P
    num_leaves = len(used.own_L)
    return SamplingPlan(
        method="rounded",
        seed=seed,
        epochs_L=np.ones(num_leaves),
        allocated_L=np.asarray(np.bincount(leaf_P[valid_P], weights=expected_P[valid_P], minlength=num_leaves), np.float64),
        windows_L=np.bincount(leaf_P[valid_P], weights=windows_P[valid_P], minlength=num_leaves),
    )


class Factors(Protocol):
    """Expected copies of windows, divided by the epochs of their leaves."""

    def of(self, name: str, leaf_N: I32) -> NDArray[np.floating]:
        """Return (N,): the factors of the windows of a part."""


@dataclass(frozen=True)
class LeafFactors:
    """The factors without strata: 1 for every window."""

    def of(self, name: str, leaf_N: I32) -> NDArray[np.floating]:  # noqa: ARG002
        return np.ones(len(leaf_N), np.float32)


@dataclass(frozen=True)
class StrataFactors:
    """The factors with strata: the epochs of a window's stratum, divided by the epochs of its leaf."""

    strata: WindowStrata
    factor_C: F64

    def of(self, name: str, leaf_N: I32) -> NDArray[np.floating]:
        return self.factor_C[self.strata.of(name, leaf_N)]


def _factors(strata: WindowStrata | None, of_cells: Allocation, allocation: Allocation) -> Factors:
    if strata is None:
        return LeafFactors()
    epochs_C = allocation.epochs_L[strata.strata.leaf_C]
    factor_C = np.divide(of_cells.epochs_L, epochs_C, out=np.zeros_like(epochs_C), where=epochs_C > 0)
    return StrataFactors(strata, factor_C.astype(np.float32).astype(np.float64))


@dataclass(frozen=True)
class ServingFactors:
    """The factors of rewrites: the chance that each is used."""

    rewrites: Folder
    used: Serving

    def of(self, name: str, leaf_N: I32) -> NDArray[np.floating]:
        parent_N = self.rewrites.read_table(f"{name}.parquet", columns=["parent_leaf"])["parent_leaf"].to_numpy()
        return self.used.chance(leaf_N, parent_N)


def planned(config: Config, asked: Asked, rewrites_L: F64 | None) -> Allocation:
    """Return the allocation to each cell: its own text, and up to `rewrites_L` tokens of rewrites in each leaf.

    Raises:
        ConfigError: there are no rewrites, and the budget is more than the text can fill (only if `overflow` is `spread`).
    """
    limits = Limits.from_config(config)
    if rewrites_L is None:
        return allocate(asked.claim_RC, asked.tokens_C, limits)
    assert config.rephrase
    if config.rephrase.mode == "share":
        ratio = config.rephrase.real_to_synthetic
        rewrites_C = asked.split(rewrites_L, asked.claim_RC.sum(axis=0))
        elsewhere = float(rewrites_L.sum() - rewrites_C.sum())
        return allocate_with_rewrite_share(
            asked.claim_RC, asked.tokens_C, limits, rewrites_C, real_to_synthetic=ratio, elsewhere=elsewhere
        )
    beyond_C = allocate_capped(asked.claim_RC, asked.tokens_C, limits).deficit_L
    return allocate_capped(asked.claim_RC, asked.tokens_C, limits, asked.split(rewrites_L, beyond_C))


def _draw(engine: Engine, pool: Pool, draw: SamplingPlan, tree: Tree, factors: Factors) -> list[dict[str, Any]]:
    """Sample from one pool of text; return the facts of its parts."""
    names = pool.names
    title = "draw" if pool.origin == "raw" else f"draw {pool.origin}"
    decision = _decide(engine, names, pool.assignments, draw, tree, factors, title=title)
    shared = (pool.windows, pool.assignments, pool.draws, draw, decision, factors)
    return map_parts(engine, pool.draws, names, _draw_part, title=title, shared=shared, quick=True)


def _decide(
    engine: Engine, names: Sequence[str], assignments: Folder, draw: SamplingPlan, tree: Tree, factors: Factors, *, title: str
) -> Decision:
    """Decide the number of copies of the undecided windows. This takes one fold; in rare cases more, each with a wider band."""
    band_G = first_band(draw)
    while True:
        shared = (assignments, draw, band_G, factors)
        runs = fold_groups(engine, names)
        found = engine.fold(_candidates, runs, Candidates.add, Candidates.zero(), title=f"{title} plan", shared=shared)
        decided = decide(found, draw, band_G, tree)
        if isinstance(decided, Decision):
            return decided
        band_G = decided


def _candidates(names: Sequence[str], assignments: Folder, draw: SamplingPlan, band_G: F64, factors: Factors) -> Candidates:
    states = []
    for name in names:
        table = assignments.read_table(f"{name}.parquet", columns=["key", "leaf", "tokens"])
        leaf_N = table["leaf"].to_numpy()
        factor_N = factors.of(name, leaf_N)
        states.append(find_candidates(table["key"].to_numpy(), leaf_N, table["tokens"].to_numpy(), factor_N, draw, band_G))
    return Candidates.combine(states)


def _draw_part(
    name: str, windows: Folder, assignments: Folder, draws: Folder, draw: SamplingPlan, decision: Decision, factors: Factors
) -> dict[str, Any]:
    table = assignments.read_table(f"{name}.parquet", columns=["key", "leaf", "tokens"])
    leaf_N, tokens_N = table["leaf"].to_numpy(), table["tokens"].to_numpy().astype(np.int64)
    result = count_copies(table["key"].to_numpy(), leaf_N, factors.of(name, leaf_N), draw, decision)
    copies_N = result["copies"].to_numpy()
    source = windows.read_table(f"{name}.parquet", columns=["source"])["source"]
    facts = {
        "rows": len(result),
        "drawn_windows": int((copies_N > 0).sum()),
        "drawn_tokens": int(copies_N @ tokens_N),
        "sources": _tokens_by_source(source, tokens_N, copies_N),
    }
    draws.write_table(f"{name}.parquet", result, DRAWS, facts)
    return facts


def _tokens_by_source(source: pa.ChunkedArray, tokens_N: I64, copies_N: I32) -> dict[str, list[int]]:
    """Map each source to its tokens in the part and the tokens sampled from them."""
    table = pa.table({"source": source, "held": tokens_N, "drawn": tokens_N * copies_N})
    rows = table.group_by("source").aggregate([("held", "sum"), ("drawn", "sum")]).to_pylist()
    return _largest({row["source"]: [row["held_sum"], row["drawn_sum"]] for row in rows})


def _largest(sources: dict[str, list[int]]) -> dict[str, list[int]]:
    """Keep the 256 sources with the most tokens, largest first, and sum up the others: every document may have its own source."""
    order = sorted(sources.items(), key=lambda item: (item[0] == _OTHER, -item[1][0], item[0]))
    kept, rest = order[:_MOST_SOURCES], order[_MOST_SOURCES:]
    found = dict(kept)
    if rest:
        found[_OTHER] = [sum(counts[i] for _, counts in rest) for i in (0, 1)]
    return found


def _before_after(raw: Sequence[dict[str, Any]], parts: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
    """Map each source to its tokens in the generalist corpus and the tokens sampled in all parts.

    A rewrite has the source of its parent. Small sources are summed up (`_largest`).
    """
    held = sum_counts([{source: counts[0] for source, counts in part["sources"].items()} for part in raw])
    drawn = sum_counts([{source: counts[1] for source, counts in part["sources"].items()} for part in parts])
    return _largest({source: [held.get(source, 0), drawn[source]] for source in drawn})
