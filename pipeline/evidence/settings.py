"""Settings of a comparison: a base run, arms as changes to that run, held-out text, and the proxy model."""

import copy
import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from pipeline.config import Config, Corpus, Section, parse_config, read_sections
from pipeline.config.validation_errors import format_validation_error
from pipeline.errors import ConfigError
from pipeline.proxy.settings import ProxySettings

# The arm whose proxies are trained only on the specialist sample, for many epochs.
SPECIALIST_ONLY = "specialist-only"
# Arms that are defined by their name; settings given under such a name are merged into the preset.
PRESETS: dict[str, dict[str, Any]] = {
    "natural": {"weights": {"estimator": "natural"}},
    SPECIALIST_ONLY: {"weights": {"estimator": "natural"}},
    "density": {"weights": {"estimator": "density"}},
    "crisp": {"weights": {"estimator": "crisp"}},
    "crisp-top-cluster": {"weights": {"estimator": "top-cluster", "overflow": "leave"}},
    "crisp-shuffled": {"weights": {"estimator": "shuffled", "overflow": "leave"}},
    "dsir": {"weights": {"estimator": "dsir"}},
    "classifier": {"weights": {"estimator": "classifier"}},
    "nearest": {"weights": {"estimator": "nearest"}},
    "repeat": {"weights": {"max_epochs": 1000, "repeat_exponent": 1.0}},  # as in `rephrase`, repeats are not damped
    "rephrase": {},
}
POINT_SEPARATOR = " +"  # separates the arm from the natural share in the name of a curve's point
# Arms without a curve: a natural share would change nothing, or defeat the purpose of the arm.
_ARMS_WITHOUT_CURVE = ("natural", SPECIALIST_ONLY)


class Evidence(Section):
    """Settings of a comparison; see docs/evidence.md."""

    run: dict[str, Any] | str = Field(
        description="the base run, which the arms change: its sections, or the path of its config file"
    )
    arms: dict[str, dict[str, Any] | None] = Field(
        min_length=2, description="by name: settings that differ from the base run; null for a preset without changes"
    )
    natural_shares: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        default=[], description="further natural shares of each arm; its runs with different shares form a curve"
    )
    baseline: str = Field("natural", description="the arm that the others are compared with")
    held_out: dict[str, Corpus] = Field(
        min_length=1, description="by name: text that must not occur in any corpus or specialist sample"
    )
    held_out_windows: int = Field(
        400, ge=2, description="maximum number of windows that are scored per held-out text, selected by hash"
    )
    tokenizer_windows: int = Field(
        4000, ge=100, description="maximum number of generalist windows that the tokenizer of the proxies is trained on"
    )
    seeds: int = Field(
        3, ge=2, description="number of proxies per arm; they differ in their initial weights and the order of the text"
    )
    proxy: ProxySettings = ProxySettings()
    threads: int = Field(1, ge=1, description="CPU threads per training; another number changes the last bits of the result")

    @field_validator("arms")
    @classmethod
    def _check_arms(cls, arms: dict[str, dict[str, Any] | None]) -> dict[str, dict[str, Any] | None]:
        for arm, changes in arms.items():
            if changes is None and arm not in PRESETS:
                matches = difflib.get_close_matches(arm, PRESETS, n=1)
                hint = f"did you mean {matches[0]}?" if matches else f"add settings, or use a preset: {', '.join(PRESETS)}"
                raise ValueError(f"{arm} has no settings and is not a preset; {hint}")
            if empty := [name for name, value in (changes or {}).items() if value is None]:
                raise ValueError(f"{arm}: section {empty[0]} is empty; add settings to it, or remove it")
            if "workdir" in (changes or {}):
                raise ValueError(f"{arm}: arms cannot set workdir, because they share the workdir of the run; remove it")
            if POINT_SEPARATOR in arm:
                raise ValueError(f"{arm!r}: '{POINT_SEPARATOR}' is reserved for the names of curve points; choose another name")
            if not arm or arm.startswith("_"):
                raise ValueError(f"{arm!r}: plots omit arms whose names are empty or begin with '_'; choose another name")
            preset, changed = PRESETS.get(arm, {}).get("weights", {}), (changes or {}).get("weights", {})
            if differing := [key for key in preset if changed.get(key, preset[key]) != preset[key]]:
                name = differing[0]
                raise ValueError(
                    f"{arm} is a preset with weights.{name} {preset[name]}, got {changed[name]}; "
                    "give an arm with other settings another name"
                )
        return arms

    @field_validator("natural_shares")
    @classmethod
    def _check_natural_shares(cls, shares: list[float]) -> list[float]:
        if repeated := [share for share in shares if shares.count(share) > 1]:
            raise ValueError(f"share {repeated[0]:g} is listed more than once; remove the repeats")
        return sorted(shares)

    def build_config(self, arm: str) -> Config:
        """The config of an arm. The run's section `rephrase` is used only for the arm `rephrase` and for arms that change it.

        Raises:
            ConfigError: the settings are invalid; the message names the arm.
        """
        assert isinstance(self.run, dict)
        name, changes = arm.partition(POINT_SEPARATOR)[0], self.changes[arm]
        settings = _merge(self.run, changes)
        if name != "rephrase" and "rephrase" not in changes:
            settings.pop("rephrase", None)
        elif not settings.get("rephrase"):
            raise ConfigError(
                "arms.rephrase: the run has no section rephrase; add `rephrase: {model: …}` to it (README, Rewriting)"
            )
        if isinstance(settings.get("rephrase"), dict):
            settings["rephrase"] = {**settings["rephrase"], "titles": False}  # an arm's cluster titles are not shown
        try:
            return parse_config(settings)
        except ConfigError as error:
            raise ConfigError(f"arms.{name}: {error}") from error

    @property
    def changes(self) -> dict[str, dict[str, Any]]:
        """The settings that each arm changes in the run, including presets and curve points, in the order of the table."""
        changes_by_arm: dict[str, dict[str, Any]] = {}
        for arm, changes in self.arms.items():
            merged = _merge(PRESETS.get(arm, {}), changes or {})
            changes_by_arm[arm] = merged
            if merged.get("weights", {}).get("estimator") == "natural" or arm in _ARMS_WITHOUT_CURVE:
                continue
            for share in self.natural_shares:
                changes_by_arm[name_curve_point(arm, share)] = _merge(merged, {"weights": {"natural_share": share}})
        return changes_by_arm


def name_curve_point(arm: str, share: float) -> str:
    """The name of the point at a natural share on the curve of an arm."""
    return f"{arm}{POINT_SEPARATOR}{100 * share:g}%"


def load_evidence(path: str | Path) -> Evidence:
    """Read a comparison from a YAML file; if `run` is a path, it is relative to the folder of that file.

    Raises:
        ConfigError: a file is missing or not YAML, a setting is unknown or out of range, or the baseline is not one of the arms.
    """
    raw = read_sections(path, example="arms")
    if isinstance(raw.get("run"), str):
        raw["run"] = read_sections(os.path.join(os.path.dirname(path), raw["run"]))
    try:
        evidence = Evidence.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: {format_validation_error(error, Evidence)}") from error
    if evidence.baseline not in evidence.arms:
        raise ConfigError(
            f"{path}: baseline {evidence.baseline!r} is not one of the arms ({', '.join(evidence.arms)}); choose one, or add it"
        )
    return evidence


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `base` with the settings of `changes` merged in recursively."""
    merged = copy.deepcopy(dict(base))
    for name, value in changes.items():
        both_sections = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merge(merged[name], value) if both_sections else copy.deepcopy(value)
    return merged
