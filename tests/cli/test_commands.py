"""The command `crispwrap`, and its commands as programs in `jobs/`."""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from pipeline.cli.commands import app
from tests.support.processes import ROOT

COMMANDS = [info.name for info in app.registered_commands]
RUN = [sys.executable, "-c", "from pipeline.cli.commands import main; main()"]


def test_the_installed_script_runs_the_commands() -> None:
    script = Path(sys.executable).parent / "crispwrap"
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"crispwrap {version('crispwrap')}\n"


def test_help_lists_every_command_with_a_sentence() -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    for name in COMMANDS:
        assert re.search(rf"│ {name} +[A-Z].+\.", shown.output), name


def test_every_command_is_a_job_for_ray_job_submit() -> None:
    jobs = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "jobs").glob("*.py")}
    run = {re.search(r'^run_job\("(\w+)"\)$', text, re.MULTILINE)[1] for text in jobs.values()}  # type: ignore[index]
    assert run == set(COMMANDS) - {"doctor"}  # which is about the machine that it runs on
    assert set(jobs) - run == {"look"}  # `inspect` is a module of the standard library


def test_a_command_and_its_job_print_the_same(topics: dict[str, Any], tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(topics), encoding="utf-8")
    options = ["--config", str(config), "--dry-run"]
    printed = [
        subprocess.run([*program, *options], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
        for program in ([*RUN, "weights"], [sys.executable, str(ROOT / "jobs" / "weights.py")])
    ]
    assert printed[0] == printed[1]
    assert "\nweights " in printed[0]
    assert "\nsample " not in printed[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["currate", "--config", "x.yaml"], "No such command 'currate'. Did you mean 'curate'?"),
        (["curate"], "Missing option '--config'"),
        (["curate", "--config", "missing.yaml"], "missing.yaml"),
    ],
)
def test_a_mistake_ends_with_status_2_and_a_message(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = subprocess.run([*RUN, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())
