"""What can go wrong, and whose mistake it is.

    CrispwrapError
    ├── UserError            exit 2: a mistake in config or input; one clear line
    │   ├── ConfigError      a setting: unknown, out of range, contradicting another
    │   └── InputError       a file or row: missing, truncated, unreadable, too many bad rows
    └── RunError             exit 1: the run failed though config and input were right
        ├── StorageError     a read or write that failed: disk full, no permission
        └── WorkerError      a worker died, or a part failed more often than it may

A message names the file, row or setting, the rule, the value it got, and the mend. An `assert` is for our own invariants;
these are for what can happen to a user.
"""

import difflib
import re
from collections.abc import Iterable

# C0 without tab and line feed, DEL, C1, and what changes the direction of writing.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class CrispwrapError(Exception):
    """Root of all errors raised on purpose."""

    exit_code = 1


class UserError(CrispwrapError):
    """A mistake in config or input, which the user can mend."""

    exit_code = 2


class ConfigError(UserError):
    """A setting is unknown, out of range, or contradicts another."""


class InputError(UserError):
    """An input file or row cannot be used."""


class RunError(CrispwrapError):
    """The run failed though config and input were right."""


class StorageError(RunError):
    """A file could not be read or written."""


class WorkerError(RunError):
    """A worker died, or a part failed more often than it may."""


def one_line(said: object) -> str:
    """What a library said, for a message: a line of at most 500 characters."""
    return " ".join(str(said).split())[:500]


def nearest(name: str, among: Iterable[str], cutoff: float = 0.5) -> str:
    """For a message: a hint at the name that was meant, or nothing."""
    near = difflib.get_close_matches(name, list(among), n=1, cutoff=cutoff)
    return f" (did you mean {near[0]}?)" if near else ""


def is_utf8(path: str) -> bool:
    """Whether a path is text: Python has a lone surrogate for each byte that is not UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in path)


def shown(text: str) -> str:
    """Text that may come from a corpus, for a terminal: control characters, which could move its cursor or hide words, are `�`."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)
