"""MinHash over the whole corpus: what is planted is found, what is alike by half is not, and the bytes do not depend on workers."""

import random
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.execution.step import part_names
from pipeline.graph import runner
from pipeline.graph.graph import build_graph
from tests.support.corpora import write_jsonl

_WORDS = [
    f"{a}{b}{c}" for a in ("ka", "lo", "mi", "ne", "ru", "sa", "to") for b in ("ba", "di", "fu", "ge", "ho") for c in "aeioulrst"
]
_SHINGLE = 5


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + _SHINGLE]) for i in range(len(words) - _SHINGLE + 1)}


def jaccard(a: str, b: str) -> float:
    one, other = shingles(a), shingles(b)
    return len(one & other) / len(one | other)


def altered(text: str, similarity: float) -> str:
    """Another ending, such that the sets of shingles have about this Jaccard similarity."""
    words = text.split()
    kept = round(2 * similarity / (1 + similarity) * (len(words) - _SHINGLE + 1)) + _SHINGLE - 1
    chooser = random.Random(text)
    return " ".join([*words[:kept], *chooser.choices(_WORDS, k=len(words) - kept)])


def corpus(folder: Path, pairs: int) -> dict[float, list[tuple[str, str]]]:
    """Pairs of ids by their similarity, spread over files so that most pairs lie in different ones."""
    chooser = random.Random(7)
    rows, planted = [], {}
    for similarity in (0.9, 0.5):
        planted[similarity] = []
        for number in range(pairs):
            text = " ".join(chooser.choices(_WORDS, k=300))
            other = altered(text, similarity)
            assert abs(jaccard(text, other) - similarity) < 0.02
            names = (f"{similarity}-{number}-a", f"{similarity}-{number}-b")
            rows += [{"id": names[0], "text": text.capitalize() + "."}, {"id": names[1], "text": other}]
            planted[similarity].append(names)
    chooser.shuffle(rows)
    for number in range(5):
        write_jsonl(folder / f"{number}.jsonl", rows[number::5])
    return planted


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_planted_near_duplicates(topics: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "planted"
    folder.mkdir()
    planted = corpus(folder, pairs=300)
    config = topics | {"generalist": {"paths": [str(folder)]}, "dedup": {}, "prepare": {"part_documents": 100}}
    made = runner.prepare(config).windows("generalist")
    assert made.stage == "dedup"
    rows = [row for name in part_names(made) for row in made.folder.read_table(f"{name}.parquet").to_pylist()]
    copies = {row["doc_id"]: row["near_copies"] for row in rows}
    found = sum(len({a, b} & copies.keys()) == 1 for a, b in planted[0.9])
    lost = sum(len({a, b} & copies.keys()) < 2 for a, b in planted[0.5])
    assert found >= 0.99 * len(planted[0.9])
    assert lost <= 0.01 * len(planted[0.5])
    for a, b in planted[0.9]:
        (kept,) = {a, b} & copies.keys() if len({a, b} & copies.keys()) == 1 else {""}
        assert not kept or copies[kept] == 2
    assert made.manifest["documents"] == len(copies)
    assert made.manifest["dropped"] == 1200 - len(copies)
    assert made.manifest["tokens"] == sum(row["tokens"] for row in rows)
    examples = made.folder.child("dropped").read_table("examples.parquet").to_pylist()
    assert len(examples) == 20
    for row in examples:
        assert row["id"] not in copies
        assert {row["id"][:-2]} == {row["kept_id"][:-2]}
        assert row["kept_id"] in copies
        assert row["text"].lower().split()[:50] == row["kept_text"].lower().split()[:50]
    assert "minhash" not in made.folder.names()

    # Killed while parts were written, and again with one worker: the same bytes.
    files = {name: made.folder.read_bytes(name) for name in made.folder.files() if name != "usage.json"}
    for name in ("manifest.json", f"{part_names(made)[1]}.parquet"):
        made.folder.remove(name)
    again = runner.prepare(config | {"engine": {"workers": 1}}).windows("generalist")
    assert {name: again.folder.read_bytes(name) for name in again.folder.files() if name != "usage.json"} == files


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_corpus_without_duplicates_and_a_whole_run(topics: dict[str, Any]) -> None:
    made = runner.curate(topics | {"dedup": {}})
    assert made.windows("generalist").manifest["dropped"] == 0
    shards = made.shards.read_json("_manifest.json")["shards"]
    table = made.shards.read_table(shards[0]["name"])
    assert set(table["near_copies"].to_pylist()) == {1}


def test_an_unknown_language_is_found_before_anything_runs(topics: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"dedup\.language 'klingon': datatrove has no words for it"):
        build_graph(topics | {"dedup": {"language": "klingon"}})
