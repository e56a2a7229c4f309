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

    name: str = Field("", description="name of the style: the file name without .yaml")
    about: str = Field(min_length=1, description="what the style does and where it comes from, in one line")
    system: str = Field("", description="system message; for models without one, it is put before the prompt")
    prompt: str = Field(description="prompt; {text} is replaced by the passage, {specialist} by excerpts of the specialist sample")
    max_output: float = Field(1.5, gt=0, description="maximum tokens of an answer, as a multiple of the passage's tokens, plus 64")
    length_ratio: tuple[float, float] = Field(
        (0.4, 2.0), description="minimum and maximum tokens of an answer, as a multiple of the passage's tokens"
    )
    expected_ratio: float = Field(
        1.0, gt=0, description="usual tokens of an answer, as a multiple of the passage's tokens; for planning"
    )
    thought_ratio: float = Field(
        0.0, ge=0, description="usual tokens of thoughts before an answer, as a multiple of the passage's tokens; for the estimate"
    )
    min_tokens: int = Field(16, ge=1, description="shorter passages are not rewritten")
    min_similarity: float = Field(0.6, ge=-1, le=1, description="minimum cosine of the embeddings of answer and passage")
    skip_filters: list[str] = Field(default=[], description="filter rules that do not apply to this style")
    join: str = Field("\n\n", description="separator between the answers to the passages of one window")

    @field_validator("system", "prompt")
    @classmethod
    def _strip(cls, text: str) -> str:
        return text.strip()  # a YAML block scalar ends with a newline, which the model should not see

    @field_validator("prompt")
    @classmethod
    def _require_text_placeholder(cls, prompt: str) -> str:
        if "{text}" not in prompt:
            raise ValueError("must contain {text}, which is replaced by the passage")
        return prompt

    @field_validator("system", "prompt")
    @classmethod
    def _reject_misspelt_placeholders(cls, prompt: str) -> str:
        for name in re.findall(r"\{(\w+)\}", prompt):
            near = difflib.get_close_matches(name.lower(), PLACEHOLDERS, n=1, cutoff=0.7)
            if name not in PLACEHOLDERS and near:
                raise ValueError(f"contains the unknown placeholder {{{name}}}; did you mean {{{near[0]}}}?")
        return prompt

    @field_validator("skip_filters")
    @classmethod
    def _check_rules(cls, rules: list[str]) -> list[str]:
        if unknown := sorted(set(rules) - set(RULES)):
            raise ValueError(f"unknown rule {unknown[0]!r}; known: {', '.join(RULES)}")
        return rules

    @model_validator(mode="after")
    def _check_limits(self) -> "Style":
        min_ratio, max_ratio = self.length_ratio
        if not 0 <= min_ratio <= self.expected_ratio <= max_ratio:
            raise ValueError(
                f"expected_ratio must be within length_ratio [{min_ratio}, {max_ratio}], got {self.expected_ratio}; "
                "set expected_ratio to the usual ratio, and length_ratio to the limits around it"
            )
        if self.max_output < self.expected_ratio:
            raise ValueError(
                f"max_output must be at least expected_ratio, got {self.max_output} < {self.expected_ratio}; "
                "raise max_output, else answers of the usual length are cut"
            )
        return self

    def applies(self, rule: str) -> bool:
        """Return whether a rule of RULES applies to this style."""
        return rule not in self.skip_filters


def load_style(name: str, folder: str | None = None) -> Style:
    """Load the style `<folder>/<name>.yaml`, else the built-in style of that name.

    Raises:
        ConfigError: the style is unknown, or its file is invalid.
    """
    if os.path.basename(name) != name:
        raise ConfigError(
            f"rephrase.styles: {name!r} is a path; give only the name of the style, and its folder as rephrase.styles_folder"
        )
    for styles_folder in [folder, BUILT_IN] if folder else [BUILT_IN]:
        path = os.path.join(str(styles_folder), f"{name}.yaml")
        if os.path.isfile(path):
            return _read_style(path, name)
    near = difflib.get_close_matches(name, list_style_names(folder), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(
        f"rephrase.styles: unknown style {name!r}; {hint}Known: {', '.join(list_style_names(folder))}. "
        "To use your own style, set rephrase.styles_folder to the folder that contains its .yaml file"
    )


def list_style_names(folder: str | None = None) -> list[str]:
    """Return the sorted names of all styles, built-in and in `folder`."""
    folders = [BUILT_IN, *([folder] if folder and os.path.isdir(folder) else [])]
    return sorted({name.removesuffix(".yaml") for path in folders for name in os.listdir(path) if name.endswith(".yaml")})


@functools.cache
def _read_style(path: str, name: str) -> Style:
    raw = read_sections(path, "prompt")
    try:
        return Style.model_validate({**raw, "name": name})
    except ValidationError as error:
        raise ConfigError(f"style {path}: {_format_error(error.errors()[0])}") from error


def _format_error(item: Any) -> str:
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
