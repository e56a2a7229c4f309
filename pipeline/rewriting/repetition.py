"""Detect answers that repeat themselves more than their source does.

The shares of duplicate sentences and n-grams follow MassiveText (Gopher, arXiv 2112.11446, table A1), but are compared with those
of the source: a poem has a refrain, a list a pattern.

Shapes: W words, G n-grams.
"""

import re
import zlib

import numpy as np

from pipeline.text.ngrams import Wording

_MAX_PERIOD_WORDS = 60  # words in the repeated unit
_MIN_LOOP_WORDS, _MIN_LOOP_REPETITIONS = 24, 4
_NGRAM_WORDS = 8
_MAX_NGRAM_SHARE = 0.25  # share of the words in repeated 8-grams; MassiveText allows 0.14 of the characters
_MAX_SENTENCE_SHARE, _MIN_SENTENCES = 0.3, 3  # repeated sentences; MassiveText allows 0.3 of the lines
_MAX_COMPRESSION, _MIN_COMPRESSION_BYTES = 4.5, 400  # zlib ratio, of texts of 400 bytes or more; prose has 1.6 to 2.2, a table 3
_MAX_EXCESS = 0.15  # a share must exceed the source's by this
_MAX_RELATIVE_COMPRESSION = 1.6  # the ratio must exceed the source's by this factor
_SENTENCE_END = re.compile(r"[.!?。！？؟।\n]+")


def find_repetition(text: str, text_wording: Wording, source: str, source_wording: Wording) -> str:
    """Describe what the answer repeats, with numbers; return "" if it repeats no more than allowed."""
    num_words, period = _find_loop(text_wording)
    if num_words and num_words > 1.5 * _find_loop(source_wording)[0]:
        return f"{num_words} words in a row repeat with a period of {period}"
    share = _repeated_ngram_share(text_wording)
    if share > _MAX_NGRAM_SHARE and share > _repeated_ngram_share(source_wording) + _MAX_EXCESS:
        return f"{share:.0%} of the words are in repeated {_NGRAM_WORDS}-grams"
    share, num_repeated = _count_repeated_sentences(text)
    max_share = _count_repeated_sentences(source)[0] + _MAX_EXCESS
    if share > _MAX_SENTENCE_SHARE and num_repeated >= _MIN_SENTENCES and share > max_share:
        return f"{share:.0%} of the sentences are repeated"
    ratio = _compression_ratio(text)
    if ratio > _MAX_COMPRESSION and ratio > _MAX_RELATIVE_COMPRESSION * _compression_ratio(source):
        return f"compression ratio {ratio:.1f}"
    return ""


def _find_loop(wording: Wording) -> tuple[int, int]:
    """Return length and period, in words, of a loop: words that each equal the word `period` words before; (0, 0) without one.

    The loop is the longest of the shortest period that has a loop.
    """
    ids_W = wording.ids
    for period in range(1, min(_MAX_PERIOD_WORDS, len(ids_W) // _MIN_LOOP_REPETITIONS) + 1):
        same = ids_W[period:] == ids_W[:-period]
        min_length = max(_MIN_LOOP_WORDS, _MIN_LOOP_REPETITIONS * period) - period
        if np.count_nonzero(same) >= min_length:
            edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]])))
            longest = int((edges[1::2] - edges[::2]).max(initial=0))
            if longest >= min_length:
                return longest + period, period
    return 0, 0


def _repeated_ngram_share(wording: Wording) -> float:
    """Return the share of words within 8-grams that occur earlier in the text."""
    ngram_G = wording.ngram_hashes(_NGRAM_WORDS)
    repeated_G = np.ones(len(ngram_G), dtype=np.bool_)
    repeated_G[np.unique(ngram_G, return_index=True)[1]] = False
    return wording.covered_share(repeated_G, _NGRAM_WORDS)


def _count_repeated_sentences(text: str) -> tuple[float, int]:
    """Return share and number of repeated sentences and lines, of those with at least 12 characters."""
    sentences = [" ".join(part.casefold().split()) for part in _SENTENCE_END.split(text)]
    long = [sentence for sentence in sentences if len(sentence) >= 12]
    num_repeated = len(long) - len(set(long))
    return num_repeated / max(1, len(long)), num_repeated


def _compression_ratio(text: str) -> float:
    raw = text.encode("utf-8", "surrogatepass")
    return len(raw) / len(zlib.compress(raw, 6)) if len(raw) >= _MIN_COMPRESSION_BYTES else 1.0
