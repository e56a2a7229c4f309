"""Latent semantic indexing: hashed words, sublinear tf, idf, and a truncated SVD fitted on the corpus itself.

It has no pretrained weights, so it works on any domain and on any language that separates words by spaces; it learns only the
synonyms that the corpus contains. The steps are those of scikit-learn's LSA example: HashingVectorizer, TfidfTransformer,
TruncatedSVD, Normalizer. References: Deerwester et al. 1990, "Indexing by latent semantic analysis"; Halko et al. 2011 for the
randomised SVD.

Shapes: N texts, F hashed features, D width of the embedding.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.arrays import F32
from pipeline.config import Embed
from pipeline.embedders import base_model
from pipeline.embedders.vectors import normalise_rows
from pipeline.errors import ConfigError
from pipeline.execution.cpu import processor_name
from pipeline.storage import Folder
from pipeline.text.tfidf import apply_tfidf, compute_idf

_NUM_FEATURES = 2**16  # 256 components take 67 MB
_ARTIFACT = "lsi.npz"


def identify(cfg: Embed) -> dict[str, Any]:
    """See `pipeline.embedders.identify`; the tokenizer is included because windows are cut with it."""
    return {"kind": "lsi", "source": {"tokenizer": base_model.identify_source(cfg)["tokenizer"]}, "dim": cfg.dim}


def fit(cfg: Embed, *, seed: int, folder: Folder, texts: Sequence[str]) -> dict[str, Any]:
    """See `pipeline.embedders.fit`."""
    from sklearn.decomposition import TruncatedSVD
    from threadpoolctl import threadpool_limits

    if len(texts) < cfg.dim:
        raise ConfigError(
            f"embed.dim must be at most the number of windows that lsi is fitted on, {len(texts)}, got {cfg.dim}; "
            "lower embed.dim, or add text"
        )
    tf_NF = _compute_sublinear_tf(texts)
    idf_F = compute_idf(tf_NF)
    svd = TruncatedSVD(cfg.dim, random_state=seed % 2**32)  # NumPy seeds have 32 bits
    with threadpool_limits(1):  # the order of sums must not depend on the number of cores
        svd.fit(apply_tfidf(tf_NF, idf_F))
    components_FD = np.ascontiguousarray(svd.components_.T, dtype=np.float32)
    # Rounding leaves about 1e-20 for features that never occurred. Set them to 0: otherwise a text of such words alone would be
    # normalised to a random direction.
    seen_F = np.bincount(tf_NF.indices, minlength=_NUM_FEATURES) > 0
    components_FD[~seen_F] = 0
    sink = io.BytesIO()
    np.savez(sink, idf_F=idf_F, components_FD=components_FD)
    folder.write_bytes(_ARTIFACT, sink.getvalue())
    return {"windows": len(texts), "features": int(seen_F.sum()), "variance": float(svd.explained_variance_ratio_.sum())}


def load(folder: Folder) -> "LsiEmbedder":
    """See `pipeline.embedders.load`."""
    with np.load(io.BytesIO(folder.read_bytes(_ARTIFACT)), allow_pickle=False) as arrays:
        return LsiEmbedder(arrays["idf_F"], arrays["components_FD"])


class LsiEmbedder:
    """An `Embedder` that uses one thread; see `pipeline.embedders.Embedder`."""

    def __init__(self, idf_F: F32, components_FD: F32) -> None:
        self._idf_F = idf_F
        self._components_FD = components_FD
        self.dim = components_FD.shape[1]
        self.hardware = {"device": processor_name(), "precision": "fp32", "threads": "1"}

    def encode(self, texts: Sequence[str]) -> F32:
        """See `pipeline.embedders.Embedder.encode`."""
        if not texts:
            return np.empty((0, self.dim), dtype=np.float32)
        return normalise_rows(apply_tfidf(_compute_sublinear_tf(texts), self._idf_F) @ self._components_FD)


def _compute_sublinear_tf(texts: Sequence[str]) -> Any:
    """(N, F) sparse matrix of 1 + log(count) of each hashed word."""
    from sklearn.feature_extraction.text import HashingVectorizer

    counts_NF = HashingVectorizer(n_features=_NUM_FEATURES, alternate_sign=False, norm=None, dtype=np.float32).transform(texts)
    counts_NF.data = 1 + np.log(counts_NF.data)
    return counts_NF
