"""Decodes the transfer and content encodings of an HTTP response body; raises an error that names the encoding if that fails.

warcio decodes only gzip and deflate, returns other encodings undecoded, and stops silently at truncated or damaged data.
"""

import io
import re
import zlib
from collections.abc import Callable, Sequence

from pipeline.errors import InputError, one_line
from pipeline.sources.streams import MAX_LINE_BYTES, ZstdStream

_CHUNK_HEADER = re.compile(rb"[ \t]*([0-9a-fA-F]{1,16})[ \t]*(?:;[^\r\n]*)?\r?\n")
_CONTROL_CHARACTER = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_SNIFFED_BYTES = 1024  # compressed data of this length contains control characters


class UndecodableError(Exception):
    """A body cannot be decoded; the reader turns this into a bad row."""


def decode_body(body: bytes, transfer: Sequence[str], content: Sequence[str], *, is_truncated: bool = False) -> bytes:
    """Return the body with its encodings removed.

    A body that is plain despite its headers is returned unchanged: many crawlers decode a body and keep the header.

    Args:
        transfer: values of the Transfer-Encoding headers, in order.
        content: values of the Content-Encoding headers, in order.
        is_truncated: the crawler truncated the record, so a chunked body may end early.

    Raises:
        UndecodableError: an encoding is unknown, or the body is damaged, truncated or too large.
        InputError: a package that an encoding needs is missing.
    """
    for name in reversed(_encoding_names(transfer)):
        body = _dechunk(body, is_truncated=is_truncated) if name == "chunked" else _decode(body, name)
    for name in reversed(_encoding_names(content)):
        body = _decode(body, name)
    return body


def _encoding_names(headers: Sequence[str]) -> list[str]:
    names = [name.strip().lower() for header in headers for name in header.split(",")]
    return [name for name in names if name not in ("", "identity", "none")]


def _decode(body: bytes, name: str) -> bytes:
    if not body:
        return body
    decoder = _DECODERS.get(name)
    try:
        if decoder is not None:
            return decoder(body)
        problem = "unknown"
    except (zlib.error, EOFError, OSError, ValueError) as error:
        problem = one_line(error)
    if is_plain(body):
        return body
    raise UndecodableError(f"Content-Encoding {name[:40]}: {problem}")


def is_plain(body: bytes) -> bool:
    """Whether a body looks like an uncompressed page in a charset that extends ASCII.

    The first 1,024 bytes must have no control characters. A shorter body must also contain markup: compressed data of that length
    may have no control characters by chance.
    """
    start = body[:_SNIFFED_BYTES]
    if _CONTROL_CHARACTER.search(start):
        return False
    return len(start) == _SNIFFED_BYTES or start.lstrip().startswith(b"<") or (b"<" in start and _is_utf8(start))


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _dechunk(body: bytes, *, is_truncated: bool) -> bytes:
    if not _CHUNK_HEADER.match(body):
        return body  # the crawler removed the chunking and kept the header
    chunks: list[bytes] = []
    position = 0
    while header := _CHUNK_HEADER.match(body, position):
        size = int(header[1], 16)
        if not size:
            return b"".join(chunks)
        position = header.end() + size
        chunks.append(body[header.end() : position])
        if position > len(body):
            break
        position += 2 if body.startswith(b"\r\n", position) else body.startswith(b"\n", position)
    if is_truncated:
        return b"".join(chunks)
    raise UndecodableError(
        f"Transfer-Encoding chunked: {'truncated chunk' if position >= len(body) else 'no chunk header'} at byte {position}"
    )


def _check_size(out: bytes) -> bytes:
    if len(out) > MAX_LINE_BYTES:
        raise ValueError(f"more than {MAX_LINE_BYTES} bytes")
    return out


def _inflate(body: bytes, window: int) -> tuple[bytes, bytes]:
    """Decompress one zlib stream; return its data and the bytes after it."""
    decompressor = zlib.decompressobj(window)
    out = _check_size(decompressor.decompress(body, MAX_LINE_BYTES + 1))
    if not decompressor.eof:
        raise EOFError("the data ends early")
    return out, decompressor.unused_data


def _decode_gzip(body: bytes) -> bytes:
    out, rest = _inflate(body, 16 + zlib.MAX_WBITS)
    members = [out]
    while rest.startswith(_GZIP):  # anything else after a member is padding
        out, rest = _inflate(rest, 16 + zlib.MAX_WBITS)
        members.append(out)
    return _check_size(b"".join(members))


def _decode_deflate(body: bytes) -> bytes:
    try:
        return _inflate(body, zlib.MAX_WBITS)[0]
    except zlib.error:
        return _inflate(body, -zlib.MAX_WBITS)[0]  # some servers send deflate without the zlib header


def _decode_brotli(body: bytes) -> bytes:
    try:
        import brotli
    except ImportError as error:
        raise InputError('pages compressed with brotli need another package: pip install "crispwrap[filters]"') from error
    decompressor = brotli.Decompressor()
    try:
        out: bytes = _check_size(decompressor.process(body, output_buffer_limit=MAX_LINE_BYTES + 1))
    except brotli.error as error:
        raise ValueError(error) from error
    if not decompressor.is_finished():
        raise EOFError("the data ends early")
    return out


def _decode_zstd(body: bytes) -> bytes:
    return _check_size(io.BufferedReader(ZstdStream(io.BytesIO(body))).read(MAX_LINE_BYTES + 1))


_DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": _decode_gzip,
    "x-gzip": _decode_gzip,
    "deflate": _decode_deflate,
    "br": _decode_brotli,
    "zstd": _decode_zstd,
}
