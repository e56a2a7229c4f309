"""DSIR (arXiv 2302.03169): importance weights of hashed n-grams, computed as in the authors' package `data-selection`.

Words and bigrams of the lower-cased text are hashed to 10,000 buckets. A window's log weight is
Σ counts · (log(p_target + 1e-8) - log(p_raw + 1e-8)). The windows with the largest log weight + Gumbel noise are taken, without
replacement. The noise is a keyed hash of the window. The log weight is a sum and grows with length, so windows should have the same
length.

Shapes: N windows, S specialists, B buckets, T words of all windows, P distinct bigrams.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.arrays import F32, F64, I64
from pipeline.hashing import keyed_uniform
from pipeline.scoring import Model, RatioKind, Rows
from pipeline.text.words import SCORER_WORD, SCORER_WORD_WITH_MARKS

BUCKETS = 10_000
_FEWEST_WORDS = 100  # as in the package, which leaves out shorter examples
_SMALL = 1e-8


class Dsir:
    """A `Scorer`; see the module."""

    ratio_kind: RatioKind = "top"
    background_windows: int | None = None

    def background(self, rows: Rows) -> I64:
        """(B,) occurrences of each bucket."""
        return counts(rows.texts)

    def fit(self, backgrounds: Sequence[Any], sample: Rows) -> Model:
        return {"log_ratio_B": _log_shares(counts(sample.texts)) - _log_shares(np.sum(backgrounds, axis=0))}

    def scores(self, models: Sequence[Model], rows: Rows, seed: int) -> F32:
        """(N, S) log weights with noise; -inf for fewer than 100 words. A window has the same noise for all specialists."""
        bucket_of, words_N = _buckets(rows.texts)
        weight_NS = np.stack([_sums(model["log_ratio_B"], bucket_of, words_N) for model in models], axis=1)
        noise_N = -np.log(-np.log(keyed_uniform(rows.key_N, seed=seed, purpose="dsir")))
        noisy_NS = np.where(words_N[:, None] >= _FEWEST_WORDS, weight_NS + noise_N[:, None], -np.inf)
        return noisy_NS.astype(np.float32)


def counts(texts: Sequence[str]) -> I64:
    """(B,) occurrences of each bucket in the texts, words and bigrams together."""
    (unigram_T, bigram_T), _ = _buckets(texts)
    return np.bincount(unigram_T, minlength=BUCKETS) + np.bincount(bigram_T[bigram_T >= 0], minlength=BUCKETS)


def log_weights(log_ratio_B: F64, texts: Sequence[str]) -> F64:
    """(N,) log importance weights, without noise."""
    return _sums(log_ratio_B, *_buckets(texts))


def _log_shares(count_B: I64) -> F64:
    return np.asarray(np.log(count_B / max(1, count_B.sum()) + _SMALL), np.float64)


def _buckets(texts: Sequence[str]) -> tuple[tuple[I64, I64], I64]:
    """(T,) bucket of each word, (T,) bucket of the bigram that begins with it (-1 for a text's last word), (N,) words per text.

    Each distinct word and bigram is hashed once; the package spends most of its time on hashing the same n-grams again.
    """
    number: dict[str, int] = {}
    word_T: list[int] = []
    words_N = np.zeros(len(texts), np.int64)
    for row, text in enumerate(texts):
        text = text.lower()
        words = (SCORER_WORD if text.isascii() else SCORER_WORD_WITH_MARKS).findall(text)  # `re` is faster
        words_N[row] = len(words)
        word_T += [number.setdefault(word, len(number)) for word in words]
    if not word_T:
        return (np.empty(0, np.int64), np.empty(0, np.int64)), words_N
    vocabulary = list(number)
    id_T = np.array(word_T, np.int64)
    unigram_T = np.array([_bucket(word) for word in vocabulary], np.int64)[id_T]
    pair_T = id_T * len(vocabulary) + np.append(id_T[1:], 0)
    last_T = np.zeros(len(id_T), bool)
    last_T[(np.cumsum(words_N) - 1)[words_N > 0]] = True
    pair_P, place_T = np.unique(pair_T[~last_T], return_inverse=True)
    bucket_P = [_bucket(f"{vocabulary[pair // len(number)]} {vocabulary[pair % len(number)]}") for pair in pair_P.tolist()]
    bigram_T = np.full(len(id_T), -1, np.int64)
    bigram_T[~last_T] = np.array(bucket_P, np.int64)[place_T]
    return (unigram_T, bigram_T), words_N


def _bucket(ngram: str) -> int:
    return int.from_bytes(hashlib.sha256(ngram.encode()).digest(), "big") % BUCKETS


def _sums(log_ratio_B: F64, bucket_of: tuple[I64, I64], words_N: I64) -> F64:
    unigram_T, bigram_T = bucket_of
    value_T = log_ratio_B[unigram_T] + np.where(bigram_T >= 0, log_ratio_B[bigram_T], 0.0)
    row_T = np.repeat(np.arange(len(words_N)), words_N)
    return np.bincount(row_T, weights=value_T, minlength=len(words_N)).astype(np.float64)
