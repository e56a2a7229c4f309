"""Whole runs on a real Ray: the output, that only settings determine it, and resuming after kills."""

import collections
import copy
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import pipeline
from pipeline.errors import ConfigError, InputError
from pipeline.manifest import ShardsManifest
from pipeline.storage import Folder
from pipeline.tables import SHARDS
from tests.support.corpora import TOPICS, make_topic_documents, read_shard_bytes, write_jsonl
from tests.support.processes import ROOT, find_foreign_lines

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def run(raw: dict[str, Any], until: str = "sample") -> pipeline.PipelineGraph:
    return pipeline.curate(pipeline.parse_config(raw), until=until)


def rows_of(made: pipeline.PipelineGraph) -> pa.Table:
    return pa.concat_tables(pq.read_table(made.shards.file(name)) for name in made.shards.names(".parquet"))


def other_workdir(raw: dict[str, Any], name: str) -> dict[str, Any]:
    return {**copy.deepcopy(raw), "workdir": f"{raw['workdir']}-{name}"}


@pytest.mark.parametrize("estimator", ["density", "crisp", "dsir", "classifier", "nearest"])
@pytest.mark.usefixtures("cached_clusters")
def test_the_corpus_has_the_topic_of_the_specialist_sample(topics: dict[str, Any], estimator: str) -> None:
    topics["weights"] = {"estimator": estimator, "natural_share": 0}
    topics["window"]["tokens"] = 256  # whole documents: DSIR scores no fewer than 100 words
    budget = topics["sample"]["budget_tokens"] = 20_000 if estimator in ("density", "crisp") else 12_000  # the topic holds 12,633
    made = run(topics)
    table = rows_of(made)
    tokens = collections.Counter(dict.fromkeys(TOPICS, 0))
    for source, count in zip(table["source"].to_pylist(), table["tokens"].to_pylist(), strict=True):
        tokens[source] += count
    assert tokens["law"] > 0.97 * tokens.total()
    assert abs(tokens.total() - budget) <= 0.5 * 256
    assert set(table["specialist"].to_pylist()) == {"legal"}
    assert set(table["origin"].to_pylist()) == {"raw"}


@pytest.mark.usefixtures("cached_clusters")
def test_shards_and_manifest_follow_the_contract(topics: dict[str, Any]) -> None:
    made = run(topics)
    manifest = ShardsManifest.model_validate(made.shards.read_json("_manifest.json"))
    assert manifest.fingerprint == made.step("sample").fingerprint
    assert set(manifest.upstream) == {step.title for step in made.steps} - {"sample"}
    table = rows_of(made)
    assert len(set(table["id"].to_pylist())) == len(table) == manifest.rows
    assert sum(table["tokens"].to_pylist()) == manifest.tokens == sum(manifest.tokens_by_specialist.values())
    # A tenth is natural unless the config says otherwise; of some 300 windows that are drawn, by chance.
    assert 0.05 < manifest.tokens_by_specialist["natural"] / manifest.tokens < 0.15
    assert manifest.windows == len(set(zip(table["doc_id"].to_pylist(), table["window"].to_pylist(), strict=True)))
    assert [shard.name for shard in manifest.shards] == made.shards.names(".parquet")

    for shard in manifest.shards:
        data = Path(made.shards.file(shard.name)).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (shard.sha256, shard.bytes)
        file = pq.ParquetFile(made.shards.file(shard.name))
        assert file.schema_arrow.remove_metadata().equals(SHARDS.remove_metadata())
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"
        assert file.metadata.num_rows == shard.rows
        assert max(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)) <= 1024


