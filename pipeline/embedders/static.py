"""A static embedder: one vector per token, distilled from a sentence-transformers model, and summed over the whole window.

The method is that of model2vec (Tulkens and van Dongen, 2024): embed each token of the vocabulary alone, reduce the dimension by
PCA, and down-weight frequent tokens by SIF (Arora et al. 2017, "A simple but tough-to-beat baseline for sentence embeddings",
eq. 1). Frequencies are estimated from a token's rank in the vocabulary by Zipf's law, so distillation needs no text. Encoding
needs no torch: windows are the rows of a sparse matrix of token counts, and their vectors are its product with the table.

Shapes: N texts, V tokens of the vocabulary, H width of the base model, D width of the embedding.
"""

import io
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays import F32, I64
from pipeline.config import Embed
from pipeline.embedders import base_model
from pipeline.embedders.sentence import autocast_context, limit_tokenizer_threads, load_model, resolve_precision
from pipeline.embedders.vectors import normalise_rows
from pipeline.errors import ConfigError
from pipeline.execution import cache
from pipeline.execution.cpu import processor_name
from pipeline.storage import Folder

_METHOD_VERSION = 1  # increment when a code change alters the table of a model
_TABLE, _TOKENIZER = "static.npz", "tokenizer.json"
_TOKENS_PER_BATCH = 512
_TEXTS_PER_BLOCK = 512
# The weighting was chosen on 450 windows of 254 tokens of mixed real text. The two numbers are the overlap of the 10 nearest
# neighbours with MiniLM's and the rank correlation of all cosines. log(1 + rank), rank by id: 0.304, 0.41; SIF with 1e-4, rank by
# id: 0.317, 0.42; this: 0.363, 0.47; SIF with the frequencies in the text itself: 0.363, 0.49. Tokens embedded without [CLS] and
# [SEP] around them: 0.265, 0.37. See docs/decisions/0006.
_SIF_A = 1e-5
_LETTER_RANK = 100
_UNUSED_TOKEN = re.compile(r"\[unused\d+\]")
_WORD_MARKS = ("##", "▁", "Ġ")  # WordPiece, SentencePiece and byte-level BPE mark the start or the inside of a word


def identify(cfg: Embed) -> dict[str, Any]:
    """See `pipeline.embedders.identify`."""
    return {"kind": "static", "source": base_model.identify_source(cfg), "dim": cfg.dim, "precision": cfg.precision}


def fit(cfg: Embed, *, folder: Folder, threads: int = 1) -> dict[str, Any]:
    """Write the table distilled from the base model, and its tokenizer, to `folder`; return facts for the manifest.

    Distilling MiniLM takes half a minute on one core. The table is cached on this machine, so later calls are fast.

    Raises:
        ConfigError: `embed.dim` is more than the base model's width, or the model is not a plain text transformer.
    """
    with open(base_model.find_tokenizer_file(cfg), encoding="utf-8") as file:
        tokenizer_json = file.read()
    precision = _resolve_cpu_precision(cfg)
    environment = {"processor": processor_name(), "precision": precision, "libraries": _find_library_versions()}
    identity = {"method": _METHOD_VERSION, **identify(cfg), **environment}  # the resolved precision replaces the configured one
    content = cache.load_or_compute("static", identity, lambda: _distil(cfg, tokenizer_json, precision, threads))
    folder.write_bytes(_TABLE, content)
    folder.write_bytes(_TOKENIZER, tokenizer_json.encode())
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return {name: arrays[name].item() for name in ("tokens", "base_dim", "variance", "precision")}


def _find_library_versions() -> dict[str, str]:
    """Versions of the libraries that distillation computes with; missing ones are left out, because a cached table needs none."""
    versions = {}
    for package in ("numpy", "tokenizers", "torch", "transformers", "sentence-transformers"):
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def _resolve_cpu_precision(cfg: Embed) -> str:
    """Precision of the base model during distillation.

    Distillation always runs on the CPU, so a GPU changes nothing; fp16, which CPUs do not support, becomes fp32.
    """
    return "fp32" if cfg.precision == "fp16" else resolve_precision(cfg, "cpu")


def _distil(cfg: Embed, tokenizer_json: str, precision: str, threads: int) -> bytes:
    """Bytes of an .npz file with the (V, D) `table_VD` in float16, and facts. Rows of special and unused tokens are zero."""
    from threadpoolctl import threadpool_limits
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokens_V = [tokenizer.id_to_token(token) or "" for token in range(max(tokenizer.get_vocab().values()) + 1)]
    special = {token["content"] for token in json.loads(tokenizer_json)["added_tokens"] if token["special"]}
    kept_V = np.array([bool(token) and token not in special and not _UNUSED_TOKEN.fullmatch(token) for token in tokens_V])
    with threadpool_limits(1):  # the order of sums must not depend on the number of cores
        x_VH = _embed_tokens(cfg, np.flatnonzero(kept_V), precision, threads)
        table_VD = np.zeros((len(tokens_V), cfg.dim), dtype=np.float32)
        table_VD[kept_V], variance = _project_pca(x_VH, cfg.dim)
    table_VD *= _compute_sif_weights(tokens_V, kept_V)[:, None]
    sink = io.BytesIO()
    facts = {"tokens": int(kept_V.sum()), "base_dim": x_VH.shape[1], "variance": variance, "precision": precision}
    np.savez(sink, table_VD=table_VD.astype(np.float16), **facts)
    return sink.getvalue()


