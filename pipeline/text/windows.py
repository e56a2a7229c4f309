"""Cuts documents into windows of at most `tokens` consecutive tokens; the windows, joined in order, are the document."""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import orjson

BLOCK_CHARACTERS = 200_000  # tokenized at once: about 5 MB of tokenizer state for English, 25 MB at worst
# A window has at most this many characters per token: BERT makes one token of any word over 100 characters, and none of blanks.
CHARACTERS_PER_TOKEN = 32


def split_blocks(text: str) -> Iterator[str]:
    """Yield the text in blocks of at most `BLOCK_CHARACTERS`; no window crosses their borders.

    A block ends after the last line feed in its last quarter, else after the last space there, else at the maximum length.
    Consecutive blocks, joined, are cut into the same blocks again.
    """
    begin = 0
    while len(text) - begin > BLOCK_CHARACTERS:
        full = begin + BLOCK_CHARACTERS
        earliest = full - BLOCK_CHARACTERS // 4
        end = (text.rfind("\n", earliest, full) + 1) or (text.rfind(" ", earliest, full) + 1) or full
        yield text[begin:end]
        begin = end
    if begin < len(text):
        yield text[begin:]


class WindowCutter:
    """Cuts texts into windows by the tokens of one `tokenizer.json`. Loads the tokenizer on first use.

    Tokens are counted without special tokens; truncation and padding from the file are disabled. One instance uses one core: to
    use more cores, start more workers, not threads.

    Args:
        tokenizer_file: local path of a `tokenizer.json`.
        tokens: limit for the tokens of a window.
    """

    def __init__(self, tokenizer_file: str, tokens: int) -> None:
        with open(tokenizer_file, encoding="utf-8") as file:
            self._json = file.read()
        self.tokens = tokens

    def __getstate__(self) -> dict[str, Any]:
        # Send the file's content, not its path, which other machines may not have.
        return {"_json": self._json, "tokens": self.tokens}

    @cached_property
    def identity(self) -> str:
        """SHA-256 of the tokenizer's JSON without truncation and padding, which are not used. It does not cover `tokens`."""
        settings = orjson.loads(self._json)
        counted = {key: value for key, value in settings.items() if key not in ("truncation", "padding")}
        return hashlib.sha256(orjson.dumps(counted, option=orjson.OPT_SORT_KEYS)).hexdigest()

    @property
    def _tokenizer(self) -> Any:
        from pipeline.text.token_cache import load_caching_tokenizer

        return load_caching_tokenizer(self._json)

    def count(self, text: str) -> int:
        """Return the number of tokens of a text, without special tokens."""
        return len(self._tokenizer.encode(text))

    def cut(self, texts: Sequence[str]) -> list[list[tuple[str, int]]]:
        """Return for each text its windows, in order, as (text, number of tokens); the number is at least 1.

        A window ends before a word if a word begins within its last quarter, else within a word; never within a character. It also
        ends at the end of a block. White space between two windows belongs to the first. A window of more than 32 · `tokens`
        characters (many blanks, a very long word) is split further; a piece in which no token begins counts as 1 token. A window
        has more than `tokens` tokens only if a single character has. An empty text has no windows.
        """
        return [[window for block in split_blocks(text) for window in self._cut_block(block)] for text in texts]

    def _cut_block(self, block: str) -> Iterator[tuple[str, int]]:
        encoding = self._tokenizer.encode(block)
        num_tokens = len(encoding)
        first, begin = 0, 0
        while num_tokens - first > self.tokens:
            last = self._window_end(encoding, first, num_tokens)
            end = encoding.token_to_chars(last)[0] if last < num_tokens else len(block)
            yield from self._split_long_window(encoding, block, begin, end, first, last)
            first, begin = last, end
        yield from self._split_long_window(encoding, block, begin, len(block), first, num_tokens)

    def _window_end(self, encoding: Any, first: int, num_tokens: int) -> int:
        """Return the exclusive end, in tokens, of the window that begins at token `first`."""
        full = first + self.tokens
        word = encoding.token_to_word(full)
        for last in range(full, full - self.tokens // 4, -1):
            word_before = encoding.token_to_word(last - 1)
            if word != word_before:
                return last
            word = word_before
        # Byte-level tokens may be parts of one character; their character ranges then overlap.
        last = full
        while last > first and encoding.token_to_chars(last - 1)[1] > encoding.token_to_chars(last)[0]:
            last -= 1
        if last == first:
            last = full
            while last < num_tokens and encoding.token_to_chars(last - 1)[1] > encoding.token_to_chars(last)[0]:
                last += 1
        return last

    def _split_long_window(
        self, encoding: Any, text: str, begin: int, end: int, first: int, last: int
    ) -> Iterator[tuple[str, int]]:
        """Yield the characters `begin:end`, tokens `first:last`, in windows of bounded length, cut before a token if possible."""
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
