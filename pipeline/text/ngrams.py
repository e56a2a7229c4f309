"""Words of any language, and the runs of them that two texts share: what filters compare instead of characters.

Shapes: W words, G runs of `n` words (W - n + 1 of them, or none).
"""

import functools
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import regex
import xxhash
from numpy.typing import NDArray

from pipeline.arrays import I64

# Written without spaces: each of their characters is a word of its own.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_WORD = regex.compile(rf"(?V1)[[{_UNSPACED}]&&[\p{{L}}\p{{N}}]]\p{{M}}*|[[\p{{L}}\p{{N}}\p{{M}}]--[{_UNSPACED}]]+")
# Two faster patterns, for most texts: neither ASCII nor what lies before Thai has such a script.
_ASCII_WORD = re.compile(r"[a-z0-9]+")
_SPACED_WORD = regex.compile(r"[\p{L}\p{N}\p{M}]+")
_FIRST_UNSPACED = "\u0e00"
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_INVERSE = pow(_FACTOR, -1, 1 << 64)
_IS_UNSPACED = regex.compile(rf"[{_UNSPACED}]")
_PIECE_CHARACTERS = 100_000  # their words take some 3 MB
# After these nothing reaches across: no word, no number such as 3.14, no composed character, no capital sigma, whose small form
# depends on its neighbours. Of the signs only those that datatrove's MinHash takes for spaces.
_BREAKS = r"\s!?;(){}\[\]\"|*&/\\+#%$@~。、，！？；（）「」【】《》"
_LAST_BREAK = regex.compile(rf"(?rV0)[{_BREAKS}]")


def words(text: str) -> list[str]:
    """The words of a text: runs of letters, digits and marks, NFKC and casefolded; of a script without spaces each character."""
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    folded = unicodedata.normalize("NFKC", text).casefold()
    found: list[str] = (_SPACED_WORD if max(folded) < _FIRST_UNSPACED else _WORD).findall(folded)
    return found


def pieces(text: str, size: int) -> Iterator[str]:
    """The text in pieces of at most `size` characters, so that memory does not grow with it; their words are the text's.

    A piece ends after white space or a sign; only where `size` characters pass without one, between any two.
    """
    begin = 0
    while len(text) - begin > size:
        last = _LAST_BREAK.search(text, begin, begin + size)
        end = last.end() if last else begin + size
        yield text[begin:end]
        begin = end
    yield text[begin:] if begin else text


@dataclass(frozen=True, eq=False)
class Wording:
    """The words of one text, with what is computed from them when first asked for."""

    words: list[str]

    @cached_property
    def _sums(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        # Sums of the words' hashes, each times the power of its place: a run's is a difference, for any length.
        hashes = [xxhash.xxh3_64_intdigest(word.encode("utf-8", "surrogatepass")) for word in self.words]
        power = np.full(len(hashes), _FACTOR, dtype=np.uint64)
        power[:1] = 1
        np.multiply.accumulate(power, out=power)
        inverse = np.full(len(hashes), _INVERSE, dtype=np.uint64)
        inverse[:1] = 1
        np.multiply.accumulate(inverse, out=inverse)
        sums = np.zeros(len(hashes) + 1, dtype=np.uint64)
        np.cumsum(np.array(hashes, dtype=np.uint64) * power, out=sums[1:])
        return sums, inverse

    def runs(self, n: int) -> NDArray[np.uint64]:
        """(G,) hashes of the runs of `n` words, in order: Σ xxh3(word i) · f^i modulo 2^64, the same wherever the run stands."""
        sums, inverse = self._sums
        return (sums[n:] - sums[: max(0, len(sums) - n)]) * inverse[: max(0, len(sums) - n)]

    @cached_property
    def ids(self) -> I64:
        """(W,) numbers of the words, equal where the words are."""
        known: dict[str, int] = {}
        return np.array([known.setdefault(word, len(known)) for word in self.words], dtype=np.int64)

    @cached_property
    def unspaced(self) -> bool:
        """Whether most words are single characters, of which it takes about twice as many to say the same."""
        return sum(1 for word in self.words if len(word) <= 2 and _IS_UNSPACED.match(word)) * 2 > len(self.words)

    def run(self, begin: int, n: int) -> str:
        """The words of a run, for a reader."""
        return " ".join(self.words[begin : begin + n])

    def shared(self, n: int, other: "Wording") -> NDArray[np.bool_]:
        """(G,) which of the runs of `n` words `other` has too."""
        there = set(other.runs(n).tolist())
        return np.array([run in there for run in self.runs(n).tolist()], dtype=np.bool_)

    def covered(self, in_run_G: NDArray[np.bool_], n: int) -> float:
        """Share of the words that lie in the runs marked."""
        if not len(self.words) or not in_run_G.any():
            return 0.0
        # A run marked at g covers the words g to g + n - 1: steps up and down, summed.
        step = np.zeros(len(self.words) + 1, dtype=np.int64)
        begin = np.flatnonzero(in_run_G)
        np.add.at(step, begin, 1)
        np.add.at(step, begin + n, -1)
        return float((np.cumsum(step[:-1]) > 0).mean())


def wordings(text: str, n: int, size: int = _PIECE_CHARACTERS) -> Iterator[Wording]:
    """The wordings of a text's pieces, for a text of any length: each run of `n` words is in one of them, in order.

    A piece's begins with the last n - 1 words before it.
    """
    before: list[str] = []
    for piece in pieces(text, size):
        found = Wording(before + words(piece))
        yield found
        before = found.words[max(0, len(found.words) - n + 1) :]


@functools.lru_cache(maxsize=256)
def wording(text: str) -> Wording:
    """The wording of a text; kept, for prompts and examples come again with each answer."""
    return Wording(words(text))


_SCRIPTS = {
    "Chinese or Japanese": regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}]"),
    **{name: regex.compile(rf"\p{{{name}}}") for name in ("Hangul", "Cyrillic", "Arabic", "Thai", "Devanagari", "Hebrew")},
}
_LETTER = regex.compile(r"\p{L}")


def foreign_share(text: str, source: str) -> tuple[str, float]:
    """The script with most letters of the text among those that the source does not use, and its share; ("", 0.0) without one.

    Latin is none of them: names, units and formulas are written in it everywhere.
    """
    if text.isascii():
        return "", 0.0
    letters = max(1, len(_LETTER.findall(text)))
    shares = {name: len(of.findall(text)) / letters for name, of in _SCRIPTS.items()}
    foreign = {name: share for name, share in shares.items() if share and not _SCRIPTS[name].search(source)}
    most = max(foreign, key=lambda name: foreign[name], default="")
    return most, foreign.get(most, 0.0)
