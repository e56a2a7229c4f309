"""Reading of corpora: input files, file formats, rows, and the cutting of rows into parts of windows.

A reader yields every input row exactly once: as a document, as a bad row with a reason from `BAD_ROW_REASONS`, or, if it has no
text by design, as a skipped row with a reason from `SKIP_REASONS`. This module defines the types that all readers share.

The package may import `pipeline.execution`, `pipeline.engine`, `pipeline.config`, `pipeline.storage`, `pipeline.terminal`,
`pipeline.text` and the layers below them.
"""

from dataclasses import dataclass
from typing import Any, Literal

FileKind = Literal["jsonl", "parquet", "csv", "ipc", "warc", "dataset", "pydocs"]

BAD_ROW_REASONS = (
    "not_json",
    "invalid_utf8",
    "undecodable",
    "not_an_object",
    "missing_text",
    "text_not_string",
    "empty_text",
    "nul_byte",
    "missing_id",
    "id_not_string",
    "line_too_long",
    "repeated_key",
    "bad_value",
    "metadata_too_large",
    "id_too_long",
    "wrong_fields",
    "broken_quotes",
    "not_python",
    "duplicate_id",
    "step_failed",
)
MAX_ID_BYTES = 4096  # limit for an id or a source: every window of a document repeats both
SKIP_REASONS = ("blank_line", "other_record", "not_a_page")
EXCERPT_CHARACTERS = 200


@dataclass(frozen=True)
class InputFile:
    """One input file. `number` is its position in the list; `digest` identifies its content and does not depend on its path."""

    number: int
    url: str
    kind: FileKind
    digest: str


@dataclass(frozen=True)
class MetadataColumns:
    """The columns to keep as metadata (never id, text and source), and the limit on their size per row, in bytes of JSON."""

    names: frozenset[str] | None = None  # None keeps all columns
    max_bytes: int = 1 << 31

    def is_kept(self, name: str) -> bool:
        return self.names is None or name in self.names

    def select(self, metadata: dict[str, Any]) -> dict[str, Any]:
        """Return the entries of `metadata` to keep, in their order."""
        return metadata if self.names is None else {name: value for name, value in metadata.items() if name in self.names}


ALL_COLUMNS = MetadataColumns()


@dataclass(frozen=True, slots=True)
class Document:
    """A validated document: `text` is not blank, has no NUL and is valid Unicode; `metadata` is a JSON object as text."""

    id: str
    text: str
    source: str
    metadata: str


@dataclass(frozen=True, slots=True)
class RowProblem:
    """The reason why a row cannot be used; `id` is set if the row has a usable one."""

    reason: str
    detail: str
    excerpt: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file; exactly one of `document`, `problem` and `skipped` is set.

    `number` counts from 0. For JSON lines it is the line number, blank lines included.
    """

    number: int
    document: Document | None
    problem: RowProblem | None
    skipped: str | None = None  # the reason, from SKIP_REASONS


class RowError(Exception):
    """Raised by the checks of a row. The reader converts it to a `RowProblem`, so it never leaves a reader."""

    def __init__(self, reason: str, detail: str, identifier: str | None = None) -> None:
        super().__init__(reason, detail, identifier)
        self.reason, self.detail, self.identifier = reason, detail, identifier


def validate_id(data: dict[str, Any], key: str) -> str:
    """Return the row's id; an integer is converted to its decimal digits.

    Raises:
        RowError: the id is missing or empty, is neither a string nor an integer, or contains a NUL or a lone surrogate.
    """
    value = data.get(key)
    if value is None or value == "":
        raise RowError("missing_id", f"the row has no value for id_key {key!r}")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowError("id_not_string", f"the id is a {type(value).__name__}; it must be a string or an integer")
    identifier = str(value)
    if "\0" in identifier:
        raise RowError("nul_byte", "in the id")
    check_unicode(identifier, key)
    return identifier


def validate_text(data: dict[str, Any], key: str) -> str:
    """Return the row's text, unchanged.

    Raises:
        RowError: the text is missing, not a string, blank, or contains a NUL or a lone surrogate.
    """
    text = data.get(key)
    if text is None:
        raise RowError(
            "missing_text", f"the row has no value for text_key {key!r}; its columns are {', '.join(map(str, data)) or 'none'}"
        )
    if not isinstance(text, str):
        raise RowError("text_not_string", f"the text is a {type(text).__name__}; it must be a string")
    if not text or text.isspace():
        raise RowError("empty_text", f"{len(text)} characters, all of them white space")
    if (position := text.find("\0")) >= 0:
        raise RowError("nul_byte", f"at character {position} of the text")
    check_unicode(text, key)
    return text


def check_unicode(value: str, column: str) -> None:
    """Check that a string can be written in UTF-8.

    Raises:
        RowError: it contains a lone surrogate, from a JSON escape or from bytes that are not UTF-8.
    """
    if value.isascii():
        return
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError("invalid_utf8", f"at character {error.start} of column {column!r}, a lone surrogate") from error
