"""Tf-idf of sparse counts, as in scikit-learn's `TfidfTransformer`, for callers that hash features and store the idf weights.

Shapes: N texts, F hashed features.
"""

from typing import Any

import numpy as np

from pipeline.arrays import F32


def compute_idf(tf_NF: Any) -> F32:
    """Return the idf: (F,) log((1 + N) / (1 + number of texts with the feature)) + 1."""
    num_texts, num_features = tf_NF.shape
    num_texts_F = np.bincount(tf_NF.indices, minlength=num_features)  # a row holds each feature at most once
    return np.asarray(np.log((1 + num_texts) / (1 + num_texts_F)) + 1, np.float32)


def apply_tfidf(tf_NF: Any, idf_F: F32) -> Any:
    """Return the (N, F) tf-idf as a new matrix with rows of L2 norm 1."""
    from sklearn.preprocessing import normalize

    tfidf_NF = tf_NF.copy()
    tfidf_NF.data *= idf_F[tfidf_NF.indices]
    return normalize(tfidf_NF, copy=False)
