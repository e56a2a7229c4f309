"""Density ratio: the log odds that a window comes from the specialist sample and not from the generalist corpus.

The score is the mean of the log odds of two logistic regressions, one on the embedding, one on hashed words and word pairs. Both
are fitted on the sample against hash-chosen windows of the generalist. Their errors differ: the embedding finds a subject in any
wording but sees little else; the words show style and register but miss synonyms. The mean of the log odds is the geometric mean of
the two ratios, so neither counts in full. `mixture.strata` multiplies it with CRISP's weight of the cluster (docs/decisions/0011).

Shapes: N windows, S specialists, D width of the embedding, F hashed features.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.arrays import F32
from pipeline.scoring import Model, RatioKind, Rows
from pipeline.scoring.features import count_hashed_ngrams, fit_logistic, fit_words, score_words

_INVERSE_PENALTY = 3.0


class Density:
    """A `Scorer`; see the module."""

    ratio_kind: RatioKind = "odds"
    background_windows: int | None = 20_000

    def background(self, rows: Rows) -> Any:
        """(N, F) sparse log(1 + count) of hashed words and word pairs, and (N, D) embeddings."""
        return count_hashed_ngrams(rows.texts), rows.x_ND

    def fit(self, backgrounds: Sequence[Any], sample: Rows) -> Model:
        counts, vectors = zip(*backgrounds, strict=True)
        idf_F, words = fit_words(counts, sample.texts, _INVERSE_PENALTY)
        meaning = fit_logistic(sample.x_ND, np.concatenate(vectors), _INVERSE_PENALTY)
        bias = np.array([words[-1], meaning[-1]])
        return {"idf_F": idf_F, "words_F": words[:-1], "meaning_D": meaning[:-1], "bias": bias}

    def scores(self, models: Sequence[Model], rows: Rows, seed: int) -> F32:
        """(N, S) mean of the two log odds."""
        del seed
        words_FS = np.stack([model["words_F"] for model in models], axis=1)
        words_NS = score_words(rows.texts, models[0]["idf_F"], words_FS)  # idf is the generalist's: all models share it
        meaning_DS = np.stack([model["meaning_D"] for model in models], axis=1)
        bias_S = np.array([model["bias"].sum() for model in models])
        return np.asarray((words_NS + rows.x_ND.astype(np.float64) @ meaning_DS + bias_S) / 2, np.float32)
