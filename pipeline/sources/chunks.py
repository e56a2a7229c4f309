"""Groups rows into chunks and cuts chunks into parts of windows: the part of `prepare` that writes no files.

A chunk is a sequence of consecutive rows of one input file and becomes one part. Chunk borders depend only on the rows of the file,
so pass 1 (`scan_file`) and pass 2 (`cut_chunks`) find the same borders on any worker, whatever other files contain.

Shapes: N good rows of a file.
"""

import math
from array import array
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from pipeline import exact_json
from pipeline.arrays import I32, I64
from pipeline.config import Corpus, Prepare
from pipeline.errors import InputError
from pipeline.hashing import window_keys
from pipeline.sources import Document, InputFile, Row
from pipeline.sources.readers import metadata_columns, read_rows
from pipeline.tables import QUARANTINE, WINDOWS
from pipeline.text.windows import WindowCutter, split_blocks

QUARANTINE_PIECE_ROWS = 4096  # limit for the bad rows of a file that are kept in memory and written at once
_MAX_LEADING_ROWS_WITHOUT_TEXT = 10_000  # if so many rows at the beginning of a file have no text, text_key is wrong


class Chunker:
    """Assigns good rows, in order, to the chunks of a file, numbered from 0.

    A document goes into the current chunk. If that chunk already has `part_documents` documents, or would exceed `part_bytes`
    bytes of text, id, source and metadata, the document opens the next chunk. A document whose text alone exceeds `part_bytes` is
    split between blocks (`pipeline.text.windows.split_blocks`), unless `split` is false because refining steps will change it.
    """

    def __init__(self, prepare: Prepare, first_chunk: int = 0, *, split: bool = True) -> None:
        self._limits = prepare
        self._split = split
        self._chunk = first_chunk
        self._documents = 0
        self._bytes = 0

    @property
    def num_chunks(self) -> int:
        """Number of chunks up to and including the current one; before the first document, those before `first_chunk`."""
        return self._chunk + 1 if self._documents else self._chunk

    def assign(self, text: str, extra_bytes: int = 0) -> list[tuple[int, int, int]]:
        """Assign the next document. Return (chunk, begin, end) for each chunk it lies in, in characters; nearly always one.

        `extra_bytes` is the number of bytes of its id, source and metadata.
        """
        num_bytes = _utf8_bytes(text)
        full = self._documents == self._limits.part_documents or self._bytes + num_bytes + extra_bytes > self._limits.part_bytes
        if self._documents and full:
            self._open_next()
        self._documents += 1
        self._bytes += extra_bytes
        if num_bytes <= self._limits.part_bytes or not self._split:
            self._bytes += num_bytes
            return [(self._chunk, 0, len(text))]
        spans = []
        begin = end = 0
        for block in split_blocks(text):
            num_bytes = _utf8_bytes(block)
            if begin < end and self._bytes + num_bytes > self._limits.part_bytes:
                spans.append((self._chunk, begin, end))
                begin = end
                self._open_next()
                self._documents, self._bytes = 1, extra_bytes
            end += len(block)
            self._bytes += num_bytes
        return [*spans, (self._chunk, begin, end)]

    def _open_next(self) -> None:
        self._chunk += 1
        self._documents = self._bytes = 0


class ChunkStart(NamedTuple):
    """Where to start reading for a chunk: the row of its first document, the rows before it, and that document's first chunk.

    `rows_before` counts good and bad rows. `chunk` is earlier than the chunk to be read if the document is split over several.
    """

    row: int
    rows_before: int
    chunk: int


_FILE_START = ChunkStart(0, 0, 0)


@dataclass(frozen=True)
class Scan:
    """Result of pass 1 for one file.

    Attributes:
        num_rows: N good rows plus the bad rows; skipped rows are not included.
        reasons: number of bad rows by reason.
        skipped: number of skipped rows by reason.
        unsupported_columns: columns that cannot be kept as metadata, with the kind of their values.
        missing_columns: columns of `prepare.metadata` that no good row has.
        stopped_early: there were too many bad rows, so the rest of the file was not read.
        starts: one entry for each chunk.
        num_bytes: UTF-8 bytes of the good rows' text, id, source and metadata.
        row_N: row numbers of the good rows, in order.
        id_hash_N: xxh3 of their ids.
        chunk_N: the first chunk of each document.
        quarantine: the first 4,096 bad rows.
    """

    num_rows: int
    reasons: Mapping[str, int]
    skipped: Mapping[str, int]
    unsupported_columns: Mapping[str, str]
    missing_columns: Collection[str]
    stopped_early: bool
    starts: Sequence[ChunkStart]
    num_bytes: int
    row_N: I64
    id_hash_N: NDArray[np.uint64]
    chunk_N: I32
    quarantine: pa.Table

    @property
    def num_chunks(self) -> int:
        return len(self.starts)


