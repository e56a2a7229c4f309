"""Estimates before a run: the size of its input, the cost model, and the output of `--dry-run`."""

import csv
import gzip
import importlib.metadata
import importlib.util
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Config, parse_config
from pipeline.config.stages import STAGES
from pipeline.costs.corpus_size import CorpusSize, find_corpus_size
from pipeline.costs.estimate import estimate_steps, render_estimate
from pipeline.costs.stage_costs import (
    STAGE_SHAPES,
    Machines,
    StageCost,
    StageInputs,
    compute_speedup,
    describe_stage,
    estimate_stage,
    read_rates,
)
from pipeline.errors import InputError
from pipeline.graph.build import build_graph
from pipeline.graph.runner import curate
from pipeline.graph.runner import prepare as run_prepare
from pipeline.sources import pydocs
from tests.support.corpora import make_topic_config, write_jsonl
from tests.support.processes import ROOT


def make_documents(count: int) -> list[dict[str, Any]]:
    """Documents of many lengths, in random words, so that they compress little."""
    chooser = random.Random(0)
    words = ["".join(chooser.choices("abcdefghijklmnop", k=chooser.randint(2, 9))) for _ in range(20_000)]
    return [{"id": str(n), "text": " ".join(chooser.choices(words, k=chooser.randint(20, 600)))} for n in range(count)]


def write_documents(kind: str, rows: list[dict[str, Any]], folder: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path = folder / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=500)
    elif kind == "arrow":
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_file(path, table.schema) as sink:
            sink.write_table(table)
    elif kind == "csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["id", "text"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        content = {"jsonl": lines, "jsonl.gz": gzip.compress(lines), "jsonl.zst": zstandard.compress(lines)}
        path.write_bytes(content[kind])


@pytest.mark.ray
@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "csv", "arrow"])
def test_size_estimated_from_heads_of_files_is_close_to_the_count_of_prepare(kind: str, tmp_path: Path, ray_session: Any) -> None:
    write_documents(kind, make_documents(1500), tmp_path)
    config = make_topic_config(tmp_path, 20) | {"generalist": {"paths": [str(tmp_path / f"a.{kind}")]}}
    run = build_graph(config)
    estimated = find_corpus_size(run.config, "generalist", run.step("prepare", "generalist"))
    assert estimated
    assert estimated.estimated_from_rows is not None
    assert estimated.estimated_from_rows <= 200
    counted = find_corpus_size(run.config, "generalist", run_prepare(config).step("prepare", "generalist"))
    assert counted
    assert counted.estimated_from_rows is None
    assert counted.files == estimated.files == 1
    for name in ("documents", "text_bytes", "tokens", "windows"):
        assert getattr(estimated, name) == pytest.approx(getattr(counted, name), rel=0.2), name
    assert 0.5 < estimated.parts / counted.parts < 2


def test_size_of_small_files_is_exact_and_respects_the_limit(tmp_path: Path) -> None:
    config = make_topic_config(tmp_path, 30)
    run = build_graph(config)
    found = find_corpus_size(run.config, "generalist", run.step("prepare", "generalist"))
    assert found
    assert (found.files, round(found.documents)) == (4, 120)
    limited = build_graph(config | {"generalist": config["generalist"] | {"limit": 5}})
    found = find_corpus_size(limited.config, "generalist", limited.step("prepare", "generalist"))
    assert found
    assert round(found.documents) == 20


SIZES = st.builds(
    lambda windows, tokens, part_windows, files: CorpusSize(
        files=files,
        documents=windows / 2,
        text_bytes=4.3 * windows * tokens,
        tokens=windows * tokens,
        windows=windows,
        parts=max(1.0, windows / part_windows),
    ),
    st.integers(100, 10**11),
    st.integers(50, 1000),
    st.integers(1000, 200_000),
    st.integers(1, 10_000),
)


@given(SIZES, st.integers(1, 20_000), st.integers(1, 128), st.sampled_from(list(STAGE_SHAPES)), st.integers(1, 4))
def test_no_stage_is_faster_than_its_core_seconds_over_the_workers_or_than_the_driver(
    size: CorpusSize, num_workers: int, cores: int, stage: str, depth: int
) -> None:
    config = make_config(depth)
    cost = estimate(config, stage, size, Machines(num_workers, cores))
    assert cost.mapping_s >= cost.core_s / num_workers * (1 - 1e-9)
    assert cost.mapping_s >= cost.driver_s * (1 - 1e-9)
    assert cost.wall_s >= cost.driver_only_s >= 0
    assert 0 <= cost.worker_wait_s <= cost.mapping_s
    # More workers never reduce the core-seconds; combining their results may add some.
    one_worker = estimate(config, stage, size, Machines(1, 1))
    assert cost.core_s >= one_worker.core_s * (1 - 1e-9)
    assert cost.stored_bytes == pytest.approx(one_worker.stored_bytes)


