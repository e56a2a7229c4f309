"""What the benchmarks share: the real text, a separate Ray instance, interleaved timing, and the printed table.

The text is in the folder CRISPWRAP_CORPORA (default ../shared/corpora). Without it, a benchmark prints an error and stops.
"""

import io
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import orjson
import zstandard

if TYPE_CHECKING:
    from pipeline.execution.pipeline_graph import PipelineGraph

GENERALIST = "generalist.jsonl.zst"
LABELS = "generalist.labels.jsonl.zst"
SPECIALIST = "specialists/recipes/sample.jsonl.zst"
HELD_OUT = "specialists/recipes/test.jsonl.zst"


def corpus_file(name: str = GENERALIST) -> str:
    """Return the absolute path of a file of the corpora; exit if the file does not exist."""
    folder = os.environ.get("CRISPWRAP_CORPORA", "../shared/corpora")
    path = os.path.abspath(os.path.join(folder, name))
    if not os.path.isfile(path):
        sys.exit(f"{path} does not exist; set CRISPWRAP_CORPORA to the folder that contains {name}. Nothing was measured")
    return path


def read_texts(name: str = GENERALIST) -> Iterator[str]:
    """Return the texts of the documents, in order."""
    return (row["text"] for row in read_rows(name))


def read_rows(name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file, in order."""
    with open(corpus_file(name), "rb") as raw:
        for line in io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)):
            yield orjson.loads(line)


def read_windows(tokenizer_file: str, num_windows: int, tokens: int) -> list[str]:
    """Return the first windows of the generalist corpus, cut as in `prepare`."""
    from pipeline.text.windows import WindowCutter

    cutter = WindowCutter(tokenizer_file, tokens)
    windows = (window for text in read_texts() for window, _ in cutter.cut([text])[0])
    return list(itertools.islice(windows, num_windows))


def interleaved(repeats: int, *works: Callable[[], Any]) -> list[float]:
    """Return the median seconds of each function. They run in turn, so that another process on the machine slows all of them."""
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for work, taken in zip(works, seconds, strict=True):
            taken.append(timed(work)[0])
    return [statistics.median(taken) for taken in seconds]


def timed(function: Callable[..., Any], *args: Any, **options: Any) -> tuple[float, Any]:
    """Return the seconds that the function took, and its result."""
    started = time.perf_counter()
    result = function(*args, **options)
    return time.perf_counter() - started, result


@contextmanager
def own_ray(*, store_bytes: int | None = None) -> Iterator[None]:
    """Start Ray with this machine's cores, for `Engine` to use: results must not depend on a cluster that happens to be running."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init(address="local", num_cpus=os.cpu_count(), object_store_memory=store_bytes, **options)
    try:
        yield
    finally:
        ray.shutdown()


def stage_seconds(run: "PipelineGraph", stage: str) -> float:
    return float(sum(step.folder.read_json("usage.json")["seconds"] for step in run.steps if step.stage == stage))


def print_head(title: str) -> None:
    print(f"{title}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"{'what':<52}{'ours':>11}{'baseline':>11}{'ratio':>8}  target")


def print_row(what: str, ours: float, rival: float, target: str = "") -> None:
    print(f"{what:<52}{ours:>11.5g}{rival:>11.5g}{ours / rival:>8.3g}  {target}".rstrip(), flush=True)
