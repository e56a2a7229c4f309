"""What is refused as soon as the windows are there, and what is not."""

from pathlib import Path
from typing import Any

import pytest
from loguru import logger

import pipeline
from pipeline.errors import ConfigError
from pipeline.graph import preflight
from pipeline.graph.preflight import run_preflight_checks
from tests.support.corpora import TOPICS, topic_documents, write_jsonl

TOO_MUCH = r"sample\.budget_tokens ([\d,]+)(.*) is more than weights\.max_epochs (\S+) allows: .* at most ([\d,]+) can be had"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, ray_session: Any) -> dict[str, Any]:
    """A run whose windows are there, in several parts, of which one has rows with a field `link`."""
    folder = tmp_path_factory.mktemp("foresight")
    for topic in TOPICS:
        rows = topic_documents(topic, 80)
        write_jsonl(folder / f"{topic}.jsonl", [row | ({"link": "x"} if topic == "space" else {}) for row in rows])
    config = {
        "workdir": str(folder / "run"),
        "generalist": {"paths": [str(folder / "*.jsonl")]},
        "specialists": {"legal": {"paths": [write_jsonl(folder / "law.json", topic_documents("law", 20, seed=1))]}},
        "prepare": {"part_documents": 40},
        "embed": {"model": "lsi", "dim": 8},
        "sample": {"budget_tokens": 1000},
        "weights": {"max_epochs": 1.0},
    }
    pipeline.prepare(config)
    return config


def held(prepared: dict[str, Any]) -> int:
    return int(pipeline.build_graph(prepared).windows("generalist").manifest["tokens"])


def check(prepared: dict[str, Any], budget: int, **sections: Any) -> None:
    run_preflight_checks(pipeline.build_graph(prepared | {"sample": {"budget_tokens": budget}} | sections))


def test_a_budget_is_refused_from_the_first_token_that_cannot_be_had(prepared: dict[str, Any]) -> None:
    most = held(prepared)
    check(prepared, most)
    with pytest.raises(ConfigError, match=TOO_MUCH) as raised:
        check(prepared, most + 1)
    assert f"at most {most:,} can be had" in str(raised.value)
    check(prepared, 3 * most, weights={"max_epochs": 3.0})
    check(prepared, 3 * most, weights={"max_epochs": 1.0, "overflow": "leave"})
    check(prepared | {"workdir": prepared["workdir"] + "-elsewhere"}, 3 * most)  # nothing is known there


@pytest.mark.parametrize("mode", ["deficit", "share"])
def test_rewrites_fill_the_first_part_and_not_the_ending(prepared: dict[str, Any], mode: str) -> None:
    most = held(prepared)
    rewriting = {"rephrase": {"model": "x", "backend": "endpoint", "endpoint": {"url": "http://127.0.0.1:9/v1"}, "mode": mode}}
    check(prepared, 2 * most, **rewriting)
    ending = {"schedule": {"ending": {"share": 0.5, "weights": {"natural_share": 0.3}}}}
    check(prepared, 2 * most, **rewriting, **ending)
    with pytest.raises(ConfigError, match=r"\(the part of schedule\.ending\) is more than"):
        check(prepared, 2 * most + 4, **rewriting, **ending)
    with pytest.raises(ConfigError, match=r"\(what schedule\.ending leaves of it\) is more than"):
        check(prepared, 2 * most + 4, **ending)


def test_a_field_that_few_rows_have_is_there_and_one_in_none_of_some_parts_is_only_warned_of(
    prepared: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(4):
        check(prepared, 1000, seed=seed, schedule={"conditioning": {"field": "link"}})
    with pytest.raises(ConfigError, match=r"no row has a url: .*; there are link; name one of them"):
        check(prepared, 1000, schedule={"conditioning": {"field": "url"}})
    monkeypatch.setattr(preflight, "_PARTS_FOR_FIELDS", 2)
    said: list[str] = []
    number = logger.add(lambda message: said.append(message.record["message"]))
    check(prepared, 1000, schedule={"conditioning": {"field": "url"}})
    logger.remove(number)
    (line,) = said
    assert line.startswith("schedule.conditioning.field: no row of 2 parts, of 8, has a url")


@pytest.mark.parametrize("cleaned", [False, True])
def test_samples_come_before_the_generalist_corpus(prepared: dict[str, Any], cleaned: bool, tmp_path: Path) -> None:
    test = write_jsonl(tmp_path / "test.jsonl", topic_documents("law", 3, seed=9))
    more = {"decontaminate": {"held_out": {"test": {"paths": [test]}}}, "dedup": {}} if cleaned else {}
    run = pipeline.build_graph(prepared | more)
    titles = [step.title for step in run.steps]
    last = max(i for i, title in enumerate(titles) if title in ("prepare legal", "decontaminate legal"))
    assert last < titles.index("prepare generalist")
    assert run.windows("generalist").title in titles[last + 1 :]
