"""datatrove's readers, made strict: a row that they would skip, or die of, comes out as a bad row with its reason.

datatrove skips a line that is not JSON and a row without text (a log line is all that tells), and stops at the first byte that is
not UTF-8. What is kept of it: its folders and file systems, its choice of compression, its adapter hook and its documents.
Importing this module imports datatrove (half a second), so `pipeline.readers` does it only when it reads.
"""

import csv
import io
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.io import DataFolder
from datatrove.pipeline.readers import CSVReader, HuggingFaceDatasetReader, IpcReader, JsonlReader, ParquetReader, WarcReader
from datatrove.pipeline.readers.base import BaseDiskReader

from pipeline.errors import InputError, one_line
from pipeline.sources import EXCERPT_CHARACTERS, Bad, BadRowError, Document, Row, checked_id, checked_text
from pipeline.sources.streams import ZstdStream

MAX_LINE_BYTES = 1 << 30  # a longer line is skipped unread: an Arrow string ends at 2 GiB, and so does patience
_BATCH_BYTES = 16 << 20  # of Parquet rows, uncompressed, held at once
_BATCH_ROWS = 1024
_BOM = b"\xef\xbb\xbf"
_REST = "\0"  # of CSV fields beyond the named columns
_PAGES = ("text/html", "application/xhtml+xml", "text/plain")


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


class _Strict:
    """What both readers share. `read_file` yields every row of one file, in order, from a row on."""

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
            return _bad_row(row, bad.reason, bad.detail, excerpt, bad.identifier)
        metadata = document.metadata
        source = metadata.pop("source") if isinstance(metadata.get("source"), str) and metadata["source"] else self.source
        return Row(row, Document(document.id, document.text, source, _json_text(metadata)), None)


class StrictJsonlReader(_Strict, JsonlReader):  # type: ignore[misc]
    """JSON lines, plain, .gz or .zst. Lines end at a line feed and nowhere else; blank ones are passed over."""

    def read_file(self, filepath: str, first: int = 0) -> Iterator[Row]:
        with _binary(self.data_folder, filepath) as lines:
            row = -1
            while line := lines.readline(MAX_LINE_BYTES):
                row += 1
                if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                    excerpt = _excerpt(line)
                    while line and not line.endswith(b"\n"):
                        line = lines.readline(1 << 20)
                    if row >= first:
                        yield _bad_row(row, "line_too_long", f"more than {MAX_LINE_BYTES} bytes", excerpt)
                    continue
                if row == 0:
                    line = line.removeprefix(_BOM)
                if row >= first and not line.isspace() and line:
                    yield self._parse(line, filepath, row)

    def _parse(self, line: bytes, filepath: str, row: int) -> Row:
        try:
            data = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            try:
                line.decode()
            except UnicodeDecodeError as undecodable:
                return _bad_row(row, "invalid_utf8", f"at byte {undecodable.start} of the line", _excerpt(line))
            return _bad_row(row, "not_json", str(error), _excerpt(line))
        if not isinstance(data, dict):
            return _bad_row(row, "not_an_object", f"the line holds a {type(data).__name__}", _excerpt(line))
        return self.row(data, filepath, row, _excerpt(line))


