"""What a run takes before it is begun: the size of its input, the model, and what `--dry-run` says."""

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

from pipeline.config import parse_config
from pipeline.costs.estimate import costs_of, render_estimate
from pipeline.costs.model import Machines, read_rates, shape, speedup, stage_cost
from pipeline.costs.size import Size, size_of
from pipeline.errors import InputError
from pipeline.graph.graph import build_graph
from pipeline.graph.runner import curate
from pipeline.graph.runner import prepare as run_prepare
from pipeline.sources import pydocs
from tests.support.corpora import topic_run, write_jsonl
from tests.support.processes import ROOT

STAGES = ("prepare", "dedup", "decontaminate", "embedder", "embed", "cluster", "assign", "score", "weights", "sample")


def documents(count: int) -> list[dict[str, Any]]:
    """Of many lengths, in random words, which no packing makes small."""
    chooser = random.Random(0)
    words = ["".join(chooser.choices("abcdefghijklmnop", k=chooser.randint(2, 9))) for _ in range(20_000)]
    return [{"id": str(n), "text": " ".join(chooser.choices(words, k=chooser.randint(20, 600)))} for n in range(count)]


def write_as(kind: str, rows: list[dict[str, Any]], folder: Path) -> None:
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
        packed = {"jsonl": lines, "jsonl.gz": gzip.compress(lines), "jsonl.zst": zstandard.compress(lines)}
        path.write_bytes(packed[kind])


@pytest.mark.ray
@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "csv", "arrow"])
def test_a_guess_from_the_beginnings_of_files_is_near_what_prepare_counts(kind: str, tmp_path: Path, ray_session: Any) -> None:
    write_as(kind, documents(1500), tmp_path)
    config = topic_run(tmp_path, 20) | {"generalist": {"paths": [str(tmp_path / f"a.{kind}")]}}
    run = build_graph(config)
    guessed = size_of(run.config, "generalist", run.step("prepare", "generalist"))
    assert guessed
    assert guessed.rows_read is not None
    assert guessed.rows_read <= 200
    counted = size_of(run.config, "generalist", run_prepare(config).step("prepare", "generalist"))
    assert counted
    assert counted.rows_read is None
    assert counted.files == guessed.files == 1
    for name in ("documents", "text_bytes", "tokens", "windows"):
        assert getattr(guessed, name) == pytest.approx(getattr(counted, name), rel=0.2), name
    assert 0.5 < guessed.parts / counted.parts < 2


def test_a_guess_keeps_to_the_limit_and_small_files_are_read_whole(tmp_path: Path) -> None:
    config = topic_run(tmp_path, 30)
    run = build_graph(config)
    found = size_of(run.config, "generalist", run.step("prepare", "generalist"))
    assert found
    assert (found.files, round(found.documents)) == (4, 120)
    limited = build_graph(config | {"generalist": config["generalist"] | {"limit": 5}})
    found = size_of(limited.config, "generalist", limited.step("prepare", "generalist"))
    assert found
    assert round(found.documents) == 20


