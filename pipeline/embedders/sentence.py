"""Embeddings from a sentence-transformers model, with its own batching.

Texts are tokenised once, sorted by number of tokens and batched, so that batches contain almost no padding
(`SentenceTransformer.encode` sorts by characters, which leaves some). On a CPU, batches are small enough for its cache.

Shapes: N texts, S segments of at most `max_tokens` tokens (S = N if pool is head), B rows and T tokens of a batch, D width of the
embedding.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from pipeline.arrays import F32
from pipeline.config import Embed
from pipeline.embedders import base_model
from pipeline.embedders.vectors import normalise_rows
from pipeline.errors import ConfigError
from pipeline.execution.cpu import processor_has_bf16, processor_name

# The activations of a small batch stay in a core's share of the cache. Measured for MiniLM and 256 tokens, in windows/s of one
# EPYC (Zen 3) core, by rows per batch: 2: 14.1, 4: 14.1, 8: 14.6, 16: 11.8, 32: 11.5.
_MAX_CPU_BATCH_TOKENS = 2048


def identify(cfg: Embed) -> dict[str, Any]:
    """See `pipeline.embedders.identify`."""
    _check_max_tokens(cfg)
    settings = {name: getattr(cfg, name) for name in ("max_tokens", "pool", "precision", "batch_size")}
    return {"kind": "sentence", "source": base_model.identify_source(cfg), **settings}


def load(cfg: Embed, *, threads: int) -> "SentenceEmbedder":
    """See `pipeline.embedders.load`."""
    _check_max_tokens(cfg)
    limit_tokenizer_threads(threads)
    return SentenceEmbedder(cfg, load_model(cfg, threads=threads), threads=threads)


def load_model(cfg: Embed, *, threads: int, device: str | None = None) -> Any:
    """The SentenceTransformer in fp32 and evaluation mode, on `device`; by default on the GPU if one is visible, else on the CPU.

    Raises:
        ConfigError: sentence-transformers is not installed, or the model cannot be loaded, for instance
            because it contains code that would have to be run.
    """
    folder = base_model.find_model_folder(cfg)
    try:
        import torch
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging
    except ImportError as error:
        raise ConfigError(f'embed.model {cfg.model} needs torch: run `pip install "crispwrap[embed]"`') from error
    torch.set_num_threads(threads)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # one bar per worker would clutter the output
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model = SentenceTransformer(folder, device=device, trust_remote_code=False, local_files_only=True)
    except (ImportError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"embed.model {cfg.model} cannot be loaded ({reason}); use a complete model that needs no code of its own"
        ) from error
    return model.float().eval()  # transformers keeps the checkpoint's dtype, which may be half


def limit_tokenizer_threads(threads: int) -> None:
    """Limit the tokenizers of this process to `threads` threads; effective only before they first run in parallel."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    os.environ["RAYON_NUM_THREADS"] = str(threads)


