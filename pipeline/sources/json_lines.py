"""Reader for JSON lines, and for JSON arrays of rows that are small enough to be read whole."""

from collections.abc import Iterator
from typing import Any, BinaryIO

import orjson
from datatrove.pipeline.readers import JsonlReader

from pipeline import exact_json
from pipeline.errors import InputError
from pipeline.sources import Row
from pipeline.sources.row_reader import RowReader, bad_row, excerpt_of, excerpt_of_bytes
from pipeline.sources.streams import MAX_LINE_BYTES, open_bytes, reject_utf16_or_32

MAX_ARRAY_BYTES = 64 << 20  # limit for a file that is one JSON array; its values take about five times as much memory
_BOM = b"\xef\xbb\xbf"


class StrictJsonlReader(RowReader, JsonlReader):  # type: ignore[misc]
    """Reads JSON lines. Only a line feed ends a line; blank lines are skipped.

    If the file is one JSON array, its elements are the rows, not its lines.
    """

    def read_file(self, filepath: str, first_row: int = 0) -> Iterator[Row]:
        array = self._read_array(filepath)
        if array is not None:
            for row, one in enumerate(self._iter_elements(*array, filepath)):
                if row >= first_row:
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
                    if row >= first_row:
                        yield bad_row(row, "line_too_long", f"more than {MAX_LINE_BYTES} bytes", excerpt)
                    continue
                if row < first_row:
                    continue
                line = line.removeprefix(_BOM)  # files joined by `cat` have one in the middle
                if not line or line.isspace():
                    yield Row(row, None, None, "blank_line")
                else:
                    yield self._parse_line(line, filepath, row)

    def _open(self, filepath: str) -> BinaryIO:
        return open_bytes(self.data_folder, filepath, self.compression)

    def _parse_line(self, line: bytes, filepath: str, row: int) -> Row:
        excerpt = excerpt_of_bytes(line)
        try:
            value = exact_json.parse(line)
        except exact_json.RepeatedKeyError as error:
            return bad_row(row, "repeated_key", f"the key {error.key!r} is repeated", excerpt)
        except orjson.JSONDecodeError as error:
            try:
                line.decode()
            except UnicodeDecodeError as undecodable:
                return bad_row(row, "invalid_utf8", f"at byte {undecodable.start} of the line", excerpt)
            return bad_row(row, "not_json", str(error), excerpt)
        return self._make_row_from_value(value, filepath, row, excerpt)

    def _make_row_from_value(self, value: Any, filepath: str, row: int, excerpt: str) -> Row:
        if isinstance(value, list):
            return bad_row(
                row,
                "not_an_object",
                "it is an array, not an object; rows in an array are read only if the whole file is one array",
                excerpt,
            )
        if not isinstance(value, dict):
            return bad_row(row, "not_an_object", f"it is a {type(value).__name__}, not an object", excerpt)
        if (repeated := exact_json.find_repeated_key(value)) is not None:
            return bad_row(row, "repeated_key", f"the key {repeated!r} is repeated", excerpt)
        return self.make_row(value, filepath, row, excerpt)

    def _iter_elements(self, array: bytes, num_bytes_before: int, filepath: str) -> Iterator[Row]:
        """Yield the rows of a JSON array that begins after `num_bytes_before` bytes of the file.

        Raises:
            OSError: the array is damaged, so that its next element cannot be parsed.
        """
        # Bytes that are not UTF-8 become lone surrogates, which valid text never contains.
        text = array.decode("utf-8", "surrogateescape")
        is_utf8 = text.isascii() or _is_utf8(text)
        try:
            for row, element in enumerate(exact_json.parse_elements(text)):
                value = element.value
                excerpt = excerpt_of(value, self.text_key) if isinstance(value, dict) else text[element.begin : element.end]
                if element.problem:
                    parsed = bad_row(row, "not_json", element.problem, excerpt)
                else:
                    parsed = self._make_row_from_value(value, filepath, row, excerpt)
                if not is_utf8 and not _is_utf8(text[element.begin : element.end]) and (element.problem or parsed.document):
                    parsed = bad_row(row, "invalid_utf8", "in this element of the array", excerpt)
                yield parsed
        except exact_json.DamagedArrayError as error:
            position = num_bytes_before + len(text[: error.position].encode("utf-8", "surrogateescape"))
            raise OSError(f"the JSON array is damaged at byte {position}: {error.problem}") from error

    def _read_array(self, filepath: str) -> tuple[bytes, int] | None:
        """Return the array if the file is one JSON array, damaged or not, and the number of bytes before it; else None.

        Raises:
            OSError: the file is text in UTF-16 or UTF-32.
            InputError: the file is one JSON array of more than `MAX_ARRAY_BYTES`.
        """
        num_bytes_before = 0
        with self._open(filepath) as lines:
            line = lines.readline(MAX_ARRAY_BYTES)
            reject_utf16_or_32(line[:4])
            while not line.removeprefix(_BOM).strip() and (next_line := lines.readline(MAX_ARRAY_BYTES)):
                num_bytes_before += len(line)
                line = next_line
            if not line.removeprefix(_BOM).lstrip().startswith(b"["):
                return None
            rest = lines.read(MAX_ARRAY_BYTES + 1 - len(line))
        is_whole = len(line) + len(rest) <= MAX_ARRAY_BYTES
        if line.endswith(b"\n") and _looks_like_json_lines(line, rest, is_whole=is_whole):
            return None
        if is_whole:
            array = line.removeprefix(_BOM)
            return array + rest, num_bytes_before + len(line) - len(array)
        raise InputError(
            f"{self.format_path(filepath)} is one JSON array of more than {MAX_ARRAY_BYTES >> 20} MiB, the limit for arrays; "
            "convert it to JSON lines, for example with jq -c '.[]'"
        )


def _looks_like_json_lines(line: bytes, rest: bytes, *, is_whole: bool) -> bool:
    """Whether a first line that begins with a bracket begins JSON lines, not an array.

    It does if it is an array itself and more follows, or if it is broken and the next and the last line are JSON: the last line of
    an array closes a bracket that it does not open. `is_whole` means that `rest` includes the last line.
    """
    if not rest.strip():
        return False
    if _is_json(line):
        return True
    next_line, last = rest.lstrip().split(b"\n", 1)[0], rest.rstrip().rpartition(b"\n")[2]
    return line.rstrip()[-1:] not in b"[{," and _is_json(next_line) and (not is_whole or _is_json(last))


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
