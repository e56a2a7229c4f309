"""Finds the words and phrases that distinguish a cluster from the others: class-based TF-IDF (arXiv 2203.05794, eq. 2)."""

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import regex

from pipeline.text.words import IS_DENSE, NAME_WORD

_MAX_PHRASE_WORDS = 3  # in a phrase
_MIN_LETTERS, _MIN_DENSE_LETTERS = 3, 2  # of a word in a term; the second for dense scripts (Han, kana, Hangul)
_WORD_SEPARATOR = regex.compile(r"[ \t\n\r\-‐]{1,2}")  # what may separate the words of a phrase
_MIN_PHRASE_SHARE = 0.5  # a phrase in at least this share of a word's texts replaces the word
_MIN_STOP_WORD_SHARE = 0.03  # least share of stop words by which a language is recognized


def cluster_terms(texts: Mapping[int, Sequence[str]], num_terms: int = 4) -> dict[int, str]:
    """Return for each cluster its most distinctive words and phrases, best first, joined by commas. Ties are broken alphabetically.

    A word scores: number of the cluster's texts with the word · log(1 + words per cluster / number of all texts with the word).
    "Words per cluster" is the mean over clusters; a word counts once per text, so that one long text that repeats a word does not
    name the cluster. Words of a single text are ignored if the cluster has several texts. A phrase of up to three words replaces
    a word if it is in at least half of the word's texts. Stop words of the cluster's language and of English are ignored.
    """
    clusters = sorted(cluster for cluster in texts if texts[cluster])
    frequencies_by_cluster = {cluster: _document_frequencies(texts[cluster]) for cluster in clusters}
    total_frequencies: Counter[tuple[str, ...]] = Counter()
    for frequencies in frequencies_by_cluster.values():
        total_frequencies.update(frequencies)
    num_words = sum(
        count for frequencies in frequencies_by_cluster.values() for phrase, count in frequencies.items() if len(phrase) == 1
    )
    words_per_cluster = num_words / max(1, len(clusters))
    return {
        cluster: ", ".join(
            " ".join(phrase)
            for phrase in _select_terms(
                frequencies_by_cluster[cluster], total_frequencies, words_per_cluster, len(texts[cluster]), num_terms
            )
        )
        for cluster in clusters
    }


def detect_language(words: Iterable[str]) -> str:
    """Return the ISO 639-1 code of the language whose stop words are most frequent among the words.

    Returns English if they are under 3% of the words. Ties go to the first code in the alphabet.
    """
    shares = Counter(dict.fromkeys(_stop_words(), 0))
    total = 0
    for word, count in Counter(words).items():
        total += count
        for code in _stop_word_languages().get(word, ()):
            shares[code] += count
    best, num_stop_words = max(sorted(shares.items()), key=lambda item: item[1])
    return best if num_stop_words >= _MIN_STOP_WORD_SHARE * max(1, total) else "en"


def _select_terms(
    frequencies: Counter[tuple[str, ...]],
    total_frequencies: Counter[tuple[str, ...]],
    words_per_cluster: float,
    num_texts: int,
    num_terms: int,
) -> list[tuple[str, ...]]:
    min_count = 2 if num_texts > 1 else 1
    common = {phrase: count for phrase, count in frequencies.items() if count >= min_count}
    score = {phrase: count * np.log1p(words_per_cluster / total_frequencies[phrase]) for phrase, count in common.items()}
    chosen: list[tuple[str, ...]] = []
    for word in sorted((phrase for phrase in common if len(phrase) == 1), key=lambda phrase: (-score[phrase], phrase)):
        if len(chosen) == num_terms:
            break
        if any(set(word) & set(term) for term in chosen):
            continue  # a chosen phrase contains the word
        phrases = [
            phrase
            for phrase in common
            if len(phrase) > 1 and word[0] in phrase and common[phrase] >= _MIN_PHRASE_SHARE * common[word]
        ]
        phrases = [phrase for phrase in phrases if not any(set(phrase) & set(term) for term in chosen)]
        chosen.append(max(phrases, key=lambda phrase: (len(phrase), score[phrase], phrase), default=word))
    return chosen


def _document_frequencies(texts: Sequence[str]) -> Counter[tuple[str, ...]]:
    """Count for each word and phrase the texts that contain it."""
    groups = [list(_word_groups(text.lower())) for text in texts]
    stop = _stop_words()[detect_language(word for of_text in groups for group in of_text for word in group)] | _stop_words()["en"]
    frequencies: Counter[tuple[str, ...]] = Counter()
    for of_text in groups:
        frequencies.update({phrase for group in of_text for phrase in _phrases(group, stop)})
    return frequencies


def _word_groups(text: str) -> Iterator[list[str]]:
    """Yield the words of a text in groups; within a group only one or two spaces, line breaks or hyphens separate neighbours."""
    group: list[str] = []
    end = 0
    for match in NAME_WORD.finditer(text):
        if group and not _WORD_SEPARATOR.fullmatch(text, end, match.start()):
            yield group
            group = []
        group.append(match.group())
        end = match.end()
    if group:
        yield group


def _phrases(group: Sequence[str], stop: frozenset[str]) -> Iterator[tuple[str, ...]]:
    is_distinctive = [
        word not in stop and len(word) >= (_MIN_DENSE_LETTERS if IS_DENSE.match(word) else _MIN_LETTERS) for word in group
    ]
    for first in range(len(group)):
        for last in range(first, min(first + _MAX_PHRASE_WORDS, len(group))):
            if not is_distinctive[last]:
                break
            yield tuple(group[first : last + 1])


@functools.cache
def _stop_words() -> Mapping[str, frozenset[str]]:
    import stopwordsiso

    return {code: frozenset(stopwordsiso.stopwords(code)) for code in sorted(stopwordsiso.langs())}


@functools.cache
def _stop_word_languages() -> Mapping[str, Sequence[str]]:
    """Return for each stop word the codes of its languages."""
    codes: dict[str, list[str]] = {}
    for code, words in _stop_words().items():
        for word in words:
            codes.setdefault(word, []).append(code)
    return codes
