"""Fingerprints: what a stage's output was computed from, as one short name.

The identity of an output is a plain record: the stage and its version, every setting that changes a value, and the
fingerprints of its inputs. Paths, worker counts and devices are not in it. The record itself is stored beside the
fingerprint, so that two runs that differ can be compared field by field.
"""

import hashlib
import json
import math
from typing import Any


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces.

    Raises:
        TypeError: the value holds something that has no stable text: a set, an object, NaN or infinity.
    """
    _refuse_unstable(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def fingerprint(identity: dict[str, Any]) -> str:
    """16 hex digits of the SHA-256 of the identity's canonical JSON."""
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:16]


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """One line for each field in which two identities differ: `settings.tokens: 256 → 128`."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        name, a, b = f"{prefix}{key}", old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{name}.")
        elif a != b:
            lines.append(f"{name}: {a} → {b}")
    return lines


def _refuse_unstable(value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"a key of an identity must be a string, got {key!r}")
            _refuse_unstable(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_unstable(item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise TypeError(f"an identity cannot hold {value}")
    elif not isinstance(value, str | int | float | bool | None):
        raise TypeError(f"an identity cannot hold a {type(value).__name__}: {value!r}")
