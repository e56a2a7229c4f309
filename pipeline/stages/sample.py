"""The plan, the draws and the shards of the new corpus.

Three passes over the generalist's parts: a fold that finds who is near the edge of being drawn, a map that writes the copies of
each window (`draws/`, aligned with the windows), and the one shuffle that moves text.

Shapes: L leaves, N windows of a part.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import Config
from pipeline.draws import Candidates, DrawPlan, Settled, candidates, copies, first_band, settle
from pipeline.engine import Engine
from pipeline.manifest import ShardsManifest, versions
from pipeline.mixture.estimators import ESTIMATORS
from pipeline.mixture.plan import plan as make_plan
from pipeline.stages.assign import read_tree
from pipeline.stages.shards import Attribution, Shuffle, map_parts_to_shards, shard_facts, shard_name, sum_counts, write_shard
from pipeline.step import Step, groups, map_parts, part_names
from pipeline.storage import MANIFEST, Folder
from pipeline.tables import DRAWS, PLAN
from pipeline.tree import Tree

_FOLD_GROUPS = 256
# Text drawn by one mapper of the shuffle, so that its memory is bounded; but the driver counts each piece that goes to a shard.
_GROUP_BYTES = 32 << 20
_MOST_PIECES = 4_000_000
_MOST_SOURCES = 256
_OTHER = "(other sources)"


def sample_step(config: Config, prepared: Step, embedded: Step, assigned: Step, clustered: Step, weighted: Step) -> Step:
    """The step that draws from the generalist corpus and writes the shards."""
    settings = config.sample

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        mixture = weighted.folder.read_table("mixture.parquet")
        plan = make_plan(
            mixture["p_target"].to_numpy(),
            mixture["tokens"].to_numpy(),
            budget_tokens=settings.budget_tokens,
            max_epochs=config.weights.max_epochs,
            overflow=config.weights.overflow,
        )
        folder.write_table("plan.parquet", plan.table(), PLAN)
        draw = DrawPlan(
            method=settings.draw,
            seed=config.seed,
            epochs_L=plan.epochs_L,
            planned_L=plan.planned_L,
            windows_L=mixture["windows"].to_numpy(),
        )
        names = part_names(assigned)
        tree = read_tree(clustered.folder)
        settled = _settle(engine, names, assigned.folder, draw, tree, config.weights.estimator)
        draws = folder.child("draws")
        shared = (prepared.folder, assigned.folder, draws, draw, settled, config.weights.estimator)
        parts = map_parts(engine, draws, names, _draw_part, title="draw", shared=shared)

        bytes_per_token = prepared.manifest["text_bytes"] / max(1, prepared.manifest["tokens"])
        text_bytes = bytes_per_token * sum(part["drawn_tokens"] for part in parts)
        work = Shuffle(
            windows=prepared.folder,
            draws=draws,
            output=folder,
            num_shards=max(1, round(text_bytes / settings.shard_bytes)),
            seed=config.seed,
            attribution=Attribution.read(weighted.folder, config),
        )
        present = set(folder.names(".parquet"))
        missing = [i for i in range(work.num_shards) if f"{shard_name(i)}.parquet" not in present]
        drawn = [part["name"] for part in parts if part["drawn_tokens"]]
        num_groups = min(round(text_bytes / _GROUP_BYTES), _MOST_PIECES // work.num_shards)
        items = groups(drawn, max(engine.num_workers, num_groups)) if missing else []
        made = {
            missing[index]: facts
            for index, facts in engine.shuffle(
                map_parts_to_shards, items, write_shard, missing, title="shards", unit="shards", shared=(work,)
            )
        }
        facts = [made.get(i) or shard_facts(folder, i) for i in range(work.num_shards)]
        return {
            "budget_tokens": settings.budget_tokens,
            "seed": config.seed,
            "deficit_tokens": float(plan.deficit_L.sum()),
            "clipped_mass": plan.clipped_mass,
            "deficit_share": plan.deficit_share,
            "rows": sum(shard["rows"] for shard in facts),
            "tokens": sum(shard["tokens"] for shard in facts),
            "windows": sum(part["drawn_windows"] for part in parts),
            "tokens_by_specialist": sum_counts([shard["tokens_by_specialist"] for shard in facts]),
            "tokens_by_source": _before_after(parts),
            "hardware": embedded.manifest["hardware"],
            "versions": versions(),
            "shards": [
                {"name": f"{shard_name(i)}.parquet", **{key: shard[key] for key in ("rows", "tokens", "bytes", "sha256")}}
                for i, shard in enumerate(facts)
            ],
        }

    return Step(
        stage="sample",
        version=1,
        settings={
            "sample": settings.identity(),
            "max_epochs": config.weights.max_epochs,
            "overflow": config.weights.overflow,
            "seed": config.seed,
        },
        inputs={"windows": prepared, "assignments": assigned, "weights": weighted},
        workdir=prepared.workdir,
        work=work,
    )


def _settle(engine: Engine, names: Sequence[str], assignments: Folder, draw: DrawPlan, tree: Tree, estimator: str) -> Settled:
    """Decide who is drawn, in as many folds as it takes: one, but for rare luck."""
    band_G = first_band(draw)
    while True:
        shared = (assignments, draw, band_G, estimator)
        states = [state for _, state in engine.map(_candidates, groups(names, _FOLD_GROUPS), title="draw plan", shared=shared)]
        decided = settle(Candidates.combine(states), draw, band_G, tree)
        if isinstance(decided, Settled):
            return decided
        band_G = decided


def _candidates(
    names: Sequence[str], assignments: Folder, draw: DrawPlan, band_G: NDArray[np.float64], estimator: str
) -> Candidates:
    states = []
    for name in names:
        table = assignments.read_table(f"{name}.parquet", columns=["key", "leaf", "tokens"])
        leaf_N = table["leaf"].to_numpy()
        factor_N = ESTIMATORS[estimator].factors(leaf_N)
        states.append(candidates(table["key"].to_numpy(), leaf_N, table["tokens"].to_numpy(), factor_N, draw, band_G))
    return Candidates.combine(states)


def _draw_part(
    name: str, windows: Folder, assignments: Folder, draws: Folder, draw: DrawPlan, settled: Settled, estimator: str
) -> dict[str, Any]:
    table = assignments.read_table(f"{name}.parquet", columns=["key", "leaf", "tokens"])
    leaf_N, tokens_N = table["leaf"].to_numpy(), table["tokens"].to_numpy().astype(np.int64)
    result = copies(table["key"].to_numpy(), leaf_N, ESTIMATORS[estimator].factors(leaf_N), draw, settled)
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


def _tokens_by_source(source: pa.ChunkedArray, tokens_N: NDArray[np.int64], copies_N: NDArray[np.int32]) -> dict[str, list[int]]:
    """Of each source its tokens in the part and those drawn."""
    table = pa.table({"source": source, "held": tokens_N, "drawn": tokens_N * copies_N})
    rows = table.group_by("source").aggregate([("held", "sum"), ("drawn", "sum")]).to_pylist()
    return _largest({row["source"]: [row["held_sum"], row["drawn_sum"]] for row in rows})


def _largest(sources: dict[str, list[int]]) -> dict[str, list[int]]:
    """The sources that hold most tokens, largest first, and what the others hold together: there may be one a document."""
    order = sorted(sources.items(), key=lambda item: (item[0] == _OTHER, -item[1][0], item[0]))
    kept, rest = order[:_MOST_SOURCES], order[_MOST_SOURCES:]
    found = dict(kept)
    if rest:
        found[_OTHER] = [sum(counts[i] for _, counts in rest) for i in (0, 1)]
    return found


def _before_after(parts: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
    """Of each source its tokens in the generalist corpus and those drawn, over all parts."""
    held = sum_counts([{source: counts[0] for source, counts in part["sources"].items()} for part in parts])
    drawn = sum_counts([{source: counts[1] for source, counts in part["sources"].items()} for part in parts])
    return _largest({source: [held[source], drawn[source]] for source in held})


def published(step: Step, shards: Folder) -> bool:
    """Whether `shards/` holds what the step made, all of it."""
    manifest = shards.read_json(MANIFEST)
    if manifest is None or manifest["fingerprint"] != step.fingerprint:
        return False
    return {shard["name"] for shard in step.manifest["shards"]} == set(shards.names(".parquet"))


def publish(step: Step, shards: Folder) -> None:
    """Put the shards of a step where users look for them, and the manifest last; what lay there goes.

    Locally the files are hard links, so that they take no room twice; an object store copies them on its side.
    """
    facts = step.manifest
    manifest = ShardsManifest(
        fingerprint=step.fingerprint,
        upstream=_upstream(step),
        tokens_by_origin={"raw": facts["tokens"]},
        **{name: facts[name] for name in _PUBLISHED},
    )
    for name in [MANIFEST, *shards.names(".parquet")]:
        if shards.exists(name):
            shards.remove(name)
    for shard in manifest.shards:
        step.folder.link(shard.name, shards)
    shards.write_json(MANIFEST, manifest.model_dump())


_PUBLISHED = (
    "seed",
    "rows",
    "tokens",
    "budget_tokens",
    "windows",
    "tokens_by_specialist",
    "tokens_by_source",
    "deficit_tokens",
    "hardware",
    "versions",
    "shards",
)


def _upstream(step: Step) -> dict[str, str]:
    """The fingerprints of all steps that a step stands on."""
    found: dict[str, str] = {}
    for above in step.inputs.values():
        found |= _upstream(above) | {above.title: above.fingerprint}
    return dict(sorted(found.items()))
