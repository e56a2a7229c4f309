"""Tf-idf of sparse counts, as scikit-learn's `TfidfTransformer` weighs them; for those that hash words, and store the weights.

Shapes: N texts, F hashed features.
"""

from typing import Any

import numpy as np

from pipeline.arrays import F32


def inverse_frequencies(tf_NF: Any) -> F32:
    """(F,) log((1 + N) / (1 + texts that hold the feature)) + 1."""
    num_texts, num_features = tf_NF.shape
    texts_F = np.bincount(tf_NF.indices, minlength=num_features)  # each row names a feature once
    return np.asarray(np.log((1 + num_texts) / (1 + texts_F)) + 1, np.float32)


def weighed(tf_NF: Any, idf_F: F32) -> Any:
    """(N, F) tf-idf with rows of length 1, as new matrix."""
    from sklearn.preprocessing import normalize

    weighed_NF = tf_NF.copy()
    weighed_NF.data *= idf_F[weighed_NF.indices]
    return normalize(weighed_NF, copy=False)
