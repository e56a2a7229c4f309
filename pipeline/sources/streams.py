"""Opens input files and decompresses them; a truncated or damaged file raises an error.

Two libraries lose data silently in files with several streams (as written by `pzstd`, `pbzip2` or `cat`). zstandard's own reader,
which datatrove uses through fsspec, stops after the first frame and at a truncated one. The standard library's readers for bz2 and
xz ignore everything from the first damaged or unknown byte between two streams on.
"""

import bz2
import gzip
import io
import lzma
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from datatrove.io import DataFolder

# Compressed bytes passed to the decompressor at once. It may turn every 4 of them into a block of 128 KiB, so this bounds memory.
_COMPRESSED_READ_BYTES = 8 << 10
MAX_LINE_BYTES = 1 << 30  # a longer line is discarded as a bad row: an Arrow string holds at most 2 GiB
# File endings of compressed files; a format may have several.
COMPRESSIONS = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2", ".xz": "xz"}
_MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd", "bz2": b"BZh", "xz": b"\xfd7zXZ\0"}
_UTF16_32_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32"}
_ZSTD_DICTIONARY = b"\x5d\x2a\x4d\x18"  # magic of the skippable frame that holds a dictionary
_DICTIONARY_MAGIC = b"\x37\xa4\x30\xec"
_MAX_DICTIONARY_BYTES = 1 << 27
_BUFFER_BYTES = 1 << 18


def compression_of(name: str) -> str | None:
    """Return the compression that a file's ending implies, or None."""
    return next((kind for ending, kind in COMPRESSIONS.items() if name.lower().endswith(ending)), None)


def open_bytes(folder: "DataFolder", filepath: str, compression: str | None = "infer") -> BinaryIO:
    """Open a file for reading, decompressed and buffered.

    Args:
        compression: `infer` decides by the file's ending; None means uncompressed.

    Raises:
        EOFError: the file should be compressed and is empty.
    """
    kind = compression_of(filepath) if compression == "infer" else compression
    opened: BinaryIO = folder.open(filepath, "rb")
    if kind is None:
        # fsspec buffers local files. For remote stores, its readline has no size limit, so they are buffered here.
        return opened if folder.is_local() else io.BufferedReader(opened, _BUFFER_BYTES)  # type: ignore[type-var]
    compressed = io.BufferedReader(opened, _BUFFER_BYTES)  # type: ignore[type-var]
    head = compressed.peek(8)
    if not head:
        raise EOFError("the file is empty")
    if _is_decompressed_by_client(folder.fs, head, kind):
        return compressed
    return decompress(compressed, kind)


def decompress(compressed: BinaryIO, kind: str) -> io.BufferedReader:
    """Return a decompressed view of a compressed stream; closing it closes the stream."""
    readers: dict[str, Any] = {"gzip": gzip.open, "zstd": ZstdStream, "bz2": _Bz2Stream, "xz": _XzStream}
    return _DecompressedReader(readers[kind](compressed), compressed)


class _DecompressedReader(io.BufferedReader):
    """A buffered decompressed stream: unbuffered, readline would run in Python. Closing it also closes the compressed stream."""

    def __init__(self, stream: Any, compressed: BinaryIO) -> None:
        super().__init__(stream, _BUFFER_BYTES)
        self._compressed_stream = compressed

    def close(self) -> None:
        super().close()
        self._compressed_stream.close()


def _is_decompressed_by_client(fs: Any, head: bytes, kind: str) -> bool:
    """Whether the HTTP client has already decompressed the file, because the server sent its compression as Content-Encoding."""
    protocols = fs.protocol if isinstance(fs.protocol, tuple | list) else (fs.protocol,)
    return bool({"http", "https"} & set(protocols)) and not head.startswith(_MAGIC[kind])


def reject_utf16_or_32(head: bytes) -> None:
    """Reject UTF-16 and UTF-32 text by its byte order mark.

    Raises:
        OSError: the file begins with such a mark.
    """
    for mark in sorted(_UTF16_32_BOMS, key=len, reverse=True):
        if head.startswith(mark):
            raise OSError(f"it is text in {_UTF16_32_BOMS[mark]}; convert it to UTF-8, for example with iconv")


