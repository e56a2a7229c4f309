"""Finds held-out text in other text by shared word n-grams, ignoring case, punctuation and white space.

A held-out row has one or several readings: the texts that are searched for. A plain text is its only reading. For a question with
choices the reading is the question alone, because its presence contaminates the row whatever choices follow and however they are
numbered. If the question is shorter than an n-gram, it has one reading for each usual continuation (the answer, the choices, the
choices with letters), so that n-grams extend across the border. A document contains a row if it has at least a given share of the
distinct n-grams of one of its readings. Names in the code call an n-gram a run.

Shapes: G distinct n-grams of all readings, P pairs of n-gram and reading, R readings; T n-grams of the searched text, H distinct
ones that are among the G, F readings with at least one of those.
"""

import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrays import I64
from pipeline.text.ngrams import Wording, wordings

_LETTERS = string.ascii_uppercase


@dataclass(frozen=True)
class Found:
    """The held-out row that best matches a document."""

    name: str  # of the held-out set
    row: int
    share: float  # of the reading's distinct n-grams that the document contains
    words: str  # the first shared n-gram in the document


@dataclass(frozen=True, eq=False)
class Index:
    """Index of readings by their n-grams of `length` words."""

    length: int
    names: tuple[str, ...]
    run_P: NDArray[np.uint64]  # ascending
    reading_P: I64
    name_R: I64
    row_R: I64

    @classmethod
    def of(cls, rows: Iterable[tuple[int, int, Sequence[str]]], names: Sequence[str], length: int) -> tuple[Self, list[int]]:
        """Build the index from (index into `names`, row, readings).

        Also return for each name the number of rows whose readings are all shorter than `length` words.
        """
        runs: list[NDArray[np.uint64]] = []
        name_R: list[int] = []
        row_R: list[int] = []
        short = [0] * len(names)
        for name, row, readings in rows:
            of_row = [found for text in readings if len(found := _different_runs(text, length))]
            short[name] += not of_row
            runs += of_row
            name_R += [name] * len(of_row)
            row_R += [row] * len(of_row)
        run_P = np.concatenate([np.empty(0, np.uint64), *runs])
        reading_P = np.repeat(np.arange(len(runs)), [len(found) for found in runs])
        order = np.lexsort((reading_P, run_P))
        index = cls(length, tuple(names), run_P[order], reading_P[order], np.array(name_R, np.int64), np.array(row_R, np.int64))
        return index, short

    @cached_property
    def _runs(self) -> tuple[NDArray[np.uint64], I64, I64]:
        """(G,) distinct n-grams, (G + 1,) their offsets in the P pairs, (R,) number of n-grams of each reading."""
        run_G, start_G = np.unique(self.run_P, return_index=True)
        return run_G, np.append(start_G, len(self.run_P)), np.bincount(self.reading_P, minlength=len(self.row_R))

    def found(self, text: str, min_share: float) -> Found | None:
        """Return the row with the largest shared n-gram share; None if it is under `min_share`. Ties go to the first reading."""
        run_G, start_G, size_R = self._runs
        if not len(run_G):
            return None
        hits = [np.unique(self._hits(wording)[1]) for wording in wordings(text, self.length)]
        hit_H = np.unique(np.concatenate(hits))
        if not len(hit_H):
            return None
        # Gather the readings of each of the H n-grams: a contiguous range of the P pairs.
        times_H = start_G[hit_H + 1] - start_G[hit_H]
        before_H = np.cumsum(times_H) - times_H
        reading = self.reading_P[np.arange(times_H.sum()) + np.repeat(start_G[hit_H] - before_H, times_H)]
        reading_F, count_F = np.unique(reading, return_counts=True)
        share_F = count_F / size_R[reading_F]
        best = int(np.argmax(share_F))
        if share_F[best] < min_share:
            return None
        of_best = int(reading_F[best])
        name = self.names[self.name_R[of_best]]
        first = self._first(text, np.flatnonzero(np.isin(run_G, self.run_P[self.reading_P == of_best])))
        return Found(name, int(self.row_R[of_best]), float(share_F[best]), first)

    def _hits(self, wording: Wording) -> tuple[I64, I64]:
        """Return the positions in a wording of n-grams that are in the index, and which of the G each is."""
        run_G, _, _ = self._runs
        run_T = wording.runs(self.length)
        place_T = np.minimum(np.searchsorted(run_G, run_T), len(run_G) - 1)
        at = np.flatnonzero(run_G[place_T] == run_T)
        return at, place_T[at]

    def _first(self, text: str, of_reading: I64) -> str:
        """Return the words of the first n-gram of the text that is among `of_reading`, indices into the G."""
        for wording in wordings(text, self.length):
            at, place = self._hits(wording)
            if len(mine := at[np.isin(place, of_reading)]):
                return wording.run(int(mine[0]), self.length)
        raise AssertionError("none of its runs was found twice")

    def tables(self) -> tuple[pa.Table, pa.Table]:
        """Return the index as a HELD_OUT_RUNS and a HELD_OUT_ROWS table."""
        runs = pa.table({"run": self.run_P, "reading": self.reading_P})
        names = pa.array([self.names[name] for name in self.name_R], pa.string())
        return runs, pa.table({"name": names, "row": self.row_R})

    @classmethod
    def from_tables(cls, runs: pa.Table, rows: pa.Table, length: int) -> Self:
        """Build the index from the result of `tables`."""
        names = sorted(set(rows["name"].to_pylist()))
        number = {name: i for i, name in enumerate(names)}
        name_R = np.array([number[name] for name in rows["name"].to_pylist()], np.int64)
        return cls(length, tuple(names), runs["run"].to_numpy(), runs["reading"].to_numpy(), name_R, rows["row"].to_numpy())


