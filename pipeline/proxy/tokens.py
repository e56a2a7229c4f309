"""From text to the tokens that a proxy model reads.

Shapes: N tokens of a corpus.
"""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

_END = "<|end|>"  # after each document; also what the first token of a text is predicted from
_CHUNK = 512  # texts encoded at once


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE tokenizer with at most `vocabulary` entries: every text can be written in it, whatever its language.

    The same texts give the same tokenizer. All arms of a comparison share one; bits per byte compare across others.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def end_token(tokenizer: Tokenizer) -> int:
    """The token that ends a document."""
    return int(tokenizer.token_to_id(_END) or 0)  # it is the first


def encode_each(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[NDArray[np.uint16]]:
    """The tokens of each text, the end token last.

    A text that happens to hold the end token's letters is written with them, not with the token.
    """
    end = end_token(tokenizer)
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.encode_special_tokens = True
    rest = iter(texts)
    while chunk := list(itertools.islice(rest, _CHUNK)):
        for encoding in plain.encode_batch_fast(chunk, add_special_tokens=False):
            yield np.array([*encoding.ids, end], np.uint16)


def encode(tokenizer: Tokenizer, texts: Iterable[str], most: int) -> NDArray[np.uint16]:
    """(N,) the tokens of all texts, one after the other; at most `most`, and hardly a text is read beyond that."""
    pieces: list[NDArray[np.uint16]] = []
    held = 0
    for tokens in encode_each(tokenizer, texts):
        pieces.append(tokens)
        held += len(tokens)
        if held >= most:
            break
    return np.concatenate(pieces)[:most] if pieces else np.empty(0, np.uint16)
