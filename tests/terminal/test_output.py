"""Terminals that are not UTF-8, names that no terminal can show, and the output of libraries."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

import pipeline
from pipeline.engine import ray_connection
from pipeline.errors import ConfigError
from tests.support.corpora import make_topic_config, make_topic_documents, write_jsonl
from tests.support.processes import ROOT

# Python treats the locale C as UTF-8 unless this is disabled.
NO_UTF8 = {"PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "LC_ALL": "C"}
LATIN_1 = {"PYTHONIOENCODING": "latin-1"}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, ray_session: Any) -> Path:
    """Path of the config of a finished run, whose sources, folder and workdir have non-ASCII names."""
    folder = tmp_path_factory.mktemp("terminal") / "données"
    folder.mkdir()
    raw = make_topic_config(folder, 60)
    write_jsonl(folder / "été.jsonl", [row | {"source": "Quelle-é-帆船"} for row in make_topic_documents("law", 60, seed=9)])
    raw["specialists"] = {"droit-é": raw["specialists"]["legal"]}
    raw["workdir"] = str(folder / "travail-草木")
    raw["sample"]["budget_tokens"] = 4_000
    pipeline.curate(raw)
    pipeline.graph.runner.export(raw, to="jsonl")
    config = folder.parent / "run.yaml"
    config.write_text(yaml.safe_dump(raw, allow_unicode=True), encoding="utf-8")
    return config


def job(name: str, *arguments: str | bytes, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *arguments]
    environment = {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"} | environment
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, check=False)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("command", "environment"),
    [
        (["look"], NO_UTF8),
        (["look"], LATIN_1),
        (["status"], NO_UTF8),
        (["export", "--to", "jsonl"], NO_UTF8),
        (["curate", "--dry-run"], NO_UTF8),
        (["curate"], NO_UTF8),
    ],
)
def test_characters_that_a_terminal_cannot_show_are_escaped(done: Path, command: list[str], environment: dict[str, str]) -> None:
    name, *arguments = command
    there, here = (job(name, "--config", str(done), *arguments, **each) for each in (environment, {}))
    assert (there.returncode, here.returncode) == (0, 0), there.stderr
    encoding = "latin-1" if environment is LATIN_1 else "ascii"
    assert not here.stdout.isascii()
    assert without_times(there.stdout) == without_times(here.stdout.decode().encode(encoding, "backslashreplace"))


def without_times(out: bytes) -> list[bytes]:
    """The lines, but for the status of the latest run, which is another each time."""
    return [line for line in out.splitlines() if b"process" not in line]


@pytest.mark.parametrize("environment", [NO_UTF8, LATIN_1, {}], ids=["C", "latin-1", "utf-8"])
def test_an_error_names_files_in_any_script_in_one_line(tmp_path: Path, environment: dict[str, str]) -> None:
    broken = os.fsencode(tmp_path) + b"/caf\xe9-\xe5\xb8\x86.yaml"
    refused = job("curate", "--config", broken, **environment)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert b"cannot read" in line
    assert rb"caf\udce9-" in line
    assert line.endswith(b".yaml: No such file or directory")


@pytest.mark.parametrize("environment", [NO_UTF8, {}], ids=["C", "utf-8"])
def test_a_file_whose_name_is_not_utf8_is_rejected_before_anything_runs(
    topics: dict[str, Any], tmp_path: Path, environment: dict[str, str]
) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/input/caf\xe9.jsonl")).write_text("{}", encoding="utf-8")
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(topics), encoding="utf-8")
    refused = job("curate", "--config", str(config), **environment)
    assert refused.returncode == 2
    (line,) = refused.stderr.decode("ascii").splitlines()
    assert line.startswith("error: generalist.paths: ")
    assert "caf\\udce9.jsonl" in line
    assert "a name that is not UTF-8; rename it" in line
    assert not Path(topics["workdir"]).exists()


@pytest.mark.parametrize(
    ("name", "message"), [("nothing", "existing"), ("file", "existing"), ("long" * 20, "bytes"), (None, "absolute")]
)
@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_temporary_folder_that_ray_cannot_use_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str | None, message: str, variable: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / ("long" * 20)).mkdir()
    folder = str(tmp_path / name if name else "relative")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, folder)
    length = f" {len(folder)} bytes" if message == "bytes" else message
    with pytest.raises(ConfigError, match=rf"^{variable} '{folder}'.*{length}.*: set RAY_TMPDIR to a folder"):
        ray_connection.start_local_ray(ray, 1)


@pytest.mark.ray
def test_a_job_with_a_too_long_temporary_folder_fails_with_one_line(topics: dict[str, Any], tmp_path: Path) -> None:
    config, folder = tmp_path / "run.yaml", tmp_path / ("long" * 20)
    folder.mkdir()
    config.write_text(yaml.safe_dump(topics | {"engine": {"address": "local"}}), encoding="utf-8")
    refused = job("prepare", "--config", str(config), RAY_TMPDIR=str(folder))
    assert refused.returncode == 2
    (line,) = refused.stderr.decode().splitlines()
    assert line.startswith(f"error: RAY_TMPDIR '{folder}'")


LONGEST = """
import os, sys, tempfile
from pathlib import Path
from pipeline import config
from pipeline.engine import Engine
from pipeline.errors import ConfigError

