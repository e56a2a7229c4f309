"""The store of answers: nothing is lost or doubled when its files are merged, whenever that is stopped."""

import random
from pathlib import Path

import numpy as np
import pytest

from pipeline.engine.exchange import Answer
from pipeline.rewriting import answers
from pipeline.rewriting.answers import AnswerIndex, merge_files, read_keys, small_files, write_answers
from pipeline.storage import Folder


def stored_names(folder: Folder) -> list[str]:
    return sorted(name.removesuffix(".parquet") for name in folder.names(".parquet"))


def answer(key: int, text: str = "") -> Answer:
    return Answer(key, text or f"answer {key}", "stop", 3, 2)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setattr(answers, "_FULL", 10)
    monkeypatch.setattr(answers, "_MANY_SMALL", 5)
    return Folder(str(tmp_path / "answers"))


def texts(folder: Folder, keys: list[int]) -> list[str]:
    index = AnswerIndex()
    index.add(read_keys(stored_names(folder), folder))
    found: list[str] = index.frozen().read(folder, np.array(keys, np.uint64))["text"].to_pylist()
    return found


def test_small_files_are_merged_into_full_ones_with_every_answer(folder: Folder) -> None:
    rng = random.Random(0)
    keys = [(1 << 64) - 1 - key for key in rng.sample(range(1 << 32), 60)]
    for i in range(0, 60, 3):
        write_answers(folder, [answer(key) for key in keys[i : i + 3]])
    write_answers(folder, [answer(key) for key in range(10)])  # full already
    lists = small_files(read_keys(stored_names(folder), folder))
    assert sorted(len(names) for names in lists) == [4, 4, 4, 4, 4]
    for names in lists:
        merge_files(names, folder)
    assert len(stored_names(folder)) == 6
    assert texts(folder, [*keys, 3]) == [f"answer {key}" for key in [*keys, 3]]
    assert small_files(read_keys(stored_names(folder), folder)) == []


def test_few_small_files_are_left(folder: Folder) -> None:
    stored = [write_answers(folder, [answer(key)]) for key in range(4)]
    assert small_files(stored) == []


def test_a_merge_stopped_in_the_middle_is_done_again(folder: Folder) -> None:
    stored = [write_answers(folder, [answer(key)]) for key in range(6)]
    (names,) = small_files(stored)
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


def test_of_two_answers_to_one_prompt_that_of_the_first_file_is_kept(folder: Folder) -> None:
    for text in ("one", "another"):
        write_answers(folder, [answer(7, text), answer(8 if text == "one" else 9)])
    for key in (1, 2, 3):
        write_answers(folder, [answer(key)])
    before = texts(folder, [7])
    (names,) = small_files(read_keys(stored_names(folder), folder))
    merge_files(names, folder)
    assert texts(folder, [7]) == before
