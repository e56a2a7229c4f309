"""Features of hashed words and word pairs, and logistic regression on features.

scikit-learn's `HashingVectorizer` counts the same n-grams at a third of the speed, because it joins each pair into a string. Here
the hash of a pair is computed from the hashes of its words, for all pairs at once.

Shapes: N windows, T words of all windows, U distinct words, F features, S specialists, B windows of the backgrounds.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from pipeline.arrays import F32, F64
from pipeline.hashing import keyed_hash
from pipeline.text.tfidf import apply_tfidf, compute_idf
from pipeline.text.words import SCORER_WORD

_FEATURE_BITS = 18
NUM_FEATURES = 1 << _FEATURE_BITS
_TEXTS_PER_BLOCK = 512  # so few that the arrays fit the CPU cache, and row (9 bits) and feature (18 bits) fit 32 bits
_MAX_ITERATIONS = 300


def count_hashed_ngrams(texts: Sequence[str]) -> Any:
    """(N, F) sparse log(1 + count) of hashed n-grams: lower-cased words, runs of punctuation, and pairs of neighbours."""
    import scipy.sparse as sp

    blocks = [_count_block(texts[start : start + _TEXTS_PER_BLOCK]) for start in range(0, len(texts), _TEXTS_PER_BLOCK)]
    return sp.vstack(blocks).tocsr() if blocks else sp.csr_matrix((0, NUM_FEATURES), dtype=np.float32)


def _count_block(texts: Sequence[str]) -> Any:
    import scipy.sparse as sp

    words_by_text = [SCORER_WORD.findall(text.lower()) for text in texts]
    word_T = pa.array(chain.from_iterable(words_by_text), pa.string()).dictionary_encode()
    hash_U = np.fromiter((xxhash.xxh3_64_intdigest(word) for word in word_T.dictionary.cast(pa.binary()).to_pylist()), np.uint64)
    hash_T = hash_U[word_T.indices.to_numpy()]
    row_T = np.repeat(np.arange(len(texts), dtype=np.uint32), [len(words) for words in words_by_text])

    second = 1 + np.flatnonzero(row_T[1:] == row_T[:-1])
    hash_pair = keyed_hash(hash_T[second - 1], seed=0, purpose="pairs", copy=hash_T[second])
    row = np.concatenate([row_T, row_T[second]])
    bucket = np.concatenate([hash_T, hash_pair]) >> np.uint64(64 - _FEATURE_BITS)
    cell, count = np.unique(row << np.uint32(_FEATURE_BITS) | bucket.astype(np.uint32), return_counts=True)
    starts = np.searchsorted(cell, np.arange(len(texts) + 1, dtype=np.uint32) << np.uint32(_FEATURE_BITS))
    features = (cell & np.uint32(NUM_FEATURES - 1)).astype(np.int32)
    return sp.csr_matrix((np.log1p(count).astype(np.float32), features, starts), shape=(len(texts), NUM_FEATURES))


def fit_words(backgrounds: Sequence[Any], texts: Sequence[str], inverse_penalty: float) -> tuple[F32, F64]:
    """(F,) inverse document frequencies in the backgrounds, and `fit_logistic` on tf-idf of the texts against the backgrounds."""
    import scipy.sparse as sp

    background_BF = sp.vstack(backgrounds).tocsr()
    idf_F = compute_idf(background_BF)
    return idf_F, fit_logistic(apply_tfidf(count_hashed_ngrams(texts), idf_F), apply_tfidf(background_BF, idf_F), inverse_penalty)


def score_words(texts: Sequence[str], idf_F: F32, weight_FS: F64) -> F64:
    """(N, S) log odds of the texts without the bias: tf-idf times weights."""
    return np.asarray(apply_tfidf(count_hashed_ngrams(texts), idf_F) @ weight_FS, np.float64)


def fit_logistic(sample: Any, background: Any, inverse_penalty: float) -> F64:
    """(features + 1,) weights, then the bias, of the log odds that a row belongs to the sample and not to the background.

    Sample and background have the same total weight, so the odds are a density ratio and do not depend on the size of either. Each
    row of the sample has weight 1 against a penalty of |weights|² / (2 · inverse_penalty), so a small sample gives odds closer to
    even.
    """
    import scipy.sparse as sp
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    rows = sp.vstack([sample, background]).tocsr() if sp.issparse(sample) else np.vstack([sample, background])
    num_sample, num_background = sample.shape[0], background.shape[0]
    weight = np.concatenate([np.ones(num_sample), np.full(num_background, num_sample / num_background)])
    is_sample = np.concatenate([np.ones(num_sample), np.zeros(num_background)])
    with threadpool_limits(1):  # so that the order of sums does not depend on the number of cores
        fitted = LogisticRegression(C=inverse_penalty, max_iter=_MAX_ITERATIONS).fit(rows, is_sample, sample_weight=weight)
    return np.append(fitted.coef_[0], fitted.intercept_[0])
