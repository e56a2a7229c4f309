"""Lossless JSON: integers of any size are kept, and repeated keys in an object are detected.

orjson is fast, but it converts integers beyond 64 bits to floats and keeps only the last of several equal keys. These functions use
orjson where they can rule out such a loss, and the standard library elsewhere.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

# With more keys, searching the text for each of them takes longer than parsing it exactly.
_MAX_KEYS = 32
_MAX_LEVELS = 254  # orjson's nesting limit; a fixed number, because Python's recursion limit depends on the caller's stack depth
_MANY_DIGITS = re.compile(r"\d{19}")
_ESCAPED_ASCII = re.compile(rb"\\u00[2-7]")  # an escaped ASCII character, which may be part of a key
_BEYOND_64_BITS = 2.0**63
_BLANKS = re.compile(r"[ \t\n\r]*")
_STRING_OR_PUNCTUATION = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{},]', re.DOTALL)
_SEPARATOR_AT_END = re.compile(r'[\]}]\s*,\s*[\[{]\s*"\Z')  # how a string ends that begins at a closing quote


class RepeatedKeyError(ValueError):
    """An object has a repeated key, `key`."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


class ObjectWithRepeatedKey(dict[str, Any]):
    """An object that has a repeated key, itself or at any depth below; `repeated_key` is that key."""

    repeated_key = ""


class DamagedArrayError(ValueError):
    """The next element of a JSON array cannot be found; `position` is the character where the damage begins."""

    def __init__(self, position: int, problem: str) -> None:
        super().__init__(position, problem)
        self.position, self.problem = position, problem


@dataclass(frozen=True, slots=True)
class Element:
    """An element of a JSON array: its characters `begin` to `end`, and its value, unless `problem` says why it has none."""

    begin: int
    end: int
    value: Any
    problem: str = ""


def parse(text: bytes) -> Any:
    """The value of a JSON text in UTF-8.

    Raises:
        orjson.JSONDecodeError: the text is not JSON, or is nested deeper than the parser's limit.
        RepeatedKeyError: an object has a repeated key.
    """
    value = orjson.loads(text)
    if not _may_be_lossy(value, text):
        return value
    value = parse_exactly(text)
    repeated = find_repeated_key(value)
    if repeated is not None:
        raise RepeatedKeyError(repeated)
    return value


def parse_exactly(text: bytes) -> Any:
    """The value of a JSON text, by the standard library's parser.

    An object with a repeated key is a `ObjectWithRepeatedKey`, and so is every object that contains one.

    Raises:
        orjson.JSONDecodeError: as `parse`.
    """
    try:
        return json.loads(text.decode(), object_pairs_hook=_build_object, parse_constant=_reject_constant)
    except (RecursionError, ValueError) as error:
        raise orjson.JSONDecodeError(str(error) or "nested too deeply", text.decode("utf-8", "replace"), 0) from error


def parse_elements(text: str) -> Iterator[Element]:
    """Yield the elements of a text that begins with a JSON array, each parsed as by `parse_exactly`.

    An element that is not JSON has a `problem`, and the next one is found by brackets, quotes and commas.

    Raises:
        DamagedArrayError: the next element cannot be found, the array does not end, or it is not the only value.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_build_object, parse_constant=_reject_constant)
    position = _skip_blanks(text, text.index("[") + 1)
    at_end = text.startswith("]", position)
    while not at_end:
        element = _parse_element(decoder, text, position)
        yield element
        position = _skip_blanks(text, element.end)
        if position == len(text):
            raise DamagedArrayError(position, "the array ends without a ]")
        if text[position] not in ",]":
            raise DamagedArrayError(position, "no comma before the next element")
        at_end = text[position] == "]"
        if not at_end:
            position = _skip_blanks(text, position + 1)
    rest = _skip_blanks(text, position + 1)
    if rest < len(text):
        raise DamagedArrayError(rest, "text follows the end of the array; a file may hold only one array")


def find_repeated_key(value: Any) -> str | None:
    """A repeated key in a value from `parse_exactly`; None if there is none."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, ObjectWithRepeatedKey):
            return item.repeated_key
        if isinstance(item, list):
            pending += [child for child in item if isinstance(child, list | dict)]
    return None


def load(text: str) -> Any:
    """The value of a JSON text from `dump`."""
    return json.loads(text) if _MANY_DIGITS.search(text) else orjson.loads(text)


def dump(value: Any, default: Callable[[Any], Any] | None = None, option: int = 0) -> str:
    """Compact JSON with the keys in their own order; NaN and infinity become null.

    Args:
        default: converts values of other types, dates and times included.
        option: orjson's option flags.

    Raises:
        TypeError: a value has a type that `default` does not convert, or is nested deeper than 254 levels.
    """
    option |= orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_NON_STR_KEYS
    try:
        return orjson.dumps(value, default=default, option=option).decode()
    except TypeError as error:
        if "64-bit range" not in str(error):
            raise
    convert = None if default is None else lambda item: _replace_large_integers(default(item))
    return orjson.dumps(_replace_large_integers(value), default=convert, option=option).decode()


