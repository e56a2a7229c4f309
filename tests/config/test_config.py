import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import Placement, load_config, parse_config, read_sections
from pipeline.errors import ConfigError

BASE: dict[str, Any] = {
    "workdir": "runs/x",
    "generalist": {"paths": ["a.jsonl"]},
    "specialists": {"law": {"paths": ["b.jsonl"]}},
    "sample": {"budget_tokens": 1000},
}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("clutser", {"depth": 1}, "unknown setting clutser; did you mean cluster?"),
        ("cluster.brnching", 3, "unknown setting cluster.brnching; did you mean cluster.branching?"),
        ("specialists.law.shar", 1, "did you mean specialists.law.share?"),
        ("cluster.branching", 1, "cluster.branching: input should be greater than or equal to 2, got 1"),
        ("weights.smoothing", "often", "weights.smoothing: input should be 'auto' or 'none'"),
        ("weights.max_epochs", float("nan"), "weights.max_epochs"),
        ("sample", {}, "setting sample.budget_tokens is missing"),
        ("specialists", {}, "specialists"),
        ("specialists.natural", {"paths": ["x"]}, "is not a valid specialist name"),
        ("specialists.generalist", {"paths": ["x"]}, "is not a valid specialist name"),
        ("sample.budget_tokens", "2.5", "sample.budget_tokens"),
        ("rephrase", {"model": "m", "sampling": {"temperature": -3}}, "temperature must be a number from 0 to 10, got -3"),
        ("rephrase", {"model": "m", "sampling": {"top_p": "high"}}, "top_p must be a number"),
        ("rephrase", {"model": "m", "sampling": {"max_tokens": 3}}, "max_tokens cannot be set here: set max_output in the style"),
        ("rephrase", {"model": "m", "sampling": {"n": 2}}, "n cannot be set here: set rephrase.variants"),
        ("embed", {"model": "lsi", "pool": "mean"}, "embed.pool: mean has no effect with lsi"),
        ("sample.budget_tokens", True, "sample.budget_tokens: give a number, got True"),
        ("cluster.branching", True, "cluster.branching: give a number, got True"),
        ("engine", {"workers": True}, "engine.workers: give a number, got True"),
        (
            "engine",
            {"placement": {"embed": {"labels": {"kind": "in(gpu"}}}},
            "kind: 'in(gpu' is not a valid selector: use `value`, `!value`, `in(a,b)`",
        ),
        ("engine", {"placement": {"embed": {"labels": {"bad key!": "gpu"}}}}, "'bad key!' is not a valid label name"),
        ("engine", {"placement": {"embed": {"resources": {"CPU": 1}}}}, "'CPU' is not a custom resource"),
        (
            "engine",
            {"placement": {"embed": {"resources": {"slot": 1.5}}}},
            "give an amount of at most 1, or a whole number, got 1.5",
        ),
    ],
)
def test_an_invalid_setting_is_named_with_the_remedy(path: str, value: Any, message: str) -> None:
    raw = copy.deepcopy(BASE)
    *sections, last = path.split(".")
    target = raw
    for section in sections:
        target = target.setdefault(section, {})
    target[last] = value
    with pytest.raises(ConfigError) as caught:
        parse_config(raw)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_budget_in_scientific_notation_is_parsed() -> None:
    assert parse_config(BASE | {"sample": {"budget_tokens": "2e9"}}).sample.budget_tokens == 2_000_000_000


def test_specialists_are_sorted_by_name() -> None:
    names = ["b", "a", "c"]
    for order in (names, names[::-1]):
        raw = BASE | {"specialists": {name: {"paths": [name]} for name in order}}
        assert list(parse_config(raw).specialists) == ["a", "b", "c"]


def test_overrides_reach_nested_settings(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "workdir: x\ngeneralist: {paths: [a]}\nspecialists: {law: {paths: [b]}}\nsample: {budget_tokens: 5}\n", encoding="utf-8"
    )
    config = load_config(
        file, ["cluster.depth=3", "specialists.law.share=2.5", "generalist.paths=[c, d]", "weights.smoothing=none"]
    )
    assert (config.cluster.depth, config.specialists["law"].share) == (3, 2.5)
    assert (config.generalist.paths, config.weights.smoothing) == (["c", "d"], "none")


