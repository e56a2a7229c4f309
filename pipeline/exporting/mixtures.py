"""Mixture files: the configuration with which a trainer samples groups of text by weight.

Some trainers sample sequences of tokens, others documents (each of which is a window here). A weight is a share of the sampled
units, so the same allocation gives different weights for tokens than for documents. `mixture.json` states the unit.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import yaml

from pipeline.exporting import Format
from pipeline.exporting.plain import HuggingFace, Mds
from pipeline.exporting.tokens import Megatron, Nanotron, OlmoCore

Unit = Literal["tokens", "documents"]


@dataclass(frozen=True, kw_only=True)
class Group:
    """A group of windows that a trainer samples with one weight (docs/decisions/0015)."""

    name: str  # also the name of its folder
    terms: str  # key terms of the group's cluster with the largest share of the mixture
    documents: int  # written, each once
    tokens: int  # of these documents, by the trainer's tokenizer if the format holds token ids, else by the embedder's
    wanted_documents: float  # allocated, repeats included
    files: tuple[str, ...]  # relative to the export's folder
    file_tokens: tuple[int, ...]  # tokens in each of `files`
    weight: float = 0.0  # share of the units that the trainer samples, set by `Mixture.weighed`

    @property
    def wanted_tokens(self) -> float:
        """Allocated tokens, repeats included."""
        return self.wanted_documents * self.tokens / self.documents


class Mixture(ABC):
    """Base class: how one trainer samples groups."""

    name: str
    form: Format  # in which the groups are written
    unit: Unit  # that weights are shares of
    replacement: str  # how the trainer samples and repeats text within a group, for the reader of the files
    finish_groups: bool = False  # whether each group needs the files that `Format.finish` writes

    def weighed(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with their weights, which sum to 1."""
        wanted = [group.wanted_tokens if self.unit == "tokens" else group.wanted_documents for group in groups]
        return [replace(group, weight=share / sum(wanted)) for group, share in zip(groups, wanted, strict=True)]

    @abstractmethod
    def files(self, groups: Sequence[Group], facts: Mapping[str, Any]) -> dict[str, str]:
        """The contents of the trainer's own configuration files, by file name."""

    def described(self, groups: Sequence[Group], facts: Mapping[str, Any]) -> dict[str, str]:
        """The contents of `files` and of `mixture.json`, which has the same form for all trainers, by file name."""
        listed = [
            {
                "name": group.name,
                "terms": group.terms,
                "weight": group.weight,
                "documents": group.documents,
                "tokens": group.tokens,
                "passes": round(group.wanted_documents / group.documents, 4),
                "files": list(group.files),
            }
            for group in groups
        ]
        unit = "documents drawn" if self.unit == "documents" else f"tokens drawn, by {facts['tokens_by']}"
        said = {"format": self.name, "unit": f"weights are shares of the {unit}", "replacement": self.replacement}
        return {
            **self.files(groups, {**facts, "unit": said["unit"], "replacement": self.replacement}),
            "mixture.json": json.dumps({**said, **facts, "groups": listed}, indent=1, ensure_ascii=False) + "\n",
        }


class HuggingFaceMixture(Mixture):
    """Parquet files, and the probabilities for `datasets.interleave_datasets`."""

    name = "huggingface"
    form = HuggingFace()
    unit = "documents"
    replacement = (
        "interleave_datasets chooses the group of each document at random; within a group documents come in order, each once, and "
        "after repeat(None) begin anew when they are used up"
    )

    def files(self, groups: Sequence[Group], facts: Mapping[str, Any]) -> dict[str, str]:
        configs = [
            {"config_name": group.name, "data_files": [{"split": "train", "path": f"{group.name}/data/train-*.parquet"}]}
            for group in groups
        ]
        head = yaml.safe_dump({"configs": configs, "tags": ["crispwrap", "pretraining"]}, sort_keys=False).strip()
        return {
            "README.md": f"""---
{head}
---

# A specialist pretraining mixture

Groups of text, each document once, and the weights by which to draw them ({facts["unit"]}):

```python
import json
from datasets import interleave_datasets, load_dataset

folder = "…"  # where this file lies
mixture = json.load(open(f"{{folder}}/mixture.json"))
parts = [load_dataset(folder, group["name"], split="train", streaming=True).repeat(None) for group in mixture["groups"]]
data = interleave_datasets(parts, probabilities=[group["weight"] for group in mixture["groups"]], seed=0)
```

It has no end: stop after as many documents or tokens as you want.
""",
        }


