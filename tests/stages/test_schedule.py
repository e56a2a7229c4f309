"""The last shards: without what the others begin with, and by another weighting."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import pipeline
from pipeline.config import Conditioning
from pipeline.errors import ConfigError
from pipeline.graph import runner
from pipeline.graph.graph import _prefixed_shares, build_graph
from pipeline.stages.sample import _least_shards
from pipeline.stages.shards import prefixed
from pipeline.tables import SHARDS
from tests.support.corpora import TOPICS, topic_documents, write_jsonl

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


@pytest.fixture
def scheduled(topics: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A run with URLs, and a second specialist."""
    for topic in TOPICS:
        rows = [{**row, "url": f"https://{topic}.example:8080/{row['id']}"} for row in topic_documents(topic, 80, seed=7)]
        write_jsonl(tmp_path / f"more-{topic}.jsonl", rows)
    kitchen = write_jsonl(tmp_path / "kitchen.json", topic_documents("cooking", 20, seed=2))
    return {
        **topics,
        "generalist": {"paths": [str(tmp_path / "more-*.jsonl")]},
        "specialists": {**topics["specialists"], "kitchen": {"paths": [kitchen]}},
        "sample": {"budget_tokens": 20_000, "shard_bytes": 8192},
    }


def shards_of(made: pipeline.PipelineGraph) -> list[list[dict[str, Any]]]:
    return [made.shards.read_table(name).to_pylist() for name in made.shards.names(".parquet")]


def texts_of(made: pipeline.PipelineGraph) -> dict[str, str]:
    """The text of each window of the generalist corpus."""
    folder = made.windows("generalist").folder
    rows = pa.concat_tables(folder.read_table(name) for name in folder.names(".parquet")).to_pylist()
    return {f"{row['doc_id']}:{row['window']}": row["text"] for row in rows}


def row_of(**columns: Any) -> pa.Table:
    known = {"id": "a:0:0", "text": "Once.", "source": "web", "metadata": "{}", "prefix": ""}
    kinds = {pa.string(): "", pa.int32(): 0}
    return pa.table({field.name: [(known | columns).get(field.name, kinds[field.type])] for field in SHARDS}, schema=SHARDS)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"url": "https://en.wikipedia.org/wiki/A?b=c"}, "URL: en.wikipedia.org\n\n"),
        ({"url": "HTTP://User@Example.COM:80/x"}, "URL: example.com\n\n"),
        ({"url": "no url\nat all"}, "URL: no url at all\n\n"),
        ({"url": "http://[broken"}, "URL: http://[broken\n\n"),
        ({"url": None}, ""),
        ({"url": ["a"]}, ""),
        ({"other": "x"}, ""),
        ({"url": ""}, ""),
    ],
)
def test_a_text_begins_with_its_host(metadata: dict[str, Any], said: str) -> None:
    (row,) = prefixed(row_of(metadata=json.dumps(metadata)), Conditioning()).to_pylist()
    assert (row["prefix"], row["text"]) == (said, f"{said}Once.")


def test_any_field_and_template_will_do() -> None:
    table = row_of(metadata='{"year": 1999}')
    assert prefixed(table, Conditioning(field="source", template="<{value}>")).to_pylist()[0]["text"] == "<web>Once."
    made = prefixed(table, Conditioning(field="year", template="{value} {braces}: "))
    assert made.to_pylist()[0]["text"] == "1999 {braces}: Once."
    assert made.schema.equals(SHARDS)


def test_all_but_the_last_shards_begin_with_where_they_are_from(scheduled: dict[str, Any]) -> None:
    plain = pipeline.curate(scheduled)
    before = {row["id"]: row["text"] for shard in shards_of(plain) for row in shard}
    scheduled["schedule"] = {"conditioning": {"plain_share": 0.25}}
    made = pipeline.curate(scheduled)
    shards = shards_of(made)
    split = round(0.75 * len(shards))
    for number, shard in enumerate(shards):
        for row in shard:
            assert row["prefix"] == (f"URL: {row['source']}.example\n\n" if number < split else "")
            assert row["text"] == row["prefix"] + before[row["id"]]
    manifest = made.shards.read_json("_manifest.json")
    assert manifest["prefixed_rows"] == sum(len(shard) for shard in shards[:split])
    assert manifest["tokens"] == pytest.approx(20_000, rel=0.01)  # of the windows: what is put before them is not counted
    # A share that few shards cannot have makes more of them.
    scheduled["schedule"] = {"conditioning": {"plain_share": 0.02}}
    shards = shards_of(pipeline.curate(scheduled))
    assert len(shards) >= 50
    assert [any(row["prefix"] for row in shard) for shard in shards if shard].count(False) == 1


