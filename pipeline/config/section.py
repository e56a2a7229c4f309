"""What a section of the config is: its fields, and which of them are identity.

A field marked `EXECUTION` steers how a run is executed and changes no value of the output, so it is in no fingerprint.
Every other field is identity.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.config import JsonDict

EXECUTION: JsonDict = {"identity": False}


class Section(BaseModel):
    """Refuses what it does not know; does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def identity(self) -> dict[str, Any]:
        """The fields that change a value of the output."""
        return {
            name: getattr(self, name) for name, field in type(self).model_fields.items() if field.json_schema_extra != EXECUTION
        }


def whole_number(value: Any) -> Any:
    """2e9 as well as 2_000_000_000: YAML takes the first for text. True is none, though Python takes it for 1."""
    if isinstance(value, bool):
        raise ValueError(f"give a number, got {value}")  # noqa: TRY004 - pydantic's own kind
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        return value
    return int(number) if isinstance(number, float) and number.is_integer() else value
