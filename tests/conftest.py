"""One Ray for the whole suite, real and local; small corpora of real text on disk."""

import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.support.corpora import TOPICS, topic_documents, write_jsonl
from tests.support.processes import ROOT

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that the processes that share the suite end together."""
    slow = {item.path: 0 for item in items}
    for item in items:
        slow[item.path] += item.get_closest_marker("slow") is not None
    items.sort(key=lambda item: -slow[item.path])


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
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
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
