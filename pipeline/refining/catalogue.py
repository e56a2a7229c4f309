"""Finds datatrove's classes for refining steps and readers by name, checks their settings and builds the steps.

datatrove is imported by the functions that need it (half a second), so only configs that name one of its classes pay for it.
"""

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import ConfigDict, ValidationError, create_model

from pipeline.errors import ConfigError, nearest, one_line
from pipeline.sources.listing import READERS

# Parameters that crispwrap sets itself or that cannot be written in YAML.
_OURS = ("self", "exclusion_writer", "batch_size")
_OF_THE_CORPUS = (
    *("data_folder", "paths_file", "dataset", "limit", "skip", "file_progress", "doc_progress", "adapter", "text_key", "id_key"),
    *("default_metadata", "recursive", "glob_pattern", "shuffle_files", "add_file_path"),
)
_WITHOUT_YAML = {"LambdaFilter": "its filter is a function; use RegexFilter, or filter before"}
# Whether a document meets a timeout depends on the load of the machine: long, so that only an extraction that hangs is stopped.
_TIMEOUT_S = 60.0


@cache
def offered() -> Mapping[str, type]:
    """Return every extractor, formatter and filter of the installed datatrove by class name."""
    from datatrove.pipeline import extractors, filters, formatters
    from datatrove.pipeline.extractors.base import BaseExtractor
    from datatrove.pipeline.filters.base_filter import BaseFilter
    from datatrove.pipeline.formatters.base import BaseFormatter

    bases = (BaseExtractor, BaseFilter, BaseFormatter)
    found = {
        name: kind for module in (extractors, formatters, filters) for name, kind in vars(module).items() if inspect.isclass(kind)
    }
    return {name: kind for name, kind in sorted(found.items()) if issubclass(kind, bases) and kind not in bases}


def checked(steps: Sequence[Mapping[str, Any]], setting: str) -> None:
    """Check the steps of a config before anything runs.

    Raises:
        ConfigError: a type or setting is unknown (the message suggests the nearest name), a value is invalid, or a package is
            missing.
    """
    for number, step in enumerate(steps):
        build(step, f"{setting}[{number}]")


def build(step: Mapping[str, Any], where: str) -> Any:
    """Build the datatrove object that a step of the config describes.

    Raises:
        ConfigError: as `checked`.
    """
    kind = _kind(step, where)
    given = {name: value for name, value in step.items() if name != "type"}
    where = f"{where} ({kind.__name__})"
    settings = _checked_settings(kind, given, where)
    if "timeout" in inspect.signature(kind).parameters:
        settings.setdefault("timeout", _TIMEOUT_S)
    try:
        return kind(**settings)
    except ImportError as error:
        raise ConfigError(f'{where}: {one_line(error)} Or: pip install "crispwrap[filters]"') from error
    except Exception as error:  # datatrove's own checks raise various exception types
        raise ConfigError(f"{where}: {one_line(error) or type(error).__name__}") from error


def checked_reader(reader: Mapping[str, Any], setting: str) -> None:
    """Check the `reader` setting of a corpus before anything runs.

    Raises:
        ConfigError: it is not a supported reader of datatrove, a setting is unknown or invalid or belongs to the corpus, or a
            package is missing.
    """
    from datatrove.pipeline import readers

    name = reader.get("type")
    if name not in READERS:
        hint = nearest(str(name), READERS)
        raise ConfigError(f"{setting}.type: datatrove has no reader {name}{hint}; it has {', '.join(READERS)}")
    kind = getattr(readers, {"CsvReader": "CSVReader"}.get(name, name))
    where = f"{setting} ({name})"
    given = {key: value for key, value in reader.items() if key != "type"}
    if managed := [key for key in given if key in _OF_THE_CORPUS]:
        raise ConfigError(f"{where}.{managed[0]}: the corpus's own paths, text_key, id_key and limit say that; take it out")
    _checked_settings(kind, given, where)
    try:
        kind("/")
    except ImportError as error:
        raise ConfigError(f'{where}: {one_line(error)} Or: pip install "crispwrap[filters]"') from error


def extracts(steps: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the steps include an extractor."""
    from datatrove.pipeline.extractors.base import BaseExtractor

    return any(issubclass(offered()[step["type"]], BaseExtractor) for step in steps)


def _kind(step: Mapping[str, Any], where: str) -> type:
    name = step.get("type")
    if not isinstance(name, str):
        raise ConfigError(f"{where} has no type; name one of datatrove's: {', '.join(offered())}")
    if name.endswith("Reader"):
        raise ConfigError(f"{where}: {name} is a reader, and each corpus has its own; give it as generalist.reader")
    if name in _WITHOUT_YAML:
        raise ConfigError(f"{where}: {name} cannot be written in a config: {_WITHOUT_YAML[name]}")
    if name not in offered():
        raise ConfigError(f"{where}: datatrove has no {name}{nearest(name, offered())}; it has {', '.join(offered())}")
    return offered()[name]


def _checked_settings(kind: type, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the settings, validated against the class's signature and converted to its types.

    Raises:
        ConfigError: a setting is unknown or its value is invalid.
    """
    parameters = inspect.signature(kind).parameters
    ours = (*_OURS, *_OF_THE_CORPUS)
    known = {name: one for name, one in parameters.items() if name not in ours and one.kind is not one.VAR_KEYWORD}
    others = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    if not others and (unknown := [name for name in given if name not in known]):
        listed = ", ".join(known) or "none"
        raise ConfigError(f"{where} has no setting {unknown[0]}{nearest(unknown[0], known)}; it has {listed}")
    fields: dict[str, Any] = {}
    for name in given:
        if name in known:
            one = known[name]
            annotation = Any if one.annotation is one.empty else one.annotation
            if one.default is None:  # datatrove declares `seed: int = None`
                annotation = annotation | None if annotation is not Any else Any
            fields[name] = (annotation, ...)
    model = create_model(kind.__name__, __config__=ConfigDict(arbitrary_types_allowed=True, extra="allow"), **fields)
    try:
        return {name: getattr(model(**given), name) for name in given}
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise ConfigError(f"{where}.{name}: {first['msg']}, not {given[name]!r}") from error
