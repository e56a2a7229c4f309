"""Reader for CSV. A broken quote never loses rows silently: what cannot be parsed reliably becomes bad rows.

A quote that is never closed makes bad rows of its line and of those after it, until lines look like rows again. A missing quote
that a later one closes merges rows into one record that is correct by RFC 4180; `_ColumnShapes.count_merged_rows` distinguishes
it from a text of several lines by what its lines look like.
"""

import csv
import io
import string
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from datatrove.pipeline.readers import CSVReader

from pipeline.errors import InputError
from pipeline.sources import EXCERPT_CHARACTERS, Row
from pipeline.sources.row_reader import RowReader, bad_row
from pipeline.sources.streams import open_bytes, reject_utf16_or_32

MAX_RECORD_CHARACTERS = 64 << 20  # a quoted field longer than this counts as a missing closing quote
# After a broken quote, a line may be a row or the rest of a text. This many consecutive lines with the right number of fields count
# as rows again.
_ROWS_TO_REGAIN_TRUST = 8
_MAX_SHAPES = 1024  # limit for the shapes kept of a column
_CHARACTER_CLASSES = str.maketrans(string.digits + string.ascii_lowercase + string.ascii_uppercase, "9" * 10 + "a" * 26 + "A" * 26)


class StrictCsvReader(RowReader, CSVReader):  # type: ignore[misc]
    """Reads CSV in UTF-8 with a header line. Fields are separated by commas; quotes in quoted fields are doubled (RFC 4180)."""

    def read_file(self, filepath: str, first_row: int = 0) -> Iterator[Row]:
        csv.field_size_limit(MAX_RECORD_CHARACTERS)
        with open_bytes(self.data_folder, filepath, self.compression) as raw:
            buffered = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw, 1 << 18)  # type: ignore[type-var]
            reject_utf16_or_32(buffered.peek(4)[:4])
            # Bytes that are not UTF-8 become lone surrogates, which valid text never contains; `_parse` finds them.
            records = _Records(io.TextIOWrapper(buffered, "utf-8-sig", "surrogateescape", newline=""))
            names = self._read_header(records, filepath)
            if names is None:
                return
            columns = _ColumnShapes(len(names), names.index(self.text_key), names.index(self.id_key) if self.id_key else None)
            trusted = _mark_untrusted(records, columns)
            for row, record in enumerate(_mark_escaped_quotes(trusted, len(names))):
                if row >= first_row:
                    yield self._parse(record, names, filepath, row)

    def _read_header(self, records: "_Records", filepath: str) -> list[str] | None:
        """Return the column names; None if the file has no lines.

        Raises:
            InputError: the header has broken quotes, is not UTF-8, repeats a column, or lacks the text or id column.
        """
        header = next((record for record in records if record.fields != []), None)
        if header is None:
            return None
        if header.fields is None:
            raise InputError(f"{self.format_path(filepath)}: its header line cannot be parsed ({header.problem}); fix that line")
        try:
            header.line.encode()
        except UnicodeEncodeError:
            raw = header.line.encode("utf-8", "surrogateescape")
            raise InputError(
                f"{self.format_path(filepath)}: its column names are not in UTF-8; as {_guess_encoding(raw)} they are "
                f"{raw.decode(_guess_encoding(raw), 'replace').strip()[:EXCERPT_CHARACTERS]!r}. Convert the file to UTF-8, for "
                f"example with iconv -f {_guess_encoding(raw)} -t utf-8"
            ) from None
        if len(header.fields) == 1 and self.text_key not in header.fields:
            delimiter = next((name for mark, name in ((";", "a semicolon"), ("\t", "a tab")) if mark in header.fields[0]), None)
            if delimiter:
                raise InputError(
                    f"{self.format_path(filepath)}: the delimiter seems to be {delimiter}: its first line is "
                    f"{header.fields[0][:EXCERPT_CHARACTERS]!r}; only commas are supported. Write the file with commas, or "
                    "remove it from paths"
                )
        self.check_columns(header.fields, filepath)
        return header.fields

    def _parse(self, record: "_Record", names: Sequence[str], filepath: str, row: int) -> Row:
        excerpt = record.line[:EXCERPT_CHARACTERS].encode("utf-8", "surrogateescape").decode("utf-8", "replace").rstrip("\r\n")
        where = f"line {record.number} of the file"
        if record.fields == []:
            return Row(row, None, None, "blank_line")
        if record.fields is None:
            return bad_row(row, "broken_quotes", f"{where}: {record.problem}", excerpt)
        if len(record.fields) != len(names):
            return bad_row(row, "wrong_fields", f"{where}: {len(record.fields)} fields for {len(names)} columns", excerpt)
        try:
            ",".join(record.fields).encode()
        except UnicodeEncodeError:
            return bad_row(row, "invalid_utf8", f"{where}: in one of the fields", excerpt)
        data: dict[str, Any] = dict(zip(names, record.fields, strict=True))
        return self.make_row(data, filepath, row, excerpt)


