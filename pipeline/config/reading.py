"""A config from a YAML file, or from a plain dictionary."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.config.validation_errors import explain_mistakes, refuse_secrets
from pipeline.config.whole import Config
from pipeline.errors import ConfigError, one_line


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config in a YAML file, with `section.key=value` overrides.

    Raises:
        ConfigError: the file is missing or not YAML, a setting is unknown (the nearest name is given) or out of range.
    """
    raw = read_sections(path)
    for override in overrides:
        _override(raw, override)
    return parse_config(raw)


def read_sections(path: str | Path, example: str = "generalist") -> dict[str, Any]:
    """The sections of a YAML file, not checked yet; `example` is one that should be among them.

    Raises:
        ConfigError: the file is missing, not YAML, or no sections.
    """
    try:
        with open(path, encoding="utf-8") as file:
            raw = yaml.load(file, Loader=_Strict)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {one_line(error)}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold settings such as `{example}:`, got {type(raw).__name__}")
    return raw


class _Strict(yaml.SafeLoader):
    """Refuses a key that comes twice in a section, of which YAML would keep the last."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._as_written: set[yaml.MappingNode] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Comes before all else, and puts what is merged (`<<`) into the node itself, where its own keys have precedence."""
        if node not in self._as_written:
            self._as_written.add(node)
            seen: set[str] = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} is there twice", key.start_mark)
                seen.add(key.value)
        super().flatten_mapping(node)


def parse_config(raw: dict[str, Any]) -> Config:
    """The config of a plain dictionary.

    Raises:
        ConfigError: as `load_config`.
    """
    try:
        refuse_secrets(raw)
        return Config.model_validate(raw)
    except RecursionError as error:
        raise ConfigError("a setting holds itself: an alias (*name) is inside what it stands for") from error
    except ValidationError as error:
        raise ConfigError(explain_mistakes(error, Config)) from error


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set takes section.key=value, got {override!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {key}: {text!r} is not a YAML value") from error
    *sections, last = key.strip().split(".")
    for section in sections:
        if raw.get(section) is None:
            raw[section] = {}
        raw = raw[section]
        if not isinstance(raw, dict):
            raise ConfigError(f"--set {key}: {section} is a value, not a section")
    raw[last] = value
