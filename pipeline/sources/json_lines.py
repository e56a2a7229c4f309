"""JSON lines."""

from collections.abc import Iterator

import orjson
from datatrove.pipeline.readers import JsonlReader

from pipeline.sources import Row
from pipeline.sources.row_reader import RowReader, bad_row, excerpt_of_bytes
from pipeline.sources.streams import MAX_LINE_BYTES, open_bytes

_BOM = b"\xef\xbb\xbf"


class StrictJsonlReader(RowReader, JsonlReader):  # type: ignore[misc]
    """JSON lines, plain, .gz or .zst. Lines end at a line feed and nowhere else; blank ones are passed over."""

    def read_file(self, filepath: str, first: int = 0) -> Iterator[Row]:
        with open_bytes(self.data_folder, filepath) as lines:
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
                if row >= first and not line.isspace() and line:
                    yield self._parse(line, filepath, row)

    def _parse(self, line: bytes, filepath: str, row: int) -> Row:
        try:
            data = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            try:
                line.decode()
            except UnicodeDecodeError as undecodable:
                return bad_row(row, "invalid_utf8", f"at byte {undecodable.start} of the line", excerpt_of_bytes(line))
            return bad_row(row, "not_json", str(error), excerpt_of_bytes(line))
        if not isinstance(data, dict):
            return bad_row(row, "not_an_object", f"the line holds a {type(data).__name__}", excerpt_of_bytes(line))
        return self.row(data, filepath, row, excerpt_of_bytes(line))
