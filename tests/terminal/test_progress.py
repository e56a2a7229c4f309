"""What a person sees of a run that is at work: on a terminal, in a log, and in amounts."""

import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loguru import logger
from rich.console import Console

from pipeline.config import Engine as Settings
from pipeline.engine import Engine
from pipeline.execution.step import map_parts
from pipeline.results.step_table import StepRow, build_step_table, format_step_row
from pipeline.storage import Folder
from pipeline.tables import NAMES
from pipeline.terminal import progress
from pipeline.terminal.formatting import format_bytes, format_duration, format_rate
from pipeline.terminal.progress import ActivityProgress, Progress
from tests.support.processes import ROOT

ESCAPE = re.compile(rb"\x1b\[([0-9;?]*)([A-Za-z])")

# Two activities of a step, and in the middle a line of the log and three of libraries, two of them native; each waits
# for a line of input.
AT_WORK = """
import os
import sys
from pipeline.cli import guard
from pipeline.terminal.progress import Progress
from loguru import logger

def work():
    progress = Progress()
    progress.add([("embed web", "embed/0")])
    with progress.step(0):
        with progress.activity("scan web", 4, "files") as activity:
            activity.advance(2, quarantined=3)
            sys.stdin.readline()
            logger.warning("a line of the log")
            print("a line of a library", file=sys.stderr)
            for number in (1, 2):
                os.write(number, b"a line of a library" + os.linesep.encode())
            activity.advance(1)
            sys.stdin.readline()
            activity.advance(1)
        with progress.activity("embed web", 1000, "parts", before=700) as activity:
            sys.stdin.readline()
    logger.info("the line of the stage")

sys.exit(guard.run_guarded(work))
"""


class Terminal:
    """A process whose standard error is a terminal; its standard output is a file."""

    def __init__(self, folder: Path, code: str, columns: int) -> None:
        self._shown = b""
        self._master, slave = pty.openpty()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": str(columns), "TERM": "xterm-256color"}
        with (folder / "out").open("wb") as out:
            command = [sys.executable, "-c", code]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=slave, env=environment)
        os.close(slave)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self._master)

    def until(self, wanted: bytes) -> bytes:
        """Everything that was written, once what is wanted is in what is new."""
        before = len(self._shown)
        while wanted not in self._shown[before:]:
            assert self._read(), self._shown
        return self._shown

    def press(self) -> None:
        assert self.process.stdin
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def rest(self) -> bytes:
        while self._read():
            pass
        return self._shown

    def _read(self) -> bytes:
        ready, _, _ = select.select([self._master], [], [], 600)
        assert ready, self._shown
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # the other side is closed
            return b""
        self._shown += data
        return data


def screen(written: bytes) -> list[str]:
    """The lines that a terminal shows at the end, by the few codes that are used of it."""
    lines, row, column = [""], 0, 0
    for piece in re.split(rb"(\x1b\[[0-9;?]*[A-Za-z]|\r|\n)", written):
        found = ESCAPE.fullmatch(piece)
        if piece == b"\r":
            column = 0
        elif piece == b"\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif found and found[2] == b"A":
            row -= int(found[1] or 1)
        elif found and found[2] == b"K":
            lines[row] = ""
        elif found:
            assert found[2] in b"mhl", piece  # colours, and whether the cursor is shown
        else:
            text = piece.decode()
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + len(text) :]
            column += len(text)
    return [line.rstrip() for line in lines[: -1 if not lines[-1] else None]]


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_shows_one_live_line_below_the_log_lines(tmp_path: Path, columns: int) -> None:
    with Terminal(tmp_path, AT_WORK, columns) as terminal:
        scanned = screen(terminal.until(b"3 quarantined"))
        assert len(scanned) == 1
        assert re.match(r"scan web +(━+\S* *)?2 of 4 files, \S+, .* left, 3 quarantined$", scanned[0])
        terminal.press()
        logged = screen(terminal.until(b"3 of 4"))
        assert [line for line in logged if "━" not in line and "of 4" not in line] == logged[:1]
        assert logged[0].endswith("a line of the log")
        assert len(logged) == 2
        terminal.press()
        resumed = screen(terminal.until(b"700 of 1,000 parts"))
        assert "3 quarantined" in resumed[-1]  # of the step, not of the activity
        terminal.press()
        written = terminal.rest()
        assert terminal.process.wait() == 0
    lines = screen(written)
    assert [line.split(" ", 1)[-1] for line in lines] == ["a line of the log", "the line of the stage"]
    assert written.count(b"\x1b[?25l") == written.count(b"\x1b[?25h")  # the cursor is back
    assert (tmp_path / "out").read_bytes() == b""


