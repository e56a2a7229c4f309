"""Reads the rows of an input file with the reader for its kind.

Cheap to import: datatrove is imported when the first file is read.
"""

import csv
import errno
import importlib
import lzma
import zlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline.config import Corpus, Prepare
from pipeline.errors import InputError, StorageError
from pipeline.sources import ALL_COLUMNS, InputFile, MetadataColumns, Row, pydocs
from pipeline.sources.listing import base_name, url_to_fs
from pipeline.storage import describe_error, is_store_error

# `module:Class` by kind, imported on first use: importing datatrove takes half a second.
_READERS = {
    "jsonl": "json_lines:StrictJsonlReader",
    "parquet": "arrow_tables:StrictParquetReader",
    "csv": "csv_files:StrictCsvReader",
    "ipc": "arrow_tables:StrictIpcReader",
    "warc": "warc:StrictWarcReader",
    "dataset": "datasets:StrictDatasetReader",
}
_DAMAGE_ERRORS = (EOFError, zlib.error, lzma.LZMAError, csv.Error, pa.ArrowException, OSError)
_USER_ERRNOS = (None, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR)  # None: damage found by a decoder


def metadata_columns(prepare: Prepare) -> MetadataColumns:
    """Return the columns that `prepare.metadata` keeps, with the limit of `prepare.metadata_bytes`."""
    names = {"all": None, "none": frozenset[str]()}
    kept = names[prepare.metadata] if isinstance(prepare.metadata, str) else frozenset(prepare.metadata)
    return MetadataColumns(kept, prepare.metadata_bytes)


def read_rows(
    file: InputFile,
    corpus: Corpus,
    *,
    first_row: int = 0,
    num_rows_before: int = 0,
    columns: MetadataColumns = ALL_COLUMNS,
    unsupported_columns: dict[str, str] | None = None,
) -> Iterator[Row]:
    """Yield every row of the file from row `first_row` on, in order, whether good, bad or skipped.

    `corpus.limit` bounds the good and bad rows of the whole file. Rows before `first_row` are not parsed, and whole Parquet row
    groups before it are not read. Without `id_key`, ids are `<5-digit file number>-<row>`. `source` is the row's string column
    `source`, else the file's name without its ending. Memory is bounded by the longest row.

    Args:
        num_rows_before: number of good and bad rows before `first_row`; they count towards `corpus.limit`.
        columns: columns kept as metadata. A row with more than `columns.max_bytes` of metadata is bad.
        unsupported_columns: receives the columns of the file that cannot be kept as metadata, with the kind of their values.

    Raises:
        InputError: the file cannot be read, is damaged or truncated, has a column twice, or lacks the text or id column. Rows
            before the damage are yielded first.
        StorageError: the file system failed; a retry may succeed.
    """
    last_row = -1
    num_remaining = None if corpus.limit is None else corpus.limit - num_rows_before
    try:
        for row in _iter_rows(file, corpus, first_row, columns, {} if unsupported_columns is None else unsupported_columns):
            if num_remaining is not None and row.skipped is None:
                if num_remaining <= 0:
                    return
                num_remaining -= 1
            last_row = row.number
            yield row
    except Exception as error:
        message = f"cannot read {file.url} beyond row {last_row}" if last_row >= 0 else f"cannot read {file.url}"
        if is_store_error(error) or (isinstance(error, OSError) and error.errno not in _USER_ERRNOS):
            raise StorageError(
                f"{message}: {describe_error(error)}; run the same command again; finished parts are reused"
            ) from error
        if isinstance(error, _DAMAGE_ERRORS):
            raise InputError(f"{message}: {describe_error(error)}; replace the file, or remove it from paths") from error
        raise


def _iter_rows(
    file: InputFile, corpus: Corpus, first_row: int, columns: MetadataColumns, unsupported_columns: dict[str, str]
) -> Iterator[Row]:
    if file.kind == "pydocs":
        return (row for row in pydocs.read_rows(file.url, columns, sample=corpus.limit is not None) if row.number >= first_row)
    reader = _load_reader_class(file.kind)
    settings = {name: value for name, value in (corpus.reader or {}).items() if name != "type"}
    common: dict[str, Any] = {
        "number": file.number,
        "source": base_name(file.url),
        "text_key": corpus.text_key,
        "id_key": corpus.id_key,
        "columns": columns,
    }
    if file.kind == "dataset":
        dataset_rows: Iterator[Row] = reader(file.url, **common, **settings).read(first_row, unsupported_columns)
        return dataset_rows
    fs, path = url_to_fs(file.url)
    folder, _, name = path.rpartition("/")
    rows: Iterator[Row] = reader((folder or "/", fs), **common, **settings).read_file(name, first_row)
    return rows


def _load_reader_class(kind: str) -> Any:
    """Return the reader class for files of a kind."""
    module, _, name = _READERS[kind].partition(":")
    return getattr(importlib.import_module(f"pipeline.sources.{module}"), name)
