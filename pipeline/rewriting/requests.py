"""Turn chosen windows into requests: passages, prompts and the key of each answer.

Shapes: N windows of a part, L clusters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrays import F64, I32, I64
from pipeline.engine.exchange import Request
from pipeline.rewriting import prompts
from pipeline.rewriting.choosing import Way, pairs
from pipeline.rewriting.passages import cut_passages
from pipeline.rewriting.styles import Style
from pipeline.storage import Folder
from pipeline.tables import REQUESTS, cast
from pipeline.text.windows import WindowCutter


@dataclass(frozen=True)
class Task:
    """The inputs shared by all workers that build requests or judge answers."""

    styles: Mapping[str, Style]
    ways: Sequence[Way]
    generator: str
    passage_tokens: int
    num_examples: int
    cutter: WindowCutter
    samples: Mapping[str, Sequence[str]]  # excerpts of each specialist sample
    steer_L: Sequence[str]  # for each cluster, the specialist with the largest claim on it
    seed: int


def choose(key_N: NDArray[np.uint64], leaf_N: I32, before_L: F64, after_L: F64, task: Task) -> dict[int, list[Way]]:
    """Return the ways newly requested as rates rise from `before_L` to `after_L`, by row of the part, in ascending order."""
    chosen: dict[int, list[Way]] = {}
    for way, rows in zip(task.ways, pairs(key_N, leaf_N, before_L, after_L, list(task.ways), seed=task.seed), strict=True):
        for row in rows:
            chosen.setdefault(int(row), []).append(way)
    return dict(sorted(chosen.items()))


def requests_table(windows: pa.Table, leaf_N: I32, chosen: Mapping[int, Sequence[Way]], task: Task) -> pa.Table:
    """Return a REQUESTS row for each passage of each chosen window in each of its ways, except passages too short for the style."""
    rows: list[dict[str, Any]] = []
    for window, (row, used) in zip(windows.take(pa.array(list(chosen), pa.int64())).to_pylist(), chosen.items(), strict=True):
        passages = cut_passages(window["text"], task.passage_tokens, task.cutter.count)
        for way in used:
            style = task.styles[way.style]
            for number, passage in enumerate(passages):
                text = passage.text.strip()
                if not text or passage.tokens < style.min_tokens:
                    continue
                examples = _examples(style, int(leaf_N[row]), window["key"], task)
                rows.append(
                    {
                        "key": prompts.answer_key(task.generator, style, text, examples, window["key"], number, way.variant),
                        "window_key": window["key"],
                        "doc_id": window["doc_id"],
                        "window": window["window"],
                        "leaf": int(leaf_N[row]),
                        "style": way.style,
                        "variant": way.variant,
                        "passage": number,
                        "source_tokens": passage.tokens,
                        "prompt_hash": prompts.prompt_hash(style),
                        "text": text,
                        "examples": examples,
                        "source": window["source"],
                        "metadata": window["metadata"],
                    }
                )
    return cast(pa.Table.from_pylist(rows, schema=REQUESTS), REQUESTS)


def _examples(style: Style, leaf: int, key: int, task: Task) -> list[str]:
    if not prompts.needs_examples(style):
        return []
    return prompts.draw_examples(task.samples[task.steer_L[leaf]], task.num_examples, seed=task.seed, key=key)


def read_requests(requests: Folder, group: str, rows: I64, styles: Mapping[str, Style]) -> list[Request]:
    """Read the given rows of a group of requests as prompts for the model."""
    table = requests.read_table(f"{group}.parquet", columns=["key", "style", "text", "examples", "source_tokens"])
    return [
        Request(
            key=row["key"],
            messages=prompts.messages(styles[row["style"]], row["text"], row["examples"]),
            max_tokens=prompts.max_tokens(styles[row["style"]], row["source_tokens"]),
        )
        for row in table.take(pa.array(rows)).to_pylist()
    ]
