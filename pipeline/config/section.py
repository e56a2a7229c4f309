"""The base class of config sections, and which fields are part of the identity.

A field marked `EXECUTION` changes how a run is executed but no value of the output, so it is in no fingerprint. All other fields
are part of the identity.
"""

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic.config import JsonDict

EXECUTION: JsonDict = {"identity": False}


class Section(BaseModel):
    """A section of the config: frozen, without unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _reject_booleans(cls, value: Any, info: ValidationInfo) -> Any:
        """Reject True and False as numbers; pydantic would convert them to 1 and 0."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and {int, float} & {kind, *get_args(kind)}:
            raise ValueError("give a number")
        return value

    def identity(self) -> dict[str, Any]:
        """The fields that change a value of the output."""
        return {
            name: getattr(self, name) for name, field in type(self).model_fields.items() if field.json_schema_extra != EXECUTION
        }


def parse_whole_number(value: Any) -> Any:
    """Convert text such as 2e9, which YAML does not read as a number, to an integer; other values are unchanged."""
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        return value
    return int(number) if isinstance(number, float) and number.is_integer() else value