def estimate(config: Config, stage: str, size: CorpusSize, machines: Machines, dim: int = 256) -> StageCost:
    cost = estimate_stage(stage, StageInputs(config, size, machines, dim))
    assert cost
    return cost


def make_config(depth: int) -> Config:
    return parse_config(
        {
            "workdir": "/nowhere",
            "generalist": {"paths": ["a"]},
            "specialists": {"b": {"paths": ["b"]}},
            "embed": {"model": "static:bundled:all-MiniLM-L6-v2"},
            "cluster": {"depth": depth},
            "sample": {"budget_tokens": 10**9},
        }
    )


@given(st.integers(1, 10**6), st.integers(1, 10**5))
def test_speedup_is_the_number_of_tasks_over_the_number_of_waves(num_tasks: int, num_workers: int) -> None:
    num_waves = 0
    remaining = num_tasks
    if num_tasks / num_workers > 1000:
        return
    while remaining > 0:
        remaining, num_waves = remaining - num_workers, num_waves + 1
    assert compute_speedup(num_tasks, num_workers) == pytest.approx(num_tasks / num_waves)


def test_every_modelled_stage_is_a_declared_stage() -> None:
    assert STAGE_SHAPES.keys() <= STAGES.keys()


def test_every_modelled_stage_has_rates_for_all_of_its_amounts() -> None:
    size = CorpusSize(files=9, documents=1e6, text_bytes=4e9, tokens=1e9, windows=2e6, parts=300)
    rates = read_rates()
    for model in ("static:x", "lsi", "some/transformer"):
        config = make_config(2)
        config = config.model_copy(update={"embed": config.embed.model_copy(update={"model": model})})
        for stage in STAGE_SHAPES:
            shape = describe_stage(stage, StageInputs(config, size, Machines(16, 16), 256))
            assert shape
            if shape.rates_key == "embedder transformer":  # a transformer has no embedder step
                continue
            stage_rates = rates["stages"][shape.rates_key]
            assert {name for stage_map in shape.maps for name in stage_map.amounts} <= stage_rates["core_s"].keys()
            assert {name for stage_map in shape.maps for name in stage_map.driver_amounts} <= stage_rates["driver_s"].keys()
            assert shape.driver_only_amounts.keys() <= stage_rates["driver_only_s"].keys()
            assert shape.stored_amounts.keys() <= stage_rates["stored_mb"].keys()
            assert any(stage_rates["core_s"].values()), shape.rates_key


@pytest.mark.ray
def test_stored_bytes_are_close_to_the_estimate(tmp_path: Path, ray_session: Any) -> None:
    """Measured on docstrings, which compress as well as other real text."""
    config = {
        "workdir": str(tmp_path / "run"),
        "generalist": {"paths": ["pydocs://stdlib"], "limit": 400},
        "specialists": {"j": {"paths": ["pydocs://numpy"], "limit": 50}},
        "window": {"tokens": 128},
        "embed": {"model": "lsi", "dim": 64},
        "cluster": {"branching": 8, "depth": 2},
        "sample": {"budget_tokens": 50_000},
    }
    run = curate(config)
    size = find_corpus_size(run.config, "generalist", run.step("prepare", "generalist"))
    assert size
    for stage in ("prepare", "embed"):
        folder = Path(run.step(stage, "generalist").folder.path)
        stored_bytes = sum(path.stat().st_size for path in folder.glob("*.parquet"))
        cost = estimate(run.config, stage, size, Machines(2, 2), dim=64)
        assert 0.5 < cost.stored_bytes / stored_bytes < 2, stage


