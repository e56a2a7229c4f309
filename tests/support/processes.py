"""Processes that tests start: their environment, ports, output, and waiting for conditions."""

import os
import re
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.config.stages import STAGES

ROOT = Path(__file__).parent.parent.parent
MAX_START_ATTEMPTS = 3  # of a Ray node: on a busy machine, its start may exceed Ray's time limit of half a minute

_LOGGER_FORMAT = re.compile(
    r"^\((raylet|\w[^)]*pid=\d+)"  # a line of a worker, forwarded by Ray
    r"|^\[?\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d"  # Ray, datatrove, the standard library with a time
    r"|^\[?\w+ \d\d-\d\d \d\d:\d\d:\d\d"  # vLLM
    r"|^(debug|info|warning|error|critical|fatal)\b[ :]"  # the standard library without a time
    r"|\.(py|cc|cpp):\d",
    re.IGNORECASE,
)


def make_torchvision_stub_environment(**changes: str) -> dict[str, str]:
    """Return an environment for processes that import `streaming`, which needs torchvision: they import a stub instead."""
    paths = [str(Path(__file__).parent / "torchvision_stub"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **changes}


def find_foreign_lines(done: "subprocess.CompletedProcess[str]") -> list[str]:
    """Return the output lines of a successful job without warnings that were not written by this package.

    On standard error these are all lines except the known log lines; on standard output, which holds tables, they are the lines in
    the format of a logger: of Ray, vLLM or the standard library, or with a source position.
    """
    own = re.compile(
        r"\d\d:\d\d:\d\d (joined the Ray cluster at|started Ray on this machine|\d+ of \d+ steps? (is|are) cached|run \d+ |"
        rf"({'|'.join(STAGES)})[ ,:])"
    )
    return [line for line in done.stderr.splitlines() if not own.match(line)] + [
        line for line in done.stdout.splitlines() if _LOGGER_FORMAT.search(line)
    ]


def free_port() -> int:
    """Return an unused port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(
    condition: Callable[[], bool],
    process: "subprocess.Popen[bytes] | None" = None,
    log: Path | None = None,
    *,
    every_s: float = 0.02,
) -> None:
    """Wait until the condition holds; fail, and show the log, if the process on which it depends ends first.

    The time limit catches a hang; it is long enough for a slow machine.
    """
    deadline = time.monotonic() + 600
    while not condition():
        ended = process is not None and process.poll() is not None
        assert not ended, log.read_text(errors="replace") if log else "the process ended"
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(every_s)
