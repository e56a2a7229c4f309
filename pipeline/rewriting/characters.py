"""Characters of an answer that no text has: those that can go without a word of it changing are taken out, others reject it.

| in an answer | what becomes of it |
|---|---|
| tab, line feed, carriage return | stay |
| escape sequences of a terminal (CSI such as ESC [31m, OSC up to its end) | taken out: they colour and move, and say nothing |
| vertical tab, form feed, U+0085 | a line feed: they end lines |
| U+001C to U+001F | a space between two letters, else taken out: they separate |
| other controls below U+0020, and DEL | taken out: they ring and signal, and print nothing |
| NUL, backspace | rejected: input text with NUL is refused as well; what a backspace takes back cannot be known |
| ESC that begins no sequence known here | rejected: how much belongs to it cannot be known |
| U+0080 to U+009F but U+0085 | rejected: bytes of another encoding, mostly quotes and dashes, that nobody decoded |
| U+FFFD | rejected, in the source or not: a character was lost |
| halves of surrogate pairs, noncharacters (U+FFFE, U+FDD0 …) | rejected: UTF-8 has none of the former, no text any of the latter |

Joiners, marks of the direction of writing and characters for private use are text of some language or font, and stay.
"""

import re

import regex

_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b(?=[0-9;]))[0-?]*[ -/]*[@-~]"  # CSI; of its one-byte form only what has a number, for U+009B may be a quote
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # OSC: titles of windows, links
    r"|\x1b[()][0-9A-Za-z]"  # another set of characters
)
_LINE_END = re.compile(r"[\x0b\x0c\x85]")
_SEPARATOR = re.compile(r"([ \t\n\r]?)[\x1c-\x1f]+(?=([ \t\n\r]?))")
_SIGNAL = re.compile(r"[\x01-\x07\x0e-\x1a\x7f]")
_BROKEN = regex.compile(r"[\0\x08\x1b\x80-\x84\x86-\x9f\ufffd\p{Cs}\p{Noncharacter_Code_Point}]")


def without_controls(text: str) -> str:
    """The text without control characters whose going changes no word of it; done again, it changes nothing."""
    while True:
        before = text
        text = _LINE_END.sub("\n", _SIGNAL.sub("", _SEQUENCE.sub("", text)))
        text = _SEPARATOR.sub(lambda found: found[1] or ("" if found[2] else " "), text)
        if text == before:  # what stood apart may have become a sequence
            return text


def broken(text: str) -> str:
    """The first character that no text has, and where; "" if there is none."""
    found = _BROKEN.search(text)
    return f"U+{ord(found[0]):04X} at character {found.start()}" if found else ""


def without_surrogates(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair, which no file of ours can hold."""
    return re.sub(r"[\ud800-\udfff]", "\ufffd", text)
