"""Read a config from a YAML file or a dictionary."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.config.run_config import Config
from pipeline.config.validation_errors import format_validation_error, reject_secrets
from pipeline.errors import ConfigError, one_line


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config from a YAML file, with `section.key=value` overrides.

    Raises:
        ConfigError: the file is missing or not YAML, or a setting is unknown (the nearest name is given) or out of range.
    """
    raw = read_sections(path)
    for override in overrides:
        _apply_override(raw, override)
    return parse_config(raw)


def read_sections(path: str | Path, example: str = "generalist") -> dict[str, Any]:
    """Read the sections of a YAML file without checking them; `example` is an expected section, for error messages.

    Raises:
        ConfigError: the file is missing, not YAML, or has no sections.
    """
    try:
        with open(path, encoding="utf-8") as file:
            raw = yaml.load(file, Loader=_StrictLoader)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {one_line(error)}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must contain settings such as `{example}:`, got {type(raw).__name__}")
    return raw


class _StrictLoader(yaml.SafeLoader):
    """Rejects a key that is given twice in a section; YAML would keep the last one."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._checked_nodes: set[yaml.MappingNode] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Check the keys before merged keys (`<<`) are added to the node, which may repeat them."""
        if node not in self._checked_nodes:
            self._checked_nodes.add(node)
            seen: set[str] = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
                seen.add(key.value)
        super().flatten_mapping(node)


def parse_config(raw: dict[str, Any]) -> Config:
    """Parse a config from a dictionary.

    Raises:
        ConfigError: as `load_config`.
    """
    try:
        reject_secrets(raw)
        return Config.model_validate(raw)
    except RecursionError as error:
        raise ConfigError("a setting contains itself: an alias (*name) is used inside its own anchor") from error
    except ValidationError as error:
        raise ConfigError(format_validation_error(error, Config)) from error


def _apply_override(raw: dict[str, Any], override: str) -> None:
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
