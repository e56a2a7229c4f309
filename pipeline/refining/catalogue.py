"""Finds datatrove's classes for refining steps and readers by name, checks their settings and builds the steps.

datatrove is imported by the functions that need it (half a second), so only configs that name one of its classes pay for it.
"""

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import ConfigDict, ValidationError, create_model

from pipeline.errors import ConfigError, one_line, suggest_name
from pipeline.sources.listing import READERS

# Parameters that crispwrap sets itself or that cannot be written in YAML.
_RESERVED_PARAMETERS = ("self", "exclusion_writer", "batch_size")
_CORPUS_PARAMETERS = (
    *("data_folder", "paths_file", "dataset", "limit", "skip", "file_progress", "doc_progress", "adapter", "text_key", "id_key"),
    *("default_metadata", "recursive", "glob_pattern", "shuffle_files", "add_file_path"),
)
_UNSUPPORTED = {"LambdaFilter": "its filter is a Python function; use RegexFilter, or filter the input files beforehand"}
# Whether a document meets a timeout depends on the load of the machine: long, so that only an extraction that hangs is stopped.
_TIMEOUT_S = 60.0


@cache
def find_step_classes() -> Mapping[str, type]:
    """Return every extractor, formatter and filter of the installed datatrove by class name."""
    from datatrove.pipeline import extractors, filters, formatters
    from datatrove.pipeline.extractors.base import BaseExtractor
    from datatrove.pipeline.filters.base_filter import BaseFilter
    from datatrove.pipeline.formatters.base import BaseFormatter

    bases = (BaseExtractor, BaseFilter, BaseFormatter)
    exported = {
        name: cls for module in (extractors, formatters, filters) for name, cls in vars(module).items() if inspect.isclass(cls)
    }
    return {name: cls for name, cls in sorted(exported.items()) if issubclass(cls, bases) and cls not in bases}


def check_steps(steps: Sequence[Mapping[str, Any]], setting: str) -> None:
    """Check the steps of a config before anything runs.

    Raises:
        ConfigError: a type or setting is unknown (the message suggests the suggest_name name), a value is invalid, or a package is
            missing.
    """
    for number, step in enumerate(steps):
        build_step(step, f"{setting}[{number}]")


def build_step(step: Mapping[str, Any], where: str) -> Any:
    """Build the datatrove object that a step of the config describes.

    Raises:
        ConfigError: as `check_steps`.
    """
    cls = _find_step_class(step, where)
    given = {name: value for name, value in step.items() if name != "type"}
    where = f"{where} ({cls.__name__})"
    settings = _validate_settings(cls, given, where)
    if "timeout" in inspect.signature(cls).parameters:
        settings.setdefault("timeout", _TIMEOUT_S)
    try:
        return cls(**settings)
    except ImportError as error:
        raise ConfigError(f'{where}: {one_line(error)} Or: pip install "crispwrap[filters]"') from error
    except Exception as error:  # datatrove's own checks raise various exception types
        raise ConfigError(f"{where}: {one_line(error) or type(error).__name__}") from error


def check_reader(reader: Mapping[str, Any], setting: str) -> None:
    """Check the `reader` setting of a corpus before anything runs.

    Raises:
        ConfigError: it is not a supported reader of datatrove, a setting is unknown or invalid or belongs to the corpus, or a
            package is missing.
    """
    from datatrove.pipeline import readers

    name = reader.get("type")
    if name not in READERS:
        hint = suggest_name(str(name), READERS)
        raise ConfigError(f"{setting}.type: datatrove has no reader {name}{hint}; it has {', '.join(READERS)}")
    cls = getattr(readers, {"CsvReader": "CSVReader"}.get(name, name))
    where = f"{setting} ({name})"
    given = {key: value for key, value in reader.items() if key != "type"}
    if managed := [key for key in given if key in _CORPUS_PARAMETERS]:
        raise ConfigError(f"{where}.{managed[0]}: the corpus's own paths, text_key, id_key and limit define this; remove it")
    _validate_settings(cls, given, where)
    try:
        cls("/")
    except ImportError as error:
        raise ConfigError(f'{where}: {one_line(error)} Or: pip install "crispwrap[filters]"') from error


def has_extractor(steps: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the steps include an extractor."""
    from datatrove.pipeline.extractors.base import BaseExtractor

    return any(issubclass(find_step_classes()[step["type"]], BaseExtractor) for step in steps)


def _find_step_class(step: Mapping[str, Any], where: str) -> type:
    name = step.get("type")
    if not isinstance(name, str):
        raise ConfigError(f"{where} has no type; set it to one of datatrove's: {', '.join(find_step_classes())}")
    if name.endswith("Reader"):
        raise ConfigError(f"{where}: {name} is a reader, not a refining step; set it as a reader, such as generalist.reader")
    if name in _UNSUPPORTED:
        raise ConfigError(f"{where}: {name} cannot be written in a config: {_UNSUPPORTED[name]}")
    classes = find_step_classes()
    if name not in classes:
        hint = suggest_name(name, classes)
        raise ConfigError(f"{where}: datatrove has no {name}{hint}; it has {', '.join(classes)}")
    return classes[name]


def _validate_settings(cls: type, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the settings, validated against the class's signature and converted to its types.

    Raises:
        ConfigError: a setting is unknown or its value is invalid.
    """
    parameters = inspect.signature(cls).parameters
    reserved = (*_RESERVED_PARAMETERS, *_CORPUS_PARAMETERS)
    known = {
        name: parameter
        for name, parameter in parameters.items()
        if name not in reserved and parameter.kind is not parameter.VAR_KEYWORD
    }
    accepts_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if not accepts_any and (unknown := [name for name in given if name not in known]):
        listed = ", ".join(known) or "none"
        raise ConfigError(f"{where} has no setting {unknown[0]}{suggest_name(unknown[0], known)}; its settings are {listed}")
    fields: dict[str, Any] = {}
    for name in given:
        if name in known:
            parameter = known[name]
            annotation = Any if parameter.annotation is parameter.empty else parameter.annotation
            if parameter.default is None:  # datatrove declares `seed: int = None`
                annotation = annotation | None if annotation is not Any else Any
            fields[name] = (annotation, ...)
    model = create_model(cls.__name__, __config__=ConfigDict(arbitrary_types_allowed=True, extra="allow"), **fields)
    try:
        return {name: getattr(model(**given), name) for name in given}
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise ConfigError(f"{where}.{name}: {first['msg']}, but the value is {given[name]!r}") from error
