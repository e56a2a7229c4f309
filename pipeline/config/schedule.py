"""Settings of the shard order: what distinguishes the last shards from the others."""

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from pipeline.config.section import Section


class Conditioning(Section):
    """Prefixes texts with their origin, in all but the last shards (MeCo, arXiv 2501.01956)."""

    field: str = Field("url", min_length=1, description="source, url (only its host is written), or another input column")
    template: str = Field("URL: {value}\n\n", description="the prefix; {value} is replaced by the value of the field")
    plain_share: float = Field(0.1, ge=0.01, lt=1, description="share of the corpus without prefixes: its last shards")

    @field_validator("template")
    @classmethod
    def _check_template(cls, template: str) -> str:
        if "{value}" not in template:
            raise ValueError("it has no {value}, which is replaced by the value of the field; add it")
        return template


class Ending(Section):
    """Samples the last part of the corpus with other weights (domain upsampling, arXiv 2406.03476)."""

    share: float = Field(0.1, gt=0, lt=1, description="share of the budget, in the last shards")
    weights: dict[str, Any] = Field(default={}, description="settings of the section weights that differ in the ending")
    specialists: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={}, description="specialists of the ending with their shares; empty: all, as before"
    )


class Schedule(Section):
    """What distinguishes the last shards; the shards are then ordered, and must be read in order."""

    conditioning: Conditioning | None = None
    ending: Ending | None = None

    @model_validator(mode="after")
    def _check_not_empty(self) -> "Schedule":
        if not (self.conditioning or self.ending):
            raise ValueError("neither conditioning nor ending is given; give one, or leave the section out")
        if self.ending and not (self.ending.weights or self.ending.specialists):
            raise ValueError("ending changes nothing: give ending.weights or ending.specialists, or leave ending out")
        return self
