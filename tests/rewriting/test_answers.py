"""The store of answers: merging its files neither loses nor duplicates answers, even if it is interrupted."""

import random
from pathlib import Path

import numpy as np
import pytest

from pipeline.engine.llm_io import Answer
from pipeline.rewriting import answers
from pipeline.rewriting.answers import AnswerIndex, group_small_files, merge_files, read_keys, write_answers
from pipeline.storage import Folder


def stored_names(folder: Folder) -> list[str]:
    return sorted(name.removesuffix(".parquet") for name in folder.names(".parquet"))


def answer(key: int, text: str = "") -> Answer:
    return Answer(key, text or f"answer {key}", "stop", 3, 2)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setattr(answers, "_FULL_FILE_ANSWERS", 10)
    monkeypatch.setattr(answers, "_MIN_SMALL_FILES", 5)
    return Folder(str(tmp_path / "answers"))


def texts(folder: Folder, keys: list[int]) -> list[str]:
    index = AnswerIndex()
    index.add(read_keys(stored_names(folder), folder))
    found: list[str] = index.freeze().read_answers(folder, np.array(keys, np.uint64))["text"].to_pylist()
    return found


def test_merging_small_files_keeps_every_answer(folder: Folder) -> None:
    rng = random.Random(0)
    keys = [(1 << 64) - 1 - key for key in rng.sample(range(1 << 32), 60)]
    for i in range(0, 60, 3):
        write_answers(folder, [answer(key) for key in keys[i : i + 3]])
    write_answers(folder, [answer(key) for key in range(10)])  # full already
    lists = group_small_files(read_keys(stored_names(folder), folder))
    assert sorted(len(names) for names in lists) == [4, 4, 4, 4, 4]
    for names in lists:
        merge_files(names, folder)
    assert len(stored_names(folder)) == 6
    assert texts(folder, [*keys, 3]) == [f"answer {key}" for key in [*keys, 3]]
    assert group_small_files(read_keys(stored_names(folder), folder)) == []


def test_few_small_files_are_not_merged(folder: Folder) -> None:
    stored = [write_answers(folder, [answer(key)]) for key in range(4)]
    assert group_small_files(stored) == []


def test_an_interrupted_merge_can_be_repeated(folder: Folder) -> None:
    stored = [write_answers(folder, [answer(key)]) for key in range(6)]
    (names,) = group_small_files(stored)
    removed = []

    class Stopping(Folder):
        def remove(self, name: str) -> None:
            if len(removed) == 2:
                raise KeyboardInterrupt
            removed.append(name)
            super().remove(name)

    with pytest.raises(KeyboardInterrupt):
        merge_files(names, Stopping(folder.url))
    assert len(stored_names(folder)) == 5  # the merged one, and four that are still to go
    assert texts(folder, list(range(6))) == [f"answer {key}" for key in range(6)]
    merge_files(names, folder)
    assert texts(folder, list(range(6))) == [f"answer {key}" for key in range(6)]


def test_merging_keeps_the_first_of_duplicate_answers(folder: Folder) -> None:
    for text in ("one", "another"):
        write_answers(folder, [answer(7, text), answer(8 if text == "one" else 9)])
    for key in (1, 2, 3):
        write_answers(folder, [answer(key)])
    before = texts(folder, [7])
    (names,) = group_small_files(read_keys(stored_names(folder), folder))
    merge_files(names, folder)
    assert texts(folder, [7]) == before
