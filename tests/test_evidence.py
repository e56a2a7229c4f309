"""Comparisons: planted topics, of which the proxies must find the better corpus, on a real Ray."""

import io
import itertools
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import yaml
from conftest import topic_documents, write_jsonl
from fake_endpoint import FakeEndpoint
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from pipeline.errors import ConfigError, InputError
from pipeline.evidence.curves import curves_of, lowest, plain_arms, versus
from pipeline.evidence.plots import drawn
from pipeline.evidence.settings import Evidence, load_evidence
from pipeline.evidence.steps import Comparison, compare, plan_evidence
from pipeline.evidence.table import difference_interval, rendered, rows_of
from pipeline.storage import Folder

ROOT = Path(__file__).parent.parent


@pytest.fixture
def comparison(topics: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    held_out = {
        topic: {"paths": [write_jsonl(tmp_path / f"{topic}-test.jsonl", topic_documents(topic, 12, seed=7))]}
        for topic in ("law", "music")
    }
    return {
        "run": topics,
        "arms": {"natural": {"weights": {"estimator": "natural"}}, "crisp": {}},
        "held_out": held_out,
        "seeds": 2,
        "tokenizer_windows": 200,
        "proxy": {"vocabulary": 400, "context": 32, "batch": 4, "tokens": 6000, "evaluations": 2},
    }


def printed(lines: Iterable[RenderableType]) -> str:
    console = Console(file=io.StringIO(), width=200)
    for line in lines:
        console.print(line)
    return cast("io.StringIO", console.file).getvalue()


def made(raw: dict[str, Any]) -> Comparison:
    planned = plan_evidence(Evidence.model_validate(raw))
    compare(planned)
    return planned


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_the_proxies_find_the_corpus_that_was_made_for_the_specialist(comparison: dict[str, Any]) -> None:
    done = made(comparison)
    natural, crisp = rows_of(done)
    assert (natural.arm, crisp.arm) == ("natural", "crisp")
    assert crisp.figures["law"].high < 0 < crisp.figures["music"].low  # better on law, worse on the rest, and surely so
    assert natural.figures["law"].difference == natural.figures["law"].low == natural.figures["law"].high == 0
    for row in (natural, crisp):
        for name, figure in row.figures.items():
            seeds = done.proxies[row.arm].manifest["seeds"]
            each = [sum(seed["bits"][name]) / sum(seed["bytes"][name]) for seed in seeds]
            assert figure.mean == pytest.approx(np.mean(each))
            assert figure.deviation == pytest.approx(np.std(each, ddof=1))
            assert each == pytest.approx([seed["points"][-1]["bits_per_byte"][name] for seed in seeds])
        assert row.selection_s > 0
        assert row.training_s > 0
    # Both arms read the same windows and trees, and the same tokenizer.
    runs = done.runs.values()
    assert len({run.step("cluster").fingerprint for run in runs}) == 1
    assert len({run.step("sample").fingerprint for run in runs}) == 2

    # Again, nothing is left to do; a further arm trains only itself, and the others stay as they are.
    again = plan_evidence(Evidence.model_validate(comparison))
    assert all(step.done for step in again.proxies.values())
    comparison["arms"]["half"] = {"weights": {"natural_share": 0.5}}
    more = plan_evidence(Evidence.model_validate(comparison))
    assert {arm: step.done for arm, step in more.proxies.items()} == {"natural": True, "crisp": True, "half": False}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_the_sample_alone_is_an_arm_and_shares_make_curves(comparison: dict[str, Any], tmp_path: Path) -> None:
    comparison |= {"arms": {"natural": None, "specialist-only": None, "crisp": None}, "natural_shares": [0.5]}
    done = made(comparison)
    rows = {row.arm: row for row in rows_of(done)}
    assert list(rows) == ["natural", "specialist-only", "crisp", "crisp +50%"]
    assert done.runs["crisp +50%"].config.weights.natural_share == 0.5
    assert "prepare legal" in done.proxies["specialist-only"].inputs
    assert "sample" not in done.proxies["specialist-only"].inputs
    assert rows["specialist-only"].selection_s == 0
    assert rows["specialist-only"].epochs > 1
    law = {arm: row.figures["law"].mean for arm, row in rows.items()}
    assert law["crisp"] < law["crisp +50%"] < law["natural"]
    # At the price of the sample alone, which is far from what else there is, the curve is where it gains most.
    (one,) = versus(done, "music")
    assert (one.curve, one.point) == ("crisp", "specialist-only")
    assert one.gain is not None
    assert one.gain.value == pytest.approx(law["crisp"] - law["specialist-only"])
    assert one.gain.low <= one.gain.value <= one.gain.high
    assert one.point_price == pytest.approx(rows["specialist-only"].figures["music"].difference)
    said = printed(rendered(done, list(rows.values())))
    assert "curve of" in said
    assert f"{one.gain.value:+.3f}" in said
    pictures = drawn(done, list(rows.values()), Folder(str(tmp_path / "pictures")))
    assert [Path(path).name for path in pictures] == ["curves.svg", "training.svg"]
    said = Path(pictures[0]).read_text(encoding="utf-8")
    for word in ("crisp", "natural", "specialist-only", "law, bits per byte", "music, bits per byte"):
        assert word in said


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_rewriting_is_for_the_arms_that_ask_for_it(comparison: dict[str, Any]) -> None:
    with FakeEndpoint() as server:
        rephrase = {"model": "fake", "backend": "endpoint", "endpoint": {"url": server.url}, "styles": ["wikipedia"]}
        run = comparison["run"] | {"rephrase": rephrase, "weights": {"estimator": "crisp", "max_epochs": 1.0, "bootstrap": 0}}
        arms: dict[str, Any] = {"natural": None, "repeat": None, "rephrase": None}
        done = made(comparison | {"run": run, "arms": arms})
        arms["rephrase-qa"] = {"rephrase": {"styles": ["qa"]}}
        assert Evidence.model_validate(comparison | {"run": run, "arms": arms}).config_of("rephrase-qa").rephrase.styles == ["qa"]
    styles = {arm: its.step("sample").manifest["tokens_by_style"] for arm, its in done.runs.items()}
    assert (styles["natural"], styles["repeat"], list(styles["rephrase"])) == ({}, {}, ["wikipedia"])
    natural, repeat, rephrase = rows_of(done)
    assert natural.unique == 1.0 > repeat.unique
    # The topic's own text is passed over once in one arm, as often as it takes in the other; both are better than natural text.
    for row in (repeat, rephrase):
        assert row.figures["law"].mean < natural.figures["law"].mean


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_the_sample_alone_can_be_the_baseline_of_arms_with_other_windows(comparison: dict[str, Any]) -> None:
    arms = {"specialist-only": None, "crisp": {"window": {"tokens": 48}}}
    done = made(comparison | {"arms": arms, "baseline": "specialist-only"})
    assert [row.arm for row in rows_of(done)] == list(arms)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_seed_that_is_there_is_not_trained_again(comparison: dict[str, Any]) -> None:
    done = made(comparison)
    step = done.proxies["crisp"]
    kept = step.folder.read_bytes("seed-0.json")
    step.folder.remove("manifest.json")
    step.folder.remove("seed-1.json")
    step.folder.write_bytes("seed-0.json", kept.replace(b'"seed": 0', b'"seed": 77'))
    again = made(comparison)
    assert [seed["seed"] for seed in again.proxies["crisp"].manifest["seeds"]] == [77, 1]


def test_the_job_says_what_it_would_run(comparison: dict[str, Any], tmp_path: Path) -> None:
    config = tmp_path / "evidence.yaml"
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(comparison["run"]), encoding="utf-8")
    config.write_text(yaml.safe_dump(comparison | {"run": "run.yaml"}), encoding="utf-8")
    command = [sys.executable, str(ROOT / "jobs" / "evidence.py"), "--config", str(config), "--dry-run"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "crisp" in said
    assert "2 to train" in said


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=2, max_size=5),
    st.floats(-1, 9),
)
def test_the_lowest_point_of_a_curve_below_a_limit_is_found(points: list[tuple[int, int]], limit: float) -> None:
    """Against many points on each line."""
    x_P, y_P = np.array(points, float).T
    (found,) = lowest(x_P[None], y_P[None], np.array([limit]))
    part = np.linspace(0, 1, 2001)
    x, y = (np.concatenate([a + (b - a) * part for a, b in itertools.pairwise(of)]) for of in (x_P, y_P))
    if (x <= limit).any():
        assert found == pytest.approx(y[x <= limit].min(), abs=8 * 8 / 2000)
    else:
        assert found == np.inf or found >= y_P.min()  # a line may touch the limit between two of the many
        assert x.min() > limit - 8 / 2000


