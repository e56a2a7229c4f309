"""Loops: a model that says the same again and again, beyond what its source does.

Shares of duplicate sentences and runs are MassiveText's (Gopher, arXiv 2112.11446, table A1), here held against the source's own:
a poem has its refrain, a list its pattern.
"""

import re
import zlib

import numpy as np

from pipeline.text.ngrams import Wording

_LONGEST_PERIOD = 60  # words of what is said again
_LOOP_WORDS, _LOOP_TIMES = 24, 4  # a loop is at least so long, and says its words so often
_RUN = 8
_MOST_IN_RUNS = 0.25  # of the words lie in runs of 8 said before; MassiveText allows 0.14 of the characters in runs of 8
_MOST_SENTENCES, _FEWEST_SENTENCES = 0.3, 3  # said before; MassiveText allows 0.3 of the lines
_MOST_COMPRESSION, _LEAST_BYTES = 4.5, 400  # zlib; prose is at 1.6 to 2.2, a table at 3
_MORE = 0.15  # than the source's share
_MORE_COMPRESSION = 1.6  # times the source's
_SENTENCE_END = re.compile(r"[.!?。！？؟।\n]+")


def found(text: str, answered: Wording, source: str, given: Wording) -> str:
    """What is repeated, with numbers, or ""."""
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
    """Words and period of the longest loop, where each word is that of `period` words before; (0, 0) without one."""
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
    """Share of the words that lie in runs of 8 that were there before."""
    run_G = of.runs(_RUN)
    before_G = np.ones(len(run_G), dtype=np.bool_)
    before_G[np.unique(run_G, return_index=True)[1]] = False
    return of.covered(before_G, _RUN)


def _sentences(text: str) -> tuple[float, int]:
    """Share and number of the sentences and lines of some length that were there before."""
    sentences = [" ".join(part.casefold().split()) for part in _SENTENCE_END.split(text)]
    long = [sentence for sentence in sentences if len(sentence) >= 12]
    again = len(long) - len(set(long))
    return again / max(1, len(long)), again


def _compression(text: str) -> float:
    raw = text.encode("utf-8", "surrogatepass")
    return len(raw) / len(zlib.compress(raw, 6)) if len(raw) >= _LEAST_BYTES else 1.0
