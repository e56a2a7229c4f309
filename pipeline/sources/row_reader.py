"""What all readers share: from the raw columns of a row to a document, or to a bad row with its reason.

datatrove skips a line that is not JSON and a row without text (a log line is all that tells), and stops at the first byte that is
not UTF-8. Its readers are the base classes here: what is kept of them are their folders and file systems, their adapter hook and
their documents. Importing this module imports datatrove (half a second), so `pipeline.readers` does it only when it reads.
"""

from typing import Any

import orjson
from datatrove.io import DataFolder
from datatrove.pipeline.readers.base import BaseDiskReader

from pipeline.sources import EXCERPT_CHARACTERS, Bad, BadRowError, Document, Row, checked_id, checked_text


def _adapter(reader: BaseDiskReader, data: dict[str, Any], path: str, row: int) -> dict[str, Any]:  # noqa: ARG001 datatrove's shape
    """datatrove's hook from raw columns to a document: checks id and text, and keeps every other column as metadata.

    As in datatrove's own adapter, a `metadata` column that is an object, or the JSON text of one, is merged with the columns,
    its keys first; a column wins over a key of the same name.
    """
    identifier = checked_id(data, reader.id_key) if reader.id_key else f"{reader.number:05d}-{row}"
    try:
        text = checked_text(data, reader.text_key)
    except BadRowError as bad:
        raise BadRowError(bad.reason, bad.detail, identifier) from bad
    others = {key: value for key, value in data.items() if key not in (reader.text_key, reader.id_key)}
    nested = others.get("metadata")
    if isinstance(nested, str) and nested.startswith("{"):
        try:
            nested = orjson.loads(nested)
        except orjson.JSONDecodeError:
            nested = None
    if isinstance(nested, dict):
        del others["metadata"]
        others = nested | others
    return {"text": text, "id": identifier, "metadata": others}


class RowReader:
    """A reader of one kind of file. `read_file` yields every row of one file, in order, from a row on."""

    def __init__(
        self, place: str, *, number: int, source: str, text_key: str, id_key: str | None, folder: bool = True, **settings: Any
    ) -> None:
        what = DataFolder(place, auto_mkdir=False) if folder else place
        super().__init__(what, adapter=_adapter, text_key=text_key, id_key=id_key, **settings)  # type: ignore[call-arg]
        self.add_file_path = False  # metadata must not depend on where a file lies; ParquetReader does not take it as an argument
        self.number = number
        self.source = source

    def row(self, data: dict[str, Any], filepath: str, row: int, excerpt: str) -> Row:
        try:
            document = self.get_document_from_dict(data, filepath, row)  # type: ignore[attr-defined]
        except BadRowError as bad:
            return bad_row(row, bad.reason, bad.detail, excerpt, bad.identifier)
        metadata = document.metadata
        source = metadata.pop("source") if isinstance(metadata.get("source"), str) and metadata["source"] else self.source
        return Row(row, Document(document.id, document.text, source, json_text(metadata)), None)


def bad_row(row: int, reason: str, detail: str, excerpt: str, identifier: str | None = None) -> Row:
    return Row(row, None, Bad(reason, detail, excerpt, identifier))


def excerpt_of_bytes(line: bytes) -> str:
    return line[: 4 * EXCERPT_CHARACTERS].decode("utf-8", "replace")[:EXCERPT_CHARACTERS].rstrip("\r\n")


def excerpt_of(data: dict[str, Any], text_key: str) -> str:
    value = data.get(text_key)
    return value[:EXCERPT_CHARACTERS] if isinstance(value, str) else str(data)[:EXCERPT_CHARACTERS]


def json_text(metadata: dict[str, Any]) -> str:
    """Compact JSON, keys in order; NaN and infinity are null, what JSON does not know is its text."""
    if not metadata:
        return "{}"
    return orjson.dumps(metadata, default=_text_of, option=orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_NON_STR_KEYS).decode()


def _text_of(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