@pytest.mark.slow
def test_cost_of_docstrings_includes_parsing_their_packages() -> None:
    paths = ["pydocs://numpy,rich,fsspec"]
    files = [f"pydocs://{name}" for name in ("fsspec", "numpy", "rich")]
    bytes_by_url = {url: pydocs.count_source_bytes(url) for url in files}
    rows_by_url = {url: sum(1 for _ in pydocs.read_rows(url)) for url in files}
    root = Path(importlib.metadata.distribution("rich").locate_file(""))
    assert bytes_by_url["pydocs://rich"] >= sum(path.stat().st_size for path in (root / "rich").glob("*.py"))

    def find_size(limit: int | None) -> CorpusSize:
        raw = {"workdir": "unused", "embed": {"model": "lsi"}, "sample": {"budget_tokens": 1000}}
        raw |= {"generalist": {"paths": paths, "limit": limit}, "specialists": {"a": {"paths": ["pydocs://click"]}}}
        run = build_graph(parse_config(raw))
        size = find_corpus_size(run.config, "generalist", run.step("prepare", "generalist"))
        assert size
        cost = estimate(run.config, "prepare", size, Machines(2, 2))
        without_parsing = estimate(run.config, "prepare", replace(size, python_bytes=0.0), Machines(2, 2))
        # Python is parsed twice: to count the rows, and to cut them into windows.
        rate = read_rates()["stages"]["prepare"]["core_s"]["python_mb"]
        assert cost.core_s - without_parsing.core_s == pytest.approx(2e-6 * size.python_bytes * rate)
        return size

    unlimited, limited = find_size(None), find_size(10)
    assert unlimited.python_bytes == sum(bytes_by_url.values())
    assert unlimited.documents == pytest.approx(sum(rows_by_url.values()))
    assert limited.documents == pytest.approx(sum(min(10, rows) for rows in rows_by_url.values()))
    assert limited.python_bytes == pytest.approx(
        sum(min(num_bytes, 10 * unlimited.python_bytes / unlimited.documents) for num_bytes in bytes_by_url.values())
    )


@pytest.mark.slow
def test_dry_run_estimates_time_money_and_disk_space_and_writes_nothing(tmp_path: Path) -> None:
    config = make_topic_config(tmp_path, 30)
    config["engine"] = {"workers": 4, "prices": {"core": 0.05, "gpu": 2.0}}
    config["embed"] = {"model": "bundled:all-MiniLM-L6-v2"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, str(ROOT / "jobs" / "curate.py"), "--config", str(tmp_path / "run.yaml"), "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for expected in (
        "generalist: about",
        "estimated from 120 rows",
        "core time",
        "disk space",
        "time, 4 workers",
        "time, 256 workers",
        "engine.prices.core 0.05",
        "GPU-hours",
        "engine.prices.gpu 2",
        "a factor of about two",
    ):
        assert expected in " ".join(done.stdout.split()), expected
    assert "started Ray" not in done.stdout + done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.ray
