"""What all readers share: from the raw columns of a row to a document, or to a bad row with its reason.

datatrove skips a line that is not JSON and a row without text (a log line is all that tells), and stops at the first byte that is
not UTF-8. Its readers are the base classes here: what is kept of them are their folders and file systems, their adapter hook and
their documents. Importing this module imports datatrove (half a second), so `pipeline.sources.readers` does it only when it reads.
"""

import datetime
import decimal
import uuid
from collections.abc import Iterable
from typing import Any

import numpy as np
from datatrove.io import DataFolder
from datatrove.pipeline.readers.base import BaseReader

from pipeline import exact_json
from pipeline.errors import InputError, shown
from pipeline.sources import EXCERPT_CHARACTERS, MAX_ID_BYTES, Bad, BadRowError, Columns, Document, Row, checked_id, checked_text

_DETAIL_CHARACTERS = 500  # of what is wrong with a row: it may name columns, and a row may have thousands


def _adapter(reader: "RowReader", data: dict[str, Any], path: str, row: int) -> dict[str, Any]:  # noqa: ARG001 datatrove's shape
    """datatrove's hook from raw columns to a document: checks id and text, and keeps every other column as metadata.

    As in datatrove's own adapter, a `metadata` column that is an object, or the JSON text of one, is merged with the columns,
    its keys first; a column wins over a key of the same name. The id is metadata too where its column has another name.
    """
    identifier = checked_id(data, reader.id_key) if reader.id_key else f"{reader.number:05d}-{row}"
    try:
        text = checked_text(data, reader.text_key)
        named = (reader.text_key, "id") if reader.id_key == "id" else (reader.text_key,)
        others = {key: value for key, value in data.items() if key not in named}
        nested = others.get("metadata")
        if isinstance(nested, str) and nested.startswith("{"):
            nested = _parsed(nested)
        if isinstance(nested, dict):
            del others["metadata"]
            others = nested | others
    except BadRowError as bad:
        raise BadRowError(bad.reason, bad.detail, identifier) from bad
    return {"text": text, "id": identifier, "metadata": others}


def _parsed(text: str) -> Any:
    """The object that a `metadata` column holds as JSON; the text itself where it is not JSON."""
    try:
        return exact_json.parse(text.encode())
    except exact_json.RepeatedKeyError as error:
        raise BadRowError("repeated_key", f"the key {error.key!r} comes twice in the column metadata") from error
    except ValueError:
        return text


