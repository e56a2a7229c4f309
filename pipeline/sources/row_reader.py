"""The base class of all readers: converts the raw columns of a row to a document, or to a bad row with a reason.

datatrove drops lines that are not JSON and rows without text with only a log line, and stops at the first byte that is not
UTF-8. Our readers derive from datatrove's and reuse their folders and file systems, their adapter hook and their documents.
Importing this module imports datatrove (half a second), so `pipeline.sources.readers` imports it only when it reads a file.
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
from pipeline.errors import InputError, replace_controls
from pipeline.sources import (
    EXCERPT_CHARACTERS,
    MAX_ID_BYTES,
    Document,
    MetadataColumns,
    Row,
    RowError,
    RowProblem,
    check_unicode,
    validate_id,
    validate_text,
)

_DETAIL_CHARACTERS = 500  # limit for the detail of a bad row: it may list columns, and a row may have thousands


def _adapter(reader: "RowReader", data: dict[str, Any], path: str, row: int) -> dict[str, Any]:  # noqa: ARG001 datatrove's shape
    """Check id and text, and keep every other column as metadata. This is datatrove's adapter hook.

    As in datatrove's own adapter, a `metadata` column that is an object, or the JSON text of one, is merged with the columns,
    its keys first; a column takes precedence over a key of the same name. An id column not named `id` is kept as metadata too.

    Raises:
        RowError: id or text is invalid, or the `metadata` column repeats a key.
    """
    identifier = validate_id(data, reader.id_key) if reader.id_key else f"{reader.number:05d}-{row}"
    try:
        text = validate_text(data, reader.text_key)
        own_columns = (reader.text_key, "id") if reader.id_key == "id" else (reader.text_key,)
        others = {key: value for key, value in data.items() if key not in own_columns}
        nested = others.get("metadata")
        if isinstance(nested, str) and nested.startswith("{"):
            nested = _parse_metadata(nested)
        if isinstance(nested, dict):
            del others["metadata"]
            others = nested | others
    except RowError as error:
        raise RowError(error.reason, error.detail, identifier) from error
    return {"text": text, "id": identifier, "metadata": others}


def _parse_metadata(text: str) -> Any:
    """Parse the JSON text of a `metadata` column; return the text itself if it is not JSON.

    Raises:
        RowError: an object in it repeats a key.
    """
    try:
        return exact_json.parse(text.encode())
    except exact_json.RepeatedKeyError as error:
        raise RowError("repeated_key", f"the key {error.key!r} is repeated in the column metadata") from error
    except ValueError:
        return text


class RowReader(BaseReader):  # type: ignore[misc]
    """Base class of a reader for one kind of file. Subclasses define `read_file`, which yields the rows of a file from a row on.

    Args:
        folder_or_dataset: (folder, file system); the path or name of a dataset if `is_folder` is false.
        number: number of the file, used in generated ids.
        source: `source` of rows that have none.
        columns: columns kept as metadata, and the limit on their size.
        settings: settings of datatrove's reader of the same name.
    """

    number: int
    source: str
    columns: MetadataColumns

    def __init__(
        self,
        folder_or_dataset: Any,
        *,
        number: int,
        source: str,
        text_key: str,
        id_key: str | None,
        columns: MetadataColumns,
        is_folder: bool = True,
        **settings: Any,
    ) -> None:
        source_location = DataFolder(*folder_or_dataset, auto_mkdir=False) if is_folder else folder_or_dataset
        super().__init__(source_location, adapter=_adapter, text_key=text_key, id_key=id_key, **settings)
        self.add_file_path = False  # metadata must not depend on a file's location; ParquetReader has no argument for this
        self.number = number
        self.source = source
        self.columns = columns

    def get_document_from_dict(self, data: dict[str, Any], source_file: str, id_in_file: int | str) -> Any:
        """Do what datatrove's base class does. Its readers for single formats would add the path of the file or dataset."""
        return BaseReader.get_document_from_dict(self, data, source_file, id_in_file)

    def make_row(self, data: dict[str, Any], filepath: str, row: int, excerpt: str) -> Row:
        """Return the row with its document, or as a bad row."""
        try:
            document = self.get_document_from_dict(data, filepath, row)
            try:
                return Row(row, self._make_document(document), None)
            except RowError as error:
                raise RowError(error.reason, error.detail, document.id) from error
        except RowError as error:
            return bad_row(row, error.reason, error.detail, excerpt, error.identifier)

    def _make_document(self, document: Any) -> Document:
        metadata = document.metadata
        source = metadata.pop("source") if isinstance(metadata.get("source"), str) and metadata["source"] else self.source
        check_unicode(source, "source")
        for name, value in (("id", document.id), ("source", source)):
            if (num_bytes := len(value.encode())) > MAX_ID_BYTES:
                raise RowError("id_too_long", f"{num_bytes:,} bytes in the {name}; the limit is {MAX_ID_BYTES:,}")
        metadata = self.columns.select(metadata)
        metadata_json = dump_metadata(metadata)
        if (num_bytes := len(metadata_json.encode())) > self.columns.max_bytes:
            sizes = {name: len(dump_metadata({name: value}).encode()) for name, value in metadata.items()}
            raise RowError("metadata_too_large", describe_large_metadata(f"{num_bytes:,}", sizes, self.columns.max_bytes))
        return Document(document.id, document.text, source, metadata_json)

    def check_columns(self, names: Iterable[str], filepath: str) -> None:
        """Check the column names of a file.

        Raises:
            InputError: a name is repeated, or the text or id column is missing.
        """
        names = list(names)
        path = self.format_path(filepath)
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(
                f"{path} has {names.count(repeated[0])} columns named {repeated[0]!r}; rename or drop all but one of them, or "
                "remove the file from paths"
            )
        for setting, key in (("text_key", self.text_key), ("id_key", self.id_key)):
            if key is not None and key not in names:
                raise InputError(
                    f"{path} has no column {key!r} ({setting}); it has {replace_controls(', '.join(names))[:_DETAIL_CHARACTERS]}: "
                    f"set {setting}, or remove the file from paths"
                )

    def format_path(self, filepath: str) -> str:
        """Return the file's path for messages."""
        return f"{self.data_folder.path}/{filepath}"


