"""What each stage costs: the rates of `--dry-run` and docs/scale.md, and how well they tell runs that they were not made from.

Whole runs of several sizes, numbers of parts and widths of tree, each in a Ray of its own, over the first documents of the
generalist corpus, in files of 500. Of each step: the core-seconds of its tasks, the seconds in which no task was out, and the bytes
that it left, fitted by what `pipeline.costs.model` says they go with. The driver's processor time for a task, and for a piece of a
shuffle, is taken from empty ones. Then runs that no rate was made from: larger, with one worker, and of vectors alone.

    python benchmarks/scale.py                     # some ten minutes on two cores
    python benchmarks/scale.py --write             # ... and keep the rates, in pipeline/costs/rates.json
"""

import argparse
import os
import platform
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import memory
import numpy as np
import orjson
import zstandard
from corpus import GENERALIST, HELD_OUT, SPECIALIST, corpus_file, own_ray, read_rows
from loguru import logger
from scipy.optimize import nnls

from pipeline.config import Config, parse_config
from pipeline.config import Engine as EngineSettings
from pipeline.costs.model import Machines, Shape, read_rates, shape, stage_cost
from pipeline.costs.size import Size, size_of
from pipeline.engine import Engine
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.graph.graph import build_graph
from pipeline.graph.runner import curate
from pipeline.sources import pydocs
from pipeline.terminal.output import console

RATES = Path(__file__).parent.parent / "pipeline" / "costs" / "rates.json"
_FILE_DOCUMENTS = 500
_TASKS, _MAPPERS, _PARTITIONS = 3000, 48, 256
_FLOOR_S = 0.5  # an error of so much weighs as one of all of a step that took so long
_STATIC, _MINILM = "static:bundled:all-MiniLM-L6-v2", "bundled:all-MiniLM-L6-v2"
_FILTERS = ("GopherRepetitionFilter", "GopherQualityFilter", "C4QualityFilter", "FineWebQualityFilter")
_REFINED: dict[str, Any] = {
    "prepare": {"steps": [{"type": name} for name in _FILTERS]},
    "dedup": {},
    "decontaminate": {"held_out": {"recipes": {"paths": [corpus_file(HELD_OUT)]}}},
}


@dataclass(frozen=True)
class Trial:
    """A run to measure."""

    documents: int
    part_documents: int
    branching: int
    model: str = _STATIC
    passes: float = 0.25  # of the corpus, drawn
    workers: int = 2
    until: str = "sample"
    extra: dict[str, Any] = field(default_factory=dict)


def vectors(rows: int, dim: int, branching: int, depth: int, min_windows: int = 32) -> memory.Vectors:
    return memory.Vectors(rows, dim, branching, depth, min_windows, fit_windows=128_000, text_bytes=64)


FITTED_VECTORS = (vectors(200_000, 64, 64, 2), vectors(400_000, 256, 32, 2))
TOLD_VECTORS = (vectors(2_000_000, 64, 64, 2), vectors(1_000_000, 64, 64, 3, min_windows=4))
FITTED = (
    Trial(3000, 256, 16),
    Trial(6000, 256, 32, extra=_REFINED),
    Trial(12_000, 48, 64),
    Trial(12_000, 512, 32, passes=2.0),
    Trial(30_000, 1024, 32, passes=0.5),
    Trial(12_000, 512, 16, model="lsi", until="embed"),
    Trial(100, 25, 16, model=_MINILM, until="embed"),
    Trial(300, 25, 16, model=_MINILM, until="embed"),
)
TOLD = (
    Trial(60_000, 1024, 48, passes=0.5),
    Trial(20_000, 512, 32, workers=1),
    Trial(20_000, 128, 64, passes=1.0),
    Trial(12_000, 512, 32, extra=_REFINED),
    Trial(200, 25, 16, model=_MINILM, until="embed"),
)


