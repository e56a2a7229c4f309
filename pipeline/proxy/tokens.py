"""Train the tokenizer of proxy models, and encode texts with it.

Shapes: N tokens of a corpus.
"""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

_END = "<|end|>"  # ends each document; the first token of a text is predicted from it
_CHUNK = 512  # texts encoded in one call


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer with at most `vocabulary` entries; it can encode text in any language.

    The same texts give the same tokenizer. All arms of a comparison share one tokenizer, although bits per byte are comparable
    between tokenizers too.
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
    """The id of the token that ends a document."""
    return int(tokenizer.token_to_id(_END) or 0)  # id 0: special tokens come first


def encode_each(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[NDArray[np.uint16]]:
    """The tokens of each text, followed by the end token.

    A text that contains the spelling of the end token is encoded as ordinary characters.
    """
    end = end_token(tokenizer)
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.encode_special_tokens = True
    rest = iter(texts)
    while chunk := list(itertools.islice(rest, _CHUNK)):
        for encoding in plain.encode_batch_fast(chunk, add_special_tokens=False):
            yield np.array([*encoding.ids, end], np.uint16)


def encode(tokenizer: Tokenizer, texts: Iterable[str], most: int) -> NDArray[np.uint16]:
    """(N,) the concatenated tokens of all texts, truncated to `most` tokens.

    Texts are read in chunks of 512, so up to 511 texts beyond the last one needed are read.
    """
    pieces: list[NDArray[np.uint16]] = []
    held = 0
    for tokens in encode_each(tokenizer, texts):
        pieces.append(tokens)
        held += len(tokens)
        if held >= most:
            break
    return np.concatenate(pieces)[:most] if pieces else np.empty(0, np.uint16)
