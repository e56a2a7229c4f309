"""The last shards of a schedule: without conditioning prefixes, and sampled with other weights."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import pipeline
from pipeline.config import Conditioning
from pipeline.errors import ConfigError
from pipeline.graph import runner
from pipeline.graph.build import _compute_prefixed_shares, build_graph
from pipeline.results.inspection import Inspection
from pipeline.stages.sample import _least_shards
from pipeline.stages.shards import add_prefixes
from pipeline.tables import SHARDS
from tests.support.corpora import TOPICS, make_topic_documents, write_jsonl
from tests.support.rendering import render

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session", "cached_clusters")]


@pytest.fixture
def schedule_config(topics: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Return the config of a run with URLs and a second specialist."""
    for topic in TOPICS:
        rows = [{**row, "url": f"https://{topic}.example:8080/{row['id']}"} for row in make_topic_documents(topic, 80, seed=7)]
        write_jsonl(tmp_path / f"more-{topic}.jsonl", rows)
    kitchen = write_jsonl(tmp_path / "kitchen.json", make_topic_documents("cooking", 20, seed=2))
    return {
        **topics,
        "generalist": {"paths": [str(tmp_path / "more-*.jsonl")]},
        "specialists": {**topics["specialists"], "kitchen": {"paths": [kitchen]}},
        "sample": {"budget_tokens": 20_000, "shard_bytes": 8192},
    }


def read_shard_rows(graph: pipeline.PipelineGraph) -> list[list[dict[str, Any]]]:
    return [graph.shards.read_table(name).to_pylist() for name in graph.shards.names(".parquet")]


def read_window_texts(graph: pipeline.PipelineGraph) -> dict[str, str]:
    """Return the text of each window of the generalist corpus."""
    folder = graph.windows_step("generalist").folder
    rows = pa.concat_tables(folder.read_table(name) for name in folder.names(".parquet")).to_pylist()
    return {f"{row['doc_id']}:{row['window']}": row["text"] for row in rows}


def make_shard_row(**columns: Any) -> pa.Table:
    known = {"id": "a:0:0", "text": "Once.", "source": "web", "metadata": "{}", "prefix": ""}
    kinds = {pa.string(): "", pa.int32(): 0}
    return pa.table({field.name: [(known | columns).get(field.name, kinds[field.type])] for field in SHARDS}, schema=SHARDS)


