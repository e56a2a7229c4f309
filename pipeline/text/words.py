"""What a word is, in any language. Four purposes need different words, so each has its own definition.

split_words           texts are compared: filters, held-out text, near-duplicates, titles
SCORER_WORD           n-grams are counted: words and runs of punctuation, as NLTK's WordPunctTokenizer splits text
NAME_WORD             clusters are named: letters only
TOKENIZER_WORD        tokens are cached: the words of BERT's pre-tokenizer
"""

import re
import unicodedata
from collections.abc import Iterator

import regex

# Character classes, to be put into brackets.
UNSPACED_SCRIPTS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"  # written without spaces
DENSE_SCRIPTS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}"  # a character carries as much as a syllable or a short word

# In `regex`, as NLTK compiles it, combining marks belong to words; in `re` they are punctuation. ASCII text has none.
SCORER_WORD = re.compile(r"\w+|[^\w\s]+")
SCORER_WORD_WITH_MARKS = regex.compile(SCORER_WORD.pattern)

NAME_WORD = regex.compile(r"\p{L}[\p{L}\p{M}]*+")

# Not \s: the tokenizer deletes some of its characters (form feed, U+0085), which joins the words around them.
TOKENIZER_WORD = re.compile(r"[^ \n\t\r!-/:-@\[-`{-~]+|[!-/:-@\[-`{-~]")

IS_UNSPACED = regex.compile(rf"[{UNSPACED_SCRIPTS}]")
IS_DENSE = regex.compile(rf"[{DENSE_SCRIPTS}]")
_WORD = regex.compile(rf"(?V1)[[{UNSPACED_SCRIPTS}]&&[\p{{L}}\p{{N}}]]\p{{M}}*|[[\p{{L}}\p{{N}}\p{{M}}]--[{UNSPACED_SCRIPTS}]]+")
# Two faster patterns that suffice for most texts: no script without spaces lies below Thai in Unicode.
_ASCII_WORD = re.compile(r"[a-z0-9]+")
_SPACED_WORD = regex.compile(r"[\p{L}\p{N}\p{M}]+")
_FIRST_UNSPACED = "\u0e00"
# Characters after which a text can be cut without changing its words: no word, number such as 3.14 or composed character extends
# across them, nor the context of a capital sigma, whose lower case depends on its neighbours. Only punctuation that datatrove's
# MinHash treats as spaces.
_BREAK_CHARACTERS = r"\s!?;(){}\[\]\"|*&/\\+#%$@~。、，！？；（）「」【】《》"
_LAST_BREAK = regex.compile(rf"(?rV0)[{_BREAK_CHARACTERS}]")


def split_words(text: str) -> list[str]:
    """Return the words of a text: sequences of letters, digits and marks, after NFKC and case folding.

    In scripts without spaces each character is a word.
    """
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    folded = unicodedata.normalize("NFKC", text).casefold()
    found: list[str] = (_SPACED_WORD if max(folded) < _FIRST_UNSPACED else _WORD).findall(folded)
    return found


def iter_pieces(text: str, size: int) -> Iterator[str]:
    """Yield the text in pieces of at most `size` characters, so that memory stays bounded; their words are those of the text.

    A piece ends after white space or punctuation. Only if `size` characters contain neither, it ends after any character, which
    may split a word.
    """
    begin = 0
    while len(text) - begin > size:
        last = _LAST_BREAK.search(text, begin, begin + size)
        end = last.end() if last else begin + size
        yield text[begin:end]
        begin = end
    yield text[begin:] if begin else text
