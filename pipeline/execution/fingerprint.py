"""Fingerprints: a short hash of everything that an output was computed from.

The identity of an output is a plain record: the stage and its version, every setting that changes a value, and the fingerprints of
its inputs. It has no paths, worker counts or devices. The record is stored in the manifest, so that two runs can be compared field
by field.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

_MAX_NAMES, _MAX_CHARACTERS = 3, 100  # shown of a difference between two identities


def canonical_json(value: Any) -> str:
    """The canonical JSON of a value: sorted keys, no spaces.

    Raises:
        TypeError: the value contains something without a stable text: a set, an object, NaN or infinity.
    """
    _check_is_stable(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def fingerprint(identity: dict[str, Any]) -> str:
    """The first 16 hex digits of the SHA-256 of the identity's canonical JSON."""
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:16]


def diff_identities(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """One line for each field in which two identities differ: `settings.tokens: 256 → 128`.

    Long values are cut. Of lists of named items, such as input files, only the items that differ are named, at most three.
    """
    lines = []
    for key in sorted(old.keys() | new.keys()):
        name, a, b = f"{prefix}{key}", old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += diff_identities(a, b, f"{name}.")
        elif a != b and isinstance(a, list) and isinstance(b, list) and all(_is_named(item) for item in (*a, *b)):
            lines.append(f"{name}: {_diff_named_items(a, b)}")
        elif a != b:
            lines.append(f"{name}: {_shorten(a)} → {_shorten(b)}")
    return lines


def _is_named(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("name"), str)


def _diff_named_items(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> str:
    """`2 added (a, b), 1 removed (c), 4 changed (d, e, f, …)`."""
    old_of, new_of = ({item["name"]: item for item in items} for items in (old, new))
    differences = {
        "added": new_of.keys() - old_of.keys(),
        "removed": old_of.keys() - new_of.keys(),
        "changed": {name for name in old_of.keys() & new_of.keys() if old_of[name] != new_of[name]},
    }
    parts = [f"{len(names)} {what} ({_list_some(sorted(names))})" for what, names in differences.items() if names]
    return ", ".join(parts) or "in another order or number"


def _list_some(names: Sequence[str]) -> str:
    return ", ".join((*names[:_MAX_NAMES], *(["…"] if len(names) > _MAX_NAMES else [])))


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _MAX_CHARACTERS else text[:_MAX_CHARACTERS] + " …"


def _check_is_stable(value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"a key of an identity must be a string, got {key!r}")
            _check_is_stable(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_is_stable(item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise TypeError(f"an identity cannot hold {value}")
    elif not isinstance(value, str | int | float | bool | None):
        raise TypeError(f"an identity cannot hold a {type(value).__name__}: {value!r}")