@pytest.mark.parametrize(
    ("metadata", "prefix"),
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
def test_url_prefix_is_the_host(metadata: dict[str, Any], prefix: str) -> None:
    (row,) = add_prefixes(make_shard_row(metadata=json.dumps(metadata)), Conditioning()).to_pylist()
    assert (row["prefix"], row["text"]) == (prefix, f"{prefix}Once.")


def test_prefix_uses_the_configured_field_and_template() -> None:
    table = make_shard_row(metadata='{"year": 1999}')
    assert add_prefixes(table, Conditioning(field="source", template="<{value}>")).to_pylist()[0]["text"] == "<web>Once."
    graph = add_prefixes(table, Conditioning(field="year", template="{value} {braces}: "))
    assert graph.to_pylist()[0]["text"] == "1999 {braces}: Once."
    assert graph.schema.equals(SHARDS)


def test_shards_have_prefixes_except_in_the_plain_share(schedule_config: dict[str, Any]) -> None:
    plain = pipeline.curate(schedule_config)
    before = {row["id"]: row["text"] for shard in read_shard_rows(plain) for row in shard}
    schedule_config["schedule"] = {"conditioning": {"plain_share": 0.25}}
    graph = pipeline.curate(schedule_config)
    shards = read_shard_rows(graph)
    split = round(0.75 * len(shards))
    for number, shard in enumerate(shards):
        for row in shard:
            assert row["prefix"] == (f"URL: {row['source']}.example\n\n" if number < split else "")
            assert row["text"] == row["prefix"] + before[row["id"]]
    manifest = graph.shards.read_json("_manifest.json")
    assert manifest["prefixed_rows"] == sum(len(shard) for shard in shards[:split])
    assert manifest["tokens"] == pytest.approx(20_000, rel=0.01)  # of the windows: prefixes are not counted
    # A small share needs more shards.
    schedule_config["schedule"] = {"conditioning": {"plain_share": 0.02}}
    shards = read_shard_rows(pipeline.curate(schedule_config))
    assert len(shards) >= 50
    assert [any(row["prefix"] for row in shard) for shard in shards if shard].count(False) == 1


def test_ending_is_sampled_with_its_own_weights(schedule_config: dict[str, Any]) -> None:
    schedule_config["weights"] = {"natural_share": 0.5}
    schedule_config["specialists"]["legal"]["share"] = 3.0
    schedule_config["schedule"] = {
        "ending": {"share": 0.3, "weights": {"natural_share": 0.0}, "specialists": {"kitchen": 1.0}},
        "conditioning": {"plain_share": 0.15},
    }
    graph = pipeline.curate(schedule_config)
    manifest = graph.shards.read_json("_manifest.json")
    shards = read_shard_rows(graph)
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
    # Copy numbers of a window continue in the ending, so ids are unique.
    assert len({row["id"] for row in start + end}) == len(start + end)
    texts, copies = read_window_texts(graph), {}
    for row in start + end:
        window, _, copy = row["id"].rpartition(":")
        assert row["text"] == row["prefix"] + texts[window]
        assert int(copy) == row["copy"]
        copies.setdefault(window, []).append(row["copy"])
    assert all(sorted(numbers) == list(range(len(numbers))) for numbers in copies.values())
    assert manifest["windows"] == len(copies)
    assert any(len(numbers) > 1 for numbers in copies.values())
    # The plain share is a share of the whole corpus: here the second half of the ending.
    without = [not any(row["prefix"] for row in shard) for shard in shards if shard]
    assert without.index(True) >= first["shards"]
    assert all(without[without.index(True) :])
    assert sum(row["tokens"] for row in start + end if not row["prefix"]) == pytest.approx(0.15 * 20_000, rel=0.25)
    assert manifest["upstream"]["sample ending"] != manifest["upstream"]["sample"]
    # The inspection names the shards of both phases, and the results are those of the whole corpus.
    places: dict[str, set[str]] = {}
    for number, shard in enumerate(shards):
        for row in shard:
            places.setdefault(row["id"].rpartition(":")[0], set()).add(f"shard-{number:05d}.parquet (copy {row['copy']})")
    both_phases = {row["id"].rpartition(":")[0] for row in start} & {row["id"].rpartition(":")[0] for row in end}
    inspection = Inspection(graph)
    for window in sorted(both_phases)[:3]:
        text = render(inspection.trace_window(window))
        assert set(re.findall(r"shard-\d+\.parquet \(copy \d+\)", text)) == places[window]
        assert "ending: weight of its cluster" in text
    tokens_L = np.bincount(
        [row["cluster"] for row in start + end], [row["tokens"] for row in start + end], minlength=inspection.results.num_leaves
    )
    assert inspection.results.after_L == pytest.approx(tokens_L / tokens_L.sum(), abs=0.02)


def test_scheduled_shards_are_identical_for_any_workers_and_after_a_kill(schedule_config: dict[str, Any], tmp_path: Path) -> None:
    schedule_config["schedule"] = {"ending": {"share": 0.3, "weights": {"estimator": "crisp"}}, "conditioning": {"field": "source"}}

    def run_and_read_shards(raw: dict[str, Any]) -> dict[str, bytes]:
        graph = pipeline.curate(raw)
        return {name: graph.shards.read_bytes(name) for name in graph.shards.names(".parquet")}

    first_bytes = run_and_read_shards(schedule_config)
    again = run_and_read_shards(schedule_config | {"workdir": str(tmp_path / "other"), "engine": {"workers": 1}})
    assert first_bytes == again
    planned_graph = pipeline.build_graph(pipeline.parse_config(schedule_config))
    for step in (planned_graph.shards_step, planned_graph.step("sample", "ending")):  # as if killed while the ending was written
        step.folder.remove("manifest.json")
    planned_graph.step("sample", "ending").folder.remove(planned_graph.shards_step.folder.names(".parquet")[-1])
    assert run_and_read_shards(schedule_config) == first_bytes


def test_conditioning_field_missing_from_all_rows_is_an_error(schedule_config: dict[str, Any]) -> None:
    schedule_config["schedule"] = {"conditioning": {"field": "link"}}
    with pytest.raises(
        ConfigError, match=r"schedule\.conditioning\.field: no row has the metadata field link; use source, or .* \(url\)"
    ):
        pipeline.curate(schedule_config)


@pytest.mark.parametrize(("ending", "plain"), [(0.1, 0.1), (0.0999, 0.1), (0.1001, 0.1), (0.3, 0.01)])
def test_nearly_equal_shares_need_at_most_100_shards(topics: dict[str, Any], ending: float, plain: float) -> None:
    topics["sample"]["budget_tokens"] = 40_003
    topics["schedule"] = {"ending": {"share": ending, "weights": {"natural_share": 0.3}}, "conditioning": {"plain_share": plain}}
    config = pipeline.parse_config(topics)
    shares = _compute_prefixed_shares(config, config.phases)
    assert max(_least_shards(share) for share in shares) <= 100
    parts = (1 - ending, ending)
    assert sum(part * share for part, share in zip(parts, shares, strict=True)) == pytest.approx(1 - plain, abs=0.006)


def test_ending_has_its_own_limit_on_epochs(schedule_config: dict[str, Any]) -> None:
    schedule_config["weights"] = {"max_epochs": 1.0}
    schedule_config["sample"]["budget_tokens"] = 50_000  # more than the corpus, but each part is less
    schedule_config["schedule"] = {"ending": {"share": 0.5, "weights": {"natural_share": 0.2}}}
    manifest = pipeline.curate(schedule_config).shards.read_json("_manifest.json")
    assert manifest["tokens"] == pytest.approx(50_000, rel=0.01)
    schedule_config["schedule"]["ending"]["weights"]["max_epochs"] = 0.1
    with pytest.raises(ConfigError, match=r"25,000 \(the share of schedule.ending\) is more than weights.max_epochs 0.1 allows"):
        pipeline.curate(schedule_config | {"workdir": schedule_config["workdir"] + "-2"})


def test_both_phases_have_the_same_default_weights_with_and_without_rephrase(topics: dict[str, Any]) -> None:
    topics["rephrase"] = {"model": "x"}
    topics["schedule"] = {"ending": {"weights": {"natural_share": 0.3}}}
    config = pipeline.parse_config(topics)
    assert [(phase.sharpness, phase.repeat_exponent) for phase in config.phases] == [(1.0, 1.0)] * 2
    del topics["rephrase"]
    assert [(phase.sharpness, phase.repeat_exponent) for phase in pipeline.parse_config(topics).phases] == [(2.0, 0.25)] * 2


def test_export_of_several_segments_writes_one_data_path_for_each(
    schedule_config: dict[str, Any], tokenizer: str, tmp_path: Path
) -> None:
    schedule_config["schedule"] = {"conditioning": {"field": "source", "plain_share": 0.25}}
    step, folder = runner.export(schedule_config, to="megatron", tokenizer=tokenizer, output=str(tmp_path / "out"))
    paths = [(tmp_path / "out" / f"data_path-{number}.txt").read_text().split()[1::2] for number in (1, 2)]
    assert len(paths[0]) == round(0.75 * len(step.manifest["shards"]))
    assert sorted(paths[0] + paths[1]) == paths[0] + paths[1] != []
    assert "data_path.txt" not in folder.names()


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({}, "neither conditioning nor ending is given"),
        ({"ending": {"share": 0.2}}, "ending changes nothing: give ending.weights or ending.specialists"),
        (
            {"ending": {"weights": {"natural_shar": 0.1}}},
            "schedule.ending.weights: unknown setting natural_shar; did you mean natural_share",
        ),
        (
            {"ending": {"weights": {"natural_share": 2}}},
            "schedule.ending.weights: natural_share: input should be less than or equal to 1",
        ),
        ({"ending": {"weights": {"max_epochs": 4}}}, "schedule.ending changes nothing"),
        # The values that null stands for.
        (
            {"ending": {"weights": {"natural_share": 0.1, "sharpness": 2, "repeat_exponent": 0.25}}},
            "schedule.ending changes nothing",
        ),
        ({"ending": {"specialists": {"law": 1}}}, "schedule.ending.specialists: 'law' is not one of the specialists (legal)"),
        ({"ending": {"share": 1.5, "weights": {"natural_share": 0.1}}}, "schedule.ending.share: input should be less than 1"),
        ({"conditioning": {"template": "URL: "}}, "schedule.conditioning.template: it has no {value}"),
        ({"conditioning": {"feild": "url"}}, "did you mean schedule.conditioning.field"),
    ],
)
def test_invalid_schedule_is_rejected_by_the_config(topics: dict[str, Any], schedule: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        pipeline.parse_config(topics | {"schedule": schedule})
    assert message in str(raised.value)


def test_mixture_with_a_schedule_is_rejected(schedule_config: dict[str, Any]) -> None:
    schedule_config["schedule"] = {"conditioning": {"field": "source"}}
    with pytest.raises(ConfigError, match="--mixture cannot be combined with the section schedule"):
        runner.export_mixture(schedule_config, mixture="huggingface")
    step, _ = runner.export(schedule_config, to="jsonl")
    assert step.manifest["rows"] == build_graph(schedule_config).shards.read_json("_manifest.json")["rows"]