def test_output_to_a_pipe_has_plain_lines() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", AT_WORK], input=b"\n" * 3, capture_output=True, env=environment, check=True)
    assert b"\x1b" not in done.stderr
    assert b"\r" not in done.stderr
    assert done.stdout == b""
    lines = done.stderr.decode().splitlines()
    assert [line.split(" ", 1)[-1] for line in lines] == ["a line of the log", "the line of the stage"]


@pytest.fixture
def log() -> Iterator[list[str]]:
    lines: list[str] = []
    number = logger.add(lambda message: lines.append(message.record["message"]), format="{message}")
    yield lines
    logger.remove(number)


def test_a_long_activity_logs_its_progress_at_intervals(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    told = Progress()
    with told.activity("embed web", 100, "parts") as activity:
        for _ in range(50):
            activity.advance()
        assert log == []
        monkeypatch.setattr(progress, "_LOG_INTERVAL_S", 0.0)
        activity.advance(quarantined=2)
        (line,) = log
        assert re.fullmatch(r"embed web: 51 of 100 parts, [\d,.]+/\w+, .* left, 2 quarantined", line)
        activity.advance(49)
        assert log == [line]  # that it is done is said by the line of the stage


def test_the_run_record_has_the_state_of_each_step() -> None:
    told = Progress()
    news: list[str] = []
    told.on_change = lambda: news.append(told.to_record()["steps"][1]["state"])
    first = told.add([("prepare web", "prepare/0"), ("embed web", "embed/0"), ("cluster", "cluster/0")])
    told.mark_cached(first)
    with told.step(first + 1):
        with told.activity("embed web", 10, "parts", before=4) as activity:
            activity.advance(2)
            assert told.to_record()["count"] | {"rate_per_s": 0} == {
                "title": "embed web",
                "unit": "parts",
                "done": 6,
                "total": 10,
                "rate_per_s": 0,
                "quarantined": 0,
            }
        assert told.to_record()["count"] is None
    with pytest.raises(ZeroDivisionError), told.step(first + 2):
        _ = 1 / 0
    assert [step["state"] for step in told.steps()] == ["cached", "done", "failed"]
    assert news == ["running", "done", "done", "done"]


def bad(item: int, _: None) -> int:
    return item


@pytest.mark.ray
def test_the_engine_counts_quarantined_rows(ray_session: Any) -> None:
    engine = Engine(Settings())
    counts: list[ActivityProgress] = []
    for _ in engine.map(bad, [1, 2, 3], title="scan", unit="files", before=5, quarantined=int, shared=None):
        record = engine.progress.to_record()["count"]
        counts.append(ActivityProgress(**record))
    assert [count.done for count in counts] == [6, 7, 8]
    assert {count.total for count in counts} == {8}
    assert counts[-1].quarantined == 6


def make_part(name: str, folder: Folder) -> dict[str, Any]:
    facts = {"bad": 2}
    folder.write_table(f"{name}.parquet", NAMES.empty_table(), NAMES, facts)
    return facts


def left_out(facts: dict[str, Any]) -> int:
    return int(facts["bad"])


@pytest.mark.ray
def test_a_resumed_step_counts_finished_parts(ray_session: Any, tmp_path: Path) -> None:
    engine, folder = Engine(Settings()), Folder(str(tmp_path))
    make_part("a", folder)
    counts: list[ActivityProgress] = []
    engine.check = lambda: counts.append(ActivityProgress(**engine.progress.to_record()["count"]))  # as each task ends
    facts = map_parts(engine, folder, ["a", "b", "c"], make_part, title="scan", shared=folder, quarantined=left_out)
    assert [part["name"] for part in facts] == ["a", "b", "c"]
    assert [(count.done, count.total, count.quarantined) for count in counts] == [(1, 3, 2), (2, 3, 4)]
    with engine.progress.activity("cut", 1, "parts") as activity:
        assert activity.quarantined == 6


@pytest.mark.parametrize(
    ("per_s", "said"),
    [
        (0.0, "0/h"),
        (1e-4, "0.4/h"),
        (0.002, "7.2/h"),
        (1 / 60, "1.0/min"),
        (0.5, "30/min"),
        (1.0, "1.0/s"),
        (9.96, "10/s"),
        (99.97, "100/s"),
        (12345.6, "12,346/s"),
    ],
)
def test_rates_are_formatted_in_the_smallest_unit_of_at_least_one(per_s: float, said: str) -> None:
    assert format_rate(per_s) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0.0 s"),
        (0.94, "0.9 s"),
        (0.96, "1 s"),
        (99.4, "99 s"),
        (99.6, "2 min"),
        (7100, "118 min"),
        (7200, "2.0 h"),
        (172_799, "48.0 h"),
        (172_800, "2.0 days"),
    ],
)
def test_durations_are_formatted_in_a_readable_unit(seconds: float, said: str) -> None:
    assert format_duration(seconds) == said


