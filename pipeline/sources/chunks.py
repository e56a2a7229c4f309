"""Rows into chunks, and chunks into parts of windows: the pure half of `prepare`.

A chunk is a run of rows of one input file and becomes one part. Where chunks end depends on the rows alone, so pass 1
(`scan_file`) and pass 2 (`cut_chunks`) agree on it, whichever worker they run on and whatever other files hold.

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
from pipeline.sources.readers import columns_of, read_rows
from pipeline.tables import QUARANTINE, WINDOWS
from pipeline.text.windows import WindowCutter, stretches

QUARANTINE_PIECE = 4096  # bad rows of a file that are held, and written, at once
_ROWS_WITHOUT_TEXT = 10_000  # so many at the beginning of a file, and text_key is wrong


class Chunker:
    """Assigns good rows, in order, to the chunks of a file, numbered from 0.

    A document goes into the chunk at hand unless that has `part_documents` documents, or would exceed `part_bytes` bytes of
    text; then it opens the next one. A document that is larger by itself is split at the borders of its stretches; not where
    steps (`pipeline.refining`) will change it.
    """

    def __init__(self, prepare: Prepare, first: int = 0, *, split: bool = True) -> None:
        self._limits = prepare
        self._split = split
        self._chunk = first
        self._documents = 0
        self._bytes = 0

    @property
    def num_chunks(self) -> int:
        """Up to the one at hand; where none was placed, those before the first."""
        return self._chunk + 1 if self._documents else self._chunk

    def place(self, text: str, beside: int = 0) -> list[tuple[int, int, int]]:
        """The chunks of the next document, and from which to which character it is in each; nearly always one.

        `beside` is how many bytes it has beside its text: id, source and metadata.
        """
        num_bytes = _utf8_bytes(text)
        full = self._documents == self._limits.part_documents or self._bytes + num_bytes + beside > self._limits.part_bytes
        if self._documents and full:
            self._open_next()
        self._documents += 1
        self._bytes += beside
        if num_bytes <= self._limits.part_bytes or not self._split:
            self._bytes += num_bytes
            return [(self._chunk, 0, len(text))]
        placed = []
        begin = end = 0
        for stretch in stretches(text):
            num_bytes = _utf8_bytes(stretch)
            if begin < end and self._bytes + num_bytes > self._limits.part_bytes:
                placed.append((self._chunk, begin, end))
                begin = end
                self._open_next()
                self._documents, self._bytes = 1, beside
            end += len(stretch)
            self._bytes += num_bytes
        return [*placed, (self._chunk, begin, end)]

    def _open_next(self) -> None:
        self._chunk += 1
        self._documents = self._bytes = 0


class Start(NamedTuple):
    """Where the text of a chunk begins: a document, where in the file that is, and the chunk that was opened for it.

    It is an earlier chunk than the one asked for where the document is split over several.
    """

    row: int
    rows_before: int
    chunk: int


_BEGINNING = Start(0, 0, 0)


@dataclass(frozen=True)
class Scan:
    """What pass 1 learns of a file: `num_rows` = N good rows + those of `reasons`; those of `skipped` come on top.

    `row_N`, `id_hash_N` (xxh3 of the id) and `chunk_N` (the first chunk that the document is in) are of the good rows, in order.
    `num_bytes` is their text, id, source and metadata in UTF-8. `starts` has one entry for each chunk. `quarantine` has the
    first 4,096 bad rows.
    `absent` are columns of `prepare.metadata` that no good row has; `left_out` columns that cannot be metadata, and why.
    `stopped`: bad rows were more than may be, and the rest of the file was not read.
    """

    num_rows: int
    reasons: Mapping[str, int]
    skipped: Mapping[str, int]
    left_out: Mapping[str, str]
    absent: Collection[str]
    stopped: bool
    starts: Sequence[Start]
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
    most_bad: float = math.inf,
) -> Scan:
    """Pass 1: every row of the file checked, hashed and assigned to a chunk; no tokenizer.

    Args:
        split: whether a large document may be in several chunks.
        quarantine: takes the bad rows, in numbered pieces of at most 4,096, so that no more are ever held.
        most_bad: reading ends after so many bad rows; and, if it is finite, after 10,000 rows none of which has a text column.

    Raises:
        InputError: as `read_rows`.
    """
    chunker = Chunker(prepare, split=split)
    columns = columns_of(prepare)
    rows, hashes, chunks = array("q"), array("Q"), array("i")
    skipped: Counter[str] = Counter()
    left_out: dict[str, str] = {}
    absent = set(columns.names or ())
    bad = _Quarantine(file, quarantine)
    starts: list[Start] = []
    num_bytes = 0
    stopped = False
    for row in read_rows(file, corpus, columns=columns, left_out=left_out):
        if row.skipped is not None:
            skipped[row.skipped] += 1
            continue
        if row.document is None:
            bad.add(row)
            if stopped := bad.count > most_bad or (not rows and bad.lacks_text and math.isfinite(most_bad)):
                break
            continue
        beside = _bytes_beside(row.document)
        placed = chunker.place(row.document.text, beside)
        first = placed[0][0]
        while len(starts) <= placed[-1][0]:
            starts.append(Start(row.row, len(rows) + bad.count, first))
        num_bytes += _utf8_bytes(row.document.text) + beside
        rows.append(row.row)
        hashes.append(xxhash.xxh3_64_intdigest(row.document.id.encode()))
        chunks.append(first)
        if absent:
            absent -= exact_json.load(row.document.metadata).keys()
    return Scan(
        num_rows=len(rows) + bad.count,
        reasons=bad.reasons,
        skipped=skipped,
        left_out=left_out,
        absent=absent,
        stopped=stopped,
        starts=starts,
        num_bytes=num_bytes,
        row_N=np.frombuffer(rows, np.int64),
        id_hash_N=np.frombuffer(hashes, np.uint64),
        chunk_N=np.frombuffer(chunks, np.int32),
        quarantine=bad.close(),
    )


class _Quarantine:
    """The bad rows of a file: counted by reason, handed on in pieces, and only the first piece kept."""

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
        """Whether many rows were read, and none has a column of the text."""
        return self.reasons["missing_text"] == self.count >= _ROWS_WITHOUT_TEXT

    def add(self, row: Row) -> None:
        assert row.bad is not None
        fields = {"id": row.bad.id, "reason": row.bad.reason, "detail": row.bad.detail, "excerpt": row.bad.excerpt}
        self._rows.append({"file": self._file.url, "row": row.row, **fields})
        self.reasons[row.bad.reason] += 1
        if len(self._rows) == QUARANTINE_PIECE:
            self._hand_on()

    def close(self) -> pa.Table:
        """The first piece."""
        if self._rows or not self._pieces:
            self._hand_on()
        return self._first

    def _hand_on(self) -> None:
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
    start: Start = _BEGINNING,
    refine: Callable[[Row, int], Document | None] | None = None,
) -> Iterator[tuple[int, pa.Table]]:
    """Pass 2: the WINDOWS table of each asked chunk, in ascending order; without rows where all its rows are dropped.

    Only documents of these chunks are tokenised. Where a document is split over chunks, its windows are numbered on from one
    to the next, so asking for a later chunk alone tokenises the document from its beginning: ask for runs of chunks.

    Args:
        chunks: numbers below `Scan.num_chunks`.
        drop_rows: rows left out, such as duplicates; they still take their place when chunks are bounded.
        start: of the first of the chunks; what lies before it in the file is not parsed.
        refine: from a good row and its chunk to the document that is cut, or None; documents are then not split over chunks.

    Raises:
        InputError: as `read_rows`; or the file has fewer chunks than were asked for, so it changed since it was scanned.
    """
    waiting = deque(sorted(chunks))
    if not waiting:
        return
    assert start.chunk <= waiting[0], f"what begins at chunk {start.chunk} holds nothing of chunk {waiting[0]}"
    chunker = Chunker(prepare, start.chunk, split=refine is None)
    wanted, last = frozenset(waiting), waiting[-1]
    columns = _Columns()
    for row in read_rows(file, corpus, first=start.row, before=start.rows_before, columns=columns_of(prepare)):
        if row.document is None:
            continue
        placed = chunker.place(row.document.text, _bytes_beside(row.document))
        if placed[0][0] > last:
            break
        last_wanted = max((chunk for chunk, *_ in placed if chunk in wanted), default=-1)
        window = 0
        for chunk, begin, end in placed:
            while waiting and waiting[0] < chunk:
                yield waiting.popleft(), columns.table()
                columns = _Columns()
            if chunk > last_wanted or row.row in drop_rows:
                continue
            document, text = row.document, row.document.text[begin:end]
            if refine is not None:
                if (refined := refine(row, chunk)) is None:
                    continue
                document, text = refined, refined.text
            windows = cutter.cut([text])[0]
            if chunk in wanted:
                columns.add(document, window, windows)
            window += len(windows)
    if last >= chunker.num_chunks:
        raise InputError(f"{file.url} changed while it was read: chunk {last} is gone; run again when nothing writes to it")
    for chunk in waiting:
        yield chunk, columns.table()
        columns = _Columns()


class _Columns:
    """The columns of a WINDOWS table, as they grow."""

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


def _bytes_beside(document: Document) -> int:
    """Bytes of a document beside its text."""
    return _utf8_bytes(document.id) + _utf8_bytes(document.source) + _utf8_bytes(document.metadata)


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
