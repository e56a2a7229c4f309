"""Runs on a faulty object store: a real S3 server that fails a tenth of all requests or more."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from pipeline import embedders
from pipeline.config import Embed
from pipeline.errors import ConfigError, StorageError
from pipeline.execution import lock
from pipeline.execution.lock import WorkdirLock
from pipeline.graph import runner
from pipeline.storage import Folder
from tests.support.corpora import make_topic_config
from tests.support.faulty_s3 import FAULTS, FaultyS3
from tests.support.processes import ROOT, wait_until

# botocore's clients are closed by the garbage collector.
pytestmark = [
    pytest.mark.slow,  # they need a server
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def s3() -> Iterator[FaultyS3]:
    """A store with a bucket named `bucket`."""
    import s3fs

    with FaultyS3() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("bucket")
        yield store
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def faulty(s3: FaultyS3) -> Iterator[FaultyS3]:
    s3.rate = 0.3
    yield s3
    s3.rate, s3.lag_s = 0.0, 0.0


def test_files_on_a_faulty_store_are_read_as_written(faulty: FaultyS3) -> None:
    folder, other = Folder("s3://bucket/files/a"), Folder("s3://bucket/files/b")
    before = faulty.faults.copy()
    table = pa.table({"x": list(range(5000)), "text": ["word " * (n % 50) for n in range(5000)]})
    for number in range(6):
        folder.write_table(f"{number}.parquet", table, table.schema, {"number": number})
        assert folder.read_table(f"{number}.parquet", columns=["text"]).equals(table.select(["text"]))
        assert folder.read_facts(f"{number}.parquet") == {"number": number}
        folder.link(f"{number}.parquet", other)
        assert other.exists(f"{number}.parquet")
        folder.remove(f"{number}.parquet")
        assert not folder.exists(f"{number}.parquet")
    assert folder.names() == []
    assert folder.has_files([])
    assert not other.has_files(["0.parquet", "none.parquet"])
    assert other.names() == sorted(f"{number}.parquet" for number in range(6))
    assert other.read_json("none.json") is None
    other.remove_all()
    assert other.files() == []
    assert set((faulty.faults - before).keys()) == set(FAULTS)


def test_a_file_is_created_once_when_responses_are_lost(faulty: FaultyS3) -> None:
    folder = Folder("s3://bucket/created")
    for number in range(8):
        assert folder.create_json(f"{number}.json", {"by": "first"})
        assert not folder.create_json(f"{number}.json", {"by": "second"})
        assert folder.read_json(f"{number}.json") == {"by": "first"}


def test_known_names_are_found_and_removed_when_listings_are_stale(s3: FaultyS3, faulty: FaultyS3) -> None:
    s3.lag_s = 1e6
    folder = Folder("s3://bucket/lagging")
    folder.write_bytes("a", b"a")
    assert folder.names() == []
    assert folder.has_files(["a"])
    assert not folder.has_files(["a", "b"])
    folder.remove_all(["a", "b"])
    assert not folder.exists("a")


def test_only_one_run_holds_a_workdir_on_a_store(s3: FaultyS3, faulty: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_has_ended", lambda _process: False)
    s3.lag_s = 1e6  # so that listings are stale
    workdir = Folder("s3://bucket/alone")
    for number in range(3):
        with WorkdirLock(workdir, heartbeat_s=0.05):
            monkeypatch.setattr(WorkdirLock, "_locks", {})  # as if in another process
            with pytest.raises(ConfigError, match=rf"another run has been using s3://bucket/alone .* process {os.getpid()}"):
                WorkdirLock(workdir).__enter__()
            monkeypatch.undo()
            monkeypatch.setattr(lock, "_has_ended", lambda _process: False)
        assert workdir.child("runs").read_json(f"{number + 1:06d}.json")["state"] == "ended"


@pytest.mark.slow
def test_large_files_use_multipart_uploads_and_unfinished_ones_are_aborted(s3: FaultyS3) -> None:
    folder, sibling = Folder("s3://bucket/large/run"), Folder("s3://bucket/large/run-2")
    uploads = folder.fs.call_s3
    data = random.Random(0).randbytes(101 << 20)  # above 100 MiB, s3fs uploads in parts
    s3.rate = 0.3
    folder.write_bytes("big", data)
    s3.rate = 0.0
    assert folder.read_bytes("big") == data
    for place in (folder, sibling):
        for key in ("x", "below/y"):
            bucket, _, path = place.file(key).partition("/")
            created = uploads("create_multipart_upload", Bucket=bucket, Key=path)
            uploads("upload_part", Bucket=bucket, Key=path, UploadId=created["UploadId"], PartNumber=1, Body=b"half")
    s3.rate = 0.3
    folder.abort_uploads()
    s3.rate = 0.0
    remaining = uploads("list_multipart_uploads", Bucket="bucket").get("Uploads", [])
    assert sorted(upload["Key"] for upload in remaining) == ["large/run-2/below/y", "large/run-2/x"]
    sibling.abort_uploads()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_SHARED_CREDENTIALS_FILE": "/none"},
            "cannot be listed: Unable to locate credentials",
        ),
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
            'cannot be listed: Could not connect to the endpoint URL: "http://127.0.0.1:9/nowhere?',
        ),
        ({}, "no file matches 's3://nowhere/in.jsonl'"),
    ],
)
def test_an_unreachable_store_is_reported_in_one_line(s3: FaultyS3, tmp_path: Path, broken: dict[str, str], message: str) -> None:
    config = make_topic_config(tmp_path, 4) | {"generalist": {"paths": ["s3://nowhere/in.jsonl"]}, "workdir": "s3://nowhere/run"}
    done = _run_curate(_write_config(config, tmp_path), broken, "--dry-run")
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert message in line


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_on_a_faulty_store_equals_a_run_on_disk(s3: FaultyS3, tmp_path: Path, ray_session: Any) -> None:
    """Inputs, workdir and exports are on the store. The run is killed midway, and resumed; then a mixture is exported."""
    config = make_topic_config(tmp_path, 120) | {"prepare": {"part_documents": 60}, "dedup": {"buckets": 3, "hashes": 8}}
    config["engine"] = {"workers": 2}
    tokenizer = embedders.find_tokenizer_file(Embed(model="bundled:all-MiniLM-L6-v2"))
    runner.export(config, to="jsonl")
    runner.export_mixture(config, mixture="megatron", tokenizer=tokenizer, eos_token="[SEP]")
    expected = _read_outputs(Folder(config["workdir"]))

    store = Folder("s3://bucket/in")
    for path in sorted(tmp_path.glob("*.json*")):
        store.write_bytes(path.name, path.read_bytes())
    paths = ["s3://bucket/in/cooking.jsonl", "s3://bucket/in/l*.jsonl", "s3://bucket/in/[ms]*.jsonl"]
    config |= {"generalist": {"paths": paths}, "specialists": {"legal": {"paths": ["s3://bucket/in/law.json"]}}}
    config |= {"workdir": "s3://bucket/run", "engine": {"address": "local", "workers": 2}}
    file = _write_config(config, tmp_path)
    workdir = Folder(config["workdir"])
    s3.settle()
    s3.rate, s3.lag_s, s3.requests = 0.1, 3.0, 0
    s3.faults.clear()
    try:
        with _start_export(file, tmp_path / "first.log", "--to", "jsonl") as first:
            wait_until(lambda: "embed generalist" in (tmp_path / "first.log").read_text(), first, tmp_path / "first.log")
            os.killpg(first.pid, signal.SIGKILL)
        mixture = ("--mixture", "megatron", "--tokenizer", tokenizer, "--eos", "[SEP]")
        for number, arguments in enumerate([("--to", "jsonl"), mixture]):
            with _start_export(file, tmp_path / f"then-{number}.log", *arguments) as then:
                assert then.wait() == 0, (tmp_path / f"then-{number}.log").read_text()
        injected, requests = s3.faults.copy(), s3.requests
    finally:
        s3.rate, s3.lag_s = 0.0, 0.0
    assert any(name.endswith(".bin") for name in expected)
    assert _read_outputs(workdir) == expected
    print(f"{requests} requests, {dict(injected)} faults")
    assert requests >= 1000
    assert sum(injected.values()) >= 0.08 * requests
    assert set(injected) == set(FAULTS)
    assert workdir.fs.call_s3("list_multipart_uploads", Bucket="bucket").get("Uploads", []) == []


def _read_outputs(workdir: Folder) -> dict[str, bytes]:
    """The shards and the exports, without files that hold fingerprints, which depend on the input metadata of the store."""
    return {
        f"{place}/{name}": workdir.child(place).read_bytes(name)
        for place in ("shards", "exports/jsonl", "exports/megatron-level-1")
        for name in workdir.child(place).files()
        if not name.endswith(("manifest.json", "mixture.json"))
    }


def _write_config(config: dict[str, Any], folder: Path) -> Path:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(json.loads(json.dumps(config))), encoding="utf-8")
    return file


def _run_curate(config: Path, environment: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "jobs" / "curate.py"), "--config", str(config), *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=600)


def _start_export(config: Path, log: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    """Start an export in its own session with its own Ray, so that all its processes can be killed."""
    command = [sys.executable, str(ROOT / "jobs" / "export.py"), "--config", str(config), *arguments]
    with log.open("wb") as file:
        return subprocess.Popen(command, env=os.environ.copy(), stdout=file, stderr=file, start_new_session=True)


def test_a_permanent_error_of_a_store_is_not_retried(s3: FaultyS3) -> None:
    folder = Folder("s3://no-such-bucket/run")
    before = s3.requests
    with pytest.raises(StorageError, match="cannot read no-such-bucket/run/a"):
        folder.read_bytes("a")
    assert s3.requests - before <= 4
