"""Inspection of a run, compared with the tables of its stages."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.errors import ConfigError
from pipeline.execution.step import part_names
from pipeline.graph import runner
from pipeline.graph.build import build_graph
from pipeline.results.inspection import Inspection
from tests.support.corpora import make_topic_config, make_topic_documents, write_jsonl
from tests.support.processes import ROOT
from tests.support.rendering import render

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, ray_session: Any) -> dict[str, Any]:
    """Config of a run with near-duplicates, held-out text and a quarantined row; its workdir has several shards."""
    folder = tmp_path_factory.mktemp("looked")
    settings = make_topic_config(folder, 60)
    twin = make_topic_documents("music", 1, seed=9)[0]
    rows = [
        {**twin, "id": "twin-a"},
        {**twin, "id": "twin-b"},
        {"id": "blank", "text": " "},
        {"id": "leaked", "text": "what one must never see in training: " + " ".join(f"secret{n}" for n in range(40))},
        {"id": "bell", "text": "court contract judge ruling \x07\x1b[31m appeal statute evidence party " * 5},
    ]
    settings["generalist"]["paths"].append(write_jsonl(folder / "more.json", rows))
    test = write_jsonl(folder / "test.json", [{"text": " ".join(f"secret{n}" for n in range(40))}])
    settings |= {
        "dedup": {"buckets": 14, "hashes": 8},
        "decontaminate": {"held_out": {"test": {"paths": [test], "id_key": None}}},
        "max_bad_fraction": 0.1,
    }
    runner.curate(settings)
    return settings


@pytest.fixture(scope="module")
def inspection(config: dict[str, Any]) -> Inspection:
    return Inspection(build_graph(config))


def test_a_sampled_document_is_in_the_shards_that_are_named(inspection: Inspection) -> None:
    shards = {path.name: pq.read_table(path) for path in Path(inspection.graph.shards.path).glob("*.parquet")}
    assert len(shards) > 2
    of_document: dict[str, set[tuple[str, int]]] = {}
    for name, table in shards.items():
        for row in table.select(["doc_id", "copy"]).to_pylist():
            of_document.setdefault(row["doc_id"], set()).add((name, row["copy"]))
    checked = 0
    for identifier, places in sorted(of_document.items())[:12]:
        text = render(inspection.trace_document(identifier))
        for name, copy in places:
            assert f"{name} (copy {copy})" in text
            checked += 1
        assert text.count(".parquet (copy") == len(_all(shards, identifier))
        assert "score: legal" in text
    assert checked > 12


def _all(shards: dict[str, Any], identifier: str) -> list[Any]:
    return [row for table in shards.values() for row in table.select(["doc_id"]).to_pylist() if row["doc_id"] == identifier]


def test_an_excluded_document_is_shown_with_step_and_reason(inspection: Inspection) -> None:
    assert "is quarantined: empty_text" in render(inspection.trace_document("blank"))
    assert "excluded by decontaminate" in render(inspection.trace_document("leaked"))
    twins = [render(inspection.trace_document(twin)) for twin in ("twin-a", "twin-b")]
    assert sum("excluded by dedup" in text for text in twins) == 1
    assert sum("in cluster" in text for text in twins) == 1
    with pytest.raises(ConfigError, match="--document nobody: no window"):
        render(inspection.trace_document("nobody"))


def test_a_document_of_the_specialist_sample_is_not_sampled(inspection: Inspection) -> None:
    text = render(inspection.trace_document("law-1-3"))
    assert "legal, window 0" in text
    assert "only generalist text is sampled" in text


def test_a_cluster_is_described_with_shares_and_examples(inspection: Inspection) -> None:
    results = inspection.results
    leaf = int(results.target_L.argmax())
    text = render(inspection.describe_cluster(leaf, 2))
    assert f"cluster {leaf}: {results.names[leaf].terms}" in text
    assert f"{results.windows_L[leaf]:,} windows" in text
    assert text.count("[generalist]") == text.count("[legal]") == 2
    assert "court" in text or "contract" in text
    assert "nearest clusters: " in text
    with pytest.raises(ConfigError, match="give a number from 0 to"):
        render(inspection.describe_cluster(10_000, 1))


def test_clusters_are_found_by_words_and_by_text(inspection: Inspection, monkeypatch: pytest.MonkeyPatch) -> None:
    text = render(inspection.find_clusters("orbit planet"))
    assert "windows contain: orbit planet" in text
    best = int(text.splitlines()[2].split()[0])
    like = render(
        inspection.find_similar_cluster("The telescope saw a comet in lunar orbit, and a rocket launch to the planet.", 1)
    )
    assert like.startswith(f"cluster {best}:")
    assert "0 of" in render(inspection.find_clusters("xylophonist"))
    monkeypatch.setattr("pipeline.results.inspection._MAX_PARTS_READ", 1)
    assert re.match(r"[\d,]+ of [\d,]+ windows in 1 of \d+ parts contain: orbit", render(inspection.find_clusters("orbit")))
    with pytest.raises(ConfigError, match="no vector for this text"):
        render(inspection.find_similar_cluster("…", 1))


def test_a_window_is_shown_with_its_full_text(inspection: Inspection) -> None:
    kept = inspection.graph.windows_step("generalist")
    rows = [row for name in part_names(kept) for row in kept.folder.read_table(f"{name}.parquet").to_pylist()]
    row = next(row for row in rows if row["window"] == 1 and row["source"] == "music")
    text = render(inspection.trace_window(f"{row['doc_id']}:1"))
    assert text.splitlines()[0] == f"generalist, {row['doc_id']}:1, from music, {row['tokens']} tokens"
    assert "in cluster" in text
    assert "copies expected" in text
    assert text.endswith(f"\n\n{row['text']}\n")
    of_sample = render(inspection.trace_window("law-1-3:0"))
    assert of_sample.startswith("legal, law-1-3:0, from law")
    last = max(other["window"] for other in rows if other["doc_id"] == row["doc_id"])
    for name, message in (
        (f"{row['doc_id']}:99", f"the document has windows 0 to {last} in generalist"),
        ("nobody:0", "--document nobody says why"),
        ("nobody", "give the id of a document, a colon, and the number of its window"),
        ("nobody:-1", "and the number of its window"),
    ):
        with pytest.raises(ConfigError, match=message):
            render(inspection.trace_window(name))


def test_corpus_text_cannot_control_the_terminal(inspection: Inspection) -> None:
    for text in (render(inspection.trace_document("bell")), render(inspection.trace_window("bell:0"))):
        assert "appeal statute" in text
        assert "\x07" not in text
        assert "\x1b" not in text


def test_the_job_lists_clusters_and_reports_mistakes_in_one_line(config: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    job = [sys.executable, str(ROOT / "jobs" / "look.py"), "--config", str(file)]
    listed = subprocess.run(job, capture_output=True, text=True, check=True)
    assert "× generalist" in listed.stdout
    assert "ray" not in listed.stderr.lower()
    for arguments, message in (
        (["--cluster", "1", "--find", "a"], "give one of --cluster"),
        (["--set", f"workdir={tmp_path / 'new'}"], "run crispwrap weights or crispwrap curate first"),
    ):
        done = subprocess.run([*job, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        (line,) = done.stderr.strip().splitlines()
        assert message in line
