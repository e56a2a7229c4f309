"""Word n-grams, by which filters compare two texts.

Shapes: W words, G n-grams (W - n + 1, or 0 if the text is shorter).
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import regex
import xxhash
from numpy.typing import NDArray

from pipeline.arrays import I64
from pipeline.text.words import IS_UNSPACED, iter_pieces, split_words

_HASH_FACTOR = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_HASH_FACTOR_INVERSE = pow(_HASH_FACTOR, -1, 1 << 64)
_PIECE_CHARACTERS = 100_000  # the words of such a piece take about 3 MB


@dataclass(frozen=True, eq=False)
class Wording:
    """The words of one text, and lazily computed values derived from them."""

    words: list[str]

    @cached_property
    def _prefix_sums(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        # Prefix sums of hash · f^position: the hash of an n-gram of any length is a difference of two of them.
        hashes = [xxhash.xxh3_64_intdigest(word.encode("utf-8", "surrogatepass")) for word in self.words]
        power = np.full(len(hashes), _HASH_FACTOR, dtype=np.uint64)
        power[:1] = 1
        np.multiply.accumulate(power, out=power)
        inverse = np.full(len(hashes), _HASH_FACTOR_INVERSE, dtype=np.uint64)
        inverse[:1] = 1
        np.multiply.accumulate(inverse, out=inverse)
        sums = np.zeros(len(hashes) + 1, dtype=np.uint64)
        np.cumsum(np.array(hashes, dtype=np.uint64) * power, out=sums[1:])
        return sums, inverse

    def ngram_hashes(self, n: int) -> NDArray[np.uint64]:
        """Return (G,) hashes of the n-grams, in order.

        Σ xxh3(word i) · f^i modulo 2^64, with i from 0 within the n-gram, so the hash does not depend on its position.
        """
        sums, inverse = self._prefix_sums
        return (sums[n:] - sums[: max(0, len(sums) - n)]) * inverse[: max(0, len(sums) - n)]

    @cached_property
    def ids(self) -> I64:
        """(W,) integers that are equal if and only if the words are."""
        known: dict[str, int] = {}
        return np.array([known.setdefault(word, len(known)) for word in self.words], dtype=np.int64)

    @cached_property
    def is_unspaced(self) -> bool:
        """Whether most words are characters of scripts without spaces; such a text has about twice as many words."""
        return sum(1 for word in self.words if len(word) <= 2 and IS_UNSPACED.match(word)) * 2 > len(self.words)

    def ngram_text(self, begin: int, n: int) -> str:
        """Return the words `begin` to `begin + n - 1` as text for a report."""
        return " ".join(self.words[begin : begin + n])

    def shared_mask(self, n: int, other: "Wording") -> NDArray[np.bool_]:
        """Return a (G,) mask of the n-grams that `other` contains too."""
        other_ngrams = set(other.ngram_hashes(n).tolist())
        return np.array([ngram in other_ngrams for ngram in self.ngram_hashes(n).tolist()], dtype=np.bool_)

    def covered_share(self, marked_G: NDArray[np.bool_], n: int) -> float:
        """Return the share of the words that lie in at least one of the marked n-grams."""
        if not len(self.words) or not marked_G.any():
            return 0.0
        # A marked n-gram at g covers the words g to g + n - 1: add 1 at g, subtract 1 at g + n, and take the cumulative sum.
        step = np.zeros(len(self.words) + 1, dtype=np.int64)
        begin = np.flatnonzero(marked_G)
        np.add.at(step, begin, 1)
        np.add.at(step, begin + n, -1)
        return float((np.cumsum(step[:-1]) > 0).mean())


def iter_wordings(text: str, n: int, size: int = _PIECE_CHARACTERS) -> Iterator[Wording]:
    """Yield the wordings of a text's pieces, in order, in bounded memory; each n-gram of the text is in exactly one of them.

    Each wording begins with the last n - 1 words before its piece.
    """
    last_words: list[str] = []
    for piece in iter_pieces(text, size):
        wording = Wording(last_words + split_words(piece))
        yield wording
        last_words = wording.words[max(0, len(wording.words) - n + 1) :]


@functools.lru_cache(maxsize=256)
def get_wording(text: str) -> Wording:
    """Return the wording of a text; cached, because prompts and examples recur with every answer."""
    return Wording(split_words(text))


_SCRIPTS = {
    "Chinese or Japanese": regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}]"),
    **{name: regex.compile(rf"\p{{{name}}}") for name in ("Hangul", "Cyrillic", "Arabic", "Thai", "Devanagari", "Hebrew")},
}
_LETTER = regex.compile(r"\p{L}")


def foreign_share(text: str, source: str) -> tuple[str, float]:
    """Return the script that has most letters of the text among those absent from the source, and its share of all letters.

    Returns ("", 0.0) if there is none. Latin is not considered: names, units and formulas use it in every language.
    """
    if text.isascii():
        return "", 0.0
    letters = max(1, len(_LETTER.findall(text)))
    shares = {name: len(pattern.findall(text)) / letters for name, pattern in _SCRIPTS.items()}
    foreign = {name: share for name, share in shares.items() if share and not _SCRIPTS[name].search(source)}
    largest = max(foreign, key=lambda name: foreign[name], default="")
    return largest, foreign.get(largest, 0.0)