@pytest.mark.parametrize("override", ["cluster.depth", "=3", "seed.deep=1"])
def test_an_override_without_a_setting_is_rejected(override: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("workdir: x\nseed: 1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="--set"):
        load_config(file, [override])


@pytest.mark.parametrize(
    ("selectors", "labels", "matches"),
    [
        ({"kind": "gpu"}, {"kind": "gpu", "zone": "a"}, True),
        ({"kind": "gpu"}, {"kind": "cpu"}, False),
        ({"kind": "gpu"}, {}, False),
        ({"kind": "!gpu"}, {"kind": "cpu"}, True),
        ({"kind": "!gpu"}, {"kind": "gpu"}, False),
        ({"ray.io/accelerator-type": "in(H100,H200)"}, {"ray.io/accelerator-type": "H200"}, True),
        ({"ray.io/accelerator-type": "in(H100, H200)"}, {"ray.io/accelerator-type": "A100"}, False),
        ({"kind": "!in(a,b)"}, {"kind": "b"}, False),
        ({"kind": "!in(a,b)"}, {"kind": "c"}, True),
        ({"kind": "gpu", "zone": "a"}, {"kind": "gpu", "zone": "b"}, False),
    ],
)
def test_placement_matches_nodes_by_labels_and_resources(selectors: dict[str, str], labels: dict[str, str], matches: bool) -> None:
    assert Placement(labels=selectors).matches_node(labels, {}) == matches
    assert Placement(labels=selectors, resources={"slot": 2}).matches_node(labels, {"CPU": 4.0, "slot": 2.0}) == matches
    assert not Placement(labels=selectors, resources={"slot": 2}).matches_node(labels, {"CPU": 4.0, "slot": 1.0})


def test_a_repeated_key_or_a_recursive_section_is_rejected(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    text = yaml.safe_dump(BASE)
    file.write_text(text + "sample: {budget_tokens: 2}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"run\.yaml is not YAML: sample is given twice in .*line \d+"):
        load_config(file)
    file.write_text("base: &base {budget_tokens: 5}\n" + text.replace("sample:", "sample:\n  <<: *base"), encoding="utf-8")
    with pytest.raises(ConfigError, match="unknown setting base"):  # a merged key may be repeated
        load_config(file)
    # Also in nested merges, in any order.
    nested = "arms: {a: {weights: &light {k: 1}}, b: {weights: &heavy {<<: *light, k: 2}}}\nproxy: {<<: *heavy}\n"
    file.write_text(nested, encoding="utf-8")
    assert read_sections(file)["proxy"] == {"k": 2}
    file.write_text(text + "embed: &a {model: [*a]}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="a setting contains itself"):
        load_config(file)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\xff"], ids=["a list", "not YAML", "not UTF-8"])
def test_a_file_that_is_not_a_config_is_one_clear_line(text: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        load_config(file)
    with pytest.raises(ConfigError, match=r"cannot read .*none\.yaml"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({}, (2.0, 0.25)),
        ({"repeat_exponent": 1.0}, (1.0, 1.0)),
        ({"repeat_exponent": 0.5}, (2.0, 0.5)),
        ({"sharpness": 1.0}, (1.0, 0.25)),
        ({"overflow": "leave"}, (1.0, 1.0)),
        ({"estimator": "crisp"}, (1.0, 1.0)),
        ({"estimator": "crisp", "repeat_exponent": 0.5}, (1.0, 0.5)),
    ],
)
def test_default_sharpness_is_2_with_damped_repeats(weights: dict[str, Any], expected: tuple[float, float]) -> None:
    config = parse_config(BASE | {"weights": weights})
    assert (config.sharpness, config.repeat_exponent) == expected
    rewritten = parse_config(BASE | {"rephrase": {"model": "x"}, "weights": weights})
    if not weights:
        assert (rewritten.sharpness, rewritten.repeat_exponent) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({}, 0.1),
        ({"natural_share": None}, 0.1),
        ({"overflow": "leave"}, 0.1),
        ({"estimator": "crisp"}, 0.1),
        ({"estimator": "dsir"}, 0.0),
        ({"estimator": "classifier"}, 0.0),
        ({"estimator": "nearest"}, 0.0),
        ({"estimator": "natural"}, 0.0),
        ({"estimator": "top-cluster"}, 0.0),
        ({"estimator": "shuffled"}, 0.0),
        ({"natural_share": 0}, 0.0),
        ({"natural_share": 0.4}, 0.4),
        ({"estimator": "dsir", "natural_share": 0.1}, 0.1),
    ],
)
def test_default_natural_share_is_a_tenth_except_for_baselines_and_controls(weights: dict[str, Any], expected: float) -> None:
    assert parse_config(BASE | {"weights": weights}).natural_share == expected
    rewritten = parse_config(BASE | {"rephrase": {"model": "x"}, "weights": weights})
    assert rewritten.natural_share == expected


def test_default_natural_share_of_the_ending_follows_its_estimator() -> None:
    def phases(weights: dict[str, Any], ending: dict[str, Any]) -> list[float]:
        config = parse_config(BASE | {"weights": weights, "schedule": {"ending": {"weights": ending}}})
        return [phase.natural_share for phase in config.phases]

    assert phases({}, {"estimator": "dsir"}) == [0.1, 0.0]
    assert phases({"estimator": "natural"}, {"estimator": "crisp"}) == [0.0, 0.1]
    assert phases({"natural_share": 0.3}, {"estimator": "dsir"}) == [0.3, 0.3]
    assert phases({"natural_share": 0.3}, {"natural_share": None}) == [0.3, 0.1]
    assert phases({}, {"natural_share": 0}) == [0.1, 0.0]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"estimator": "crisp", "sharpness": 2}, "sharpness has no effect with estimator crisp"),
        ({"overflow": "leave", "repeat_exponent": 0.5}, "repeat_exponent has no effect with overflow: leave"),
    ],
)
def test_settings_without_effect_are_rejected(weights: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(BASE | {"weights": weights})
