"""The bytes of input files, decompressed, with an error where a file ends too early.

zstandard's own stream reader, which fsspec and so datatrove use, ends in silence after the first frame of a file of several
(what `pzstd` or `cat` write), and in silence too where a frame was cut off.
"""

import importlib
import io
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from datatrove.io import DataFolder

# Compressed bytes handed over at once. A frame may inflate each 4 of them to a block of 128 KiB, so this bounds memory.
_READ_BYTES = 8 << 10
MAX_LINE_BYTES = 1 << 30  # a longer line is skipped unread: an Arrow string ends at 2 GiB, and so does patience
# The endings of compressed files; other spellings of the same formats are in use.
COMPRESSIONS = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2", ".xz": "xz"}
_MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd", "bz2": b"BZh", "xz": b"\xfd7zXZ\0"}
_WIDE_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32"}
_BUFFER_BYTES = 1 << 18


def compression_of(name: str) -> str | None:
    """The compression that a file's ending stands for."""
    return next((kind for ending, kind in COMPRESSIONS.items() if name.lower().endswith(ending)), None)


def open_bytes(folder: "DataFolder", filepath: str, compression: str | None = "infer") -> BinaryIO:
    """The file's bytes, decompressed, buffered.

    Args:
        compression: `infer` goes by the file's ending, None says that it has none.

    Raises:
        EOFError: it is compressed and has no bytes at all.
    """
    kind = compression_of(filepath) if compression == "infer" else compression
    opened: BinaryIO = folder.open(filepath, "rb")
    if kind is None:
        # Local files are buffered by fsspec; a store's file cannot bound a line.
        return opened if folder.is_local() else io.BufferedReader(opened, _BUFFER_BYTES)  # type: ignore[type-var]
    packed = io.BufferedReader(opened, _BUFFER_BYTES)  # type: ignore[type-var]
    head = packed.peek(8)
    if not head:
        raise EOFError("the file is empty")
    if _is_unpacked_by_the_client(folder.fs, head, kind):
        return packed
    return unpacked(packed, kind)


def unpacked(packed: BinaryIO, kind: str) -> io.BufferedReader:
    """The bytes of a compressed stream, decompressed; closing them closes it."""
    if kind == "zstd":
        return _Unpacked(ZstdStream(packed), packed)
    module = importlib.import_module({"gzip": "gzip", "bz2": "bz2", "xz": "lzma"}[kind])
    return _Unpacked(module.open(packed, "rb"), packed)


class _Unpacked(io.BufferedReader):
    """A decompressed stream, buffered, as reading lines of one is done in Python otherwise."""

    def __init__(self, stream: Any, packed: BinaryIO) -> None:
        super().__init__(stream, _BUFFER_BYTES)
        self._packed = packed

    def close(self) -> None:
        super().close()
        self._packed.close()


def _is_unpacked_by_the_client(fs: Any, head: bytes, kind: str) -> bool:
    """Whether a web server called the compression of the file a Content-Encoding, which HTTP clients undo."""
    protocols = fs.protocol if isinstance(fs.protocol, tuple | list) else (fs.protocol,)
    return bool({"http", "https"} & set(protocols)) and not head.startswith(_MAGIC[kind])


def check_encoding(head: bytes) -> None:
    """Refuse text of two or four bytes a character by the mark that such files begin with.

    Raises:
        OSError: the file begins with one.
    """
    for mark in sorted(_WIDE_MARKS, key=len, reverse=True):
        if head.startswith(mark):
            raise OSError(f"it is text in {_WIDE_MARKS[mark]} and must be in UTF-8; convert it, such as with iconv")


class ZstdStream(io.RawIOBase):
    """The decompressed bytes of all frames of a zstd file, in bounded memory.

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