class RowReader(BaseReader):  # type: ignore[misc]
    """A reader of one kind of file. `read_file` yields every row of one file, in order, from a row on.

    Args:
        columns: which columns are kept as metadata, and how large they may be.
        settings: those of datatrove's reader of the same name.
    """

    number: int
    source: str
    columns: Columns

    def __init__(
        self,
        place: Any,
        *,
        number: int,
        source: str,
        text_key: str,
        id_key: str | None,
        columns: Columns,
        folder: bool = True,
        **settings: Any,
    ) -> None:
        what = DataFolder(*place, auto_mkdir=False) if folder else place
        super().__init__(what, adapter=_adapter, text_key=text_key, id_key=id_key, **settings)
        self.add_file_path = False  # metadata must not depend on where a file lies; ParquetReader does not take it as an argument
        self.number = number
        self.source = source
        self.columns = columns

    def get_document_from_dict(self, data: dict[str, Any], source_file: str, id_in_file: int | str) -> Any:
        """As datatrove's, but for what its readers of single formats add: where a file or a data set lies."""
        return BaseReader.get_document_from_dict(self, data, source_file, id_in_file)

    def row(self, data: dict[str, Any], filepath: str, row: int, excerpt: str) -> Row:
        """The row as a document, or why it is none."""
        try:
            document = self.get_document_from_dict(data, filepath, row)
            try:
                return Row(row, self._document(document), None)
            except BadRowError as bad:
                raise BadRowError(bad.reason, bad.detail, document.id) from bad
        except BadRowError as bad:
            return bad_row(row, bad.reason, bad.detail, excerpt, bad.identifier)

    def _document(self, document: Any) -> Document:
        metadata = document.metadata
        source = metadata.pop("source") if isinstance(metadata.get("source"), str) and metadata["source"] else self.source
        for name, value in (("id", document.id), ("source", source)):
            if (num_bytes := len(value.encode())) > MAX_ID_BYTES:
                raise BadRowError("id_too_long", f"{num_bytes:,} bytes in the {name}; at most {MAX_ID_BYTES:,} are stored")
        metadata = self.columns.kept(metadata)
        written = json_text(metadata)
        if (num_bytes := len(written.encode())) > self.columns.most_bytes:
            sizes = {name: len(json_text({name: value}).encode()) for name, value in metadata.items()}
            largest = max(sizes, key=lambda name: sizes[name])
            raise BadRowError(
                "metadata_too_large",
                f"{num_bytes:,} bytes of metadata, {sizes[largest]:,} of them in {largest!r}, and prepare.metadata_bytes is "
                f"{self.columns.most_bytes:,}; leave that column out with prepare.metadata, or raise prepare.metadata_bytes",
            )
        return Document(document.id, document.text, source, written)

    def check_columns(self, names: Iterable[str], filepath: str) -> None:
        """Refuse a file by the names of its columns.

        Raises:
            InputError: a name comes twice, or the column of the text or the id is missing.
        """
        names = list(names)
        place = self.place(filepath)
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(
                f"{place} has {names.count(repeated[0])} columns named {repeated[0]!r}; rename or drop all but one of them, or "
                "leave the file out of paths"
            )
        for setting, key in (("text_key", self.text_key), ("id_key", self.id_key)):
            if key is not None and key not in names:
                raise InputError(
                    f"{place} has no column {key!r} ({setting}); it has {shown(', '.join(names))[:_DETAIL_CHARACTERS]}: "
                    f"set {setting}, or leave the file out of paths"
                )

    def place(self, filepath: str) -> str:
        """The file, for a message."""
        return f"{self.data_folder.path}/{filepath}"


def bad_row(row: int, reason: str, detail: str, excerpt: str, identifier: str | None = None) -> Row:
    """A row that cannot be used."""
    return Row(row, None, Bad(reason, detail[:_DETAIL_CHARACTERS], excerpt, identifier))


def excerpt_of_bytes(line: bytes) -> str:
    """The beginning of a line."""
    return line[: 4 * EXCERPT_CHARACTERS].decode("utf-8", "replace")[:EXCERPT_CHARACTERS].rstrip("\r\n")


def excerpt_of(data: dict[str, Any], text_key: str) -> str:
    """The beginning of a row: of its text where it has one."""
    value = data.get(text_key)
    if isinstance(value, str):
        return value[:EXCERPT_CHARACTERS]
    short = {name: value[:EXCERPT_CHARACTERS] if isinstance(value, str | bytes) else value for name, value in data.items()}
    return str(short)[:EXCERPT_CHARACTERS]


def json_text(metadata: dict[str, Any]) -> str:
    """Compact JSON, keys in order; NaN and infinity are null, what JSON does not know is its text.

    Raises:
        BadRowError: a value has no text that is the same on every machine, or is nested too deeply.
    """
    if not metadata:
        return "{}"
    try:
        return exact_json.dump(metadata, default=_text_of)
    except TypeError as error:
        raise BadRowError("bad_value", f"in column {_first_that_fails(metadata)!r}: {error.__cause__ or error}") from error


def _first_that_fails(metadata: dict[str, Any]) -> str:
    for name, value in metadata.items():
        try:
            exact_json.dump(value, default=_text_of)
        except TypeError:
            return str(name)
    return ""


_TEXTS = (datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, uuid.UUID, complex)


def _text_of(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    if isinstance(value, tuple):  # a named one
        return list(value)
    if isinstance(value, _TEXTS):
        return str(value)
    # Its text would have an address in memory or a path.
    raise ValueError(f"a {type(value).__name__} cannot be metadata")
