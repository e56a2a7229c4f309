"""Train the tokenizer of proxy models, and encode texts with it.

Shapes: N tokens of a corpus.
"""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

_END = "<|end|>"  # ends each document; the first token of a text is predicted from it
_TEXTS_PER_CALL = 512


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


def get_end_token_id(tokenizer: Tokenizer) -> int:
    """The id of the token that ends a document."""
    return int(tokenizer.token_to_id(_END) or 0)  # id 0: special tokens come first


def encode_texts(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[NDArray[np.uint16]]:
    """Yield the tokens of each text, followed by the end token.

    If a text spells the end token, the spelling is encoded as ordinary characters.
    """
    end_id = get_end_token_id(tokenizer)
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.encode_special_tokens = True
    remaining = iter(texts)
    while chunk := list(itertools.islice(remaining, _TEXTS_PER_CALL)):
        for encoding in plain.encode_batch_fast(chunk, add_special_tokens=False):
            yield np.array([*encoding.ids, end_id], np.uint16)


def encode_corpus(tokenizer: Tokenizer, texts: Iterable[str], max_tokens: int) -> NDArray[np.uint16]:
    """(N,) the concatenated tokens of all texts, truncated to `max_tokens` tokens.

    Texts are read in chunks of 512, so up to 511 texts beyond the last one needed are read.
    """
    encoded: list[NDArray[np.uint16]] = []
    num_tokens = 0
    for tokens in encode_texts(tokenizer, texts):
        encoded.append(tokens)
        num_tokens += len(tokens)
        if num_tokens >= max_tokens:
            break
    return np.concatenate(encoded)[:max_tokens] if encoded else np.empty(0, np.uint16)
