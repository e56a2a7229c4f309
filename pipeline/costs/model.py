"""The cost of each stage, from rates that were measured.

Of a stage some work is shared by all workers (core-seconds), some is the driver's alone, before, between and after its maps. While
tasks are out, the driver hands them over and counts their pieces, which no number of workers makes faster. So

    wall = alone + max(waves of tasks x seconds of a task, seconds of the driver for all tasks and pieces)

Each of them is a sum of amounts (megabytes of text, millions of windows, ...) times rates.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from typing import Any

import orjson

from pipeline import embedders
from pipeline.config import GENERALIST, Config
from pipeline.costs.size import Size
from pipeline.execution.step import MOST_PARTITIONS, fold_tasks, mapper_tasks, quick_tasks
from pipeline.stages.cluster import HELD_BYTES, RUNS_PER_WORKER
from pipeline.stages.rounds import buckets_of

Amounts = Mapping[str, float]

_FOLDS = 4  # of `weights`: the histogram, the odds, the strata and the names
_SCANNED = 0.025  # of the work of `prepare` without steps: reading each file from end to end (scan_file: 7 of 300 ms a megabyte)


@dataclass(frozen=True)
class Machines:
    """Workers, and how many of them are on one machine: so many share the fit of one node."""

    workers: int
    cores: int


@dataclass(frozen=True)
class Work:
    """One map of a stage: what its tasks work through, and how many there are; one that takes several cores counts as so many.

    `pieces` are those of a shuffle, which the driver counts.
    """

    amounts: Amounts
    tasks: int
    pieces: int = 0
    turns: int = 1  # so many maps of the same size, one after the other
    driver: Amounts = field(default_factory=dict)  # what else the driver does while they are out


@dataclass(frozen=True)
class StageCost:
    """What a stage takes on some machines."""

    stage: str
    core_s: float
    mapping_s: float  # while tasks are out
    alone_s: float  # the driver's
    driver_s: float  # of the driver's processor, while tasks are out
    waited_s: float  # of `mapping_s`, for the driver
    stored_bytes: float
    tasks: int

    @property
    def wall_s(self) -> float:
        return self.mapping_s + self.alone_s


@dataclass(frozen=True)
class Shape:
    """What a stage is made of: its maps, what the driver does alone, and what is stored. `kind` names its rates."""

    kind: str
    works: list[Work]
    alone: Amounts
    stored: Amounts = field(default_factory=dict)


def shape(config: Config, stage: str, size: Size, machines: Machines, dim: int, corpus: str = GENERALIST) -> Shape | None:
    """What a stage does on a corpus of that size, the generalist or a specialist's sample; None for one that is not modelled.

    `dim` is the width of the vectors. Rewriting is not here: what it costs is the language model's.
    """
    text, windows, parts = size.text_bytes / 1e6, size.windows / 1e6, max(1, round(size.parts))
    leaves = num_leaves(config, size.windows) / 1e3
    drawn = config.sample.budget_tokens * size.text_bytes / max(1.0, size.tokens) / 1e6
    opened = {"kparts": parts / 1e3}
    alone = {"runs": 1.0, **opened}
    workers = machines.workers
    if stage == "prepare":
        files = max(1, round(size.files))
        parsed = {"python_mb": size.python_bytes / 1e6} if size.python_bytes else {}  # by both
        scan = Work({"text_mb": _SCANNED * text, **parsed}, files)
        steps, _ = config.steps_of(config.specialists.get(corpus, config.generalist))
        amounts = {"text_mb": (1 - _SCANNED) * text, **parsed, **({"refined_mb": text} if steps else {})}
        cut = Work(amounts, max(files, min(16 * files, 2 * workers, parts)))
        return Shape(stage, [scan, cut], alone, {"text_mb": text})
    if stage in ("dedup", "decontaminate"):
        return Shape(stage, [Work({"text_mb": text}, min(parts, 1000))], alone, {"text_mb": text})
    if stage == "embedder":
        return Shape(f"{stage} {kind_of(config)}", [Work({"runs": 1.0}, min(machines.cores, machines.workers))], {"runs": 1.0})
    if stage == "embed":
        vectors = {"vector_mb": windows * (2 * dim + 9)}
        return Shape(f"{stage} {kind_of(config)}", [Work(_embedded(config, size), parts)], alone, vectors)
    if stage == "assign":
        gflop = 2e-3 * windows * dim * config.cluster.branching * config.cluster.depth
        work = Work({"windows_m": windows, "descent_gflop": gflop, **opened}, quick_tasks(parts, workers))
        return Shape(stage, [work], {**alone, "kleaves": leaves}, {"windows_m": windows})
    if stage == "cluster":
        works = list(_levels(config, size, machines, dim))
        nodes_mb = leaves * (4 * dim + 60) / 1e3
        return Shape(stage, works, {**alone, "kleaves": leaves}, {"nodes_mb": nodes_mb})
    if stage == "score":
        return Shape(stage, [Work({"text_mb": text, "runs": 1.0, **opened}, parts)], alone, {"windows_m": windows})
    if stage == "weights":
        fold = _folded({"windows_m": windows, "runs": 1.0, **opened}, fold_tasks(parts, workers), windows, leaves)
        return Shape(stage, [replace(fold, tasks=_FOLDS * fold.tasks)], {**alone, "kleaves": leaves}, {"kleaves": leaves})
    if stage == "sample":
        shards = max(1, round(drawn * 1e6 / config.sample.shard_bytes))
        fold = _folded({"windows_m": windows, **opened}, fold_tasks(parts, workers), windows, leaves)
        draws = replace(fold, tasks=fold.tasks + quick_tasks(parts, workers))
        moves = list(_moves(config, text, drawn, parts, shards, workers))
        return Shape(stage, [draws, *moves], {**alone, "kleaves": leaves}, {"windows_m": windows, "drawn_mb": drawn})
    return None


def stage_cost(config: Config, stage: str, size: Size, machines: Machines, dim: int, corpus: str = GENERALIST) -> StageCost | None:
    """What a stage takes; None for one that is not modelled."""
    found = shape(config, stage, size, machines, dim, corpus)
    if found is None:
        return None
    rates = read_rates()
    of_stage = rates["stages"][found.kind]
    core_s = mapping_s = driver_s = waited_s = 0.0
    for work in found.works:
        of_work_s = _times(work.amounts, of_stage["core_s"])
        shared_s = of_work_s / speedup(max(1, work.tasks // work.turns), machines.workers)
        counted_s = work.tasks * rates["task_s"] + work.pieces * rates["piece_s"] + _times(work.driver, of_stage["driver_s"])
        core_s, driver_s = core_s + of_work_s, driver_s + counted_s
        mapping_s += max(counted_s, shared_s)
        waited_s += max(0.0, counted_s - shared_s)
    return StageCost(
        stage=stage,
        core_s=core_s,
        mapping_s=mapping_s,
        alone_s=_times(found.alone, of_stage["alone_s"]),
        driver_s=driver_s,
        waited_s=waited_s,
        stored_bytes=1e6 * _times(found.stored, of_stage["stored_mb"]),
        tasks=sum(work.tasks for work in found.works),
    )


def speedup(tasks: int, workers: float) -> float:
    """How many times faster than one worker equal tasks are done by so many, the last of which have no company."""
    return tasks / math.ceil(tasks / workers)


def num_leaves(config: Config, windows: float) -> float:
    """Leaves of the tree, about: a node is split as far as each child has `min_windows`."""
    cluster = config.cluster
    return max(1.0, min(float(cluster.branching**cluster.depth), windows / cluster.min_windows))


def kind_of(config: Config) -> str:
    """Which rates of embedding: `static`, `lsi` or `transformer`."""
    return {"nothing": "transformer", "model": "static", "texts": "lsi"}[embedders.fits_on(config.embed)]


def read_tokens(config: Config, size: Size) -> float:
    """Tokens that a transformer reads."""
    if config.embed.pool == "mean":
        return size.tokens
    return size.windows * min(size.tokens / max(1.0, size.windows), config.embed.max_tokens)


@cache
def read_rates() -> Mapping[str, Any]:
    """`rates.json`, as benchmarks/scale.py wrote it."""
    found: dict[str, Any] = orjson.loads(resources.files("pipeline.costs").joinpath("rates.json").read_bytes())
    return found


def _embedded(config: Config, size: Size) -> Amounts:
    if kind_of(config) == "transformer":
        return {"read_mtokens": read_tokens(config, size) / 1e6}
    return {"text_mb": size.text_bytes / 1e6, "windows_m": size.windows / 1e6}


def _levels(config: Config, size: Size, machines: Machines, dim: int) -> Iterator[Work]:
    """A level: its mappers read all vectors; its reducers fit the nodes, each with the cores of one machine at most."""
    cluster = config.cluster
    parts = max(1, round(size.parts))
    for level in range(cluster.depth):
        nodes = cluster.branching**level
        of_node = min(size.windows / nodes, max(cluster.fit_windows, 100 * cluster.branching))
        if size.windows / nodes < 2 * cluster.min_windows:
            return
        # As `stages.cluster` makes them: so many, and none of more windows than one node may take.
        of_run = min(cluster.fit_windows, nodes * of_node / (RUNS_PER_WORKER * machines.workers))
        runs = math.ceil(nodes / max(1, of_run // of_node))
        turns = -(-runs // MOST_PARTITIONS)
        together = -(-runs // turns)
        moved_bytes = nodes * of_node * (2 * dim + 16) / turns
        mappers = mapper_tasks(parts, machines.workers, moved_bytes=moved_bytes, partitions=together, held_bytes=HELD_BYTES)
        read = {"level_windows_m": turns * size.windows / 1e6, "kparts": turns * parts / 1e3}
        yield Work(read, turns * mappers, pieces=turns * mappers * together, turns=turns)
        fit_gflop = 2e-9 * nodes * of_node * cluster.branching * dim  # of one pass; how many there are depends on the text
        threads = max(1, min(machines.workers // runs, machines.cores))
        yield Work({"fit_gflop": fit_gflop}, runs * threads)


def _moves(config: Config, text: float, drawn: float, parts: int, shards: int, workers: int) -> Iterator[Work]:
    """What is drawn, moved to its shards (`pipeline.stages.rounds`); megabytes."""
    half = {"drawn_mb": drawn / 2}
    if shards <= MOST_PARTITIONS:
        mappers = mapper_tasks(parts, workers, moved_bytes=1e6 * drawn, partitions=shards)
        yield Work({"text_mb": text, **half}, mappers, pieces=mappers * shards)
        yield Work(half, shards)
        return
    buckets = len(buckets_of(shards))
    runs = math.ceil(1e6 * drawn / (buckets * config.sample.shard_bytes))
    of_run = max(1, parts // runs)
    mappers = runs * mapper_tasks(of_run, workers, moved_bytes=1e6 * drawn / runs, partitions=buckets)
    yield Work({"text_mb": text, **half}, mappers, pieces=mappers * buckets, turns=runs)
    yield Work(half, runs * buckets, turns=runs)
    mappers = buckets * mapper_tasks(runs, workers, moved_bytes=1e6 * drawn / buckets, partitions=shards // buckets)
    yield Work(half, mappers, pieces=mappers * shards // buckets, turns=buckets)
    yield Work(half, shards, turns=buckets)


def _folded(amounts: Amounts, tasks: int, windows: float, leaves: float) -> Work:
    """A fold over leaves: what each task found is combined, by workers and at last by the driver, and is as large as its leaves."""

    def found(states: float) -> dict[str, float]:
        return {"found_kleaves": states * min(leaves, 1e3 * windows / states)}

    return Work({**amounts, **found(tasks)}, tasks, driver=found(math.sqrt(tasks)))


def _times(amounts: Amounts, rates: Mapping[str, float]) -> float:
    return sum(amount * rates.get(name, 0.0) for name, amount in amounts.items())
