"""WARC and WET files."""

import io
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from datatrove.pipeline.readers import WarcReader

from pipeline.errors import one_line
from pipeline.sources import Row
from pipeline.sources.row_reader import RowReader, bad_row, excerpt_of
from pipeline.sources.streams import open_bytes

_PAGES = ("text/html", "application/xhtml+xml", "text/plain")


class StrictWarcReader(RowReader, WarcReader):  # type: ignore[misc]
    """WARC and WET files: the HTML of responses, the text of conversions. Other records are no rows.

    warcio takes the end of a file that was cut for the end of the file; here it is an error.
    """

    def read_file(self, filepath: str, first: int = 0) -> Iterator[Row]:
        from datatrove.pipeline.readers.warc import process_record
        from warcio.archiveiterator import ArchiveIterator

        with open_bytes(self.data_folder, filepath) as raw:
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
                    yield self.row(data, filepath, row, excerpt_of(data, self.text_key))
                elif _kind_of(record) in _PAGES and _undecodable(content):
                    identifier = record.rec_headers.get("WARC-Record-ID")
                    yield bad_row(row, "invalid_utf8", "no encoding fits the page", "", identifier)
            if stream.rest.strip():
                raise OSError(f"the file ends within the headers of record {row + 1}")


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
