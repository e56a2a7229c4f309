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
from typing import Any

import orjson
import pyarrow as pa
from loguru import logger

from pipeline import embedders
from pipeline.config import GENERALIST, Config, Corpus
from pipeline.config import Prepare as PrepareConfig
from pipeline.engine import Engine
from pipeline.errors import InputError
from pipeline.execution.step import Step, groups, map_parts, with_facts
from pipeline.refining import account
from pipeline.refining.account import Account
from pipeline.sources import Document, InputFile, Row
from pipeline.sources.chunks import Start, cut_chunks
from pipeline.sources.input_files import digest_files, remember_digests
from pipeline.sources.listing import base_name, list_corpus
from pipeline.sources.parts import WRITE_OPTIONS, counts, totals
from pipeline.stages.duplicates import find_duplicates, quarantine_duplicates, scan_name
from pipeline.stages.scan import QUARANTINED, ScanJob, bad_rows, check_bad, left_out_columns, most_bad, scan_input, warn_of_columns
from pipeline.storage import Folder
from pipeline.tables import DROPPED, QUARANTINE, WINDOWS
from pipeline.text.windows import WindowCutter

DROPPED_EXAMPLES = "dropped"  # folder with examples of the documents that datatrove steps dropped

# Each reader must skip everything before its chunks, which means decompressing it in a compressed file.
_READERS_PER_FILE = 16
# A part packed from small files holds at most 1/64 of the corpus, or these minima if they are more. With larger parts there would
# be too few parts to keep the workers busy.
_PACKED_SHARE = 64
_LEAST_DOCUMENTS, _LEAST_BYTES = 16, 1 << 16
_MERGED = "examples.parquet"


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
        _catalogue().checked_reader(settings.reader, f"{name}.reader")
    listing = list_corpus(settings, setting=f"{name}.paths", workdir=workdir.url)
    files, stamps = digest_files(listing, workdir)
    cutter = WindowCutter(embedders.tokenizer_file(config.embed), config.window.tokens)
    steps, own = config.steps_of(settings)
    setting_of_steps = f"{name}.steps" if own else "prepare.steps"
    if steps:
        _catalogue().checked(steps, setting_of_steps)

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        remember_digests(workdir, stamps)
        if left_out := listing.describe_left_out(f"{name}.paths"):
            logger.warning(left_out)
        if any(file.kind == "warc" and ".wet" not in file.url for file in files) and not _catalogue().extracts(steps):
            logger.warning(f"{corpus}: pages of WARC files are HTML, and no extractor is among {setting_of_steps}: add Trafilatura")
        names = [scan_name(file.number) for file in files]
        job = ScanJob(
            files=dict(zip(names, files, strict=True)),
            corpus=settings,
            prepare=config.prepare,
            folder=folder,
            split=not steps,
            max_bad_fraction=config.max_bad_fraction,
            most_bad=most_bad(files, settings, config.max_bad_fraction),
        )
        scanned = folder.child("scans")
        scans = map_parts(
            engine, scanned, names, scan_input, title=f"scan {corpus}", unit="files", shared=(job,), quarantined=bad_rows
        )
        rows = sum(scan["rows"] for scan in scans)
        reasons = sum((Counter(scan["reasons"]) for scan in scans), Counter[str]())
        warn_of_columns(scans, config.prepare, corpus)

        repeated = find_duplicates(engine, scanned, files, rows, title=f"ids {corpus}")
        reasons["duplicate_id"] += sum(len(of_file) for of_file in repeated.values())
        quarantine = folder.child(QUARANTINED)
        too_many = reasons.total() > config.max_bad_fraction * rows
        shared: tuple[Any, ...] = (repeated, files, settings, config.prepare, quarantine, too_many)
        described = engine.map(
            quarantine_duplicates, sorted(repeated), title="duplicates", unit="files", shared=shared, quarantined=int
        )
        for _ in described:
            pass
        quarantined = [name for name, scan in zip(names, scans, strict=True) if scan["bad"]]
        quarantined += [f"duplicates-{number:05d}" for number in sorted(repeated)]
        check_bad(reasons, rows, config.max_bad_fraction, corpus, quarantine, quarantined)

        drop = {number: set(of_file) for number, of_file in repeated.items()}
        shared = (settings, config.prepare, steps, setting_of_steps, cutter, drop, folder)
        planned = planned_parts(files, scans, config.prepare)
        parts = _cut(engine, folder, planned, shared, title=f"prepare {corpus}")
        dropped = account.summed(parts, [step["type"] for step in steps])
        if steps:
            of_parts = [f"{part['name']}.parquet" for part in parts if part["dropped"]]
            _merge_examples(folder.child(DROPPED_EXAMPLES), of_parts)
            for line in account.said(dropped, rows - reasons.total()):
                logger.info(line)
        reasons["step_failed"] += sum(part["failed"] for part in parts)
        quarantined += [f"steps-{part['name']}" for part in parts if part["failed"]]
        check_bad(reasons, rows, config.max_bad_fraction, corpus, quarantine, quarantined)
        bad = reasons.total()
        documents = rows - bad - sum(step["documents"] for step in dropped)
        held = totals(parts)
        skipped = sum((Counter(scan["skipped"]) for scan in scans), Counter[str]())
        if not held["windows"]:
            why = f"{rows} rows read, {bad} quarantined, {rows - bad - documents} dropped by its steps; see its paths, text_key"
            raise InputError(f"{corpus} has no document that can be used: {why}{' and steps' if steps else ''}")
        return {
            "corpus": corpus,
            "input_files": [{"digest": file.digest, "rows": scan["rows"]} for file, scan in zip(files, scans, strict=True)],
            "left_out_files": dict(sorted(listing.left_out.items())),
            "left_out_columns": left_out_columns(scans),
            # rows_read = documents + dropped + quarantined + skipped
            "rows_read": rows + skipped.total(),
            "documents": documents,
            "dropped": rows - bad - documents,
            "steps": dropped,
            "quarantined": bad,
            "reasons": dict(sorted((+reasons).items())),
            "skipped": dict(sorted(skipped.items())),
            **held,
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


def _catalogue() -> Any:
    """Import the catalogue of datatrove classes only when a config uses one: the import takes half a second."""
    from pipeline.refining import catalogue

    return catalogue


@dataclass(frozen=True)
class PlannedPart:
    """A part and its input: one chunk of a file, or several files of a single chunk each."""

    name: str
    files: Sequence[InputFile]
    chunk: int
    start: Start


def planned_parts(files: Sequence[InputFile], scans: Sequence[Mapping[str, Any]], prepare: PrepareConfig) -> list[PlannedPart]:
    """Plan the parts, in the order of the files. Their contents depend on the files alone.

    Consecutive files of one chunk each are packed into a part, up to the limits of a part and up to 1/64 of the corpus (at least
    16 documents and 64 KiB). Without packing, thousands of small files would become thousands of parts; without the limit of
    1/64, they would become so few that most workers would have none.
    """
    all_documents = sum(scan["rows"] - scan["bad"] for scan in scans)
    all_bytes = sum(scan["bytes"] for scan in scans)
    most_documents = min(prepare.part_documents, max(all_documents // _PACKED_SHARE, _LEAST_DOCUMENTS))
    most_bytes = min(prepare.part_bytes, max(all_bytes // _PACKED_SHARE, _LEAST_BYTES))
    parts: list[PlannedPart] = []
    documents = num_bytes = 0
    for file, scan in zip(files, scans, strict=True):
        starts = [Start(*start) for start in scan["starts"]]
        if len(starts) == 1:
            good = scan["rows"] - scan["bad"]
            documents, num_bytes = documents + good, num_bytes + scan["bytes"]
            if documents > good and documents <= most_documents and num_bytes <= most_bytes:
                parts[-1] = replace(parts[-1], files=[*parts[-1].files, file])
                continue
            documents, num_bytes = good, scan["bytes"]
        elif starts:
            documents = 0  # so that the next small file begins a new part
        parts += [PlannedPart(part_name(file.number, chunk), [file], chunk, start) for chunk, start in enumerate(starts)]
    return parts


def cuts(parts: Sequence[PlannedPart], num_workers: int) -> list[list[PlannedPart]]:
    """Group the missing parts into items of work: one per file, or up to 16 if there are fewer than two files per worker."""
    runs = [list(run) for _, run in itertools.groupby(parts, key=lambda part: [file.number for file in part.files])]
    readers = min(_READERS_PER_FILE, -(-2 * num_workers // max(1, len(runs))))
    return [
        item
        for run in runs
        # Python sources must be parsed to be read, which takes longer than cutting: one reader per package.
        for item in groups(run, 1 if run[0].files[0].kind == "pydocs" else readers)
    ]


def _cut(
    engine: Engine, folder: Folder, planned: Sequence[PlannedPart], shared: tuple[Any, ...], *, title: str
) -> list[dict[str, Any]]:
    """Cut the missing parts; return the facts of all parts, in order."""
    present = set(folder.names(".parquet"))
    left = [part for part in planned if f"{part.name}.parquet" not in present]
    items, before = cuts(left, engine.num_workers), len(planned) - len(left)
    facts: dict[str, dict[str, Any]] = {}
    for _, made in engine.map(_cut_parts, items, title=title, shared=shared, before=before, quarantined=_failed_rows):
        facts |= made
    return with_facts(folder, [part.name for part in planned], facts)


def _failed_rows(parts: Mapping[str, Mapping[str, Any]]) -> int:
    return sum(part["failed"] for part in parts.values())


def part_name(file_number: int, chunk: int) -> str:
    return f"part-{file_number:05d}-{chunk:05d}"


def _cut_parts(
    parts: Sequence[PlannedPart],
    settings: Corpus,
    prepare: PrepareConfig,
    steps: Sequence[Mapping[str, Any]],
    setting: str,
    cutter: WindowCutter,
    drop: dict[int, set[int]],
    folder: Folder,
) -> dict[str, dict[str, Any]]:
    """Cut parts of one file, or one part packed from several files; return the facts by part name."""
    names = {part.chunk: part.name for part in parts}
    facts: dict[str, dict[str, Any]] = {}
    tables: list[pa.Table] = []
    with _chain(steps, setting) as chain:
        accounts = {chunk: Account() for chunk in names}
        for file in parts[0].files:

            def refine(row: Row, chunk: int, file: InputFile = file) -> Document | None:
                return accounts[chunk].refined(chain, file, row, prepare.metadata_bytes)

            made = cut_chunks(
                file, settings, prepare, cutter, set(names), drop.get(file.number, set()), parts[0].start, refine if steps else None
            )
            for chunk, table in made:
                tables.append(table)
                if file is parts[0].files[-1]:
                    facts[names[chunk]] = _write(folder, names[chunk], pa.concat_tables(tables), accounts[chunk])
                    tables.clear()
    return facts


def _chain(steps: Sequence[Mapping[str, Any]], setting: str) -> AbstractContextManager[Any]:
    if not steps:
        return nullcontext()
    from pipeline.refining.chain import chain_of

    return chain_of(orjson.dumps(steps), setting)


def _merge_examples(folder: Folder, of_parts: Sequence[str]) -> None:
    """Merge the example tables of the parts into one. After an interrupted merge, both kinds of table may exist."""
    names = [name for name in (*of_parts, _MERGED) if folder.exists(name)]
    folder.write_table(_MERGED, account.merged([folder.read_table(name) for name in names]), DROPPED)
    for name in names:
        if name != _MERGED:
            folder.remove(name)


def _write(folder: Folder, name: str, table: pa.Table, account: Account) -> dict[str, Any]:
    facts = {**counts(table), **account.facts}
    if account.facts["failed"]:
        folder.child(QUARANTINED).write_table(f"steps-{name}.parquet", account.failed(), QUARANTINE)
    if account.facts["dropped"]:
        folder.child(DROPPED_EXAMPLES).write_table(f"{name}.parquet", account.examples(), DROPPED)
    folder.write_table(f"{name}.parquet", table, WINDOWS, facts, **WRITE_OPTIONS)
    return facts
