"""What the last shards have that the others have not."""

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from pipeline.config.section import Section


class Conditioning(Section):
    """Text that begins with where it is from, in all but the last shards (MeCo, arXiv 2501.01956)."""

    field: str = Field("url", min_length=1, description="source, url (its host is what is written), or another column of the input")
    template: str = Field("URL: {value}\n\n", description="what a text begins with; {value} stands for the field's")
    plain_share: float = Field(0.1, ge=0.01, lt=1, description="of the corpus, its last shards, without")

    @field_validator("template")
    @classmethod
    def _template(cls, template: str) -> str:
        if "{value}" not in template:
            raise ValueError("it has no {value}, for which the field's stands")
        return template


class Ending(Section):
    """The last part of the corpus by another weighting (domain upsampling, arXiv 2406.03476)."""

    share: float = Field(0.1, gt=0, lt=1, description="of the budget, in the last shards")
    weights: dict[str, Any] = Field(default={}, description="settings of weights that are others there")
    specialists: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={}, description="the specialists there, with their shares; none: all, as before"
    )


class Schedule(Section):
    """What the last shards have that the others have not; shards are in order then, and to be read so."""

    conditioning: Conditioning | None = None
    ending: Ending | None = None

    @model_validator(mode="after")
    def _something(self) -> "Schedule":
        if not (self.conditioning or self.ending):
            raise ValueError("it has neither conditioning nor ending; give one, or leave the section out")
        if self.ending and not (self.ending.weights or self.ending.specialists):
            raise ValueError("ending.weights or ending.specialists: give what is other at the end, or leave ending out")
        return self
