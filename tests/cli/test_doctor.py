"""`crispwrap doctor`: what it finds on this machine, and each failure with its fix."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from pipeline import config
from pipeline.cli import doctor
from pipeline.cli.doctor import EXTRAS, Check, run_checks
from pipeline.config import parse_config
from tests.support.fake_endpoint import FakeEndpoint


def by_subject(checks: Any) -> dict[str, Check]:
    return {check.subject: check for check in checks}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_nothing_fails_where_the_tests_run_and_nothing_is_left(topics: dict[str, Any]) -> None:
    found = by_subject(run_checks(parse_config(topics)))
    assert [check for check in found.values() if check.state == "failure"] == []
    assert {"Python", "crispwrap", "machine", "GPU", "Ray", "workdir", "generalist.paths", "specialists.legal.paths"} <= set(found)
    assert found["Ray"].found.endswith("1 node, 3 cores")
    assert found["generalist.paths"].found == "4 files"
    assert not Path(topics["workdir"]).exists()


def test_missing_and_outdated_packages_are_named_with_a_command(topics: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    changed = {"faiss-cpu": "", "ray": "2.0.0", "sentence-transformers": "", "jinja2": "", "openai": "0.1", "s3fs": ""}

    def version(name: str) -> str:
        if changed.get(name) == "":
            raise importlib.metadata.PackageNotFoundError(name)
        return changed.get(name) or real(name)

    monkeypatch.setattr(doctor, "version", version)
    settings = parse_config(topics | {"embed": {"model": "some/model"}, "generalist": {"paths": ["s3://bucket/web.jsonl"]}})
    found = by_subject(doctor.check_packages(settings))
    assert found["crispwrap"].state == "failure"
    assert found["crispwrap"].found == "faiss-cpu is missing, ray is 2.0.0"
    assert found["crispwrap"].fix == "pip install 'faiss-cpu==1.15.1' 'ray[data,default]==2.60.0'"
    assert found["crispwrap[embed]"].state == found["crispwrap[s3]"].state == "failure"
    assert "sentence-transformers (missing)" in found["crispwrap[embed]"].found
    assert found["crispwrap[embed]"].fix == 'pip install "crispwrap[embed]"'
    assert found["crispwrap[report]"].state == "ok"  # the config does not need it
    assert "not installed" in found["crispwrap[report]"].found
    assert set(found) == {"crispwrap", *(f"crispwrap[{extra}]" for extra in EXTRAS)}


def test_extras_that_a_config_needs() -> None:
    base = {
        "generalist": {"paths": ["web.jsonl"]},
        "specialists": {"law": {"paths": ["law.jsonl"]}},
        "sample": {"budget_tokens": 1},
    }

    def needed(**sections: Any) -> set[str]:
        return doctor.list_needed_extras(parse_config({"workdir": "run", **base, **sections}))

    assert needed(embed={"model": "lsi"}) == {"demo"}
    assert needed(embed={"model": "bundled:all-MiniLM-L6-v2"}) == {"demo", "embed"}
    assert needed(embed={"model": "a/b"}, generalist={"paths": ["a.warc.gz"]}) == {"embed", "filters"}
    assert needed(embed={"model": "a/b"}, prepare={"steps": [{"type": "C4QualityFilter"}]}) == {"embed", "filters"}
    assert needed(embed={"model": "a/b"}, rephrase={"model": "x"}, workdir="s3://b/run") == {"embed", "rephrase", "s3"}


def test_memory_temporary_files_and_shared_memory_that_are_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_read_memory_limit", lambda: 3.5 * 2**30)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda *_: SimpleNamespace(free=64 << 20))
    found = by_subject(doctor.check_machine(config.Engine(workers=8)))
    assert {check.state for check in found.values()} == {"warning"}
    assert found["machine"].fix == "free memory, or set engine.workers to 3"
    assert "--shm-size=2g" in found["shared memory"].fix
    assert "TMPDIR" in found["temporary files"].fix


def test_a_gpu_that_torch_or_the_driver_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    answers = {"returncode": 0, "stdout": "NVIDIA H100 80GB HBM3, 580.1, 81559 MiB\n"}
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: SimpleNamespace(**answers))
    monkeypatch.setattr(doctor, "version", lambda *_: "2.13.0+cpu")
    assert doctor.check_gpu().state == "warning"
    monkeypatch.setattr(doctor, "version", lambda *_: "2.13.0")
    assert doctor.check_gpu() == Check("GPU", "ok", "NVIDIA H100 80GB HBM3, 580.1, 81559 MiB")
    answers |= {"returncode": 9, "stdout": "NVIDIA-SMI has failed\n"}
    assert doctor.check_gpu() == Check(
        "GPU", "failure", "nvidia-smi fails: NVIDIA-SMI has failed", "install or restart NVIDIA's driver"
    )


def test_a_model_server_without_the_model_or_without_an_answer(topics: dict[str, Any]) -> None:
    with FakeEndpoint() as fake:
        topics["rephrase"] = {"model": "fake", "backend": "endpoint", "endpoint": {"url": fake.url, "retries": 0}}
        assert by_subject(doctor.check_models(parse_config(topics)))["rephrase.model"].state == "ok"
        topics["rephrase"]["model"] = "other"
        missing = by_subject(doctor.check_models(parse_config(topics)))["rephrase.model"]
        assert (missing.state, missing.fix) == ("failure", "set rephrase.model to one of: fake")
    silent = by_subject(doctor.check_models(parse_config(topics)))["rephrase.model"]
    assert silent.state == "failure"
    assert silent.fix == "start the server, or correct the URL or the key"


@pytest.mark.slow  # waits for an address where nothing answers
def test_the_command_ends_with_status_1_and_names_every_failure(topics: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    topics |= {"workdir": str(tmp_path / "file" / "run"), "embed": {"model": "no/such/model"}, "engine": {"address": "127.0.0.1:1"}}
    topics["generalist"]["paths"] = [str(tmp_path / "missing.jsonl")]
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(topics), encoding="utf-8")
    command = [sys.executable, "-c", "from pipeline.cli.commands import main; main()", "doctor", "--config", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    failed = [line.split()[1].rstrip(":") for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert failed == ["Ray", "workdir", "generalist.paths", "embed.model"]
    assert done.stdout.count("fix: ") >= 3
    assert done.stdout.splitlines()[-1].startswith("4 failures")
