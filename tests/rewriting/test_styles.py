"""Styles: the built-in ones are consistent, and errors in a user's file say how to fix it."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from pipeline.errors import ConfigError
from pipeline.rewriting.styles import BUILT_IN, RULES, Style, list_style_names, load_style
from tests.support.processes import ROOT

NAMES = [
    *("easy", "wikipedia", "hard", "qa"),  # WRAP
    *("faq", "math", "table", "tutorial"),  # FinePhrase
    *("nemotron_wikipedia", "diverse_qa", "distill", "extract_knowledge", "knowledge_list"),  # Nemotron-CC
    "guided_rewrite",  # REWIRE
    "in_domain",
]
GOOD = {"about": "mine", "prompt": "Say it again: {text}"}


def write(folder: Path, name: str, content: object) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def refusal(folder: Path, name: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_style(name, str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_built_in_styles_are_those_of_the_papers() -> None:
    assert list_style_names() == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_built_in_style_has_one_passage_and_consistent_limits(name: str) -> None:
    style = load_style(name)
    assert style.name == name
    assert style.prompt.count("{text}") == 1
    assert style.prompt.count("{specialist}") == (name == "in_domain")
    assert set(re.findall(r"\{.*?\}", style.prompt)) <= {"{text}", "{specialist}"}
    least, most = style.length_ratio
    assert 0 < least < style.expected_ratio < most <= style.max_output  # what may be kept is not cut
    assert 0 < style.min_similarity < 1
    assert style.prompt == style.prompt.strip()
    assert "alone" in style.prompt.splitlines()[-1]  # last thing read: nothing but the answer
    assert "language of the text" in style.prompt or "in its language" in style.prompt
    assert len(style.prompt) < 1200  # a prompt is paid for with each passage
    assert not style.system  # there are models without a system message


def test_built_in_prompts_and_descriptions_are_all_different() -> None:
    styles = [load_style(name) for name in NAMES]
    assert len({style.prompt for style in styles}) == len({style.about for style in styles}) == len(NAMES)


def test_filters_are_skipped_only_where_the_format_needs_it() -> None:
    skipped = {name: load_style(name).skip_filters for name in NAMES}
    assert {name: rules for name, rules in skipped.items() if rules} == {
        "table": ["copy", "repetition"],
        "extract_knowledge": ["copy"],
        "knowledge_list": ["copy"],
    }
    table = load_style("table")
    assert [rule for rule in RULES if not table.applies(rule)] == ["repetition", "copy"]


def test_style_files_are_part_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["pipeline"]
    packaged = {path for pattern in patterns for path in (ROOT / "pipeline").glob(pattern)}
    assert packaged >= set(Path(BUILT_IN).glob("*.yaml"))
    assert packaged == {path for path in (ROOT / "pipeline").rglob("*.*") if path.suffix not in (".py", ".pyc")}


def test_a_users_style_replaces_the_built_in_one_or_adds_to_them(tmp_path: Path) -> None:
    write(tmp_path, "qa", {**GOOD, "expected_ratio": 0.7})
    write(tmp_path, "mine", {**GOOD, "system": "Be brief.\n"})
    assert load_style("qa", str(tmp_path)) == Style(name="qa", about="mine", prompt="Say it again: {text}", expected_ratio=0.7)
    assert load_style("qa") != load_style("qa", str(tmp_path))
    assert load_style("mine", str(tmp_path)).system == "Be brief."
    assert load_style("easy", str(tmp_path)) == load_style("easy")
    assert list_style_names(str(tmp_path)) == sorted([*NAMES, "mine"])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"max_outputs": 2}, ["unknown setting max_outputs", "did you mean max_output?"]),
        ({"zzz": 2}, ["unknown setting zzz", "known: about, system, prompt"]),
        ({"prompt": "Say it again."}, ["prompt: must contain {text}, which is replaced by the passage", "got 'Say it again.'"]),
        ({"prompt": "word " * 1000}, ["prompt: must contain {text}", "…"]),
        ({"prompt": 3}, ["prompt: ", "string", "got 3"]),
        ({"skip_filters": ["copies"]}, ["skip_filters: unknown rule 'copies'", "known: empty", "similarity"]),
        ({"min_similarity": 2}, ["min_similarity: ", "less than or equal to 1", "got 2"]),
        ({"length_ratio": [0.4]}, ["setting length_ratio.1 is missing; length_ratio: minimum and maximum tokens"]),
        ({"length_ratio": 0.4}, ["length_ratio: ", "valid tuple, got 0.4"]),
        ({"length_ratio": [2.0, 0.4]}, ["expected_ratio must be within length_ratio [2.0, 0.4], got 1.0; set expected_ratio"]),
        ({"expected_ratio": 3}, ["expected_ratio must be within length_ratio [0.4, 2.0], got 3.0"]),
        ({"max_output": 0.5}, ["max_output must be at least expected_ratio, got 0.5 < 1.0"]),
        ({"max_output": float("nan")}, ["max_output", "got nan"]),
    ],
)
def test_an_invalid_setting_is_reported_with_its_file_and_a_fix(
    tmp_path: Path, changes: dict[str, object], expected: list[str]
) -> None:
    path = write(tmp_path, "mine", {**GOOD, **changes})
    message = refusal(tmp_path, "mine")
    assert message.startswith(f"style {path}: ")
    assert all(part in message for part in expected), message
    assert len(message) < len(str(path)) + 400


@pytest.mark.parametrize("missing", ["about", "prompt"])
def test_a_missing_setting_is_reported_with_its_description(tmp_path: Path, missing: str) -> None:
    path = write(tmp_path, "mine", {name: value for name, value in GOOD.items() if name != missing})
    assert refusal(tmp_path, "mine").startswith(f"style {path}: setting {missing} is missing; {missing}: ")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("prompt: [", "is not YAML: while parsing"),
        ("Say it again: {text} please: {", "is not YAML: "),
        ("about: a\nprompt: '{text}'\nabout: b", "is not YAML: about is given twice"),
        ("just words", "must contain settings such as `prompt:`, got str"),
        ("", "must contain settings such as `prompt:`, got NoneType"),
    ],
)
def test_an_invalid_style_file_is_reported(tmp_path: Path, content: str, expected: str) -> None:
    path = write(tmp_path, "mine", content)
    message = refusal(tmp_path, "mine")
    assert message.startswith(f"{path} ")
    assert expected in message


def test_a_binary_style_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\xfa")
    assert "mine.yaml is not YAML" in refusal(tmp_path, "mine")


def test_an_unknown_style_is_reported_with_the_known_ones_and_how_to_add_one(tmp_path: Path) -> None:
    write(tmp_path, "mine", GOOD)
    message = refusal(tmp_path, "mime")
    assert "rephrase.styles: unknown style 'mime'" in message
    assert all(f" {name}" in message for name in [*NAMES, "mine"])
    assert "rephrase.styles_folder" in message
    assert "rephrase.styles_folder" in refusal(tmp_path / "nowhere", "mime")


@pytest.mark.parametrize("typo", ["{specialst}", "{Text}", "{texts}"])
def test_a_misspelt_placeholder_is_reported(tmp_path: Path, typo: str) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"about": "a", "prompt": f"Say {{text}} like {typo}"}))
    with pytest.raises(ConfigError, match=r"contains the unknown placeholder .*; did you mean \{(text|specialist)\}\?"):
        load_style("mine", str(tmp_path))


def test_other_braces_in_a_prompt_are_allowed(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"about": "a", "prompt": "Write LaTeX such as \\frac{a}{b} of {text}"}))
    assert "{a}{b}" in load_style("mine", str(tmp_path)).prompt


def test_the_most_similar_style_is_suggested() -> None:
    with pytest.raises(ConfigError, match="did you mean wikipedia"):
        load_style("wikipeda")