def _different_runs(text: str, length: int) -> NDArray[np.uint64]:
    return np.unique(np.concatenate([np.unique(wording.runs(length)) for wording in wordings(text, length)]))


def choices_of(value: Any) -> tuple[list[str], list[str]]:
    """Return the texts of a question's choices, and their labels if they have any.

    `value` is a list of texts, an object with the lists `text` and `label` (as in ARC), or a list of objects with these keys.

    Raises:
        ValueError: `value` has another shape, or the number of labels differs from the number of choices.
    """
    labels: Any = []
    if isinstance(value, dict):
        value, labels = value.get("text"), value.get("label") or []
    elif isinstance(value, list) and value and all(isinstance(choice, dict) for choice in value):
        labels = [choice.get("label") for choice in value]
        value = [choice.get("text") for choice in value]
    if not isinstance(value, list) or any(isinstance(choice, dict | list) or choice is None for choice in value):
        raise ValueError("is no list of choices, nor an object with the lists text and label")
    if not isinstance(labels, list) or (any(label is not None for label in labels) and len(labels) != len(value)):
        raise ValueError(f"has {len(value)} choices and not as many labels")
    return [str(choice) for choice in value], [str(label) for label in labels if label is not None]


def readings(text: str, length: int, *, answer: Any = None, choices: Sequence[str] = (), labels: Sequence[str] = ()) -> list[str]:
    """Return the readings of a row: a text, or a question with its answer and choices.

    `answer` is the text of the answer, or names a choice by its label, letter or number from 0. `length` is the number of words of
    an n-gram.
    """
    answered = _answer(answer, choices, labels)
    if not (answered or choices) or any(len(wording.words) >= length for wording in wordings(text, length)):
        return [text]
    lettered = [" ".join(f"{name} {choice}" for name, choice in zip(names, choices, strict=False)) for names in (_LETTERS, labels)]
    following = [answered, f"answer {answered}" if answered else "", " ".join(choices), *lettered]
    return [f"{text} {rest}" for rest in dict.fromkeys(following) if rest]


def _answer(answer: Any, choices: Sequence[str], labels: Sequence[str]) -> str:
    """Return the text of an answer. An ambiguous one is read as, in this order: label, letter, text of a choice, number."""
    if isinstance(answer, dict) and "text" in answer:  # as in SQuAD
        answer = answer["text"]
    if isinstance(answer, list | tuple):
        return " ".join(_answer(one, choices, labels) for one in answer)
    if answer is None or isinstance(answer, bool):
        return "" if answer is None else str(answer)
    said = str(answer).strip()
    if said in labels:
        return choices[labels.index(said)]
    if isinstance(answer, str):
        if len(said) == 1 and said.upper() in _LETTERS[: len(choices)]:
            return choices[_LETTERS.index(said.upper())]
        if said in choices:
            return said
    if said.isascii() and said.isdigit() and int(said) < len(choices):
        return choices[int(said)]
    return said
