"""Comparisons on a real Ray: with planted topics, the proxies must find which corpus is better."""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, InputError
from pipeline.evidence.curves import HeldOutBits, compare_curve, compare_curves, find_crossing, find_curves, list_plain_arms
from pipeline.evidence.intervals import estimate_mean
from pipeline.evidence.plots import write_plots
from pipeline.evidence.settings import Evidence, load_evidence
from pipeline.evidence.steps import Comparison, check_arms, count_texts, plan_comparison, run_comparison
from pipeline.evidence.table import compute_rows, render_tables, save_tables
from pipeline.proxy.tokens import encode_corpus, encode_texts, get_end_token_id, train_tokenizer
from pipeline.storage import Folder
from tests.support.corpora import make_topic_documents, write_jsonl
from tests.support.fake_endpoint import FakeEndpoint
from tests.support.processes import ROOT


@pytest.fixture
def comparison(topics: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    blank = [{"id": "b", "text": ""}, {"id": "c", "text": " \n"}]  # as between the paragraphs of WikiText
    held_out = {
        topic: {"paths": [write_jsonl(tmp_path / f"{topic}-test.jsonl", [*blank, *make_topic_documents(topic, 12, seed=7)])]}
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


def run_evidence(raw: dict[str, Any]) -> Comparison:
    planned = plan_comparison(Evidence.model_validate(raw))
    run_comparison(planned)
    return planned


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_proxies_prefer_the_corpus_sampled_for_the_specialist(comparison: dict[str, Any]) -> None:
    done = run_evidence(comparison)
    assert [step.manifest["reasons"] for step in done.held_out.values()] == [{"empty_text": 2}] * 2
    natural, crisp = compute_rows(done)
    assert (natural.arm, crisp.arm) == ("natural", "crisp")
    assert crisp.figures["law"].difference.value < 0 < crisp.figures["music"].difference.value  # better on law, worse on music
    assert natural.figures["law"].difference == estimate_mean([(np.zeros((2, 9)), np.ones(9))])
    for row in (natural, crisp):
        for name, figure in row.figures.items():
            seeds = done.proxies[row.arm].manifest["seeds"]
            each = [sum(seed["bits"][name]) / sum(seed["bytes"][name]) for seed in seeds]
            assert figure.mean == pytest.approx(np.mean(each))
            assert figure.deviation == pytest.approx(np.std(each, ddof=1))
            assert each == pytest.approx([seed["points"][-1]["bits_per_byte"][name] for seed in seeds])
            base = [sum(seed["bits"][name]) / sum(seed["bytes"][name]) for seed in done.proxies["natural"].manifest["seeds"]]
            assert figure.difference.value == pytest.approx(np.mean(each) - np.mean(base))
        assert row.selection_s > 0
        assert row.training_s > 0
    # Both arms read the same windows and trees, and the same tokenizer.
    runs = done.runs.values()
    assert len({run.step("cluster").fingerprint for run in runs}) == 1
    assert len({run.step("sample").fingerprint for run in runs}) == 2

    # A second plan has nothing left to do; a new arm trains only itself, and the others stay done.
    again = plan_comparison(Evidence.model_validate(comparison))
    assert all(step.done for step in again.proxies.values())
    comparison["arms"]["half"] = {"weights": {"natural_share": 0.5}}
    more = plan_comparison(Evidence.model_validate(comparison))
    assert {arm: step.done for arm, step in more.proxies.items()} == {"natural": True, "crisp": True, "half": False}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_specialist_only_is_an_arm_and_natural_shares_form_curves(comparison: dict[str, Any], tmp_path: Path) -> None:
    comparison |= {"arms": {"natural": None, "specialist-only": None, "crisp": None}, "natural_shares": [0.5]}
    done = run_evidence(comparison)
    rows = {row.arm: row for row in compute_rows(done)}
    assert list(rows) == ["natural", "specialist-only", "crisp", "crisp +50%"]
    assert done.runs["crisp +50%"].config.natural_share == 0.5
    assert "prepare legal" in done.proxies["specialist-only"].inputs
    assert "sample" not in done.proxies["specialist-only"].inputs
    assert rows["specialist-only"].selection_s == 0
    assert rows["specialist-only"].epochs > 1
    law = {arm: row.figures["law"].mean for arm, row in rows.items()}
    assert law["crisp"] < law["crisp +50%"] < law["natural"]
    (one,) = compare_curves(done, "music")
    assert (one.curve, one.point) == ("crisp", "specialist-only")
    assert one.gain is not None
    assert one.gain.value >= law["crisp"] - law["specialist-only"] - 1e-9  # no better than where the curve gains most
    assert one.gain.low <= one.gain.value <= one.gain.high
    assert one.point_price == pytest.approx(rows["specialist-only"].figures["music"].difference.value)
    printed = render_tables(done, list(rows.values()))
    text, figures = (
        Path(path).read_text() for path in save_tables(done, list(rows.values()), printed, Folder(str(tmp_path / "tables")))
    )
    assert text == printed
    assert "curve of" in text
    assert "…" not in text  # nothing is cut to a width
    assert f"{one.gain.value:+.3f}" in text
    assert json.loads(figures)["curves"]["music"][0]["gain"]["value"] == one.gain.value
    # Proxies read all of the sample, some of it twice; their checkpoints are removed.
    fractions_read = {arm: step.manifest["seeds"][0]["fraction_read"] for arm, step in done.proxies.items()}
    assert fractions_read["specialist-only"] == 1.0
    assert not any("safetensors" in name for step in done.proxies.values() for name in step.folder.files())
    plots = write_plots(done, list(rows.values()), Folder(str(tmp_path / "plots")))
    assert [Path(path).name for path in plots] == ["curves.svg", "training.svg"]
    svg = Path(plots[0]).read_text(encoding="utf-8")
    for word in ("crisp", "natural", "specialist-only", "law, bits per byte", "music, bits per byte"):
        assert word in svg


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_only_the_arms_that_set_rephrase_are_rewritten(comparison: dict[str, Any]) -> None:
    with FakeEndpoint() as server:
        rephrase = {"model": "fake", "backend": "endpoint", "endpoint": {"url": server.url}, "styles": ["wikipedia"]}
        run = comparison["run"] | {"rephrase": rephrase, "weights": {"estimator": "crisp", "max_epochs": 1.0, "bootstrap": 0}}
        arms: dict[str, Any] = {"natural": None, "repeat": None, "rephrase": None}
        done = run_evidence(comparison | {"run": run, "arms": arms})
        arms["rephrase-qa"] = {"rephrase": {"styles": ["qa"]}}
        assert Evidence.model_validate(comparison | {"run": run, "arms": arms}).build_config("rephrase-qa").rephrase.styles == [
            "qa"
        ]
    styles = {arm: its.step("sample").manifest["tokens_by_style"] for arm, its in done.runs.items()}
    assert (styles["natural"], styles["repeat"], list(styles["rephrase"])) == ({}, {}, ["wikipedia"])
    natural, repeat, rephrase = compute_rows(done)
    assert natural.unique == 1.0 > repeat.unique
    # One arm repeats the topic's own text, the other rewrites it; both are better than natural text.
    for row in (repeat, rephrase):
        assert row.figures["law"].mean < natural.figures["law"].mean


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_specialist_only_can_be_the_baseline_of_arms_with_other_windows(comparison: dict[str, Any]) -> None:
    arms = {"specialist-only": None, "crisp": {"window": {"tokens": 48}}}
    done = run_evidence(comparison | {"arms": arms, "baseline": "specialist-only"})
    assert [row.arm for row in compute_rows(done)] == list(arms)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_finished_seed_is_not_trained_again_and_missing_ones_follow_the_placement(
    comparison: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run_evidence(comparison)
    step = done.proxies["crisp"]
    kept = step.folder.read_bytes("seed-0.json")
    step.folder.remove("manifest.json")
    step.folder.remove("seed-1.json")
    step.folder.write_bytes("seed-0.json", kept.replace(b'"seed": 0', b'"seed": 77'))
    # Each step has its own placement; every node satisfies all of them.
    placement = {stage: {"labels": {"for": f"!{stage}"}} for stage in ("overlap", "tokenizer", "proxy")}
    comparison["run"]["engine"] = {"placement": placement}
    for before in (done.overlap, done.tokenizer):
        before.folder.remove("manifest.json")
    options_used: list[dict[str, Any]] = []
    remote = ray.remote
    monkeypatch.setattr(ray, "remote", lambda **options: options_used.append(options) or remote(**options))
    again = run_evidence(comparison)
    assert [seed["seed"] for seed in again.proxies["crisp"].manifest["seeds"]] == [77, 1]
    assert [options.get("label_selector") for options in options_used] == [placement[stage]["labels"] for stage in placement]


def test_a_dry_run_prints_what_would_run(comparison: dict[str, Any], tmp_path: Path) -> None:
    config = tmp_path / "evidence.yaml"
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(comparison["run"]), encoding="utf-8")
    config.write_text(yaml.safe_dump(comparison | {"run": "run.yaml"}), encoding="utf-8")
    command = [sys.executable, str(ROOT / "jobs" / "evidence.py"), "--config", str(config), "--dry-run"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "crisp" in output
    assert "2 to train" in output


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_an_infeasible_arm_ends_the_comparison_before_any_arm_is_sampled(comparison: dict[str, Any]) -> None:
    comparison["run"]["sample"]["budget_tokens"] = 100_000  # four epochs of the text have fewer
    arms = {"specialist-only": {"weights": {"max_epochs": 1}}, "crisp": {}}
    alone = comparison | {"arms": arms, "baseline": "crisp"}
    check_arms(plan_comparison(Evidence.model_validate(alone)))  # before anything has run
    raw = comparison | {"arms": {"crisp": {}, "once": {"weights": {"max_epochs": 1}}}, "baseline": "crisp"}
    with pytest.raises(ConfigError, match=r"^arms\.once: sample\.budget_tokens 100,000 is more than weights\.max_epochs 1 allows"):
        run_evidence(raw)
    assert not plan_comparison(Evidence.model_validate(raw)).runs["crisp"].step("cluster").folder.names()
    check_arms(plan_comparison(Evidence.model_validate(alone)))  # an arm that reads only the sample needs no budget


@given(st.lists(st.integers(0, 8), min_size=2, max_size=5), st.floats(-1, 9))
def test_the_first_crossing_of_a_line_with_a_limit_is_found(values: list[int], limit: float) -> None:
    """Against many points on each line."""
    part = np.linspace(0, 1, 501)
    signs = [np.sign(start + (end - start) * part - limit) for start, end in itertools.pairwise(values) if start != end]
    reached = [i for i, (start, end) in enumerate(itertools.pairwise(values)) if start != end]
    found = find_crossing(values, limit)
    expected = next((i for i, of in zip(reached, signs, strict=True) if len(set(of)) > 1), None)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        i, at = found
        assert i == expected
        assert values[i] + (values[i + 1] - values[i]) * at == pytest.approx(limit)


def simulate_bits(rng: np.random.Generator, means: dict[str, float], seeds: int, seed_deviation: float) -> HeldOutBits:
    """Bits of arms with these means per byte, measured with some seeds on 40 documents of ten bytes."""
    document_effect = rng.normal(0, 0.2, 40)
    bits = {arm: 10 * (mean + rng.normal(0, seed_deviation, (seeds, 1)) + document_effect) for arm, mean in means.items()}
    return HeldOutBits(bits, np.full(40, 10.0))


def test_a_curve_compared_with_a_point_on_it_gains_nothing() -> None:
    """Natural text 3 / 3, the curve's end 1 / 4, a point half-way: the mean gain is 0, and the intervals contain it."""
    rng = np.random.default_rng(0)
    gains, held = [], 0
    for _ in range(300):
        other = simulate_bits(rng, {"natural": 3.0, "half": 3.5, "ours": 4.0, "theirs": 3.3}, 3, 0.05)
        first = simulate_bits(rng, {"natural": 3.0, "half": 2.0, "ours": 1.0, "theirs": 2.4}, 3, 0.05)
        found = compare_curve(first, other, ["ours", "half", "natural"], "theirs", "natural")
        assert found.gain is not None
        assert found.price is not None
        gains.append(found.gain.value)
        held += (found.gain.low <= 0 <= found.gain.high) + (found.price.low <= 0.3 <= found.price.high)
    assert abs(np.mean(gains)) < 3 * np.std(gains) / 300**0.5
    assert 0.84 <= held / 600 <= 0.97


def test_a_curve_is_not_extrapolated() -> None:
    rng = np.random.default_rng(0)
    other = simulate_bits(rng, {"natural": 3.0, "ours": 4.0, "dear": 5.0, "cheap": 2.0, "keen": 4.0}, 3, 0.0)
    first = simulate_bits(rng, {"natural": 3.0, "ours": 1.0, "dear": 2.0, "cheap": 3.5, "keen": 0.5}, 3, 0.0)
    dear, cheap, keen = (compare_curve(first, other, ["ours", "natural"], arm, "natural") for arm in ("dear", "cheap", "keen"))
    assert dear.gain is not None
    assert dear.gain.value == pytest.approx(-1.0)  # the end of the curve, which loses less
    assert dear.price is not None
    assert dear.price.value == pytest.approx(0.5)
    assert cheap.gain is None  # every share loses more
    assert cheap.price is not None
    assert cheap.price.value == pytest.approx(0.0)  # even natural text is better
    assert keen.gain is not None
    assert keen.gain.value == pytest.approx(0.5)
    assert keen.price is None  # every share gains less


def test_the_price_is_taken_at_the_first_crossing_even_if_it_is_after_the_second_point() -> None:
    rng = np.random.default_rng(0)
    other = simulate_bits(rng, {"natural": 3.0, "half": 3.5, "ours": 4.0, "theirs": 5.0}, 3, 0.0)
    first = simulate_bits(rng, {"natural": 3.0, "half": 1.0, "ours": 2.0, "theirs": 1.5}, 3, 0.0)
    found = compare_curve(first, other, ["ours", "half", "natural"], "theirs", "natural")
    assert found.price is not None
    assert found.price.value == pytest.approx(0.75)  # half-way between ours and half


@pytest.mark.parametrize("max_tokens", [1, 50, 1000, 10**6])
def test_count_texts_counts_the_texts_used_not_the_texts_read(max_tokens: int) -> None:
    texts = [f"text {number}" for number in range(600)]
    tokenizer = train_tokenizer(texts, 300)
    sizes = [len(tokens) for tokens in encode_texts(tokenizer, texts)]
    used = sum(start < max_tokens for start in (sum(sizes[:number]) for number in range(600)))
    assert count_texts(encode_corpus(tokenizer, texts, max_tokens), get_end_token_id(tokenizer)) == used
    assert count_texts(encode_corpus(tokenizer, [], max_tokens), get_end_token_id(tokenizer)) == 0


def test_arms_that_differ_only_in_the_natural_share_form_a_curve(comparison: dict[str, Any]) -> None:
    comparison["arms"] = {
        "natural": None,
        "late": {"weights": {"estimator": "crisp", "natural_share": 0.75}},
        "crisp": None,  # a tenth
        "none": {"weights": {"estimator": "crisp", "natural_share": 0}},
        "early": {"weights": {"estimator": "crisp", "natural_share": 0.05}},
        "capped": {"weights": {"estimator": "crisp", "natural_share": 0.25, "max_epochs": 2}},
    }
    planned = plan_comparison(Evidence.model_validate(comparison))
    assert find_curves(planned) == {"none": ["none", "early", "crisp", "late", "natural"]}
    assert list_plain_arms(planned) == ["natural", "none", "capped"]


def test_an_arms_own_natural_share_does_not_become_a_second_point(comparison: dict[str, Any]) -> None:
    comparison["arms"] = {
        "natural": None,
        "crisp": None,
        "dsir": None,
        "bare": {"weights": {"estimator": "crisp", "natural_share": 0}},
    }
    comparison["arms"]["half"] = {"weights": {"estimator": "crisp", "natural_share": 0.5, "max_epochs": 2}}
    comparison["natural_shares"] = [0.1, 0.5]
    with pytest.raises(ConfigError, match=r"arms\.bare \+10% is the same as arms\.crisp"):
        plan_comparison(Evidence.model_validate(comparison))
    del comparison["arms"]["bare"]
    planned = plan_comparison(Evidence.model_validate(comparison))
    assert list(planned.runs) == ["natural", "crisp", "crisp +50%", "dsir", "dsir +10%", "dsir +50%", "half", "half +10%"]
    assert list(planned.proxies) == list(planned.runs)
    assert {arm: run.config.natural_share for arm, run in planned.runs.items() if "+" not in arm} == {
        "natural": 0.0, "crisp": 0.1, "dsir": 0.0, "half": 0.5
    }  # fmt: skip


@pytest.mark.parametrize("seeds", [2, 3, 8])
@pytest.mark.parametrize(("of_seeds", "of_documents"), [(1.0, 1.0), (0.02, 1.0), (1.0, 0.1)])
def test_intervals_contain_the_true_value_nine_times_in_ten(seeds: int, of_seeds: float, of_documents: float) -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        size_D = rng.integers(1, 20, 60).astype(float)
        each_SD = 1.0 + rng.normal(0, of_seeds, (seeds, 1)) + rng.normal(0, of_documents, 60)
        found = estimate_mean([(each_SD * size_D, size_D)])
        held += found.low <= 1.0 <= found.high
    assert 0.85 <= held / 400 <= 0.96


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_held_out_text_that_occurs_in_a_sample_is_rejected(comparison: dict[str, Any]) -> None:
    """With the sample as held-out text; rejected before any training."""
    sample = comparison["run"]["specialists"]["legal"]["paths"]
    with pytest.raises(InputError, match=r"scored windows of held_out\.law also occur in legal, for example"):
        run_evidence(comparison | {"held_out": {"law": {"paths": sample}}})


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_too_few_held_out_windows_and_unusable_rows_are_rejected(comparison: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"id": "x", "text": 3}, {"id": "y", "text": ""}, *make_topic_documents("law", 12, seed=8)]
    bad = write_jsonl(tmp_path / "bad.jsonl", rows)
    with pytest.raises(InputError, match=r"1 of 14 rows of held_out\.law are bad \(text_not_string 1\).*text_not_string, "):
        run_evidence(comparison | {"held_out": {"law": {"paths": [bad]}}})
    few = write_jsonl(tmp_path / "few.jsonl", make_topic_documents("law", 3, seed=8))
    with pytest.raises(InputError, match=r"held_out\.law has \d windows, but a comparison needs at least 10; add more text"):
        run_evidence(comparison | {"held_out": {"law": {"paths": [few]}}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": {"natural": {}, "crisp": {"weigths": {}}}}, r"arms\.crisp: unknown setting weigths; did you mean weights"),
        ({"arms": {"natural": None, "rephrase": None}}, r"arms\.rephrase: the run has no section rephrase; add"),
        ({"arms": {"natural": None, "rephrase": {"rephrase": {}}}}, r"arms\.rephrase: the run has no section rephrase; add"),
        ({"baseline": "none"}, r"baseline 'none' is not one of the arms \(natural, crisp\)"),
        ({"seed": 3}, r"unknown setting seed; did you mean seeds\?"),
        ({"proxy": {"siez": "1M"}}, r"unknown setting proxy\.siez; did you mean proxy\.size"),
        ({"proxy": {"tokens": 0}}, r"evidence\.yaml: proxy\.tokens: input should be greater than or equal to 1, got 0$"),
        ({"proxy": {"tokens": 10}}, r"proxy: tokens must be at least batch × context"),
        ({"held_out": {"law": {"path": "x"}}}, r"did you mean held_out\.law\.paths"),
        ({"run": "nowhere.yaml"}, r"cannot read .*nowhere\.yaml"),
        ({"held_out": {"law": {"paths": ["/nowhere.jsonl"]}}}, r"^held_out\.law\.paths: "),
        (
            {"arms": {"natural": None, "crisp": None, "x": {"weights": {"estimator": "crisp"}}}},
            r"arms\.x is the same as arms\.crisp",
        ),
        (
            {"arms": {"natural": None, "dsir": {"weights": {"estimator": "crisp"}}}},
            r"dsir is a preset with weights\.estimator dsir, got crisp; give",
        ),
        ({"arms": {"natural": None, "_x": {}}}, r"begin with '_'"),
        ({"arms": {"natural": None, "x": {"workdir": "y"}}}, r"x: arms cannot set workdir"),
        ({"arms": {"natural": None, "x": {"generalist": {"paths": ["/nowhere.jsonl"]}}}}, r"^arms\.x: generalist\.paths"),
        ({"natural_shares": [0.5, 0.5]}, r"natural_shares: share 0\.5 is listed more than once"),
    ],
)
def test_errors_in_the_settings_are_named(comparison: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str) -> None:
    config = tmp_path / "evidence.yaml"
    config.write_text(yaml.safe_dump(comparison | change, sort_keys=False), encoding="utf-8")
    with pytest.raises((ConfigError, InputError), match=message):
        plan_comparison(load_evidence(config))
