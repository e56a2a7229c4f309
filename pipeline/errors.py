"""The exception hierarchy with the exit status of each class, and helpers for messages.

    CrispwrapError
    ├── UserError            exit 2: a mistake in config or input; one clear line
    │   ├── ConfigError      a setting: unknown, out of range, contradicting another
    │   └── InputError       a file or row: missing, truncated, unreadable, too many bad rows
    └── RunError             exit 1: the run failed although config and input are valid
        ├── StorageError     a failed read or write: disk full, no permission
        └── WorkerError      a worker died, or a part used up its retries

A message names the file, row or setting, the rule, the value found, and the remedy. Raise these for problems that a user can meet;
use `assert` for our own invariants.
"""

import difflib
import re
from collections.abc import Iterable

# C0 except tab and line feed, DEL, C1, and bidirectional formatting characters.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class CrispwrapError(Exception):
    """Base class of all errors that crispwrap raises deliberately."""

    exit_code = 1


class UserError(CrispwrapError):
    """A mistake in config or input that the user can fix."""

    exit_code = 2


class ConfigError(UserError):
    """A setting is unknown, out of range, or contradicts another."""


class InputError(UserError):
    """An input file or row cannot be used."""


class RunError(CrispwrapError):
    """The run failed although config and input are valid."""


class StorageError(RunError):
    """A file could not be read or written."""


class WorkerError(RunError):
    """A worker died, or a part used up its retries."""


def one_line(message: object) -> str:
    """A library's error or message on one line of at most 500 characters."""
    return " ".join(str(message).split())[:500]


def suggest_name(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """The hint ` (did you mean X?)` with the most similar known name, or an empty string if none is similar enough."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f" (did you mean {matches[0]}?)" if matches else ""


def is_utf8(path: str) -> bool:
    """Whether a path is valid UTF-8: Python decodes each invalid byte to a lone surrogate."""
    return not any("\ud800" <= character <= "\udfff" for character in path)


def replace_controls(text: str) -> str:
    """Untrusted text made safe for a terminal: control characters, which could move the cursor or hide text, become `�`."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)
