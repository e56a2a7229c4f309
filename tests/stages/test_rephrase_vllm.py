"""The whole rephrase stage with a real vLLM engine on the CPU."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import pipeline
from tests.support.processes import ROOT, find_foreign_lines
from tests.support.results import read_rephrase_table, read_shards
from tests.support.tiny_llama import make_tiny_llama

pytestmark = [
    *(pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow),
    pytest.mark.filterwarnings("ignore"),  # libraries imported with vLLM raise warnings
]

# A model with random weights answers nonsense, so almost all filters are skipped.
STYLE = """
about: for tests
prompt: |
  Rewrite. Answer with the new text alone.

  Text:
  {text}
max_output: 0.5
length_ratio: [0.0, 9.0]
expected_ratio: 0.5
skip_filters: [empty, broken_text, cut, refusal, prompt_leak, length_ratio, repetition, language, copy, similarity]
"""


def test_vllm_engine_writes_titles_and_rewrites_that_fill_deficits(topics: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "styles"
    folder.mkdir()
    (folder / "first.yaml").write_text(STYLE, encoding="utf-8")
    raw = topics | {
        "weights": {"max_epochs": 1.0, "bootstrap": 0},
        "rephrase": {
            "model": make_tiny_llama(tmp_path / "model"),
            "styles": ["first"],
            "styles_folder": str(folder),
            "engine": {"enforce_eager": True, "max_model_len": 1024, "kv_cache_memory_bytes": 64 << 20},
            "sampling": {"temperature": 0.7},
            "batch": 32,
            "rounds": 1,  # each round starts an engine, and so do titles
        },
    }
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(raw), encoding="utf-8")
    # The job starts its own Ray, as it does for a user.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local", "RAY_worker_niceness": "0"}
    command = [sys.executable, str(ROOT / "jobs" / "curate.py"), "--config", str(config)]
    job = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert job.returncode == 0, job.stderr
    assert not find_foreign_lines(job)
    graph = pipeline.build_graph(raw)
    # Titles are requested the same way as rewrites; those of random weights are counted by the reason for their rejection.
    titled = graph.step("titles").manifest
    assert titled["clusters"] == titled["titles"] + sum(titled["untitled"].values()) > 0
    assert "no_answer" not in titled["untitled"]
    answers = list(Path(raw["workdir"]).glob("answers/*/titles/*.parquet"))
    assert sum(pq.read_metadata(path).num_rows for path in answers) == titled["clusters"]

    facts, manifest = graph.step("rephrase").manifest, graph.shards.read_json("_manifest.json")
    passages = read_rephrase_table(graph, "passages")
    assert len(passages) == facts["requests"] == sum(facts["outcomes"]["first"].values())
    assert manifest["tokens"] == pytest.approx(20_000, rel=0.005)
    if facts["ended"] == "met":
        assert manifest["tokens_by_origin"]["rephrased"] == pytest.approx(facts["wanted_tokens"], rel=0.02)
    assert manifest["tokens_by_origin"]["rephrased"] > 0
    assert {row["finish_reason"] for row in passages.to_pylist()} <= {"stop", "length"}
    assert all(row["prompt_tokens"] > 0 and row["output_tokens"] > 0 and row["revision"] for row in passages.to_pylist())
    rewrites = read_shards(graph).filter(pa.compute.equal(read_shards(graph)["origin"], "rephrased"))
    assert set(rewrites["style"].to_pylist()) == {"first"}
