"""Decodes the bytes of a page by its byte order mark, its declared charset, or charset detection.

datatrove tries UTF-8, then a detector's first guess, and drops bytes that the guess cannot decode. Here a charset is accepted only
if it decodes every byte, and only to assigned characters.
"""

import codecs
import re
from collections.abc import Iterator, Sequence

import regex

from pipeline.sources.http_bodies import UndecodableError

_BOMS = (  # UTF-32 before UTF-16: the mark of UTF-32-LE begins with that of UTF-16-LE
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Supersets by Python codec name: text is often mislabelled with the smaller charset. Tried if the charset itself does not fit.
_SUPERSETS = {
    "ascii": ("cp1252",),
    "iso8859-1": ("cp1252",),
    "iso8859-7": ("cp1253",),
    "iso8859-8": ("cp1255",),
    "iso8859-9": ("cp1254",),
    "iso8859-11": ("cp874",),
    "tis-620": ("cp874",),
    "iso8859-13": ("cp1257",),
    "gb2312": ("gb18030",),
    "gbk": ("gb18030",),
    "big5": ("cp950", "big5hkscs"),
    "shift_jis": ("cp932", "shift_jis_2004"),
    "euc_jp": ("euc_jis_2004",),
    "iso2022_jp": ("iso2022_jp_ext", "iso2022_jp_2004"),
    "euc_kr": ("cp949",),
}
_SEVEN_BIT_PREFIXES = ("iso2022", "hz", "utf-7")  # name prefixes of charsets that encode non-ASCII text in ASCII bytes
_UTF16_OR_32_PREFIXES = ("utf-16", "utf-32")
_MULTIBYTE_PREFIXES = ("gb", "big5", "cp9", "shift_jis", "euc_", "johab")
_NON_CHARSET_CODECS = {
    "idna",
    "punycode",
    "undefined",
    "unicode-escape",
    "raw-unicode-escape",
    "unicode_escape",
    "raw_unicode_escape",
}
_CHARSET_DECLARATION = re.compile(
    rb"""<meta\b[^>]*?\bcharset\s*=\s*["']?\s*([\w.:-]+)|<\?xml\b[^>]*?\bencoding\s*=\s*["']([\w.:-]+)""", re.IGNORECASE
)
_DECLARATION_BYTES = 8192
_CHARSET_PARAMETER = re.compile(r"""\bcharset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
# Unassigned characters, lone surrogates (which UTF-7 can encode), C1 control characters, NUL.
_INVALID_CHARACTER = regex.compile(r"[\p{Cn}\p{Cs}\x80-\x9f\0]")
_CONTROL_CHARACTER = re.compile(r"[\x01-\x08\x0b\x0e-\x1f\x7f]")
_MAX_CONTROL_SHARE = 0.01
_MIN_CONFIDENCE = 0.5  # of the detector, which reports 0.6 or more for a sentence
_MIN_NON_ASCII = 4  # fewer non-ASCII characters than this may be valid UTF-8 by chance, being byte pairs of another charset
_MIN_VALID_RATIO = 4  # a page with more valid non-ASCII characters per invalid byte sequence is damaged UTF-8


def parse_charset(content_type: str | None) -> str | None:
    """Return the charset named by a Content-Type header, or None."""
    found = _CHARSET_PARAMETER.search(content_type or "")
    return found[1] if found else None


def decode_text(content: bytes, declared: str | None, *, markup: bool = True, is_truncated: bool = False) -> str:
    """Decode a page.

    Valid UTF-8 takes precedence over another declared charset, because it is hardly ever valid by chance. Exception: a page with
    fewer than 4 non-ASCII characters that does not declare UTF-8 is decoded by a declared multi-byte charset that fits. UTF-7
    must be declared. If header and page name two charsets that fit, the detector decides; without its verdict the header does.

    Args:
        declared: the charset of the Content-Type header.
        markup: also use the charset of `<meta>` or of the XML declaration.
        is_truncated: the page may end within a character, which is then dropped.

    Raises:
        UndecodableError: no charset fits, or the page is damaged UTF-8.
    """
    for mark, name in _BOMS:
        if content.startswith(mark):
            marked = _decode(content[len(mark) :], name, is_truncated=is_truncated)
            if marked is None:
                raise UndecodableError(f"it has the byte order mark of {name} but is not valid {name}")
            return marked
    declared_labels = [label for label in (declared, *(_declared_charsets(content) if markup else ())) if label]
    names = list(dict.fromkeys(codec for label in declared_labels if (codec := _codec_name(label))))
    utf8 = _decode(content, "utf-8", is_truncated=is_truncated) if b"\0" not in content else None
    if utf8 is not None and utf8.isascii():
        return _decode_seven_bit(content, names, is_truncated=is_truncated) or utf8
    if utf8 is not None:
        others = [name for name in names if name.startswith(_MULTIBYTE_PREFIXES)]
        has_few_non_ascii = sum(not character.isascii() for character in utf8) < _MIN_NON_ASCII and "utf-8" not in names
        return (_decode_first_fit(content, others, is_truncated=is_truncated) if has_few_non_ascii else None) or utf8
    if b"\0" not in content and (num_damaged := _count_damaged_utf8(content, declared="utf-8" in names)):
        raise UndecodableError(f"it is UTF-8 with {num_damaged} invalid byte sequences")
    narrow = [name for name in names if not name.startswith(_UTF16_OR_32_PREFIXES)]
    detected = _detect(content)
    if len(narrow) > 1:
        narrow.sort(key=lambda name: name not in detected)
    text = _decode_first_fit(content, [*_utf16_or_32_candidates(content, names), *narrow, *detected], is_truncated=is_truncated)
    if text is None and b"\0" in content:
        text = _decode(content, "utf-8", is_truncated=is_truncated)  # NULs are kept here; the row is quarantined for them
    if text is None:
        raise UndecodableError(f"no charset fits (declared: {', '.join(declared_labels)[:100] or 'none'})")
    return text


def _declared_charsets(content: bytes) -> Iterator[str]:
    """Yield the charsets that the page itself declares.

    UTF-16 and UTF-32 are ignored: in such a page the declaration could not be read as ASCII bytes.
    """
    for found in _CHARSET_DECLARATION.finditer(content[:_DECLARATION_BYTES]):
        label = (found[1] or found[2]).decode("ascii", "replace")
        if not label.lower().startswith(_UTF16_OR_32_PREFIXES):
            yield label


def _codec_name(label: str) -> str | None:
    """Return Python's name of a charset, or None if the label is not a known text encoding."""
    label = label.strip().lower()
    plain = re.sub(r"^(?:x-)?(?:windows-|cp-?)(?=\d)", "cp", label)
    for name in (label, plain, label.removeprefix("x-"), re.sub(r"-[ie]$", "", label)):
        try:
            found = codecs.lookup(name)
        except (LookupError, ValueError):
            continue
        return found.name if found._is_text_encoding and found.name not in _NON_CHARSET_CODECS else None
    return None


def _decode(content: bytes, name: str, *, is_truncated: bool) -> str | None:
    decoder = codecs.getincrementaldecoder(name)("strict")
    try:
        return decoder.decode(content, final=not is_truncated)
    except (UnicodeError, ValueError):
        return None


def _decode_first_fit(content: bytes, names: Sequence[str], *, is_truncated: bool) -> str | None:
    """Decode by the first charset that fits, trying each before its supersets; None if none fits."""
    for name in names:
        for codec in (name, *_SUPERSETS.get(name, ())):
            text = _decode(content, codec, is_truncated=is_truncated)
            if text is not None and _is_plausible(text):
                return text
    return None


def _is_plausible(text: str) -> bool:
    return not _INVALID_CHARACTER.search(text) and len(_CONTROL_CHARACTER.findall(text)) <= _MAX_CONTROL_SHARE * len(text)


def _decode_seven_bit(content: bytes, names: Sequence[str], *, is_truncated: bool) -> str | None:
    """Decode ASCII bytes that encode non-ASCII characters (ISO-2022, HZ, UTF-7); None if they do not."""
    candidates = [name for name in names if name.startswith(_SEVEN_BIT_PREFIXES)]
    if not candidates and (b"\x1b" in content or b"\x0e" in content or b"~{" in content):
        candidates = [name for name in _detect(content) if name.startswith(("iso2022", "hz"))]
    return _decode_first_fit(content, candidates, is_truncated=is_truncated)


def _count_damaged_utf8(content: bytes, *, declared: bool) -> int:
    """Return the number of invalid byte sequences in a page that is mostly UTF-8; 0 if the page may be in another charset."""
    text = content.decode("utf-8", "replace")
    num_damaged = text.count("\ufffd")
    num_valid = sum(not character.isascii() for character in text) - num_damaged
    is_cut_in_character = _decode(content, "utf-8", is_truncated=True) is not None
    return (
        num_damaged
        if num_valid > _MIN_VALID_RATIO * num_damaged or (declared and (num_valid > num_damaged or is_cut_in_character))
        else 0
    )


def _utf16_or_32_candidates(content: bytes, names: Sequence[str]) -> list[str]:
    """Return the UTF-16 or UTF-32 codecs to try; empty if none is declared and under 5% of the bytes are NUL.

    The byte order of UTF-16 follows from the bytes: the high bytes of characters have fewer distinct values than the low bytes.
    """
    declared = [name for name in names if name.startswith(_UTF16_OR_32_PREFIXES)]
    nuls = content.count(b"\0")
    if not declared and nuls * 20 < len(content):
        return []
    if any(name.startswith("utf-32") for name in declared) or nuls * 2 > len(content) + 2:
        return ["utf-32-le", "utf-32-be"]
    little = len(set(content[1::2])) <= len(set(content[0::2]))
    return ["utf-16-le" if little else "utf-16-be"]


def _detect(content: bytes) -> list[str]:
    import cchardet

    found = cchardet.detect(content)
    if not found["encoding"] or (found["confidence"] or 0.0) < _MIN_CONFIDENCE:
        return []
    name = _codec_name(found["encoding"])
    return [] if name is None or name in ("ascii", "utf-8", "utf-7") else [name]
