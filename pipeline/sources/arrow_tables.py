"""Readers for Parquet and Arrow IPC, and the conversion of any Arrow batch to rows.

A value that cannot be read makes its own row bad and no other.
"""

import contextlib
import re
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.pipeline.readers import IpcReader, ParquetReader

from pipeline.sources import EXCERPT_CHARACTERS, BadRowError, Row, checked_id
from pipeline.sources.row_reader import RowReader, bad_row, excerpt_of

_BATCH_BYTES = 16 << 20  # uncompressed bytes of the rows in memory at once
_BATCH_ROWS = 1024
_IPC_FILE = b"ARROW1"
_YEAR = re.compile(r"(?!0000)\d{4}-")  # how Arrow formats the beginning of a timestamp in the years 1 to 9999


class StrictParquetReader(RowReader, ParquetReader):  # type: ignore[misc]
    """Reads Parquet in batches of bounded size in bytes."""

    def read_file(self, filepath: str, first: int = 0) -> Iterator[Row]:
        with (
            self.data_folder.open(filepath, "rb") as raw,
            # With a buffer size, column chunks are streamed; without one, each column chunk is loaded whole.
            pq.ParquetFile(raw, buffer_size=1 << 20, page_checksum_verification=True) as parquet,
        ):
            names = parquet.schema_arrow.names
            self.check_columns(names, filepath)
            metadata = parquet.metadata
            ends = list(accumulate(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)))
            passed_over = bisect_right(ends, first)
            row = ends[passed_over - 1] if passed_over else 0
            row_groups = range(passed_over, metadata.num_row_groups)
            wanted = _wanted(self, names, with_metadata=self.read_metadata)
            for batch in parquet.iter_batches(batch_size=_batch_rows(metadata), row_groups=row_groups, columns=wanted):
                skipped = min(max(0, first - row), batch.num_rows)
                yield from rows_of_batch(self, batch.slice(skipped), filepath, row + skipped)
                row += batch.num_rows


class StrictIpcReader(RowReader, IpcReader):  # type: ignore[misc]
    """Reads Arrow IPC files, or IPC streams with `stream: true`."""

    def read_file(self, filepath: str, first: int = 0) -> Iterator[Row]:
        with self.data_folder.open(filepath, "rb") as raw:
            is_file = raw.read(len(_IPC_FILE)) == _IPC_FILE
        if is_file == self.stream:
            kind, other = ("a file", "false") if is_file else ("a stream, or none of Arrow", "true")
            raise OSError(f"it is {kind}: set reader: {{type: IpcReader, stream: {other}}}")
        row, checked = 0, False
        for batch in self._iter_stream_batches(filepath) if self.stream else self._iter_file_batches(filepath):
            if not checked:
                self.check_columns(batch.schema.names, filepath)
                checked = True
            batch = batch.select(_wanted(self, batch.schema.names))
            skipped = min(max(0, first - row), batch.num_rows)
            yield from rows_of_batch(self, batch.slice(skipped), filepath, row + skipped)
            row += batch.num_rows


def rows_of_batch(reader: RowReader, batch: pa.RecordBatch, filepath: str, first: int) -> Iterator[Row]:
    """Yield the rows of a batch; its first row is row `first` of the file.

    Rows are converted in small slices, because Python values take much more memory than Arrow's.
    """
    step = max(1, min(_BATCH_ROWS, _BATCH_BYTES * batch.num_rows // max(1, batch.nbytes)))
    for begin in range(0, batch.num_rows, step):
        some = batch.slice(begin, step)
        try:
            rows = _values(some)
        except Exception:  # a conversion may raise anything; retry row by row to find the bad ones
            yield from _rows_one_by_one(reader, some, filepath, first + begin)
            continue
        for offset, data in enumerate(rows, first + begin):
            yield reader.row(data, filepath, offset, excerpt_of(data, reader.text_key))


def _rows_one_by_one(reader: RowReader, batch: pa.RecordBatch, filepath: str, first: int) -> Iterator[Row]:
    for offset in range(batch.num_rows):
        one = batch.slice(offset, 1)
        try:
            [data] = _values(one)
        except Exception:
            yield _spoilt(reader, one, first + offset)
        else:
            yield reader.row(data, filepath, first + offset, excerpt_of(data, reader.text_key))


def _spoilt(reader: RowReader, one: pa.RecordBatch, row: int) -> Row:
    """Return the bad row for `one`, a batch of a single row with a column that cannot be read."""
    good: dict[str, Any] = {}
    failed: tuple[str, Exception] | None = None
    for name in one.schema.names:
        try:
            [data] = _values(one.select([name]))
            good |= data
        except Exception as caught:
            failed = failed or (name, caught)
    assert failed
    column, error = failed
    identifier = None
    if reader.id_key in good:
        with contextlib.suppress(BadRowError):
            identifier = checked_id(good, reader.id_key)
    if isinstance(error, UnicodeDecodeError):
        excerpt = error.object[:EXCERPT_CHARACTERS].decode("utf-8", "replace")
        return bad_row(row, "invalid_utf8", f"at byte {error.start} of column {column!r}", excerpt, identifier)
    kind = one.schema.field(column).type
    detail = f"column {column!r} has a value that is no {kind}: {type(error).__name__} {error}".strip()
    return bad_row(row, "bad_value", detail, excerpt_of(good, reader.text_key), identifier)


def _values(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return the rows of a batch as dictionaries.

    Raises:
        Exception: a value is invalid for its type or has no Python equivalent.
    """
    columns = {name: _column(array) for name, array in zip(batch.schema.names, batch.columns, strict=True)}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _column(array: pa.Array) -> list[Any]:
    if pa.types.is_timestamp(array.type):
        # Casting to strings works without pandas, which to_pylist needs for nanoseconds.
        texts: list[str | None] = array.cast(pa.string()).to_pylist()
        for text in texts:
            if text is not None and not _YEAR.match(text):
                raise ValueError(f"{text} is beyond the years 1 to 9999")
        return texts
    if _holds_times(array.type):
        array.validate(full=True)  # a time of more than a day would be converted to a different time
    values: list[Any] = array.to_pylist()
    return values


def _holds_times(kind: pa.DataType) -> bool:
    if pa.types.is_time(kind):
        return True
    return any(_holds_times(kind.field(index).type) for index in range(kind.num_fields))


def _wanted(reader: RowReader, names: list[str], *, with_metadata: bool = True) -> list[str]:
    """Return the columns to read: text, id and source, and those kept as metadata."""
    needed = {reader.text_key, reader.id_key}
    if not with_metadata:
        return [name for name in names if name in needed]
    # A `metadata` column is merged with the other columns, so its keys are filtered only after that.
    merged = needed | {"source", "metadata"}
    return [name for name in names if name in merged or reader.columns.keeps(name)]


def _batch_rows(metadata: pq.FileMetaData) -> int:
    groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
    widest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=1)
    return max(1, min(_BATCH_ROWS, int(_BATCH_BYTES / max(1, widest))))
