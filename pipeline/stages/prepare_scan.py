"""Pass 1 of `prepare`: scan each input file, quarantine its bad rows, and fail if too many rows are bad."""

import math
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from loguru import logger

from pipeline.config import Corpus
from pipeline.config import Prepare as PrepareConfig
from pipeline.errors import InputError, replace_controls
from pipeline.sources import InputFile
from pipeline.sources.chunks import scan_file
from pipeline.sources.streams import compression_of
from pipeline.storage import Folder
from pipeline.tables import QUARANTINE, SCANS

QUARANTINE_FOLDER = "quarantine"  # next to the parts
_MAX_DETAIL_CHARACTERS = 300  # of the error of a bad row, in messages


@dataclass(frozen=True)
class ScanInputs:
    """Inputs shared by all scans of a corpus. If a file has more than `max_bad_rows` bad rows, its scan stops and the run fails."""

    files: Mapping[str, InputFile]  # by name of the scan
    corpus: Corpus
    prepare: PrepareConfig
    output: Folder
    split: bool  # whether a large document may be split over several chunks
    max_bad_fraction: float
    max_bad_rows: float


def compute_max_bad_rows(files: Sequence[InputFile], corpus: Corpus, max_bad_fraction: float) -> float:
    """Return the number of bad rows above which `max_bad_fraction` is exceeded, whatever the other rows are.

    It follows from an upper bound on the number of good rows, which is known for local, uncompressed JSONL and CSV files. Without
    such a bound the result is the largest float; if all rows may be bad, it is infinity.
    """
    if max_bad_fraction >= 1.0:
        return math.inf
    if any(file.kind not in ("jsonl", "csv") or compression_of(file.url) or "://" in file.url for file in files):
        return sys.float_info.max
    if corpus.reader and corpus.reader.get("compression"):
        return sys.float_info.max
    # Lower bounds on the bytes of a good row: with no id, {"text":"a"} in JSONL, and one character and a line feed in CSV.
    key_bytes = len(corpus.text_key) + (len(corpus.id_key) if corpus.id_key else 0)
    min_row_bytes = {"jsonl": 8 + key_bytes, "csv": 2}
    max_good_rows = sum(os.path.getsize(file.url) / min_row_bytes[file.kind] for file in files)
    return max_bad_fraction / (1.0 - max_bad_fraction) * max_good_rows


def scan_input(name: str, inputs: ScanInputs) -> dict[str, Any]:
    """Scan one file: write its good rows and its bad rows; return its facts.

    Raises:
        InputError: the file has more than `inputs.max_bad_rows` bad rows.
    """
    quarantine = inputs.output.child(QUARANTINE_FOLDER)

    def write_piece(piece: int, table: pa.Table) -> None:
        quarantine.write_table(f"{name}.parquet" if not piece else f"{name}-{piece:05d}.parquet", table, QUARANTINE)

    file = inputs.files[name]
    scan = scan_file(
        file, inputs.corpus, inputs.prepare, split=inputs.split, quarantine=write_piece, max_bad_rows=inputs.max_bad_rows
    )
    if scan.stopped_early:
        raise InputError(
            f"{sum(scan.reasons.values()):,} of the first {scan.num_rows:,} rows of {file.url} are bad "
            f"({_format_reasons(scan.reasons)}), so max_bad_fraction = {inputs.max_bad_fraction} cannot be met; "
            f"{_describe_first_bad(scan.quarantine)}; the bad rows are in {quarantine.url}; fix the input or raise max_bad_fraction"
        )
    facts = {
        "rows": scan.num_rows,
        "bad": sum(scan.reasons.values()),
        "reasons": dict(scan.reasons),
        "skipped": dict(scan.skipped),
        "left_out": dict(scan.unsupported_columns),
        "absent": sorted(scan.missing_columns),
        "bytes": scan.num_bytes,
        "starts": scan.starts,
    }
    table = pa.table({"row": scan.row_N, "id_hash": scan.id_hash_N})
    inputs.output.child("scans").write_table(f"{name}.parquet", table, SCANS, facts)
    return facts


def merge_unsupported_columns(scans: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Map the name of each column that cannot be kept as metadata to the kind of its values; sorted by name."""
    return dict(sorted({name: kind for scan in scans for name, kind in scan["left_out"].items()}.items()))


def warn_about_columns(scans: Sequence[Mapping[str, Any]], prepare: PrepareConfig, corpus: str) -> None:
    """Log a warning for columns that cannot be kept as metadata, and for columns of `prepare.metadata` that no row has."""
    if unsupported := merge_unsupported_columns(scans):
        columns = ", ".join(f"{name} ({kind})" for name, kind in unsupported.items())
        logger.warning(f"{corpus}: metadata omits columns that are neither text nor numbers: {replace_controls(columns)}")
    missing = set.intersection(*(set(scan["absent"]) for scan in scans)) if scans else set()
    if missing and isinstance(prepare.metadata, list):
        logger.warning(f"prepare.metadata: no row of {corpus} has these columns: {replace_controls(', '.join(sorted(missing)))}")


def count_bad_rows(scan: Mapping[str, Any]) -> int:
    return int(scan["bad"])


def _format_reasons(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in Counter(reasons).most_common() if count)


def _describe_first_bad(table: pa.Table) -> str:
    first = table.slice(0, 1).to_pylist()[0]
    detail = replace_controls(first["detail"])[:_MAX_DETAIL_CHARACTERS]
    return f"the first is row {first['row']} (from 0) of {first['file']}: {first['reason']}, {detail}"


def check_bad_rows(
    reasons: Mapping[str, int], num_rows: int, max_bad_fraction: float, corpus: str, quarantine: Folder, names: Sequence[str]
) -> None:
    """Check that at most `max_bad_fraction` of the rows are bad for one of `reasons`, and show the first of them otherwise.

    Args:
        names: of the files with quarantined rows, in order.

    Raises:
        InputError: more rows are bad than `max_bad_fraction` allows.
    """
    num_bad = sum(reasons.values())
    if num_bad > max_bad_fraction * num_rows:
        tables = (quarantine.read_table(f"{name}.parquet") for name in names)
        bad_tables = (table.filter(pc.is_in(table["reason"], pa.array(list(reasons)))) for table in tables)
        first = _describe_first_bad(next(table for table in bad_tables if len(table)))
        raise InputError(
            f"{num_bad:,} of {num_rows:,} rows of {corpus} are bad ({_format_reasons(reasons)}), more than max_bad_fraction = "
            f"{max_bad_fraction}; {first}; the bad rows are in {quarantine.url}; fix the input or raise max_bad_fraction"
        )