class StrictParquetReader(_Strict, ParquetReader):  # type: ignore[misc]
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
            yield self.row(data, filepath, first + offset, _excerpt_of(data, self.text_key))

    def _parse_one_by_one(self, batch: pa.RecordBatch, filepath: str, first: int) -> Iterator[Row]:
        for offset in range(batch.num_rows):
            try:
                data = batch.slice(offset, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                excerpt = error.object[:EXCERPT_CHARACTERS].decode("utf-8", "replace")
                yield _bad_row(first + offset, "invalid_utf8", f"at byte {error.start} of a column", excerpt)
            else:
                yield self.row(data, filepath, first + offset, _excerpt_of(data, self.text_key))


class StrictCsvReader(_Strict, CSVReader):  # type: ignore[misc]
    """CSV with a line of column names, plain, .gz or .zst, in UTF-8."""

    def read_file(self, filepath: str, first: int = 0) -> Iterator[Row]:
        csv.field_size_limit(MAX_LINE_BYTES)
        with _binary(self.data_folder, filepath) as raw:
            # Bytes that are not UTF-8 become surrogates, which no good text has.
            rows = csv.DictReader(io.TextIOWrapper(raw, "utf-8-sig", "surrogateescape", newline=""), restkey=_REST)
            for row, data in enumerate(rows):
                if row >= first:
                    yield self._parse(data, filepath, row)

    def _parse(self, data: dict[str, Any], filepath: str, row: int) -> Row:
        line = ",".join(value for value in data.values() if isinstance(value, str))
        excerpt = line[:EXCERPT_CHARACTERS].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        if _REST in data or None in data.values():
            return _bad_row(row, "wrong_fields", f"more or fewer fields than the {len(data) - (_REST in data)} columns", excerpt)
        try:
            line.encode()
        except UnicodeEncodeError:
            return _bad_row(row, "invalid_utf8", "in one of the fields", excerpt)
        return self.row(data, filepath, row, excerpt)


class StrictIpcReader(_Strict, IpcReader):  # type: ignore[misc]
    """Arrow IPC files, and streams with `stream: true`."""

    def read_file(self, filepath: str, first: int = 0) -> Iterator[Row]:
        row = 0
        for batch in self._iter_stream_batches(filepath) if self.stream else self._iter_file_batches(filepath):
            skipped = min(max(0, first - row), batch.num_rows)
            for offset, data in enumerate(batch.slice(skipped).to_pylist(), row + skipped):
                yield self.row(data, filepath, offset, _excerpt_of(data, self.text_key))
            row += batch.num_rows


class StrictWarcReader(_Strict, WarcReader):  # type: ignore[misc]
    """WARC and WET files: the HTML of responses, the text of conversions. Other records are no rows.

    warcio takes the end of a file that was cut for the end of the file; here it is an error.
    """

    def read_file(self, filepath: str, first: int = 0) -> Iterator[Row]:
        from datatrove.pipeline.readers.warc import process_record
        from warcio.archiveiterator import ArchiveIterator

        with _binary(self.data_folder, filepath) as raw:
            stream, row = _Followed(raw), -1
            records = ArchiveIterator(stream)
            for row, record in enumerate(_unbroken(records)):
                page = row >= first and record.rec_type in ("response", "conversion")
                content = record.content_stream().read() if page else b""
                data = process_record(_Held(record.rec_type, record.rec_headers, content)) if page else None
                while record.raw_stream.read(1 << 20):
                    pass
                if getattr(record.raw_stream, "limit", 0) or not (record.rec_headers.get("Content-Length") or "").isdigit():
                    raise OSError(f"the file ends within record {row}")
                stream.passed = stream.tell() - records.reader.rem_length()
                if not page:
                    continue
                if data is not None:
                    yield self.row(data, filepath, row, _excerpt_of(data, self.text_key))
                elif _kind_of(record) in _PAGES and _undecodable(content):
                    identifier = record.rec_headers.get("WARC-Record-ID")
                    yield _bad_row(row, "invalid_utf8", "no encoding fits the page", "", identifier)
            if stream.rest.strip():
                raise OSError(f"the file ends within the headers of record {row + 1}")


class StrictDatasetReader(_Strict, HuggingFaceDatasetReader):  # type: ignore[misc]
    """What `datasets.load_dataset` loads, or `load_from_disk`."""

    def __init__(self, place: str, **settings: Any) -> None:
        super().__init__(place, folder=False, **settings)

    def read(self, first: int = 0) -> Iterator[Row]:
        """Every row of the dataset from row `first` on."""
        for row, data in enumerate(islice(_dataset(self), first, None), first):
            yield self.row(dict(data), self.dataset, row, _excerpt_of(data, self.text_key))


@dataclass(frozen=True)
class _Held:
    """A record whose content was read."""

    rec_type: str
    rec_headers: Any
    content: bytes

    def content_stream(self) -> io.BytesIO:
        return io.BytesIO(self.content)


def _kind_of(record: Any) -> str:
    """What a record says that its content is: as the crawler found, or as the server said."""
    identified = record.rec_headers.get("WARC-Identified-Payload-Type")
    if identified is None and record.http_headers is not None:
        identified = record.http_headers.get_header("Content-Type", "")
    return str(identified or "").partition(";")[0].strip().lower()


def _undecodable(content: bytes) -> bool:
    """Whether something that should be a page is text in an encoding that nobody knows, and no picture or program."""
    try:
        content.decode()
    except UnicodeDecodeError:
        return b"\0" not in content
    return False


def _dataset(reader: StrictDatasetReader) -> Any:
    from datasets import load_dataset, load_from_disk

    loaded = (
        load_from_disk(reader.dataset)
        if reader.load_from_disk
        else load_dataset(reader.dataset, **reader.dataset_options, streaming=reader.streaming)
    )
    if isinstance(loaded, dict):
        raise InputError(f"{reader.dataset} has the splits {', '.join(loaded)}; name one: reader.dataset_options: {{split: …}}")
    return loaded


def _unbroken(records: Iterator[Any]) -> Iterator[Any]:
    """The records, as far as warcio can read them; what it dies of is an OSError."""
    from warcio.exceptions import ArchiveLoadFailed

    while True:
        try:
            record = next(records)
        except StopIteration:
            return
        except (ArchiveLoadFailed, AttributeError, ValueError) as error:  # the second and third of headers that were cut
            raise OSError(f"the file ends within a record's headers, or is none of WARC ({one_line(error)})") from error
        yield record


class _Followed(io.RawIOBase):
    """A stream that warcio reads, and what of it lies beyond the last record: warcio takes any end for the end of the file."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._read = 0
        self._last: deque[bytes] = deque(maxlen=8)  # blocks: no record's headers are longer
        self.passed = 0  # bytes up to the end of the last record

    def read(self, size: int = -1) -> bytes:
        try:
            block = self._raw.read(size)
        except EOFError as error:
            raise OSError(f"the file ends before its last record does ({error})") from error
        self._read += len(block)
        if block:
            self._last.append(block)
        return block

    def tell(self) -> int:
        return self._read

    @property
    def rest(self) -> bytes:
        """What was read beyond the last record."""
        left = self._read - self.passed
        return b"".join(self._last)[-left:] if left else b""


BY_KIND: dict[str, Any] = {
    "jsonl": StrictJsonlReader,
    "parquet": StrictParquetReader,
    "csv": StrictCsvReader,
    "ipc": StrictIpcReader,
    "warc": StrictWarcReader,
}


def _binary(folder: DataFolder, filepath: str) -> BinaryIO:
    """The file's bytes, decompressed, buffered.

    Raises:
        EOFError: it is compressed and has no bytes at all.
    """
    if filepath.endswith((".gz", ".zst")) and folder.size(filepath) == 0:
        raise EOFError("the file is empty")
    if filepath.endswith(".zst"):
        return io.BufferedReader(ZstdStream(folder.open(filepath, "rb")), 1 << 18)
    opened: BinaryIO = folder.open(filepath, "rb", compression="infer")
    # Local plain files are buffered by fsspec; gzip's own line reading is in Python, and a store's file cannot bound a line.
    buffered = folder.is_local() and not filepath.endswith(".gz")
    return opened if buffered else io.BufferedReader(opened, 1 << 18)  # type: ignore[type-var]


def _batch_rows(metadata: pq.FileMetaData) -> int:
    groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
    widest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=1)
    return max(1, min(_BATCH_ROWS, int(_BATCH_BYTES / max(1, widest))))


def _bad_row(row: int, reason: str, detail: str, excerpt: str, identifier: str | None = None) -> Row:
    return Row(row, None, Bad(reason, detail, excerpt, identifier))


def _excerpt(line: bytes) -> str:
    return line[: 4 * EXCERPT_CHARACTERS].decode("utf-8", "replace")[:EXCERPT_CHARACTERS].rstrip("\r\n")


def _excerpt_of(data: dict[str, Any], text_key: str) -> str:
    value = data.get(text_key)
    return value[:EXCERPT_CHARACTERS] if isinstance(value, str) else str(data)[:EXCERPT_CHARACTERS]


def _json_text(metadata: dict[str, Any]) -> str:
    """Compact JSON, keys in order; NaN and infinity are null, what JSON does not know is its text."""
    if not metadata:
        return "{}"
    return orjson.dumps(metadata, default=_text_of, option=orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_NON_STR_KEYS).decode()


def _text_of(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
