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
from pipeline.sources import ALL_COLUMNS, Columns, InputFile, Row, pydocs
from pipeline.sources.listing import base_name, file_system
from pipeline.storage import is_store_error, said

# `module:Class` by kind, imported on first use: importing datatrove takes half a second.
_READERS = {
    "jsonl": "json_lines:StrictJsonlReader",
    "parquet": "arrow_tables:StrictParquetReader",
    "csv": "csv_files:StrictCsvReader",
    "ipc": "arrow_tables:StrictIpcReader",
    "warc": "warc:StrictWarcReader",
    "dataset": "datasets:StrictDatasetReader",
}
_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, csv.Error, pa.ArrowException, OSError)
_USERS_MISTAKE = (None, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR)  # None: damage found by a decoder


def columns_of(prepare: Prepare) -> Columns:
    """Return the columns that `prepare.metadata` keeps, with the limit of `prepare.metadata_bytes`."""
    names = {"all": None, "none": frozenset[str]()}
    kept = names[prepare.metadata] if isinstance(prepare.metadata, str) else frozenset(prepare.metadata)
    return Columns(kept, prepare.metadata_bytes)


def read_rows(
    file: InputFile,
    corpus: Corpus,
    *,
    first: int = 0,
    before: int = 0,
    columns: Columns = ALL_COLUMNS,
    left_out: dict[str, str] | None = None,
) -> Iterator[Row]:
    """Yield every row of the file from row `first` on, in order, whether good, bad or skipped.

    `corpus.limit` bounds the good and bad rows of the whole file. Rows before `first` are not parsed, and whole Parquet row groups
    before it are not read. Without `id_key`, ids are `<5-digit file number>-<row>`. `source` is the row's string column `source`,
    else the file's name without its ending. Memory is bounded by the longest row.

    Args:
        before: number of good and bad rows before `first`; they count towards `corpus.limit`.
        columns: columns kept as metadata. A row with more than `columns.most_bytes` of metadata is bad.
        left_out: receives the columns that cannot be kept for the whole file, with the reason.

    Raises:
        InputError: the file cannot be read, is damaged or truncated, has a column twice, or lacks the text or id column. Rows
            before the damage are yielded first.
        StorageError: the file system failed; a retry may succeed.
    """
    reached = -1
    left = None if corpus.limit is None else corpus.limit - before
    try:
        for row in _rows(file, corpus, first, columns, {} if left_out is None else left_out):
            if left is not None and row.skipped is None:
                if left <= 0:
                    return
                left -= 1
            reached = row.row
            yield row
    except Exception as error:
        place = f"cannot read {file.url} beyond row {reached}" if reached >= 0 else f"cannot read {file.url}"
        if is_store_error(error) or (isinstance(error, OSError) and error.errno not in _USERS_MISTAKE):
            raise StorageError(f"{place}: {said(error)}; run the same command again, finished parts are kept") from error
        if isinstance(error, _DAMAGE):
            raise InputError(f"{place}: {said(error)}; replace the file, or leave it out of paths") from error
        raise


def _rows(file: InputFile, corpus: Corpus, first: int, columns: Columns, left_out: dict[str, str]) -> Iterator[Row]:
    if file.kind == "pydocs":
        return (row for row in pydocs.read_rows(file.url, columns, sample=corpus.limit is not None) if row.row >= first)
    reader = _reader(file.kind)
    settings = {name: value for name, value in (corpus.reader or {}).items() if name != "type"}
    what: dict[str, Any] = {
        "number": file.number,
        "source": base_name(file.url),
        "text_key": corpus.text_key,
        "id_key": corpus.id_key,
        "columns": columns,
    }
    if file.kind == "dataset":
        dataset_rows: Iterator[Row] = reader(file.url, **what, **settings).read(first, left_out)
        return dataset_rows
    fs, path = file_system(file.url)
    folder, _, name = path.rpartition("/")
    rows: Iterator[Row] = reader((folder or "/", fs), **what, **settings).read_file(name, first)
    return rows


def _reader(kind: str) -> Any:
    """Return the reader class for files of a kind."""
    module, _, name = _READERS[kind].partition(":")
    return getattr(importlib.import_module(f"pipeline.sources.{module}"), name)