@dataclass(frozen=True)
class _Record:
    """A CSV record, which may extend over several lines. `fields` is None if its quotes are broken; `problem` then says how."""

    fields: list[str] | None
    line: str  # the first line
    number: int  # line number of the first line, from 1
    problem: str = ""
    others: Sequence[str] = ()  # the lines after the first
    has_escapes: bool = False  # contains a backslash before a quote

    def as_broken(self, problem: str) -> "_Record":
        return _Record(None, self.line, self.number, problem)


class _Records:
    """Iterates over the records of a file. The first line of a record with broken quotes is yielded alone; the rest is reparsed."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self._lines_to_reparse: deque[str] = deque()
        self._consumed_lines: list[str] = []
        self._number = 1
        self._has_line_feeds: bool | None = None  # at the end of the header
        self._is_split = False  # whether the previous record ended in a carriage return alone
        self._reader = self._new_reader()

    def __iter__(self) -> Iterator[_Record]:
        return self

    def __next__(self) -> _Record:
        self._consumed_lines = []
        try:
            fields = next(self._reader)
        except csv.Error as error:
            if not self._consumed_lines:
                raise
            return self._make_broken_record(_explain(error, self._consumed_lines[0]))
        has_escapes = any('\\"' in line for line in self._consumed_lines)
        record = _Record(fields, self._consumed_lines[0], self._number, others=self._consumed_lines[1:], has_escapes=has_escapes)
        self._number += len(self._consumed_lines)
        return self._check_line_end(record, self._consumed_lines[-1][-1:])

    def _check_line_end(self, record: _Record, end: str) -> _Record:
        """Mark both rows beside a carriage return that stands alone as broken: it belongs to a text that should be quoted.

        In a file whose header ends in one as well, it ends rows.
        """
        if self._has_line_feeds is None and record.fields:
            self._has_line_feeds = end != "\r"
        is_split, was_split = bool(self._has_line_feeds) and end == "\r", self._is_split
        self._is_split = is_split
        problem = "a carriage return stands alone in a text without quotes; put the text in quotes"
        return record.as_broken(problem) if is_split or was_split else record

    def _make_broken_record(self, problem: str) -> _Record:
        record = _Record(None, self._consumed_lines[0], self._number, problem)
        self._lines_to_reparse.extendleft(reversed(self._consumed_lines[1:]))
        self._number += 1
        self._is_split = False  # the row beside the carriage return is this one
        self._reader = self._new_reader()
        return record

    def _new_reader(self) -> Any:
        return csv.reader(self._iter_lines(), strict=True)

    def _iter_lines(self) -> Iterator[str]:
        num_characters = 0
        while (line := self._lines_to_reparse.popleft() if self._lines_to_reparse else next(self._lines, None)) is not None:
            num_characters = num_characters + len(line) if self._consumed_lines else len(line)
            self._consumed_lines.append(line)
            if num_characters > MAX_RECORD_CHARACTERS:
                raise csv.Error(f"a quote is open for more than {MAX_RECORD_CHARACTERS:,} characters")
            yield line


class _ColumnShapes:
    """Learns what the columns of a file look like from its rows so far, to find the lines of a record that look like rows.

    Only the id column is compared; without one, all columns except the text. A value looks like those before if it has the same
    kinds of characters (digits, small and capital letters, each other character) and a length within theirs, or one more.
    """

    def __init__(self, num_columns: int, text: int, id_column: int | None) -> None:
        self.num = num_columns
        self._id = id_column
        self._compared_columns = (
            [id_column] if id_column is not None else [column for column in range(num_columns) if column != text]
        )
        self._lengths: list[dict[frozenset[str], tuple[int, int]]] = [
            {} for _ in self._compared_columns
        ]  # by shape: shortest and longest

    def learn(self, fields: Sequence[str]) -> None:
        """Record the shapes and lengths of the values of a row."""
        for column, lengths in zip(self._compared_columns, self._lengths, strict=True):
            shape, length = _shape(fields[column]), len(fields[column])
            shortest, longest = lengths.get(shape, (length, length))
            if shape in lengths or len(lengths) < _MAX_SHAPES:
                lengths[shape] = min(shortest, length), max(longest, length)

    def count_merged_rows(self, record: _Record) -> int:
        """Return how many lines of a record look like rows; 0 unless most of its lines do, blank ones ignored.

        The first line begins the record. The last one ends it, and counts only where its id would stand in the quoted field. A
        valid record that quotes CSV with ids like those of the file is taken for merged rows as well. With a single column
        rows cannot be recognized, and the result is always 0.
        """
        fields = record.fields
        if self.num < 2 or not record.others or fields is None or len(fields) != self.num:
            return 0
        self.learn(fields)  # the record's own id is known, if it is the first row
        quoted = max(column for column, field in enumerate(fields) if "\n" in field or "\r" in field)
        lines = record.others if self._id is not None and self._id < quoted else record.others[:-1]
        lines = [line for line in lines if not line.isspace()]
        num_rows = sum(map(self._is_row, lines))
        return num_rows if 2 * num_rows > len(lines) else 0

    def _is_row(self, line: str) -> bool:
        fields = next(csv.reader([line]), [])
        if len(fields) != self.num:
            return False
        for column, lengths in zip(self._compared_columns, self._lengths, strict=True):
            shortest, longest = lengths.get(_shape(fields[column]), (1, -1))
            if not shortest <= len(fields[column]) <= longest + 1:
                return False
        return True


def _shape(value: str) -> frozenset[str]:
    return frozenset(value.translate(_CHARACTER_CLASSES))


def _mark_untrusted(records: _Records, columns: _ColumnShapes) -> Iterator[_Record]:
    """Yield the records; one that looks like merged rows is marked as broken, as a whole.

    After a quote that is not closed, mark records as broken until `_ROWS_TO_REGAIN_TRUST` consecutive ones look like rows.
    """
    pending: list[_Record] = []
    distrust = False
    for original in records:
        record = original
        is_merge = False
        if record.others and (num_rows := columns.count_merged_rows(record)):
            is_merge = True
            record = record.as_broken(
                f"a quote opens here and closes {len(record.others)} lines below, and {num_rows} of these lines look like rows, so "
                "rows seem to be merged; close the quote where it should end"
            )
        if record.fields is None:
            yield from (later.as_broken("it follows a broken quote") for later in pending)
            pending, distrust = [], distrust or not is_merge
            yield record
        elif not distrust:
            if len(record.fields) == columns.num:
                columns.learn(record.fields)
            yield record
        elif len(record.fields) == columns.num:
            pending.append(record)
            if len(pending) == _ROWS_TO_REGAIN_TRUST:
                yield from pending
                pending, distrust = [], False
        else:
            yield from (later.as_broken("it follows a broken quote") for later in pending)
            pending = []
            yield record if record.fields == [] else record.as_broken("it follows a broken quote")
    yield from (later.as_broken("it follows a broken quote, and the file ends before valid rows resume") for later in pending)


def _mark_escaped_quotes(records: Iterable[_Record], num_columns: int) -> Iterator[_Record]:
    r"""Yield the records. One that contains `\"` is marked as broken if the next record is malformed: its quotes are misplaced."""
    pending: _Record | None = None
    for record in records:
        if pending is not None:
            is_row = record.fields == [] or (record.fields is not None and len(record.fields) == num_columns)
            yield pending if is_row else pending.as_broken('quotes are escaped as \\" here, but CSV doubles them')
        pending = record if record.fields and record.has_escapes else None
        if pending is None:
            yield record
    if pending is not None:
        yield pending


def _explain(error: csv.Error, line: str) -> str:
    if '\\"' in line:
        return f'{error}; quotes are escaped as \\" here, but CSV doubles them: write the file with doubled quotes'
    if "unexpected end" in str(error):
        return "a quote that opens here is not closed"
    return str(error)


def _guess_encoding(raw: bytes) -> str:
    """Guess the encoding of bytes that are not UTF-8: cp1252 if it decodes all of them, else latin-1."""
    try:
        raw.decode("cp1252")
    except UnicodeDecodeError:
        return "latin-1"
    return "cp1252"
