"""Lossless JSON: integers of any size are kept, and repeated keys in an object are detected.

orjson is fast, but it converts integers beyond 64 bits to floats and keeps only the last of several equal keys. These functions use
orjson where they can rule out such a loss, and the standard library elsewhere.
"""

import json
import math
import re
from collections.abc import Callable
from typing import Any

import orjson

# With more keys, searching the text for each of them takes longer than parsing it exactly.
_MOST_KEYS = 32
_MOST_LEVELS = 254  # orjson's nesting limit; a fixed number, because Python's recursion limit depends on the caller's stack depth
_MANY_DIGITS = re.compile(r"\d{19}")
_ESCAPED_ASCII = re.compile(rb"\\u00[2-7]")  # an escaped ASCII character, which may be part of a key
_BEYOND_64_BITS = 2.0**63


class RepeatedKeyError(ValueError):
    """An object has a repeated key, `key`."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


class WithRepeatedKey(dict[str, Any]):
    """An object that has a repeated key, itself or at any depth below; `repeated` is that key."""

    repeated = ""


def parse(text: bytes) -> Any:
    """The value of a JSON text in UTF-8.

    Raises:
        orjson.JSONDecodeError: the text is not JSON, or is nested deeper than the parser's limit.
        RepeatedKeyError: an object has a repeated key.
    """
    value = orjson.loads(text)
    if not _may_have_lost(value, text):
        return value
    value = parse_exactly(text)
    repeated = repeated_key(value)
    if repeated is not None:
        raise RepeatedKeyError(repeated)
    return value


def parse_exactly(text: bytes) -> Any:
    """The value of a JSON text, by the standard library's parser.

    An object with a repeated key is a `WithRepeatedKey`, and so is every object that contains one.

    Raises:
        orjson.JSONDecodeError: as `parse`.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except (RecursionError, ValueError) as error:
        raise orjson.JSONDecodeError(str(error) or "nested too deeply", text.decode("utf-8", "replace"), 0) from error


def repeated_key(value: Any) -> str | None:
    """A repeated key in a value from `parse_exactly`; None if there is none."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, WithRepeatedKey):
            return one.repeated
        if isinstance(one, list):
            left += [item for item in one if isinstance(item, list | dict)]
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
    except TypeError:
        if not _has_large_integer(value):
            raise
    return json.dumps(_plain(value, default, _MOST_LEVELS), ensure_ascii=False, separators=(",", ":"))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    repeated = next((key for value in found.values() if (key := repeated_key(value)) is not None), None)
    if len(found) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    if repeated is None:
        return found
    marked = WithRepeatedKey(found)
    marked.repeated = repeated
    return marked


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _may_have_lost(value: Any, text: bytes) -> bool:
    """Whether orjson may have dropped a key or rounded an integer; true for some texts that lost nothing."""
    if _is_written_again(value, text):
        return False
    keys: list[str] = []
    if _has_rounded(value, keys):
        return True
    if not keys:
        return False
    if len(keys) > _MOST_KEYS:
        return True
    if any(text.count(b'"' + key.encode() + b'"') != 1 for key in keys):
        return True
    if b"\\u" not in text:
        return False
    return not all(map(str.isascii, keys)) or _ESCAPED_ASCII.search(text) is not None


def _is_written_again(value: Any, text: bytes) -> bool:
    """Whether orjson writes an object back with the text's length, so that no key was dropped. Fast, and true for most lines.

    The text may have no spaces, or one after each colon and comma. Always false for an object with a list, an object or a float
    among its values; a float may be a rounded integer.
    """
    if type(value) is not dict or any(isinstance(item, float | dict | list) for item in value.values()):
        return False
    spaces = len(text.rstrip()) - len(orjson.dumps(value))
    if not spaces:
        return True
    colon = text.find(b'":') + 2
    return spaces == 2 * len(value) - 1 and text[colon : colon + 1] == b" "


def _has_rounded(value: Any, keys: list[str]) -> bool:
    """Whether any float may be a rounded integer; appends the keys of all objects to `keys`, unless it returns True early."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, float) and abs(one) >= _BEYOND_64_BITS:
            return True
        if isinstance(one, dict):
            keys += one
            left += [item for item in one.values() if isinstance(item, float | dict | list)]
        elif isinstance(one, list):
            left += [item for item in one if isinstance(item, float | dict | list)]
    return False


def _has_large_integer(value: Any) -> bool:
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, int) and not -(2**63) <= one < 2**64:
            return True
        if isinstance(one, dict):
            left += one.values()
        elif isinstance(one, list | tuple):
            left += one
    return False


def _plain(value: Any, default: Callable[[Any], Any] | None, levels: int) -> Any:
    """A value that `json.dumps` writes as orjson would: non-finite floats are None, keys are strings, `default` is applied.

    Raises:
        TypeError: the value is nested deeper than `levels`, or has a type that `default` does not convert.
    """
    if not levels:
        raise TypeError("nested too deeply")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(item, default, levels - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, default, levels - 1) for item in value]
    if default is None:
        raise TypeError(f"Type is not JSON serializable: {type(value).__name__}")
    return _plain(default(value), default, levels - 1)