def scan_file(
    file: InputFile,
    corpus: Corpus,
    prepare: Prepare,
    *,
    split: bool = True,
    quarantine: Callable[[int, pa.Table], None] | None = None,
    max_bad_rows: float = math.inf,
) -> Scan:
    """Pass 1: check and hash every row of the file and assign it to a chunk. Does not tokenize.

    Args:
        split: whether a large document may be split over several chunks.
        quarantine: called with the number and the table of each piece of at most 4,096 bad rows, so that memory stays bounded.
        max_bad_rows: stop when a file has more bad rows than this. If it is finite, also stop when a file begins with 10,000 rows
            that have no text.

    Raises:
        InputError: as `read_rows`.
        StorageError: as `read_rows`.
    """
    chunker = Chunker(prepare, split=split)
    columns = metadata_columns(prepare)
    rows, hashes, chunks = array("q"), array("Q"), array("i")
    skipped: Counter[str] = Counter()
    unsupported_columns: dict[str, str] = {}
    missing_columns = set(columns.names or ())
    bad = _Quarantine(file, quarantine)
    starts: list[ChunkStart] = []
    num_bytes = 0
    stopped_early = False
    for row in read_rows(file, corpus, columns=columns, unsupported_columns=unsupported_columns):
        if row.skipped is not None:
            skipped[row.skipped] += 1
            continue
        if row.document is None:
            bad.add(row)
            if stopped_early := bad.count > max_bad_rows or (not rows and bad.lacks_text and math.isfinite(max_bad_rows)):
                break
            continue
        extra_bytes = _extra_bytes(row.document)
        spans = chunker.assign(row.document.text, extra_bytes)
        first = spans[0][0]
        while len(starts) <= spans[-1][0]:
            starts.append(ChunkStart(row.number, len(rows) + bad.count, first))
        num_bytes += _utf8_bytes(row.document.text) + extra_bytes
        rows.append(row.number)
        hashes.append(xxhash.xxh3_64_intdigest(row.document.id.encode()))
        chunks.append(first)
        if missing_columns:
            missing_columns -= exact_json.load(row.document.metadata).keys()
    return Scan(
        num_rows=len(rows) + bad.count,
        reasons=bad.reasons,
        skipped=skipped,
        unsupported_columns=unsupported_columns,
        missing_columns=missing_columns,
        stopped_early=stopped_early,
        starts=starts,
        num_bytes=num_bytes,
        row_N=np.frombuffer(rows, np.int64),
        id_hash_N=np.frombuffer(hashes, np.uint64),
        chunk_N=np.frombuffer(chunks, np.int32),
        quarantine=bad.close(),
    )


class _Quarantine:
    """Counts the bad rows of a file by reason and writes them in pieces; only the first piece is kept in memory."""

    def __init__(self, file: InputFile, write: Callable[[int, pa.Table], None] | None) -> None:
        self._file = file
        self._write = write
        self._rows: list[dict[str, Any]] = []
        self._pieces = 0
        self._first = QUARANTINE.empty_table()
        self.reasons: Counter[str] = Counter()

    @property
    def count(self) -> int:
        return self.reasons.total()

    @property
    def lacks_text(self) -> bool:
        """Whether there are at least 10,000 bad rows and none of them has a text."""
        return self.reasons["missing_text"] == self.count >= _MAX_LEADING_ROWS_WITHOUT_TEXT

    def add(self, row: Row) -> None:
        assert row.problem is not None
        fields = {"id": row.problem.id, "reason": row.problem.reason, "detail": row.problem.detail, "excerpt": row.problem.excerpt}
        self._rows.append({"file": self._file.url, "row": row.number, **fields})
        self.reasons[row.problem.reason] += 1
        if len(self._rows) == QUARANTINE_PIECE_ROWS:
            self._flush()

    def close(self) -> pa.Table:
        """Write the last piece and return the first one."""
        if self._rows or not self._pieces:
            self._flush()
        return self._first

    def _flush(self) -> None:
        piece = pa.Table.from_pylist(self._rows, schema=QUARANTINE)
        if self._write is not None:
            self._write(self._pieces, piece)
        self._first = self._first if self._pieces else piece
        self._pieces += 1
        self._rows = []


