"""One Ray for the whole suite, real and local; small corpora of real text on disk."""

import gzip
import json
import os
import random
import re
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from pipeline.config.execution import STAGES_WITH_TASKS

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

# A folder for each of the processes that share the suite: Ray notes there which cluster jobs of this machine join.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ["RAY_TMPDIR"] = f"/tmp/ray-{worker}"
    Path(os.environ["RAY_TMPDIR"]).mkdir(exist_ok=True)

# One token for every Ray of the suite: Ray reads it once in each process.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

STARTS = 3  # of a node of Ray's, which gives itself half a minute to come up: on a busy machine that may not do

TOPICS = {
    "cooking": "flour butter sugar oven bake dough whisk cream salt pepper onion garlic simmer boil pan recipe vanilla yeast",
    "law": "court contract party clause liability plaintiff defendant statute appeal judge ruling tort evidence counsel breach",
    "space": "orbit planet rocket telescope galaxy star lunar astronaut gravity comet solar satellite nebula launch mission",
    "music": "chord melody rhythm guitar violin orchestra tempo concert song singer album harmony piano drum lyric bass",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that the processes that share the suite end together."""
    slow = {item.path: 0 for item in items}
    for item in items:
        slow[item.path] += item.get_closest_marker("slow") is not None
    items.sort(key=lambda item: -slow[item.path])


def shard_bytes(workdir: str | Path) -> dict[str, bytes]:
    """The published shards and their manifest, by name."""
    return {path.name: path.read_bytes() for path in sorted((Path(workdir) / "shards").iterdir())}


def topic_documents(topic: str, count: int, seed: int = 0, words: int = 120) -> list[dict[str, Any]]:
    """Documents of words of one topic: a mixture that is planted, so that it can be checked."""
    chooser = random.Random(f"{topic}-{seed}")
    vocabulary = [*TOPICS[topic].split(), "the", "and", "with", "for", "from", "into"]
    return [
        {"id": f"{topic}-{seed}-{i}", "text": " ".join(chooser.choices(vocabulary, k=words)) + ".", "source": topic}
        for i in range(count)
    ]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def warc(path: Path, *pages: tuple[Any, ...], cut: int = 0, wet: bool = False, identified: bool = True) -> Path:
    """Records of (url, content, content type, HTTP headers …), after one of another kind; the last `cut` bytes are missing.

    Only newer crawls say what kind they found (`identified`); of others the server's word is all there is.
    """
    records = [b"WARC/1.0\r\nWARC-Type: warcinfo\r\nContent-Length: 4\r\n\r\ninfo\r\n\r\n"]
    for url, content, kind, *lines in pages:
        http = "\r\n".join(["HTTP/1.1 200 OK", f"Content-Type: {kind}", *lines])
        body = content if wet else http.encode() + b"\r\n\r\n" + content
        head = {
            "WARC-Type": "conversion" if wet else "response",
            "WARC-Record-ID": f"<urn:uuid:{url}>",
            "WARC-Target-URI": url,
            "WARC-Date": "2026-11-20T00:00:00Z",
            **({"WARC-Identified-Payload-Type": kind.partition(";")[0]} if identified else {}),
            "Content-Type": kind if wet else "application/http; msgtype=response",
            "Content-Length": str(len(body)),
        }
        named = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        records.append(b"WARC/1.0\r\n" + named.encode() + b"\r\n" + body + b"\r\n\r\n")
    data = b"".join(gzip.compress(record) if path.suffix == ".gz" else record for record in records)
    path.write_bytes(data[: len(data) - cut])
    return path


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of the suite's own: what an earlier version made and kept must not pass a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def ray_session() -> Iterator[Any]:
    """The Ray of the suite: three workers, whatever the machine, so that one, two and three can be compared."""
    import ray

    # Workers inherit it, and so find the functions of the tests.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    os.environ |= {"RAY_worker_niceness": "0"}  # else, beside anything busy, an engine does not come up for minutes
    context = ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield context
    ray.shutdown()


@pytest.fixture
def topics(tmp_path: Path) -> dict[str, Any]:
    """The config of a run on four planted topics, one of which the specialist asks for."""
    folder = tmp_path / "input"
    folder.mkdir()
    for number, topic in enumerate(TOPICS):
        write_jsonl(folder / f"{number}-{topic}.jsonl", topic_documents(topic, 100))
    specialist = write_jsonl(tmp_path / "law.jsonl", topic_documents("law", 20, seed=1))
    return {
        "workdir": str(tmp_path / "run"),
        "generalist": {"paths": [str(folder / "*.jsonl")]},
        "specialists": {"legal": {"paths": [specialist]}},
        "prepare": {"part_documents": 40},
        "window": {"tokens": 64},
        "embed": {"model": "lsi", "dim": 8},
        "cluster": {"branching": 4, "depth": 2, "min_windows": 16},
        "sample": {"budget_tokens": 20_000, "shard_bytes": 20_000},
    }


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer.json that cuts texts after 16 tokens, as many of models do; an export must not."""
    from pipeline import embedders
    from pipeline.config import Embed

    settings = json.loads(Path(embedders.tokenizer_file(Embed(model="bundled:all-MiniLM-L6-v2"))).read_text(encoding="utf-8"))
    settings["truncation"] = {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(json.dumps(settings), encoding="utf-8")
    return str(path)


def without_pictures(**changes: str) -> dict[str, str]:
    """The environment of processes that import `streaming`: it wants torchvision, of which they get a stand-in."""
    paths = [str(Path(__file__).parent / "without_pictures"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **changes}


def topic_run(folder: Path, documents: int) -> dict[str, Any]:
    """The config of a small run on planted topics with URLs, in several shards."""
    for topic in TOPICS:
        write_jsonl(folder / f"{topic}.jsonl", [{**row, "url": f"http://{row['id']}"} for row in topic_documents(topic, documents)])
    return {
        "workdir": str(folder / "run"),
        "generalist": {"paths": [str(folder / "*.jsonl")]},
        "specialists": {"legal": {"paths": [write_jsonl(folder / "law.json", topic_documents("law", 20, seed=1))]}},
        "window": {"tokens": 64},
        "embed": {"model": "lsi", "dim": 8},
        "cluster": {"branching": 4, "depth": 1, "min_windows": 16},
        "sample": {"budget_tokens": 20_000, "shard_bytes": 20_000},
    }


def lines_of_others(done: "subprocess.CompletedProcess[str]") -> list[str]:
    """What of the output of a job with nothing to warn of is neither of our log, in our words, nor of the tables at the end."""
    line = re.compile(
        r"\d\d:\d\d:\d\d (joined the Ray cluster at|started Ray here,|\d+ of \d+ steps? w|run \d+ |"
        rf"({'|'.join(STAGES_WITH_TASKS)}|schedule)[ ,:])"
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
