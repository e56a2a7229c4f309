"""Find documents with the same id: the first by file and row is kept, the others are quarantined.

The hashes of all ids are shuffled by hash range, so that no process holds more than one range. Shapes: N ids, R repeated ids.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.arrays import I32, I64, Keys
from pipeline.config import Corpus, Prepare
from pipeline.engine import Engine
from pipeline.execution.step import group_for_mappers
from pipeline.sources import EXCERPT_CHARACTERS, InputFile
from pipeline.sources.chunks import QUARANTINE_PIECE_ROWS
from pipeline.sources.readers import metadata_columns, read_rows
from pipeline.storage import Folder
from pipeline.tables import QUARANTINE

_IDS_PER_RANGE = 20_000_000  # half a gigabyte in a worker
_ID_BYTES = 20

Firsts = Mapping[int, tuple[int, int]]  # of one file: row of a repeated id -> (file number, row) of the first document with it
IdColumns = tuple[Keys, I32, I64]  # aligned arrays: hash_N of the ids, file_N, row_N


def find_duplicates(
    engine: Engine, scans: Folder, files: Sequence[InputFile], num_documents: int, *, title: str
) -> dict[int, dict[int, tuple[int, int]]]:
    """Map each file number with repeated ids to {repeated row: (file number, row) of the first document with that id}."""
    num_ranges = max(1, -(-num_documents // _IDS_PER_RANGE))
    numbers = group_for_mappers(
        engine, [file.number for file in files], moved_bytes=_ID_BYTES * num_documents, partitions=num_ranges
    )
    ranges = list(range(num_ranges))
    duplicates: dict[int, dict[int, tuple[int, int]]] = {}
    for _, repeats_R4 in engine.shuffle(
        _split_ids_by_range, numbers, _find_repeats_in_range, ranges, title=title, unit="ranges", shared=scans
    ):
        for file, row, first_file, first_row in repeats_R4.tolist():
            duplicates.setdefault(file, {})[row] = (first_file, first_row)
    return duplicates


def scan_name(number: int) -> str:
    """Return the name of the scan and quarantine tables of a file."""
    return f"file-{number:05d}"


def _split_ids_by_range(numbers: Sequence[int], ranges: Sequence[int], scans: Folder) -> list[IdColumns]:
    """Return (hash, file, row) arrays of the ids of several files, one tuple for each hash range."""
    hashes, files, rows = [], [], []
    for number in numbers:
        table = scans.read_table(f"{scan_name(number)}.parquet")
        hashes.append(table["id_hash"].to_numpy())
        rows.append(table["row"].to_numpy())
        files.append(np.full(len(table), number, np.int32))
    hash_N, file_N, row_N = np.concatenate(hashes), np.concatenate(files), np.concatenate(rows)
    range_N = ((hash_N >> np.uint64(32)) * np.uint64(len(ranges))) >> np.uint64(32)
    return [(hash_N[ids], file_N[ids], row_N[ids]) for ids in (np.flatnonzero(range_N == number) for number in ranges)]


def _find_repeats_in_range(_number: int, pieces: Sequence[IdColumns], _scans: Folder) -> I64:
    hashes, files, rows = zip(*pieces, strict=True)
    return find_repeats(np.concatenate(hashes), np.concatenate(files), np.concatenate(rows))


def find_repeats(hash_N: Keys, file_N: I32, row_N: I64) -> I64:
    """Return (R, 4): file and row of each repeated id, then file and row of the first document with that id."""
    order_N = np.lexsort((row_N, file_N, hash_N))
    hash_N, file_N, row_N = hash_N[order_N], file_N[order_N], row_N[order_N]
    repeated_N = np.zeros(len(hash_N), bool)
    repeated_N[1:] = hash_N[1:] == hash_N[:-1]
    first_N = np.maximum.accumulate(np.where(repeated_N, 0, np.arange(len(hash_N))))[repeated_N]
    return np.column_stack([file_N[repeated_N], row_N[repeated_N], file_N[first_N], row_N[first_N]]).astype(np.int64)


@dataclass(frozen=True)
class DuplicateInputs:
    """Inputs shared by the tasks that quarantine the repeated documents of each file."""

    firsts: Mapping[int, Firsts]  # by file number
    files: Sequence[InputFile]
    corpus: Corpus
    prepare: Prepare
    quarantine: Folder
    run_will_fail: bool  # too many rows are bad: write only the first table of each file


def _iter_duplicate_tables(number: int, inputs: DuplicateInputs) -> Iterator[pa.Table]:
    """Yield the quarantine rows of a file's repeated documents, at most 4,096 per table. Reads the file again for ids and text."""
    file, firsts = inputs.files[number], inputs.firsts[number]
    rows: list[dict[str, Any]] = []
    num_remaining = len(firsts)
    for row in read_rows(file, inputs.corpus, columns=metadata_columns(inputs.prepare)):
        if row.number in firsts and row.document is not None:
            first_file, first_row = firsts[row.number]
            rows.append(
                {
                    "file": file.url,
                    "row": row.number,
                    "id": row.document.id,
                    "reason": "duplicate_id",
                    "detail": f"row {first_row} of {inputs.files[first_file].url} has this id",
                    "excerpt": row.document.text[:EXCERPT_CHARACTERS],
                }
            )
            num_remaining -= 1
            if len(rows) == QUARANTINE_PIECE_ROWS or not num_remaining:
                yield pa.Table.from_pylist(rows, schema=QUARANTINE)
                rows = []
            if not num_remaining:
                return


def quarantine_duplicates(number: int, inputs: DuplicateInputs) -> int:
    """Write the repeated documents of a file to quarantine; return their number."""
    for piece, table in enumerate(_iter_duplicate_tables(number, inputs)):
        name = f"duplicates-{number:05d}" + (f"-{piece:05d}" if piece else "")
        inputs.quarantine.write_table(f"{name}.parquet", table, QUARANTINE)
        if inputs.run_will_fail:
            break
    return len(inputs.firsts[number])
