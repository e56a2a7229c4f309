"""How the work is executed; nothing here changes the output."""

from typing import Annotated

from pydantic import Field, field_validator

from pipeline.config.section import EXECUTION, Section

# Those that have tasks of their own on a cluster.
_PLACED = (
    *("prepare", "dedup", "decontaminate", "embedder", "embed", "cluster", "assign", "score", "weights"),
    *("titles", "rephrase", "sample", "groups", "export", "mixture"),
)


class Placement(Section):
    """On which nodes the tasks of a stage run."""

    labels: dict[str, str] = Field(
        {}, json_schema_extra=EXECUTION, description="labels that a node must have: `value`, `!value` or `in(a,b)`"
    )
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, json_schema_extra=EXECUTION, description="custom resources that a task takes"
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
        for name in value.keys() - set(_PLACED):
            raise ValueError(f"{name!r} is no stage with tasks; those are {', '.join(_PLACED)}")
        return value
