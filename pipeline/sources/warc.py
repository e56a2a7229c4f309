"""Reader for WARC and WET files."""

import io
from collections import deque
from collections.abc import Iterator
from typing import Any, BinaryIO

from datatrove.pipeline.readers import WarcReader

from pipeline.errors import one_line, replace_controls
from pipeline.sources import Row
from pipeline.sources.charsets import decode_text, parse_charset
from pipeline.sources.http_bodies import UndecodableError, decode_body
from pipeline.sources.row_reader import RowReader, bad_row, excerpt_of
from pipeline.sources.streams import open_bytes

_HTML = ("text/html", "application/xhtml+xml")
# How libmagic classifies pages that it does not recognize (fragments, XML, UTF-16). Then the server's Content-Type decides.
_MAYBE_HTML_PREFIXES = ("text/", "application/xml", "application/octet-stream")


class StrictWarcReader(RowReader, WarcReader):  # type: ignore[misc]
    """Reads WARC and WET files: the HTML of responses and the text of conversions. Other records and other content are skipped.

    As in datatrove, the HTTP status is ignored, so error pages are pages. warcio reads a truncated file without an error; this
    reader raises one.
    """

    def read_file(self, filepath: str, first_row: int = 0) -> Iterator[Row]:
        from warcio.archiveiterator import WARCIterator

        with open_bytes(self.data_folder, filepath, self.compression) as raw:
            stream, row = _TrackedStream(raw), -1
            records = WARCIterator(stream)
            _allow_missing_uri(records.loader)
            for row, record in enumerate(_iter_records(records, stream)):
                is_page_record = row >= first_row and record.rec_type in ("response", "conversion")
                body = record.raw_stream.read() if is_page_record else b""
                while record.raw_stream.read(1 << 20):
                    pass
                length = record.rec_headers.get("Content-Length")
                if not (length or "").isdigit():
                    raise OSError(
                        f"record {row} has Content-Length {length!r}, which is not a number, or the file ends within its headers"
                    )
                if record.raw_stream.limit:
                    raise OSError(f"the file ends within record {row}")
                stream.record_end = stream.tell() - records.reader.rem_length()
                if is_page_record:
                    yield self._make_page_row(_Record(record, body), filepath, row)
                elif row >= first_row:
                    yield Row(row, None, None, skipped="other_record")
            if stream.unread_bytes.strip():
                raise OSError(_describe_missing_header(stream))

    def _make_page_row(self, record: "_Record", filepath: str, row: int) -> Row:
        if record.lacks_uri:
            return bad_row(row, "bad_value", "the response has no WARC-Target-URI", "", record.header("WARC-Record-ID"))
        try:
            data = record.read()
        except UndecodableError as error:
            return bad_row(row, "undecodable", str(error), "", record.header("WARC-Record-ID"))
        if data is None:
            return Row(row, None, None, skipped="not_a_page")
        return self.make_row(data, filepath, row, excerpt_of(data, self.text_key))


class _Record:
    """A response or conversion record with its body."""

    def __init__(self, record: Any, body: bytes) -> None:
        self._headers, self._http, self._body = record.rec_headers, record.http_headers, body
        self._page_types = (*_HTML, "text/plain") if record.rec_type == "conversion" else _HTML
        self._is_truncated = bool(self.header("WARC-Truncated"))
        self.lacks_uri = record.rec_type == "response" and not self.header("WARC-Target-URI")

    def header(self, name: str) -> str | None:
        value: str | None = self._headers.get(name)
        return value

    def read(self) -> dict[str, Any] | None:
        """Return the page as columns; None if the record is not a page.

        Raises:
            UndecodableError: the record is a page that cannot be decoded.
        """
        identified = self.header("WARC-Identified-Payload-Type")
        if identified is not None and _media_type(identified) not in self._page_types:
            return None
        declared_type = ", ".join(self._http_header_values("Content-Type")) if self._http else self.header("Content-Type") or ""
        try:
            content = decode_body(
                self._body,
                self._http_header_values("Transfer-Encoding"),
                self._http_header_values("Content-Encoding"),
                is_truncated=self._is_truncated,
            )
        except UndecodableError:
            if identified is None and _media_type(declared_type) not in self._page_types:
                return None
            raise
        if identified is None and not self._looks_like_a_page(content, _media_type(declared_type)):
            return None
        return {
            "text": decode_text(
                content, parse_charset(declared_type), markup=self._http is not None, is_truncated=self._is_truncated
            ),
            "id": self.header("WARC-Record-ID"),
            "url": self.header("WARC-Target-URI"),
            "date": self.header("WARC-Date"),
        }

    def _http_header_values(self, name: str) -> list[str]:
        """Return the values of a header of the HTTP response, which may be repeated."""
        return [value for key, value in self._http.headers if key.lower() == name.lower()] if self._http else []

    def _looks_like_a_page(self, content: bytes, declared_type: str) -> bool:
        import magic

        found = magic.from_buffer(content, mime=True)
        return found in self._page_types or (declared_type in self._page_types and found.startswith(_MAYBE_HTML_PREFIXES))


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _allow_missing_uri(loader: Any) -> None:
    """Make warcio's loader return records without WARC-Target-URI, their HTTP headers unparsed. It would raise AttributeError."""
    parse = loader.load_http_headers
    loader.load_http_headers = lambda kind, uri, *rest: parse(kind, uri, *rest) if uri else None


def _iter_records(records: Iterator[Any], stream: "_TrackedStream") -> Iterator[Any]:
    """Yield the records as warcio reads them from `stream`.

    Raises:
        OSError: warcio cannot read a record's headers, or the file is not WARC.
    """
    from warcio.exceptions import ArchiveLoadFailed

    while True:
        try:
            record = next(records)
        except StopIteration:
            return
        except (ArchiveLoadFailed, AttributeError, ValueError) as error:  # truncated headers raise AttributeError or ValueError
            raise OSError(_describe_missing_header(stream)) from error
        yield record


def _describe_missing_header(stream: "_TrackedStream") -> str:
    """Describe the bytes after the last record, which are not the headers of another."""
    found = stream.unread_bytes.lstrip(b"\r\n")
    position = f"byte {stream.tell() - len(found)}"  # of the decompressed file
    if stream.is_at_end and (b"WARC/".startswith(found) or (found.startswith(b"WARC/") and b"\n\r\n" not in found)):
        return f"the file ends within the record headers that begin at {position}"
    excerpt = one_line(found[:40].decode("latin-1"))
    hint = "; convert ARC files to WARC, for example with `warcio recompress`" if found.startswith(b"filedesc:") else ""
    return f"{position} is not the beginning of a WARC record: {replace_controls(excerpt)!r}{hint}"


class _TrackedStream(io.RawIOBase):
    """Wraps the stream that warcio reads. Keeps the bytes after the last record, because warcio accepts any end of file."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._num_bytes_read = 0
        self.is_at_end = False
        self._last_blocks: deque[bytes] = deque(maxlen=8)  # the last blocks; no record's headers are longer
        self.record_end = 0  # position of the end of the last record

    def read(self, size: int = -1) -> bytes:
        try:
            block = self._raw.read(size)
        except EOFError as error:
            raise OSError(f"the file ends within its last record ({error})") from error
        self._num_bytes_read += len(block)
        if block:
            self._last_blocks.append(block)
        else:
            self.is_at_end = True
        return block

    def tell(self) -> int:
        return self._num_bytes_read

    @property
    def unread_bytes(self) -> bytes:
        """The bytes read after the end of the last record."""
        num_unread = self._num_bytes_read - self.record_end
        return b"".join(self._last_blocks)[-num_unread:] if num_unread else b""
