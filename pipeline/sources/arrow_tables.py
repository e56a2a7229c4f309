"""Parquet and Arrow IPC."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.pipeline.readers import IpcReader, ParquetReader

from pipeline.errors import InputError
from pipeline.sources import EXCERPT_CHARACTERS, Row
from pipeline.sources.row_reader import RowReader, bad_row, excerpt_of

_BATCH_BYTES = 16 << 20  # of Parquet rows, uncompressed, held at once
_BATCH_ROWS = 1024


class StrictParquetReader(RowReader, ParquetReader):  # type: ignore[misc]
    """Parquet, read in batches of a bounded number of bytes."""

    def read_file(self, filepath: str, first: int = 0) -> Iterator[Row]:
        with (
            self.data_folder.open(filepath, "rb") as raw,
            # With a buffer, column chunks are streamed; without, each is held whole.
            pq.ParquetFile(raw, buffer_size=1 << 20, page_checksum_verification=True) as parquet,
        ):
            for setting, key in (("text_key", self.text_key), ("id_key", self.id_key)):
                if key is not None and key not in parquet.schema_arrow.names:
                    raise InputError(
                        f"{self.data_folder.path}/{filepath} has no column {key!r} ({setting}); "
                        f"it has {', '.join(parquet.schema_arrow.names)}: "
                        f"set {setting}, or leave the file out of paths"
                    )
            metadata = parquet.metadata
            ends = list(accumulate(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)))
            passed_over = bisect_right(ends, first)
            row = ends[passed_over - 1] if passed_over else 0
            row_groups = range(passed_over, metadata.num_row_groups)
            for batch in parquet.iter_batches(batch_size=_batch_rows(metadata), row_groups=row_groups):
                skipped = min(max(0, first - row), batch.num_rows)
                yield from self._parse(batch.slice(skipped), filepath, row + skipped)
                row += batch.num_rows

    def _parse(self, batch: pa.RecordBatch, filepath: str, first: int) -> Iterator[Row]:
        for index, column in enumerate(batch.schema):
            # Arrow's text of a timestamp needs no pandas, which nanoseconds would otherwise.
            if pa.types.is_timestamp(column.type):
                batch = batch.set_column(index, column.name, batch.column(index).cast(pa.string()))
        try:
            rows = batch.to_pylist()
        except UnicodeDecodeError:
            yield from self._parse_one_by_one(batch, filepath, first)
            return
        for offset, data in enumerate(rows):
            yield self.row(data, filepath, first + offset, excerpt_of(data, self.text_key))

    def _parse_one_by_one(self, batch: pa.RecordBatch, filepath: str, first: int) -> Iterator[Row]:
        for offset in range(batch.num_rows):
            try:
                data = batch.slice(offset, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                excerpt = error.object[:EXCERPT_CHARACTERS].decode("utf-8", "replace")
                yield bad_row(first + offset, "invalid_utf8", f"at byte {error.start} of a column", excerpt)
            else:
                yield self.row(data, filepath, first + offset, excerpt_of(data, self.text_key))


class StrictIpcReader(RowReader, IpcReader):  # type: ignore[misc]
    """Arrow IPC files, and streams with `stream: true`."""

    def read_file(self, filepath: str, first: int = 0) -> Iterator[Row]:
        row = 0
        for batch in self._iter_stream_batches(filepath) if self.stream else self._iter_file_batches(filepath):
            skipped = min(max(0, first - row), batch.num_rows)
            for offset, data in enumerate(batch.slice(skipped).to_pylist(), row + skipped):
                yield self.row(data, filepath, offset, excerpt_of(data, self.text_key))
            row += batch.num_rows


def _batch_rows(metadata: pq.FileMetaData) -> int:
    groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
    widest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=1)
    return max(1, min(_BATCH_ROWS, int(_BATCH_BYTES / max(1, widest))))
