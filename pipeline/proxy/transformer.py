"""The proxy model, a small Qwen3 (Llama with normalised queries and keys) from transformers, and its bits per byte on text.

Shapes: D documents, B contexts of a batch, T tokens of a context.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from pipeline.arrays import F64, I64
from pipeline.execution.cpu import processor_has_bf16
from pipeline.proxy.settings import SHAPES, ProxySettings
from pipeline.proxy.tokens import encode_texts, get_end_token_id

# Limits of a batch whose bits are measured; the logits take at most half a gigabyte in float32.
_MAX_BATCH_CONTEXTS = 64
_MAX_BATCH_LOGITS = 1 << 27


def make_model(settings: ProxySettings, tokenizer: Tokenizer, seed: int) -> Any:
    """A model with random weights. For given settings they depend only on `seed`; the global random state is left unchanged."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = SHAPES[settings.size]
    config = Qwen3Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=shape.width,
        intermediate_size=64 * round(shape.width * 8 / 3 / 64),
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=shape.width // shape.heads,
        max_position_embeddings=settings.context,
        tie_word_embeddings=True,
        bos_token_id=get_end_token_id(tokenizer),
        eos_token_id=get_end_token_id(tokenizer),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)


@dataclass(frozen=True)
class CodeLength:
    """Code length of each document under a model, in bits, and its size in bytes of UTF-8."""

    bits_D: F64
    bytes_D: I64

    @property
    def bits_per_byte(self) -> float:
        """Total bits of all documents divided by their total bytes."""
        return float(self.bits_D.sum() / self.bytes_D.sum())


@torch.inference_mode()
def measure_bits(model: Any, tokenizer: Tokenizer, texts: Sequence[str], settings: ProxySettings) -> CodeLength:
    """Measure the bits that the model needs to encode each text, including its end token.

    Long texts are cut into contexts that overlap by half, so that each token after the first context is predicted from at least
    half a context. Bits are divided by bytes, not by tokens, so that results with different tokenizers are comparable.
    """
    model.eval()
    device = next(model.parameters()).device
    bits_D = np.zeros(len(texts))
    batch: list[tuple[int, I64, int]] = []

    def measure_batch() -> None:
        longest = max(len(tokens) for _, tokens, _ in batch)
        input_BT = torch.zeros((len(batch), longest), dtype=torch.long)
        counted_BT = torch.zeros((len(batch), longest), dtype=torch.bool)
        for row, (_, tokens, first) in enumerate(batch):
            input_BT[row, : len(tokens)] = torch.from_numpy(tokens)
            counted_BT[row, first : len(tokens)] = True
        with autocast_context(settings, device):
            logits = model(input_BT.to(device), use_cache=False).logits[:, :-1]
        nats_BT = torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2), input_BT[:, 1:].to(device), reduction="none"
        ).cpu()
        nats_B = (nats_BT.double() * counted_BT[:, 1:]).sum(1).numpy()
        for (document, _, _), nats in zip(batch, nats_B, strict=True):
            bits_D[document] += nats / np.log(2)
        batch.clear()

    # Sort by length, so that batches contain little padding.
    batch_size = min(_MAX_BATCH_CONTEXTS, max(1, _MAX_BATCH_LOGITS // (settings.context * model.config.vocab_size)))
    contexts = sorted(_cut_contexts(tokenizer, texts, settings.context), key=lambda context: len(context[1]))
    for context in contexts:
        batch.append(context)
        if len(batch) == batch_size:
            measure_batch()
    if batch:
        measure_batch()
    return CodeLength(bits_D, np.array([len(text.encode()) for text in texts], np.int64))


def _cut_contexts(tokenizer: Tokenizer, texts: Sequence[str], size: int) -> Iterator[tuple[int, I64, int]]:
    """Yield for each context: the document number, the tokens, and the position of the first token that is counted.

    Each text begins with an end token, from which its first token is predicted. Every token after it is counted exactly once.
    """
    end_id = get_end_token_id(tokenizer)
    for document, text_tokens in enumerate(encode_texts(tokenizer, texts)):
        tokens = np.concatenate([[end_id], text_tokens]).astype(np.int64)
        counted = 1
        start = 0
        while counted < len(tokens):
            stop = min(start + size, len(tokens))
            yield document, tokens[start:stop], counted - start
            counted = stop
            start = stop - size // 2


def autocast_context(settings: ProxySettings, device: torch.device) -> Any:
    """A context manager that enables bf16 if `precision` is bf16, or auto on hardware with bf16; otherwise it does nothing."""
    has_bf16 = torch.cuda.is_bf16_supported() if device.type == "cuda" else processor_has_bf16()
    enabled = settings.precision == "bf16" or (settings.precision == "auto" and has_bf16)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)
