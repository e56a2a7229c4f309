"""The workdir lock, with real processes: killed ones, and suspended ones."""

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import pytest

from pipeline.errors import ConfigError, RunError
from pipeline.execution import lock
from pipeline.execution.lock import WorkdirLock, is_known_alive, latest_run_number, read_run_record
from pipeline.storage import Folder
from tests.support.processes import ROOT, wait_until

HOLD = """
import sys
from pipeline.execution.lock import WorkdirLock, is_known_alive, latest_run_number, read_run_record
from pipeline.errors import ConfigError
from pipeline.storage import Folder
sys.stdin.readline()
try:
    with WorkdirLock(Folder(sys.argv[1]), heartbeat_s=0.05, lease_s=float(sys.argv[2])):
        print("acquired", flush=True)
        sys.stdin.readline()
except ConfigError:
    print("refused", flush=True)
"""


def start_holder(workdir: Path, lease_s: float = 5.0) -> "subprocess.Popen[str]":
    """Start a process that acquires the lock when it gets a line, and releases it at the next line."""
    command = [sys.executable, "-c", HOLD, str(workdir), str(lease_s)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def send_line(process: "subprocess.Popen[str]") -> IO[str]:
    assert process.stdin
    assert process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout


@pytest.fixture
def other_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the states of all other processes unknown, as if they ran on other machines."""
    monkeypatch.setattr(lock, "_has_ended", lambda _process: False)


def test_exactly_one_of_many_concurrent_processes_acquires_the_lock(tmp_path: Path) -> None:
    with ExitStack() as stack:
        processes = [stack.enter_context(start_holder(tmp_path)) for _ in range(6)]
        outputs = [send_line(process) for process in processes]
        replies = [lines.readline().strip() for lines in outputs]
        assert sorted(replies) == ["acquired"] + ["refused"] * 5
        send_line(processes[replies.index("acquired")])
        assert [process.wait() for process in processes] == [0] * 6
    with WorkdirLock(Folder(str(tmp_path))):  # ended runs leave only their records
        pass
    records = [Folder(str(tmp_path / "runs")).read_json(name) for name in Folder(str(tmp_path / "runs")).names(".json")]
    assert [record["state"] for record in records] == ["ended"] * len(records)


def test_the_error_names_a_run_on_another_machine(tmp_path: Path, other_machines: None) -> None:
    with start_holder(tmp_path) as other:
        assert send_line(other).readline() == "acquired\n"
        message = rf"another run has been using {tmp_path} since .*: process {other.pid} on .*; wait until it ends"
        with pytest.raises(ConfigError, match=message):
            WorkdirLock(Folder(str(tmp_path))).__enter__()


def test_a_killed_run_on_this_machine_releases_the_lock_at_once(tmp_path: Path) -> None:
    with start_holder(tmp_path, lease_s=1e9) as other:
        assert send_line(other).readline() == "acquired\n"
        other.send_signal(signal.SIGKILL)
    with WorkdirLock(Folder(str(tmp_path)), lease_s=1e9) as mine:
        mine.check()


def test_a_run_killed_while_another_waits_releases_the_lock_at_once(tmp_path: Path) -> None:
    with start_holder(tmp_path, lease_s=3600) as first:
        assert send_line(first).readline() == "acquired\n"
        first.send_signal(signal.SIGSTOP)  # no heartbeat, but not dead
        with start_holder(tmp_path, lease_s=3600) as second:
            output = send_line(second)
            time.sleep(1.0)  # it waits for a heartbeat
            first.kill()
            first.wait()
            assert output.readline() == "acquired\n"
            send_line(second)


def test_a_run_without_heartbeat_is_taken_over_and_stops_when_it_resumes(tmp_path: Path, other_machines: None) -> None:
    with start_holder(tmp_path) as other:
        assert send_line(other).readline() == "acquired\n"
        other.send_signal(signal.SIGSTOP)
        with WorkdirLock(Folder(str(tmp_path)), lease_s=0.5) as mine:
            mine.check()
        other.send_signal(signal.SIGCONT)
    states = [Folder(str(tmp_path / "runs")).read_json(f"{number:06d}.json")["state"] for number in (1, 2)]
    assert states[1] == "ended"  # the resumed run did not overwrite it


def test_check_raises_in_a_run_that_was_taken_over(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    with WorkdirLock(folder, heartbeat_s=0.02) as first:
        first.check()
        assert folder.child("runs").create_json("000002.json", {"state": "running"})
        wait_until(lambda: first._is_taken_over)
        with pytest.raises(RunError, match="another run has taken over"):
            first.check()
        with WorkdirLock(folder) as inner, pytest.raises(RunError, match="another run has taken over"):
            inner.check()


def test_the_lock_is_reentrant_within_a_process(tmp_path: Path) -> None:
    with WorkdirLock(Folder(str(tmp_path))), WorkdirLock(Folder(str(tmp_path))) as inner:
        inner.check()
    assert Folder(str(tmp_path / "runs")).names() == ["000001.json"]


def test_a_record_that_is_being_written_holds_the_lock(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "000001.json").touch()
    with WorkdirLock(Folder(str(tmp_path)), lease_s=0.1) as mine:  # but not for ever
        assert mine._number == 2


def test_files_that_are_not_records_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "000002 (conflicted copy).json").write_text("{}", encoding="utf-8")
    (tmp_path / "runs" / "000001.json").write_text('{"state": "running", "process": ["a"]}', encoding="utf-8")
    assert latest_run_number(Folder(str(tmp_path))) == 1
    assert not is_known_alive(read_run_record(Folder(str(tmp_path)), 1) or {})
    with WorkdirLock(Folder(str(tmp_path)), lease_s=0.1) as mine:
        assert mine._number == 2


def test_a_failed_run_is_recorded_and_releases_the_lock(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), WorkdirLock(Folder(str(tmp_path))):
        _ = 1 / 0
    assert Folder(str(tmp_path / "runs")).read_json("000001.json")["state"] == "failed"
    with WorkdirLock(Folder(str(tmp_path))):
        pass


@pytest.mark.parametrize("place", ["local", "memory", "without links"])
def test_create_json_creates_a_file_only_once(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if place == "without links":

        def refuse(*_: object) -> None:
            raise PermissionError("no hard links here")

        monkeypatch.setattr(os, "link", refuse)
    folder = Folder(f"memory://{tmp_path.name}" if place == "memory" else str(tmp_path))
    assert folder.create_json("a.json", {"a": 1})
    assert not folder.create_json("a.json", {"a": 2})
    assert folder.read_json("a.json") == {"a": 1}
    assert folder.names() == ["a.json"]
