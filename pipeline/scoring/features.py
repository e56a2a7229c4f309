"""Hashed words and word pairs of a text, as scikit-learn counts them, and the logistic regression that reads them.

Shapes: N windows, F features, P windows of a sample, B windows of a background.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_FEATURES = 2**18
_TOKEN = r"\w+|[^\w\s]+"
_MOST_STEPS = 300


def hashed_counts(texts: Sequence[str]) -> Any:
    """(N, F) sparse log(1 + count) of the lower-cased words, runs of punctuation, and pairs of them, by their hash."""
    from sklearn.feature_extraction.text import HashingVectorizer

    counts_NF = HashingVectorizer(
        token_pattern=_TOKEN, ngram_range=(1, 2), n_features=NUM_FEATURES, alternate_sign=False, norm=None, dtype=np.float32
    ).transform(texts)
    counts_NF.data = np.log1p(counts_NF.data)
    return counts_NF


def inverse_frequencies(counts_NF: Any) -> NDArray[np.float32]:
    """(F,) log((N + 1) / (windows that hold the feature + 1)) + 1."""
    held_F = np.bincount(counts_NF.indices, minlength=NUM_FEATURES)  # each row names a feature once
    return np.asarray(np.log((counts_NF.shape[0] + 1) / (held_F + 1)) + 1, np.float32)


def weighed(counts_NF: Any, idf_F: NDArray[np.float32]) -> Any:
    """(N, F) sparse tf-idf, rows of length 1."""
    from sklearn.preprocessing import normalize

    weighed_NF = counts_NF.copy()
    weighed_NF.data *= idf_F[weighed_NF.indices]
    return normalize(weighed_NF, copy=False)


def fit_logistic(sample: Any, background: Any, strength: float) -> NDArray[np.float64]:
    """(features + 1,) weights and, last, the bias of the log odds that a row is of the sample and not of the background.

    Both sides count alike, so that the odds are a density ratio whatever share of the corpus the sample's kind is. A row of the
    sample counts as one against a penalty of |weights|² / (2 · strength): a small sample is held closer to no opinion.
    """
    import scipy.sparse as sp
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    rows = sp.vstack([sample, background]).tocsr() if sp.issparse(sample) else np.vstack([sample, background])
    num_sample, num_background = sample.shape[0], background.shape[0]
    weight = np.concatenate([np.ones(num_sample), np.full(num_background, num_sample / num_background)])
    is_sample = np.concatenate([np.ones(num_sample), np.zeros(num_background)])
    with threadpool_limits(1):  # sums in one order, whatever the number of cores
        fitted = LogisticRegression(C=strength, max_iter=_MOST_STEPS).fit(rows, is_sample, sample_weight=weight)
    return np.append(fitted.coef_[0], fitted.intercept_[0])
