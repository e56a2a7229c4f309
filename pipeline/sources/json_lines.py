"""Reader for JSON lines, and for JSON arrays of rows that are small enough to be read whole."""

from collections.abc import Iterator
from typing import Any, BinaryIO

import orjson
from datatrove.pipeline.readers import JsonlReader

from pipeline import exact_json
from pipeline.errors import InputError
from pipeline.sources import Row
from pipeline.sources.row_reader import RowReader, bad_row, excerpt_of, excerpt_of_bytes
from pipeline.sources.streams import MAX_LINE_BYTES, check_encoding, open_bytes

MAX_ARRAY_BYTES = 64 << 20  # limit for a file that is one JSON array; its values take about five times as much memory
_BOM = b"\xef\xbb\xbf"


class StrictJsonlReader(RowReader, JsonlReader):  # type: ignore[misc]
    """Reads JSON lines. Only a line feed ends a line; blank lines are skipped.

    If the file is one JSON array, its elements are the rows.
    """

    def read_file(self, filepath: str, first: int = 0) -> Iterator[Row]:
        array = self._array(filepath)
        if array is not None:
            for row, value in enumerate(array):
                if row >= first:
                    yield self._of_value(value, filepath, row, excerpt_of(value, self.text_key) if isinstance(value, dict) else "")
            return
        with self._open(filepath) as lines:
            row = -1
            while line := lines.readline(MAX_LINE_BYTES):
                row += 1
                if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                    excerpt = excerpt_of_bytes(line)
                    while line and not line.endswith(b"\n"):
                        line = lines.readline(1 << 20)
                    if row >= first:
                        yield bad_row(row, "line_too_long", f"more than {MAX_LINE_BYTES} bytes", excerpt)
                    continue
                if row == 0:
                    line = line.removeprefix(_BOM)
                if row < first:
                    continue
                if not line or line.isspace():
                    yield Row(row, None, None, "blank_line")
                else:
                    yield self._parse(line, filepath, row)

    def _open(self, filepath: str) -> BinaryIO:
        return open_bytes(self.data_folder, filepath, self.compression)

    def _parse(self, line: bytes, filepath: str, row: int) -> Row:
        excerpt = excerpt_of_bytes(line)
        try:
            value = exact_json.parse(line)
        except exact_json.RepeatedKeyError as error:
            return bad_row(row, "repeated_key", f"the key {error.key!r} comes twice", excerpt)
        except orjson.JSONDecodeError as error:
            try:
                line.decode()
            except UnicodeDecodeError as undecodable:
                return bad_row(row, "invalid_utf8", f"at byte {undecodable.start} of the line", excerpt)
            return bad_row(row, "not_json", str(error), excerpt)
        return self._of_value(value, filepath, row, excerpt)

    def _of_value(self, value: Any, filepath: str, row: int, excerpt: str) -> Row:
        if not isinstance(value, dict):
            return bad_row(row, "not_an_object", f"it is a {type(value).__name__}, not an object", excerpt)
        if (repeated := exact_json.repeated_key(value)) is not None:
            return bad_row(row, "repeated_key", f"the key {repeated!r} comes twice", excerpt)
        return self.row(value, filepath, row, excerpt)

    def _array(self, filepath: str) -> list[Any] | None:
        """Return the elements if the file is one JSON array; None if it is not.

        Raises:
            OSError: the file is text in UTF-16 or UTF-32.
            InputError: the file is one JSON array of more than `MAX_ARRAY_BYTES`.
        """
        with self._open(filepath) as lines:
            line = lines.readline(MAX_ARRAY_BYTES)
            check_encoding(line[:4])
            while not line.removeprefix(_BOM).strip() and (following := lines.readline(MAX_ARRAY_BYTES)):
                line = following
            if not line.removeprefix(_BOM).lstrip().startswith(b"["):
                return None
            rest = lines.read(MAX_ARRAY_BYTES + 1 - len(line))
        if line.endswith(b"\n") and rest.strip() and _is_json(line):
            return None  # JSON lines whose first line is an array
        whole = (line + rest).removeprefix(_BOM)
        if len(whole) <= MAX_ARRAY_BYTES:
            try:
                value = exact_json.parse_exactly(whole)
            except orjson.JSONDecodeError:
                return None  # JSON lines whose first line is broken
            return value if isinstance(value, list) else None
        following = next((line for line in rest.split(b"\n", 2)[:2] if line.strip()), b"")
        if _is_json(following):
            return None
        raise InputError(
            f"{self.place(filepath)} is one JSON array of more than {MAX_ARRAY_BYTES >> 20} MiB, which would have to be read as a "
            "whole; convert it to JSON lines, such as with jq -c '.[]'"
        )


def _is_json(line: bytes) -> bool:
    try:
        orjson.loads(line.removeprefix(_BOM))
    except orjson.JSONDecodeError:
        return False
    return True
