"""Measure the rates of `--dry-run` and docs/scale.md, and compare their estimates with runs that were not used to fit them.

The fitting runs have several sizes, numbers of parts and widths of tree. Each has its own Ray and reads the first documents of the
generalist corpus, in files of 500 documents. Measured for each step: the core-seconds of its tasks, the seconds in which no task
runs, and the bytes that it stores. Rates are fitted to the amounts that `costs.stage_costs` gives for the step. The CPU time of
the driver per task and per piece of a shuffle is measured with empty ones. The test runs are larger, have one worker, or only have
vectors.

    python benchmarks/scale.py                     # about ten minutes on two cores
    python benchmarks/scale.py --write             # also write the rates to pipeline/costs/rates.json
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
from pipeline.costs.corpus_size import CorpusSize, find_corpus_size
from pipeline.costs.stage_costs import Machines, StageInputs, StageShape, describe_stage, estimate_stage, read_rates
from pipeline.engine import Engine
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.graph.build import build_graph
from pipeline.graph.runner import curate
from pipeline.sources import pydocs
from pipeline.terminal.output import console

RATES = Path(__file__).parent.parent / "pipeline" / "costs" / "rates.json"
_FILE_DOCUMENTS = 500
_DOCUMENT_TOKENS = 450  # assumed mean
_NUM_TASKS, _NUM_MAPPERS, _NUM_PARTITIONS = 3000, 48, 256
_MIN_SCALE_S = 0.5  # added to measured values before errors are made relative, so that very short steps do not dominate the fit
_MIN_PRINTED_S = 2.0
_STATIC, _MINILM = "static:bundled:all-MiniLM-L6-v2", "bundled:all-MiniLM-L6-v2"
_FILTERS = ("GopherRepetitionFilter", "GopherQualityFilter", "C4QualityFilter", "FineWebQualityFilter")
_REFINED: dict[str, Any] = {
    "prepare": {"steps": [{"type": name} for name in _FILTERS]},
    "dedup": {},
    "decontaminate": {"held_out": {"recipes": {"paths": [corpus_file(HELD_OUT)]}}},
}


@dataclass(frozen=True)
class Trial:
    """A run to measure.

    Attributes:
        epochs: budget of `sample`, as a multiple of the corpus.
        settings: further settings of the config, by section.
    """

    documents: int
    part_documents: int
    branching: int
    model: str = _STATIC
    epochs: float = 0.25
    workers: int = 2
    until: str = "sample"
    settings: dict[str, Any] = field(default_factory=dict)


def make_vectors(rows: int, dim: int, branching: int, depth: int, min_windows: int = 32) -> memory.Vectors:
    return memory.Vectors(rows, dim, branching, depth, min_windows, fit_windows=128_000, text_bytes=64)


FITTING_VECTORS = (make_vectors(200_000, 64, 64, 2), make_vectors(400_000, 256, 32, 2))
TEST_VECTORS = (make_vectors(2_000_000, 64, 64, 2), make_vectors(1_000_000, 64, 64, 3, min_windows=4))
FITTING_TRIALS = (
    Trial(3000, 256, 16),
    Trial(6000, 256, 32, settings=_REFINED),
    Trial(12_000, 48, 64),
    Trial(12_000, 512, 32, epochs=2.0),
    Trial(30_000, 1024, 32, epochs=0.5),
    Trial(12_000, 512, 16, model="lsi", until="embed"),
    Trial(100, 25, 16, model=_MINILM, until="embed"),
    Trial(300, 25, 16, model=_MINILM, until="embed"),
)
TEST_TRIALS = (
    Trial(60_000, 1024, 48, epochs=0.5),
    Trial(20_000, 512, 32, workers=1),
    Trial(20_000, 128, 64, epochs=1.0),
    Trial(12_000, 512, 32, settings=_REFINED),
    Trial(200, 25, 16, model=_MINILM, until="embed"),
)


@dataclass(frozen=True)
class MeasuredStep:
    """A step of a trial: its shape in the model, and its measured usage (as in `StageCost`).

    `estimated_s` is the wall time of the step by the present rates, where it is needed.
    """

    stage: str
    corpus: str
    shape: StageShape
    size: CorpusSize
    wall_s: float
    core_s: float
    driver_only_s: float
    driver_s: float
    stored_mb: float
    estimated_s: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the rates to pipeline/costs/rates.json")
    args = parser.parse_args()
    console.quiet = True
    logger.remove()
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(folder, max(trial.documents for trial in (*FITTING_TRIALS, *TEST_TRIALS)))
        list(measure_trial(files, FITTING_TRIALS[0], f"{folder}/first"))  # distils the model, which a machine does once
        steps = [
            step
            for number, trial in enumerate(FITTING_TRIALS)
            for step in measure_trial(files, trial, f"{folder}/fitting-{number}")
        ]
        steps += [step for vectors in FITTING_VECTORS for step in measure_vectors(vectors, folder)]
        driver_rates = measure_driver_rates()
        rates: dict[str, Any] = {"measured": describe_machine(), **driver_rates, "stages": fit_stage_rates(steps, driver_rates)}
        rates["stages"]["prepare"]["core_s"]["python_mb"] = measure_parsing_rate()
        print_rates(rates)
        if args.write:
            RATES.write_bytes(orjson.dumps(rates, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
            read_rates.cache_clear()
        compare_test_trials(files, folder)
        for vectors in TEST_VECTORS:
            for step in measure_vectors(vectors, folder):
                tree = f"{vectors.branching}^{vectors.depth}"
                title = f"{step.stage}, {vectors.rows:,} synthetic vectors, D = {vectors.dim}, {tree}"
                print_comparison(title, step.estimated_s, step.wall_s)


def write_files(folder: str, documents: int) -> list[str]:
    """Write the first documents of the generalist corpus to files of equal numbers of documents; return their paths."""
    paths, rows = [], read_rows(GENERALIST)
    for number in range(-(-documents // _FILE_DOCUMENTS)):
        lines = b"".join(orjson.dumps(row) + b"\n" for row in islice(rows, _FILE_DOCUMENTS))
        paths.append(f"{folder}/{number:05d}.jsonl.zst")
        Path(paths[-1]).write_bytes(zstandard.compress(lines))
    return paths


def make_config(files: Sequence[str], trial: Trial, workdir: str) -> Config:
    num_files, rest = divmod(trial.documents, _FILE_DOCUMENTS)
    budget_tokens = max(1000, round(trial.epochs * trial.documents * _DOCUMENT_TOKENS))
    return parse_config(
        {
            "workdir": workdir,
            "generalist": {"paths": list(files[: num_files or 1]), **({"limit": rest} if rest else {})},
            "specialists": {"recipes": {"paths": [corpus_file(SPECIALIST)]}},
            "window": {"tokens": 256},
            "embed": {"model": trial.model},
            "cluster": {"branching": trial.branching},
            "sample": {"budget_tokens": budget_tokens, "shard_bytes": 16 << 20},
            "engine": {"address": "local", "workers": trial.workers},
            **trial.settings,
            "prepare": {"part_documents": trial.part_documents, **trial.settings.get("prepare", {})},
        }
    )


def measure_trial(files: Sequence[str], trial: Trial, workdir: str) -> Iterator[MeasuredStep]:
    """Run a trial; yield its steps whose stage is modelled."""
    run = curate(make_config(files, trial, workdir), until=trial.until)
    machines = Machines(trial.workers, trial.workers)
    for step in run.steps:
        usage = step.folder.read_json("usage.json") if step.done else None
        corpus = step.corpus or "generalist"
        size = find_corpus_size(run.config, corpus, run.windows_step(corpus))
        shape = describe_stage(step.stage, StageInputs(run.config, size, machines, read_dim(run), corpus)) if size else None
        if usage and size and shape:
            yield MeasuredStep(
                stage=step.stage,
                corpus=corpus,
                shape=shape,
                size=size,
                wall_s=usage["seconds"],
                core_s=usage["busy_s"],
                driver_only_s=max(0.0, usage["seconds"] - usage["mapping_s"]),
                driver_s=usage["driver_s"],
                stored_mb=count_stored_bytes(step.folder.path) / 1e6,
            )


def read_dim(run: PipelineGraph) -> int:
    """Read the width of the vectors that a run has written."""
    return int(run.step("embed", "generalist").manifest["dim"])


def count_stored_bytes(folder: str) -> float:
    return float(sum(os.path.getsize(os.path.join(root, name)) for root, _, names in os.walk(folder) for name in names))


def fit_stage_rates(steps: Sequence[MeasuredStep], driver_rates: dict[str, float]) -> dict[str, dict[str, dict[str, float]]]:
    """Fit the rates of each kind of stage: work of the tasks, driver during and between maps, and stored bytes."""
    steps_by_key: dict[str, list[MeasuredStep]] = defaultdict(list)
    for step in steps:
        steps_by_key[step.shape.rates_key].append(step)
    return {
        key: {
            "core_s": fit_rates([sum_amounts(step.shape, "amounts") for step in found], [step.core_s for step in found]),
            "driver_s": fit_rates(
                [sum_amounts(step.shape, "driver_amounts") for step in found],
                [subtract_task_overhead(step, driver_rates) for step in found],
            ),
            "driver_only_s": fit_rates(
                [dict(step.shape.driver_only_amounts) for step in found], [step.driver_only_s for step in found]
            ),
            "stored_mb": fit_rates([dict(step.shape.stored_amounts) for step in found], [step.stored_mb for step in found]),
        }
        for key, found in steps_by_key.items()
    }


def sum_amounts(shape: StageShape, attribute: str) -> dict[str, float]:
    """Sum the amounts of all maps; `attribute` is `amounts` or `driver_amounts`."""
    total: dict[str, float] = defaultdict(float)
    for stage_map in shape.maps:
        for name, amount in getattr(stage_map, attribute).items():
            total[name] += amount
    return dict(total)


def subtract_task_overhead(step: MeasuredStep, driver_rates: dict[str, float]) -> float:
    """Return the CPU time of the driver during maps, without the time for tasks and pieces."""
    num_tasks = sum(stage_map.num_tasks for stage_map in step.shape.maps)
    num_pieces = sum(stage_map.num_pieces for stage_map in step.shape.maps)
    return max(0.0, step.driver_s - num_tasks * driver_rates["task_s"] - num_pieces * driver_rates["piece_s"])


def fit_rates(amounts: Sequence[dict[str, float]], values: Sequence[float]) -> dict[str, float]:
    """Fit non-negative rates that minimize the sum of squared relative errors."""
    names = sorted({name for of_step in amounts for name in of_step})
    weight = 1.0 / (np.array(values) + _MIN_SCALE_S)
    matrix = np.array([[of_step.get(name, 0.0) for name in names] for of_step in amounts]) * weight[:, None]
    if not names:
        return {}
    rates, _ = nnls(matrix, np.array(values) * weight)
    return {name: float(f"{rate:.4g}") for name, rate in zip(names, rates, strict=True)}


def measure_parsing_rate() -> float:
    """Measure the core-seconds that parsing a megabyte of Python for its docstrings takes."""
    urls = pydocs.expand("pydocs://stdlib,numpy,torch")
    started = time.process_time()
    for url in urls:
        for _ in pydocs.read_rows(url):
            pass
    seconds = time.process_time() - started
    return float(f"{1e6 * seconds / sum(map(pydocs.count_source_bytes, urls)):.4g}")


def measure_driver_rates() -> dict[str, float]:
    """Measure the CPU seconds of the driver per task, and per piece that goes from a mapper to a reducer."""
    with own_ray(), Engine(EngineSettings()) as engine:
        for _ in engine.map(_do_nothing, range(100), title="warm-up", shared=None):
            pass
        before = engine.usage.driver_s
        for _ in engine.map(_do_nothing, range(_NUM_TASKS), title="tasks", shared=None):
            pass
        task_s = (engine.usage.driver_s - before) / _NUM_TASKS
        before = engine.usage.driver_s
        partitions = range(_NUM_PARTITIONS)
        for _ in engine.shuffle(
            _make_empty_pieces, range(_NUM_MAPPERS), _discard_pieces, partitions, title="pieces", unit="pieces", shared=None
        ):
            pass
        shuffle_s = engine.usage.driver_s - before - task_s * (_NUM_MAPPERS + _NUM_PARTITIONS)
    piece_s = max(0.0, shuffle_s) / (_NUM_MAPPERS * _NUM_PARTITIONS)
    return {"task_s": float(f"{task_s:.4g}"), "piece_s": float(f"{piece_s:.4g}")}


def _do_nothing(_item: int, _: None) -> None:
    return None


def _make_empty_pieces(_item: int, partitions: Sequence[int], _: None) -> list[int]:
    return [0 for _ in partitions]


def _discard_pieces(_partition: int, _pieces: Sequence[int], _: None) -> None:
    return None


def describe_machine() -> dict[str, str]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    with open("/proc/cpuinfo") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), platform.machine())
    return {"machine": f"{os.cpu_count()} cores of {model}", "date": time.strftime("%Y-%m-%d"), "commit": commit}


def print_rates(rates: dict[str, Any]) -> None:
    driver = f"{1e3 * rates['task_s']:.2f} ms per task, {1e6 * rates['piece_s']:.0f} us per piece"
    print(f"\nload {os.getloadavg()[0]:.1f}; driver: {driver}")
    for key, stage_rates in rates["stages"].items():
        parts = []
        for part, part_rates in stage_rates.items():
            formatted = ", ".join(f"{rate:g} {name}" for name, rate in part_rates.items() if rate)
            parts.append(f"{part}: {formatted}")
        print(f"{key:<18}{'; '.join(parts)}", flush=True)


def compare_test_trials(files: Sequence[str], folder: str) -> None:
    """Run the test trials; print their estimated and measured times and stored bytes."""
    print(f"\n{'test run':<58}{'estimate':>10}{'measured':>10}{'ratio':>7}")
    for number, trial in enumerate(TEST_TRIALS):
        workdir = f"{folder}/test-{number}"
        config = make_config(files, trial, workdir)
        steps = list(measure_trial(files, trial, workdir))
        machines = Machines(trial.workers, trial.workers)
        dim = read_dim(build_graph(config))
        costs = [estimate_stage(step.stage, StageInputs(config, step.size, machines, dim, step.corpus)) for step in steps]
        times = [cost.wall_s if cost else 0.0 for cost in costs]
        refined = ", refined" if trial.settings else ""
        sizes = f"{trial.documents:,} documents, {trial.part_documents} per part, {trial.branching}²"
        print_comparison(f"{sizes}, {trial.workers} workers{refined}", sum(times), sum(step.wall_s for step in steps))
        by_stage: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for step, estimated_s in zip(steps, times, strict=True):
            by_stage[step.stage][0] += estimated_s
            by_stage[step.stage][1] += step.wall_s
        for stage, (estimated_s, measured_s) in by_stage.items():
            if measured_s > _MIN_PRINTED_S:
                print_comparison(f"  {stage}", estimated_s, measured_s)
        stored_mb = sum(cost.stored_bytes if cost else 0.0 for cost in costs) / 1e6
        print_comparison("  MB stored", stored_mb, sum(step.stored_mb for step in steps))


def measure_vectors(vectors: memory.Vectors, folder: str) -> Iterator[MeasuredStep]:
    """Cluster and assign synthetic vectors, made as in `memory.py`; yield both steps."""
    with tempfile.TemporaryDirectory(dir=folder) as workdir:
        config = memory.settings(vectors, workdir)
        memory.write_corpora(vectors, config)
        size = find_corpus_size(config, "generalist", build_graph(config).step("prepare", "generalist"))
        assert size
        cores = os.cpu_count() or 1
        inputs = StageInputs(config, size, Machines(cores, cores), vectors.dim)
        for stage, corpus in (("cluster", ""), ("assign", "generalist")):
            usage = memory.measure(vectors, stage, corpus, workdir)
            shape = describe_stage(stage, inputs)
            cost = estimate_stage(stage, inputs) if stage in read_rates()["stages"] else None
            assert shape
            yield MeasuredStep(
                stage=stage,
                corpus="generalist",
                shape=shape,
                size=size,
                wall_s=usage["seconds"],
                core_s=usage["busy_s"],
                driver_only_s=max(0.0, usage["seconds"] - usage["mapping_s"]),
                driver_s=usage["driver_s"],
                stored_mb=count_stored_bytes(build_graph(config).step(stage, corpus).folder.path) / 1e6,
                estimated_s=cost.wall_s if cost else 0.0,
            )


def print_comparison(title: str, estimated: float, measured: float) -> None:
    print(f"{title:<58}{estimated:>10.1f}{measured:>10.1f}{estimated / max(measured, 1e-9):>7.2f}", flush=True)


if __name__ == "__main__":
    main()
