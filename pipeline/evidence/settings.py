"""Settings of a comparison: a base run, arms as changes to that run, held-out text, and the proxy model."""

import copy
import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from pipeline.config import Config, Corpus, Section, parse_config, read_sections
from pipeline.config.validation_errors import explain_mistakes
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
POINT = " +"  # separates the arm from the natural share in the name of a curve's point
# Arms without a curve: a natural share would change nothing, or defeat the purpose of the arm.
_WITHOUT_CURVE = ("natural", SPECIALIST_ONLY)


class Evidence(Section):
    """Settings of a comparison; see docs/evidence.md."""

    run: dict[str, Any] | str = Field(description="the run that arms are changes of: its sections, or the file that holds them")
    arms: dict[str, dict[str, Any] | None] = Field(
        min_length=2, description="by name: sections that differ from the run's; null for an arm that its name describes"
    )
    natural_shares: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        default=[], description="a curve: each arm, beside its own natural share, also with these"
    )
    baseline: str = Field("natural", description="the arm that differences are taken to")
    held_out: dict[str, Corpus] = Field(min_length=1, description="by name: text that no corpus and no sample may hold")
    held_out_windows: int = Field(400, ge=2, description="most windows of each held-out text that are scored, chosen by hash")
    tokenizer_windows: int = Field(4000, ge=100, description="most generalist windows that the proxy's tokenizer is trained on")
    seeds: int = Field(3, ge=2, description="proxies of each arm; they differ in weights and order")
    proxy: ProxySettings = ProxySettings()
    threads: int = Field(1, ge=1, description="cores of a training on CPUs; they change its last bits")

    @field_validator("arms")
    @classmethod
    def _arms(cls, arms: dict[str, dict[str, Any] | None]) -> dict[str, dict[str, Any] | None]:
        for arm, given in arms.items():
            if given is None and arm not in PRESETS:
                near = difflib.get_close_matches(arm, PRESETS, n=1)
                hint = f"; did you mean {near[0]}?" if near else f"; known by name are {', '.join(PRESETS)}"
                raise ValueError(f"{arm} says nothing of what it changes{hint}")
            if any(value is None for value in (given or {}).values()):
                raise ValueError(f"{arm} has a section without settings; leave it out, or say what it changes")
            if "workdir" in (given or {}):
                raise ValueError(f"{arm}: all arms lie in the run's workdir; take it out")
            if POINT in arm:
                raise ValueError(f"{arm!r}: names with '{POINT}' are those of the points of curves; choose another")
            if not arm or arm.startswith("_"):
                raise ValueError(f"{arm!r}: pictures leave out names that begin with '_'; choose another")
            preset, changed = PRESETS.get(arm, {}).get("weights", {}), (given or {}).get("weights", {})
            if differing := [key for key in preset if changed.get(key, preset[key]) != preset[key]]:
                raise ValueError(
                    f"{arm} is the name of weights.{differing[0]} {preset[differing[0]]}; give other settings another name"
                )
        return arms

    @field_validator("natural_shares")
    @classmethod
    def _shares(cls, shares: list[float]) -> list[float]:
        if len(set(shares)) < len(shares):
            raise ValueError("a share is named twice; leave one out")
        return sorted(shares)

    def config_of(self, arm: str) -> Config:
        """The config of an arm. The run's section `rephrase` is used only for the arm `rephrase` and for arms that change it.

        Raises:
            ConfigError: the settings are invalid; the message names the arm.
        """
        assert isinstance(self.run, dict)
        name, changes = arm.partition(POINT)[0], self.changes[arm]
        settings = _merged(self.run, changes)
        if name != "rephrase" and "rephrase" not in changes:
            settings.pop("rephrase", None)
        elif not settings.get("rephrase"):
            raise ConfigError("arms.rephrase: the run has no section rephrase; add `rephrase: {model: …}` (README, Rewriting)")
        if isinstance(settings.get("rephrase"), dict):
            settings["rephrase"] = {**settings["rephrase"], "titles": False}  # an arm's cluster titles are not shown
        try:
            return parse_config(settings)
        except ConfigError as error:
            raise ConfigError(f"arms.{name}: {error}") from error

    @property
    def changes(self) -> dict[str, dict[str, Any]]:
        """The settings that each arm changes in the run, presets and points of curves included, in the order of the table."""
        found: dict[str, dict[str, Any]] = {}
        for arm, given in self.arms.items():
            found[arm] = _merged(PRESETS.get(arm, {}), given or {})
            if found[arm].get("weights", {}).get("estimator") == "natural" or arm in _WITHOUT_CURVE:
                continue
            for share in self.natural_shares:
                found[with_share(arm, share)] = _merged(found[arm], {"weights": {"natural_share": share}})
        return found


def with_share(arm: str, share: float) -> str:
    """The name of the point of an arm's curve at a natural share."""
    return f"{arm}{POINT}{100 * share:g}%"


def load_evidence(path: str | Path) -> Evidence:
    """Read a comparison from a YAML file; if `run` is a path, it is relative to the folder of that file.

    Raises:
        ConfigError: a file is missing or not YAML, a setting is unknown or out of range, or the baseline is none of the arms.
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
    """A copy of `base` with the settings of `changes` merged in recursively."""
    merged = copy.deepcopy(dict(base))
    for name, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merged(merged[name], value) if both else copy.deepcopy(value)
    return merged
