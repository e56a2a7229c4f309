"""The windows that a classifier of hashed n-grams holds most like the sample: what web-scale quality filters do, as a baseline.

Shapes: N windows, S specialists, F features.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.scoring import Model, Rows
from pipeline.scoring.features import fit_logistic, hashed_counts, inverse_frequencies, weighed

_STRENGTH = 10.0


class Classifier:
    """A `Scorer`."""

    draws: Literal["odds", "top"] = "top"
    background_windows: int | None = 20_000

    def background(self, rows: Rows) -> Any:
        """(N, F) counts."""
        return hashed_counts(rows.texts)

    def fit(self, backgrounds: Sequence[Any], sample: Rows) -> Model:
        import scipy.sparse as sp

        background_BF = sp.vstack(backgrounds).tocsr()
        idf_F = inverse_frequencies(background_BF)
        sample_PF = weighed(hashed_counts(sample.texts), idf_F)
        weights = fit_logistic(sample_PF, weighed(background_BF, idf_F), _STRENGTH)
        return {"idf_F": idf_F, "weight_F": weights[:-1], "bias": weights[-1:]}

    def scores(self, models: Sequence[Model], rows: Rows, seed: int) -> NDArray[np.float32]:
        """(N, S) log odds."""
        del seed
        tfidf_NF = weighed(hashed_counts(rows.texts), models[0]["idf_F"])  # of the generalist: the same in all
        weight_FS = np.stack([model["weight_F"] for model in models], axis=1)
        return np.asarray(tfidf_NF @ weight_FS + np.concatenate([model["bias"] for model in models]), np.float32)