@pytest.mark.usefixtures("cached_clusters")
def test_every_sampled_row_has_the_text_of_its_document_and_the_cluster_of_its_window(topics: dict[str, Any]) -> None:
    made = run(topics)
    texts = {row["id"]: row["text"] for topic in TOPICS for row in make_topic_documents(topic, 100)}
    prepared, assigned = made.step("prepare", "generalist"), made.step("assign", "generalist")
    leaf_of, joined = {}, collections.defaultdict(str)
    for name in assigned.folder.names(".parquet"):
        windows, assignments = prepared.folder.read_table(name), assigned.folder.read_table(name)
        assert windows["key"].equals(assignments["key"])
        for row, leaf in zip(windows.to_pylist(), assignments["leaf"].to_pylist(), strict=True):
            leaf_of[row["doc_id"], row["window"]] = leaf
            joined[row["doc_id"]] += row["text"]
    assert joined == texts
    for row in rows_of(made).to_pylist():
        assert row["text"] in texts[row["doc_id"]]
        assert row["cluster"] == leaf_of[row["doc_id"], row["window"]]
        assert row["id"] == f"{row['doc_id']}:{row['window']}:{row['copy']}"


@pytest.mark.usefixtures("cached_clusters")
def test_copies_of_a_window_are_numbered_from_zero_and_meet_the_allocation(topics: dict[str, Any]) -> None:
    topics["sample"]["budget_tokens"] = 40_000  # three epochs of the one topic
    made = run(topics)
    copies = collections.defaultdict(list)
    for row in rows_of(made).to_pylist():
        copies[row["doc_id"], row["window"]].append(row["copy"])
    assert all(sorted(numbers) == list(range(len(numbers))) for numbers in copies.values())
    plan = made.step("sample").folder.read_table("allocation.parquet").to_pylist()
    realised = collections.Counter()
    for row in rows_of(made).to_pylist():
        realised[row["cluster"]] += row["tokens"]
    for leaf in plan:
        assert abs(realised[leaf["leaf"]] - leaf["allocated_tokens"]) <= 64 + 1
        assert leaf["epochs"] <= 4 + 1e-9


@pytest.mark.parametrize(
    ("model", "draw"),
    [
        ("lsi", "rounded"),
        ("lsi", "multinomial"),
        pytest.param("bundled:all-MiniLM-L6-v2", "rounded", marks=pytest.mark.slow),
    ],
)
def test_one_two_and_three_workers_write_identical_shards(topics: dict[str, Any], model: str, draw: str) -> None:
    topics["embed"]["model"] = model
    topics["sample"]["draw"] = draw
    if model != "lsi":  # reads a hundred windows a second
        topics["generalist"]["limit"] = 40
    outcomes = []
    for workers in (1, 2, 3):
        raw = other_workdir(topics, str(workers)) | {"engine": {"workers": workers}}
        run(raw)
        outcomes.append(read_shard_bytes(raw["workdir"]))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert len(outcomes[0]) > 2


