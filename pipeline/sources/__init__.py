"""What comes in: the files, and the rows that a reader makes of them.

Every input row leaves a reader once: as a good document, as a bad row with one of the fixed words of `REASONS`, or skipped, as
something that is no row of text, with one of the fixed words of `SKIPPED`.
"""

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["jsonl", "parquet", "csv", "ipc", "warc", "dataset", "pydocs"]

REASONS = (
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
MAX_ID_BYTES = 4096  # of an id or a source, which every window of a document repeats
SKIPPED = ("blank_line", "other_record", "not_a_page")
EXCERPT_CHARACTERS = 200


@dataclass(frozen=True)
class InputFile:
    """One input file. `number` is its place in the list; `digest` is the identity of its content, free of its path."""

    number: int
    url: str
    kind: Kind
    digest: str


@dataclass(frozen=True)
class Columns:
    """Which columns beside id, text and source are kept as metadata, and the most bytes of them in a row (as JSON)."""

    names: frozenset[str] | None = None  # None: all
    most_bytes: int = 1 << 31

    def keeps(self, name: str) -> bool:
        return self.names is None or name in self.names

    def kept(self, metadata: dict[str, Any]) -> dict[str, Any]:
        """Those of a row's columns that are kept, in their order."""
        return metadata if self.names is None else {name: value for name, value in metadata.items() if name in self.names}


ALL_COLUMNS = Columns()


@dataclass(frozen=True, slots=True)
class Document:
    """A validated document: `text` is not blank, has no NUL, and is valid Unicode; `metadata` is the text of a JSON object."""

    id: str
    text: str
    source: str
    metadata: str


@dataclass(frozen=True, slots=True)
class Bad:
    """Why a row cannot be used; `id` where the row has a usable one."""

    reason: str
    detail: str
    excerpt: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """Row `row` of a file, from 0, as one of `document`, `bad` and `skipped`. Of JSON lines it is the line; blank ones count."""

    row: int
    document: Document | None
    bad: Bad | None
    skipped: str | None = None  # why it is no row of text


class BadRowError(Exception):
    """Raised where a row is checked, and turned into a `Bad` by the reader; never leaves a reader."""

    def __init__(self, reason: str, detail: str, identifier: str | None = None) -> None:
        super().__init__(reason, detail, identifier)
        self.reason, self.detail, self.identifier = reason, detail, identifier


def checked_id(data: dict[str, Any], key: str) -> str:
    """The row's id; an integer becomes its decimal digits.

    Raises:
        BadRowError: there is none, or it is neither a string nor an integer.
    """
    value = data.get(key)
    if value is None or value == "":
        raise BadRowError("missing_id", f"no value under id_key {key!r}")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadRowError("id_not_string", f"the id is {type(value).__name__}; a string or an integer is needed")
    identifier = str(value)
    if "\0" in identifier:
        raise BadRowError("nul_byte", "in the id")
    return identifier


def checked_text(data: dict[str, Any], key: str) -> str:
    """The row's text, as it is.

    Raises:
        BadRowError: missing, not a string, blank, or not storable as UTF-8 text.
    """
    text = data.get(key)
    if text is None:
        raise BadRowError("missing_text", f"no value under text_key {key!r}; the row has {', '.join(map(str, data)) or 'nothing'}")
    if not isinstance(text, str):
        raise BadRowError("text_not_string", f"the text is {type(text).__name__}")
    if not text or text.isspace():
        raise BadRowError("empty_text", f"{len(text)} characters, all blank")
    if (position := text.find("\0")) >= 0:
        raise BadRowError("nul_byte", f"at character {position} of the text")
    return text
