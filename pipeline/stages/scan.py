"""Pass 1 of `prepare`: scan each input file, quarantine its bad rows, and fail if too many rows are bad."""

import math
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from loguru import logger

from pipeline.config import Corpus
from pipeline.config import Prepare as PrepareConfig
from pipeline.errors import InputError, shown
from pipeline.sources import InputFile
from pipeline.sources.chunks import scan_file
from pipeline.sources.streams import compression_of
from pipeline.storage import Folder
from pipeline.tables import QUARANTINE, SCANS

QUARANTINED = "quarantine"  # folder of the quarantined rows, next to the parts
_DETAIL_CHARACTERS = 300  # of the error of a bad row, in messages


@dataclass(frozen=True)
class ScanJob:
    """Inputs shared by all scans of a corpus. The scan of a file stops, and the run fails, at more than `most_bad` bad rows."""

    files: dict[str, InputFile]
    corpus: Corpus
    prepare: PrepareConfig
    folder: Folder
    split: bool
    max_bad_fraction: float
    most_bad: float


def most_bad(files: Sequence[InputFile], corpus: Corpus, max_bad_fraction: float) -> float:
    """Return the number of bad rows above which `max_bad_fraction` cannot be met, whatever the other rows are.

    It follows from an upper bound on the number of good rows, which exists for local, uncompressed JSONL and CSV files. Without
    such a bound the result is the largest float; if all rows may be bad, it is infinity.
    """
    if max_bad_fraction >= 1.0:
        return math.inf
    if any(file.kind not in ("jsonl", "csv") or compression_of(file.url) or "://" in file.url for file in files):
        return sys.float_info.max
    if corpus.reader and corpus.reader.get("compression"):
        return sys.float_info.max
    # Lower bounds on the bytes of a good row: with no id, {"text":"a"} in JSONL, and one character and a line feed in CSV.
    keys = len(corpus.text_key) + (len(corpus.id_key) if corpus.id_key else 0)
    least = {"jsonl": 8 + keys, "csv": 2}
    good = sum(os.path.getsize(file.url) / least[file.kind] for file in files)
    return max_bad_fraction / (1.0 - max_bad_fraction) * good


def scan_input(name: str, job: ScanJob) -> dict[str, Any]:
    quarantine = job.folder.child(QUARANTINED)

    def write(piece: int, table: pa.Table) -> None:
        quarantine.write_table(f"{name}.parquet" if not piece else f"{name}-{piece:05d}.parquet", table, QUARANTINE)

    file = job.files[name]
    scan = scan_file(file, job.corpus, job.prepare, split=job.split, quarantine=write, most_bad=job.most_bad)
    if scan.stopped:
        raise InputError(
            f"{sum(scan.reasons.values()):,} of the first {scan.num_rows:,} rows of {file.url} cannot be used "
            f"({_listed(scan.reasons)}), so max_bad_fraction = {job.max_bad_fraction} is out of reach; "
            f"{_first_bad(scan.quarantine)}; more are in {quarantine.url}; mend the input or raise max_bad_fraction"
        )
    facts = {
        "rows": scan.num_rows,
        "bad": sum(scan.reasons.values()),
        "reasons": dict(scan.reasons),
        "skipped": dict(scan.skipped),
        "left_out": dict(scan.left_out),
        "absent": sorted(scan.absent),
        "bytes": scan.num_bytes,
        "starts": scan.starts,
    }
    table = pa.table({"row": scan.row_N, "id_hash": scan.id_hash_N})
    job.folder.child("scans").write_table(f"{name}.parquet", table, SCANS, facts)
    return facts


def left_out_columns(scans: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Map the name of each column that cannot be metadata to the kind of its values; sorted by name."""
    return dict(sorted({name: kind for scan in scans for name, kind in scan["left_out"].items()}.items()))


def warn_of_columns(scans: Sequence[Mapping[str, Any]], prepare: PrepareConfig, corpus: str) -> None:
    if left_out := left_out_columns(scans):
        listed = ", ".join(f"{name} ({kind})" for name, kind in left_out.items())
        logger.warning(f"{corpus}: columns that are no text or number are left out of metadata: {shown(listed)}")
    absent = set.intersection(*(set(scan["absent"]) for scan in scans)) if scans else set()
    if absent and isinstance(prepare.metadata, list):
        logger.warning(f"prepare.metadata: no row of {corpus} has {shown(', '.join(sorted(absent)))}")


def bad_rows(scan: Mapping[str, Any]) -> int:
    return int(scan["bad"])


def _listed(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in Counter(reasons).most_common() if count)


def _first_bad(table: pa.Table) -> str:
    first = table.slice(0, 1).to_pylist()[0]
    detail = shown(first["detail"])[:_DETAIL_CHARACTERS]
    return f"the first is row {first['row']} (from 0) of {first['file']}: {first['reason']}, {detail}"


def check_bad(
    reasons: Mapping[str, int], rows: int, max_bad_fraction: float, corpus: str, quarantine: Folder, names: Sequence[str]
) -> None:
    """Fail the run if too many rows are in quarantine. The error shows the first row of the quarantine file `names[0]`.

    Raises:
        InputError: more rows are bad than `max_bad_fraction` allows.
    """
    bad = sum(reasons.values())
    if bad > max_bad_fraction * rows:
        first = _first_bad(quarantine.read_table(f"{names[0]}.parquet"))
        raise InputError(
            f"{bad} of {rows} rows of {corpus} cannot be used ({_listed(reasons)}), more than max_bad_fraction = "
            f"{max_bad_fraction}; {first}; they are in {quarantine.url}; mend the input or raise max_bad_fraction"
        )
