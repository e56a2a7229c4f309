"""Reader for WARC and WET files."""

import io
from collections import deque
from collections.abc import Iterator
from typing import Any, BinaryIO

from datatrove.pipeline.readers import WarcReader

from pipeline.errors import one_line, shown
from pipeline.sources import Row
from pipeline.sources.charsets import charset_of, decoded_text
from pipeline.sources.http_bodies import UndecodableError, decoded_body
from pipeline.sources.row_reader import RowReader, bad_row, excerpt_of
from pipeline.sources.streams import open_bytes

_HTML = ("text/html", "application/xhtml+xml")
# How libmagic classifies pages that it does not recognize (fragments, XML, UTF-16). Then the server's Content-Type decides.
_PERHAPS_HTML = ("text/", "application/xml", "application/octet-stream")


class StrictWarcReader(RowReader, WarcReader):  # type: ignore[misc]
    """Reads WARC and WET files: the HTML of responses and the text of conversions. Other records and other content are skipped.

    As in datatrove, the HTTP status is ignored, so error pages are pages. warcio reads a truncated file without an error; this
    reader raises one.
    """

    def read_file(self, filepath: str, first: int = 0) -> Iterator[Row]:
        from warcio.archiveiterator import WARCIterator

        with open_bytes(self.data_folder, filepath, self.compression) as raw:
            stream, row = _Followed(raw), -1
            records = WARCIterator(stream)
            _allow_no_uri(records.loader)
            for row, record in enumerate(_unbroken(records, stream)):
                wanted = row >= first and record.rec_type in ("response", "conversion")
                body = record.raw_stream.read() if wanted else b""
                while record.raw_stream.read(1 << 20):
                    pass
                length = record.rec_headers.get("Content-Length")
                if not (length or "").isdigit():
                    raise OSError(f"record {row} has the Content-Length {length!r}, or the file ends within its headers")
                if record.raw_stream.limit:
                    raise OSError(f"the file ends within record {row}")
                stream.passed = stream.tell() - records.reader.rem_length()
                if wanted:
                    yield self._page(_Record(record, body), filepath, row)
                elif row >= first:
                    yield Row(row, None, None, skipped="other_record")
            if stream.rest.strip():
                raise OSError(_no_header(stream))

    def _page(self, record: "_Record", filepath: str, row: int) -> Row:
        if record.lacks_uri:
            return bad_row(row, "bad_value", "the response has no WARC-Target-URI", "", record.header("WARC-Record-ID"))
        try:
            data = record.read()
        except UndecodableError as error:
            return bad_row(row, "undecodable", str(error), "", record.header("WARC-Record-ID"))
        if data is None:
            return Row(row, None, None, skipped="not_a_page")
        return self.row(data, filepath, row, excerpt_of(data, self.text_key))


class _Record:
    """A response or conversion record with its body."""

    def __init__(self, record: Any, body: bytes) -> None:
        self._headers, self._http, self._body = record.rec_headers, record.http_headers, body
        self._pages = (*_HTML, "text/plain") if record.rec_type == "conversion" else _HTML
        self._is_cut = bool(self.header("WARC-Truncated"))
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
        if identified is not None and _kind(identified) not in self._pages:
            return None
        said = ", ".join(self._sent("Content-Type")) if self._http else self.header("Content-Type") or ""
        try:
            content = decoded_body(self._body, self._sent("Transfer-Encoding"), self._sent("Content-Encoding"), cut=self._is_cut)
        except UndecodableError:
            if identified is None and _kind(said) not in self._pages:
                return None
            raise
        if identified is None and not self._looks_like_a_page(content, _kind(said)):
            return None
        return {
            "text": decoded_text(content, charset_of(said), markup=self._http is not None, cut=self._is_cut),
            "id": self.header("WARC-Record-ID"),
            "url": self.header("WARC-Target-URI"),
            "date": self.header("WARC-Date"),
        }

    def _sent(self, name: str) -> list[str]:
        """Return the values of a header of the HTTP response, which may be repeated."""
        return [value for key, value in self._http.headers if key.lower() == name.lower()] if self._http else []

    def _looks_like_a_page(self, content: bytes, said: str) -> bool:
        import magic

        found = magic.from_buffer(content, mime=True)
        return found in self._pages or (said in self._pages and found.startswith(_PERHAPS_HTML))


def _kind(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _allow_no_uri(loader: Any) -> None:
    """Make warcio's loader return records without WARC-Target-URI, their HTTP headers unparsed. It would raise AttributeError."""
    parse = loader.load_http_headers
    loader.load_http_headers = lambda kind, uri, *rest: parse(kind, uri, *rest) if uri else None


def _unbroken(records: Iterator[Any], stream: "_Followed") -> Iterator[Any]:
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
            raise OSError(_no_header(stream)) from error
        yield record


def _no_header(stream: "_Followed") -> str:
    """Describe the bytes after the last record, which are not the headers of another."""
    found = stream.rest.lstrip(b"\r\n")
    place = f"byte {stream.tell() - len(found)}"  # of the decompressed file
    if stream.is_at_end and (b"WARC/".startswith(found) or (found.startswith(b"WARC/") and b"\n\r\n" not in found)):
        return f"the file ends within the record headers that begin at {place}"
    what = one_line(found[:40].decode("latin-1"))
    hint = "; ARC files must be converted, such as with `warcio recompress`" if found.startswith(b"filedesc:") else ""
    return f"{place} is not the beginning of a WARC record: {shown(what)!r}{hint}"


class _Followed(io.RawIOBase):
    """Wraps the stream that warcio reads. Keeps the bytes after the last record, because warcio treats any end as a clean one."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._read = 0
        self.is_at_end = False
        self._last: deque[bytes] = deque(maxlen=8)  # the last blocks; no record's headers are longer
        self.passed = 0  # position of the end of the last record

    def read(self, size: int = -1) -> bytes:
        try:
            block = self._raw.read(size)
        except EOFError as error:
            raise OSError(f"the file ends before its last record does ({error})") from error
        self._read += len(block)
        if block:
            self._last.append(block)
        else:
            self.is_at_end = True
        return block

    def tell(self) -> int:
        return self._read

    @property
    def rest(self) -> bytes:
        """The bytes read after the end of the last record."""
        left = self._read - self.passed
        return b"".join(self._last)[-left:] if left else b""
