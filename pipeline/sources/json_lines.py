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

    If the file is one JSON array, its elements are the rows; its lines never are.
    """

    def read_file(self, filepath: str, first: int = 0) -> Iterator[Row]:
        array = self._array(filepath)
        if array is not None:
            for row, one in enumerate(self._elements(*array, filepath)):
                if row >= first:
                    yield one
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
                if row < first:
                    continue
                line = line.removeprefix(_BOM)  # files joined by `cat` have one in the middle
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
        if isinstance(value, list):
            return bad_row(
                row, "not_an_object", "it is an array, not an object; rows in an array are read if it is the whole file", excerpt
            )
        if not isinstance(value, dict):
            return bad_row(row, "not_an_object", f"it is a {type(value).__name__}, not an object", excerpt)
        if (repeated := exact_json.repeated_key(value)) is not None:
            return bad_row(row, "repeated_key", f"the key {repeated!r} comes twice", excerpt)
        return self.row(value, filepath, row, excerpt)

    def _elements(self, array: bytes, skipped: int, filepath: str) -> Iterator[Row]:
        """Yield the rows of a JSON array that begins after `skipped` bytes of the file.

        Raises:
            OSError: the array is damaged, so that its next element cannot be found.
        """
        # Bytes that are not UTF-8 become lone surrogates, which valid text never contains.
        text = array.decode("utf-8", "surrogateescape")
        is_utf8 = text.isascii() or _is_utf8(text)
        try:
            for row, element in enumerate(exact_json.parse_elements(text)):
                value = element.value
                excerpt = excerpt_of(value, self.text_key) if isinstance(value, dict) else text[element.begin : element.end]
                if element.problem:
                    found = bad_row(row, "not_json", element.problem, excerpt)
                else:
                    found = self._of_value(value, filepath, row, excerpt)
                if not is_utf8 and not _is_utf8(text[element.begin : element.end]) and (element.problem or found.document):
                    found = bad_row(row, "invalid_utf8", "in this element of the array", excerpt)
                yield found
        except exact_json.DamagedArrayError as error:
            place = skipped + len(text[: error.place].encode("utf-8", "surrogateescape"))
            raise OSError(f"JSON array, damaged at byte {place}: {error.problem}") from error

    def _array(self, filepath: str) -> tuple[bytes, int] | None:
        """Return the array if the file is one JSON array, damaged or not, and the number of bytes before it; else None.

        Raises:
            OSError: the file is text in UTF-16 or UTF-32.
            InputError: the file is one JSON array of more than `MAX_ARRAY_BYTES`.
        """
        skipped = 0
        with self._open(filepath) as lines:
            line = lines.readline(MAX_ARRAY_BYTES)
            check_encoding(line[:4])
            while not line.removeprefix(_BOM).strip() and (following := lines.readline(MAX_ARRAY_BYTES)):
                skipped += len(line)
                line = following
            if not line.removeprefix(_BOM).lstrip().startswith(b"["):
                return None
            rest = lines.read(MAX_ARRAY_BYTES + 1 - len(line))
        is_whole = len(line) + len(rest) <= MAX_ARRAY_BYTES
        if line.endswith(b"\n") and _are_lines(line, rest, is_whole=is_whole):
            return None
        if is_whole:
            array = line.removeprefix(_BOM)
            return array + rest, skipped + len(line) - len(array)
        raise InputError(
            f"{self.place(filepath)} is one JSON array of more than {MAX_ARRAY_BYTES >> 20} MiB, which would have to be read as a "
            "whole; convert it to JSON lines, such as with jq -c '.[]'"
        )


def _are_lines(line: bytes, rest: bytes, *, is_whole: bool) -> bool:
    """Whether a first line that begins with a bracket begins JSON lines, not an array.

    It does if it is an array itself and more follows, or if it is broken and the next and the last line are JSON: the last line of
    an array closes a bracket that it does not open. `is_whole` says that `rest` has the last line.
    """
    if not rest.strip():
        return False
    if _is_json(line):
        return True
    following, last = rest.lstrip().split(b"\n", 1)[0], rest.rstrip().rpartition(b"\n")[2]
    return line.rstrip()[-1:] not in b"[{," and _is_json(following) and (not is_whole or _is_json(last))


def _is_json(line: bytes) -> bool:
    try:
        orjson.loads(line.removeprefix(_BOM))
    except orjson.JSONDecodeError:
        return False
    return True


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
