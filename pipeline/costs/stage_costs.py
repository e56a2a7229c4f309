"""The cost of each stage, from measured rates.

A stage runs maps on the workers, one after another. Before, between and after the maps only the driver works. During a map, the
driver submits tasks and tracks the pieces of shuffles, which more workers do not speed up. So

    wall = driver only + sum over maps of max(waves of tasks x seconds per task, seconds of the driver for tasks and pieces)

Each term is a sum of amounts (megabytes of text, millions of windows, ...) times rates. Suffixes of amounts: `_k` thousands, `_m`
millions, `_mb` megabytes (10^6 bytes); `runs` is 1 and stands for a cost that does not depend on the input.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib import resources
from typing import Any

import orjson

from pipeline import embedders
from pipeline.config import GENERALIST, Config
from pipeline.costs.corpus_size import CorpusSize
from pipeline.execution.step import MAX_PARTITIONS, num_fold_tasks, num_mapper_tasks, num_quick_tasks
from pipeline.stages.cluster import BATCHES_PER_WORKER, MAPPER_VECTOR_BYTES
from pipeline.stages.shuffle_rounds import plan_buckets

Amounts = Mapping[str, float]

_NUM_WEIGHTS_FOLDS = 4  # folds of `weights`: the histogram, the odds, the strata and the names
_SCAN_SHARE = 0.025  # share of the work of `prepare` without steps that scans the files (scan_file: 7 of 300 ms per megabyte)


@dataclass(frozen=True)
class Machines:
    """The workers of a run in all, and the cores of one machine, which limit the threads that fit one node."""

    num_workers: int
    cores_per_machine: int


@dataclass(frozen=True)
class StageInputs:
    """What the cost of a stage depends on.

    Attributes:
        corpus: the generalist corpus, or the specialist whose sample the stage reads.
        dim: width of the vectors.
    """

    config: Config
    size: CorpusSize
    machines: Machines
    dim: int
    corpus: str = GENERALIST

    @cached_property
    def embedder_kind(self) -> str:
        return get_embedder_kind(self.config)

    @cached_property
    def text_mb(self) -> float:
        return self.size.text_bytes / 1e6

    @cached_property
    def windows_m(self) -> float:
        return self.size.windows / 1e6

    @cached_property
    def num_parts(self) -> int:
        return max(1, round(self.size.parts))

    @cached_property
    def leaves_k(self) -> float:
        return estimate_num_leaves(self.config, self.size.windows) / 1e3

    @cached_property
    def sampled_mb(self) -> float:
        """Text of the new corpus, if all of its budget is sampled from this corpus."""
        return self.config.sample.budget_tokens * self.size.text_bytes / max(1.0, self.size.tokens) / 1e6

    @property
    def part_amounts(self) -> dict[str, float]:
        return {"parts_k": self.num_parts / 1e3}

    @property
    def driver_only_amounts(self) -> dict[str, float]:
        return {"runs": 1.0, **self.part_amounts}


@dataclass(frozen=True)
class MapShape:
    """One map of a stage, or one side of a shuffle.

    Attributes:
        amounts: what all tasks together process.
        num_tasks: number of tasks; a task with several threads counts once per thread.
        num_pieces: pieces of a shuffle, each of which the driver tracks.
        num_repeats: the tasks are divided among this many equal maps, one after another.
        driver_amounts: what the driver processes while the tasks run, besides tasks and pieces.
    """

    amounts: Amounts
    num_tasks: int
    num_pieces: int = 0
    num_repeats: int = 1
    driver_amounts: Amounts = field(default_factory=dict)


@dataclass(frozen=True)
class StageShape:
    """The maps of a stage.

    Attributes:
        rates_key: name of its rates in `rates.json`.
        driver_only_amounts: what the driver processes while no tasks run.
        stored_amounts: what the stage stores.
    """

    rates_key: str
    maps: list[MapShape]
    driver_only_amounts: Amounts
    stored_amounts: Amounts = field(default_factory=dict)


@dataclass(frozen=True)
class StageCost:
    """The estimated cost of a stage on given machines.

    Attributes:
        core_s: core-seconds of all tasks.
        mapping_s: wall time while tasks run.
        driver_only_s: wall time while only the driver works.
        driver_s: CPU time of the driver during `mapping_s`.
        worker_wait_s: the part of `mapping_s` in which workers wait for the driver.
    """

    stage: str
    core_s: float
    mapping_s: float
    driver_only_s: float
    driver_s: float
    worker_wait_s: float
    stored_bytes: float
    num_tasks: int

    @property
    def wall_s(self) -> float:
        return self.mapping_s + self.driver_only_s


def estimate_stage(stage: str, inputs: StageInputs) -> StageCost | None:
    """Estimate the cost of a stage from the rates; None for a stage that is not modelled."""
    shape = describe_stage(stage, inputs)
    if shape is None:
        return None
    rates = read_rates()
    stage_rates = rates["stages"][shape.rates_key]
    core_s = mapping_s = driver_s = worker_wait_s = 0.0
    for stage_map in shape.maps:
        map_core_s = _apply_rates(stage_map.amounts, stage_rates["core_s"])
        speedup = compute_speedup(max(1, stage_map.num_tasks // stage_map.num_repeats), inputs.machines.num_workers)
        map_worker_s = map_core_s / speedup
        map_driver_s = (
            stage_map.num_tasks * rates["task_s"]
            + stage_map.num_pieces * rates["piece_s"]
            + _apply_rates(stage_map.driver_amounts, stage_rates["driver_s"])
        )
        core_s, driver_s = core_s + map_core_s, driver_s + map_driver_s
        mapping_s += max(map_driver_s, map_worker_s)
        worker_wait_s += max(0.0, map_driver_s - map_worker_s)
    return StageCost(
        stage=stage,
        core_s=core_s,
        mapping_s=mapping_s,
        driver_only_s=_apply_rates(shape.driver_only_amounts, stage_rates["driver_only_s"]),
        driver_s=driver_s,
        worker_wait_s=worker_wait_s,
        stored_bytes=1e6 * _apply_rates(shape.stored_amounts, stage_rates["stored_mb"]),
        num_tasks=sum(stage_map.num_tasks for stage_map in shape.maps),
    )


def describe_stage(stage: str, inputs: StageInputs) -> StageShape | None:
    """Describe the maps and amounts of a stage; None for a stage that is not modelled.

    Rewriting is not modelled, because its cost is that of the language model.
    """
    describe = STAGE_SHAPES.get(stage)
    return describe(inputs) if describe else None


def compute_speedup(num_tasks: int, num_workers: float) -> float:
    """Compute how many times faster than one worker the workers finish equal tasks; the last wave may be incomplete."""
    return num_tasks / math.ceil(num_tasks / num_workers)


def estimate_num_leaves(config: Config, windows: float) -> float:
    """Estimate the number of leaves of the tree: a node is split as long as each child gets `min_windows`."""
    cluster = config.cluster
    return max(1.0, min(float(cluster.branching**cluster.depth), windows / cluster.min_windows))


def get_embedder_kind(config: Config) -> str:
    """Return the kind of embedder, which selects its rates: `static`, `lsi` or `transformer`."""
    return {"nothing": "transformer", "model": "static", "texts": "lsi"}[embedders.get_fit_input(config.embed)]


def count_transformer_tokens(config: Config, size: CorpusSize) -> float:
    """Count the tokens of a corpus that a transformer reads."""
    if config.embed.pool == "mean":
        return size.tokens
    return size.windows * min(size.tokens / max(1.0, size.windows), config.embed.max_tokens)


@cache
def read_rates() -> Mapping[str, Any]:
    """Read `rates.json`, which benchmarks/scale.py writes."""
    rates: dict[str, Any] = orjson.loads(resources.files("pipeline.costs").joinpath("rates.json").read_bytes())
    return rates


def _describe_prepare(inputs: StageInputs) -> StageShape:
    config, size = inputs.config, inputs.size
    num_files = max(1, round(size.files))
    # Both maps parse Python.
    parsed = {"python_mb": size.python_bytes / 1e6} if size.python_bytes else {}
    scan = MapShape({"text_mb": _SCAN_SHARE * inputs.text_mb, **parsed}, num_files)
    steps, _ = config.resolve_steps(config.specialists.get(inputs.corpus, config.generalist))
    refined = {"refined_mb": inputs.text_mb} if steps else {}
    cut = MapShape(
        {"text_mb": (1 - _SCAN_SHARE) * inputs.text_mb, **parsed, **refined},
        max(num_files, min(16 * num_files, 2 * inputs.machines.num_workers, inputs.num_parts)),
    )
    return StageShape("prepare", [scan, cut], inputs.driver_only_amounts, {"text_mb": inputs.text_mb})


def _describe_dedup(inputs: StageInputs) -> StageShape:
    return _describe_text_filter("dedup", inputs)


def _describe_decontaminate(inputs: StageInputs) -> StageShape:
    return _describe_text_filter("decontaminate", inputs)


def _describe_text_filter(rates_key: str, inputs: StageInputs) -> StageShape:
    text = {"text_mb": inputs.text_mb}
    return StageShape(rates_key, [MapShape(text, min(inputs.num_parts, 1000))], inputs.driver_only_amounts, text)


def _describe_embedder(inputs: StageInputs) -> StageShape:
    fit = MapShape({"runs": 1.0}, min(inputs.machines.cores_per_machine, inputs.machines.num_workers))
    return StageShape(f"embedder {inputs.embedder_kind}", [fit], {"runs": 1.0})


def _describe_embed(inputs: StageInputs) -> StageShape:
    if inputs.embedder_kind == "transformer":
        read = {"read_tokens_m": count_transformer_tokens(inputs.config, inputs.size) / 1e6}
    else:
        read = {"text_mb": inputs.text_mb, "windows_m": inputs.windows_m}
    stored = {"vector_mb": inputs.windows_m * (2 * inputs.dim + 9)}
    return StageShape(f"embed {inputs.embedder_kind}", [MapShape(read, inputs.num_parts)], inputs.driver_only_amounts, stored)


def _describe_cluster(inputs: StageInputs) -> StageShape:
    nodes_mb = inputs.leaves_k * (4 * inputs.dim + 60) / 1e3
    driver_only = {**inputs.driver_only_amounts, "leaves_k": inputs.leaves_k}
    return StageShape("cluster", list(_describe_tree_levels(inputs)), driver_only, {"nodes_mb": nodes_mb})


def _describe_assign(inputs: StageInputs) -> StageShape:
    cluster = inputs.config.cluster
    gflop = 2e-3 * inputs.windows_m * inputs.dim * cluster.branching * cluster.depth
    assign = MapShape(
        {"windows_m": inputs.windows_m, "descent_gflop": gflop, **inputs.part_amounts},
        num_quick_tasks(inputs.num_parts, inputs.machines.num_workers),
    )
    driver_only = {**inputs.driver_only_amounts, "leaves_k": inputs.leaves_k}
    return StageShape("assign", [assign], driver_only, {"windows_m": inputs.windows_m})


def _describe_score(inputs: StageInputs) -> StageShape:
    score = MapShape({"text_mb": inputs.text_mb, "runs": 1.0, **inputs.part_amounts}, inputs.num_parts)
    return StageShape("score", [score], inputs.driver_only_amounts, {"windows_m": inputs.windows_m})


def _describe_weights(inputs: StageInputs) -> StageShape:
    fold = _describe_fold({"windows_m": inputs.windows_m, "runs": 1.0, **inputs.part_amounts}, inputs)
    folds = replace(fold, num_tasks=_NUM_WEIGHTS_FOLDS * fold.num_tasks)
    leaves = {"leaves_k": inputs.leaves_k}
    return StageShape("weights", [folds], {**inputs.driver_only_amounts, **leaves}, leaves)


def _describe_sample(inputs: StageInputs) -> StageShape:
    fold = _describe_fold({"windows_m": inputs.windows_m, **inputs.part_amounts}, inputs)
    sampling = replace(fold, num_tasks=fold.num_tasks + num_quick_tasks(inputs.num_parts, inputs.machines.num_workers))
    driver_only = {**inputs.driver_only_amounts, "leaves_k": inputs.leaves_k}
    stored = {"windows_m": inputs.windows_m, "sampled_mb": inputs.sampled_mb}
    return StageShape("sample", [sampling, *_describe_shard_shuffles(inputs)], driver_only, stored)


# The stages that are modelled, by their names in `pipeline.config.stages`.
STAGE_SHAPES: Mapping[str, Callable[[StageInputs], StageShape]] = {
    "prepare": _describe_prepare,
    "dedup": _describe_dedup,
    "decontaminate": _describe_decontaminate,
    "embedder": _describe_embedder,
    "embed": _describe_embed,
    "cluster": _describe_cluster,
    "assign": _describe_assign,
    "score": _describe_score,
    "weights": _describe_weights,
    "sample": _describe_sample,
}


def _describe_tree_levels(inputs: StageInputs) -> Iterator[MapShape]:
    """Yield two maps per level: mappers, which read all vectors, and reducers, each of which fits nodes on at most one machine."""
    cluster, machines = inputs.config.cluster, inputs.machines
    for level in range(cluster.depth):
        num_nodes = cluster.branching**level
        if inputs.size.windows / num_nodes < 2 * cluster.min_windows:
            return
        node_windows = min(inputs.size.windows / num_nodes, max(cluster.fit_windows, 100 * cluster.branching))
        # Batches as in `stages.cluster`: a few per worker, and a batch of several nodes has at most `fit_windows` windows.
        batch_windows = min(cluster.fit_windows, num_nodes * node_windows / (BATCHES_PER_WORKER * machines.num_workers))
        num_batches = math.ceil(num_nodes / max(1, batch_windows // node_windows))
        num_shuffles = -(-num_batches // MAX_PARTITIONS)
        shuffle_batches = -(-num_batches // num_shuffles)
        shuffle_mappers = num_mapper_tasks(
            inputs.num_parts,
            machines.num_workers,
            moved_bytes=num_nodes * node_windows * (2 * inputs.dim + 16) / num_shuffles,
            partitions=shuffle_batches,
            held_bytes=MAPPER_VECTOR_BYTES,
        )
        num_mappers = num_shuffles * shuffle_mappers
        read = {"level_windows_m": num_shuffles * inputs.size.windows / 1e6, "parts_k": num_shuffles * inputs.num_parts / 1e3}
        yield MapShape(read, num_mappers, num_pieces=num_mappers * shuffle_batches, num_repeats=num_shuffles)
        # Of one iteration of k-means; the number of iterations depends on the text.
        fit_gflop = 2e-9 * num_nodes * node_windows * cluster.branching * inputs.dim
        num_threads = max(1, min(machines.num_workers // num_batches, machines.cores_per_machine))
        yield MapShape({"fit_gflop": fit_gflop}, num_batches * num_threads)


def _describe_shard_shuffles(inputs: StageInputs) -> Iterator[MapShape]:
    """Yield the maps that move sampled text to its shards, in one or two rounds (`pipeline.stages.shuffle_rounds`)."""
    num_workers, shard_bytes = inputs.machines.num_workers, inputs.config.sample.shard_bytes
    sampled_bytes = 1e6 * inputs.sampled_mb
    num_shards = max(1, round(sampled_bytes / shard_bytes))
    half = {"sampled_mb": inputs.sampled_mb / 2}  # mappers and reducers of a round count half each
    read = {"text_mb": inputs.text_mb, **half}
    if num_shards <= MAX_PARTITIONS:
        mappers = num_mapper_tasks(inputs.num_parts, num_workers, moved_bytes=sampled_bytes, partitions=num_shards)
        yield MapShape(read, mappers, num_pieces=mappers * num_shards)
        yield MapShape(half, num_shards)
        return
    num_buckets = len(plan_buckets(num_shards))
    num_runs = math.ceil(sampled_bytes / (num_buckets * shard_bytes))  # runs of parts
    run_parts = max(1, inputs.num_parts // num_runs)
    mappers = num_runs * num_mapper_tasks(run_parts, num_workers, moved_bytes=sampled_bytes / num_runs, partitions=num_buckets)
    yield MapShape(read, mappers, num_pieces=mappers * num_buckets, num_repeats=num_runs)
    yield MapShape(half, num_runs * num_buckets, num_repeats=num_runs)
    bucket_shards = num_shards // num_buckets
    mappers = num_buckets * num_mapper_tasks(
        num_runs, num_workers, moved_bytes=sampled_bytes / num_buckets, partitions=bucket_shards
    )
    yield MapShape(half, mappers, num_pieces=mappers * num_shards // num_buckets, num_repeats=num_buckets)
    yield MapShape(half, num_shards, num_repeats=num_buckets)


def _describe_fold(amounts: Amounts, inputs: StageInputs) -> MapShape:
    """Describe a fold over leaves: workers, and at last the driver, combine the states of tasks.

    A state has the leaves that its task has seen.
    """
    num_tasks = num_fold_tasks(inputs.num_parts, inputs.machines.num_workers)

    def state_amounts(num_states: float) -> dict[str, float]:
        return {"state_leaves_k": num_states * min(inputs.leaves_k, 1e3 * inputs.windows_m / num_states)}

    return MapShape({**amounts, **state_amounts(num_tasks)}, num_tasks, driver_amounts=state_amounts(math.sqrt(num_tasks)))


def _apply_rates(amounts: Amounts, rates: Mapping[str, float]) -> float:
    return sum(amount * rates.get(name, 0.0) for name, amount in amounts.items())
