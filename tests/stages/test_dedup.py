"""Dedup of a whole corpus: planted near-duplicates are dropped, half-similar documents are kept, for any number of workers."""

import random
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.execution.step import part_names
from pipeline.graph import runner
from pipeline.graph.build import build_graph
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


def change_ending(text: str, similarity: float) -> str:
    """Replace the end of a text so that the sets of shingles of both have about this Jaccard similarity."""
    words = text.split()
    kept = round(2 * similarity / (1 + similarity) * (len(words) - _SHINGLE + 1)) + _SHINGLE - 1
    chooser = random.Random(text)
    return " ".join([*words[:kept], *chooser.choices(_WORDS, k=len(words) - kept)])


def write_corpus(folder: Path, pairs: int) -> dict[float, list[tuple[str, str]]]:
    """Write pairs of similar documents, most of them in different files; return the pairs of ids by similarity."""
    chooser = random.Random(7)
    rows, planted = [], {}
    for similarity in (0.9, 0.5):
        planted[similarity] = []
        for number in range(pairs):
            text = " ".join(chooser.choices(_WORDS, k=300))
            other = change_ending(text, similarity)
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
def test_planted_near_duplicates_are_dropped_for_any_number_of_workers(topics: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "planted"
    folder.mkdir()
    planted = write_corpus(folder, pairs=300)
    config = topics | {"generalist": {"paths": [str(folder)]}, "dedup": {}, "prepare": {"part_documents": 100}}
    step = runner.prepare(config).windows_step("generalist")
    assert step.stage == "dedup"
    rows = [row for name in part_names(step) for row in step.folder.read_table(f"{name}.parquet").to_pylist()]
    copies = {row["doc_id"]: row["near_copies"] for row in rows}
    found = sum(len({a, b} & copies.keys()) == 1 for a, b in planted[0.9])
    lost = sum(len({a, b} & copies.keys()) < 2 for a, b in planted[0.5])
    assert found >= 0.99 * len(planted[0.9])
    assert lost <= 0.01 * len(planted[0.5])
    for a, b in planted[0.9]:
        (kept,) = {a, b} & copies.keys() if len({a, b} & copies.keys()) == 1 else {""}
        assert not kept or copies[kept] == 2
    assert step.manifest["documents"] == len(copies)
    assert step.manifest["dropped"] == 1200 - len(copies)
    assert step.manifest["tokens"] == sum(row["tokens"] for row in rows)
    examples = step.folder.child("dropped").read_table("examples.parquet").to_pylist()
    assert len(examples) == 20
    for row in examples:
        assert row["id"] not in copies
        assert {row["id"][:-2]} == {row["kept_id"][:-2]}
        assert row["kept_id"] in copies
        assert row["text"].lower().split()[:50] == row["kept_text"].lower().split()[:50]
    assert "minhash" not in step.folder.names()

    # Without one part and the manifest, as after an interruption, and with one worker: the same bytes.
    files = {name: step.folder.read_bytes(name) for name in step.folder.files() if name != "usage.json"}
    for name in ("manifest.json", f"{part_names(step)[1]}.parquet"):
        step.folder.remove(name)
    again = runner.prepare(config | {"engine": {"workers": 1}}).windows_step("generalist")
    assert {name: again.folder.read_bytes(name) for name in again.folder.files() if name != "usage.json"} == files


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_dedup_of_a_corpus_without_duplicates_drops_nothing(topics: dict[str, Any]) -> None:
    graph = runner.curate(topics | {"dedup": {}})
    assert graph.windows_step("generalist").manifest["dropped"] == 0
    shards = graph.shards.read_json("_manifest.json")["shards"]
    table = graph.shards.read_table(shards[0]["name"])
    assert set(table["near_copies"].to_pylist()) == {1}


def test_an_unknown_dedup_language_is_rejected_before_anything_runs(topics: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"dedup\.language 'klingon': datatrove has no word tokenizer for it"):
        build_graph(topics | {"dedup": {"language": "klingon"}})
