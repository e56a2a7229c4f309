"""The sample stage against pyarrow reading its shards and writing them again, with the same options and all cores.

The generalist corpus is sampled as a whole: each window about once, with `weights.estimator: natural` and a budget of all its
tokens. The embedder is LSI, the cheapest. `--keep FOLDER` keeps the outputs of the earlier stages for the next time.

    python benchmarks/sample.py --repeats 3
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow.parquet as pq
from corpus import SPECIALIST, corpus_file, own_ray, print_head, print_row, timed

from pipeline.config import Config, parse_config
from pipeline.engine import Engine
from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.graph.build import build_graph
from pipeline.stages.shards import WRITE_OPTIONS


class TimedEngine(Engine):
    """Records the seconds of each map and shuffle by title."""

    def __init__(self, config: Config) -> None:
        super().__init__(config.engine)
        self.seconds: dict[str, float] = {}

    def map(self, *args: Any, title: str, **options: Any) -> Iterator[tuple[int, Any]]:
        yield from self._timed(title, super().map(*args, title=title, **options))

    def shuffle(self, *args: Any, title: str, **options: Any) -> Iterator[tuple[int, Any]]:
        yield from self._timed(title, super().shuffle(*args, title=title, **options))

    def _timed(self, title: str, results: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        started = time.perf_counter()
        yield from results
        self.seconds[title] = time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, help="number of documents of the generalist corpus; default: all")
    parser.add_argument("--tokens", type=int, default=1024, help="maximum number of tokens per window")
    parser.add_argument("--shard-mb", type=int, default=16, help="MB of text per shard; with few shards, cores would be idle")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", help="a workdir to use and keep")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary, own_ray():
        workdir = args.keep or temporary
        config = settings(args, workdir, budget_tokens=1)
        with Engine(config.engine) as engine:
            prepared = build_graph(config).step("prepare", "generalist")
            if not prepared.done:
                prepared.run(engine)
            config = settings(args, workdir, budget_tokens=prepared.manifest["tokens"])
            for step in build_graph(config).steps[:-1]:
                if not step.done:
                    step.run(engine)
        stage_s, rival_s, parts_s = [], [], []
        for _ in range(args.repeats):
            run = build_graph(config)
            with TimedEngine(config) as engine:
                stage_s.append(timed(sample_again, run, engine)[0])
                parts_s.append(engine.seconds)
            files = shard_files(run)
            rival_s.append(timed(rewrite, files, f"{workdir}/rewritten")[0])
        text_mb = drawn_text_bytes(files) / 1e6

    ours, rival = statistics.median(stage_s), statistics.median(rival_s)
    print_head(f"{text_mb:.0f} MB of text in {len(files)} shards, windows of {args.tokens} tokens, median of {args.repeats}")
    print_row("sample stage, MB/s of text", text_mb / ours, text_mb / rival, ">= 0.4")
    for title in parts_s[0]:
        seconds = statistics.median(part[title] for part in parts_s)
        print_row(f"  of which {title}, MB/s", text_mb / seconds, text_mb / rival)


def settings(args: argparse.Namespace, workdir: str, *, budget_tokens: int) -> Config:
    return parse_config(
        {
            "workdir": workdir,
            "generalist": {"paths": [corpus_file()], "limit": args.documents},
            "specialists": {"recipes": {"paths": [corpus_file(SPECIALIST)]}},
            "window": {"tokens": args.tokens},
            "embed": {"model": "lsi", "dim": 16},
            "cluster": {"branching": 16, "depth": 2},
            "weights": {"estimator": "natural"},
            "sample": {"budget_tokens": budget_tokens, "shard_bytes": args.shard_mb << 20},
        }
    )


def sample_again(run: PipelineGraph, engine: Engine) -> None:
    step = run.step("sample")
    shutil.rmtree(step.folder.path, ignore_errors=True)
    step.run(engine)


def shard_files(run: PipelineGraph) -> list[str]:
    step = run.step("sample")
    return [step.folder.file(shard["name"]) for shard in step.manifest["shards"]]


def rewrite(files: list[str], folder: str) -> None:
    """Read each file and write it again with the options of shards, one file per core."""
    os.makedirs(folder, exist_ok=True)

    def rewrite_one(path: str) -> None:
        table = pq.ParquetFile(path).read(use_threads=False)
        pq.write_table(table, f"{folder}/{os.path.basename(path)}", compression="zstd", **WRITE_OPTIONS)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(rewrite_one, files))
    shutil.rmtree(folder)


def drawn_text_bytes(files: list[str]) -> int:
    return sum(len(text.as_buffer()) for path in files for text in pq.read_table(path, columns=["text"])["text"])


if __name__ == "__main__":
    main()