@dataclass(frozen=True)
class Measured:
    """A step of a trial: what it is made of, and what it took."""

    stage: str
    corpus: str
    shape: Shape
    size: Size
    seconds: float
    core_s: float
    alone_s: float
    driver_s: float
    stored_mb: float
    told: float = 0.0  # seconds, by the rates that there were


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep the rates")
    args = parser.parse_args()
    console.quiet = True
    logger.remove()
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(folder, max(trial.documents for trial in (*FITTED, *TOLD)))
        list(measured(files, FITTED[0], f"{folder}/first"))  # distils the model, which a machine does once
        steps = [step for number, trial in enumerate(FITTED) for step in measured(files, trial, f"{folder}/fitted-{number}")]
        steps += [step for trial in FITTED_VECTORS for step in measured_vectors(trial, folder)]
        driver = driver_rates()
        rates: dict[str, Any] = {"measured": where(), **driver, "stages": stage_rates(steps, driver)}
        rates["stages"]["prepare"]["core_s"]["python_mb"] = parsing_rate()
        print_rates(rates)
        if args.write:
            RATES.write_bytes(orjson.dumps(rates, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
            read_rates.cache_clear()
        print_tests(files, folder)
        for trial in TOLD_VECTORS:
            for step in measured_vectors(trial, folder):
                what = f"{step.stage}, {trial.rows:,} synthetic vectors, D = {trial.dim}, {trial.branching}^{trial.depth}"
                print_told(what, step.told, step.seconds)


def write_files(folder: str, documents: int) -> list[str]:
    """The first documents in files of the same number each."""
    paths, rows = [], read_rows(GENERALIST)
    for number in range(-(-documents // _FILE_DOCUMENTS)):
        lines = b"".join(orjson.dumps(row) + b"\n" for row in islice(rows, _FILE_DOCUMENTS))
        paths.append(f"{folder}/{number:05d}.jsonl.zst")
        Path(paths[-1]).write_bytes(zstandard.compress(lines))
    return paths


def config_of(files: Sequence[str], trial: Trial, workdir: str) -> Config:
    whole, rest = divmod(trial.documents, _FILE_DOCUMENTS)
    return parse_config(
        {
            "workdir": workdir,
            "generalist": {"paths": list(files[: whole or 1]), **({"limit": rest} if rest else {})},
            "specialists": {"recipes": {"paths": [corpus_file(SPECIALIST)]}},
            "window": {"tokens": 256},
            "embed": {"model": trial.model},
            "cluster": {"branching": trial.branching},
            "sample": {"budget_tokens": max(1000, round(trial.passes * trial.documents * 450)), "shard_bytes": 16 << 20},
            "engine": {"address": "local", "workers": trial.workers},
            **trial.extra,
            "prepare": {"part_documents": trial.part_documents, **trial.extra.get("prepare", {})},
        }
    )


def measured(files: Sequence[str], trial: Trial, workdir: str) -> Iterator[Measured]:
    """The steps of a trial."""
    run = curate(config_of(files, trial, workdir), until=trial.until)
    machines = Machines(trial.workers, trial.workers)
    for step in run.steps:
        usage = step.folder.read_json("usage.json") if step.done else None
        corpus = step.corpus or "generalist"
        size = size_of(run.config, corpus, run.windows(corpus))
        found = shape(run.config, step.stage, size, machines, dim_of(run), corpus) if size else None
        if usage and size and found:
            alone_s = max(0.0, usage["seconds"] - usage["mapping_s"])
            yield Measured(
                stage=step.stage,
                corpus=corpus,
                shape=found,
                size=size,
                seconds=usage["seconds"],
                core_s=usage["busy_s"],
                alone_s=alone_s,
                driver_s=usage["driver_s"],
                stored_mb=held_bytes(step.folder.path) / 1e6,
            )


def dim_of(run: PipelineGraph) -> int:
    return int(run.step("embed", "generalist").manifest["dim"])


def held_bytes(path: str) -> float:
    return float(sum(os.path.getsize(os.path.join(root, name)) for root, _, names in os.walk(path) for name in names))


def stage_rates(steps: Sequence[Measured], driver: dict[str, float]) -> dict[str, dict[str, dict[str, float]]]:
    """Of each kind of stage what its work, the driver's time alone and its bytes go with."""
    by_kind: dict[str, list[Measured]] = defaultdict(list)
    for step in steps:
        by_kind[step.shape.kind].append(step)
    return {
        kind: {
            "core_s": fitted([summed(step.shape, "amounts") for step in found], [step.core_s for step in found]),
            "driver_s": fitted([summed(step.shape, "driver") for step in found], [more_than_tasks(step, driver) for step in found]),
            "alone_s": fitted([dict(step.shape.alone) for step in found], [step.alone_s for step in found]),
            "stored_mb": fitted([dict(step.shape.stored) for step in found], [step.stored_mb for step in found]),
        }
        for kind, found in by_kind.items()
    }


def summed(found: Shape, of_works: str) -> dict[str, float]:
    total: dict[str, float] = defaultdict(float)
    for work in found.works:
        for name, amount in getattr(work, of_works).items():
            total[name] += amount
    return dict(total)


def more_than_tasks(step: Measured, driver: dict[str, float]) -> float:
    """The driver's time while tasks were out, less what it takes to hand them over."""
    counted = sum(work.tasks * driver["task_s"] + work.pieces * driver["piece_s"] for work in step.shape.works)
    return max(0.0, step.driver_s - counted)


def fitted(amounts: Sequence[dict[str, float]], values: Sequence[float]) -> dict[str, float]:
    """The rates, none below zero, with the least sum of squared relative errors."""
    names = sorted({name for of_step in amounts for name in of_step})
    weight = 1.0 / (np.array(values) + _FLOOR_S)
    matrix = np.array([[of_step.get(name, 0.0) for name in names] for of_step in amounts]) * weight[:, None]
    if not names:
        return {}
    rates, _ = nnls(matrix, np.array(values) * weight)
    return {name: float(f"{rate:.4g}") for name, rate in zip(names, rates, strict=True)}


def parsing_rate() -> float:
    """Seconds of a core for a megabyte of Python, which is parsed for its docstrings."""
    urls = pydocs.expand("pydocs://stdlib,numpy,torch")
    started = time.process_time()
    for url in urls:
        for _ in pydocs.read_rows(url):
            pass
    seconds = time.process_time() - started
    return float(f"{1e6 * seconds / sum(map(pydocs.source_bytes, urls)):.4g}")


def driver_rates() -> dict[str, float]:
    """Processor seconds of the driver for a task, and for a piece that goes from a mapper to a reducer."""
    with own_ray(), Engine(EngineSettings()) as engine:
        for _ in engine.map(_nothing, range(100), title="warm"):
            pass
        before = engine.usage.driver_s
        for _ in engine.map(_nothing, range(_TASKS), title="tasks"):
            pass
        task_s = (engine.usage.driver_s - before) / _TASKS
        before = engine.usage.driver_s
        partitions = range(_PARTITIONS)
        for _ in engine.shuffle(_empty_pieces, range(_MAPPERS), _nothing_of, partitions, title="pieces", unit="pieces"):
            pass
        shuffle_s = engine.usage.driver_s - before - task_s * (_MAPPERS + _PARTITIONS)
    return {"task_s": float(f"{task_s:.4g}"), "piece_s": float(f"{max(0.0, shuffle_s) / (_MAPPERS * _PARTITIONS):.4g}")}


def _nothing(_item: int) -> None:
    return None


def _empty_pieces(_item: int, partitions: Sequence[int]) -> list[int]:
    return [0 for _ in partitions]


def _nothing_of(_partition: int, _pieces: Sequence[int]) -> None:
    return None


def where() -> dict[str, str]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    with open("/proc/cpuinfo") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), platform.machine())
    return {"machine": f"{os.cpu_count()} cores of {model}", "date": time.strftime("%Y-%m-%d"), "commit": commit}


def print_rates(rates: dict[str, Any]) -> None:
    driver = f"{1e3 * rates['task_s']:.2f} ms a task, {1e6 * rates['piece_s']:.0f} us a piece"
    print(f"\nload {os.getloadavg()[0]:.1f}; driver: {driver}")
    for kind, of_kind in rates["stages"].items():
        parts = {part: ", ".join(f"{rate:g} {name}" for name, rate in found.items() if rate) for part, found in of_kind.items()}
        print(f"{kind:<18}{'; '.join(f'{part}: {said}' for part, said in parts.items())}", flush=True)


def print_tests(files: Sequence[str], folder: str) -> None:
    print(f"\n{'a run that no rate is from':<58}{'told':>8}{'measured':>10}{'ratio':>7}")
    for number, trial in enumerate(TOLD):
        config = config_of(files, trial, f"{folder}/told-{number}")
        steps = list(measured(files, trial, f"{folder}/told-{number}"))
        machines = Machines(trial.workers, trial.workers)
        dim = dim_of(build_graph(config))
        costs = [stage_cost(config, step.stage, step.size, machines, dim, step.corpus) for step in steps]
        times = [cost.wall_s if cost else 0.0 for cost in costs]
        refined = ", refined" if trial.extra else ""
        name = f"{trial.documents:,} documents, {trial.part_documents} a part, {trial.branching}², {trial.workers} workers{refined}"
        print_told(name, sum(times), sum(step.seconds for step in steps))
        by_stage: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for step, told in zip(steps, times, strict=True):
            by_stage[step.stage][0] += told
            by_stage[step.stage][1] += step.seconds
        for stage, (told, seconds) in by_stage.items():
            if seconds > 2.0:
                print_told(f"  {stage}", told, seconds)
        stored = sum(cost.stored_bytes if cost else 0.0 for cost in costs) / 1e6
        print_told("  MB stored", stored, sum(step.stored_mb for step in steps))


def measured_vectors(trial: memory.Vectors, folder: str) -> Iterator[Measured]:
    """Cluster and assign of synthetic vectors, as `memory.py` makes them."""
    with tempfile.TemporaryDirectory(dir=folder) as workdir:
        config = memory.settings(trial, workdir)
        memory.write_corpora(trial, config)
        size = size_of(config, "generalist", build_graph(config).step("prepare", "generalist"))
        machines = Machines(os.cpu_count() or 1, os.cpu_count() or 1)
        for stage, corpus in (("cluster", ""), ("assign", "generalist")):
            took = memory.measure(trial, stage, corpus, workdir)
            assert size
            found = shape(config, stage, size, machines, trial.dim)
            cost = stage_cost(config, stage, size, machines, trial.dim) if stage in read_rates()["stages"] else None
            assert found
            yield Measured(
                stage=stage,
                corpus="generalist",
                shape=found,
                size=size,
                seconds=took["seconds"],
                core_s=took["busy_s"],
                alone_s=max(0.0, took["seconds"] - took["mapping_s"]),
                driver_s=took["driver_s"],
                stored_mb=held_bytes(build_graph(config).step(stage, corpus).folder.path) / 1e6,
                told=cost.wall_s if cost else 0.0,
            )


def print_told(what: str, told: float, found: float) -> None:
    print(f"{what:<58}{told:>8.1f}{found:>10.1f}{told / max(found, 1e-9):>7.2f}", flush=True)


if __name__ == "__main__":
    main()
