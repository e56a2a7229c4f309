"""The settings of a comparison: a run, its arms as changes to that, held-out text, and the proxy model."""

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from pipeline.config import Config, Corpus, Section, explain_mistakes, parse_config, read_sections
from pipeline.errors import ConfigError
from pipeline.proxy.settings import ProxySettings


class Evidence(Section):
    """What is compared, and how."""

    run: dict[str, Any] | str = Field(description="the run that arms are changes of: its sections, or the file that holds them")
    arms: dict[str, dict[str, Any]] = Field(min_length=2, description="by name: sections that differ from the run's")
    baseline: str = Field("natural", description="the arm that differences are taken to")
    held_out: dict[str, Corpus] = Field(min_length=1, description="by name: text that no corpus and no sample may hold")
    held_out_windows: int = Field(400, ge=2, description="most windows of each held-out text that are scored, chosen by hash")
    tokenizer_windows: int = Field(4000, ge=100, description="most generalist windows that the proxy's tokenizer is trained on")
    seeds: int = Field(3, ge=2, description="proxies of each arm; they differ in weights and order")
    proxy: ProxySettings = ProxySettings()
    threads: int = Field(1, ge=1, description="cores of a training on CPUs; they change its last bits")

    def config_of(self, arm: str) -> Config:
        """The run of an arm.

        Raises:
            ConfigError: its settings are wrong; the arm is named.
        """
        assert isinstance(self.run, dict)
        try:
            return parse_config(_merged(self.run, self.arms[arm]))
        except ConfigError as error:
            raise ConfigError(f"arms.{arm}: {error}") from error


def load_evidence(path: str | Path) -> Evidence:
    """The comparison in a YAML file; a run given as a file is found from where that file lies.

    Raises:
        ConfigError: a file is missing or not YAML, a setting is unknown or out of range.
    """
    raw = read_sections(path, example="arms")
    if isinstance(raw.get("run"), str):
        raw["run"] = read_sections(os.path.join(os.path.dirname(path), raw["run"]))
    try:
        evidence = Evidence.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain_mistakes(error, Evidence)}") from error
    if evidence.baseline not in evidence.arms:
        raise ConfigError(
            f"{path}: baseline {evidence.baseline!r} is none of the arms ({', '.join(evidence.arms)}); name one of them, or add it"
        )
    return evidence


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the settings of `changes` put in, section by section."""
    merged = copy.deepcopy(dict(base))
    for name, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merged(merged[name], value) if both else copy.deepcopy(value)
    return merged
