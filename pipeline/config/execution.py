"""How the work is executed; nothing here changes the output."""

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, field_validator

from pipeline.config.section import EXECUTION, Section
from pipeline.config.stages import STAGES

_WORD = r"[A-Za-z0-9](?:[\w.-]{0,61}[A-Za-z0-9])?"
_LABEL_KEY = re.compile(rf"(?:[a-z0-9.-]+/)?{_WORD}", re.ASCII)
_SELECTOR = re.compile(rf"!?(?:{_WORD}|in\({_WORD}(?:, ?{_WORD})*\))", re.ASCII)
_OF_RAY = ("CPU", "GPU", "memory", "object_store_memory")


def _suits(value: str | None, wanted: str) -> bool:
    """Whether a label's value, None without the label, is as a selector of Ray's wants it."""
    plain = wanted.removeprefix("!")
    choices = re.split(", ?", plain[3:-1]) if plain.startswith("in(") else [plain]
    return (value in choices) != wanted.startswith("!")


class Placement(Section):
    """On which nodes the tasks of a stage run."""

    labels: dict[str, str] = Field(
        {}, json_schema_extra=EXECUTION, description="labels that a node must have: `value`, `!value` or `in(a,b)`"
    )
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, json_schema_extra=EXECUTION, description="custom resources that a task takes"
    )

    @field_validator("labels")
    @classmethod
    def _labels(cls, labels: dict[str, str]) -> dict[str, str]:
        for key, value in labels.items():
            if not _LABEL_KEY.fullmatch(key):
                raise ValueError(f"{key!r} cannot name a label: use letters and digits, with -, _ and . between them")
            if not _SELECTOR.fullmatch(value):
                raise ValueError(f"{key}: {value!r} is none of `value`, `!value`, `in(a,b)` and `!in(a,b)`")
        return labels

    @field_validator("resources")
    @classmethod
    def _resources(cls, resources: dict[str, float]) -> dict[str, float]:
        for name, amount in resources.items():
            if name in _OF_RAY:
                raise ValueError(f"{name!r} is no custom resource: each task takes one CPU, and engine.gpus_per_worker is of GPUs")
            if amount > 1 and not amount.is_integer():
                raise ValueError(f"{name}: a task takes part of one, or whole ones, got {amount:g}")
        return resources

    def suits(self, labels: Mapping[str, str], resources: Mapping[str, float]) -> bool:
        """Whether tasks can run on a node that has these in all."""
        return all(_suits(labels.get(key), wanted) for key, wanted in self.labels.items()) and all(
            resources.get(name, 0.0) >= amount for name, amount in self.resources.items()
        )


class Prices(Section):
    """What an hour costs, in any currency, for the estimate of --dry-run."""

    core: float = Field(0.0, ge=0, json_schema_extra=EXECUTION, description="of a worker's core, with its share of memory")
    gpu: float = Field(0.0, ge=0, json_schema_extra=EXECUTION, description="of a GPU")


class Engine(Section):
    """How the work is executed; nothing here changes the output."""

    address: str | None = Field(
        None, json_schema_extra=EXECUTION, description="Ray cluster to join; null: the one around, or a new one here"
    )
    workers: int | None = Field(
        None, ge=1, json_schema_extra=EXECUTION, description="workers of a map; null: one a core, or one a GPU for embed"
    )
    gpus_per_worker: float | None = Field(
        None, ge=0, json_schema_extra=EXECUTION, description="of an embed worker; null: 1 where the cluster has GPUs"
    )
    attempts: int = Field(3, ge=1, json_schema_extra=EXECUTION, description="times a part is tried before the run fails")
    placement: dict[str, Placement] = Field(
        {}, json_schema_extra=EXECUTION, description="nodes for the tasks of a stage, by its name; others run anywhere"
    )

    prices: Prices | None = Field(None, json_schema_extra=EXECUTION, description="what an hour costs; null: none is told")

    @field_validator("placement")
    @classmethod
    def _stages_exist(cls, value: dict[str, Placement]) -> dict[str, Placement]:
        placeable = [stage.name for stage in STAGES.values() if stage.has_tasks]
        for name in value.keys() - set(placeable):
            raise ValueError(f"{name!r} is no stage with tasks; those are {', '.join(placeable)}")
        return value