def test_estimate_of_a_finished_step_uses_its_counts_and_of_a_finished_run_is_empty(tmp_path: Path, ray_session: Any) -> None:
    config = make_topic_config(tmp_path, 30)
    run = run_prepare(config)
    lines = [str(line) for line in render_estimate(run, list(run.steps))]
    assert any(line.startswith("generalist: ") and "KB of text" in line and "about" not in line for line in lines)
    # A dry run also rejects a budget that exceeds the available tokens, which are counted by now.
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, str(ROOT / "jobs" / "curate.py"), "--config", str(tmp_path / "run.yaml"), "--dry-run"]
    command += ["--set", "sample.budget_tokens=10000000"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.search(
        r"^error: sample\.budget_tokens 10,000,000 is more than .* at most [\d,]+ are available", done.stderr, re.MULTILINE
    )
    curate(config)
    assert list(render_estimate(build_graph(config), list(run.steps))) == []


def test_dataset_is_not_downloaded_for_an_estimate(tmp_path: Path) -> None:
    config = make_topic_config(tmp_path, 5)
    pq.write_table(pa.table({"id": ["a"], "text": ["b"]}), tmp_path / "train.parquet")
    (tmp_path / "set").mkdir()
    (tmp_path / "train.parquet").rename(tmp_path / "set" / "train.parquet")
    reader = {"type": "HuggingFaceDatasetReader", "dataset_options": {"split": "train"}}
    run = build_graph(config | {"generalist": {"paths": [str(tmp_path / "set")], "reader": reader}})
    assert find_corpus_size(run.config, "generalist", run.step("prepare", "generalist")) is None
    (line,) = render_estimate(run, list(run.steps))
    assert "unknown until prepare is done" in str(line)


def test_estimate_with_many_small_parts_names_the_driver_as_the_bottleneck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A billion windows in small parts, and many workers."""
    size = CorpusSize(files=1000, documents=1e9, text_bytes=2e12, tokens=5e11, windows=1e9, parts=1e6)
    monkeypatch.setattr("pipeline.costs.estimate.find_corpus_size", lambda *_: size)
    settings = make_topic_config(tmp_path, 5) | {
        "engine": {"workers": 400},
        "schedule": {"ending": {"share": 0.1, "weights": {"sharpness": 1}}},
    }
    run = build_graph(settings)
    lines = [str(line) for line in render_estimate(run, list(run.steps))]
    assert any("with 25,600 workers the driver is busy" in line and "prepare.part_documents" in line for line in lines)
    assert any(line.startswith("not included: schedule") for line in lines)
    costs = estimate_steps(run, list(run.steps), {"generalist": size, "legal": size}, Machines(400, 16))
    first, last = (cost.stored_bytes for step, cost in costs if step.stage == "sample")
    assert first > last  # each has its own share of the budget
    config = make_config(2)
    machines = Machines(20_000, 16)
    many_parts = estimate(config, "embed", size, machines)
    assert many_parts.worker_wait_s > 0.5 * many_parts.mapping_s
    fewer_parts = estimate(config, "embed", replace(size, parts=1e5), machines)
    assert fewer_parts.wall_s < 0.5 * many_parts.wall_s


@pytest.mark.slow
def test_input_without_usable_rows_is_an_error_of_one_line(tmp_path: Path) -> None:
    config = make_topic_config(tmp_path, 5)
    config["generalist"] = {"paths": [write_jsonl(tmp_path / "none.jsonl", [{"id": "a", "words": "x"}])]}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, str(ROOT / "jobs" / "curate.py"), "--config", str(tmp_path / "run.yaml"), "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "generalist: no row of" in done.stderr.splitlines()[-1]
    assert "text_key" in done.stderr.splitlines()[-1]


def make_damaged_file(compress: Callable[[bytes], bytes]) -> bytes:
    """A compressed file of more than a megabyte, with overwritten bytes near its beginning."""
    data = bytearray(compress("".join(json.dumps(row) + "\n" for row in make_documents(2500)).encode()))
    assert len(data) > 1 << 20
    data[100_000:100_400] = b"\xff" * 400
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", b"no gzip " * 50, "cannot read"),
        ("a.jsonl.gz", b"no gzip " * 500_000, "cannot read"),
        ("a.jsonl.zst", make_damaged_file(zstandard.compress), "cannot read"),
        ("a.jsonl.zst", b"no zstd " * 50, "cannot read"),
        ("a.jsonl.zst", zstandard.compress(random.Random(0).randbytes(3 << 20))[:-9000], "no row of"),
        ("a.jsonl.zst", zstandard.compress(b'{"id": "a", "text": "b"}\n' * 500)[:-9], "cannot read"),
        ("a.parquet", b"PAR1" + b"no footer " * 50, "cannot read"),
    ],
)
def test_unreadable_input_is_an_error_that_names_the_file(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    run = build_graph(make_topic_config(tmp_path, 5) | {"generalist": {"paths": [str(tmp_path / name)]}})
    with pytest.raises(InputError, match=message) as caught:
        list(render_estimate(run, list(run.steps)))
    assert name in str(caught.value)


def test_size_of_a_file_whose_first_line_exceeds_a_megabyte_is_estimated(tmp_path: Path) -> None:
    rows = [{"id": "long", "text": "a long line " * 200_000}, *make_documents(800)]
    file = write_jsonl(tmp_path / "long.jsonl", rows)
    run = build_graph(make_topic_config(tmp_path, 5) | {"generalist": {"paths": [file]}})
    found = find_corpus_size(run.config, "generalist", run.step("prepare", "generalist"))
    assert found
    assert found.text_bytes == pytest.approx(sum(len(row["text"]) for row in rows), rel=0.2)


def test_docs_have_no_unfilled_placeholders() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        for line in page.read_text(encoding="utf-8").splitlines():
            assert not (line.isupper() and len(line.split()) == 1), f"{page.name}: {line}"


def test_tables_of_the_scale_page_match_the_model() -> None:
    spec = importlib.util.spec_from_file_location("simulate", ROOT / "benchmarks" / "simulate.py")
    assert spec
    assert spec.loader
    simulate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(simulate)
    assert "\n".join(simulate.tables()) in (ROOT / "docs" / "scale.md").read_text(encoding="utf-8"), (
        "rates or model changed; run python benchmarks/simulate.py --write"
    )