def load(folder: Folder, *, threads: int) -> "StaticEmbedder":
    """See `pipeline.embedders.load`."""
    limit_tokenizer_threads(threads)
    with np.load(io.BytesIO(folder.read_bytes(_TABLE)), allow_pickle=False) as arrays:
        table_VD, precision = arrays["table_VD"].astype(np.float32), str(arrays["precision"])
    return StaticEmbedder(table_VD, folder.read_bytes(_TOKENIZER).decode(), distilled=precision, threads=threads)


class StaticEmbedder:
    """An `Embedder`; see `pipeline.embedders.Embedder`."""

    def __init__(self, table_VD: F32, tokenizer_json: str, *, distilled: str, threads: int) -> None:
        from pipeline.text.token_cache import load_caching_tokenizer

        self._table_VD = table_VD
        self._token_ids = load_caching_tokenizer(tokenizer_json)
        self.dim = table_VD.shape[1]
        self.hardware = {"device": processor_name(), "precision": "fp32", "threads": str(threads), "distilled": distilled}

    def encode(self, texts: Sequence[str]) -> F32:
        """See `pipeline.embedders.Embedder.encode`."""
        blocks = [self._sum_vectors(texts[start : start + _TEXTS_PER_BLOCK]) for start in range(0, len(texts), _TEXTS_PER_BLOCK)]
        return normalise_rows(np.concatenate(blocks)) if blocks else np.empty((0, self.dim), dtype=np.float32)

    def _sum_vectors(self, texts: Sequence[str]) -> F32:
        """(N, D) sums of token vectors, added in the order of the tokens in each text."""
        from scipy.sparse import csr_array

        ids = self._token_ids(texts)
        start_N = np.cumsum([0, *(len(row) for row in ids)])
        token = np.concatenate(ids)
        ones = np.ones(len(token), dtype=np.float32)
        sums_ND: F32 = csr_array((ones, token, start_N), shape=(len(ids), len(self._table_VD))) @ self._table_VD
        return sums_ND


def _embed_tokens(cfg: Embed, token_V: I64, precision: str, threads: int) -> F32:
    """(V, H) last hidden states of the base model, averaged over a single token and the special tokens around it.

    V counts the tokens in `token_V` only. Each batch runs on one thread, so the result does not depend on `threads`.

    Raises:
        ConfigError: the base model is not a transformer.
    """
    import torch
    from tokenizers import Tokenizer

    model = load_model(cfg, threads=1, device="cpu")
    if not hasattr(model[0], "auto_model"):
        raise ConfigError(
            f"embed.model {cfg.model}: only a transformer can be distilled, and this model is not one; use it without static:"
        )
    tokenizer = Tokenizer.from_file(base_model.find_tokenizer_file(cfg))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    example = tokenizer.encode("a")
    body = [position for position, is_special in enumerate(example.special_tokens_mask) if not is_special]
    before, after = example.ids[: body[0]], example.ids[body[-1] + 1 :]

    def embed_batch(start: int) -> F32:
        rows = [[*before, token, *after] for token in token_V[start : start + _TOKENS_PER_BATCH].tolist()]
        ids = torch.tensor(rows)
        with torch.inference_mode(), autocast_context("cpu", precision):
            states = model[0]({"input_ids": ids, "attention_mask": torch.ones_like(ids)})["token_embeddings"]
            vectors: F32 = states.float().mean(dim=1).numpy()
        return vectors

    with ThreadPoolExecutor(threads) as pool:
        return np.concatenate(list(pool.map(embed_batch, range(0, len(token_V), _TOKENS_PER_BATCH))))


def _project_pca(x_VH: F32, dim: int) -> tuple[F32, float]:
    """(V, D) projections onto the first principal components, and the fraction of the variance that they explain.

    Deterministic: uses the eigenvectors of the float64 covariance, with the sign that makes the largest entry of each positive.

    Raises:
        ConfigError: `dim` is larger than H.
    """
    if dim > x_VH.shape[1]:
        raise ConfigError(
            f"embed.dim must be at most {x_VH.shape[1]}, the width of the distilled model, got {dim}; lower embed.dim"
        )
    centred_VH = x_VH - x_VH.mean(axis=0, dtype=np.float64)
    value_H, vector_HH = np.linalg.eigh(centred_VH.T @ centred_VH)
    basis_HD = vector_HH[:, ::-1][:, :dim]
    basis_HD = basis_HD * np.sign(basis_HD[np.abs(basis_HD).argmax(axis=0), np.arange(dim)])
    return (centred_VH @ basis_HD).astype(np.float32), float(value_H[::-1][:dim].sum() / value_H.sum())


def _compute_sif_weights(tokens_V: Sequence[str], kept_V: NDArray[np.bool_]) -> F32:
    """(V,) SIF weights a / (a + p), where the probability p of a token follows from its rank by Zipf's law.

    Vocabularies list words by descending frequency, but single characters in a separate block. Punctuation is therefore assumed
    to be as frequent as the first word, and letters and digits as frequent as the hundredth.
    """
    body_V = [_strip_mark(token) for token in tokens_V]
    single_V = np.array([len(body) == 1 for body in body_V])
    rank_V = np.cumsum(kept_V & ~single_V) - 1
    rank_V[single_V] = [_LETTER_RANK if body.isalnum() else 0 for body in body_V if len(body) == 1]
    p_V = 1 / (rank_V + 2.0)
    weight_V: F32 = (_SIF_A / (_SIF_A + p_V / p_V[kept_V].sum())).astype(np.float32)
    return weight_V


def _strip_mark(token: str) -> str:
    for mark in _WORD_MARKS:
        token = token.removeprefix(mark)
    return token
