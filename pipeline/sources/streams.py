"""Decompression that notices a cut: bytes of a .zst file, with an error where the file ends too early.

zstandard's own stream reader, which fsspec and so datatrove use, ends in silence after the first frame of a file of several
(what `pzstd` or `cat` write), and in silence too where a frame was cut off.
"""

import io
from typing import Any, BinaryIO

# Compressed bytes handed over at once. A frame may inflate each 4 of them to a block of 128 KiB, so this bounds memory.
_READ_BYTES = 8 << 10


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