def cut_chunks(
    file: InputFile,
    corpus: Corpus,
    prepare: Prepare,
    cutter: WindowCutter,
    chunks: Collection[int],
    drop_rows: Collection[int] = frozenset(),
    start: ChunkStart = _FILE_START,
    refine: Callable[[Row, int], Document | None] | None = None,
) -> Iterator[tuple[int, pa.Table]]:
    """Pass 2: yield (chunk, WINDOWS table) for each requested chunk, in ascending order; empty if all its rows are dropped.

    Only documents of these chunks are tokenized. The windows of a document that is split over chunks are numbered across them, so
    a later chunk alone requires tokenizing the document from its beginning: request consecutive chunks together.

    Args:
        chunks: numbers below `Scan.num_chunks`.
        drop_rows: rows to drop, such as duplicates. They still count towards the limits of a chunk, as in pass 1.
        start: the entry of `Scan.starts` for the first of the chunks; rows before it are not parsed.
        refine: maps a good row and its chunk to the document to cut, or to None to drop it. If given, documents are not split.

    Raises:
        InputError: as `read_rows`; or the file has fewer chunks than requested, so it changed since it was scanned.
        StorageError: as `read_rows`.
    """
    pending = deque(sorted(chunks))
    if not pending:
        return
    assert start.chunk <= pending[0], f"the start of chunk {start.chunk} is after the requested chunk {pending[0]}"
    chunker = Chunker(prepare, start.chunk, split=refine is None)
    requested, last = frozenset(pending), pending[-1]
    columns = _WindowColumns()
    for row in read_rows(file, corpus, first_row=start.row, num_rows_before=start.rows_before, columns=metadata_columns(prepare)):
        if row.document is None:
            continue
        spans = chunker.assign(row.document.text, _extra_bytes(row.document))
        if spans[0][0] > last:
            break
        last_requested = max((chunk for chunk, *_ in spans if chunk in requested), default=-1)
        window = 0
        for chunk, begin, end in spans:
            while pending and pending[0] < chunk:
                yield pending.popleft(), columns.table()
                columns = _WindowColumns()
            if chunk > last_requested or row.number in drop_rows:
                continue
            document, text = row.document, row.document.text[begin:end]
            if refine is not None:
                if (refined := refine(row, chunk)) is None:
                    continue
                document, text = refined, refined.text
            windows = cutter.cut([text])[0]
            if chunk in requested:
                columns.add(document, window, windows)
            window += len(windows)
    if last >= chunker.num_chunks:
        raise InputError(
            f"{file.url} changed while it was read: it no longer has chunk {last}; run again when nothing writes to the file"
        )
    for chunk in pending:
        yield chunk, columns.table()
        columns = _WindowColumns()


class _WindowColumns:
    """Collects the columns of a WINDOWS table."""

    def __init__(self) -> None:
        self.lists: dict[str, list[Any]] = {name: [] for name in WINDOWS.names if name != "key"}

    def add(self, document: Document, first: int, windows: Sequence[tuple[str, int]]) -> None:
        lists = self.lists
        lists["doc_id"] += [document.id] * len(windows)
        lists["window"] += range(first, first + len(windows))
        lists["text"] += [text for text, _ in windows]
        lists["tokens"] += [tokens for _, tokens in windows]
        lists["source"] += [document.source] * len(windows)
        lists["near_copies"] += [1] * len(windows)
        lists["metadata"] += [document.metadata] * len(windows)

    def table(self) -> pa.Table:
        key = window_keys(self.lists["doc_id"], self.lists["window"])
        return pa.table({"key": key, **self.lists}, schema=WINDOWS)


def _extra_bytes(document: Document) -> int:
    """Return the UTF-8 bytes of a document's id, source and metadata."""
    return _utf8_bytes(document.id) + _utf8_bytes(document.source) + _utf8_bytes(document.metadata)


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
