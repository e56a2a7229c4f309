"""Encode texts to token ids such that text that spells a special token is never encoded as that token."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.exporting import Tokenizer


@dataclass(frozen=True, slots=True)
class Encoded:
    """The ids of one text: the part of a `tokenizers.Encoding` that datatrove's writers use."""

    ids: list[int]


class TextEncoder:
    """Encodes texts with a tokenizer and appends the `eos_token` to each; the id of that token occurs only at the end of a text.

    A text that spells a special token ("<|endoftext|>", "</s>", "[SEP]") is encoded as ordinary characters. Otherwise a trainer
    would see the end of a text too early, or mask passages about tokenizers. Two kinds of special ids remain: the unknown token,
    for characters outside the vocabulary; and, without an `eos_token`, the tokens that the tokenizer's own template puts around
    every text, such as BOS.

    Added tokens that are not special (runs of spaces in GPT-NeoX, `<tool_call>` in Qwen) are ordinary vocabulary: the model should
    learn them from text that contains them, and code would be twice as long if runs of spaces were split. The `eos_token` counts
    as special even if the tokenizer's file does not mark it so. See docs/decisions/0021.

    The method names are those that datatrove's writers call.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        from tokenizers import Tokenizer as Fast

        self._fast = Fast.from_str(tokenizer.json)
        self._fast.encode_special_tokens = True  # neither tokenizer.json nor pickling preserves this flag
        self._special_by_id = {
            token_id: token.content for token_id, token in self._fast.get_added_tokens_decoder().items() if token.special
        }
        self._eos_ids: list[int] = []
        if tokenizer.eos_token is not None:
            eos_id = self._fast.token_to_id(tokenizer.eos_token)
            assert eos_id is not None, "`read_tokenizer` checks it"
            self._eos_ids = [eos_id]
            self._special_by_id[eos_id] = tokenizer.eos_token
        self._unknown_id = _find_unknown_id(self._fast, json.loads(tokenizer.json)["model"])

    def get_vocab_size(self) -> int:
        """Number of entries in the vocabulary, added tokens included."""
        return int(self._fast.get_vocab_size())

    def encode_batch(self, texts: Sequence[str]) -> list[Encoded]:
        """The ids of each text, in the order of `texts`."""
        encodings = self._fast.encode_batch(texts, add_special_tokens=not self._eos_ids)
        return [
            Encoded([*self._replace_special_ids(text, encoding), *self._eos_ids])
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def _replace_special_ids(self, text: str, encoding: Any) -> list[int]:
        ids: list[int] = encoding.ids
        if self._special_by_id.keys().isdisjoint(ids):
            return ids
        # Unigram and whole-word models have the special tokens in their vocabulary and still match them in text.
        tokens = zip(ids, encoding.special_tokens_mask, encoding.offsets, strict=True)
        return [token_id for token in tokens for token_id in self._respell(text, *token)]

    def _respell(self, text: str, token_id: int, added: int, span: tuple[int, int]) -> Iterator[int]:
        """Yield the ids to use for one id of a text: the id itself or, if text matched a special token, the ids of its characters.

        `added` is 1 for a token that the tokenizer's template added; `span` is the character range in `text`.
        """
        characters = self._special_by_id.get(token_id)
        if characters is not None and token_id == self._unknown_id:
            covered = text[slice(*span)]  # one unknown token may cover several consecutive words
            characters = covered if characters in covered else None
        if added or characters is None or len(characters) < 2:
            yield token_id
        else:
            for character in characters:
                yield from (token.id for token in self._fast.model.tokenize(character))


def _find_unknown_id(fast: Any, model: dict[str, Any]) -> int | None:
    token = model.get("unk_token")
    return model.get("unk_id") if token is None else fast.token_to_id(token)
