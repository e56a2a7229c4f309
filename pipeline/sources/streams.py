"""Opens input files and decompresses them; a truncated file raises an error.

zstandard's own stream reader, which datatrove uses through fsspec, stops silently after the first frame of a file with several
frames (as written by `pzstd` or `cat`) and at a truncated frame.
"""

import importlib
import io
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from datatrove.io import DataFolder

# Compressed bytes passed to the decompressor at once. It may turn every 4 of them into a block of 128 KiB, so this bounds memory.
_READ_BYTES = 8 << 10
MAX_LINE_BYTES = 1 << 30  # a longer line is discarded as a bad row: an Arrow string holds at most 2 GiB
# File endings of compressed files; a format may have several.
COMPRESSIONS = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2", ".xz": "xz"}
_MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd", "bz2": b"BZh", "xz": b"\xfd7zXZ\0"}
_WIDE_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32"}
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
    packed = io.BufferedReader(opened, _BUFFER_BYTES)  # type: ignore[type-var]
    head = packed.peek(8)
    if not head:
        raise EOFError("the file is empty")
    if _is_unpacked_by_the_client(folder.fs, head, kind):
        return packed
    return unpacked(packed, kind)


def unpacked(packed: BinaryIO, kind: str) -> io.BufferedReader:
    """Return a decompressed view of a compressed stream; closing it closes the stream."""
    if kind == "zstd":
        return _Unpacked(ZstdStream(packed), packed)
    module = importlib.import_module({"gzip": "gzip", "bz2": "bz2", "xz": "lzma"}[kind])
    return _Unpacked(module.open(packed, "rb"), packed)


class _Unpacked(io.BufferedReader):
    """A buffered decompressed stream: unbuffered, readline would run in Python. Closing it also closes the compressed stream."""

    def __init__(self, stream: Any, packed: BinaryIO) -> None:
        super().__init__(stream, _BUFFER_BYTES)
        self._packed = packed

    def close(self) -> None:
        super().close()
        self._packed.close()


def _is_unpacked_by_the_client(fs: Any, head: bytes, kind: str) -> bool:
    """Whether the HTTP client has already decompressed the file, because the server sent its compression as Content-Encoding."""
    protocols = fs.protocol if isinstance(fs.protocol, tuple | list) else (fs.protocol,)
    return bool({"http", "https"} & set(protocols)) and not head.startswith(_MAGIC[kind])


def check_encoding(head: bytes) -> None:
    """Reject UTF-16 and UTF-32 text by its byte order mark.

    Raises:
        OSError: the file begins with such a mark.
    """
    for mark in sorted(_WIDE_MARKS, key=len, reverse=True):
        if head.startswith(mark):
            raise OSError(f"it is text in {_WIDE_MARKS[mark]} and must be in UTF-8; convert it, such as with iconv")


class ZstdStream(io.RawIOBase):
    """Decompresses all frames of a zstd file in bounded memory.

    Raises on reading:
        EOFError: the file ends within a frame.
        OSError: the bytes are not zstd, or are damaged.
    """

    def __init__(self, raw: BinaryIO) -> None:
        super().__init__()
        self._raw = raw
        self._frame: Any = None  # the frame being read; None between frames
        self._compressed = b""
        self._out = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._out:
            if not self._compressed:
                self._compressed = self._raw.read(_READ_BYTES)
                if not self._compressed:
                    if self._frame is not None:
                        raise EOFError("the file ends in the middle of a zstd frame")
                    return 0
            self._out = memoryview(self._inflate())
        size = min(len(buffer), len(self._out))
        buffer[:size] = self._out[:size]
        self._out = self._out[size:]
        return size

    def _inflate(self) -> bytes:
        import zstandard

        if self._frame is None:
            # 2 GiB: what `zstd --long=31` writes; the default refuses windows over 128 MiB.
            self._frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
        try:
            out: bytes = self._frame.decompress(self._compressed)
        except zstandard.ZstdError as error:
            raise OSError(f"damaged zstd data: {error}") from error
        self._compressed = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame = None
        return out
