"""Concatenate the shards of several sample steps into one corpus, whose last shards are sampled with other weights."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.engine import Engine
from pipeline.execution.step import Step
from pipeline.stages.shards import sum_counts
from pipeline.storage import Folder

_SUMMED_FACTS = ("budget_tokens", "rows", "tokens", "first_tokens", "prefixed_rows", "deficit_tokens", "rewritten_tokens")
_SUMMED_COUNTS = ("tokens_by_specialist", "tokens_by_origin", "tokens_by_style")


def schedule_step(parts: Sequence[Step]) -> Step:
    """Build the step that links the shards of several sample steps into one folder; their shard numbers are already consecutive."""

    def work(_: Engine, folder: Folder) -> dict[str, Any]:
        manifests = [part.manifest for part in parts]
        for part, manifest in zip(parts, manifests, strict=True):
            for shard in manifest["shards"]:
                if not folder.exists(shard["name"]):
                    part.folder.link(shard["name"], folder)
        first, *later = manifests
        return {
            **{name: first[name] for name in ("seed", "hardware", "versions")},
            **{name: sum(manifest[name] for manifest in manifests) for name in _SUMMED_FACTS},
            **{name: sum_counts([manifest[name] for manifest in manifests]) for name in _SUMMED_COUNTS},
            "windows": first["windows"] + sum(manifest["first_rows"] for manifest in later),
            "tokens_by_source": _sum_sources([manifest["tokens_by_source"] for manifest in manifests]),
            "phases": [
                {"budget_tokens": manifest["budget_tokens"], "tokens": manifest["tokens"], "shards": len(manifest["shards"])}
                for manifest in manifests
            ],
            "segments": [num_shards for manifest in manifests for num_shards in manifest["segments"]],
            "shards": [shard for manifest in manifests for shard in manifest["shards"]],
        }

    return Step(
        stage="schedule",
        version=1,
        settings={},
        inputs={part.corpus or "shards": part for part in parts},
        workdir=parts[0].workdir,
        work=work,
    )


def _sum_sources(sources_by_step: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, list[int]]:
    """Map each source to its tokens in the generalist corpus, and the tokens sampled by all steps."""
    generalist_tokens = {name: counts[0] for sources in sources_by_step for name, counts in sources.items()}
    sampled_tokens: Counter[str] = Counter()
    for sources in sources_by_step:
        sampled_tokens.update({name: counts[1] for name, counts in sources.items()})
    return {name: [tokens, sampled_tokens[name]] for name, tokens in generalist_tokens.items()}
