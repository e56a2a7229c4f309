"""The bytes of input files, decompressed, with an error where a file ends too early.

zstandard's own stream reader, which fsspec and so datatrove use, ends in silence after the first frame of a file of several
(what `pzstd` or `cat` write), and in silence too where a frame was cut off.
"""

import io
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from datatrove.io import DataFolder

# Compressed bytes handed over at once. A frame may inflate each 4 of them to a block of 128 KiB, so this bounds memory.
_READ_BYTES = 8 << 10
MAX_LINE_BYTES = 1 << 30  # a longer line is skipped unread: an Arrow string ends at 2 GiB, and so does patience


def open_bytes(folder: "DataFolder", filepath: str) -> BinaryIO:
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
