"""Documents into windows: runs of at most `tokens` tokens which, joined in order, are the document."""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import orjson

STRETCH_CHARACTERS = 200_000  # tokenised at once: about 5 MB of tokenizer state for English, 25 MB at worst
CHARACTERS_PER_TOKEN = 32  # most in a window: BERT makes one token of any word over 100 characters, and none of blanks


def stretches(text: str) -> Iterator[str]:
    """The text in pieces of at most `STRETCH_CHARACTERS`, joined the text; a window never crosses their borders.

    A stretch ends after the last line feed in its last quarter, else after the last space there, else where it is full. A run
    of consecutive stretches, joined, is cut into the same stretches again.
    """
    begin = 0
    while len(text) - begin > STRETCH_CHARACTERS:
        full = begin + STRETCH_CHARACTERS
        earliest = full - STRETCH_CHARACTERS // 4
        end = (text.rfind("\n", earliest, full) + 1) or (text.rfind(" ", earliest, full) + 1) or full
        yield text[begin:end]
        begin = end
    if begin < len(text):
        yield text[begin:]


class WindowCutter:
    """Cuts texts into windows by the tokens of one `tokenizer.json`. Loads the tokenizer when used.

    Tokens are counted without special tokens, with the file's own truncation and padding switched off. One instance uses one
    core: more workers, not more threads, use more.

    Args:
        tokenizer_file: local path of a `tokenizer.json`.
        tokens: most tokens of a window.
    """

    def __init__(self, tokenizer_file: str, tokens: int) -> None:
        with open(tokenizer_file, encoding="utf-8") as file:
            self._json = file.read()
        self.tokens = tokens

    def __getstate__(self) -> dict[str, Any]:
        # The file's content travels, not its path: other machines may not have it.
        return {"_json": self._json, "tokens": self.tokens}

    @cached_property
    def identity(self) -> str:
        """SHA-256 of the tokenizer's JSON without truncation and padding, which are not used. It does not cover `tokens`."""
        settings = orjson.loads(self._json)
        counted = {key: value for key, value in settings.items() if key not in ("truncation", "padding")}
        return hashlib.sha256(orjson.dumps(counted, option=orjson.OPT_SORT_KEYS)).hexdigest()

    @property
    def _tokenizer(self) -> Any:
        from pipeline.text.token_cache import token_ids

        return token_ids(self._json)

    def count(self, text: str) -> int:
        """Tokens of a text, without special ones."""
        return len(self._tokenizer.encoding(text))

    def cut(self, texts: Sequence[str]) -> list[list[tuple[str, int]]]:
        """For each text its windows, in order: their text and number of tokens, which is at least 1.

        A window ends before a word if one begins within its last quarter, else within a word, never within a character, and at
        the end of a stretch. White space between two windows belongs to the first. No window is longer than 32 characters times
        `tokens`; what is (a run of blanks, an endless word) is split further, and a piece in which no token begins counts 1.
        Only where one character alone has more than `tokens` tokens does a window have more. An empty text has no windows.
        """
        return [[window for stretch in stretches(text) for window in self._cut_stretch(stretch)] for text in texts]

    def _cut_stretch(self, stretch: str) -> Iterator[tuple[str, int]]:
        encoding = self._tokenizer.encoding(stretch)
        num_tokens = len(encoding)
        first, begin = 0, 0
        while num_tokens - first > self.tokens:
            last = self._last_token(encoding, first, num_tokens)
            end = encoding.token_to_chars(last)[0] if last < num_tokens else len(stretch)
            yield from self._bounded(encoding, stretch, begin, end, first, last)
            first, begin = last, end
        yield from self._bounded(encoding, stretch, begin, len(stretch), first, num_tokens)

    def _last_token(self, encoding: Any, first: int, num_tokens: int) -> int:
        """The token before which the window that begins at token `first` ends."""
        full = first + self.tokens
        word = encoding.token_to_word(full)
        for last in range(full, full - self.tokens // 4, -1):
            word_before = encoding.token_to_word(last - 1)
            if word != word_before:
                return last
            word = word_before
        # Byte-level tokens may be parts of a character: they share its place in the text.
        last = full
        while last > first and encoding.token_to_chars(last - 1)[1] > encoding.token_to_chars(last)[0]:
            last -= 1
        if last == first:
            last = full
            while last < num_tokens and encoding.token_to_chars(last - 1)[1] > encoding.token_to_chars(last)[0]:
                last += 1
        return last

    def _bounded(self, encoding: Any, text: str, begin: int, end: int, first: int, last: int) -> Iterator[tuple[str, int]]:
        """The characters `begin:end`, tokens `first:last`, in pieces of bounded length; before a token where that is possible."""
        longest = CHARACTERS_PER_TOKEN * self.tokens
        while end - begin > longest:
            after = bisect_right(range(last), begin + longest, lo=first, key=lambda token: encoding.token_to_chars(token)[0])
            border = encoding.token_to_chars(after - 1)[0] if after > first else begin
            if border > begin:
                after -= 1
            else:
                border = begin + longest
            yield text[begin:border], max(1, after - first)
            begin, first = border, after
        if begin < end:
            yield text[begin:end], max(1, last - first)
