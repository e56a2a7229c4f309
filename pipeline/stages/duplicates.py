"""Find documents with the same id: the first by file and row is kept, the others are quarantined.

The hashes of all ids are shuffled by hash range, so that no process holds more than one range. Shapes: N ids, R repeated ids.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrays import I32, I64
from pipeline.config import Corpus, Prepare
from pipeline.engine import Engine
from pipeline.execution.step import mapper_groups
from pipeline.sources import EXCERPT_CHARACTERS, InputFile
from pipeline.sources.chunks import QUARANTINE_PIECE
from pipeline.sources.readers import columns_of, read_rows
from pipeline.storage import Folder
from pipeline.tables import QUARANTINE

_IDS_PER_RANGE = 20_000_000  # half a gigabyte in a worker
_ID_BYTES = 20


def find_duplicates(
    engine: Engine, scanned: Folder, files: Sequence[InputFile], num_documents: int, *, title: str
) -> dict[int, dict[int, tuple[int, int]]]:
    """Map each file number with repeated ids to {repeated row: (file number, row) of the first document with that id}."""
    num_ranges = max(1, -(-num_documents // _IDS_PER_RANGE))
    numbers = mapper_groups(engine, [file.number for file in files], moved_bytes=_ID_BYTES * num_documents, partitions=num_ranges)
    ranges = list(range(num_ranges))
    found: dict[int, dict[int, tuple[int, int]]] = {}
    for _, repeats_R4 in engine.shuffle(
        _ids_by_range, numbers, _repeats_of_range, ranges, title=title, unit="ranges", shared=(scanned,)
    ):
        for file, row, first_file, first_row in repeats_R4.tolist():
            found.setdefault(file, {})[row] = (first_file, first_row)
    return found


def scan_name(number: int) -> str:
    """Return the name of the scan and quarantine tables of a file."""
    return f"file-{number:05d}"


def _ids_by_range(numbers: Sequence[int], ranges: Sequence[int], scanned: Folder) -> list[tuple[NDArray[Any], ...]]:
    """Return (hash, file, row) arrays of the ids of several files, one tuple for each hash range."""
    hashes, files, rows = [], [], []
    for number in numbers:
        table = scanned.read_table(f"{scan_name(number)}.parquet")
        hashes.append(table["id_hash"].to_numpy())
        rows.append(table["row"].to_numpy())
        files.append(np.full(len(table), number, np.int32))
    hash_N, file_N, row_N = np.concatenate(hashes), np.concatenate(files), np.concatenate(rows)
    range_N = ((hash_N >> np.uint64(32)) * np.uint64(len(ranges))) >> np.uint64(32)
    return [(hash_N[of], file_N[of], row_N[of]) for of in (np.flatnonzero(range_N == number) for number in ranges)]


def _repeats_of_range(_number: int, pieces: Sequence[tuple[NDArray[Any], ...]], _scanned: Folder) -> I64:
    hash_N, file_N, row_N = (np.concatenate(columns) for columns in zip(*pieces, strict=True))
    return repeats(hash_N, file_N, row_N)


def repeats(hash_N: NDArray[np.uint64], file_N: I32, row_N: I64) -> I64:
    """Return (R, 4): file and row of each repeated id, then file and row of the first document with that id."""
    order_N = np.lexsort((row_N, file_N, hash_N))
    hash_N, file_N, row_N = hash_N[order_N], file_N[order_N], row_N[order_N]
    repeated_N = np.zeros(len(hash_N), bool)
    repeated_N[1:] = hash_N[1:] == hash_N[:-1]
    first_N = np.maximum.accumulate(np.where(repeated_N, 0, np.arange(len(hash_N))))[repeated_N]
    return np.column_stack([file_N[repeated_N], row_N[repeated_N], file_N[first_N], row_N[first_N]]).astype(np.int64)


def duplicates_tables(
    file: InputFile, settings: Corpus, prepare: Prepare, firsts: dict[int, tuple[int, int]], urls: Sequence[str]
) -> Iterator[pa.Table]:
    """Yield the quarantine rows of a file's repeated documents, at most 4,096 per table. Reads the file again for ids and text."""
    rows: list[dict[str, Any]] = []
    left = len(firsts)
    for row in read_rows(file, settings, columns=columns_of(prepare)):
        if row.row in firsts and row.document is not None:
            first_file, first_row = firsts[row.row]
            rows.append(
                {
                    "file": file.url,
                    "row": row.row,
                    "id": row.document.id,
                    "reason": "duplicate_id",
                    "detail": f"row {first_row} of {urls[first_file]} has this id",
                    "excerpt": row.document.text[:EXCERPT_CHARACTERS],
                }
            )
            left -= 1
            if len(rows) == QUARANTINE_PIECE or not left:
                yield pa.Table.from_pylist(rows, schema=QUARANTINE)
                rows = []
            if not left:
                return


def quarantine_duplicates(
    number: int,
    duplicates: dict[int, dict[int, tuple[int, int]]],
    files: Sequence[InputFile],
    settings: Corpus,
    prepare: Prepare,
    quarantine: Folder,
    too_many: bool,
) -> int:
    """Write the repeated documents of a file to quarantine; return how many there are.

    If `too_many`, the run will fail, and only the first table of rows is written.
    """
    pieces = duplicates_tables(files[number], settings, prepare, duplicates[number], [file.url for file in files])
    for piece, table in enumerate(pieces):
        name = f"duplicates-{number:05d}" + (f"-{piece:05d}" if piece else "")
        quarantine.write_table(f"{name}.parquet", table, QUARANTINE)
        if too_many:
            break
    return len(duplicates[number])