@pytest.mark.parametrize(("num", "said"), [(0, "0 B"), (999.7, "1 KB"), (226_400_000, "226 MB"), (5e15, "5e+03 TB")])
def test_bytes_are_formatted_with_three_digits(num: float, said: str) -> None:
    assert format_bytes(num) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (ActivityProgress("t", "parts", 0, 10, 0.0, 0), "0 of 10 parts"),
        (ActivityProgress("t", "parts", 5, 10, 0.5, 0), "5 of 10 parts, 30/min, 10 s left"),
        (ActivityProgress("t", "files", 1000, 61_000, 2.0, 1234), "1,000 of 61,000 files, 2.0/s, 8.3 h left, 1,234 quarantined"),
        (ActivityProgress("t", "parts", 10, 10, 2.0, 1), "10 of 10 parts, 1 quarantined"),
    ],
)
def test_activity_progress_is_described_with_rate_and_remaining_time(count: ActivityProgress, said: str) -> None:
    assert count.describe() == said


def made(**changes: Any) -> StepRow:
    usual = {
        "title": "prepare web",
        "state": "done",
        "counts": {"windows": 9000, "documents": 300},
        "excluded": {"quarantined": 4},
        "seconds": 30.0,
        "tasks": 12,
        "peak_rss_bytes": 226_000_000,
    }
    return StepRow(**{**usual, **changes})


@pytest.mark.parametrize(("width", "last"), [(120, "memory"), (80, "rate"), (60, "time")])
def test_a_narrow_terminal_shows_fewer_columns_without_truncation(width: int, last: str) -> None:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(build_step_table([made(), made(title="embed web", excluded={})], width=width))
    lines = capture.get().splitlines()
    assert lines[0].split()[-1] == last
    assert "…" not in capture.get()
    assert any("30 s" in line for line in lines)


def test_step_table_has_a_row_per_step_and_a_total() -> None:
    steps = [
        made(),
        made(title="embed web", excluded={}, seconds=60.0, peak_rss_bytes=300_000_000),
        made(title="assign web", state="cached", excluded={}),
        made(title="cluster", state="pending", counts={}, excluded={}, seconds=0.0, tasks=0, peak_rss_bytes=0),
    ]
    console = Console(width=100)
    with console.capture() as capture:
        console.print(build_step_table(steps))
    heading, *rows = (re.split(r" {2,}", line.strip()) for line in capture.get().splitlines())
    assert heading == ["step", "output", "excluded", "time", "rate", "tasks", "memory"]
    assert rows == [
        ["prepare web", "9,000 windows", "4 quarantined", "30 s", "300/s", "12", "226 MB"],
        ["embed web", "9,000 windows", "60 s", "150/s", "12", "300 MB"],
        ["assign web", "9,000 windows", "cached"],
        ["cluster", "pending"],
        ["total", "90 s", "24", "300 MB"],
    ]


def test_step_line_has_duration_and_counts() -> None:
    assert re.split(r" {2,}", format_step_row(made())) == ["prepare web", "30 s", "9,000 windows, 300 documents, 4 quarantined"]
    assert format_step_row(made(counts={}, excluded={})).endswith("  done")