class SentenceEmbedder:
    """An `Embedder` that wraps a loaded model; see `pipeline.embedders.Embedder`."""

    def __init__(self, cfg: Embed, model: Any, *, threads: int) -> None:
        self._cfg = cfg
        self._model = model
        self._device = model.device
        precision = resolve_precision(cfg, self._device.type)
        self.dim = int(model.get_embedding_dimension())
        self.hardware = {"device": _get_device_name(self._device), "precision": precision, "threads": str(threads)}
        self._prompt = model.prompts.get(model.default_prompt_name) if model.default_prompt_name else None
        self._tokenizer = None if self._prompt else _copy_text_tokenizer(model)
        if self._tokenizer is None and cfg.pool == "mean":
            raise ConfigError(
                "embed.pool: mean needs a plain text transformer with a fast tokenizer and no prompt, but embed.model is "
                f"{cfg.model}; use embed.pool: head"
            )
        if self._tokenizer is None:
            model.max_seq_length = cfg.max_tokens
        else:
            self._tokenizer.no_padding()
            self._tokenizer.enable_truncation(cfg.max_tokens)
        self._autocast = precision != "fp32"
        if self._autocast and self._device.type == "cuda" and self._tokenizer is not None:
            # Half-precision weights are faster than autocast on a GPU, but slower than fp32 on a CPU. Pooling is fp32 in any case.
            model[0].to(_get_dtype(precision))
            self._autocast = False

    def encode(self, texts: Sequence[str]) -> F32:
        """See `pipeline.embedders.Embedder.encode`."""
        import torch

        if not texts:
            return np.empty((0, self.dim), dtype=np.float32)
        with torch.inference_mode(), autocast_context(self._device.type, self.hardware["precision"] if self._autocast else "fp32"):
            if self._tokenizer is None:
                return normalise_rows(self._model.encode(list(texts), batch_size=self._cfg.batch_size, show_progress_bar=False))
            encodings = self._tokenizer.encode_batch_fast(list(texts))
            if self._cfg.pool == "head":
                return self._encode_ids([encoding.ids for encoding in encodings])
            # The tokenizer returns the tokens beyond `max_tokens` as further segments, each with its own special tokens.
            segments_N = [[encoding, *encoding.overflowing] for encoding in encodings]
            ids_S = [segment.ids for segments in segments_N for segment in segments]
            num_special = self._tokenizer.num_special_tokens_to_add(is_pair=False)
            weight_S = np.array([len(ids) - num_special for ids in ids_S], dtype=np.float32)
            weight_S = np.maximum(weight_S, 1)  # an empty text is one segment of special tokens only
            first_N = np.cumsum([0, *(len(segments) for segments in segments_N[:-1])])
            return normalise_rows(np.add.reduceat(self._encode_ids(ids_S) * weight_S[:, None], first_N, axis=0))

    def _encode_ids(self, ids_S: list[list[int]]) -> F32:
        """(S, D) unit vectors, one for each list of token ids, in order."""
        max_batch_tokens = _MAX_CPU_BATCH_TOKENS if self._device.type == "cpu" else None
        rows_by_batch = list(make_batches([len(ids) for ids in ids_S], self._cfg.batch_size, max_batch_tokens))
        # Copy results to the host only at the end, so that the GPU never waits for a copy between batches.
        outputs = [self._forward([ids_S[row] for row in rows]) for rows in rows_by_batch]
        x_SD = np.empty((len(ids_S), self.dim), dtype=np.float32)
        for rows, output in zip(rows_by_batch, outputs, strict=True):
            x_SD[rows] = output.cpu().numpy()
        return normalise_rows(x_SD)

    def _forward(self, ids_B: list[list[int]]) -> Any:
        """(B, D) float32 tensor on the device: the output of the model's modules applied in sequence to a padded batch."""
        import torch

        tokenizer = self._model.tokenizer
        longest = max(len(ids) for ids in ids_B)
        ids_BT = np.full((len(ids_B), longest), tokenizer.pad_token_id or 0, dtype=np.int64)
        mask_BT = np.zeros_like(ids_BT)
        for row, ids in enumerate(ids_B):
            span = slice(longest - len(ids), longest) if tokenizer.padding_side == "left" else slice(len(ids))
            ids_BT[row, span] = ids
            mask_BT[row, span] = 1
        features = {"input_ids": torch.from_numpy(ids_BT), "attention_mask": torch.from_numpy(mask_BT)}
        features = {name: value.to(self._device, non_blocking=True) for name, value in features.items()}
        first, *rest = self._model
        features = first(features)
        features["token_embeddings"] = features["token_embeddings"].float()
        for module in rest:
            features = module(features)
        return features["sentence_embedding"].float()


def make_batches(num_tokens_S: Sequence[int], batch_size: int, max_batch_tokens: int | None) -> Iterator[list[int]]:
    """The row numbers of each batch, longest rows first, ties in input order.

    A batch has at most `batch_size` rows and, if given, at most `max_batch_tokens` tokens including padding, but at least one row.
    With the longest rows first, a GPU runs out of memory in the first batch or never.
    """
    order = np.argsort(-np.asarray(num_tokens_S), kind="stable").tolist()
    start = 0
    while start < len(order):
        num_rows = batch_size
        if max_batch_tokens is not None:
            num_rows = min(batch_size, max(1, max_batch_tokens // max(1, num_tokens_S[order[start]])))
        yield order[start : start + num_rows]
        start += num_rows


def _check_max_tokens(cfg: Embed) -> None:
    limit = base_model.read_position_limit(cfg)
    if limit is not None and cfg.max_tokens > limit:
        raise ConfigError(
            f"embed.max_tokens must be at most {limit}, the number of positions of {cfg.model}, got {cfg.max_tokens}; "
            "lower it, and use embed.pool: mean to read longer windows"
        )


def _copy_text_tokenizer(model: Any) -> Any:
    """A copy of the model's fast tokenizer; None if the model is not a text-only transformer or its tokenizer is not a fast one."""
    from sentence_transformers.sentence_transformer.modules import Transformer
    from tokenizers import Tokenizer

    first = model[0]
    if (
        not isinstance(first, Transformer)
        or set(first.modality_config) != {"text"}
        or not getattr(first.tokenizer, "is_fast", False)
    ):
        return None
    return Tokenizer.from_str(first.tokenizer.backend_tokenizer.to_str())


def resolve_precision(cfg: Embed, device: str) -> str:
    """Resolve `embed.precision` for a device type (cpu or cuda): fp32, bf16 or fp16.

    Raises:
        ConfigError: the setting is fp16 and the device is a CPU.
    """
    if cfg.precision == "fp16" and device == "cpu":
        raise ConfigError("embed.precision fp16 needs a GPU, but this process runs on a CPU; use bf16 or fp32")
    if cfg.precision != "auto":
        return cfg.precision
    if device == "cuda":
        import torch

        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "bf16" if processor_has_bf16() else "fp32"


def autocast_context(device: str, precision: str) -> AbstractContextManager[Any]:
    """A context manager: inside it, torch multiplies matrices in `precision`, in this thread only."""
    import torch

    if precision == "fp32":
        return nullcontext()
    context: AbstractContextManager[Any] = torch.autocast(device, dtype=_get_dtype(precision))
    return context


def _get_dtype(precision: str) -> Any:
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]


def _get_device_name(device: Any) -> str:
    import torch

    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else processor_name()
