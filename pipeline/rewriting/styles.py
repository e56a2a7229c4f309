"""Rewriting styles, one YAML file each. `rephrase.styles_folder` adds a user's own."""

import difflib
import functools
import os
import re
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from pipeline.config import Section, read_sections
from pipeline.errors import ConfigError

BUILT_IN = os.path.join(os.path.dirname(__file__), "styles")

PLACEHOLDERS = ("text", "specialist")  # written in braces in a prompt

# In the order of application; the first that fails is the reason. `held_out` needs the held-out text, `similarity` an embedder.
RULES = (
    "empty",
    "broken_text",
    "unfinished_thought",
    "cut",
    "refusal",
    "prompt_leak",
    "example_leak",
    "length_ratio",
    "repetition",
    "language",
    "copy",
    "held_out",
    "similarity",
)


class Style(Section):
    """The content of a style file: prompt, limits, and the filters that apply."""

    name: str = Field("", description="of the file, without .yaml")
    about: str = Field(min_length=1, description="what it does and where it comes from, in a line")
    system: str = Field("", description="system message; models without one get it before the prompt")
    prompt: str = Field(description="holds {text}, and {specialist} where examples of the specialist's sample are to stand")
    max_output: float = Field(1.5, gt=0, description="most tokens of the answer, as a multiple of the passage's, plus 64")
    length_ratio: tuple[float, float] = Field((0.4, 2.0), description="least and most tokens of an answer, in those of its passage")
    expected_ratio: float = Field(1.0, gt=0, description="tokens of a usual answer, in those of its passage; for planning")
    thought_ratio: float = Field(0.0, ge=0, description="tokens of thoughts before a usual answer, in the same; for the estimate")
    min_tokens: int = Field(16, ge=1, description="shorter passages are left out")
    min_similarity: float = Field(0.6, ge=-1, le=1, description="cosine of the embeddings of answer and passage, at least")
    skip_filters: list[str] = Field(default=[], description="rules that do not apply, of RULES")
    join: str = Field("\n\n", description="between the answers to the passages of one window")

    @field_validator("system", "prompt")
    @classmethod
    def _stripped(cls, text: str) -> str:
        return text.strip()  # a YAML block scalar ends with a newline, which the model should not see

    @field_validator("prompt")
    @classmethod
    def _placeholder(cls, prompt: str) -> str:
        if "{text}" not in prompt:
            raise ValueError("must hold {text}, where the passage goes")
        return prompt

    @field_validator("system", "prompt")
    @classmethod
    def _misspelt(cls, prompt: str) -> str:
        for found in re.findall(r"\{(\w+)\}", prompt):
            near = difflib.get_close_matches(found.lower(), PLACEHOLDERS, n=1, cutoff=0.7)
            if found not in PLACEHOLDERS and near:
                raise ValueError(f"has {{{found}}}, which would go to the model as it is; did you mean {{{near[0]}}}?")
        return prompt

    @field_validator("skip_filters")
    @classmethod
    def _rules(cls, rules: list[str]) -> list[str]:
        if unknown := sorted(set(rules) - set(RULES)):
            raise ValueError(f"{unknown[0]!r} is no rule; known: {', '.join(RULES)}")
        return rules

    @model_validator(mode="after")
    def _limits(self) -> "Style":
        least, most = self.length_ratio
        if not 0 <= least <= self.expected_ratio <= most:
            raise ValueError(
                f"expected_ratio must lie within length_ratio [{least}, {most}], got {self.expected_ratio}; "
                "set both to what answers are like"
            )
        if self.max_output < self.expected_ratio:
            raise ValueError(
                f"max_output must be at least expected_ratio, got {self.max_output} < {self.expected_ratio}; "
                "raise it, or usual answers are cut"
            )
        return self

    def applies(self, rule: str) -> bool:
        """Return whether a rule of RULES applies to this style."""
        return rule not in self.skip_filters


def load_style(name: str, folder: str | None = None) -> Style:
    """Load the style `<folder>/<name>.yaml`, else the built-in style of that name.

    Raises:
        ConfigError: there is no such style, or its file is invalid.
    """
    if os.path.basename(name) != name:
        raise ConfigError(f"rephrase.styles has {name!r}; give the name of a style, and its folder as rephrase.styles_folder")
    for place in [folder, BUILT_IN] if folder else [BUILT_IN]:
        path = os.path.join(str(place), f"{name}.yaml")
        if os.path.isfile(path):
            return _read(path, name)
    near = difflib.get_close_matches(name, style_names(folder), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(
        f"rephrase.styles has {name!r}, and there is no such style; {hint}Known: {', '.join(style_names(folder))}. "
        "For one of your own, set rephrase.styles_folder to the folder of its .yaml"
    )


def style_names(folder: str | None = None) -> list[str]:
    """Return the sorted names of all styles, built-in and in `folder`."""
    places = [BUILT_IN, *([folder] if folder and os.path.isdir(folder) else [])]
    return sorted({name.removesuffix(".yaml") for place in places for name in os.listdir(place) if name.endswith(".yaml")})


@functools.cache
def _read(path: str, name: str) -> Style:
    raw = read_sections(path, "prompt")
    try:
        return Style.model_validate({**raw, "name": name})
    except ValidationError as error:
        raise ConfigError(f"the style {path}: {_explain(error.errors()[0])}") from error


def _explain(item: Any) -> str:
    """Format a pydantic error as one line: the setting, the rule, and the value or a suggestion."""
    setting = ".".join(str(step) for step in item["loc"])
    if item["type"] == "extra_forbidden":
        known = [name for name in Style.model_fields if name != "name"]
        near = difflib.get_close_matches(setting, known, n=1, cutoff=0.5)
        return f"unknown setting {setting}; " + (f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}")
    if item["type"] == "missing":
        # A setting, or one of its two numbers.
        return f"setting {setting} is missing; {item['loc'][0]}: {Style.model_fields[str(item['loc'][0])].description}"
    message = str(item["msg"]).removeprefix("Value error, ")
    if not setting:
        return message
    value = repr(item["input"])
    return f"{setting}: {message[:1].lower()}{message[1:]}, got {value if len(value) <= 80 else value[:79] + '…'}"
