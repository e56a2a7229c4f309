"""The dataset card of an exported corpus, generated from the manifest of its shards."""

from collections.abc import Mapping
from typing import Any

import yaml

_MAX_SOURCES = 30


def render_card(manifest: Mapping[str, Any]) -> str:
    """Render the content of a README.md with the YAML header that the Hugging Face hub reads."""
    rows, tokens = manifest["rows"], manifest["tokens"]
    head = {
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
        "task_categories": ["text-generation"],
        "size_categories": [_size(rows)],
        "tags": ["crispwrap", "pretraining"],
    }
    largest = sorted(manifest["tokens_by_source"].items(), key=lambda item: (-item[1][1], item[0]))
    sources = [f"| {source} | {before:,} | {after:,} |" for source, (before, after) in largest[:_MAX_SOURCES]]
    if len(largest) > _MAX_SOURCES:
        before, after = (sum(counts[i] for _, counts in largest[_MAX_SOURCES:]) for i in (0, 1))
        sources.append(f"| {len(largest) - _MAX_SOURCES} others | {before:,} | {after:,} |")
    return f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---

# A specialist pretraining corpus

Made by crispwrap {manifest["versions"]["crispwrap"]} from a generalist corpus and a sample of each specialist: text is sampled
by its similarity to the specialist samples, with a limit on repeats.

| | |
|---|---|
| rows | {rows:,} |
| tokens, by the embedder's tokenizer | {tokens:,} of {manifest["budget_tokens"]:,} requested |
| distinct windows | {manifest["windows"]:,}: each occurs in {rows / max(1, manifest["windows"]):.2f} rows on average |
| tokens of rewrites | {manifest["tokens_by_origin"].get("rephrased", 0):,} |
| seed | {manifest["seed"]} |
| fingerprint | `{manifest["fingerprint"]}` |

Tokens sampled for each specialist (`natural`: as in the generalist corpus): {_format_tokens(manifest["tokens_by_specialist"])}.

| source | tokens in the generalist corpus | tokens in this corpus |
|---|---|---|
{chr(10).join(sources)}

Columns: `id`, `text`, `doc_id` and `window` (the document that the text is from, and its window there), `source`, `specialist` (the
one that the row was sampled for), `cluster`, `copy` (0 for the first), `tokens`, `origin` (`raw` or `rephrased`), `parent` and
`style` of a rewrite, `near_copies`, `prefix` (the beginning of the text, if it states where the text is from), `metadata` (JSON).
{_describe_order(manifest)}

The licences of the sources apply; crispwrap does not record them.
"""


def _describe_order(manifest: Mapping[str, Any]) -> str:
    """The sentences that describe the order of the files."""
    phases = manifest.get("phases") or []
    phrases = [
        f"the next {phase['shards']}" if number else f"The first {phase['shards']} files" for number, phase in enumerate(phases)
    ]
    if phases:
        order = f"{', and '.join(phrases)}, are random slices of corpora sampled with different weights: read them in order."
    elif manifest.get("prefixed_rows"):
        order = "The files are random slices of the corpus; read them in order, because the last ones have no prefixes."
    else:
        order = "The files are uniform random slices of the corpus, in random order."
    if manifest.get("prefixed_rows"):
        order += f" {manifest['prefixed_rows']:,} rows begin with their `prefix`: exclude its tokens from the loss."
    return order


def _size(rows: int) -> str:
    bounds = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M")]
    bounds += [(10**8, "10M<n<100M"), (10**9, "100M<n<1B")]
    return next((name for bound, name in bounds if rows < bound), "n>1B")


def _format_tokens(tokens: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in tokens.items())
