"""Readers for Parquet and Arrow IPC, and the conversion of any Arrow batch to rows.

A value that cannot be read makes only its own row bad.
"""

import contextlib
import re
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datatrove.pipeline.readers import IpcReader, ParquetReader

from pipeline.errors import InputError, one_line, replace_controls
from pipeline.sources import EXCERPT_CHARACTERS, Row, RowError, validate_id
from pipeline.sources.row_reader import RowReader, bad_row, describe_large_metadata, excerpt_of

_BATCH_BYTES = 16 << 20  # uncompressed bytes of the rows in memory at once
_BATCH_ROWS = 1024
_FIRST_ROWS = 16  # of a Parquet file: until a batch is decoded, only the encoded size of its rows is known
_MAX_GROWTH = 8
_IPC_FILE, _FEATHER_V1 = b"ARROW1", b"FEA1"
_YEAR = re.compile(r"(?!0000)\d{4}-")  # how Arrow formats the beginning of a timestamp in the years 1 to 9999


class StrictParquetReader(RowReader, ParquetReader):  # type: ignore[misc]
    """Reads Parquet in batches of bounded size in bytes."""

    def read_file(self, filepath: str, first_row: int = 0) -> Iterator[Row]:
        with (
            self.data_folder.open(filepath, "rb") as raw,
            # With a buffer size, column chunks are streamed; without one, each column chunk is loaded whole. As `large_binary`,
            # strings are decoded without a check for UTF-8, which would reject the file for one value of a dictionary column.
            pq.ParquetFile(raw, buffer_size=1 << 20, page_checksum_verification=True, binary_type=pa.large_binary()) as parquet,
        ):
            names = parquet.schema_arrow.names
            _check_columns(self, names, filepath)
            metadata = parquet.metadata
            ends = list(accumulate(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)))
            num_skipped_groups = bisect_right(ends, first_row)
            row = ends[num_skipped_groups - 1] if num_skipped_groups else 0
            row_groups = range(num_skipped_groups, metadata.num_row_groups)
            columns = _columns_to_read(self, names, with_metadata=self.read_metadata)
            for batch in _iter_bounded_batches(parquet, row_groups, columns):
                num_skipped = min(max(0, first_row - row), batch.num_rows)
                yield from iter_batch_rows(self, batch.slice(num_skipped), filepath, row + num_skipped, is_decoded=True)
                row += batch.num_rows


class StrictIpcReader(RowReader, IpcReader):  # type: ignore[misc]
    """Reads Arrow IPC files, or IPC streams with `stream: true`; concatenated streams of one schema are read as one."""

    def read_file(self, filepath: str, first_row: int = 0) -> Iterator[Row]:
        with self.data_folder.open(filepath, "rb") as raw:
            _check_ipc_kind(raw.read(len(_IPC_FILE)), stream=self.stream)
            raw.seek(0)
            row = 0
            for batch in _iter_stream_batches(self, raw, filepath) if self.stream else _iter_file_batches(self, raw, filepath):
                batch = batch.select(_columns_to_read(self, batch.schema.names))
                num_skipped = min(max(0, first_row - row), batch.num_rows)
                yield from iter_batch_rows(self, batch.slice(num_skipped), filepath, row + num_skipped)
                row += batch.num_rows


def _check_ipc_kind(head: bytes, *, stream: bool) -> None:
    """Check the kind of an Arrow file by its first bytes.

    Raises:
        OSError: it is Feather version 1, or it is a file and `stream` is set, or the other way round.
    """
    if head.startswith(_FEATHER_V1):
        raise OSError("it is Feather version 1, which is not Arrow IPC; convert it to version 2, for example with pyarrow.feather")
    if head == _IPC_FILE and stream:
        raise OSError("it is an Arrow IPC file, not a stream; set reader: {type: IpcReader, stream: false}")
    if head != _IPC_FILE and not stream:
        raise OSError(
            f"it is not an Arrow IPC file: it begins with {head!r}, not with {_IPC_FILE!r}; if it is a stream, set reader: "
            "{type: IpcReader, stream: true}"
        )


def _iter_file_batches(reader: RowReader, raw: BinaryIO, filepath: str) -> Iterator[pa.RecordBatch]:
    with pa.ipc.open_file(raw) as file:
        _check_columns(reader, file.schema.names, filepath)
        for index in range(file.num_record_batches):
            yield file.get_batch(index)


