"""JSON without silent loss: integers of any size, and objects in which a key comes twice.

orjson is fast, but it turns integers beyond 64 bits into floats and keeps the last of two equal keys. These functions use it
wherever neither can have happened, and the standard library's parser elsewhere.
"""

import json
import math
import re
from collections.abc import Callable
from typing import Any

import orjson

# More keys than this, and looking for each of them in the text takes longer than parsing it exactly.
_MOST_KEYS = 32
_MOST_LEVELS = 254  # that orjson writes; a fixed number, as Python's own limit depends on who calls
_MANY_DIGITS = re.compile(r"\d{19}")
_ESCAPED_ASCII = re.compile(rb"\\u00[2-7]")  # a key may be spelled so
_BEYOND_64_BITS = 2.0**63


class RepeatedKeyError(ValueError):
    """An object has a key twice."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


class WithRepeatedKey(dict[str, Any]):
    """An object in which, or below which, a key comes twice; `repeated` is the key."""

    repeated = ""


def parse(text: bytes) -> Any:
    """The value of a JSON text in UTF-8.

    Raises:
        orjson.JSONDecodeError: it is not JSON, or is nested deeper than a parser goes.
        RepeatedKeyError: an object has a key twice.
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
    """The same by the standard library; an object with a repeated key is a `WithRepeatedKey`, and so is all that holds it.

    Raises:
        orjson.JSONDecodeError: as `parse`.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except (RecursionError, ValueError) as error:
        raise orjson.JSONDecodeError(str(error) or "nested too deeply", text.decode("utf-8", "replace"), 0) from error


def repeated_key(value: Any) -> str | None:
    """The key that comes twice in what `parse_exactly` returned; None where none does."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, WithRepeatedKey):
            return one.repeated
        if isinstance(one, list):
            left += [item for item in one if isinstance(item, list | dict)]
    return None


def load(text: str) -> Any:
    """The value of JSON that `dump` wrote."""
    return json.loads(text) if _MANY_DIGITS.search(text) else orjson.loads(text)


def dump(value: Any, default: Callable[[Any], Any] | None = None, option: int = 0) -> str:
    """Compact JSON, keys in order; NaN and infinity are null, times are left to `default`.

    Raises:
        TypeError: `default` refuses a value, or it is nested deeper than 254 levels.
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
    """Whether orjson may have dropped a key or rounded an integer. True for some texts where it has not."""
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
    """Whether an object is as long when orjson writes it, so that nothing of the text is missing: quick, and true of most lines.

    The text has no spaces, or one after each colon and comma where no value is an object or a list. A float may be rounded.
    """
    if type(value) is not dict or any(isinstance(item, float | dict | list) for item in value.values()):
        return False
    spaces = len(text.rstrip()) - len(orjson.dumps(value))
    if not spaces:
        return True
    colon = text.find(b'":') + 2
    return spaces == 2 * len(value) - 1 and text[colon : colon + 1] == b" "


def _has_rounded(value: Any, keys: list[str]) -> bool:
    """Whether a float may be a rounded integer; collects the keys of all objects."""
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
    """What the standard library writes as orjson would, of so many levels at most."""
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