def test_moved_input_files_have_the_same_fingerprints(topics: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    for path in (tmp_path / "input").iterdir():
        (tmp_path / "moved" / path.name).write_bytes(path.read_bytes())
    moved = other_workdir(topics, "moved") | {"generalist": {"paths": [str(tmp_path / "moved")]}}
    here, there = (pipeline.build_graph(pipeline.parse_config(raw)) for raw in (topics, moved))
    assert [step.fingerprint for step in here.steps] == [step.fingerprint for step in there.steps]
    # The name is the source of documents that have none: with another name, the output is another.
    (tmp_path / "moved" / "0-cooking.jsonl").rename(tmp_path / "moved" / "0-kitchen.jsonl")
    assert (
        pipeline.build_graph(pipeline.parse_config(moved)).step("prepare", "generalist").fingerprint
        != here.step("prepare", "generalist").fingerprint
    )


@pytest.mark.parametrize("entry", [["a list"], {"stamp": "1"}, "words", None])
def test_malformed_cached_input_digests_are_ignored(topics: dict[str, Any], entry: Any) -> None:
    expected = pipeline.build_graph(topics).step("prepare", "generalist").fingerprint
    files = (Path(topics["workdir"]).parent / "input").iterdir()
    Folder(topics["workdir"]).write_json("inputs.json", {str(path): entry for path in files})
    assert pipeline.build_graph(topics).step("prepare", "generalist").fingerprint == expected


IDENTITY_CHANGES = [
    ("seed", 1),
    ("window.tokens", 32),
    ("prepare.part_documents", 20),
    ("embed.dim", 4),
    ("cluster.branching", 3),
    ("cluster.depth", 1),
    ("weights.smoothing", "none"),
    ("weights.natural_share", 0.5),
    ("weights.max_epochs", 2.0),
    ("sample.budget_tokens", 10_000),
    ("sample.draw", "multinomial"),
    ("generalist.limit", 5),
]


def test_every_identity_setting_changes_a_fingerprint_and_execution_settings_none(topics: dict[str, Any]) -> None:
    def last(raw: dict[str, Any]) -> str:
        return pipeline.build_graph(pipeline.parse_config(raw)).steps[-1].fingerprint

    seen = {last(topics)}
    for path, value in IDENTITY_CHANGES:
        changed = copy.deepcopy(topics)
        target = changed
        *sections, key = path.split(".")
        for section in sections:
            target = target.setdefault(section, {})
        target[key] = value
        fingerprint = last(changed)
        assert fingerprint not in seen, f"{path} is not in the identity"
        seen.add(fingerprint)
    # What null means, given as numbers, is the same run; with other numbers it is another.
    assert last(topics | {"weights": {"natural_share": 0.1, "sharpness": 2, "repeat_exponent": 0.25}}) == last(topics)
    assert last(topics | {"weights": {"natural_share": 0}}) not in seen
    for estimator in ("dsir", "classifier", "nearest", "natural", "top-cluster", "shuffled"):
        none = {"weights": {"estimator": estimator, "natural_share": 0}}
        assert last(topics | none) == last(topics | {"weights": {"estimator": estimator}})
    embeds = pipeline.build_graph(pipeline.parse_config(topics | {"embed": {"model": "static:bundled:all-MiniLM-L6-v2"}}))
    reseeded = pipeline.build_graph(
        pipeline.parse_config(topics | {"embed": {"model": "static:bundled:all-MiniLM-L6-v2"}, "seed": 5})
    )
    assert embeds.step("embed", "generalist").fingerprint == reseeded.step("embed", "generalist").fingerprint
    for execution in ({"engine": {"workers": 7, "attempts": 9}}, {"max_bad_fraction": 0.5}, {"workdir": topics["workdir"] + "x"}):
        assert last(copy.deepcopy(topics) | execution) in seen


def test_a_second_run_is_cached_and_other_settings_keep_the_first_output(topics: dict[str, Any]) -> None:
    run(topics)
    first = read_shard_bytes(topics["workdir"])
    before = {path: path.stat().st_mtime_ns for path in Path(topics["workdir"]).rglob("*.parquet")}
    run(topics)
    assert {path: path.stat().st_mtime_ns for path in Path(topics["workdir"]).rglob("*.parquet")} == before
    other = copy.deepcopy(topics)
    other["sample"]["budget_tokens"] = 10_000
    run(other)
    assert read_shard_bytes(topics["workdir"]) != first
    run(topics)
    assert read_shard_bytes(topics["workdir"]) == first


@pytest.mark.parametrize("seed", range(4))
def test_deleted_files_are_written_again_with_the_same_bytes(topics: dict[str, Any], seed: int) -> None:
    run(topics)
    clean = read_shard_bytes(topics["workdir"])
    files = sorted(path for path in Path(topics["workdir"]).rglob("*") if path.is_file())
    chooser = random.Random(seed)
    for path in chooser.sample(files, chooser.choice([1, 3, len(files) // 2])):
        path.unlink()
    made = run(topics)
    assert read_shard_bytes(topics["workdir"]) == clean
    assert all(step.done for step in made.steps)


@pytest.mark.slow
def test_a_run_killed_repeatedly_and_resumed_writes_the_shards_of_a_clean_run(topics: dict[str, Any], tmp_path: Path) -> None:
    topics["prepare"]["part_documents"] = 10
    clean = other_workdir(topics, "clean")
    run(clean)
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(topics), encoding="utf-8")
    command = [sys.executable, str(ROOT / "jobs" / "curate.py"), "--config", str(config)]
    # Its own Ray, as a user has: it dies with its driver. Each try gets further, so that some die in every stage.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment["RAY_ADDRESS"] = "local"
    kills = 0
    for files in (12, 50, 90):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and sum(path.is_file() for path in Path(topics["workdir"]).rglob("*")) < files:
            time.sleep(0.02)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    assert kills == 3
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert read_shard_bytes(topics["workdir"]) == read_shard_bytes(clean["workdir"])
    assert not find_foreign_lines(done)


@pytest.mark.usefixtures("cached_clusters")
def test_shares_and_the_natural_share_are_met(topics: dict[str, Any], tmp_path: Path) -> None:
    topics["specialists"]["kitchen"] = {
        "paths": [write_jsonl(tmp_path / "cooking.jsonl", make_topic_documents("cooking", 20, seed=2))],
        "share": 3.0,
    }
    topics["weights"] = {"natural_share": 0.2}
    made = run(topics)
    found = made.shards.read_json("_manifest.json")["tokens_by_specialist"]
    total = sum(found.values())
    assert found["natural"] / total == pytest.approx(0.2, abs=0.05)
    assert found["legal"] / total == pytest.approx(0.2, abs=0.05)
    assert found["kitchen"] / total == pytest.approx(0.6, abs=0.05)


def test_names_from_the_input_are_printed_literally(
    topics: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = [row | {"source": "[/b] [red]web"} for row in make_topic_documents("law", 20, seed=9)]
    write_jsonl(tmp_path / "input" / "9-tags.jsonl", documents)
    run(topics)
    assert "[/b] [red]web" in capsys.readouterr().out


@pytest.mark.usefixtures("cached_clusters")
def test_a_cap_that_changes_shares_is_reported(topics: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cooking = write_jsonl(tmp_path / "cooking.jsonl", make_topic_documents("cooking", 20, seed=2))
    topics["specialists"]["kitchen"] = {"paths": [cooking], "share": 9.0}
    # Without smoothing no other cluster has a share for kitchen.
    topics["weights"] = {"max_epochs": 1.0, "estimator": "crisp", "smoothing": "none", "natural_share": 0}
    run(topics)
    said = " ".join(capsys.readouterr().out.split())
    assert "The limits on repeats (weights.max_epochs, weights.repeat_exponent) changed shares of the mixture" in said
    assert "instead of 90.0%" in said


@pytest.mark.usefixtures("cached_clusters")
def test_top_cluster_samples_one_cluster_up_to_the_cap(topics: dict[str, Any]) -> None:
    topics["weights"] = {"estimator": "top-cluster", "overflow": "leave"}
    made = run(topics)
    (leaf,) = set(rows_of(made)["cluster"].to_pylist())
    counts = made.step("weights").folder.read_table("specialists.parquet").to_pandas().set_index("leaf")["tokens"]
    assert counts[leaf] == counts.max()
    assert made.step("sample").folder.read_table("allocation.parquet")["epochs"].to_numpy().max() == pytest.approx(4)


@pytest.mark.usefixtures("cached_clusters")
def test_shuffled_permutes_the_shares_of_the_sample(topics: dict[str, Any]) -> None:
    topics["weights"] = {"estimator": "shuffled"}
    mixture = run(topics, until="weights").step("weights").folder.read_table("specialists.parquet").to_pandas()
    assert sorted(mixture["p"][mixture["p"] > 0]) == pytest.approx(sorted(mixture["p_raw"][mixture["p_raw"] > 0]))
    assert not mixture["p"].equals(mixture["p_raw"])


@pytest.mark.parametrize("estimator", ["density", "classifier"])
@pytest.mark.usefixtures("cached_clusters")
def test_windows_are_sampled_by_the_allocation_of_their_strata(topics: dict[str, Any], tmp_path: Path, estimator: str) -> None:
    cooking = write_jsonl(tmp_path / "cooking.jsonl", make_topic_documents("cooking", 20, seed=2))
    topics["specialists"]["kitchen"] = {"paths": [cooking]}
    topics["weights"] = {"estimator": estimator, "natural_share": 0.2}
    made = run(topics)
    manifest = made.step("sample").manifest
    assert manifest["tokens"] == pytest.approx(20_000, abs=100)
    drawn = made.step("sample").folder.child("draws")
    draws = pa.concat_tables(drawn.read_table(name) for name in drawn.names(".parquet")).to_pandas()
    assigned = made.step("assign", "generalist").folder
    tokens = pa.concat_tables(assigned.read_table(name, ["tokens"]) for name in assigned.names(".parquet"))["tokens"].to_numpy()
    plan = made.step("sample").folder.read_table("allocation.parquet").to_pandas()
    tokens, draws = tokens[draws["leaf"] >= 0], draws[draws["leaf"] >= 0]
    planned = (draws["expected"] * tokens).groupby(draws["leaf"]).sum()
    held = plan[plan["tokens"] > 0].set_index("leaf")["allocated_tokens"]
    assert planned.to_numpy() == pytest.approx(held.to_numpy(), rel=1e-5, abs=0.5)
    assert draws["expected"].max() <= 4 + 1e-6
    assert draws["expected"].min() > 0  # the natural share is for every window
    rows = rows_of(made).to_pandas()
    assert set(rows["specialist"]) == {"legal", "kitchen", "natural"}
    asked = rows.groupby("source")["specialist"].agg(set)
    if estimator == "classifier":  # what it did not choose is only there for the natural share
        assert asked["law"] == {"legal", "natural"}
        assert asked["cooking"] == {"kitchen", "natural"}
    of_law = rows[rows["source"] == "law"]["specialist"]
    assert (of_law == "legal").mean() > 0.8
    strata = made.step("weights").folder.read_table("strata.parquet").to_pandas()
    assert strata["tokens"].sum() == tokens.sum()
    mixture = made.step("weights").folder.read_table("mixture.parquet").to_pandas()
    asked = strata["claims"].map(sum).groupby(strata["leaf"]).sum().reindex(mixture["leaf"], fill_value=0)
    assert asked.to_numpy() == pytest.approx(mixture["p_target"].to_numpy(), abs=1e-4)


def test_dsir_with_short_windows_names_the_remedy(topics: dict[str, Any]) -> None:
    topics["weights"] = {"estimator": "dsir"}
    with pytest.raises(InputError, match=r"estimator dsir: no window .* can be scored for legal; .*set window\.tokens higher"):
        run(topics)


@pytest.mark.usefixtures("cached_clusters")
def test_natural_keeps_the_sources_of_the_generalist_corpus(topics: dict[str, Any]) -> None:
    topics["weights"] = {"estimator": "natural"}
    made = run(topics)
    for held, drawn in made.step("sample").manifest["tokens_by_source"].values():
        assert drawn / 20_000 == pytest.approx(held / 50_989, abs=0.02)


def test_bad_rows_are_quarantined_with_their_reason_and_counted(topics: dict[str, Any], tmp_path: Path) -> None:
    good = make_topic_documents("law", 300, seed=5)

    lines = [json.dumps(row) for row in good]
    lines[5:5] = ["{not json", json.dumps({"id": "e", "text": "  "}), json.dumps({"id": good[0]["id"], "text": "again"})]
    (tmp_path / "input" / "9-bad.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    made = run(topics, until="prepare")
    manifest = made.step("prepare", "generalist").manifest
    assert manifest["reasons"] == {"duplicate_id": 1, "empty_text": 1, "not_json": 1}
    assert manifest["documents"] + manifest["quarantined"] == 400 + len(lines)
    folder = made.step("prepare", "generalist").folder.child("quarantine")
    rows = [row for name in folder.names() for row in folder.read_table(name).to_pylist()]
    assert {(row["row"], row["reason"]) for row in rows} == {(5, "not_json"), (6, "empty_text"), (7, "duplicate_id")}
    assert "has this id" in next(row["detail"] for row in rows if row["reason"] == "duplicate_id")
    topics["max_bad_fraction"] = 0.001
    topics["workdir"] += "-strict"
    with pytest.raises(InputError, match=r"3 of 703 rows of generalist are bad \(.*max_bad_fraction = 0\.001; ") as caught:
        run(topics, until="prepare")
    assert f"the first is row 5 (from 0) of {tmp_path}/input/9-bad.jsonl: not_json, " in str(caught.value)


def test_ids_repeated_across_files_are_quarantined_in_the_order_of_files(topics: dict[str, Any], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "input" / "9-again.jsonl", make_topic_documents("cooking", 3))
    topics["max_bad_fraction"] = 0.5
    made = run(topics, until="prepare")
    assert made.step("prepare", "generalist").manifest["reasons"] == {"duplicate_id": 3}
    folder = made.step("prepare", "generalist").folder.child("quarantine")
    assert {row["file"] for name in folder.names() for row in folder.read_table(name).to_pylist()} == {
        str(tmp_path / "input" / "9-again.jsonl")
    }


def test_an_empty_specialist_sample_is_rejected_before_the_generalist_corpus_is_read(
    topics: dict[str, Any], tmp_path: Path
) -> None:
    topics["specialists"]["legal"]["paths"] = [write_jsonl(tmp_path / "empty.jsonl", [])]
    with pytest.raises(InputError, match="legal has no usable document: 0 rows read"):
        run(topics)
    assert not pipeline.build_graph(topics).step("prepare", "generalist").folder.names()


def test_a_glob_without_files_is_one_clear_line(topics: dict[str, Any]) -> None:
    topics["specialists"]["legal"]["paths"] = ["/nowhere/*.jsonl"]
    with pytest.raises(InputError, match=r"specialists\.legal\.paths"):
        pipeline.build_graph(pipeline.parse_config(topics))


def test_a_budget_above_the_cap_is_rejected_with_the_available_tokens(topics: dict[str, Any]) -> None:
    asked = topics["sample"]["budget_tokens"]
    topics["sample"]["budget_tokens"] = 10_000_000
    refused = r"sample\.budget_tokens 10,000,000 is more than weights\.max_epochs 4 allows.*at most"
    with pytest.raises(ConfigError, match=refused):
        run(topics)
    assert pipeline.build_graph(topics).windows_step("generalist").done
    # And where the windows are there already, before anything else is done.
    run({**topics, "sample": {**topics["sample"], "budget_tokens": asked}}, until="embed")
    with pytest.raises(ConfigError, match=refused):
        run(topics)
    assert not pipeline.build_graph(topics).step("cluster").folder.names()


@pytest.mark.usefixtures("cached_clusters")
def test_overflow_leave_is_a_deficit_in_allocation_and_manifest(topics: dict[str, Any]) -> None:
    topics["weights"] = {"overflow": "leave", "max_epochs": 1.0, "smoothing": "none", "natural_share": 0}
    made = run(topics)
    manifest = made.shards.read_json("_manifest.json")
    assert manifest["tokens"] < 14_000
    assert manifest["deficit_tokens"] == pytest.approx(20_000 - manifest["tokens"], abs=200)


@pytest.mark.parametrize("budget", [1, 30, 100, 1000])
@pytest.mark.usefixtures("cached_clusters")
def test_small_budgets_are_met_to_within_one_window(topics: dict[str, Any], budget: int) -> None:
    topics["sample"]["budget_tokens"] = budget
    made = run(topics)
    assert abs(made.shards.read_json("_manifest.json")["tokens"] - budget) <= 64


@pytest.mark.usefixtures("cached_clusters")
def test_code_in_the_readme_reads_the_shards_with_each_library(topics: dict[str, Any]) -> None:
    made = run(topics)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.split("## Using the shards")[1].split("\n## ")[0]
    code = section.split("```python")[1].split("```")[0].replace("runs/demo/shards", made.shards.path)
    code = code.replace("world_size=8", "world_size=1").replace("    ...", "    texts += batch.num_rows")
    counts = "sum(len(b['id']) for b in loader), texts, len(frame), len(lazy.collect()), sum(n for _, n in by_source.fetchall())"
    code = f"texts = 0\n{code}\nprint({counts})"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(Path(topics["workdir"]) / "hf")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    manifest = made.shards.read_json("_manifest.json")
    assert done.stdout.split() == [str(number) for number in [manifest["rows"]] * 4 + [manifest["tokens"]]]
