"""Preflight checks: which configs are rejected once the windows exist, and which are not."""

from pathlib import Path
from typing import Any

import pytest
from loguru import logger

import pipeline
from pipeline.errors import ConfigError
from pipeline.graph import preflight
from pipeline.graph.preflight import run_preflight_checks
from tests.support.corpora import TOPICS, make_topic_documents, write_jsonl

TOO_MUCH = r"sample\.budget_tokens ([\d,]+)(.*) is more than weights\.max_epochs (\S+) allows: .* at most ([\d,]+) are available"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, ray_session: Any) -> dict[str, Any]:
    """Config of a run whose windows exist, in several parts; the rows of one part have a field `link`."""
    folder = tmp_path_factory.mktemp("foresight")
    for topic in TOPICS:
        rows = make_topic_documents(topic, 80)
        write_jsonl(folder / f"{topic}.jsonl", [row | ({"link": "x"} if topic == "space" else {}) for row in rows])
    config = {
        "workdir": str(folder / "run"),
        "generalist": {"paths": [str(folder / "*.jsonl")]},
        "specialists": {"legal": {"paths": [write_jsonl(folder / "law.json", make_topic_documents("law", 20, seed=1))]}},
        "prepare": {"part_documents": 40},
        "embed": {"model": "lsi", "dim": 8},
        "sample": {"budget_tokens": 1000},
        "weights": {"max_epochs": 1.0},
    }
    pipeline.prepare(config)
    return config


def count_tokens(prepared: dict[str, Any]) -> int:
    return int(pipeline.build_graph(prepared).windows_step("generalist").manifest["tokens"])


def check(prepared: dict[str, Any], budget: int, **sections: Any) -> None:
    run_preflight_checks(pipeline.build_graph(prepared | {"sample": {"budget_tokens": budget}} | sections))


def test_a_budget_is_rejected_from_the_first_unavailable_token(prepared: dict[str, Any]) -> None:
    available = count_tokens(prepared)
    check(prepared, available)
    with pytest.raises(ConfigError, match=TOO_MUCH) as raised:
        check(prepared, available + 1)
    assert f"at most {available:,} are available" in str(raised.value)
    check(prepared, 3 * available, weights={"max_epochs": 3.0})
    check(prepared, 3 * available, weights={"max_epochs": 1.0, "overflow": "leave"})
    check(prepared | {"workdir": prepared["workdir"] + "-elsewhere"}, 3 * available)  # no windows there yet


@pytest.mark.parametrize("mode", ["deficit", "share"])
def test_rewrites_fill_the_first_phase_but_not_the_ending(prepared: dict[str, Any], mode: str) -> None:
    available = count_tokens(prepared)
    rewriting = {"rephrase": {"model": "x", "backend": "endpoint", "endpoint": {"url": "http://127.0.0.1:9/v1"}, "mode": mode}}
    check(prepared, 2 * available, **rewriting)
    ending = {"schedule": {"ending": {"share": 0.5, "weights": {"natural_share": 0.3}}}}
    check(prepared, 2 * available, **rewriting, **ending)
    with pytest.raises(ConfigError, match=r"\(the share of schedule\.ending\) is more than"):
        check(prepared, 2 * available + 4, **rewriting, **ending)
    with pytest.raises(ConfigError, match=r"\(the share before schedule\.ending\) is more than"):
        check(prepared, 2 * available + 4, **ending)


def test_a_field_in_few_rows_is_found_and_a_field_missing_in_searched_parts_is_a_warning(
    prepared: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(4):
        check(prepared, 1000, seed=seed, schedule={"conditioning": {"field": "link"}})
    with pytest.raises(ConfigError, match=r"no row has the metadata field url; .*\(link\)"):
        check(prepared, 1000, schedule={"conditioning": {"field": "url"}})
    monkeypatch.setattr(preflight, "_MAX_PARTS_SEARCHED", 2)
    lines: list[str] = []
    number = logger.add(lambda message: lines.append(message.record["message"]))
    check(prepared, 1000, schedule={"conditioning": {"field": "url"}})
    logger.remove(number)
    (line,) = lines
    assert line.startswith("schedule.conditioning.field: no row in 2 of 8 parts has the metadata field url")


@pytest.mark.parametrize("cleaned", [False, True])
def test_specialist_samples_are_prepared_before_the_generalist_corpus(
    prepared: dict[str, Any], cleaned: bool, tmp_path: Path
) -> None:
    test = write_jsonl(tmp_path / "test.jsonl", make_topic_documents("law", 3, seed=9))
    more = {"decontaminate": {"held_out": {"test": {"paths": [test]}}}, "dedup": {}} if cleaned else {}
    run = pipeline.build_graph(prepared | more)
    titles = [step.title for step in run.steps]
    last = max(i for i, title in enumerate(titles) if title in ("prepare legal", "decontaminate legal"))
    assert last < titles.index("prepare generalist")
    assert run.windows_step("generalist").title in titles[last + 1 :]
