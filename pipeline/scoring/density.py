"""The log odds that a window is of the sample and not of the generalist corpus: by what it means, and by what words it uses.

Two logistic regressions, one on the embedding and one on hashed words and word pairs, fitted on the sample against a hash-chosen
part of the generalist; the score is the mean of their log odds. They err differently: the embedding sees a subject in any words but
knows only subjects, the words see manner and register but no synonyms. Neither is trusted whole, as their mean is their geometric
mean as ratios; `mixture.strata` multiplies that with CRISP's weight of the cluster (docs/decisions/0011).

Shapes: N windows, S specialists, D width of the embedding, F hashed features.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.arrays import F32
from pipeline.scoring import Draws, Model, Rows
from pipeline.scoring.features import fit_logistic, fit_words, hashed_counts, word_scores

_STRENGTH = 3.0


class Density:
    """A `Scorer`."""

    draws: Draws = "odds"
    background_windows: int | None = 20_000

    def background(self, rows: Rows) -> Any:
        """(N, F) counts and (N, D) embeddings."""
        return hashed_counts(rows.texts), rows.x_ND

    def fit(self, backgrounds: Sequence[Any], sample: Rows) -> Model:
        counts, vectors = zip(*backgrounds, strict=True)
        idf_F, words = fit_words(counts, sample.texts, _STRENGTH)
        meaning = fit_logistic(sample.x_ND, np.concatenate(vectors), _STRENGTH)
        bias = np.array([words[-1], meaning[-1]])
        return {"idf_F": idf_F, "words_F": words[:-1], "meaning_D": meaning[:-1], "bias": bias}

    def scores(self, models: Sequence[Model], rows: Rows, seed: int) -> F32:
        """(N, S) mean of the two log odds."""
        del seed
        words_FS = np.stack([model["words_F"] for model in models], axis=1)
        words_NS = word_scores(rows.texts, models[0]["idf_F"], words_FS)  # frequencies are the generalist's: the same in all
        meaning_DS = np.stack([model["meaning_D"] for model in models], axis=1)
        bias_S = np.array([model["bias"].sum() for model in models])
        return np.asarray((words_NS + rows.x_ND.astype(np.float64) @ meaning_DS + bias_S) / 2, np.float32)
