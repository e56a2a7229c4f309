"""A baseline, as in web-scale quality filters: a classifier on hashed n-grams, and the windows that it scores highest.

Shapes: N windows, S specialists, F features.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.arrays import F32
from pipeline.scoring import Model, RatioKind, Rows
from pipeline.scoring.features import count_hashed_ngrams, fit_words, score_words

_INVERSE_PENALTY = 10.0


class Classifier:
    """A `Scorer`: the log odds of a logistic regression, sample against background, on tf-idf of hashed words and word pairs."""

    ratio_kind: RatioKind = "top"
    background_windows: int | None = 20_000

    def background(self, rows: Rows) -> Any:
        """(N, F) sparse log(1 + count) of hashed words and word pairs."""
        return count_hashed_ngrams(rows.texts)

    def fit(self, backgrounds: Sequence[Any], sample: Rows) -> Model:
        idf_F, weights = fit_words(backgrounds, sample.texts, _INVERSE_PENALTY)
        return {"idf_F": idf_F, "weight_F": weights[:-1], "bias": weights[-1:]}

    def scores(self, models: Sequence[Model], rows: Rows, seed: int) -> F32:
        """(N, S) log odds."""
        del seed
        weight_FS = np.stack([model["weight_F"] for model in models], axis=1)
        words_NS = score_words(rows.texts, models[0]["idf_F"], weight_FS)  # idf is the generalist's: all models share it
        return np.asarray(words_NS + np.concatenate([model["bias"] for model in models]), np.float32)
