"""Handle control and invalid characters in answers. Those that carry no text are removed; others reject the answer.

| in an answer | effect |
|---|---|
| tab, line feed, carriage return | kept |
| terminal escape sequences (CSI such as ESC [31m, OSC up to its end) | removed: they set colours and move the cursor |
| vertical tab, form feed, U+0085 | replaced by a line feed: they end lines |
| U+001C to U+001F | separators: removed next to a space, tab or line end, else replaced by a space |
| other control characters below U+0020, and DEL | removed: they print nothing |
| NUL, backspace | rejected: input text with NUL is rejected as well, and what a backspace deletes is unknown |
| ESC that begins none of the sequences known here | rejected: the length of the sequence is unknown |
| U+0080 to U+009F except U+0085 | rejected: undecoded bytes of another encoding, mostly quotes and dashes |
| U+FFFD | rejected, even if the source has it: a character was lost |
| unpaired surrogates, noncharacters (U+FFFE, U+FDD0 …) | rejected: UTF-8 cannot encode the former, no text contains the latter |

Joiners, writing-direction marks and private-use characters belong to the text of some language or font, and are kept.
"""

import re

import regex

_ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b(?=[0-9;]))[0-?]*[ -/]*[@-~]"  # CSI; one-byte form only before a number: U+009B may be a quote
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # OSC: window titles, links
    r"|\x1b[()][0-9A-Za-z]"  # character set selection
)
_LINE_END = re.compile(r"[\x0b\x0c\x85]")
_SEPARATOR = re.compile(r"([ \t\n\r]?)[\x1c-\x1f]+(?=([ \t\n\r]?))")
_NON_PRINTING = re.compile(r"[\x01-\x07\x0e-\x1a\x7f]")
_BROKEN = regex.compile(r"[\0\x08\x1b\x80-\x84\x86-\x9f\ufffd\p{Cs}\p{Noncharacter_Code_Point}]")


def remove_controls(text: str) -> str:
    """Remove or replace the control characters that carry no text (see the table above). The function is idempotent."""
    while True:
        before = text
        text = _LINE_END.sub("\n", _NON_PRINTING.sub("", _ESCAPE_SEQUENCE.sub("", text)))
        text = _SEPARATOR.sub(lambda match: match[1] or ("" if match[2] else " "), text)
        if text == before:  # a removal may have joined the pieces of another sequence
            return text


def find_broken_character(text: str) -> str:
    """Describe the first character that rejects the text, and its position; return "" if there is none."""
    match = _BROKEN.search(text)
    return f"U+{ord(match[0]):04X} at character {match.start()}" if match else ""


def replace_surrogates(text: str) -> str:
    """Replace each unpaired surrogate with U+FFFD, because UTF-8 files cannot hold it."""
    return re.sub(r"[\ud800-\udfff]", "\ufffd", text)