class _FramedStream(io.RawIOBase):
    """Decompresses all frames of a file, one after the other, in bounded memory. Only frames may follow a frame.

    Raises on reading:
        EOFError: the file ends within a frame.
        OSError: the bytes are not compressed data of this kind, or are damaged.
    """

    kind: str

    def __init__(self, raw: BinaryIO) -> None:
        super().__init__()
        self._raw = raw
        self._frame: Any = None  # the decompressor of the frame being read; None between frames
        self._compressed = b""
        self._out = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._out:
            if not self._compressed and (self._frame is None or self._needs_input()):
                self._compressed = self._raw.read(_COMPRESSED_READ_BYTES)
                if not self._compressed:
                    self._check_end()
                    return 0
            self._frame = self._frame or self._new_frame()
            if self._frame is None:
                continue
            self._out = memoryview(self._decompress())
            if self._frame.eof:
                self._compressed, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._out))
        buffer[:size] = self._out[:size]
        self._out = self._out[size:]
        return size

    def _needs_input(self) -> bool:
        return bool(self._frame.needs_input)

    def _check_end(self) -> None:
        if self._frame is not None:
            raise EOFError(f"the file ends in the middle of a {self.kind} stream")

    def _new_frame(self) -> Any:
        """Return a decompressor for the frame that begins with `_compressed`; None if more bytes must be read first."""
        raise NotImplementedError

    def _decompress(self) -> bytes:
        """Decompress all or some of `_compressed` with `_frame`."""
        try:
            out: bytes = self._frame.decompress(self._compressed, _BUFFER_BYTES)
        except (OSError, lzma.LZMAError) as error:
            raise OSError(f"damaged {self.kind} data: {error}") from error
        self._compressed = b""  # the decompressor holds what it has not decompressed yet
        return out


class _Bz2Stream(_FramedStream):
    kind = "bz2"

    def _new_frame(self) -> Any:
        return bz2.BZ2Decompressor()


class _XzStream(_FramedStream):
    """Reads `.xz`, where NUL bytes in multiples of 4 may follow a stream, and `.lzma`."""

    kind = "xz"
    _started = False
    _padding = 0

    def _new_frame(self) -> Any:
        if not self._started:
            self._started = True
            return lzma.LZMADecompressor()
        stripped = self._compressed.lstrip(b"\0")
        self._padding += len(self._compressed) - len(stripped)
        self._compressed = stripped
        if not stripped:
            return None
        self._check_end()
        self._padding = 0
        return lzma.LZMADecompressor(lzma.FORMAT_XZ)

    def _check_end(self) -> None:
        super()._check_end()
        if self._padding % 4:
            raise OSError(f"damaged xz data: {self._padding} NUL bytes after a stream; the format allows multiples of 4")


class ZstdStream(_FramedStream):
    """Reads zstd, with the dictionary of a `.warc.zst` file if there is one: it is in a skippable frame before all others."""

    kind = "zstd"
    _dictionary: Any = None
    _started = False

    def _needs_input(self) -> bool:
        return True

    def _new_frame(self) -> Any:
        import zstandard

        if not self._started:
            self._started = True
            if self._compressed.startswith(_ZSTD_DICTIONARY):
                self._dictionary = self._read_dictionary()
            if not self._compressed:
                return None
        # 2 GiB: what `zstd --long=31` writes; the default refuses windows over 128 MiB.
        return zstandard.ZstdDecompressor(dict_data=self._dictionary, max_window_size=1 << 31).decompressobj()

    def _read_dictionary(self) -> Any:
        """Return the dictionary of the skippable frame that `_compressed` begins with, and remove the frame; None if it has none.

        The format: https://iipc.github.io/warc-specifications/specifications/warc-zstd/
        """
        import zstandard

        self._compressed += self._raw.read(max(0, 8 - len(self._compressed)))
        end = 8 + int.from_bytes(self._compressed[4:8], "little")
        self._compressed += self._raw.read(max(0, end - len(self._compressed)))
        if len(self._compressed) < end:
            raise EOFError("the file ends in the middle of its zstd dictionary")
        content, self._compressed = self._compressed[8:end], self._compressed[end:]
        if content.startswith(_MAGIC["zstd"]):
            content = io.BufferedReader(ZstdStream(io.BytesIO(content))).read(_MAX_DICTIONARY_BYTES)
        is_dictionary = content.startswith(_DICTIONARY_MAGIC)
        return zstandard.ZstdCompressionDict(content, dict_type=zstandard.DICT_TYPE_FULLDICT) if is_dictionary else None

    def _decompress(self) -> bytes:
        import zstandard

        try:
            out: bytes = self._frame.decompress(self._compressed)
        except zstandard.ZstdError as error:
            if "Dictionary mismatch" in str(error):
                raise OSError(
                    "it was compressed with a zstd dictionary that the file does not contain (in a first skippable frame, magic "
                    "0x184D2A5D); decompress it with zstd -d -D"
                ) from error
            raise OSError(f"damaged zstd data: {error}") from error
        self._compressed = b""
        return out
