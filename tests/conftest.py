"""One Ray for the whole suite, real and local; small corpora of real text on disk."""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

TOPICS = {
    "cooking": "flour butter sugar oven bake dough whisk cream salt pepper onion garlic simmer boil pan recipe vanilla yeast",
    "law": "court contract party clause liability plaintiff defendant statute appeal judge ruling tort evidence counsel breach",
    "space": "orbit planet rocket telescope galaxy star lunar astronaut gravity comet solar satellite nebula launch mission",
    "music": "chord melody rhythm guitar violin orchestra tempo concert song singer album harmony piano drum lyric bass",
}


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
    here = Path(__file__).parent
    os.environ["PYTHONPATH"] = os.pathsep.join([str(here), str(here / "without_pictures"), os.environ.get("PYTHONPATH", "")])
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