def test_the_end_is_drawn_by_its_own_weighting(scheduled: dict[str, Any]) -> None:
    scheduled["weights"] = {"natural_share": 0.5}
    scheduled["specialists"]["legal"]["share"] = 3.0
    scheduled["schedule"] = {
        "ending": {"share": 0.3, "weights": {"natural_share": 0.0}, "specialists": {"kitchen": 1.0}},
        "conditioning": {"plain_share": 0.15},
    }
    made = pipeline.curate(scheduled)
    manifest = made.shards.read_json("_manifest.json")
    shards = shards_of(made)
    first, last = manifest["phases"]
    assert first["shards"] + last["shards"] == len(shards)
    assert first["tokens"] == pytest.approx(14_000, rel=0.01)
    assert last["tokens"] == pytest.approx(6_000, rel=0.02)
    start, end = ([row for shard in part for row in shard] for part in (shards[: first["shards"]], shards[first["shards"] :]))
    assert {row["specialist"] for row in end} == {"kitchen"}
    assert np.mean([row["source"] == "cooking" for row in end]) > 0.95
    tokens = {name: sum(row["tokens"] for row in start if row["specialist"] == name) for name in ("legal", "kitchen", "natural")}
    assert tokens["legal"] == pytest.approx(0.375 * 14_000, rel=0.1)
    assert tokens["natural"] == pytest.approx(0.5 * 14_000, rel=0.1)
    assert manifest["tokens"] == sum(row["tokens"] for row in start + end)
    assert manifest["rows"] == len(start + end)
    # Ids go on where the first part ended: a window's copies are numbered over both.
    assert len({row["id"] for row in start + end}) == len(start + end)
    texts, copies = texts_of(made), {}
    for row in start + end:
        window, _, copy = row["id"].rpartition(":")
        assert row["text"] == row["prefix"] + texts[window]
        assert int(copy) == row["copy"]
        copies.setdefault(window, []).append(row["copy"])
    assert all(sorted(numbers) == list(range(len(numbers))) for numbers in copies.values())
    assert manifest["windows"] == len(copies)
    assert any(len(numbers) > 1 for numbers in copies.values())
    # The plain share is of the whole corpus, so that here it is the second half of its end.
    without = [not any(row["prefix"] for row in shard) for shard in shards if shard]
    assert without.index(True) >= first["shards"]
    assert all(without[without.index(True) :])
    assert sum(row["tokens"] for row in start + end if not row["prefix"]) == pytest.approx(0.15 * 20_000, rel=0.25)
    assert manifest["upstream"]["sample ending"] != manifest["upstream"]["sample"]


def test_a_schedule_is_the_same_for_any_workers_and_after_a_kill(scheduled: dict[str, Any], tmp_path: Path) -> None:
    scheduled["schedule"] = {"ending": {"share": 0.3, "weights": {"estimator": "crisp"}}, "conditioning": {"field": "source"}}

    def everything(raw: dict[str, Any]) -> dict[str, bytes]:
        made = pipeline.curate(raw)
        return {name: made.shards.read_bytes(name) for name in made.shards.names(".parquet")}

    once = everything(scheduled)
    again = everything(scheduled | {"workdir": str(tmp_path / "other"), "engine": {"workers": 1}})
    assert once == again
    planned = pipeline.build_graph(pipeline.parse_config(scheduled))
    for step in (planned.corpus, planned.step("sample", "ending")):  # as if killed while the end was written
        step.folder.remove("manifest.json")
    planned.step("sample", "ending").folder.remove(planned.corpus.folder.names(".parquet")[-1])
    assert everything(scheduled) == once


def test_a_field_that_no_row_has_is_an_error(scheduled: dict[str, Any]) -> None:
    scheduled["schedule"] = {"conditioning": {"field": "link"}}
    with pytest.raises(ConfigError, match=r"schedule\.conditioning\.field: no row has a link: .*; there are url; name one of them"):
        pipeline.curate(scheduled)


@pytest.mark.parametrize(("ending", "plain"), [(0.1, 0.1), (0.0999, 0.1), (0.1001, 0.1), (0.3, 0.01)])
def test_shares_that_nearly_meet_make_no_shards_of_their_own(topics: dict[str, Any], ending: float, plain: float) -> None:
    topics["sample"]["budget_tokens"] = 40_003
    topics["schedule"] = {"ending": {"share": ending, "weights": {"natural_share": 0.3}}, "conditioning": {"plain_share": plain}}
    config = pipeline.parse_config(topics)
    shares = _prefixed_shares(config, config.phases)
    assert max(_least_shards(share) for share in shares) <= 100
    parts = (1 - ending, ending)
    assert sum(part * share for part, share in zip(parts, shares, strict=True)) == pytest.approx(1 - plain, abs=0.006)


