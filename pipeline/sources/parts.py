"""The documents of a part of windows, and its counts for the Parquet footer and, summed over all parts, for the step's manifest."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

REPORT_EXCERPT_CHARACTERS = 500  # length of an excerpt of a document in a report
# Dictionary-encode columns that all windows of a document repeat, however long the values are; not `text`, which rarely repeats.
WRITE_OPTIONS = {"use_dictionary": ["doc_id", "source", "metadata"], "dictionary_pagesize_limit": 1 << 30}


def count_part(table: pa.Table) -> dict[str, int]:
    """Return the counts of a WINDOWS table for its Parquet footer."""
    return {
        "rows": len(table),
        "tokens": pc.sum(table["tokens"]).as_py() or 0,
        "text_bytes": pc.sum(pc.binary_length(table["text"])).as_py() or 0,
        "all_bytes": sum(_num_bytes(table[name]) for name in ("doc_id", "text", "source", "metadata")),
    }


def _num_bytes(column: pa.ChunkedArray) -> int:
    """Return the bytes of all strings of a column; a repeated value counts each time."""
    if not pa.types.is_dictionary(column.type):
        return pc.sum(pc.binary_length(column)).as_py() or 0
    lengths = (pc.binary_length(chunk.dictionary).take(chunk.indices) for chunk in column.chunks)
    return sum(pc.sum(of_chunk).as_py() or 0 for of_chunk in lengths)


def sum_part_counts(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum the counts of all parts of a step, for its manifest."""
    return {
        "windows": sum(part["rows"] for part in parts),
        "tokens": sum(part["tokens"] for part in parts),
        "text_bytes": sum(part["text_bytes"] for part in parts),
        "parts": parts,
    }


def iter_documents(table: pa.Table) -> Iterator[tuple[str, slice]]:
    """Yield the id and the rows of each document of a WINDOWS table: consecutive windows with the same id."""
    begin = 0
    for identifier, rows in itertools.groupby(table["doc_id"].to_pylist()):
        end = begin + sum(1 for _ in rows)
        yield identifier, slice(begin, end)
        begin = end
