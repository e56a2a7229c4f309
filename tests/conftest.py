"""Fixtures for all tests: one local Ray, the config of a small run, a tokenizer and a cache folder."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadFileScheduling

import pipeline
from tests.support.corpora import TOPICS, make_topic_documents, write_jsonl
from tests.support.processes import ROOT

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.register_profile("check", derandomize=True, deadline=None, max_examples=20)
hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

# Each pytest-xdist worker has its own folder: Ray records there which cluster the jobs of this machine join.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ["RAY_TMPDIR"] = f"/tmp/ray-{worker}"
    Path(os.environ["RAY_TMPDIR"]).mkdir(exist_ok=True)

# One token for every Ray of the suite: Ray reads it once per process.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


# The tests of a file run in one pytest-xdist worker; so do those of these folders, whose files share a run.
_FOLDERS_OF_ONE_WORKER = ("tests/report/",)


class _FilesOrFolders(LoadFileScheduling):  # type: ignore[misc]
    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return next((folder for folder in _FOLDERS_OF_ONE_WORKER if file.startswith(folder)), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    return _FilesOrFolders(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that use Ray, and run files with slow tests first, so that the workers finish at about the same time."""
    slowness = {item.path: 0 for item in items}
    for item in items:
        if "ray_session" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.ray)
        if item.get_closest_marker("slow"):
            slowness[item.path] += 10 if item.get_closest_marker("ray") else 1
    items.sort(key=lambda item: -slowness[item.path])


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use a cache folder of this test session, so that no test depends on files cached by an earlier version."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def ray_session() -> Iterator[Any]:
    """Start the Ray of the suite, with three CPUs on any machine, so that runs with one to three workers can be compared."""
    import ray

    # Ray workers inherit it; they need it to import the functions of the tests.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    os.environ |= {"RAY_worker_niceness": "0"}  # otherwise an engine takes minutes to start on a busy machine
    context = ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield context
    ray.shutdown()


def make_topics_config(folder: Path) -> dict[str, Any]:
    (folder / "input").mkdir()
    for number, topic in enumerate(TOPICS):
        write_jsonl(folder / "input" / f"{number}-{topic}.jsonl", make_topic_documents(topic, 100))
    specialist = write_jsonl(folder / "law.jsonl", make_topic_documents("law", 20, seed=1))
    return {
        "workdir": str(folder / "run"),
        "generalist": {"paths": [str(folder / "input" / "*.jsonl")]},
        "specialists": {"legal": {"paths": [specialist]}},
        "prepare": {"part_documents": 40},
        "window": {"tokens": 64},
        "embed": {"model": "lsi", "dim": 8},
        "cluster": {"branching": 4, "depth": 2, "min_windows": 16},
        "sample": {"budget_tokens": 20_000, "shard_bytes": 20_000},
    }


@pytest.fixture
def topics(tmp_path: Path) -> dict[str, Any]:
    """Return the config of a run on four topics; the specialist sample is about one of them."""
    return make_topics_config(tmp_path)


@pytest.fixture(scope="session")
def finished_clusters(ray_session: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the workdir of a run on `topics` whose steps `prepare` to `assign` are done."""
    config = make_topics_config(tmp_path_factory.mktemp("clusters"))
    pipeline.curate(pipeline.parse_config(config), until="cluster")
    return Path(config["workdir"])


@pytest.fixture
def cached_clusters(topics: dict[str, Any], finished_clusters: Path) -> None:
    """Start the run on `topics` with its steps `prepare` to `assign` cached, for tests of what comes after."""
    for stage in ("prepare", "embedder", "embed", "cluster", "assign"):
        shutil.copytree(finished_clusters / stage, Path(topics["workdir"]) / stage)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a tokenizer.json that truncates texts to 16 tokens, as those of many models do; an export must not truncate."""
    from pipeline import embedders
    from pipeline.config import Embed

    settings = json.loads(Path(embedders.find_tokenizer_file(Embed(model="bundled:all-MiniLM-L6-v2"))).read_text(encoding="utf-8"))
    settings["truncation"] = {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(json.dumps(settings), encoding="utf-8")
    return str(path)
