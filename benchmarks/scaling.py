"""The speedup of two workers over one: the embed stage (MiniLM, real text) and the assign stage (synthetic vectors).

Efficiency is t(1) / (2 t(2)). The two cores of a machine share its memory, and often its arithmetic units. So the baseline is the
efficiency of the machine itself, measured in the same run: matrix products in one process, and the same products in two processes.

    python benchmarks/scaling.py --documents 250 --rows 2000000
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
from corpus import timed
from memory import Vectors, write_corpora
from memory import settings as synthetic_settings
from stage_embed import settings as embed_settings
from threadpoolctl import threadpool_limits

from pipeline.config import Config
from pipeline.config import Engine as EngineSettings
from pipeline.engine import Engine
from pipeline.execution.step import Step
from pipeline.graph.build import build_graph

_PRODUCTS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=250)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(f"median of {args.repeats}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"{'what':<44}{'one, s':>9}{'two, s':>9}{'efficiency':>12}{'machine':>9}{'ratio':>7}  target")
    with multiprocessing.get_context("spawn").Pool(2) as pool, tempfile.TemporaryDirectory() as workdir:
        pool.map(_multiply, [1, 1])
        bare = (
            lambda: pool.map(_multiply, [_PRODUCTS], chunksize=1),
            lambda: pool.map(_multiply, [_PRODUCTS // 2] * 2, chunksize=1),
        )
        text = argparse.Namespace(model="bundled:all-MiniLM-L6-v2", documents=args.documents, tokens=256, parts=16)
        config = embed_settings(text, f"{workdir}/text")
        with Engine(config.engine) as engine:
            build_graph(config).step("prepare", "generalist").run(engine)
        report(
            f"embed, {build_graph(config).step('prepare', 'generalist').manifest['windows']:,} windows", config, "embed", bare, args
        )

        vectors = Vectors(args.rows, dim=args.dim, text_bytes=16)
        os.mkdir(f"{workdir}/vectors")
        config = synthetic_settings(vectors, f"{workdir}/vectors")
        write_corpora(vectors, config)
        with Engine(config.engine) as engine:
            build_graph(config).step("cluster").run(engine)
        report(f"assign, {args.rows:,} vectors of {args.dim}", config, "assign", bare, args)


def report(what: str, config: Config, stage: str, bare: tuple[Callable[[], Any], ...], args: argparse.Namespace) -> None:
    step = build_graph(config).step(stage, "generalist")
    seconds: list[list[float]] = [[], [], [], []]
    for _ in range(args.repeats):
        for workers in (1, 2):
            seconds[workers - 1].append(stage_s(step, workers))
        for work, taken in zip(bare, seconds[2:], strict=True):
            taken.append(timed(work)[0])
    one_s, two_s, bare_one_s, bare_two_s = (statistics.median(taken) for taken in seconds)
    efficiency, machine = one_s / (2 * two_s), bare_one_s / (2 * bare_two_s)
    ratios = f"{efficiency:>12.2f}{machine:>9.2f}{efficiency / machine:>7.2f}"
    print(f"{what:<44}{one_s:>9.2f}{two_s:>9.2f}{ratios}  >= 0.85", flush=True)


def stage_s(step: Step, workers: int) -> float:
    """Return the seconds of the stage with a number of workers: of the second run, when the workers have loaded their models."""
    with Engine(EngineSettings(address="local", workers=workers)) as engine:
        for _ in range(2):
            shutil.rmtree(step.folder.path, ignore_errors=True)
            seconds, _ = timed(step.run, engine)
    return seconds


def _multiply(times: int) -> None:
    a = np.ones((1024, 1024), np.float32)
    with threadpool_limits(1):
        for _ in range(times):
            a @ a


if __name__ == "__main__":
    main()
