"""Render the page of all settings, `docs/settings.md`, from the models of the config."""

import json
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.config.section import EXECUTION

_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}  # by the attribute of a limit of `annotated_types`


def render_settings(model: type[BaseModel], intro: str) -> str:
    """Return Markdown: the intro, then a table for each section, in the order of the models.

    Settings that occur in several sections, such as those of a corpus, are listed in the first; the others refer to it.
    """
    top: list[str] = []
    sections: list[str] = []
    shown: dict[type[BaseModel], str] = {}
    for name, field in model.model_fields.items():
        if found := _find_section(field.annotation):
            sections += _render_section(name + _find_key(field.annotation), field.description or "", found, shown)
        else:
            top.append(_format_row(name, field))
    return "\n".join([intro.rstrip(), "", *_HEAD, *top, *sections, ""])


_HEAD = ("| setting | value | default | meaning |", "|---|---|---|---|")


def _render_section(path: str, description: str, section: type[BaseModel], shown: dict[type[BaseModel], str]) -> Iterator[str]:
    models = [model for model in section.__mro__ if issubclass(model, BaseModel) and model.model_fields]
    base = next((model for model in models if model in shown), None)
    inherited = set(base.model_fields) if base else set()
    for model in models:
        shown.setdefault(model, path)
    yield from ("", f"## `{path}`")
    if description:
        yield from ("", f"{description[:1].upper()}{description[1:].removesuffix('.')}.")
    if base:
        end = ", and:" if set(section.model_fields) - inherited else "."
        yield from ("", f"The settings of [`{shown[base]}`](#{_anchor(shown[base])}){end}")
    rows, nested = [], []
    for name, field in section.model_fields.items():
        if name in inherited:
            continue
        if found := _find_section(field.annotation):
            nested.append((f"{path}.{name}{_find_key(field.annotation)}", field.description or "", found))
        else:
            rows.append(_format_row(f"{path}.{name}", field))
    if rows:
        yield from ("", *_HEAD, *rows)
    for entry in nested:
        yield from _render_section(*entry, shown)


def _format_row(path: str, field: FieldInfo) -> str:
    star = " *" if field.json_schema_extra == EXECUTION else ""
    cells = (f"`{path}`{star}", _format_values(field), _format_default(field), field.description or "")
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _find_section(annotation: Any) -> type[BaseModel] | None:
    """Return the model in a field's type, such as that of `dict[str, Corpus]` or `Dedup | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _find_section(part))), None)


def _find_key(annotation: Any) -> str:
    """Return `.NAME` if the field maps names to sections, else an empty string."""
    parts = (annotation, *get_args(annotation))
    return ".NAME" if any(get_origin(part) is dict for part in parts) else ""


def _format_values(field: FieldInfo) -> str:
    limits = [
        f"{sign} {getattr(limit, bound):,}" for limit in field.metadata for bound, sign in _SIGNS.items() if hasattr(limit, bound)
    ]
    return ", ".join([_format_type(field.annotation), *limits])


def _format_type(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _format_type(args[0])
    if origin is Literal:
        return " | ".join(f"`{value}`" for value in args)
    if origin in (Union, UnionType):
        return " | ".join(_format_type(part) for part in args if part is not NoneType)
    if origin is list:
        return f"list of {_format_type(args[0])}"
    if origin is dict:
        return f"map of {_format_type(args[0])} to {_format_type(args[1])}"
    return {bool: "true | false", int: "integer", float: "number", str: "text"}.get(annotation, "any")


def _format_default(field: FieldInfo) -> str:
    return "required" if field.is_required() else _format_value(field.get_default(call_default_factory=True))


def _format_value(value: Any) -> str:
    match value:
        case bool() | None:
            return f"`{str(value).lower().replace('none', 'null')}`"
        case int() | float():
            return f"{value:,}".removesuffix(".0")
        case list():
            return ", ".join(map(_format_value, value)) or "`[]`"
        case dict():
            return ", ".join(f"`{key}: {one}`" for key, one in value.items()) or "`{}`"
    return f"`{json.dumps(value)}`" if "\n" in value else f"`{value}`"


def _anchor(path: str) -> str:
    """Return GitHub's anchor of a heading."""
    return path.lower().replace(".", "").replace("`", "")
