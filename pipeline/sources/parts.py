"""What a part of windows holds: its documents, and the counts that stand in its footer and, summed, in the step's manifest."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

SHOWN_CHARACTERS = 500  # of a document that is shown to a person as an example
# What the windows of a document repeat is stored once, however long it is; hashing their text for that would be in vain.
WRITE_OPTIONS = {"use_dictionary": ["doc_id", "source", "metadata"], "dictionary_pagesize_limit": 1 << 30}


def counts(table: pa.Table) -> dict[str, int]:
    """Of a WINDOWS table, for its footer."""
    return {
        "rows": len(table),
        "tokens": pc.sum(table["tokens"]).as_py() or 0,
        "text_bytes": pc.sum(pc.binary_length(table["text"])).as_py() or 0,
        "all_bytes": sum(_num_bytes(table[name]) for name in ("doc_id", "text", "source", "metadata")),
    }


def _num_bytes(column: pa.ChunkedArray) -> int:
    """Bytes of the strings of a column, each as often as it is there."""
    if not pa.types.is_dictionary(column.type):
        return pc.sum(pc.binary_length(column)).as_py() or 0
    lengths = (pc.binary_length(chunk.dictionary).take(chunk.indices) for chunk in column.chunks)
    return sum(pc.sum(of_chunk).as_py() or 0 for of_chunk in lengths)


def totals(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of all parts of a step, by the facts of each, for its manifest."""
    return {
        "windows": sum(part["rows"] for part in parts),
        "tokens": sum(part["tokens"] for part in parts),
        "text_bytes": sum(part["text_bytes"] for part in parts),
        "parts": parts,
    }


def documents_of(table: pa.Table) -> Iterator[tuple[str, slice]]:
    """The id of each document of a WINDOWS table, and its rows: windows of one id that follow each other."""
    begin = 0
    for identifier, rows in itertools.groupby(table["doc_id"].to_pylist()):
        end = begin + sum(1 for _ in rows)
        yield identifier, slice(begin, end)
        begin = end
