"""Raw files to parts of windows, in two passes over each file.

`scan` reads every row, quarantines bad ones, and notes the ids; ids that appear twice are found across files (the first by file and
row stays); `cut` tokenises and writes the parts. A scan costs a tenth of a cut, and makes the outcome independent of the order in
which files are read. A file that many workers share is parsed once in a scan and once in a cut: each begins at its chunks, or
at the document that is split over them.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import embedders
from pipeline.chunks import Start, cut_chunks, scan_file
from pipeline.config import GENERALIST, Config, Corpus
from pipeline.config import Prepare as PrepareConfig
from pipeline.engine import Engine
from pipeline.errors import InputError
from pipeline.readers import InputFile, digest, list_files
from pipeline.sources.listing import base_name
from pipeline.stages.duplicates import duplicates_table, find_duplicates, scan_name
from pipeline.step import Step, groups, map_parts, with_facts
from pipeline.storage import Folder
from pipeline.tables import QUARANTINE, SCANS, WINDOWS
from pipeline.windows import WindowCutter

QUARANTINED = "quarantine"  # the folder of rows that were left out, beside the parts

# Each of them has to pass over what comes before its chunks, which of a compressed file means to decompress it.
_READERS_PER_FILE = 16
_DIGEST_READERS = 8
_INPUTS = "inputs.json"


def prepare_step(config: Config, corpus: str, settings: Corpus, workdir: Folder, setting: str | None = None) -> Step:
    """The step that reads one corpus. Lists and digests its input files; `setting` is where the config says where they are.

    Raises:
        InputError: no file matches, or one cannot be read.
    """
    name = setting or (corpus if corpus == GENERALIST else f"specialists.{corpus}")
    files, stamps = input_files(settings, workdir, setting=f"{name}.paths")
    cutter = WindowCutter(embedders.tokenizer_file(config.embed), config.window.tokens)

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        _remember(workdir, stamps)
        names = [scan_name(file.number) for file in files]
        shared: tuple[Any, ...] = (dict(zip(names, files, strict=True)), settings, config.prepare, folder)
        scanned = folder.child("scans")
        scans = map_parts(engine, scanned, names, _scan_file, title=f"scan {corpus}", unit="files", shared=shared)
        rows = sum(scan["rows"] for scan in scans)

        repeated = find_duplicates(engine, scanned, files, rows, title=f"ids {corpus}")
        shared = (repeated, files, settings, folder)
        for _ in engine.map(_describe_duplicates, sorted(repeated), title="duplicates", unit="files", shared=shared):
            pass
        bad = sum(scan["bad"] for scan in scans) + sum(len(of_file) for of_file in repeated.values())
        reasons = _check_bad(bad, rows, config.max_bad_fraction, corpus, folder)

        starts = {file.number: [Start(*start) for start in scan["starts"]] for file, scan in zip(files, scans, strict=True)}
        drop = {number: set(of_file) for number, of_file in repeated.items()}
        shared = (settings, config.prepare, cutter, drop, folder)
        parts = _cut(engine, folder, files, starts, shared, title=f"prepare {corpus}")
        windows = sum(part["rows"] for part in parts)
        if not windows:
            raise InputError(
                f"{corpus} has no document that can be used: {rows} rows read, {bad} quarantined; see its paths and text_key"
            )
        return {
            "corpus": corpus,
            "input_files": [{"digest": file.digest, "rows": scan["rows"]} for file, scan in zip(files, scans, strict=True)],
            "documents": rows - bad,
            "quarantined": bad,
            "reasons": reasons,
            "windows": windows,
            "tokens": sum(part["tokens"] for part in parts),
            "text_bytes": sum(part["text_bytes"] for part in parts),
            "parts": parts,
        }

    return Step(
        stage="prepare",
        corpus=corpus,
        version=1,
        settings={
            "corpus": {name: value for name, value in settings.identity().items() if name != "share"},
            # A file's name is the source of its documents, where they name none themselves.
            "files": [{"digest": file.digest, "name": base_name(file.url)} for file in files],
            "prepare": config.prepare.identity(),
            "window": config.window.identity(),
            "tokenizer": cutter.identity,
        },
        inputs={},
        workdir=workdir,
        work=work,
    )


def input_files(settings: Corpus, workdir: Folder, *, setting: str) -> tuple[list[InputFile], dict[str, Any]]:
    """The files of a corpus with their digests; and for `_remember`, what spares digesting them again."""
    listed = list_files(settings, setting=setting)
    known: dict[str, Any] = workdir.read_json(_INPUTS) or {}

    def resolve(entry: tuple[str, str]) -> tuple[str, str, str]:
        url, kind = entry
        stamp = _stamp(url)
        if stamp and known.get(url, {}).get("stamp") == stamp:
            return url, stamp, str(known[url]["digest"])
        return url, stamp, digest(url, kind)

    with ThreadPoolExecutor(_DIGEST_READERS) as pool:
        resolved = list(pool.map(resolve, listed))
    fresh = {url: {"stamp": stamp, "digest": value} for url, stamp, value in resolved if stamp}
    files = [
        InputFile(number=number, url=url, kind=kind, digest=value)
        for number, ((_, kind), (url, _, value)) in enumerate(zip(listed, resolved, strict=True))
    ]
    return files, fresh


def _remember(workdir: Folder, stamps: dict[str, Any]) -> None:
    """Note the digests of files by size and time of change."""
    known: dict[str, Any] = workdir.read_json(_INPUTS) or {}
    if any(known.get(url) != stamp for url, stamp in stamps.items()):
        workdir.write_json(_INPUTS, {**known, **stamps})


def _stamp(url: str) -> str:
    """Size and time of change of a local file; empty for what is cheap to digest or not local."""
    try:
        status = os.stat(url)
    except (OSError, ValueError):
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}"


def _scan_file(name: str, files: dict[str, InputFile], settings: Corpus, prepare: PrepareConfig, folder: Folder) -> dict[str, Any]:
    scan = scan_file(files[name], settings, prepare)
    facts = {"rows": scan.num_rows, "bad": len(scan.quarantine), "starts": scan.starts}
    folder.child(QUARANTINED).write_table(f"{name}.parquet", scan.quarantine, QUARANTINE)
    table = pa.table({"row": scan.row_N, "id_hash": scan.id_hash_N})
    folder.child("scans").write_table(f"{name}.parquet", table, SCANS, facts)
    return facts


def _describe_duplicates(
    number: int,
    duplicates: dict[int, dict[int, tuple[int, int]]],
    files: Sequence[InputFile],
    settings: Corpus,
    folder: Folder,
) -> None:
    table = duplicates_table(files[number], settings, duplicates[number], [file.url for file in files])
    folder.child(QUARANTINED).write_table(f"duplicates-{number:05d}.parquet", table, QUARANTINE)


def _check_bad(bad: int, rows: int, max_bad_fraction: float, corpus: str, folder: Folder) -> dict[str, int]:
    """How many rows each reason put into quarantine.

    Raises:
        InputError: more of them than `max_bad_fraction` allows.
    """
    quarantine = folder.child(QUARANTINED)
    reasons: Counter[str] = Counter()
    if bad:
        for name in quarantine.names(".parquet"):
            reasons.update(quarantine.read_table(name, columns=["reason"])["reason"].to_pylist())
    counts = dict(sorted(reasons.items()))
    if bad > max_bad_fraction * rows:
        listed = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        raise InputError(
            f"{bad} of {rows} rows of {corpus} cannot be used ({listed}), more than max_bad_fraction = {max_bad_fraction}; "
            f"see {quarantine.url}, then mend the input or raise max_bad_fraction"
        )
    return counts


@dataclass(frozen=True)
class Cut:
    """An item of work: chunks of one file, read and cut by one worker."""

    file: InputFile
    chunks: list[int]
    start: Start

    @property
    def name(self) -> str:
        return self.file.url


def cuts(
    files: Sequence[InputFile], missing: dict[int, list[int]], starts: Mapping[int, Sequence[Start]], num_workers: int
) -> list[Cut]:
    """The chunks that are missing, as items of work: several for a file where there are fewer files than workers."""
    readers = min(_READERS_PER_FILE, -(-2 * num_workers // max(1, len(missing))))
    return [
        Cut(files[number], chunks, starts[number][chunks[0]])
        for number in sorted(missing)
        # Reading Python sources means parsing them, which is dearer than cutting: one reader a package.
        for chunks in groups(missing[number], 1 if files[number].kind == "pydocs" else readers)
    ]


def _cut(
    engine: Engine,
    folder: Folder,
    files: Sequence[InputFile],
    starts: Mapping[int, Sequence[Start]],
    shared: tuple[Any, ...],
    *,
    title: str,
) -> list[dict[str, Any]]:
    """Cut the chunks (where they start, by file) whose parts are not there; the facts of all parts, in order."""
    present = set(folder.names(".parquet"))
    missing = {
        number: left
        for number, of_file in starts.items()
        if (left := [i for i in range(len(of_file)) if f"{part_name(number, i)}.parquet" not in present])
    }
    items = cuts(files, missing, starts, engine.num_workers) if missing else []
    facts: dict[str, dict[str, Any]] = {}
    for _, made in engine.map(_cut_file, items, title=title, unit="runs", shared=shared):
        facts |= made
    return with_facts(folder, [part_name(number, i) for number, of_file in starts.items() for i in range(len(of_file))], facts)


def part_name(file_number: int, chunk: int) -> str:
    return f"part-{file_number:05d}-{chunk:05d}"


def _cut_file(
    cut: Cut, settings: Corpus, prepare: PrepareConfig, cutter: WindowCutter, drop: dict[int, set[int]], folder: Folder
) -> dict[str, dict[str, Any]]:
    facts = {}
    drop_rows = drop.get(cut.file.number, set())
    for chunk, table in cut_chunks(cut.file, settings, prepare, cutter, set(cut.chunks), drop_rows, cut.start):
        name = part_name(cut.file.number, chunk)
        facts[name] = {
            "rows": len(table),
            "tokens": pc.sum(table["tokens"]).as_py() or 0,
            "text_bytes": pc.sum(pc.binary_length(table["text"])).as_py() or 0,
        }
        folder.write_table(f"{name}.parquet", table, WINDOWS, facts[name])
    return facts
