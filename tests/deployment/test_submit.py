"""`ray job submit` against a head with token authentication on, as README, On a cluster, has it."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.processes import ROOT, free_port, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]
README = ROOT / "README.md"
BIN = Path(sys.executable).parent


@pytest.fixture
def head() -> Iterator[tuple[str, dict[str, str]]]:
    """A head of its own: (address of its dashboard, environment that holds its token)."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"
    gcs, dashboard, agent = free_port(), free_port(), free_port()
    environment["RAY_AGENT_PORT"] = str(agent)
    # Not below tmp_path: Ray puts sockets there, and their paths may have 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="ray") as folder, open(f"{folder}/head.log", "w+", encoding="utf-8") as log:
        process = subprocess.Popen(
            [
                *(str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", f"--port={gcs}", "--disable-usage-stats"),
                *(f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}", f"--temp-dir={folder}"),
            ],
            env=environment,
            stdout=log,
            stderr=log,
        )
        try:
            wait_until(lambda: is_listening(dashboard), process)
            wait = next(line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("until "))
            subprocess.run(["bash", "-c", wait], cwd=ROOT, env=environment, stdout=log, stderr=log, check=True, timeout=600)
            yield f"http://127.0.0.1:{dashboard}", environment
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=300)


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def submit(address: str, environment: dict[str, str], config: Path) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "ray"), "job", "submit", "--address", address, "--working-dir", "."]
    command += ["--", "python", "jobs/cluster.py", "--config", str(config)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600)


def test_a_submitted_job_runs_only_with_the_token(topics: dict[str, Any], tmp_path: Path, head: tuple[str, dict[str, str]]) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(topics), encoding="utf-8")
    address, environment = head
    refused = submit(address, {**environment, "RAY_AUTH_TOKEN": "f" * 64}, config)
    assert refused.returncode != 0
    assert not Path(topics["workdir"]).exists()

    done = submit(address, environment, config)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "joined the Ray cluster" in done.stdout
    assert list(Path(topics["workdir"]).glob("cluster/*/manifest.json"))

    topics["workdir"] = "runs/relative"
    config.write_text(yaml.safe_dump(topics), encoding="utf-8")
    relative_workdir = submit(address, environment, config)
    assert relative_workdir.returncode != 0
    assert "workdir runs/relative is relative" in relative_workdir.stdout
