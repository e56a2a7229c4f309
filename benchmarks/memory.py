"""Peak memory of a worker in cluster, assign and sample, for corpora of growing size: it should not grow with them.

Windows and vectors are synthetic, written as parts like those of prepare and embed. Each step runs in a separate process with its
own Ray, so that the peak of an earlier step cannot hide a later one. `private` is the sampled anonymous memory of a worker.
`resident` is the kernel's high-water mark (VmHWM). It is sampled too, because tasks reset it when they begin. It includes the pages
of Ray's object store, which exist once per node and are mapped by all its workers. A shuffle fills the store until it spills, so by
default the store is so small that even the smallest corpus fills it. With Ray's default, a third of the machine's memory, a corpus
that fits into the store would appear to need little memory.

    python benchmarks/memory.py --rows 100000 1000000
    python benchmarks/memory.py --rows 100000 1000000 5000000 --branching 16 --fit-windows 6000 --folder /somewhere/with/30GB
    python benchmarks/memory.py --rows 5000000 --depth 3 --min-windows 4 --text-bytes 64      # up to 262,144 leaves
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from corpus import own_ray

from pipeline.config import Config, parse_config
from pipeline.config import Engine as EngineSettings
from pipeline.engine import Engine
from pipeline.execution.step import Step
from pipeline.graph.build import build_graph
from pipeline.hashing import keyed_hash
from pipeline.sources.parts import count_part, sum_part_counts
from pipeline.tables import WINDOWS, cast, embeddings_schema

MEASURED = ("cluster", "assign", "sample")
_STEPS = (("cluster", ""), ("assign", "generalist"), ("assign", "few"), ("weights", ""), ("sample", ""))
_TOKENS = 500  # per window; they are only counted
_TOPICS = 512
_SPECIALIST_ROWS = 2000
_SAMPLE_EVERY_S = 0.05


@dataclass(frozen=True)
class Vectors:
    """Synthetic windows with their vectors, and the tree that is fitted to them."""

    rows: int
    dim: int = 64
    branching: int = 64
    depth: int = 2
    min_windows: int = 32
    fit_windows: int = 32_768
    part_rows: int = 8192
    text_bytes: int = 2048


_SETTINGS = tuple(field.name for field in fields(Vectors) if field.name != "rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=Vectors.dim)
    parser.add_argument("--branching", type=int, default=Vectors.branching)
    parser.add_argument("--depth", type=int, default=Vectors.depth)
    parser.add_argument("--min-windows", type=int, default=Vectors.min_windows, help="cluster.min_windows")
    parser.add_argument(
        "--fit-windows",
        type=int,
        default=Vectors.fit_windows,
        help="cluster.fit_windows; must not exceed the windows per node of the smallest corpus, which would be the limit instead",
    )
    parser.add_argument("--part-rows", type=int, default=Vectors.part_rows)
    parser.add_argument(
        "--text-bytes",
        type=int,
        default=Vectors.text_bytes,
        help="bytes of text per window; enough for the smallest corpus to fill a mapper",
    )
    parser.add_argument("--store-bytes", type=int, default=100_000_000, help="size of Ray's object store; 0: Ray's default")
    parser.add_argument(
        "--folder", help="folder in which the corpora are written and deleted; default: the system's for temporary files"
    )
    parser.add_argument("--step", help=argparse.SUPPRESS)  # for child processes: the step to run on the corpus in --folder
    args = parser.parse_args()
    of_all = {name: getattr(args, name) for name in _SETTINGS}
    if args.step:
        stage, corpus = args.step.split("/")
        print(json.dumps(run_step(Vectors(rows=args.rows[0], **of_all), stage, corpus, args.folder, args.store_bytes)))
        return

    shape = " x ".join([str(args.branching)] * args.depth)
    print(f"D = {args.dim}, {shape} tree, {args.text_bytes} bytes per window, peak memory in MB")
    columns = f"{'private':>9}{'/ smallest':>12}{'resident':>10}{'/ smallest':>12}{'driver':>9}{'seconds':>9}"
    head = f"{'step':<10}{'windows':>10}{columns}  target"
    print(head, flush=True)
    smallest: dict[tuple[str, str], float] = {}
    for num_rows in sorted(args.rows):
        vectors = Vectors(rows=num_rows, **of_all)
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            write_corpora(vectors, settings(vectors, folder))
            for stage, corpus in _STEPS:
                found = measure(vectors, stage, corpus, folder, store_bytes=args.store_bytes)
                if stage in MEASURED and corpus != "few":
                    columns = ""
                    for what, width in (("private", 9), ("resident", 10)):
                        growth = found[what] / smallest.setdefault((stage, what), found[what])
                        columns += f"{found[what]:>{width}.0f}{growth:>12.2f}"
                    columns += f"{found['driver']:>9.0f}{found['seconds']:>9.1f}"
                    leaves = f", {found['leaves']:,} leaves" if stage == "cluster" else ""
                    print(f"{stage:<10}{num_rows:>10}{columns}  <= 1.15{leaves}", flush=True)


def measure(vectors: Vectors, stage: str, corpus: str, folder: str, *, store_bytes: int = 0) -> dict[str, float]:
    """Run one step in a separate process and return its measurements."""
    flags = {**asdict(vectors), "store_bytes": store_bytes}
    options = [text for name, value in flags.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, __file__, "--step", f"{stage}/{corpus}", "--folder", folder, *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run_step(vectors: Vectors, stage: str, corpus: str, folder: str, store_bytes: int) -> dict[str, float]:
    """Run one step in this process and return its peaks in MB."""
    config = settings(vectors, folder)
    if stage in ("weights", "sample"):
        tokens = build_graph(config).step("prepare", "generalist").manifest["tokens"]
        config = settings(vectors, folder, budget_tokens=tokens)
    step = build_graph(config).step(stage, corpus)
    with own_ray(store_bytes=store_bytes or None), Engine(config.engine) as engine, sampled_workers() as peak:
        engine.start()
        started = time.monotonic()
        step.run(engine)
        seconds = time.monotonic() - started
        usage = {name: getattr(engine.usage, name) for name in ("busy_s", "mapping_s", "driver_s")}
    driver = high_water(os.getpid())["VmHWM"]
    found = {"private": peak["RssAnon"] / 1e6, "resident": peak["VmHWM"] / 1e6, "driver": driver / 1e6, "seconds": seconds, **usage}
    return found | ({"leaves": step.manifest["leaves"]} if stage == "cluster" else {})


@contextmanager
def sampled_workers() -> Iterator[dict[str, int]]:
    """Yield the largest sampled values, in bytes, over all workers of this process's Ray; updated until the context ends."""
    peak = {"VmHWM": 0, "RssAnon": 0}
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(_SAMPLE_EVERY_S):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error, OSError, KeyError):  # the process may have ended
                    if process.name().startswith("ray::"):
                        for name, value in high_water(process.pid).items():
                            peak[name] = max(peak[name], value)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def high_water(pid: int) -> dict[str, int]:
    with open(f"/proc/{pid}/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    return {name: int(lines[name].split()[0]) * 1024 for name in ("VmHWM", "RssAnon")}


def settings(vectors: Vectors, folder: str, *, budget_tokens: int = 1) -> Config:
    # These files are hashed but never read. They differ because equal bytes would be the same corpus.
    source = {corpus: os.path.join(folder, f"{corpus}.jsonl") for corpus in ("generalist", "few")}
    for corpus, path in source.items():
        if not os.path.exists(path):
            with open(path, "w") as file:
                file.write(f'"{corpus}"\n')
    return parse_config(
        {
            "workdir": os.path.join(folder, "run"),
            "generalist": {"paths": [source["generalist"]]},
            "specialists": {"few": {"paths": [source["few"]]}},
            "embed": {"model": "lsi", "dim": vectors.dim},
            "cluster": {
                "branching": vectors.branching,
                "depth": vectors.depth,
                "min_windows": vectors.min_windows,
                "fit_windows": vectors.fit_windows,
            },
            "weights": {"estimator": "natural", "bootstrap": 0},
            # Small enough for the smallest corpus to fill shards too. Otherwise memory bounded by a shard would seem to grow.
            "sample": {"budget_tokens": budget_tokens, "shard_bytes": 16 << 20},
        }
    )


def write_corpora(vectors: Vectors, config: Config) -> None:
    """Write the output that prepare and embed would have written for both corpora."""
    run = build_graph(config)
    rng = np.random.default_rng(0)
    topic_TD = rng.standard_normal((_TOPICS, vectors.dim), dtype=np.float32)
    # Random letters of a small alphabet: zstd compresses them by about half, like text.
    letters = rng.choice(np.frombuffer(b"etaoinshrdlu    ", np.uint8), vectors.part_rows * vectors.text_bytes + 4096)
    for corpus, rows in (("generalist", vectors.rows), ("few", _SPECIALIST_ROWS)):
        prepared, embedded = run.step("prepare", corpus), run.step("embed", corpus)
        parts = []
        for number, first in enumerate(range(0, rows, vectors.part_rows)):
            name, num = f"part-00000-{number:05d}", min(vectors.part_rows, rows - first)
            key_N = keyed_hash(np.arange(first, first + num, dtype=np.uint64), seed=0, purpose=corpus)
            windows = {
                "key": key_N,
                "doc_id": [f"{corpus}-{row}" for row in range(first, first + num)],
                "window": np.zeros(num, np.int32),
                "text": texts(letters[number % 4096 :], num, vectors.text_bytes),
                "tokens": np.full(num, _TOKENS, np.int32),
                "near_copies": np.ones(num, np.int32),
                "source": ["synthetic"] * num,
                "metadata": ["{}"] * num,
            }
            table = cast(pa.table(windows), WINDOWS)
            facts = count_part(table)
            prepared.folder.write_table(f"{name}.parquet", table, WINDOWS, facts)
            x_ND = topic_TD[rng.integers(_TOPICS, size=num)] + rng.standard_normal((num, vectors.dim), dtype=np.float32)
            x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
            vector = pa.FixedSizeListArray.from_arrays(pa.array(x_ND.astype(np.float16).ravel()), vectors.dim)
            table = pa.table({"key": key_N, "valid": np.ones(num, bool), "vector": vector})
            options: dict[str, Any] = {"compression": "none", "use_dictionary": ["key"]}
            embedded.folder.write_table(f"{name}.parquet", table, embeddings_schema(vectors.dim), facts, **options)
            parts.append({"name": name, **facts})
        finish(prepared, {"documents": rows, **sum_part_counts(parts)})
        finish(embedded, {"windows": rows, "invalid": 0, "dim": vectors.dim, "hardware": [], "parts": parts})


def texts(letters: np.ndarray, num: int, num_bytes: int) -> pa.Array:
    offset = np.arange(num + 1, dtype=np.int32) * num_bytes
    return pa.StringArray.from_buffers(num, pa.py_buffer(offset), pa.py_buffer(np.ascontiguousarray(letters[: num * num_bytes])))


def finish(step: Step, body: dict[str, Any]) -> None:
    """Write the manifest of a step whose parts exist."""
    replace(step, work=lambda _engine, _folder: body).run(Engine(EngineSettings()))


if __name__ == "__main__":
    main()
