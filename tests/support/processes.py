"""Processes that tests start: their environment, ports, and waiting for what they do."""

import os
import re
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.config.stages import STAGES

ROOT = Path(__file__).parent.parent.parent
STARTS = 3  # of a node of Ray's, which gives itself half a minute to come up: on a busy machine that may not do


def without_pictures(**changes: str) -> dict[str, str]:
    """The environment of processes that import `streaming`: it wants torchvision, of which they get a stand-in."""
    paths = [str(Path(__file__).parent / "without_pictures"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **changes}


def lines_of_others(done: "subprocess.CompletedProcess[str]") -> list[str]:
    """What of the output of a job with nothing to warn of is neither of our log, in our words, nor of the tables at the end."""
    line = re.compile(
        r"\d\d:\d\d:\d\d (joined the Ray cluster at|started Ray here,|\d+ of \d+ steps? (is|are) cached|run \d+ |"
        rf"({'|'.join(STAGES)})[ ,:])"
    )
    logged = re.compile(r"\b(DEBUG|INFO|WARNING|ERROR|FATAL)\b|\.(py|cc|cpp):\d")
    others = [one for one in done.stderr.splitlines() if not line.match(one)]
    return others + [one for one in done.stdout.splitlines() if logged.search(one)]


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens at."""
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
    """Until it holds; a failure, with the log, if the process on which it depends ends before.

    The limit is for what hangs, not for what is slow.
    """
    deadline = time.monotonic() + 600
    while not condition():
        ended = process is not None and process.poll() is not None
        assert not ended, log.read_text(errors="replace") if log else "the process ended"
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(every_s)
