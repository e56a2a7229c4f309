"""Parquet and Arrow IPC; and the rows of any Arrow batch. A value that cannot be read spoils its row and no other."""

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

_BATCH_BYTES = 16 << 20  # of rows held at once, uncompressed
_BATCH_ROWS = 1024
_IPC_FILE = b"ARROW1"
_YEAR = re.compile(r"(?!0000)\d{4}-")  # Arrow's text of a timestamp in the years 1 to 9999 begins with it


class StrictParquetReader(RowReader, ParquetReader):  # type: ignore[misc]
    """Parquet, read in batches of a bounded number of bytes."""

    def read_file(self, filepath: str, first: int = 0) -> Iterator[Row]:
        with (
            self.data_folder.open(filepath, "rb") as raw,
            # With a buffer, column chunks are streamed; without, each is held whole.
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
    """Arrow IPC files, and streams with `stream: true`."""

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
    """The rows of a batch, the first of which is row `first` of the file; a few at a time, as Python's values are large."""
    step = max(1, min(_BATCH_ROWS, _BATCH_BYTES * batch.num_rows // max(1, batch.nbytes)))
    for begin in range(0, batch.num_rows, step):
        some = batch.slice(begin, step)
        try:
            rows = _values(some)
        except Exception:  # whatever a value's conversion raises: the rows are tried one by one
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
    """The bad row of a batch of one row, of which a column cannot be read."""
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
    """The rows of a batch as dictionaries.

    Raises:
        Exception: a value is not valid for its type, or Python has none for it.
    """
    columns = {name: _column(array) for name, array in zip(batch.schema.names, batch.columns, strict=True)}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _column(array: pa.Array) -> list[Any]:
    if pa.types.is_timestamp(array.type):
        # Arrow's text needs no pandas, which nanoseconds would otherwise.
        texts: list[str | None] = array.cast(pa.string()).to_pylist()
        for text in texts:
            if text is not None and not _YEAR.match(text):
                raise ValueError(f"{text} is beyond the years 1 to 9999")
        return texts
    if _holds_times(array.type):
        array.validate(full=True)  # what is beyond a day would come out as another time
    values: list[Any] = array.to_pylist()
    return values


def _holds_times(kind: pa.DataType) -> bool:
    if pa.types.is_time(kind):
        return True
    return any(_holds_times(kind.field(index).type) for index in range(kind.num_fields))


def _wanted(reader: RowReader, names: list[str], *, with_metadata: bool = True) -> list[str]:
    """The columns that a row is made from: those of its text, its id and its source, and what is kept as metadata."""
    needed = {reader.text_key, reader.id_key}
    if not with_metadata:
        return [name for name in names if name in needed]
    # A column `metadata` is merged with the others, so what is kept of it is seen later.
    merged = needed | {"source", "metadata"}
    return [name for name in names if name in merged or reader.columns.keeps(name)]


def _batch_rows(metadata: pq.FileMetaData) -> int:
    groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
    widest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=1)
    return max(1, min(_BATCH_ROWS, int(_BATCH_BYTES / max(1, widest))))