def test_the_end_has_limits_of_its_own(scheduled: dict[str, Any]) -> None:
    scheduled["weights"] = {"max_epochs": 1.0}
    scheduled["sample"]["budget_tokens"] = 50_000  # more than the corpus, but each part is less
    scheduled["schedule"] = {"ending": {"share": 0.5, "weights": {"natural_share": 0.2}}}
    manifest = pipeline.curate(scheduled).shards.read_json("_manifest.json")
    assert manifest["tokens"] == pytest.approx(50_000, rel=0.01)
    scheduled["schedule"]["ending"]["weights"]["max_epochs"] = 0.1
    with pytest.raises(ConfigError, match=r"25,000 \(the part of schedule.ending\) is more than weights.max_epochs 0.1 allows"):
        pipeline.curate(scheduled | {"workdir": scheduled["workdir"] + "-2"})


def test_rewrites_change_nothing_else_of_the_end(topics: dict[str, Any]) -> None:
    topics["rephrase"] = {"model": "x"}
    topics["schedule"] = {"ending": {"weights": {"natural_share": 0.3}}}
    config = pipeline.parse_config(topics)
    assert [(phase.sharpness, phase.repeat_exponent) for phase in config.phases] == [(1.0, 1.0)] * 2
    del topics["rephrase"]
    assert [(phase.sharpness, phase.repeat_exponent) for phase in pipeline.parse_config(topics).phases] == [(2.0, 0.25)] * 2


def test_what_comes_one_after_the_other_is_not_blended(scheduled: dict[str, Any], tokenizer: str, tmp_path: Path) -> None:
    scheduled["schedule"] = {"conditioning": {"field": "source", "plain_share": 0.25}}
    step, folder = runner.export(scheduled, to="megatron", tokenizer=tokenizer, output=str(tmp_path / "out"))
    paths = [(tmp_path / "out" / f"data_path-{number}.txt").read_text().split()[1::2] for number in (1, 2)]
    assert len(paths[0]) == round(0.75 * len(step.manifest["shards"]))
    assert sorted(paths[0] + paths[1]) == paths[0] + paths[1] != []
    assert "data_path.txt" not in folder.names()


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ({}, "it has neither conditioning nor ending"),
        ({"ending": {"share": 0.2}}, "ending.weights or ending.specialists: give what is other at the end"),
        (
            {"ending": {"weights": {"natural_shar": 0.1}}},
            "schedule.ending.weights: unknown setting natural_shar; did you mean natural_share",
        ),
        (
            {"ending": {"weights": {"natural_share": 2}}},
            "schedule.ending.weights: natural_share: input should be less than or equal to 1",
        ),
        ({"ending": {"weights": {"max_epochs": 4}}}, "schedule.ending: it is as what comes before"),
        # What null means, in numbers.
        (
            {"ending": {"weights": {"natural_share": 0.1, "sharpness": 2, "repeat_exponent": 0.25}}},
            "schedule.ending: it is as what comes before",
        ),
        ({"ending": {"specialists": {"law": 1}}}, "schedule.ending.specialists: 'law' is none of the specialists (legal)"),
        ({"ending": {"share": 1.5, "weights": {"natural_share": 0.1}}}, "schedule.ending.share: input should be less than 1"),
        ({"conditioning": {"template": "URL: "}}, "schedule.conditioning.template: it has no {value}"),
        ({"conditioning": {"feild": "url"}}, "did you mean schedule.conditioning.field"),
    ],
)
def test_mistakes_in_a_schedule_are_found_before_anything_runs(topics: dict[str, Any], schedule: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        pipeline.parse_config(topics | {"schedule": schedule})
    assert said in str(raised.value)


def test_a_schedule_is_of_shards_and_not_of_a_mixture(scheduled: dict[str, Any]) -> None:
    scheduled["schedule"] = {"conditioning": {"field": "source"}}
    with pytest.raises(ConfigError, match="--mixture: schedule is of shards"):
        runner.mix(scheduled, mixture="huggingface")
    step, _ = runner.export(scheduled, to="jsonl")
    assert step.manifest["rows"] == build_graph(scheduled).shards.read_json("_manifest.json")["rows"]
