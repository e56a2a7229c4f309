"""Split the text of a window into passages, which a model rewrites one at a time. Joined in order, the passages are the text.

WRAP rewrites at most about 300 tokens at once, because models summarise longer passages.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import regex

from pipeline.rewriting.languages import detect_language

_MIN_LAST_SHARE = 1 / 3  # of the limit: a shorter last passage is balanced with the one before it
_WHITE_SPACE = regex.compile(r"[\s\x1c-\x1f]+")
_LINE_FEED = regex.compile(r"\r\n|[\n\r\v\f\x85\u2028\u2029]")
# Where to split within a sentence, best first: at line ends, after commas and similar, between words, between grapheme clusters.
_SPLIT_POINTS = tuple(
    regex.compile(pattern) for pattern in (r"(?:\r\n|[\n\r\v\f\x85\u2028\u2029])+", r"[,;:–—]\s+|[，、；：،؛]\s*", r"\s+", r"\X")
)


@dataclass(frozen=True)
class Passage:
    """A contiguous piece of a text, and its number of tokens."""

    text: str
    tokens: int


@dataclass(frozen=True)
class _Unit:
    text: str
    tokens: int
    ends_paragraph: bool


def cut_passages(text: str, limit: int, count: Callable[[str], int]) -> list[Passage]:
    """Split a text into passages of at most `limit` tokens, in order. Joined, they are the text; an empty text has no passages.

    A passage ends after the last sentence or line that fits, but after a paragraph if one ends within the last third of the limit.
    If the last passage has less than a third of the limit, the last two are balanced. A sentence above the limit is split at line
    ends, commas, words, else characters; only a single character can exceed the limit. White space belongs to the sentence before
    it, indentation to its line. The tokens of a passage are the sum over its sentences, each counted alone; a tokenizer that merges
    across sentences may count the passage slightly differently.

    Raises:
        ValueError: `limit` is below 1.
    """
    if limit < 1:
        raise ValueError(f"limit must be at least 1 token, got {limit}")
    units = [unit for sentence in _split_sentences(text) for unit in _halve(sentence, limit, count)]
    passages: list[list[_Unit]] = []
    begin = 0
    while begin < len(units):
        end = _find_end(units, begin, limit)
        passages.append(units[begin:end])
        begin = end
    if len(passages) > 1 and _count_tokens(passages[-1]) < _MIN_LAST_SHARE * limit:
        passages[-2:] = _balance(passages[-2] + passages[-1], limit)
    return [Passage("".join(unit.text for unit in passage), _count_tokens(passage)) for passage in passages]


def _count_tokens(units: list[_Unit]) -> int:
    return sum(unit.tokens for unit in units)


def _find_end(units: list[_Unit], begin: int, limit: int) -> int:
    """Return the end (exclusive) of the passage that begins at unit `begin`."""
    tokens, end, after_paragraph = 0, begin, 0
    while end < len(units) and (end == begin or tokens + units[end].tokens <= limit):
        tokens += units[end].tokens
        end += 1
        if units[end - 1].ends_paragraph and tokens * 3 >= limit * 2:
            after_paragraph = end
    return end if end == len(units) else after_paragraph or end


def _balance(units: list[_Unit], limit: int) -> list[list[_Unit]]:
    """Divide the units of the last two passages again: into one passage if it fits, else into two of about equal length."""
    total = _count_tokens(units)
    if total <= limit:
        return [units]
    best, best_cost, before = 0, float("inf"), 0
    for border in range(1, len(units)):
        before += units[border - 1].tokens
        # The end of a paragraph may lie further from the middle. Ties make the first passage the longer one.
        cost = abs(2 * before - total) - (total / 3 if units[border - 1].ends_paragraph else 0)
        if max(before, total - before) <= limit and cost <= best_cost:
            best, best_cost = border, cost
    # No border fits only if a single character exceeds the limit; the first passage then stays as it was.
    best = best or _find_end(units, 0, limit)
    return [part for part in (units[:best], units[best:]) if part]


def _split_sentences(text: str) -> Iterator[str]:
    """Yield sentences and lines with the white space after them; wrapped lines are not split. Joined, they are the text."""
    borders = sorted({*_find_sentence_ends(text), *_find_line_ends(text)})
    # Move borders behind white space, or behind its last line end, so that indentation stays with its line.
    adjusted = {border for border in borders if not any(map(str.isspace, text[max(0, border - 1) : border + 1]))}
    for blank in _WHITE_SPACE.finditer(text):
        first = bisect_left(borders, blank.start())
        if first < len(borders) and borders[first] <= blank.end():
            line_ends = list(_LINE_FEED.finditer(blank[0]))
            adjusted.add(blank.start() + line_ends[-1].end() if line_ends else blank.end())
    text_start = len(text) - len(text.lstrip())
    kept = sorted(border for border in adjusted if text_start < border < len(text.rstrip()))
    for begin, end in pairwise([0, *kept, len(text)]):
        if begin < end:
            yield text[begin:end]


def _find_sentence_ends(text: str) -> Iterator[int]:
    import sentencex

    # sentencex is written in Rust, whose strings cannot hold unpaired surrogates. The replacement keeps all positions.
    encodable = regex.sub(r"[\ud800-\udfff]", "\ufffd", text)
    end = 0
    for sentence in sentencex.segment(detect_language(text)[0], encodable):
        # For all inputs tried, the sentences join to the text. If one does not match, search for it; the text itself never changes.
        start = end if encodable.startswith(sentence, end) else encodable.find(sentence.strip() or sentence, end)
        if start < 0:
            continue
        end = start + len(sentence if start == end else sentence.strip() or sentence)
        yield end


def _find_line_ends(text: str) -> Iterator[int]:
    for line_end in _LINE_FEED.finditer(text):
        following = text[line_end.end() : line_end.end() + 1]
        # Before a lower-case letter the sentence continues: the line is wrapped, or it is verse, which `_halve` can still split.
        if not following.islower():
            yield line_end.end()


def _halve(sentence: str, limit: int, count: Callable[[str], int]) -> Iterator[_Unit]:
    """Halve a sentence until each piece has at most `limit` tokens. Each token is counted once per level of halving."""
    tokens = count(sentence)
    middle = _find_middle_border(sentence) if tokens > limit else 0
    if middle:
        yield from _halve(sentence[:middle], limit, count)
        yield from _halve(sentence[middle:], limit, count)
    else:
        trailing = sentence[len(sentence.rstrip()) :]
        yield _Unit(sentence, tokens, len(_LINE_FEED.findall(trailing)) > 1)


def _find_middle_border(sentence: str) -> int:
    """Return the border nearest to the middle, of the best kind with one in the middle half; 0 for a single character."""
    half = len(sentence) / 2
    for kind in _SPLIT_POINTS:
        borders = [match.end() for match in kind.finditer(sentence) if 0 < match.end() < len(sentence)]
        best = min(borders, key=lambda border: abs(border - half), default=0)
        if best and (abs(best - half) <= half / 2 or kind is _SPLIT_POINTS[-1]):
            return best
    return len(sentence) // 2  # a single grapheme cluster of several code points that exceeds the limit