def bad_row(row: int, reason: str, detail: str, excerpt: str, identifier: str | None = None) -> Row:
    """Return a bad row; `detail` is truncated to 500 characters, and lone surrogates are shown as escapes."""
    detail, excerpt = _escape_surrogates(detail)[:_DETAIL_CHARACTERS], _escape_surrogates(excerpt)[:EXCERPT_CHARACTERS]
    return Row(row, None, RowProblem(reason, detail, excerpt, identifier))


def _escape_surrogates(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def excerpt_of_bytes(line: bytes) -> str:
    """Return the beginning of a line as text."""
    return line[: 4 * EXCERPT_CHARACTERS].decode("utf-8", "replace")[:EXCERPT_CHARACTERS].rstrip("\r\n")


def excerpt_of(data: dict[str, Any], text_key: str) -> str:
    """Return the beginning of a row's text; without a text, the beginning of all its columns."""
    value = data.get(text_key)
    if isinstance(value, str):
        return value[:EXCERPT_CHARACTERS]
    short = {name: value[:EXCERPT_CHARACTERS] if isinstance(value, str | bytes) else value for name, value in data.items()}
    return str(short)[:EXCERPT_CHARACTERS]


def describe_large_metadata(total: str, sizes: dict[str, int], max_bytes: int) -> str:
    """Return the detail of a row with more metadata than `max_bytes`: its total, its largest column, and what to change."""
    largest = max(sizes, key=lambda name: sizes[name])
    return (
        f"{total} bytes of metadata, {sizes[largest]:,} of them in {largest!r}; prepare.metadata_bytes is {max_bytes:,}. "
        "Exclude that column with prepare.metadata, or raise prepare.metadata_bytes"
    )


def dump_metadata(metadata: dict[str, Any]) -> str:
    """Return compact JSON with keys in their order. NaN and infinity become null; other types are converted by `_to_json_value`.

    Raises:
        RowError: a value has no text form that is the same on every machine, is nested too deeply, or is not valid Unicode.
    """
    if not metadata:
        return "{}"
    try:
        return exact_json.dump(metadata, default=_to_json_value)
    except TypeError as error:
        name, problem = _first_failing_column(metadata)
        if "surrogates" in problem:
            raise RowError("invalid_utf8", f"in column {name!r}, a lone surrogate") from error
        raise RowError("bad_value", f"in column {name!r}: {problem}") from error


def _first_failing_column(metadata: dict[str, Any]) -> tuple[str, str]:
    for name, value in metadata.items():
        try:
            exact_json.dump({name: value}, default=_to_json_value)
        except TypeError as error:
            return str(name), str(error.__cause__ or error)
    raise AssertionError("each column can be written as JSON, but all of them together cannot")


_STR_TYPES = (datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, uuid.UUID, complex)


def _to_json_value(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    if isinstance(value, tuple):  # a named tuple
        return list(value)
    if isinstance(value, _STR_TYPES):
        return str(value)
    # The text of other types may contain a memory address or a path.
    raise ValueError(f"a {type(value).__name__} cannot be metadata")
