"""The dataset card of an exported corpus, generated from the manifest of its shards."""

from collections.abc import Mapping
from typing import Any

import yaml

_MOST_SOURCES = 30


def card(manifest: Mapping[str, Any]) -> str:
    """The content of a README.md with the YAML header that the Hugging Face hub reads."""
    rows, tokens = manifest["rows"], manifest["tokens"]
    head = {
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
        "task_categories": ["text-generation"],
        "size_categories": [_size(rows)],
        "tags": ["crispwrap", "pretraining"],
    }
    largest = sorted(manifest["tokens_by_source"].items(), key=lambda item: (-item[1][1], item[0]))
    sources = [f"| {source} | {before:,} | {after:,} |" for source, (before, after) in largest[:_MOST_SOURCES]]
    if len(largest) > _MOST_SOURCES:
        before, after = (sum(counts[i] for _, counts in largest[_MOST_SOURCES:]) for i in (0, 1))
        sources.append(f"| {len(largest) - _MOST_SOURCES} others | {before:,} | {after:,} |")
    return f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---

# A specialist pretraining corpus

Made by crispwrap {manifest["versions"]["crispwrap"]} from a generalist corpus and a sample of each specialist: text is drawn
by how much it is like the samples, with a cap on repeats.

| | |
|---|---|
| rows | {rows:,} |
| tokens, by the embedder's tokenizer | {tokens:,} of {manifest["budget_tokens"]:,} asked for |
| distinct windows | {manifest["windows"]:,}: a row is repeated {rows / max(1, manifest["windows"]):.2f} times on the mean |
| tokens of rewrites | {manifest["tokens_by_origin"].get("rephrased", 0):,} |
| seed | {manifest["seed"]} |
| fingerprint | `{manifest["fingerprint"]}` |

Tokens drawn for each specialist (`natural`: as the generalist corpus is): {_listed(manifest["tokens_by_specialist"])}.

| source | tokens in the generalist corpus | tokens here |
|---|---|---|
{chr(10).join(sources)}

Columns: `id`, `text`, `doc_id` and `window` (the document that it is from, and where), `source`, `specialist` (whom it was drawn
for), `cluster`, `copy` (0 for the first), `tokens`, `origin` (`raw` or `rephrased`), `parent` and `style` of a rewrite,
`near_copies`, `prefix` (what the text begins with that says where it is from), `metadata` (JSON). {_order(manifest)}

The licences of the sources apply; crispwrap knows nothing of them.
"""


def _order(manifest: Mapping[str, Any]) -> str:
    """The sentence that describes the order of the files."""
    phases = manifest.get("phases") or []
    said = [
        f"the next {phase['shards']}" if number else f"The first {phase['shards']} files" for number, phase in enumerate(phases)
    ]
    if phases:
        order = f"{', and '.join(said)}, are random slices of corpora drawn by different weightings: read them in order."
    elif manifest.get("prefixed_rows"):
        order = "The files are random slices of the whole; read them in order, for the last are plain."
    else:
        order = "The files are uniform random slices of the whole, in random order."
    if manifest.get("prefixed_rows"):
        order += f" {manifest['prefixed_rows']:,} rows begin with their `prefix`: leave its tokens out of the loss."
    return order


def _size(rows: int) -> str:
    bounds = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M")]
    bounds += [(10**8, "10M<n<100M"), (10**9, "100M<n<1B")]
    return next((name for bound, name in bounds if rows < bound), "n>1B")


def _listed(tokens: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in tokens.items())
