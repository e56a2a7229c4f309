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
from pipeline.engine.llm_io import Request
from pipeline.rewriting import prompts
from pipeline.rewriting.passages import cut_passages
from pipeline.rewriting.selection import StyleVariant, select_new_rows
from pipeline.rewriting.styles import Style
from pipeline.storage import Folder
from pipeline.tables import REQUESTS, cast
from pipeline.text.windows import WindowCutter


@dataclass(frozen=True)
class RewriteInputs:
    """The inputs shared by all workers that build requests or judge answers."""

    styles: Mapping[str, Style]
    style_variants: Sequence[StyleVariant]
    generator: str  # fingerprint of the model and its settings
    passage_tokens: int
    num_examples: int
    cutter: WindowCutter
    excerpts: Mapping[str, Sequence[str]]  # of each specialist sample, by specialist
    specialist_L: Sequence[str]  # for each cluster, the specialist with the largest claim on it
    seed: int


def choose_windows(
    key_N: NDArray[np.uint64], leaf_N: I32, before_L: F64, after_L: F64, inputs: RewriteInputs
) -> dict[int, list[StyleVariant]]:
    """Return the style variants newly requested as rates rise from `before_L` to `after_L`, by row of the part, ascending."""
    chosen: dict[int, list[StyleVariant]] = {}
    new_rows = select_new_rows(key_N, leaf_N, before_L, after_L, inputs.style_variants, seed=inputs.seed)
    for style_variant, rows in zip(inputs.style_variants, new_rows, strict=True):
        for row in rows:
            chosen.setdefault(int(row), []).append(style_variant)
    return dict(sorted(chosen.items()))


def build_requests(windows: pa.Table, leaf_N: I32, chosen: Mapping[int, Sequence[StyleVariant]], inputs: RewriteInputs) -> pa.Table:
    """Return a REQUESTS row for each passage of each chosen window in each of its style variants.

    Passages too short for the style are left out.
    """
    rows: list[dict[str, Any]] = []
    for window, (row, style_variants) in zip(
        windows.take(pa.array(list(chosen), pa.int64())).to_pylist(), chosen.items(), strict=True
    ):
        passages = cut_passages(window["text"], inputs.passage_tokens, inputs.cutter.count)
        for style_variant in style_variants:
            style = inputs.styles[style_variant.style]
            for number, passage in enumerate(passages):
                text = passage.text.strip()
                if not text or passage.tokens < style.min_tokens:
                    continue
                examples = _choose_examples(style, int(leaf_N[row]), window["key"], inputs)
                rows.append(
                    {
                        "key": prompts.compute_answer_key(
                            inputs.generator, style, text, examples, window["key"], number, style_variant.variant
                        ),
                        "window_key": window["key"],
                        "doc_id": window["doc_id"],
                        "window": window["window"],
                        "leaf": int(leaf_N[row]),
                        "style": style_variant.style,
                        "variant": style_variant.variant,
                        "passage": number,
                        "source_tokens": passage.tokens,
                        "prompt_hash": prompts.hash_prompt(style),
                        "text": text,
                        "examples": examples,
                        "source": window["source"],
                        "metadata": window["metadata"],
                    }
                )
    return cast(pa.Table.from_pylist(rows, schema=REQUESTS), REQUESTS)


def _choose_examples(style: Style, leaf: int, key: int, inputs: RewriteInputs) -> list[str]:
    if not prompts.needs_examples(style):
        return []
    return prompts.choose_examples(inputs.excerpts[inputs.specialist_L[leaf]], inputs.num_examples, seed=inputs.seed, key=key)


def build_prompts(requests: Folder, group: str, rows: I64, styles: Mapping[str, Style]) -> list[Request]:
    """Return the prompts for the given rows of a group of requests."""
    table = requests.read_table(f"{group}.parquet", columns=["key", "style", "text", "examples", "source_tokens"])
    return [
        Request(
            key=row["key"],
            messages=prompts.build_messages(styles[row["style"]], row["text"], row["examples"]),
            max_tokens=prompts.compute_token_limit(styles[row["style"]], row["source_tokens"]),
        )
        for row in table.take(pa.array(rows)).to_pylist()
    ]