SIZES = st.builds(
    lambda windows, tokens, part_windows, files: Size(
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


@given(SIZES, st.integers(1, 20_000), st.integers(1, 128), st.sampled_from(STAGES), st.integers(1, 4))
def test_no_stage_is_faster_than_its_work_over_the_workers_nor_than_the_driver(
    size: Size, workers: int, cores: int, stage: str, depth: int
) -> None:
    config = run_config(depth)
    machines = Machines(workers, cores)
    cost = stage_cost(config, stage, size, machines, 256)
    assert cost
    assert cost.mapping_s >= cost.core_s / workers * (1 - 1e-9)
    assert cost.mapping_s >= cost.driver_s * (1 - 1e-9)
    assert cost.wall_s >= cost.alone_s >= 0
    assert 0 <= cost.waited_s <= cost.mapping_s
    # No more workers make the work less; what they find has to be put together, which may make it more.
    alone = stage_cost(config, stage, size, Machines(1, 1), 256)
    assert alone
    assert cost.core_s >= alone.core_s * (1 - 1e-9)
    assert cost.stored_bytes == pytest.approx(alone.stored_bytes)


def run_config(depth: int) -> Any:
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
def test_tasks_go_in_rounds(tasks: int, workers: int) -> None:
    rounds = 0
    left = tasks
    if tasks / workers > 1000:
        return
    while left > 0:
        left, rounds = left - workers, rounds + 1
    assert speedup(tasks, workers) == pytest.approx(tasks / rounds)


def test_every_kind_of_stage_has_rates_for_all_that_it_is_made_of() -> None:
    size = Size(files=9, documents=1e6, text_bytes=4e9, tokens=1e9, windows=2e6, parts=300)
    rates = read_rates()
    for model in ("static:x", "lsi", "some/transformer"):
        config = run_config(2)
        config = config.model_copy(update={"embed": config.embed.model_copy(update={"model": model})})
        for stage in STAGES:
            found = shape(config, stage, size, Machines(16, 16), 256)
            assert found
            if found.kind == "embedder transformer":  # there is none
                continue
            known = rates["stages"][found.kind]
            assert {name for work in found.works for name in work.amounts} <= known["core_s"].keys()
            assert {name for work in found.works for name in work.driver} <= known["driver_s"].keys()
            assert found.alone.keys() <= known["alone_s"].keys()
            assert found.stored.keys() <= known["stored_mb"].keys()
            assert any(known["core_s"].values()), found.kind


@pytest.mark.ray
def test_what_is_stored_is_about_as_told(tmp_path: Path, ray_session: Any) -> None:
    """On docstrings, which are packed as well as other real text."""
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
    size = size_of(run.config, "generalist", run.step("prepare", "generalist"))
    assert size
    for stage in ("prepare", "embed"):
        folder = Path(run.step(stage, "generalist").folder.path)
        held = sum(path.stat().st_size for path in folder.glob("*.parquet"))
        cost = stage_cost(run.config, stage, size, Machines(2, 2), 64)
        assert cost
        assert 0.5 < cost.stored_bytes / held < 2, stage


def test_docstrings_cost_the_parsing_of_their_packages() -> None:
    paths = ["pydocs://numpy,rich,fsspec"]
    files = [f"pydocs://{name}" for name in ("fsspec", "numpy", "rich")]
    bytes_of = {url: pydocs.source_bytes(url) for url in files}
    rows_of = {url: sum(1 for _ in pydocs.read_rows(url)) for url in files}
    root = Path(importlib.metadata.distribution("rich").locate_file(""))
    assert bytes_of["pydocs://rich"] >= sum(path.stat().st_size for path in (root / "rich").glob("*.py"))

    def size(limit: int | None) -> Size:
        raw = {"workdir": "unused", "embed": {"model": "lsi"}, "sample": {"budget_tokens": 1000}}
        raw |= {"generalist": {"paths": paths, "limit": limit}, "specialists": {"a": {"paths": ["pydocs://click"]}}}
        run = build_graph(parse_config(raw))
        found = size_of(run.config, "generalist", run.step("prepare", "generalist"))
        assert found
        cost = stage_cost(run.config, "prepare", found, Machines(2, 2), 64)
        without = stage_cost(run.config, "prepare", replace(found, python_bytes=0.0), Machines(2, 2), 64)
        assert cost
        assert without
        # Twice: to count the rows, and to cut them.
        rate = read_rates()["stages"]["prepare"]["core_s"]["python_mb"]
        assert cost.core_s - without.core_s == pytest.approx(2e-6 * found.python_bytes * rate)
        return found

    whole, few = size(None), size(10)
    assert whole.python_bytes == sum(bytes_of.values())
    assert whole.documents == pytest.approx(sum(rows_of.values()))
    assert few.documents == pytest.approx(sum(min(10, rows) for rows in rows_of.values()))
    assert few.python_bytes == pytest.approx(
        sum(min(size, 10 * whole.python_bytes / whole.documents) for size in bytes_of.values())
    )


def test_a_dry_run_says_time_money_and_room_and_leaves_nothing(tmp_path: Path) -> None:
    config = topic_run(tmp_path, 30)
    config["engine"] = {"workers": 4, "prices": {"core": 0.05, "gpu": 2.0}}
    config["embed"] = {"model": "bundled:all-MiniLM-L6-v2"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, str(ROOT / "jobs" / "curate.py"), "--config", str(tmp_path / "run.yaml"), "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for said in (
        "generalist: about",
        "going by 120 rows",
        "work of a core",
        "time, 4 workers",
        "time, 256 workers",
        "engine.prices.core 0.05",
        "GPU-hours",
        "engine.prices.gpu 2",
        "right to a factor of two or so",
    ):
        assert said in done.stdout, said
    assert "started Ray" not in done.stdout + done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.ray
def test_what_is_done_costs_nothing_more(tmp_path: Path, ray_session: Any) -> None:
    config = topic_run(tmp_path, 30)
    run = run_prepare(config)
    lines = [str(line) for line in render_estimate(run, list(run.steps))]
    assert any(line.startswith("generalist: ") and "KB of text" in line and "about" not in line for line in lines)
    # Nor does it help to see what a budget costs that cannot be had, which is known by now.
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, str(ROOT / "jobs" / "curate.py"), "--config", str(tmp_path / "run.yaml"), "--dry-run"]
    command += ["--set", "sample.budget_tokens=10000000"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.search(
        r"^error: sample\.budget_tokens 10,000,000 is more than .* at most [\d,]+ can be had", done.stderr, re.MULTILINE
    )
    curate(config)
    assert list(render_estimate(build_graph(config), list(run.steps))) == []


def test_a_dataset_is_not_fetched_to_be_sized(tmp_path: Path) -> None:
    config = topic_run(tmp_path, 5)
    pq.write_table(pa.table({"id": ["a"], "text": ["b"]}), tmp_path / "train.parquet")
    (tmp_path / "set").mkdir()
    (tmp_path / "train.parquet").rename(tmp_path / "set" / "train.parquet")
    reader = {"type": "HuggingFaceDatasetReader", "dataset_options": {"split": "train"}}
    run = build_graph(config | {"generalist": {"paths": [str(tmp_path / "set")], "reader": reader}})
    assert size_of(run.config, "generalist", run.step("prepare", "generalist")) is None
    (line,) = render_estimate(run, list(run.steps))
    assert "known once prepare is done" in str(line)


def test_many_parts_make_the_driver_the_limit_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A billion windows in small parts, with many workers."""
    size = Size(files=1000, documents=1e9, text_bytes=2e12, tokens=5e11, windows=1e9, parts=1e6)
    monkeypatch.setattr("pipeline.costs.estimate.size_of", lambda *_: size)
    settings = topic_run(tmp_path, 5) | {
        "engine": {"workers": 400},
        "schedule": {"ending": {"share": 0.1, "weights": {"sharpness": 1}}},
    }
    run = build_graph(settings)
    lines = [str(line) for line in render_estimate(run, list(run.steps))]
    assert any("with 25,600 workers the driver is busy" in line and "prepare.part_documents" in line for line in lines)
    assert any(line.startswith("not in it: schedule") for line in lines)
    costs = costs_of(run, list(run.steps), {"generalist": size, "legal": size}, Machines(400, 16))
    first, last = (cost.stored_bytes for step, cost in costs if step.stage == "sample")
    assert first > last  # each has its own part of the budget
    config = run_config(2)
    machines = Machines(20_000, 16)
    cost = stage_cost(config, "embed", size, machines, 256)
    assert cost
    assert cost.waited_s > 0.5 * cost.mapping_s
    fewer = stage_cost(config, "embed", replace(size, parts=1e5), machines, 256)
    assert fewer
    assert fewer.wall_s < 0.5 * cost.wall_s


def test_an_empty_input_is_one_line(tmp_path: Path) -> None:
    config = topic_run(tmp_path, 5)
    config["generalist"] = {"paths": [write_jsonl(tmp_path / "none.jsonl", [{"id": "a", "words": "x"}])]}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, str(ROOT / "jobs" / "curate.py"), "--config", str(tmp_path / "run.yaml"), "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "generalist: no row of" in done.stderr.splitlines()[-1]
    assert "text_key" in done.stderr.splitlines()[-1]


def damaged(pack: Callable[[bytes], bytes]) -> bytes:
    """A packed file of more than a megabyte, with a hole in its beginning."""
    data = bytearray(pack("".join(json.dumps(row) + "\n" for row in documents(2500)).encode()))
    assert len(data) > 1 << 20
    data[100_000:100_400] = b"\xff" * 400
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", b"no gzip " * 50, "cannot read"),
        ("a.jsonl.gz", b"no gzip " * 500_000, "cannot read"),
        ("a.jsonl.zst", damaged(zstandard.compress), "cannot read"),
        ("a.jsonl.zst", b"no zstd " * 50, "cannot read"),
        ("a.jsonl.zst", zstandard.compress(random.Random(0).randbytes(3 << 20))[:-9000], "no row of"),
        ("a.jsonl.zst", zstandard.compress(b'{"id": "a", "text": "b"}\n' * 500)[:-9], "cannot read"),
        ("a.parquet", b"PAR1" + b"no footer " * 50, "cannot read"),
    ],
)
def test_what_cannot_be_read_is_one_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    run = build_graph(topic_run(tmp_path, 5) | {"generalist": {"paths": [str(tmp_path / name)]}})
    with pytest.raises(InputError, match=message) as caught:
        list(render_estimate(run, list(run.steps)))
    assert name in str(caught.value)


def test_a_line_longer_than_a_megabyte_is_read_beyond_it(tmp_path: Path) -> None:
    rows = [{"id": "long", "text": "a long line " * 200_000}, *documents(800)]
    file = write_jsonl(tmp_path / "long.jsonl", rows)
    run = build_graph(topic_run(tmp_path, 5) | {"generalist": {"paths": [file]}})
    found = size_of(run.config, "generalist", run.step("prepare", "generalist"))
    assert found
    assert found.text_bytes == pytest.approx(sum(len(row["text"]) for row in rows), rel=0.2)


def test_a_page_has_no_place_left_to_fill_in() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        for line in page.read_text(encoding="utf-8").splitlines():
            assert not (line.isupper() and len(line.split()) == 1), f"{page.name}: {line}"


def test_the_page_on_scale_has_what_the_model_says_now() -> None:
    spec = importlib.util.spec_from_file_location("simulate", ROOT / "benchmarks" / "simulate.py")
    assert spec
    assert spec.loader
    simulate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(simulate)
    assert "\n".join(simulate.tables()) in (ROOT / "docs" / "scale.md").read_text(encoding="utf-8"), (
        "rates or model changed: python benchmarks/simulate.py --write"
    )