class LevanterMixture(Mixture):
    """Parquet files, and the `data` section of a Levanter config."""

    name = "levanter"
    form = HuggingFace()
    unit = "tokens"
    replacement = "a group's sequences come once a pass, shuffled, and begin anew when they are used up (stop_strategy: restart)"
    # Levanter rounds each group's sequences in a block down: with its default block of 2,048, small groups would get none.
    block_sequences = 2**15

    def files(self, groups: Sequence[Group], facts: Mapping[str, Any]) -> dict[str, str]:
        components = {
            group.name: {"type": "cached", "source": {"type": "url", "train_urls": list(group.files)}} for group in groups
        }
        shares = {group.name: group.weight for group in groups}
        data = {"data": {"components": components, "train_weights": shares, "stop_strategy": "restart"}}
        data["data"]["mixture_block_size"] = self.block_sequences
        return {"mixture.yaml": _yaml(data, facts, "the data section of Levanter; add its tokenizer")}


class MdsMixture(Mixture):
    """MosaicML shards, and the `streams` section for `streaming` and llm-foundry."""

    name = "mds"
    form = Mds()
    unit = "documents"
    finish_groups = True
    replacement = "in an epoch of N documents each group gives its share of N, every document as often as another, to one"

    def files(self, groups: Sequence[Group], facts: Mapping[str, Any]) -> dict[str, str]:
        streams = {group.name: {"local": group.name, "proportion": group.weight} for group in groups}
        return {"streams.yaml": _yaml({"streams": streams}, facts, "streams of streaming.StreamingDataset and llm-foundry")}


class MegatronMixture(Mixture):
    """Indexed datasets, and the value of `--data-path`."""

    name = "megatron"
    form = Megatron()
    unit = "tokens"
    replacement = "a file's sequences come once a pass, shuffled, and begin anew when they are used up"

    def files(self, groups: Sequence[Group], facts: Mapping[str, Any]) -> dict[str, str]:
        del facts
        pairs = [
            f"{group.weight * tokens / group.tokens:.12g} {file.removesuffix('.bin')}"
            for group in groups
            for file, tokens in zip(group.files, group.file_tokens, strict=True)
            if tokens
        ]
        return {"data_path.txt": "\n".join(pairs) + "\n"}  # used as $(cat data_path.txt), so it cannot hold comments


class NanotronMixture(Mixture):
    """nanotron's token files, and a data stage with folders and weights."""

    name = "nanotron"
    form = Nanotron()
    unit = "tokens"
    replacement = (
        "nanotron plans a stretch of as many sequences as all folders hold and repeats it: a folder's sequences come once a pass, "
        "and of one that gives less than it holds the rest is never drawn"
    )

    def files(self, groups: Sequence[Group], facts: Mapping[str, Any]) -> dict[str, str]:
        dataset = {"dataset_folder": [group.name for group in groups], "dataset_weights": [group.weight for group in groups]}
        stage = {"name": "crispwrap", "start_training_step": 1, "data": {"dataset": dataset, "seed": facts["seed"]}}
        return {"mixture.yaml": _yaml({"data_stages": [stage]}, facts, "a data stage of nanotron")}


class OlmoCoreMixture(Mixture):
    """Token files, and the sources of OLMo-core's `SourceMixtureDatasetConfig`."""

    name = "olmo-core"
    form = OlmoCore()
    unit = "tokens"
    replacement = "a file's tokens come once a pass; max_repetition_ratio bounds the passes"

    def files(self, groups: Sequence[Group], facts: Mapping[str, Any]) -> dict[str, str]:
        sources = [
            {
                "source_name": group.name,
                "target_ratio": group.weight,
                "paths": [file for file in group.files if file.endswith(".npy")],
                # The allocated passes, plus 5% for rounding to whole sequences.
                "max_repetition_ratio": max(1.0, round(1.05 * group.wanted_documents / group.documents, 3)),
            }
            for group in groups
        ]
        most = int(sum(group.wanted_tokens for group in groups))
        what = f"SourceMixtureList of OLMo-core, for requested_tokens up to {most}"
        return {"mixture.yaml": _yaml({"sources": sources}, facts, what)}


MIXTURES: dict[str, Mixture] = {
    kind.name: kind()
    for kind in (HuggingFaceMixture, LevanterMixture, MdsMixture, MegatronMixture, NanotronMixture, OlmoCoreMixture)
}


def _yaml(value: Any, facts: Mapping[str, Any], what: str) -> str:
    head = f"# {what}. Paths are relative to this folder.\n# {facts['unit']}; {facts['replacement']}.\n"
    return head + yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
