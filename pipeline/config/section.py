"""What a section of the config is: its fields, and which of them are identity.

A field marked `EXECUTION` steers how a run is executed and changes no value of the output, so it is in no fingerprint.
Every other field is identity.
"""

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic.config import JsonDict

EXECUTION: JsonDict = {"identity": False}


class Section(BaseModel):
    """Refuses what it does not know; does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """True is no number, though Python takes it for 1."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and {int, float} & {kind, *get_args(kind)}:
            raise ValueError("give a number")
        return value

    def identity(self) -> dict[str, Any]:
        """The fields that change a value of the output."""
        return {
            name: getattr(self, name) for name, field in type(self).model_fields.items() if field.json_schema_extra != EXECUTION
        }


def whole_number(value: Any) -> Any:
    """2e9 as well as 2_000_000_000: YAML takes the first for text."""
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        return value
    return int(number) if isinstance(number, float) and number.is_integer() else value
