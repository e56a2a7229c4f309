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
_SEVEN_BIT = ("iso2022", "hz", "utf-7")  # name prefixes of charsets that encode non-ASCII text in ASCII bytes
_WIDE = ("utf-16", "utf-32")
_MULTIBYTE = ("gb", "big5", "cp9", "shift_jis", "euc_", "johab")
_NO_CHARSETS = {"idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape", "unicode_escape", "raw_unicode_escape"}
_META = re.compile(
    rb"""<meta\b[^>]*?\bcharset\s*=\s*["']?\s*([\w.:-]+)|<\?xml\b[^>]*?\bencoding\s*=\s*["']([\w.:-]+)""", re.IGNORECASE
)
_META_BYTES = 8192
_PARAMETER = re.compile(r"""\bcharset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
# Unassigned characters, lone surrogates (which UTF-7 can encode), C1 control characters, NUL.
_IMPOSSIBLE = regex.compile(r"[\p{Cn}\p{Cs}\x80-\x9f\0]")
_STRAY = re.compile(r"[\x01-\x08\x0b\x0e-\x1f\x7f]")
_STRAY_SHARE = 0.01
_SURE = 0.5  # least confidence of the detector, which reports 0.6 or more for a sentence
_FEW = 4  # fewer non-ASCII characters than this may be valid UTF-8 by chance, being byte pairs of another charset
_MOSTLY = 4  # above this ratio of valid non-ASCII characters to damaged places, a page is damaged UTF-8


def charset_of(content_type: str | None) -> str | None:
    """Return the charset named by a Content-Type header, or None."""
    found = _PARAMETER.search(content_type or "")
    return found[1] if found else None


def decoded_text(content: bytes, declared: str | None, *, markup: bool = True, cut: bool = False) -> str:
    """Decode a page.

    Valid UTF-8 takes precedence over another declared charset, because it is hardly ever valid by chance. Exception: a page with
    fewer than 4 non-ASCII characters that does not declare UTF-8 is decoded by a declared multi-byte charset that fits. UTF-7
    must be declared. If header and page name two charsets that fit, the detector decides; without its verdict the header does.

    Args:
        declared: the charset of the Content-Type header.
        markup: also use the charset of `<meta>` or of the XML declaration.
        cut: the page may end within a character, which is then left out.

    Raises:
        UndecodableError: no charset fits, or the page is damaged UTF-8.
    """
    for mark, name in _BOMS:
        if content.startswith(mark):
            marked = _decoded(content[len(mark) :], name, cut=cut)
            if marked is None:
                raise UndecodableError(f"charset {name}, by its byte order mark, does not fit")
            return marked
    said = [label for label in (declared, *(_metas(content) if markup else ())) if label]
    names = list(dict.fromkeys(codec for label in said if (codec := _codec(label))))
    utf8 = _decoded(content, "utf-8", cut=cut) if b"\0" not in content else None
    if utf8 is not None and utf8.isascii():
        return _seven_bit(content, names, cut=cut) or utf8
    if utf8 is not None:
        others = [name for name in names if name.startswith(_MULTIBYTE)]
        few = sum(not character.isascii() for character in utf8) < _FEW and "utf-8" not in names
        return (_first(content, others, cut=cut) if few else None) or utf8
    if b"\0" not in content and (bad := _damaged_utf8(content, declared="utf-8" in names)):
        raise UndecodableError(f"charset utf-8: {bad} places are damaged")
    narrow = [name for name in names if not name.startswith(_WIDE)]
    detected = _detected(content)
    if len(narrow) > 1:
        narrow.sort(key=lambda name: name not in detected)
    text = _first(content, [*_wide(content, names), *narrow, *detected], cut=cut)
    if text is None and b"\0" in content:
        text = _decoded(content, "utf-8", cut=cut)  # NULs are kept here; the row is quarantined for them
    if text is None:
        raise UndecodableError(f"no charset fits (said to be in {', '.join(said)[:100] or 'none'})")
    return text


def _metas(content: bytes) -> Iterator[str]:
    """Yield the charsets that the page itself declares.

    UTF-16 and UTF-32 are left out: in such a page the declaration could not be read as ASCII bytes.
    """
    for found in _META.finditer(content[:_META_BYTES]):
        label = (found[1] or found[2]).decode("ascii", "replace")
        if not label.lower().startswith(_WIDE):
            yield label


def _codec(label: str) -> str | None:
    """Return Python's name of a charset, or None if the label is no known text encoding."""
    label = label.strip().lower()
    plain = re.sub(r"^(?:x-)?(?:windows-|cp-?)(?=\d)", "cp", label)
    for name in (label, plain, label.removeprefix("x-"), re.sub(r"-[ie]$", "", label)):
        try:
            found = codecs.lookup(name)
        except (LookupError, ValueError):
            continue
        return found.name if found._is_text_encoding and found.name not in _NO_CHARSETS else None
    return None


def _decoded(content: bytes, name: str, *, cut: bool) -> str | None:
    decoder = codecs.getincrementaldecoder(name)("strict")
    try:
        return decoder.decode(content, final=not cut)
    except (UnicodeError, ValueError):
        return None


def _first(content: bytes, names: Sequence[str], *, cut: bool) -> str | None:
    """Decode by the first charset that fits, trying each before its supersets; None if none fits."""
    for name in names:
        for codec in (name, *_SUPERSETS.get(name, ())):
            text = _decoded(content, codec, cut=cut)
            if text is not None and _is_possible(text):
                return text
    return None


def _is_possible(text: str) -> bool:
    return not _IMPOSSIBLE.search(text) and len(_STRAY.findall(text)) <= _STRAY_SHARE * len(text)


def _seven_bit(content: bytes, names: Sequence[str], *, cut: bool) -> str | None:
    """Decode ASCII bytes that encode non-ASCII characters (ISO-2022, HZ, UTF-7); None if they do not."""
    candidates = [name for name in names if name.startswith(_SEVEN_BIT)]
    if not candidates and (b"\x1b" in content or b"\x0e" in content or b"~{" in content):
        candidates = [name for name in _detected(content) if name.startswith(("iso2022", "hz"))]
    return _first(content, candidates, cut=cut)


def _damaged_utf8(content: bytes, *, declared: bool) -> int:
    """Return the number of damaged places in a page that is mostly UTF-8; 0 if the page may be in another charset."""
    text = content.decode("utf-8", "replace")
    bad = text.count("\ufffd")
    good = sum(not character.isascii() for character in text) - bad
    ends_within = _decoded(content, "utf-8", cut=True) is not None
    return bad if good > _MOSTLY * bad or (declared and (good > bad or ends_within)) else 0


def _wide(content: bytes, names: Sequence[str]) -> list[str]:
    """Return the UTF-16 or UTF-32 codecs to try; empty if none is declared and under 5% of the bytes are NUL.

    The byte order of UTF-16 follows from the bytes: the high bytes of characters have fewer distinct values than the low bytes.
    """
    wanted = [name for name in names if name.startswith(_WIDE)]
    nuls = content.count(b"\0")
    if not wanted and nuls * 20 < len(content):
        return []
    if any(name.startswith("utf-32") for name in wanted) or nuls * 2 > len(content) + 2:
        return ["utf-32-le", "utf-32-be"]
    little = len(set(content[1::2])) <= len(set(content[0::2]))
    return ["utf-16-le" if little else "utf-16-be"]


def _detected(content: bytes) -> list[str]:
    import cchardet

    found = cchardet.detect(content)
    if not found["encoding"] or (found["confidence"] or 0.0) < _SURE:
        return []
    name = _codec(found["encoding"])
    return [] if name is None or name in ("ascii", "utf-8", "utf-7") else [name]
