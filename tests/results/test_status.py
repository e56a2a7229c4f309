"""Statuses of running, successful, failed, killed and silent runs, from real processes and from records."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from pipeline.execution import lock
from pipeline.execution.lock import WorkdirLock, latest_run_number, read_run_record
from pipeline.results import status
from pipeline.results.status import RunWatcher, Status, describe_progress, render_status
from pipeline.storage import Folder
from pipeline.terminal.progress import Progress
from tests.support.processes import ROOT, wait_until

# A run that stops in the middle of its second step until it gets a line: to end, or to fail.
RUN = """
import sys
from pipeline.execution.lock import WorkdirLock
from pipeline.terminal.progress import Progress
from pipeline.storage import Folder

progress = Progress()
with WorkdirLock(Folder(sys.argv[1]), describe_run=progress.to_record, heartbeat_s=0.05) as lock:
    progress.on_change = lock.write_soon
    progress.add([("prepare web", "prepare/0"), ("embed web", "embed/0"), ("cluster", "cluster/0")])
    progress.mark_cached(0)
    with progress.step(1), progress.activity("embed web", 10, "parts") as activity:
        activity.advance(4, quarantined=7)
        print("running", flush=True)
        if "fail" in sys.stdin.readline():
            raise SystemExit(1)
    progress.mark_cached(2)
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    """Path of a config whose input does not exist: the status does not need it."""
    settings = {
        "workdir": str(tmp_path / "run"),
        "generalist": {"paths": ["/nowhere/*.jsonl"]},
        "specialists": {"a": {"paths": ["/nowhere/a.jsonl"]}},
        "sample": {"budget_tokens": 1000},
    }
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return str(file)


