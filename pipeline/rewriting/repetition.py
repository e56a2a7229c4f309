"""Detect answers that repeat themselves more than their source does.

The shares of duplicate sentences and runs follow MassiveText (Gopher, arXiv 2112.11446, table A1), but are compared with those of
the source: a poem has a refrain, a list a pattern.

Shapes: W words, G runs of words.
"""

import re
import zlib

import numpy as np

from pipeline.text.ngrams import Wording

_LONGEST_PERIOD = 60  # words in the repeated unit
_LOOP_WORDS, _LOOP_TIMES = 24, 4  # a loop has at least so many words and repetitions
_RUN = 8
_MOST_IN_RUNS = 0.25  # share of the words in runs of 8 that occur earlier; MassiveText allows 0.14 of the characters in runs of 8
_MOST_SENTENCES, _FEWEST_SENTENCES = 0.3, 3  # repeated, as a share and a number; MassiveText allows 0.3 of the lines
_MOST_COMPRESSION, _LEAST_BYTES = 4.5, 400  # zlib ratio, of texts of 400 bytes or more; prose has 1.6 to 2.2, a table 3
_MORE = 0.15  # a share must exceed the source's by this
_MORE_COMPRESSION = 1.6  # the ratio must exceed the source's by this factor
_SENTENCE_END = re.compile(r"[.!?。！？؟।\n]+")


def found(text: str, answered: Wording, source: str, given: Wording) -> str:
    """Describe what the answer repeats, with numbers; return "" if it repeats no more than allowed."""
    num, period = _loop(answered)
    if num and num > 1.5 * _loop(given)[0]:
        return f"{num} words in a row repeat every {period}"
    share = _in_runs(answered)
    if share > _MOST_IN_RUNS and share > _in_runs(given) + _MORE:
        return f"{share:.0%} of the words lie in runs of {_RUN} said before"
    share, again = _sentences(text)
    if share > _MOST_SENTENCES and again >= _FEWEST_SENTENCES and share > _sentences(source)[0] + _MORE:
        return f"{share:.0%} of the sentences are said before"
    ratio = _compression(text)
    if ratio > _MOST_COMPRESSION and ratio > _MORE_COMPRESSION * _compression(source):
        return f"compresses {ratio:.1f} times"
    return ""


def _loop(of: Wording) -> tuple[int, int]:
    """Return length and period, in words, of a loop: words that each equal the word `period` words before; (0, 0) without one.

    The loop is the longest of the shortest period that has a loop.
    """
    ids_W = of.ids
    for period in range(1, min(_LONGEST_PERIOD, len(ids_W) // _LOOP_TIMES) + 1):
        same = ids_W[period:] == ids_W[:-period]
        least = max(_LOOP_WORDS, _LOOP_TIMES * period) - period
        if np.count_nonzero(same) >= least:
            edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]])))
            longest = int((edges[1::2] - edges[::2]).max(initial=0))
            if longest >= least:
                return longest + period, period
    return 0, 0


def _in_runs(of: Wording) -> float:
    """Return the share of words within runs of 8 words that occur earlier in the text."""
    run_G = of.runs(_RUN)
    before_G = np.ones(len(run_G), dtype=np.bool_)
    before_G[np.unique(run_G, return_index=True)[1]] = False
    return of.covered(before_G, _RUN)


def _sentences(text: str) -> tuple[float, int]:
    """Return share and number of repeated sentences and lines, of those with at least 12 characters."""
    sentences = [" ".join(part.casefold().split()) for part in _SENTENCE_END.split(text)]
    long = [sentence for sentence in sentences if len(sentence) >= 12]
    again = len(long) - len(set(long))
    return again / max(1, len(long)), again


def _compression(text: str) -> float:
    raw = text.encode("utf-8", "surrogatepass")
    return len(raw) / len(zlib.compress(raw, 6)) if len(raw) >= _LEAST_BYTES else 1.0