def start(length):
    os.environ["RAY_TMPDIR"] = sys.argv[1] + "x" * (length - len(sys.argv[1]))
    Path(os.environ["RAY_TMPDIR"]).mkdir()
    with Engine(config.Engine(address="local", workers=1)) as engine:
        engine.start()

try:
    start(60)
except ConfigError as error:
    most = int(str(error).split("allows at most ")[1].split(":")[0])
    try:
        start(most + 1)
    except ConfigError:
        start(most)
        print("started")
"""


@pytest.mark.ray
def test_ray_starts_in_the_longest_folder_that_the_message_allows(tmp_path_factory: pytest.TempPathFactory) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"PYTHONPATH": str(ROOT)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", "/tmp")
        short = tempfile.mkdtemp(prefix="r")
    try:
        found = subprocess.run(
            [sys.executable, "-c", LONGEST, f"{short}/"], env=environment, capture_output=True, text=True, check=False
        )
    finally:
        shutil.rmtree(short)
    assert found.stdout == "started\n", found.stderr


NOISY = """
import os, sys, warnings
from pipeline.cli import guard
from pipeline.terminal.output import console
from pipeline.errors import WorkerError

def work():
    print("a library on standard output")
    print("a library on standard error", file=sys.stderr)
    warnings.warn("a warning")
    os.write(1, b"native code\\n")
    os.write(2, "natif \u00e9\\n".encode())
    guard.logger.info("ours")
    console.print("a result")
    exec(sys.argv[1])

sys.exit(guard.run_guarded(work))
"""


@pytest.mark.parametrize(
    ("end", "status", "last"),
    [
        ("pass", 0, None),
        ("raise WorkerError('it broke')", 1, "logs: output of libraries: "),
        ("1 / 0", 1, "error: this is a bug in crispwrap"),
        ("os._exit(7)", 7, "error: the job died without an error message; "),
        ("os.kill(os.getpid(), 9)", -signal.SIGKILL, "error: the job died without an error message; "),
        ("os.abort()", -signal.SIGABRT, "error: the job died without an error message; "),
    ],
)
def test_output_of_libraries_goes_to_a_file_that_a_failed_job_names(
    tmp_path: Path, end: str, status: int, last: str | None
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", NOISY, end]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == status
    assert ended.stdout == "a result\n"
    first, *rest = ended.stderr.splitlines()
    assert first.endswith(" ours")
    assert "natif" not in ended.stderr
    assert "a library on" not in ended.stderr
    assert "a warning" not in ended.stderr
    if last is None:
        assert not rest
        assert not list(tmp_path.iterdir())
        return
    assert rest[-1].startswith(last)
    (log,) = tmp_path.glob("*.log")
    assert str(log) in ended.stderr
    printed = log.read_text(encoding="utf-8")
    for line in ("a library on standard output", "a library on standard error", "a warning", "native code", "natif \u00e9"):
        assert line in printed
