"""CSV."""

import csv
import io
from collections.abc import Iterator
from typing import Any

from datatrove.pipeline.readers import CSVReader

from pipeline.sources import EXCERPT_CHARACTERS, Row
from pipeline.sources.row_reader import RowReader, bad_row
from pipeline.sources.streams import MAX_LINE_BYTES, open_bytes

_REST = "\0"  # of fields beyond the named columns


class StrictCsvReader(RowReader, CSVReader):  # type: ignore[misc]
    """CSV with a line of column names, plain, .gz or .zst, in UTF-8."""

    def read_file(self, filepath: str, first: int = 0) -> Iterator[Row]:
        csv.field_size_limit(MAX_LINE_BYTES)
        with open_bytes(self.data_folder, filepath) as raw:
            # Bytes that are not UTF-8 become surrogates, which no good text has.
            rows = csv.DictReader(io.TextIOWrapper(raw, "utf-8-sig", "surrogateescape", newline=""), restkey=_REST)
            for row, data in enumerate(rows):
                if row >= first:
                    yield self._parse(data, filepath, row)

    def _parse(self, data: dict[str, Any], filepath: str, row: int) -> Row:
        line = ",".join(value for value in data.values() if isinstance(value, str))
        excerpt = line[:EXCERPT_CHARACTERS].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        if _REST in data or None in data.values():
            return bad_row(row, "wrong_fields", f"more or fewer fields than the {len(data) - (_REST in data)} columns", excerpt)
        try:
            line.encode()
        except UnicodeEncodeError:
            return bad_row(row, "invalid_utf8", "in one of the fields", excerpt)
        return self.row(data, filepath, row, excerpt)
