"""Convert raw files to parts of windows, in two passes over each file.

Pass 1 (scan) reads every row, quarantines bad rows and records the ids. Ids that occur more than once are then found across all
files; the first document by file and row is kept. Pass 2 (cut) runs the documents through the datatrove steps of the corpus, if it
has any, tokenizes them and writes the parts. A scan costs a tenth of a cut, and makes the result independent of the order in which
files are read. Several workers can cut one large file. Each parses only its own chunks, from their first document or from the one
that is split over them, so a file is parsed once per pass. Consecutive small files are packed into one part.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from types import ModuleType
from typing import Any

import orjson
import pyarrow as pa
from loguru import logger

from pipeline import embedders
from pipeline.config import GENERALIST, Config, Corpus
from pipeline.config import Prepare as PrepareConfig
from pipeline.engine import Engine
from pipeline.errors import InputError
from pipeline.execution.step import Step, collect_facts, map_parts, split_evenly
from pipeline.refining import drop_log
from pipeline.refining.drop_log import DropLog
from pipeline.sources import Document, InputFile, Row
from pipeline.sources.chunks import ChunkStart, cut_chunks
from pipeline.sources.input_files import cache_digests, digest_files
from pipeline.sources.listing import base_name, list_corpus
from pipeline.sources.parts import WRITE_OPTIONS, count_part, sum_part_counts
from pipeline.stages.duplicate_ids import DuplicateInputs, find_duplicates, quarantine_duplicates, scan_name
from pipeline.stages.prepare_scan import (
    QUARANTINE_FOLDER,
    ScanInputs,
    check_bad_rows,
    compute_max_bad_rows,
    count_bad_rows,
    merge_unsupported_columns,
    scan_input,
    warn_about_columns,
)
from pipeline.storage import Folder
from pipeline.tables import DROPPED, QUARANTINE, WINDOWS
from pipeline.text.windows import WindowCutter

DROPPED_FOLDER = "dropped"  # excerpts of the documents that datatrove steps dropped; next to the parts

# Each reader must skip everything before its chunks, which means decompressing it in a compressed file.
_READERS_PER_FILE = 16
# A part packed from small files holds at most 1/64 of the corpus, or these minima if they are more. With larger parts there would
# be too few parts to keep the workers busy.
_PACKED_SHARE = 64
_MIN_PACKED_DOCUMENTS, _MIN_PACKED_BYTES = 16, 1 << 16
_MERGED_EXCERPTS = "examples.parquet"


def prepare_step(config: Config, corpus: str, settings: Corpus, workdir: Folder, setting: str | None = None) -> Step:
    """Build the step that reads one corpus. This lists the input files and computes their digests.

    Args:
        setting: where the config defines the corpus, for messages; by default `generalist` or `specialists.NAME`.

    Raises:
        InputError: no file matches, or a file cannot be read.
        ConfigError: the reader or a step is unknown to datatrove, or does not accept its settings.
    """
    name = setting or (corpus if corpus == GENERALIST else f"specialists.{corpus}")
    if settings.reader:
        _import_catalogue().check_reader(settings.reader, f"{name}.reader")
    listing = list_corpus(settings, setting=f"{name}.paths", workdir=workdir.url)
    files, stamps = digest_files(listing, workdir)
    cutter = WindowCutter(embedders.find_tokenizer_file(config.embed), config.window.tokens)
    steps, has_own_steps = config.resolve_steps(settings)
    steps_setting = f"{name}.steps" if has_own_steps else "prepare.steps"
    if steps:
        _import_catalogue().check_steps(steps, steps_setting)

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        cache_digests(workdir, stamps)
        if ignored := listing.describe_ignored(f"{name}.paths"):
            logger.warning(ignored)
        if any(file.kind == "warc" and ".wet" not in file.url for file in files) and not _import_catalogue().has_extractor(steps):
            logger.warning(f"{corpus}: WARC files contain HTML, but {steps_setting} has no extractor; add Trafilatura")
        names = [scan_name(file.number) for file in files]
        scan_inputs = ScanInputs(
            files=dict(zip(names, files, strict=True)),
            corpus=settings,
            prepare=config.prepare,
            output=folder,
            split=not steps,
            max_bad_fraction=config.max_bad_fraction,
            max_bad_rows=compute_max_bad_rows(files, settings, config.max_bad_fraction),
        )
        scans_folder = folder.child("scans")
        scans = map_parts(
            engine,
            scans_folder,
            names,
            scan_input,
            title=f"scan {corpus}",
            unit="files",
            shared=scan_inputs,
            quarantined=count_bad_rows,
        )
        rows = sum(scan["rows"] for scan in scans)
        reasons = sum((Counter(scan["reasons"]) for scan in scans), Counter[str]())
        warn_about_columns(scans, config.prepare, corpus)

        duplicates = find_duplicates(engine, scans_folder, files, rows, title=f"ids {corpus}")
        reasons["duplicate_id"] += sum(len(firsts) for firsts in duplicates.values())
        quarantine = folder.child(QUARANTINE_FOLDER)
        duplicate_inputs = DuplicateInputs(
            firsts=duplicates,
            files=files,
            corpus=settings,
            prepare=config.prepare,
            quarantine=quarantine,
            run_will_fail=reasons.total() > config.max_bad_fraction * rows,
        )
        for _ in engine.map(
            quarantine_duplicates,
            sorted(duplicates),
            title="duplicates",
            unit="files",
            shared=duplicate_inputs,
            quarantined=int,
        ):
            pass
        quarantine_names = [name for name, scan in zip(names, scans, strict=True) if scan["bad"]]
        quarantine_names += [f"duplicates-{number:05d}" for number in sorted(duplicates)]
        check_bad_rows(reasons, rows, config.max_bad_fraction, corpus, quarantine, quarantine_names)

        cut_inputs = CutInputs(
            corpus=settings,
            prepare=config.prepare,
            steps=steps,
            steps_setting=steps_setting,
            cutter=cutter,
            dropped_rows={number: frozenset(firsts) for number, firsts in duplicates.items()},
            output=folder,
        )
        parts = _cut_missing(engine, plan_parts(files, scans, config.prepare), cut_inputs, title=f"prepare {corpus}")
        dropped = drop_log.sum_drops(parts, [step["type"] for step in steps])
        if steps:
            excerpt_names = [f"{part['name']}.parquet" for part in parts if part["dropped"]]
            _merge_excerpts(folder.child(DROPPED_FOLDER), excerpt_names)
            for line in drop_log.format_log_lines(dropped, rows - reasons.total()):
                logger.info(line)
        reasons["step_failed"] += sum(part["failed"] for part in parts)
        quarantine_names += [f"steps-{part['name']}" for part in parts if part["failed"]]
        check_bad_rows(reasons, rows, config.max_bad_fraction, corpus, quarantine, quarantine_names)
        bad = reasons.total()
        documents = rows - bad - sum(step["documents"] for step in dropped)
        counts = sum_part_counts(parts)
        skipped = sum((Counter(scan["skipped"]) for scan in scans), Counter[str]())
        if not counts["windows"]:
            causes = "paths, text_key and steps" if steps else "paths and text_key"
            raise InputError(
                f"{corpus} has no usable document: {rows:,} rows read, {bad:,} quarantined, {rows - bad - documents:,} dropped by "
                f"its steps; check its {causes}"
            )
        return {
            "corpus": corpus,
            "input_files": [{"digest": file.digest, "rows": scan["rows"]} for file, scan in zip(files, scans, strict=True)],
            "left_out_files": dict(sorted(listing.ignored.items())),
            "left_out_columns": merge_unsupported_columns(scans),
            # rows_read = documents + dropped + quarantined + skipped
            "rows_read": rows + skipped.total(),
            "documents": documents,
            "dropped": rows - bad - documents,
            "steps": dropped,
            "quarantined": bad,
            "reasons": dict(sorted((+reasons).items())),
            "skipped": dict(sorted(skipped.items())),
            **counts,
        }

    return Step(
        stage="prepare",
        corpus=corpus,
        version=5,
        settings={
            "corpus": {name: value for name, value in settings.identity().items() if name not in ("share", "steps")},
            **({"steps": steps, "datatrove": version("datatrove")} if steps else {}),
            # The file name is the source of documents that have no source of their own.
            "files": [{"digest": file.digest, "name": base_name(file.url)} for file in files],
            "prepare": config.prepare.identity(),
            "window": config.window.identity(),
            "tokenizer": cutter.identity,
        },
        inputs={},
        workdir=workdir,
        work=work,
    )


def _import_catalogue() -> ModuleType:
    """Import the catalogue of datatrove classes only when a config uses one: the import takes half a second."""
    from pipeline.refining import catalogue

    return catalogue


@dataclass(frozen=True)
class PlannedPart:
    """A part and its input: one chunk of a file, or several files of a single chunk each."""

    name: str
    files: Sequence[InputFile]
    chunk: int
    start: ChunkStart


def plan_parts(files: Sequence[InputFile], scans: Sequence[Mapping[str, Any]], prepare: PrepareConfig) -> list[PlannedPart]:
    """Plan the parts, in the order of the files. Their contents depend on the files alone.

    Consecutive files of one chunk each are packed into a part, up to the limits of a part and up to 1/64 of the corpus (at least
    16 documents and 64 KiB). Without packing, thousands of small files would become thousands of parts; without the limit of
    1/64, they would become so few that most workers would have none.
    """
    total_documents = sum(scan["rows"] - scan["bad"] for scan in scans)
    total_bytes = sum(scan["bytes"] for scan in scans)
    max_documents = min(prepare.part_documents, max(total_documents // _PACKED_SHARE, _MIN_PACKED_DOCUMENTS))
    max_bytes = min(prepare.part_bytes, max(total_bytes // _PACKED_SHARE, _MIN_PACKED_BYTES))
    parts: list[PlannedPart] = []
    packed_documents = packed_bytes = 0  # in the last part, if it has only files of one chunk
    for file, scan in zip(files, scans, strict=True):
        starts = [ChunkStart(*start) for start in scan["starts"]]
        if len(starts) == 1:
            documents = scan["rows"] - scan["bad"]
            packed_documents, packed_bytes = packed_documents + documents, packed_bytes + scan["bytes"]
            if documents < packed_documents <= max_documents and packed_bytes <= max_bytes:
                parts[-1] = replace(parts[-1], files=[*parts[-1].files, file])
                continue
            packed_documents, packed_bytes = documents, scan["bytes"]
        elif starts:
            packed_documents = 0  # so that the next small file begins a new part
        parts += [PlannedPart(part_name(file.number, chunk), [file], chunk, start) for chunk, start in enumerate(starts)]
    return parts


def plan_work_items(parts: Sequence[PlannedPart], num_workers: int) -> list[list[PlannedPart]]:
    """Group the parts into items of work: one per file, or up to 16 if there are fewer than two files per worker."""
    by_files = [
        list(same_files) for _, same_files in itertools.groupby(parts, key=lambda part: [file.number for file in part.files])
    ]
    readers_per_file = min(_READERS_PER_FILE, -(-2 * num_workers // max(1, len(by_files))))
    return [
        item
        for same_files in by_files
        # Python sources must be parsed to be read, which takes longer than cutting: one reader per package.
        for item in split_evenly(same_files, 1 if same_files[0].files[0].kind == "pydocs" else readers_per_file)
    ]


@dataclass(frozen=True)
class CutInputs:
    """Inputs shared by the tasks that cut parts."""

    corpus: Corpus
    prepare: PrepareConfig
    steps: Sequence[Mapping[str, Any]]  # the datatrove steps as in the config
    steps_setting: str  # the setting that defines the steps, for messages
    cutter: WindowCutter
    dropped_rows: Mapping[int, frozenset[int]]  # by file number; duplicates
    output: Folder


def _cut_missing(engine: Engine, planned: Sequence[PlannedPart], inputs: CutInputs, *, title: str) -> list[dict[str, Any]]:
    """Cut the missing parts; return the facts of all parts, in order."""
    present = set(inputs.output.names(".parquet"))
    missing = [part for part in planned if f"{part.name}.parquet" not in present]
    items, before = plan_work_items(missing, engine.num_workers), len(planned) - len(missing)
    facts: dict[str, dict[str, Any]] = {}
    for _, cut_facts in engine.map(_cut_parts, items, title=title, shared=inputs, before=before, quarantined=_count_failed_rows):
        facts |= cut_facts
    return collect_facts(inputs.output, [part.name for part in planned], facts)


def _count_failed_rows(parts: Mapping[str, Mapping[str, Any]]) -> int:
    return sum(part["failed"] for part in parts.values())


def part_name(file_number: int, chunk: int) -> str:
    return f"part-{file_number:05d}-{chunk:05d}"


def _cut_parts(parts: Sequence[PlannedPart], inputs: CutInputs) -> dict[str, dict[str, Any]]:
    """Cut parts of one file, or one part packed from several files; return the facts by part name."""
    names = {part.chunk: part.name for part in parts}
    facts: dict[str, dict[str, Any]] = {}
    tables: list[pa.Table] = []
    with _open_chain(inputs.steps, inputs.steps_setting) as chain:
        drop_logs = {chunk: DropLog() for chunk in names}
        for file in parts[0].files:

            def refine(row: Row, chunk: int, file: InputFile = file) -> Document | None:
                return drop_logs[chunk].refine(chain, file, row, inputs.prepare.metadata_bytes)

            chunk_tables = cut_chunks(
                file,
                inputs.corpus,
                inputs.prepare,
                inputs.cutter,
                set(names),
                inputs.dropped_rows.get(file.number, frozenset()),
                parts[0].start,
                refine if inputs.steps else None,
            )
            for chunk, table in chunk_tables:
                tables.append(table)
                if file is parts[0].files[-1]:
                    facts[names[chunk]] = _write_part(inputs.output, names[chunk], pa.concat_tables(tables), drop_logs[chunk])
                    tables.clear()
    return facts


def _open_chain(steps: Sequence[Mapping[str, Any]], setting: str) -> AbstractContextManager[Any]:
    if not steps:
        return nullcontext()
    from pipeline.refining.chain import load_chain

    return load_chain(orjson.dumps(steps), setting)


def _merge_excerpts(folder: Folder, part_tables: Sequence[str]) -> None:
    """Merge the parts' tables of excerpts into one. After an interrupted merge, both kinds of table may exist."""
    names = [name for name in (*part_tables, _MERGED_EXCERPTS) if folder.exists(name)]
    folder.write_table(_MERGED_EXCERPTS, drop_log.merge_excerpts([folder.read_table(name) for name in names]), DROPPED)
    for name in names:
        if name != _MERGED_EXCERPTS:
            folder.remove(name)


def _write_part(folder: Folder, name: str, table: pa.Table, drops: DropLog) -> dict[str, Any]:
    """Write a part with the quarantined rows and excerpts of its drop log; return its facts."""
    facts = {**count_part(table), **drops.facts}
    if drops.facts["failed"]:
        folder.child(QUARANTINE_FOLDER).write_table(f"steps-{name}.parquet", drops.failed(), QUARANTINE)
    if drops.facts["dropped"]:
        folder.child(DROPPED_FOLDER).write_table(f"{name}.parquet", drops.excerpts(), DROPPED)
    folder.write_table(f"{name}.parquet", table, WINDOWS, facts, **WRITE_OPTIONS)
    return facts
