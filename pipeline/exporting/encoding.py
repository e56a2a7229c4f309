"""From text to token ids in which no text passes for a special token."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.exporting import Tokenizer


@dataclass(frozen=True, slots=True)
class Encoded:
    """The ids of one text; what datatrove's writers use of a `tokenizers.Encoding`."""

    ids: list[int]


class TextEncoder:
    """Encodes texts with a tokenizer, and ends each with its `eos_token`, which no text holds before.

    A text that spells a special token ("<|endoftext|>", "</s>", "[SEP]") is encoded as the letters it is, so that no text ends
    before its end, or is masked where it speaks of tokenizers. Special ids that are left: the unknown token, for what the
    vocabulary cannot write; and without an `eos_token`, what the tokenizer's own template puts around every text, such as a BOS.

    Added tokens that are not special (runs of spaces in GPT-NeoX, `<tool_call>` in Qwen) are ordinary vocabulary: the model is to
    learn them from text that holds them, and code with its spaces spelled out would be twice as long. The `eos_token` counts as
    special whatever its file says.

    The methods have the names that datatrove's writers call.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        from tokenizers import Tokenizer as Fast

        self._fast = Fast.from_str(tokenizer.json)
        self._fast.encode_special_tokens = True  # neither the file nor a pickle keeps it
        self._special = {number: token.content for number, token in self._fast.get_added_tokens_decoder().items() if token.special}
        self._eos: list[int] = []
        if tokenizer.eos_token is not None:
            end = self._fast.token_to_id(tokenizer.eos_token)
            assert end is not None, "`read_tokenizer` checks it"
            self._eos = [end]
            self._special[end] = tokenizer.eos_token
        self._unknown = _unknown_id(self._fast, json.loads(tokenizer.json)["model"])

    def get_vocab_size(self) -> int:
        """Entries of the vocabulary, added tokens included."""
        return int(self._fast.get_vocab_size())

    def encode_batch(self, texts: Sequence[str]) -> list[Encoded]:
        """The ids of each text, in order."""
        encodings = self._fast.encode_batch(texts, add_special_tokens=not self._eos)
        return [Encoded([*self._ids(text, encoding), *self._eos]) for text, encoding in zip(texts, encodings, strict=True)]

    def _ids(self, text: str, encoding: Any) -> list[int]:
        ids: list[int] = encoding.ids
        if self._special.keys().isdisjoint(ids):
            return ids
        # Unigram and whole-word models have special tokens among their words, and find them in text.
        marked = zip(ids, encoding.special_tokens_mask, encoding.offsets, strict=True)
        return [number for one in marked for number in self._spelled_out(text, *one)]

    def _spelled_out(self, text: str, number: int, added: int, place: tuple[int, int]) -> Iterator[int]:
        """The ids instead of one of the text's: itself, or those of the letters of a special token."""
        letters = self._special.get(number)
        if letters is not None and number == self._unknown:
            found = text[slice(*place)]  # several unknown words in a row may be one token
            letters = found if letters in found else None
        if added or letters is None or len(letters) < 2:
            yield number
        else:
            for letter in letters:
                yield from (piece.id for piece in self._fast.model.tokenize(letter))


def _unknown_id(fast: Any, model: dict[str, Any]) -> int | None:
    token = model.get("unk_token")
    return model.get("unk_id") if token is None else fast.token_to_id(token)
