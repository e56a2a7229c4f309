"""Finds held-out text in other text by shared word n-grams, ignoring case, punctuation and white space.

A held-out row has one or several search texts. A plain text is its only search text. For a question with choices the search text
is the question alone, because its presence contaminates the row whatever choices follow and however they are numbered. If the
question is shorter than an n-gram, it has one search text for each usual continuation (the answer, the choices, the choices with
letters), so that n-grams extend across the border. A document contains a row if it has at least a given share of the distinct
n-grams of one of its search texts.

Shapes: G distinct n-grams of all search texts, P pairs of n-gram and search text, S search texts; T n-grams of the searched text, H
distinct ones that are among the G, F search texts with at least one of those.
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
from pipeline.text.ngrams import Wording, iter_wordings

_LETTERS = string.ascii_uppercase


@dataclass(frozen=True)
class Match:
    """The held-out row that best matches a document."""

    name: str  # of the held-out set
    row: int
    share: float  # of the search text's distinct n-grams that the document contains
    words: str  # the first shared n-gram in the document


@dataclass(frozen=True, eq=False)
class Index:
    """Index of search texts by their n-grams of `length` words."""

    length: int
    names: tuple[str, ...]
    ngram_P: NDArray[np.uint64]  # ascending
    search_text_P: I64
    name_S: I64
    row_S: I64

    @classmethod
    def build(cls, rows: Iterable[tuple[int, int, Sequence[str]]], names: Sequence[str], length: int) -> tuple[Self, list[int]]:
        """Build the index from (index into `names`, row, search texts).

        Also return for each name the number of rows whose search texts are all shorter than `length` words.
        """
        ngrams: list[NDArray[np.uint64]] = []
        name_S: list[int] = []
        row_S: list[int] = []
        short = [0] * len(names)
        for name, row, search_texts in rows:
            row_ngrams = [hashes for text in search_texts if len(hashes := _distinct_ngrams(text, length))]
            short[name] += not row_ngrams
            ngrams += row_ngrams
            name_S += [name] * len(row_ngrams)
            row_S += [row] * len(row_ngrams)
        ngram_P = np.concatenate([np.empty(0, np.uint64), *ngrams])
        search_text_P = np.repeat(np.arange(len(ngrams)), [len(hashes) for hashes in ngrams])
        order = np.lexsort((search_text_P, ngram_P))
        rows_S = np.array(name_S, np.int64), np.array(row_S, np.int64)
        index = cls(length, tuple(names), ngram_P[order], search_text_P[order], *rows_S)
        return index, short

    @cached_property
    def _distinct(self) -> tuple[NDArray[np.uint64], I64, I64]:
        """(G,) distinct n-grams, (G + 1,) their offsets in the P pairs, (S,) number of n-grams of each search text."""
        ngram_G, start_G = np.unique(self.ngram_P, return_index=True)
        return ngram_G, np.append(start_G, len(self.ngram_P)), np.bincount(self.search_text_P, minlength=len(self.row_S))

    def best_match(self, text: str, min_share: float) -> Match | None:
        """Return the row with the largest share of its n-grams in `text`; None if it is under `min_share`. Ties go to the first."""
        ngram_G, start_G, num_ngrams_S = self._distinct
        if not len(ngram_G):
            return None
        hits = [np.unique(self._find_indexed(wording)[1]) for wording in iter_wordings(text, self.length)]
        hit_H = np.unique(np.concatenate(hits))
        if not len(hit_H):
            return None
        # Gather the search texts of each of the H n-grams: a contiguous range of the P pairs.
        count_H = start_G[hit_H + 1] - start_G[hit_H]
        offset_H = np.cumsum(count_H) - count_H
        search_text = self.search_text_P[np.arange(count_H.sum()) + np.repeat(start_G[hit_H] - offset_H, count_H)]
        search_text_F, count_F = np.unique(search_text, return_counts=True)
        share_F = count_F / num_ngrams_S[search_text_F]
        best = int(np.argmax(share_F))
        if share_F[best] < min_share:
            return None
        best_search_text = int(search_text_F[best])
        name = self.names[self.name_S[best_search_text]]
        best_ngrams = np.flatnonzero(np.isin(ngram_G, self.ngram_P[self.search_text_P == best_search_text]))
        first = self._first_ngram(text, best_ngrams)
        return Match(name, int(self.row_S[best_search_text]), float(share_F[best]), first)

    def _find_indexed(self, wording: Wording) -> tuple[I64, I64]:
        """Return the positions in a wording of n-grams that are in the index, and which of the G each is."""
        ngram_G, _, _ = self._distinct
        ngram_T = wording.ngram_hashes(self.length)
        index_T = np.minimum(np.searchsorted(ngram_G, ngram_T), len(ngram_G) - 1)
        positions = np.flatnonzero(ngram_G[index_T] == ngram_T)
        return positions, index_T[positions]

    def _first_ngram(self, text: str, wanted_ngrams: I64) -> str:
        """Return the words of the first n-gram of the text that is among `wanted_ngrams`, indices into the G."""
        for wording in iter_wordings(text, self.length):
            positions, index = self._find_indexed(wording)
            if len(own_positions := positions[np.isin(index, wanted_ngrams)]):
                return wording.ngram_text(int(own_positions[0]), self.length)
        raise AssertionError("the second search found none of the n-grams that the first one found")

    def tables(self) -> tuple[pa.Table, pa.Table]:
        """Return the index as a HELD_OUT_NGRAMS and a HELD_OUT_ROWS table."""
        ngrams = pa.table({"ngram": self.ngram_P, "search_text": self.search_text_P})
        names = pa.array([self.names[name] for name in self.name_S], pa.string())
        return ngrams, pa.table({"name": names, "row": self.row_S})

    @classmethod
    def from_tables(cls, ngrams: pa.Table, rows: pa.Table, length: int) -> Self:
        """Build the index from the result of `tables`."""
        names = sorted(set(rows["name"].to_pylist()))
        number = {name: i for i, name in enumerate(names)}
        name_S = np.array([number[name] for name in rows["name"].to_pylist()], np.int64)
        ngram_P, search_text_P = ngrams["ngram"].to_numpy(), ngrams["search_text"].to_numpy()
        return cls(length, tuple(names), ngram_P, search_text_P, name_S, rows["row"].to_numpy())


def _distinct_ngrams(text: str, length: int) -> NDArray[np.uint64]:
    return np.unique(np.concatenate([np.unique(wording.ngram_hashes(length)) for wording in iter_wordings(text, length)]))


def parse_choices(value: Any) -> tuple[list[str], list[str]]:
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
        raise ValueError("is neither a list of choices nor an object with the lists text and label")
    if not isinstance(labels, list) or (any(label is not None for label in labels) and len(labels) != len(value)):
        raise ValueError(f"has {len(value)} choices but {len(labels)} labels")
    return [str(choice) for choice in value], [str(label) for label in labels if label is not None]


def make_search_texts(
    text: str, length: int, *, answer: Any = None, choices: Sequence[str] = (), labels: Sequence[str] = ()
) -> list[str]:
    """Return the search texts of a row: a text, or a question with its answer and choices.

    `answer` is the text of the answer, or names a choice by its label, letter or number from 0. `length` is the number of words of
    an n-gram.
    """
    answer_text = _answer_text(answer, choices, labels)
    if not (answer_text or choices) or any(len(wording.words) >= length for wording in iter_wordings(text, length)):
        return [text]
    lettered = [" ".join(f"{name} {choice}" for name, choice in zip(names, choices, strict=False)) for names in (_LETTERS, labels)]
    continuations = [answer_text, f"answer {answer_text}" if answer_text else "", " ".join(choices), *lettered]
    return [f"{text} {rest}" for rest in dict.fromkeys(continuations) if rest]


def _answer_text(answer: Any, choices: Sequence[str], labels: Sequence[str]) -> str:
    """Return the text of an answer. An ambiguous one is read as, in this order: label, letter, text of a choice, number."""
    if isinstance(answer, dict) and "text" in answer:  # as in SQuAD
        answer = answer["text"]
    if isinstance(answer, list | tuple):
        return " ".join(_answer_text(one, choices, labels) for one in answer)
    if answer is None or isinstance(answer, bool):
        return "" if answer is None else str(answer)
    value = str(answer).strip()
    if value in labels:
        return choices[labels.index(value)]
    if isinstance(answer, str):
        if len(value) == 1 and value.upper() in _LETTERS[: len(choices)]:
            return choices[_LETTERS.index(value.upper())]
        if value in choices:
            return value
    if value.isascii() and value.isdigit() and int(value) < len(choices):
        return choices[int(value)]
    return value