@pytest.fixture
def running(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Start a run in another process that has done four of ten parts."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", RUN, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout
        assert process.stdout.readline() == "running\n"
        folder = Folder(str(tmp_path / "run"))
        wait_until(lambda: ((read_run_record(folder, 1) or {}).get("count") or {}).get("done") == 4)
        yield process
        process.kill()


def job(config: str, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(ROOT / "jobs" / "status.py"), "--config", config, *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def run_job(config: str, *options: str) -> tuple[int, str]:
    """Run the job; return its exit status and output."""
    with job(config, *options) as process:
        out, err = process.communicate()
    assert err == ""
    assert "\x1b" not in out
    return process.returncode, out


def finish(process: "subprocess.Popen[str]", how: str) -> None:
    assert process.stdin
    process.stdin.write(f"{how}\n")
    process.stdin.flush()
    process.wait()


def states(out: str) -> dict[str, str]:
    """The state of each step in the table."""
    rows = out.split("memory")[1].splitlines()[1:]
    return {cells[0]: cells[-1] for row in rows if row.strip() and (cells := re.split(r" {2,}", row.strip()))}


def shown(status: Status, workdir: Folder) -> str:
    console = Console(width=150, highlight=False, markup=False)
    with console.capture() as capture:
        for line in render_status(workdir, status, width=130):
            console.print(line)
    return capture.get()


def test_status_without_any_run_says_so(config: str, tmp_path: Path) -> None:
    said = f"no run has been started in {tmp_path / 'run'} yet\n"
    assert run_job(config) == (0, said)
    assert run_job(config, "--follow") == (1, said)
    assert not (tmp_path / "run").exists()


def test_status_shows_a_running_run_and_the_progress_of_its_step(config: str, running: "subprocess.Popen[str]") -> None:
    code, out = run_job(config)
    assert code == 0
    assert re.match(rf"run 1 is running: process {running.pid} on \S+, since \S+ for \S+ s\n", out)
    assert re.search(r"^embed web, 4 of 10 parts, \S+, .* left, 7 quarantined$", out, re.MULTILINE)
    assert states(out) == {"prepare web": "cached", "embed web": "running", "cluster": "pending"}


@pytest.mark.slow
@pytest.mark.parametrize(("how", "state", "code"), [("end", "succeeded", 0), ("fail", "failed or was interrupted", 1)])
def test_follow_reports_how_the_run_ended(config: str, running: "subprocess.Popen[str]", how: str, state: str, code: int) -> None:
    with job(config, "--follow") as following:
        assert following.stdout
        first = following.stdout.readline()
        finish(running, how)
        out, err = following.communicate()
    assert first.startswith("embed web, 4 of 10 parts")
    made = r"embed web +0\.0 s +done\n" if how == "end" else ""  # a line for each step that was completed meanwhile
    assert re.match(rf"{made}run 1 {state}", out), out
    assert (following.returncode, err) == (code, "")
    if code:
        assert states(out)["embed web"] == "failed"
    assert run_job(config)[0] == 0  # the status of a failed run is not an error


@pytest.mark.slow
def test_a_killed_run_on_this_machine_is_reported_as_killed(config: str, running: "subprocess.Popen[str]") -> None:
    with job(config, "--follow") as following:
        assert following.stdout
        assert following.stdout.readline().startswith("embed web")
        running.send_signal(signal.SIGKILL)
        running.wait()
        out, _ = following.communicate()
    assert following.returncode == 1
    assert out.startswith("run 1 was killed; last heartbeat after")
    assert states(out) == {"prepare web": "cached", "embed web": "failed", "cluster": "pending"}


@pytest.fixture
def other_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the states of all processes unknown, as if they ran on other machines."""
    monkeypatch.setattr(lock, "_has_ended", lambda _process: False)
    monkeypatch.setattr(status, "is_known_alive", lambda _record: False)


def test_a_run_on_another_machine_is_running_while_its_record_changes(
    tmp_path: Path, running: "subprocess.Popen[str]", other_machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = RunWatcher(Folder(str(tmp_path / "run")))
    assert watcher.poll() is None  # it may be alive or dead
    wait_until(lambda: watcher.poll() is not None)
    running_status = watcher.poll()
    assert running_status
    assert running_status.state == "running"
    running.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(status, "LEASE_S", 0.5)
    wait_until(lambda: (watcher.poll() or running_status).state == "silent")
    running.send_signal(signal.SIGCONT)
    wait_until(lambda: (watcher.poll() or running_status).state == "running")


def test_a_run_on_another_machine_without_heartbeat_is_silent(
    tmp_path: Path, running: "subprocess.Popen[str]", other_machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.kill()
    running.wait()
    folder = Folder(str(tmp_path / "run"))
    watcher = RunWatcher(folder)
    assert watcher.poll() is None
    monkeypatch.setattr(status, "_LISTEN_S", 0.0)
    silent = watcher.poll()
    assert silent
    assert "run 1 writes no heartbeat" in shown(silent, folder)
    assert "4 of 10 parts" in describe_progress(silent)


def test_a_run_that_was_taken_over_is_killed(tmp_path: Path, running: "subprocess.Popen[str]", other_machine: None) -> None:
    folder = Folder(str(tmp_path / "run"))
    watcher = RunWatcher(folder)
    assert folder.child("runs").create_json("000002.json", {"state": "running"})
    looked = watcher.poll()
    assert looked
    assert looked.state == "killed"


def test_records_of_other_versions_are_shown(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    old = {"state": "ended", "host": "ada\x1b[2J", "pid": 7, "process": None, "started": "2026-11-25T17:02:11+00:00", "beats": 3}
    said = shown(Status(3, "ended", old), folder)
    assert said == "run 3 succeeded: process 7 on ada\ufffd[2J, since 2026-11-25T17:02:11+00:00\n"
    new = {
        **old,
        "steps": [{"title": "embed", "output": "embed/0", "state": "running"}],
        "count": {"parts": 4},
        "step_seconds": 1.0,
    }
    assert "embed, for 1 s" in shown(Status(3, "running", new), folder)


def test_the_record_has_only_process_and_progress(tmp_path: Path) -> None:
    progress = Progress()
    with WorkdirLock(Folder(str(tmp_path)), describe_run=progress.to_record):
        record = read_run_record(Folder(str(tmp_path)), latest_run_number(Folder(str(tmp_path))))
    assert record
    assert set(record) == {
        *("id", "state", "host", "pid", "process", "started", "beats"),
        *("seconds", "steps", "step_seconds", "count"),
    }


@pytest.mark.ray
def test_status_of_a_real_run_that_is_killed_and_resumed(topics: dict[str, Any], tmp_path: Path, ray_session: Any) -> None:
    file = tmp_path / "run.yaml"
    topics["engine"] = {"address": ray_session.address_info["gcs_address"]}
    file.write_text(yaml.safe_dump(topics), encoding="utf-8")
    folder = Folder(topics["workdir"])
    command = [sys.executable, str(ROOT / "jobs" / "curate.py"), "--config", str(file)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}

    def at(stage: str) -> bool:
        steps = (read_run_record(folder, latest_run_number(folder)) or {}).get("steps", ())
        return any(step["title"] == stage and step["state"] != "pending" for step in steps)

    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as first:
        wait_until(lambda: at("embedder"), first)
        first.kill()
    code, out = run_job(str(file))
    assert code == 0
    assert out.startswith("run 1 was killed")
    before = states(out)
    assert before["sample"] == "pending"
    assert re.search(r"^prepare generalist +[\d,]+ windows", out, re.MULTILINE)

    second = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert not {"\x1b", "\r"} & set(second.stderr + second.stdout)
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in second.stderr.splitlines()), second.stderr  # nothing of Ray's own
    code, out = run_job(str(file), "--follow")
    assert code == 0
    assert out.startswith("run 2 succeeded after")
    assert states(out)["prepare generalist"] == "cached"
    table = out.split("\n\n", 1)[1]
    assert table.strip() in second.stdout  # the same as at the end of the run