def _parse_element(decoder: json.JSONDecoder, text: str, begin: int) -> Element:
    """Return the element that begins at a character.

    Raises:
        DamagedArrayError: it is not JSON, and its end cannot be found.
    """
    try:
        value, end = decoder.raw_decode(text, begin)
    except (RecursionError, ValueError) as error:
        problem = "nested too deeply" if isinstance(error, RecursionError) else str(getattr(error, "msg", error))
    else:
        if text[(after := _skip_blanks(text, end)) : after + 1] in {"", ",", "]", "{", "[", '"'}:
            return Element(begin, end, value)
        problem = "more than one value between two commas"
    end = _find_element_end(text, begin)
    return Element(begin, end, None, problem if end > begin else "no value before a comma, or after the last one")


def _find_element_end(text: str, begin: int) -> int:
    """Return the position of the comma or bracket that ends an element.

    Raises:
        DamagedArrayError: a string or bracket is not closed, or a quote is missing, so that strings begin where they should end.
    """
    closing: list[str] = []
    for match in _STRING_OR_PUNCTUATION.finditer(text, begin):
        mark = match.group()
        if mark in "[{":
            closing.append("]" if mark == "[" else "}")
        elif mark in ",]}":
            if not closing and mark != "}":
                return match.start()
            if mark != "," and (not closing or closing.pop() != mark):
                break
        elif mark == '"' or _SEPARATOR_AT_END.search(mark):
            break
    raise DamagedArrayError(begin, "the end of the element that begins here cannot be found")


def _skip_blanks(text: str, position: int) -> int:
    blanks = _BLANKS.match(text, position)
    assert blanks
    return blanks.end()


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value_of = dict(pairs)
    repeated = next((key for value in value_of.values() if (key := find_repeated_key(value)) is not None), None)
    if len(value_of) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    if repeated is None:
        return value_of
    result = ObjectWithRepeatedKey(value_of)
    result.repeated_key = repeated
    return result


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _may_be_lossy(value: Any, text: bytes) -> bool:
    """Whether orjson may have dropped a key or rounded an integer; true for some texts that lost nothing."""
    if _round_trips(value, text):
        return False
    keys: list[str] = []
    if _has_rounded_integer(value, keys):
        return True
    if not keys:
        return False
    if len(keys) > _MAX_KEYS:
        return True
    if any(text.count(b'"' + key.encode() + b'"') != 1 for key in keys):
        return True
    if b"\\u" not in text:
        return False
    return not all(map(str.isascii, keys)) or _ESCAPED_ASCII.search(text) is not None


def _round_trips(value: Any, text: bytes) -> bool:
    """Whether orjson writes the parsed object exactly as in the text, so no key was dropped. Fast, and true for most lines.

    Without spaces, equal lengths prove it: orjson writes the shortest form of every key, string and integer, so a dropped key would
    leave the text longer. With a space after the first colon, the text must be the spaced form byte for byte. Always false for an
    object with a list, an object or a float among its values; a float may be a rounded integer.
    """
    if type(value) is not dict or any(isinstance(item, float | dict | list) for item in value.values()):
        return False
    colon = text.find(b'":') + 2
    if text[colon : colon + 1] != b" ":
        return len(text.rstrip()) == len(orjson.dumps(value))
    position, before = 0, b"{"
    for key, item in value.items():
        name, content = before + orjson.dumps(key) + b": ", orjson.dumps(item)
        begin = position + len(name)
        if not text.startswith(name, position) or not text.startswith(content, begin):
            return False
        position, before = begin + len(content), b", "
    return text[position:].rstrip() == b"}"


def _has_rounded_integer(value: Any, keys: list[str]) -> bool:
    """Whether any float may be a rounded integer; appends the keys of all objects to `keys`, unless it returns True early."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, float) and abs(item) >= _BEYOND_64_BITS:
            return True
        if isinstance(item, dict):
            keys += item
            pending += [child for child in item.values() if isinstance(child, float | dict | list)]
        elif isinstance(item, list):
            pending += [child for child in item if isinstance(child, float | dict | list)]
    return False


def _replace_large_integers(value: Any, levels: int = _MAX_LEVELS) -> Any:
    """A copy of a value in which integers beyond 64 bits are fragments that orjson writes as they are.

    Containers below `levels` are not copied: orjson refuses them.
    """
    if isinstance(value, int):
        return value if _is_64_bits(value) else orjson.Fragment(b"%d" % value)
    if not levels:
        return value
    if isinstance(value, dict):
        return {
            str(key) if isinstance(key, int) and not _is_64_bits(key) else key: _replace_large_integers(item, levels - 1)
            for key, item in value.items()
        }
    if isinstance(value, list) or type(value) is tuple:  # orjson passes a named tuple to `default`
        return [_replace_large_integers(item, levels - 1) for item in value]
    return value


def _is_64_bits(value: int) -> bool:
    return -(2**63) <= value < 2**64
