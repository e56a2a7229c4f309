"""Finds the words and phrases that distinguish a cluster from the others: class-based TF-IDF (arXiv 2203.05794, eq. 2)."""

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import regex

_LONGEST = 3  # most words of a phrase
_LETTERS, _DENSE_LETTERS = 3, 2  # fewest letters of a word in a name; the second for dense scripts (Han, kana, Hangul)
_WORD = regex.compile(r"\p{L}[\p{L}\p{M}]*+")
_DENSE = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]")
_JOINT = regex.compile(r"[ \t\n\r\-‐]{1,2}")  # what may separate the words of a phrase
_OWN = 0.5  # if a phrase is in at least this share of a word's texts, the phrase replaces the word
_LEAST_STOP = 0.03  # least share of stop words by which a language is recognized


def cluster_terms(texts: Mapping[int, Sequence[str]], num_terms: int = 4) -> dict[int, str]:
    """Return for each cluster its most distinctive words and phrases, best first, joined by commas; ties between words by alphabet.

    A word scores: number of the cluster's texts with the word · log(1 + words per cluster / number of all texts with the word).
    "Words per cluster" is the mean over clusters; a word counts once per text, so that one long text that repeats a word does not
    name the cluster. Words of a single text are left out if the cluster has several texts. A phrase of up to three words replaces
    a word if it is in at least half of the word's texts. Stop words of the cluster's language and of English are left out.
    """
    clusters = sorted(cluster for cluster in texts if texts[cluster])
    found = {cluster: _spread(texts[cluster]) for cluster in clusters}
    everywhere: Counter[tuple[str, ...]] = Counter()
    for spread in found.values():
        everywhere.update(spread)
    mean = sum(sum(count for gram, count in spread.items() if len(gram) == 1) for spread in found.values()) / max(1, len(clusters))
    return {
        cluster: ", ".join(" ".join(gram) for gram in _best(found[cluster], everywhere, mean, len(texts[cluster]), num_terms))
        for cluster in clusters
    }


def language(words: Iterable[str]) -> str:
    """Return the ISO 639-1 code of the language whose stop words are most frequent among the words.

    Returns English if they are under 3% of the words. Ties go to the first code in the alphabet.
    """
    shares = Counter(dict.fromkeys(_stop_words(), 0))
    total = 0
    for word, count in Counter(words).items():
        total += count
        for code in _languages_of().get(word, ()):
            shares[code] += count
    best, most = max(sorted(shares.items()), key=lambda item: item[1])
    return best if most >= _LEAST_STOP * max(1, total) else "en"


def _best(
    spread: Counter[tuple[str, ...]], everywhere: Counter[tuple[str, ...]], mean: float, num_texts: int, num_terms: int
) -> list[tuple[str, ...]]:
    least = 2 if num_texts > 1 else 1
    common = {gram: count for gram, count in spread.items() if count >= least}
    score = {gram: count * np.log1p(mean / everywhere[gram]) for gram, count in common.items()}
    chosen: list[tuple[str, ...]] = []
    for word in sorted((gram for gram in common if len(gram) == 1), key=lambda gram: (-score[gram], gram)):
        if len(chosen) == num_terms:
            break
        if any(set(word) & set(term) for term in chosen):
            continue  # a chosen phrase contains the word
        phrases = [gram for gram in common if len(gram) > 1 and word[0] in gram and common[gram] >= _OWN * common[word]]
        phrases = [gram for gram in phrases if not any(set(gram) & set(term) for term in chosen)]
        chosen.append(max(phrases, key=lambda gram: (len(gram), score[gram], gram), default=word))
    return chosen


def _spread(texts: Sequence[str]) -> Counter[tuple[str, ...]]:
    """Count for each word and phrase the texts that contain it."""
    runs = [list(_runs(text.lower())) for text in texts]
    stop = _stop_words()[language(word for of_text in runs for run in of_text for word in run)] | _stop_words()["en"]
    spread: Counter[tuple[str, ...]] = Counter()
    for of_text in runs:
        spread.update({gram for run in of_text for gram in _grams(run, stop)})
    return spread


def _runs(text: str) -> Iterator[list[str]]:
    """Yield the words of a text in groups; within a group only one or two spaces, line breaks or hyphens separate neighbours."""
    run: list[str] = []
    end = 0
    for match in _WORD.finditer(text):
        if run and not _JOINT.fullmatch(text, end, match.start()):
            yield run
            run = []
        run.append(match.group())
        end = match.end()
    if run:
        yield run


def _grams(run: Sequence[str], stop: frozenset[str]) -> Iterator[tuple[str, ...]]:
    telling = [word not in stop and len(word) >= (_DENSE_LETTERS if _DENSE.match(word) else _LETTERS) for word in run]
    for first in range(len(run)):
        for last in range(first, min(first + _LONGEST, len(run))):
            if not telling[last]:
                break
            yield tuple(run[first : last + 1])


@functools.cache
def _stop_words() -> Mapping[str, frozenset[str]]:
    import stopwordsiso

    return {code: frozenset(stopwordsiso.stopwords(code)) for code in sorted(stopwordsiso.langs())}


@functools.cache
def _languages_of() -> Mapping[str, Sequence[str]]:
    """Return for each stop word the codes of its languages."""
    found: dict[str, list[str]] = {}
    for code, words in _stop_words().items():
        for word in words:
            found.setdefault(word, []).append(code)
    return found
