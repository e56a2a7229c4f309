"""Raw files to parts of windows, in two passes over each file.

`scan` reads every row, quarantines bad ones, and notes the ids; ids that appear twice are found across files (the first by file and
row stays); `cut` passes documents through datatrove's steps, where a corpus has some, tokenises and writes the parts. A scan costs
a tenth of a cut, and makes the outcome independent of the order in which files are read. A file that many workers share is
parsed once in a scan and once in a cut: each begins at its chunks, or at the document that is split over them. Small files that
follow each other are one part.
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

DROPPED_EXAMPLES = "dropped"  # the folder of examples of what the steps dropped

# Each of them has to pass over what comes before its chunks, which of a compressed file means to decompress it.
_READERS_PER_FILE = 16
# Small files that become one part hold no more of the corpus than this, or next to nothing: else a few parts would keep a few
# workers busy.
_PACKED_SHARE = 64
_LEAST_DOCUMENTS, _LEAST_BYTES = 16, 1 << 16
_MERGED = "examples.parquet"


def prepare_step(config: Config, corpus: str, settings: Corpus, workdir: Folder, setting: str | None = None) -> Step:
    """The step that reads one corpus. Lists and digests its input files; `setting` is where the config says where they are.

    Raises:
        InputError: no file matches, or one cannot be read.
        ConfigError: one of its steps is none of datatrove's, or has settings that it does not take.
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
            # All that was read: documents + dropped + quarantined + skipped.
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
        version=4,
        settings={
            "corpus": {name: value for name, value in settings.identity().items() if name not in ("share", "steps")},
            **({"steps": steps, "datatrove": version("datatrove")} if steps else {}),
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


def _catalogue() -> Any:
    """Imported by who names something of datatrove's, and by nobody else: it takes half a second."""
    from pipeline.refining import catalogue

    return catalogue


@dataclass(frozen=True)
class PlannedPart:
    """A part and what it is made of: a chunk of one file, or the only chunks of several."""

    name: str
    files: Sequence[InputFile]
    chunk: int
    start: Start


def planned_parts(files: Sequence[InputFile], scans: Sequence[Mapping[str, Any]], prepare: PrepareConfig) -> list[PlannedPart]:
    """The parts, in the order of the files; what is in each follows from the files alone.

    Files of one chunk that follow each other share a part within the bounds of one, and of a 64th of the corpus but for a few
    documents: thousands of small files would else be thousands of parts, or so few that most workers would have none.
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
            documents = 0  # the next small file begins a part
        parts += [PlannedPart(part_name(file.number, chunk), [file], chunk, start) for chunk, start in enumerate(starts)]
    return parts


def cuts(parts: Sequence[PlannedPart], num_workers: int) -> list[list[PlannedPart]]:
    """The parts that are missing, as items of work: several for a large file where there are fewer files than workers."""
    runs = [list(run) for _, run in itertools.groupby(parts, key=lambda part: [file.number for file in part.files])]
    readers = min(_READERS_PER_FILE, -(-2 * num_workers // max(1, len(runs))))
    return [
        item
        for run in runs
        # Reading Python sources means parsing them, which is dearer than cutting: one reader a package.
        for item in groups(run, 1 if run[0].files[0].kind == "pydocs" else readers)
    ]


def _cut(
    engine: Engine, folder: Folder, planned: Sequence[PlannedPart], shared: tuple[Any, ...], *, title: str
) -> list[dict[str, Any]]:
    """Cut the parts that are not there; the facts of all parts, in order."""
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
    """Parts of one file, or one part of several."""
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
    """One table of examples of those of the parts. A run that was killed in here has some of both."""
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
