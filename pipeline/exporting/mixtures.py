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
from pipeline.exporting.text_formats import HuggingFace, Mds
from pipeline.exporting.token_formats import Megatron, Nanotron, OlmoCore

Unit = Literal["tokens", "documents"]


@dataclass(frozen=True, kw_only=True)
class Group:
    """A group of windows that a trainer samples with one weight (docs/decisions/0015)."""

    name: str  # also the name of its folder
    terms: str  # key terms of the group's cluster with the largest share of the mixture
    documents: int  # written, each once
    tokens: int  # of these documents, by the trainer's tokenizer if the format holds token ids, else by the embedder's
    allocated_documents: float  # repeats included
    files: tuple[str, ...]  # relative to the export's folder
    file_tokens: tuple[int, ...]  # tokens in each of `files`
    weight: float = 0.0  # share of the units that the trainer samples, set by `MixtureFormat.compute_weights`

    @property
    def allocated_tokens(self) -> float:
        """Allocated tokens, repeats included."""
        return self.allocated_documents * self.tokens / self.documents


class MixtureFormat(ABC):
    """Base class of the mixture formats: each writes the files with which one trainer samples groups."""

    name: str
    group_format: Format  # in which the groups are written
    unit: Unit  # that weights are shares of
    replacement: str  # how the trainer samples and repeats text within a group; written to the files
    finish_groups: bool = False  # whether each group needs the files that `Format.finish` writes

    def compute_weights(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with their weights, which sum to 1."""
        allocated = [group.allocated_tokens if self.unit == "tokens" else group.allocated_documents for group in groups]
        return [replace(group, weight=units / sum(allocated)) for group, units in zip(groups, allocated, strict=True)]

    @abstractmethod
    def render_trainer_files(self, groups: Sequence[Group], facts: Mapping[str, Any]) -> dict[str, str]:
        """The contents of the trainer's own configuration files, by file name."""

    def render_files(self, groups: Sequence[Group], facts: Mapping[str, Any]) -> dict[str, str]:
        """The contents of the trainer's own files and of `mixture.json`, which has one format for all trainers, by file name."""
        group_facts = [
            {
                "name": group.name,
                "terms": group.terms,
                "weight": group.weight,
                "documents": group.documents,
                "tokens": group.tokens,
                "passes": round(group.allocated_documents / group.documents, 4),
                "files": list(group.files),
            }
            for group in groups
        ]
        unit = "sampled documents" if self.unit == "documents" else f"sampled tokens, by {facts['tokens_by']}"
        header = {"format": self.name, "unit": f"weights are shares of the {unit}", "replacement": self.replacement}
        return {
            **self.render_trainer_files(groups, {**facts, "unit": header["unit"], "replacement": self.replacement}),
            "mixture.json": json.dumps({**header, **facts, "groups": group_facts}, indent=1, ensure_ascii=False) + "\n",
        }


class HuggingFaceMixture(MixtureFormat):
    """Parquet files, and the probabilities for `datasets.interleave_datasets`."""

    name = "huggingface"
    group_format = HuggingFace()
    unit = "documents"
    replacement = (
        "interleave_datasets chooses the group of each document at random; within a group, documents come in order, each once, and "
        "with repeat(None) restart after the last one"
    )

    def render_trainer_files(self, groups: Sequence[Group], facts: Mapping[str, Any]) -> dict[str, str]:
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

Groups of text, each document once, and the weights with which to sample them ({facts["unit"]}):

```python
import json
from datasets import interleave_datasets, load_dataset

folder = "…"  # the folder of this file
mixture = json.load(open(f"{{folder}}/mixture.json"))
parts = [load_dataset(folder, group["name"], split="train", streaming=True).repeat(None) for group in mixture["groups"]]
data = interleave_datasets(parts, probabilities=[group["weight"] for group in mixture["groups"]], seed=0)
```

The dataset is infinite: stop after as many documents or tokens as you need.
""",
        }


class LevanterMixture(MixtureFormat):
    """Parquet files, and the `data` section of a Levanter config."""

    name = "levanter"
    group_format = HuggingFace()
    unit = "tokens"
    replacement = "a group's sequences come once per epoch, shuffled, and restart after the last one (stop_strategy: restart)"
    # Levanter rounds down each group's number of sequences in a block: in its default block of 2,048, small groups would get none.
    block_sequences = 2**15

    def render_trainer_files(self, groups: Sequence[Group], facts: Mapping[str, Any]) -> dict[str, str]:
        components = {
            group.name: {"type": "cached", "source": {"type": "url", "train_urls": list(group.files)}} for group in groups
        }
        shares = {group.name: group.weight for group in groups}
        data = {"data": {"components": components, "train_weights": shares, "stop_strategy": "restart"}}
        data["data"]["mixture_block_size"] = self.block_sequences
        return {"mixture.yaml": _render_yaml(data, facts, "the data section of Levanter; add its tokenizer")}


class MdsMixture(MixtureFormat):
    """MosaicML shards, and the `streams` section for `streaming` and llm-foundry."""

    name = "mds"
    group_format = Mds()
    unit = "documents"
    finish_groups = True
    replacement = "an epoch of N documents contains each group's share of N; how often its documents occur differs by at most one"

    def render_trainer_files(self, groups: Sequence[Group], facts: Mapping[str, Any]) -> dict[str, str]:
        streams = {group.name: {"local": group.name, "proportion": group.weight} for group in groups}
        return {"streams.yaml": _render_yaml({"streams": streams}, facts, "streams of streaming.StreamingDataset and llm-foundry")}


class MegatronMixture(MixtureFormat):
    """Indexed datasets, and the value of `--data-path`."""

    name = "megatron"
    group_format = Megatron()
    unit = "tokens"
    replacement = "a file's sequences come once per epoch, shuffled, and restart after the last one"

    def render_trainer_files(self, groups: Sequence[Group], facts: Mapping[str, Any]) -> dict[str, str]:
        del facts
        pairs = [
            f"{group.weight * tokens / group.tokens:.12g} {file.removesuffix('.bin')}"
            for group in groups
            for file, tokens in zip(group.files, group.file_tokens, strict=True)
            if tokens
        ]
        return {"data_path.txt": "\n".join(pairs) + "\n"}  # used as $(cat data_path.txt), so it cannot contain comments


class NanotronMixture(MixtureFormat):
    """nanotron's token files, and a data stage with folders and weights."""

    name = "nanotron"
    group_format = Nanotron()
    unit = "tokens"
    replacement = (
        "nanotron plans one block with as many sequences as all folders contain, and repeats it: a folder's sequences come once "
        "per epoch; if its share of the block is smaller than the folder, the remaining sequences are never sampled"
    )

    def render_trainer_files(self, groups: Sequence[Group], facts: Mapping[str, Any]) -> dict[str, str]:
        dataset = {"dataset_folder": [group.name for group in groups], "dataset_weights": [group.weight for group in groups]}
        stage = {"name": "crispwrap", "start_training_step": 1, "data": {"dataset": dataset, "seed": facts["seed"]}}
        return {"mixture.yaml": _render_yaml({"data_stages": [stage]}, facts, "a data stage of nanotron")}


class OlmoCoreMixture(MixtureFormat):
    """Token files, and the sources of OLMo-core's `SourceMixtureDatasetConfig`."""

    name = "olmo-core"
    group_format = OlmoCore()
    unit = "tokens"
    replacement = "a file's tokens come once per epoch; max_repetition_ratio limits the epochs"

    def render_trainer_files(self, groups: Sequence[Group], facts: Mapping[str, Any]) -> dict[str, str]:
        sources = [
            {
                "source_name": group.name,
                "target_ratio": group.weight,
                "paths": [file for file in group.files if file.endswith(".npy")],
                # The allocated epochs, plus 5% for rounding to whole sequences.
                "max_repetition_ratio": max(1.0, round(1.05 * group.allocated_documents / group.documents, 3)),
            }
            for group in groups
        ]
        max_tokens = int(sum(group.allocated_tokens for group in groups))
        title = f"SourceMixtureList of OLMo-core, for requested_tokens up to {max_tokens}"
        return {"mixture.yaml": _render_yaml({"sources": sources}, facts, title)}


MIXTURE_FORMATS: dict[str, MixtureFormat] = {
    kind.name: kind()
    for kind in (HuggingFaceMixture, LevanterMixture, MdsMixture, MegatronMixture, NanotronMixture, OlmoCoreMixture)
}


def _render_yaml(value: Any, facts: Mapping[str, Any], title: str) -> str:
    header = f"# {title}. Paths are relative to this folder.\n# {facts['unit']}; {facts['replacement']}.\n"
    return header + yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
