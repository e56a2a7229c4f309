"""Settings of execution; nothing here changes the output."""

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, field_validator

from pipeline.config.section import EXECUTION, Section
from pipeline.config.stages import STAGES

_WORD = r"[A-Za-z0-9](?:[\w.-]{0,61}[A-Za-z0-9])?"
_LABEL_KEY = re.compile(rf"(?:[a-z0-9.-]+/)?{_WORD}", re.ASCII)
_SELECTOR = re.compile(rf"!?(?:{_WORD}|in\({_WORD}(?:, ?{_WORD})*\))", re.ASCII)
_RAY_RESOURCES = ("CPU", "GPU", "memory", "object_store_memory")


def _label_matches(value: str | None, selector: str) -> bool:
    """Whether a label's value, None if a node lacks the label, matches a Ray label selector."""
    plain = selector.removeprefix("!")
    choices = re.split(", ?", plain[3:-1]) if plain.startswith("in(") else [plain]
    return (value in choices) != selector.startswith("!")


class Placement(Section):
    """Which nodes may run the tasks of a stage."""

    labels: dict[str, str] = Field(
        {}, json_schema_extra=EXECUTION, description="labels that a node must have: `value`, `!value`, `in(a,b)` or `!in(a,b)`"
    )
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, json_schema_extra=EXECUTION, description="custom Ray resources that a task takes"
    )

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, labels: dict[str, str]) -> dict[str, str]:
        for key, value in labels.items():
            if not _LABEL_KEY.fullmatch(key):
                raise ValueError(f"{key!r} is not a valid label name: use letters and digits, with -, _ and . between them")
            if not _SELECTOR.fullmatch(value):
                raise ValueError(f"{key}: {value!r} is not a valid selector: use `value`, `!value`, `in(a,b)` or `!in(a,b)`")
        return labels

    @field_validator("resources")
    @classmethod
    def _check_resources(cls, resources: dict[str, float]) -> dict[str, float]:
        for name, amount in resources.items():
            if name in _RAY_RESOURCES:
                raise ValueError(f"{name!r} is not a custom resource: each task takes one CPU; set GPUs by engine.gpus_per_worker")
            if amount > 1 and not amount.is_integer():
                raise ValueError(f"{name}: give an amount of at most 1, or a whole number, got {amount:g}")
        return resources

    def matches_node(self, labels: Mapping[str, str], resources: Mapping[str, float]) -> bool:
        """Whether tasks can run on a node with these labels and total resources."""
        return all(_label_matches(labels.get(key), selector) for key, selector in self.labels.items()) and all(
            resources.get(name, 0.0) >= amount for name, amount in self.resources.items()
        )


class Prices(Section):
    """Prices per hour, in any currency, for the estimate of --dry-run."""

    core: float = Field(0.0, ge=0, json_schema_extra=EXECUTION, description="price of a core with its share of memory")
    gpu: float = Field(0.0, ge=0, json_schema_extra=EXECUTION, description="price of a GPU")


class Engine(Section):
    """How the work is executed; nothing here changes the output."""

    address: str | None = Field(
        None,
        json_schema_extra=EXECUTION,
        description="Ray cluster to join; null: a running one if found, otherwise a new one on this machine; local: a new one",
    )
    workers: int | None = Field(
        None, ge=1, json_schema_extra=EXECUTION, description="concurrent tasks; null: one per core, or one per GPU for embed"
    )
    gpus_per_worker: float | None = Field(
        None, ge=0, json_schema_extra=EXECUTION, description="GPUs per embed worker; null: 1 if the cluster has GPUs"
    )
    attempts: int = Field(3, ge=1, json_schema_extra=EXECUTION, description="attempts per part before the run fails")
    placement: dict[str, Placement] = Field(
        {}, json_schema_extra=EXECUTION, description="node requirements of a stage's tasks, by stage; other stages run anywhere"
    )

    prices: Prices | None = Field(None, json_schema_extra=EXECUTION, description="prices per hour; null: --dry-run shows no money")

    @field_validator("placement")
    @classmethod
    def _check_stages(cls, value: dict[str, Placement]) -> dict[str, Placement]:
        placeable = [stage.name for stage in STAGES.values() if stage.has_tasks]
        for name in value.keys() - set(placeable):
            raise ValueError(f"{name!r} is not a stage with tasks; those are {', '.join(placeable)}")
        return value
