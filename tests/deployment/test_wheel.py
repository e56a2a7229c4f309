"""The wheel, installed in an environment of its own and used in a folder outside of the repository."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.processes import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def run(command: list[str | Path], folder: Path) -> str:
    """Return what a command prints. Other tests of this process may have put the repository on PYTHONPATH."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the command `crispwrap` of an environment with the wheel; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "pipeline", source / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source], folder)
    (wheel,) = folder.glob("crispwrap-*.whl")
    venv.create(folder / "environment", with_pip=False)
    python = folder / "environment" / "bin" / "python"
    run([*pip, "--python", python, "install", "--no-deps", wheel], folder)
    # A path file is not read for further path files, so the editable installation of this environment is not found.
    (packages,) = (folder / "environment" / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"], encoding="utf-8")
    where = "import pipeline; print(pipeline.__file__)"
    found = run([python, "-c", where], folder)
    assert found.strip() == str(packages / "pipeline" / "__init__.py")
    return python.with_name("crispwrap")


def test_the_installed_command_curates_a_corpus(command: Path, topics: dict[str, Any], tmp_path: Path) -> None:
    user = tmp_path / "user"
    user.mkdir()
    (user / "my.yaml").write_text(yaml.safe_dump(topics | {"workdir": "run", "engine": {"address": "local"}}), encoding="utf-8")

    def run_command(name: str) -> str:
        return run([command, name, "--config", "my.yaml"], user)

    assert f": {user}/run/shards\n" in run_command("curate")
    assert (user / "run" / "report.html").exists()  # the templates are in the wheel
    assert "succeeded" in run_command("status")
    assert "× generalist" in run_command("inspect")