def test_arms_that_differ_in_the_natural_share_alone_are_a_curve(comparison: dict[str, Any]) -> None:
    comparison["arms"] = {
        "natural": None,
        "late": {"weights": {"estimator": "crisp", "natural_share": 0.75}},
        "crisp": None,
        "early": {"weights": {"estimator": "crisp", "natural_share": 0.25}},
        "capped": {"weights": {"estimator": "crisp", "natural_share": 0.25, "max_epochs": 2}},
    }
    planned = plan_evidence(Evidence.model_validate(comparison))
    assert curves_of(planned) == {"crisp": ["crisp", "early", "late", "natural"]}
    assert plain_arms(planned) == ["natural", "crisp", "capped"]


def test_intervals_cover_what_they_should() -> None:
    """Of differences with a known mean, nine in ten intervals hold it; one seed's luck widens them."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        difference_SD = rng.normal(1.0, 1.0, (8, 1)) + rng.normal(0, 1.0, (8, 60))
        low, high = difference_interval(difference_SD, np.ones(60))
        held += low <= 1.0 <= high
    assert 75 <= held <= 97
    narrow = difference_interval(np.full((3, 40), 0.5), np.ones(40))
    assert narrow == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": {"natural": {}, "crisp": {"weigths": {}}}}, r"arms\.crisp: unknown setting weigths; did you mean weights"),
        ({"arms": {"natural": None, "rephrase": None}}, r"arms\.rephrase: the run has no section rephrase; add"),
        ({"arms": {"natural": None, "rephrase": {"rephrase": {}}}}, r"arms\.rephrase: the run has no section rephrase; add"),
        ({"baseline": "none"}, r"baseline 'none' is none of the arms \(natural, crisp\)"),
        ({"seed": 3}, r"unknown setting seed; did you mean seeds\?"),
        ({"proxy": {"siez": "1M"}}, r"unknown setting proxy\.siez; did you mean proxy\.size"),
        ({"proxy": {"tokens": 0}}, r"evidence\.yaml: proxy\.tokens: input should be greater than or equal to 1, got 0$"),
        ({"proxy": {"tokens": 10}}, r"proxy: tokens must be at least batch × context"),
        ({"held_out": {"law": {"path": "x"}}}, r"did you mean held_out\.law\.paths"),
        ({"run": "nowhere.yaml"}, r"cannot read .*nowhere\.yaml"),
        ({"held_out": {"law": {"paths": ["/nowhere.jsonl"]}}}, r"held_out\.law\.paths"),
    ],
)
def test_mistakes_are_named(comparison: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str) -> None:
    config = tmp_path / "evidence.yaml"
    config.write_text(yaml.safe_dump(comparison | change, sort_keys=False), encoding="utf-8")
    with pytest.raises((ConfigError, InputError), match=message):
        plan_evidence(load_evidence(config))