def _iter_stream_batches(reader: RowReader, raw: BinaryIO, filepath: str) -> Iterator[pa.RecordBatch]:
    """Yield the batches of all streams in a file. A stream may end without an end marker, as the format allows.

    Raises:
        OSError: the bytes after a stream are not a stream, or are one with another schema.
    """
    schema: pa.Schema | None = None
    begin = 0
    while schema is None or raw.read(1):
        raw.seek(begin)
        try:
            stream = pa.ipc.open_stream(raw)
        except pa.ArrowInvalid as error:
            raise OSError(f"the bytes from byte {begin} on are not an Arrow stream: {one_line(error)}") from error
        with stream:
            if schema is None:
                schema = stream.schema
                _check_columns(reader, schema.names, filepath)
            if not stream.schema.equals(schema):
                columns = replace_controls(one_line(stream.schema))
                raise OSError(f"the stream at byte {begin} has different columns from the first stream ({columns})")
            yield from stream
        begin = raw.tell()


def _check_columns(reader: RowReader, names: list[str], filepath: str) -> None:
    if not names:
        raise InputError(f"{reader.format_path(filepath)} has no columns; remove the file from paths")
    reader.check_columns(names, filepath)


def _iter_bounded_batches(parquet: pq.ParquetFile, row_groups: range, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows in batches of at most about 16 MiB, if the size of rows changes by less than a factor of 8 between batches.

    The size is that of the decoded values, which may be thousands of times their encoded size: a dictionary holds a repeated value
    once. The first batch has 16 rows; the decoded size of each batch sets the number of rows of the next.
    """
    max_rows = _max_batch_rows(parquet.metadata)
    for batch in parquet.iter_batches(batch_size=min(_FIRST_ROWS, max_rows), row_groups=row_groups, columns=columns):
        yield batch
        num_fitting_rows = _BATCH_BYTES * batch.num_rows // max(1, batch.nbytes)
        # The reader looks at its batch size before each batch.
        parquet.reader.set_batch_size(max(1, min(max_rows, num_fitting_rows, _MAX_GROWTH * batch.num_rows)))


def iter_batch_rows(
    reader: RowReader, batch: pa.RecordBatch, filepath: str, first_row: int, *, is_decoded: bool = False
) -> Iterator[Row]:
    """Yield the rows of a batch; its first row is row `first_row` of the file.

    Rows are converted in small slices, because Python values take much more memory than Arrow's. A row whose metadata is certain to
    be too large is not converted.

    Args:
        is_decoded: a decoder wrote the batch, so its offsets are in range; those of a batch in a file's own buffers are checked.

    Raises:
        OSError: a column is damaged.
    """
    if not is_decoded:
        _check_layout(batch)
    num_bytes = max(batch.nbytes, int(sum(np.sum(_json_sizes(array)) for array in batch.columns)))
    step = max(1, min(_BATCH_ROWS, _BATCH_BYTES * batch.num_rows // max(1, num_bytes)))
    sizes = [*_metadata_json_sizes(reader, batch).values(), np.zeros(batch.num_rows)]
    too_large = np.sum(sizes, axis=0) > reader.columns.max_bytes
    for begin in range(0, batch.num_rows, step):
        rows_slice = batch.slice(begin, step)
        if too_large[begin : begin + step].any():
            yield from _iter_rows_singly(reader, rows_slice, filepath, first_row + begin)
            continue
        try:
            rows = _to_rows(rows_slice)
        except Exception:  # a conversion may raise anything; retry row by row to find the bad ones
            yield from _iter_rows_singly(reader, rows_slice, filepath, first_row + begin)
            continue
        for offset, data in enumerate(rows, first_row + begin):
            yield reader.make_row(data, filepath, offset, excerpt_of(data, reader.text_key))


def _iter_rows_singly(reader: RowReader, batch: pa.RecordBatch, filepath: str, first_row: int) -> Iterator[Row]:
    for offset in range(batch.num_rows):
        row_batch = batch.slice(offset, 1)
        sizes = {name: int(size[0]) for name, size in _metadata_json_sizes(reader, row_batch).items()}
        if sum(sizes.values()) > reader.columns.max_bytes:
            yield _make_large_metadata_row(reader, row_batch, sizes, filepath, first_row + offset)
            continue
        try:
            [data] = _to_rows(row_batch)
        except Exception:
            yield _make_bad_row(reader, row_batch, first_row + offset)
        else:
            yield reader.make_row(data, filepath, first_row + offset, excerpt_of(data, reader.text_key))


def _make_large_metadata_row(reader: RowReader, row_batch: pa.RecordBatch, sizes: dict[str, int], filepath: str, row: int) -> Row:
    """Return the bad row for `row_batch`, a batch of a single row. A fault of its id, text or source takes precedence."""
    needed = row_batch.select([name for name in row_batch.schema.names if name in (reader.text_key, reader.id_key, "source")])
    try:
        [data] = _to_rows(needed)
    except Exception:
        return _make_bad_row(reader, needed, row)
    checked_row = reader.make_row(data, filepath, row, excerpt_of(data, reader.text_key))
    if checked_row.document is None:
        return checked_row
    detail = describe_large_metadata(f"at least {sum(sizes.values()):,}", sizes, reader.columns.max_bytes)
    return bad_row(row, "metadata_too_large", detail, excerpt_of(data, reader.text_key), checked_row.document.id)


def _make_bad_row(reader: RowReader, row_batch: pa.RecordBatch, row: int) -> Row:
    """Return the bad row for `row_batch`, a batch of a single row with a column that cannot be read."""
    good: dict[str, Any] = {}
    failed: tuple[str, Exception] | None = None
    for name in row_batch.schema.names:
        try:
            [data] = _to_rows(row_batch.select([name]))
            good |= data
        except Exception as caught:
            failed = failed or (name, caught)
    assert failed
    column, error = failed
    identifier = None
    if reader.id_key in good:
        with contextlib.suppress(RowError):
            identifier = validate_id(good, reader.id_key)
    if isinstance(error, UnicodeDecodeError):
        excerpt = error.object[:EXCERPT_CHARACTERS].decode("utf-8", "replace")
        return bad_row(row, "invalid_utf8", f"at byte {error.start} of column {column!r}", excerpt, identifier)
    kind = row_batch.schema.field(column).type
    detail = f"column {column!r} has a value that is not a valid {kind}: {type(error).__name__} {error}".strip()
    return bad_row(row, "bad_value", detail, excerpt_of(good, reader.text_key), identifier)


def _to_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return the rows of a batch as dictionaries.

    Raises:
        Exception: a value is invalid for its type or has no Python equivalent.
    """
    columns = {name: _to_list(array) for name, array in zip(batch.schema.names, batch.columns, strict=True)}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _to_list(array: pa.Array) -> list[Any]:
    if pa.types.is_timestamp(array.type):
        # Casting to strings works without pandas, which to_pylist needs for nanoseconds.
        texts: list[str | None] = array.cast(pa.string()).to_pylist()
        for text in texts:
            if text is not None and not _YEAR.match(text):
                raise ValueError(f"{text} is outside the years 1 to 9999")
        return texts
    if _holds_times(array.type):
        array.validate(full=True)  # a time of more than a day would be converted to a different time
    values: list[Any] = array.to_pylist()
    return values


def _holds_times(kind: pa.DataType) -> bool:
    if pa.types.is_time(kind):
        return True
    return any(_holds_times(kind.field(index).type) for index in range(kind.num_fields))


def _check_layout(batch: pa.RecordBatch) -> None:
    """Check all offsets, lengths and dictionary indices: one out of range would crash the process when its value is read.

    Reads no values, so the cost is small. Values that are invalid for their type pass; they make only their own_buffers row bad.

    Raises:
        OSError: a column is damaged.
    """
    for name, array in zip(batch.schema.names, batch.columns, strict=True):
        try:
            _check_array(array)
        except pa.ArrowException as error:
            raise OSError(f"column {name!r} is damaged: {one_line(error)}") from error


def _check_array(array: pa.Array) -> None:
    """Check an array as `_check_layout` does. Arrow's full validation checks values too, so it gets nulls in their place.

    Raises:
        ArrowException: an offset, length or index is out of range.
    """
    kind, types = array.type, pa.types
    if isinstance(kind, pa.BaseExtensionType):
        _check_array(array.storage)
        return
    array.validate()
    items: list[pa.Array] = []
    if types.is_dictionary(kind):
        items = [array.dictionary]
        pa.DictionaryArray.from_arrays(array.indices, _nulls_like(array.dictionary))
    elif types.is_run_end_encoded(kind):
        items = [array.values]
        pa.RunEndEncodedArray.from_arrays(array.run_ends, _nulls_like(array.values)).validate(full=True)
    elif types.is_struct(kind) or types.is_union(kind):
        items = [array.field(index) for index in range(kind.num_fields)]
        if types.is_union(kind):
            nulls = list(map(_nulls_like, items))
            union_indices = (array.type_codes, array.offsets) if kind.mode == "dense" else (array.type_codes,)
            make = pa.UnionArray.from_dense if kind.mode == "dense" else pa.UnionArray.from_sparse
            make(*union_indices, nulls, type_codes=kind.type_codes).validate(full=True)
    elif types.is_fixed_size_list(kind):
        items = [array.values]
    elif list_of := next((list_of for is_kind, list_of in _LISTS if is_kind(kind)), None):
        items = [array.values]
        own_buffers = array.buffers()[: kind.num_buffers]
        children = [_nulls_like(array.values)]
        pa.Array.from_buffers(list_of(pa.null()), len(array), own_buffers, offset=array.offset, children=children).validate(
            full=True
        )
    elif binary_type := next((binary_type for is_kind, binary_type in _STRINGS if is_kind(kind)), None):
        array.view(binary_type).validate(full=True)
    for item in items:
        _check_array(item)


def _nulls_like(array: pa.Array) -> pa.Array:
    return pa.nulls(len(array))


_STRINGS = (
    (pa.types.is_string, pa.binary()),
    (pa.types.is_large_string, pa.large_binary()),
    (pa.types.is_string_view, pa.binary_view()),
    (pa.types.is_binary, pa.binary()),
    (pa.types.is_large_binary, pa.large_binary()),
    (pa.types.is_binary_view, pa.binary_view()),
)
_LISTS = (
    (pa.types.is_list, pa.list_),
    (pa.types.is_map, pa.list_),
    (pa.types.is_large_list, pa.large_list),
    (pa.types.is_list_view, pa.list_view),
    (pa.types.is_large_list_view, pa.large_list_view),
)


def _metadata_json_sizes(reader: RowReader, batch: pa.RecordBatch) -> dict[str, Any]:
    """Return the columns kept as metadata, with a lower bound of the bytes of JSON per row.

    A `metadata` column is excluded unless it is a struct: its JSON text may shrink when it is parsed.
    """
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    nested = columns.pop("metadata", None)
    if nested is not None and pa.types.is_struct(nested.type):
        columns = dict(zip((field.name for field in nested.type), nested.flatten(), strict=True)) | columns
    others = {reader.text_key, reader.id_key, "id", "source"}
    kept = {name: array for name, array in columns.items() if name not in others and reader.columns.is_kept(name)}
    return {name: np.broadcast_to(_json_sizes(array), len(array)) for name, array in kept.items()}


def _json_sizes(array: pa.Array) -> Any:
    """Return a lower bound of the bytes of JSON of each value: an array, or one number if it holds for all values.

    Strings and bytes have at least their length, other values 1 byte; lists and structs have another byte per item.
    """
    kind, types = array.type, pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _json_sizes(array.storage)
    if not len(array):
        return np.zeros(0, np.int64)
    sizes: Any = 1
    if types.is_string_view(kind) or types.is_binary_view(kind):
        array = array.view(pa.binary_view()).cast(pa.large_binary())
        kind = array.type
    if any(is_kind(kind) for is_kind in (types.is_binary, types.is_large_binary, types.is_string, types.is_large_string)):
        sizes = _to_int64(pc.binary_length(array))
    elif types.is_fixed_size_binary(kind):
        sizes = kind.byte_width
    elif types.is_dictionary(kind):
        sizes = _json_sizes(array.dictionary)
        if np.ndim(sizes):
            sizes = np.append(sizes, 0)[_to_int64(array.indices, missing=len(sizes))]
    elif types.is_list(kind) or types.is_large_list(kind) or types.is_map(kind):
        offsets = array.offsets.to_numpy()
        sizes = _list_sizes(array.values.slice(offsets[0], offsets[-1] - offsets[0]), offsets - offsets[0])
    elif types.is_fixed_size_list(kind):
        bounds = np.arange(len(array) + 1) * kind.list_size
        sizes = _list_sizes(array.values.slice(array.offset * kind.list_size, bounds[-1]), bounds)
    elif types.is_list_view(kind) or types.is_large_list_view(kind):
        sizes = 2 * _to_int64(pc.list_value_length(array))
    elif types.is_struct(kind):
        sizes = sum((_json_sizes(field) + 1 for field in array.flatten()), 0)
    return np.where(array.is_valid().to_numpy(zero_copy_only=False), sizes, 1) if array.null_count else sizes


def _to_int64(array: pa.Array, missing: int = 0) -> Any:
    return array.cast(pa.int64()).fill_null(missing).to_numpy()


def _list_sizes(items: pa.Array, bounds: Any) -> Any:
    """Return the sizes of lists with these items; list n has the items from `bounds[n]` to before `bounds[n + 1]`."""
    sizes = _json_sizes(items) + 1
    if not np.ndim(sizes):
        return np.diff(bounds).astype(np.int64) * sizes
    ends = np.concatenate([[0], np.cumsum(sizes)])
    return ends[bounds[1:]] - ends[bounds[:-1]]


def _columns_to_read(reader: RowReader, names: list[str], *, with_metadata: bool = True) -> list[str]:
    """Return the columns to read: text, id and source, and those kept as metadata."""
    needed = {reader.text_key, reader.id_key}
    if not with_metadata:
        return [name for name in names if name in needed]
    # A `metadata` column is merged with the other columns, so its keys are filtered only after that.
    merged = needed | {"source", "metadata"}
    return [name for name in names if name in merged or reader.columns.is_kept(name)]


def _max_batch_rows(metadata: pq.FileMetaData) -> int:
    groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
    widest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=1)
    return max(1, min(_BATCH_ROWS, int(_BATCH_BYTES / max(1, widest))))
