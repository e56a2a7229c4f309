"""One run at a time in a workdir: with real processes, killed ones and ones that are asleep."""

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
from pipeline.execution.lock import WorkdirLock, is_here, latest_run, record_of
from pipeline.storage import Folder
from tests.support.processes import ROOT, wait_until

HOLD = """
import sys
from pipeline.execution.lock import WorkdirLock, is_here, latest_run, record_of
from pipeline.errors import ConfigError
from pipeline.storage import Folder
sys.stdin.readline()
try:
    with WorkdirLock(Folder(sys.argv[1]), beat_s=0.05, lease_s=float(sys.argv[2])):
        print("taken", flush=True)
        sys.stdin.readline()
except ConfigError:
    print("refused", flush=True)
"""


def holder(workdir: Path, lease_s: float = 5.0) -> "subprocess.Popen[str]":
    """A process that takes the workdir when it is sent a line, and holds it until the next."""
    command = [sys.executable, "-c", HOLD, str(workdir), str(lease_s)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def tell(process: "subprocess.Popen[str]") -> IO[str]:
    assert process.stdin
    assert process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout


@pytest.fixture
def strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be told of other processes, as if they were on other machines."""
    monkeypatch.setattr(lock, "_is_gone", lambda _process: False)


def test_of_many_that_ask_at_once_one_has_the_workdir(tmp_path: Path) -> None:
    with ExitStack() as stack:
        asking = [stack.enter_context(holder(tmp_path)) for _ in range(6)]
        heard = [tell(process) for process in asking]
        said = [lines.readline().strip() for lines in heard]
        assert sorted(said) == ["refused"] * 5 + ["taken"]
        tell(asking[said.index("taken")])
        assert [process.wait() for process in asking] == [0] * 6
    with WorkdirLock(Folder(str(tmp_path))):  # ended runs leave no mark but their records
        pass
    records = [Folder(str(tmp_path / "runs")).read_json(name) for name in Folder(str(tmp_path / "runs")).names(".json")]
    assert [record["state"] for record in records] == ["ended"] * len(records)


def test_a_run_that_is_at_work_elsewhere_is_named(tmp_path: Path, strangers: None) -> None:
    with holder(tmp_path) as other:
        assert tell(other).readline() == "taken\n"
        said = rf"another run is at work in {tmp_path} since .*: process {other.pid} on .*; wait until it ends"
        with pytest.raises(ConfigError, match=said):
            WorkdirLock(Folder(str(tmp_path))).__enter__()


def test_a_killed_run_of_this_machine_is_not_waited_for(tmp_path: Path) -> None:
    with holder(tmp_path, lease_s=1e9) as other:
        assert tell(other).readline() == "taken\n"
        other.send_signal(signal.SIGKILL)
    with WorkdirLock(Folder(str(tmp_path)), lease_s=1e9) as mine:
        mine.check()


def test_a_run_that_is_killed_while_another_watches_it_is_not_waited_for(tmp_path: Path) -> None:
    with holder(tmp_path, lease_s=3600) as first:
        assert tell(first).readline() == "taken\n"
        first.send_signal(signal.SIGSTOP)  # no sign of life, and not gone
        with holder(tmp_path, lease_s=3600) as second:
            said = tell(second)
            time.sleep(1.0)  # it watches
            first.kill()
            first.wait()
            assert said.readline() == "taken\n"
            tell(second)


def test_a_run_without_a_sign_of_life_is_taken_over_and_stops_when_it_wakes(tmp_path: Path, strangers: None) -> None:
    with holder(tmp_path) as other:
        assert tell(other).readline() == "taken\n"
        other.send_signal(signal.SIGSTOP)
        with WorkdirLock(Folder(str(tmp_path)), lease_s=0.5) as mine:
            mine.check()
        other.send_signal(signal.SIGCONT)
    states = [Folder(str(tmp_path / "runs")).read_json(f"{number:06d}.json")["state"] for number in (1, 2)]
    assert states[1] == "ended"  # and what woke did not write over it


def test_a_run_that_was_taken_over_is_told(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    with WorkdirLock(folder, beat_s=0.02) as first:
        first.check()
        assert folder.child("runs").create_json("000002.json", {"state": "running"})
        wait_until(lambda: first._lost)
        with pytest.raises(RunError, match="another run has taken over"):
            first.check()
        with WorkdirLock(folder) as inner, pytest.raises(RunError, match="another run has taken over"):
            inner.check()


def test_a_process_has_its_own_workdir_already(tmp_path: Path) -> None:
    with WorkdirLock(Folder(str(tmp_path))), WorkdirLock(Folder(str(tmp_path))) as inner:
        inner.check()
    assert Folder(str(tmp_path / "runs")).names() == ["000001.json"]


def test_a_record_that_is_just_being_written_is_no_free_workdir(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "000001.json").touch()
    with WorkdirLock(Folder(str(tmp_path)), lease_s=0.1) as mine:  # nor is it waited for for ever
        assert mine._number == 2


def test_what_is_no_record_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "000002 (conflicted copy).json").write_text("{}", encoding="utf-8")
    (tmp_path / "runs" / "000001.json").write_text('{"state": "running", "process": ["a"]}', encoding="utf-8")
    assert latest_run(Folder(str(tmp_path))) == 1
    assert not is_here(record_of(Folder(str(tmp_path)), 1) or {})
    with WorkdirLock(Folder(str(tmp_path)), lease_s=0.1) as mine:
        assert mine._number == 2


def test_a_failed_run_says_so_and_frees_the_workdir(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), WorkdirLock(Folder(str(tmp_path))):
        _ = 1 / 0
    assert Folder(str(tmp_path / "runs")).read_json("000001.json")["state"] == "failed"
    with WorkdirLock(Folder(str(tmp_path))):
        pass


@pytest.mark.parametrize("place", ["local", "memory", "without links"])
def test_a_file_is_created_once(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if place == "without links":

        def refuse(*_: object) -> None:
            raise PermissionError("no hard links here")

        monkeypatch.setattr(os, "link", refuse)
    folder = Folder(f"memory://{tmp_path.name}" if place == "memory" else str(tmp_path))
    assert folder.create_json("a.json", {"a": 1})
    assert not folder.create_json("a.json", {"a": 2})
    assert folder.read_json("a.json") == {"a": 1}
    assert folder.names() == ["a.json"]
