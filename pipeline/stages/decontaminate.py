"""Remove documents that contain held-out text from the generalist corpus and from the specialist samples.

A specialist sample that contains text of its own test set is an error. The held-out text is indexed once; then each part of windows
is written again without the contaminated documents. The text is already cut into windows: a document is a run of consecutive
windows with one id in one part.
"""

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from loguru import logger

from pipeline.config import Config, Decontaminate, HeldOut
from pipeline.engine import Engine
from pipeline.errors import InputError
from pipeline.execution.step import Step, map_parts, part_names
from pipeline.refining.contamination import Index, choices_of, readings
from pipeline.sources import InputFile
from pipeline.sources.input_files import input_files
from pipeline.sources.parts import SHOWN_CHARACTERS, WRITE_OPTIONS, counts, documents_of, totals
from pipeline.stages.held_out import held_out_documents, log_blank
from pipeline.storage import Folder
from pipeline.tables import CONTAMINATED, HELD_OUT_ROWS, HELD_OUT_RUNS, WINDOWS

REPORT = "contaminated"  # folder with the removed documents and the reasons, next to the parts
_RUNS, _ROWS = "held_out_runs.parquet", "held_out_rows.parquet"
_NAMED = 3  # documents listed in an error


def index_step(config: Config, workdir: Folder) -> Step:
    """Build the step that indexes all held-out text.

    Raises:
        InputError: no file matches, or a file cannot be read.
    """
    settings = config.decontaminate
    assert settings is not None
    files = {
        name: input_files(corpus, workdir, setting=f"decontaminate.held_out.{name}.paths")[0]
        for name, corpus in settings.held_out.items()
    }

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        ((_, facts),) = engine.map(_index, [folder], title="held-out text", unit="indices", shared=(settings, files))
        for name, (rows, blank, short) in facts.items():
            if blank + short == rows:
                raise InputError(
                    f"decontaminate.held_out.{name}: none of its {rows} rows has {settings.ngram} words, so none can be found; set "
                    "decontaminate.ngram lower, or answer_key and choices_key for questions"
                )
            log_blank(f"decontaminate.held_out.{name}", rows, blank)
            if short:
                logger.warning(f"decontaminate.held_out.{name}: {short} of {rows} rows have fewer than {settings.ngram} words")
        return {
            "rows": {name: rows for name, (rows, _, _) in facts.items()},
            "blank": {name: blank for name, (_, blank, _) in facts.items()},
            "short": {name: short for name, (_, _, short) in facts.items()},
        }

    return Step(
        stage="held-out",
        version=2,
        settings={
            "ngram": settings.ngram,
            "texts": {
                name: {**corpus.identity(), "files": [file.digest for file in files[name]]}
                for name, corpus in settings.held_out.items()
            },
        },
        inputs={},
        workdir=workdir,
        work=work,
    )


def decontaminate_step(config: Config, corpus: str, windows: Step, held_out: Step) -> Step:
    """Build the step that removes the documents of one corpus that contain held-out text."""
    settings = config.decontaminate
    assert settings is not None

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        shared = (windows.folder, held_out.folder, folder, settings.ngram, settings.min_share)
        parts = map_parts(engine, folder, part_names(windows), _clean, title=f"decontaminate {corpus}", shared=shared)
        by_name: Counter[str] = Counter()
        for part in parts:
            by_name.update(part["contaminated"])
        reported = [name for name, part in zip(part_names(windows), parts, strict=True) if part["contaminated"]]
        _refuse_own_test(settings, corpus, folder.child(REPORT), reported, by_name)
        dropped = sum(by_name.values())
        documents = windows.manifest["documents"] - dropped
        for name, count in by_name.most_common():
            logger.info(f"{count:,} of {windows.manifest['documents']:,} documents of {corpus} hold text of held_out.{name}")
        if not sum(part["rows"] for part in parts):
            raise InputError(f"{corpus}: every document holds held-out text; check decontaminate.held_out and its min_share")
        return {
            "corpus": corpus,
            **{name: windows.manifest[name] for name in ("input_files", "quarantined", "reasons")},
            "documents": documents,
            "dropped": dropped,
            "held_out": dict(sorted(by_name.items())),
            **totals(parts),
        }

    return Step(
        stage="decontaminate",
        corpus=corpus,
        version=1,
        settings={
            "min_share": settings.min_share,
            "own": sorted(name for name, text in settings.held_out.items() if text.of == corpus),
        },
        inputs={"windows": windows, "held_out": held_out},
        workdir=windows.workdir,
        work=work,
    )


def _refuse_own_test(settings: Decontaminate, corpus: str, report: Folder, reported: Sequence[str], by_name: Counter[str]) -> None:
    own = [name for name, text in settings.held_out.items() if text.of == corpus and by_name[name]]
    if not own:
        return
    listed = (row for name in reported for row in report.read_table(f"{name}.parquet").to_pylist())
    rows = [row for row in listed if row["held_out"] in own]
    some = ", ".join(f"{row['id']} (row {row['row']}, {row['share']:.0%}: {row['words']!r})" for row in rows[:_NAMED])
    named = f"test set{'s' if len(own) > 1 else ''} {', '.join(f'held_out.{name}' for name in own)}"
    raise InputError(
        f"specialists.{corpus}: {len(rows)} documents of the sample hold text of its own {named}: {some}"
        f"{', …' if len(rows) > _NAMED else ''}; take them out of one of the two (all are listed in {report.url})"
    )


def _index(folder: Folder, settings: Decontaminate, files: dict[str, list[InputFile]]) -> dict[str, tuple[int, int, int]]:
    """Write the index; return by name the numbers of rows, of blank rows, and of rows that are too short for an n-gram."""
    names = sorted(files)
    read, blank = dict.fromkeys(names, 0), dict.fromkeys(names, 0)

    def rows() -> Iterator[tuple[int, int, Sequence[str]]]:
        for number, name in enumerate(names):
            for file in files[name]:
                for found in _readings(file, settings.held_out[name], name, settings.ngram):
                    if found is None:
                        blank[name] += 1
                    else:
                        yield number, read[name], found
                    read[name] += 1

    index, short = Index.of(rows(), names, settings.ngram)
    runs, of_rows = index.tables()
    folder.write_table(_RUNS, runs, HELD_OUT_RUNS)
    folder.write_table(_ROWS, of_rows, HELD_OUT_ROWS)
    return {name: (read[name], blank[name], short[number]) for number, name in enumerate(names)}


def _readings(file: InputFile, corpus: HeldOut, name: str, length: int) -> Iterator[Sequence[str] | None]:
    """Yield the readings of each row, the texts to search for (`refining.contamination`); None for a blank row."""
    for row, document in held_out_documents(file, corpus, f"decontaminate.held_out.{name}"):
        if document is None:
            yield None
            continue
        others = orjson.loads(document.metadata)
        for key in (corpus.answer_key, corpus.choices_key):
            if key is not None and key not in others:
                raise InputError(f"{file.url} row {row} has no {key!r}, which decontaminate.held_out.{name} names; mend either")
        try:
            choices, labels = choices_of(others[corpus.choices_key] if corpus.choices_key else [])
        except ValueError as error:
            raise InputError(f"{file.url} row {row}: {corpus.choices_key!r} {error}; mend it") from error
        answer = others[corpus.answer_key] if corpus.answer_key else None
        yield readings(document.text, length, answer=answer, choices=choices, labels=labels)


@functools.lru_cache(maxsize=1)
def _read_index(url: str, length: int) -> Index:
    """Load the index; cached in each worker process."""
    folder = Folder(url)
    return Index.from_tables(folder.read_table(_RUNS), folder.read_table(_ROWS), length)


def _clean(name: str, windows: Folder, held_out: Folder, output: Folder, length: int, min_share: float) -> dict[str, Any]:
    """Write a part without the documents that contain held-out text; return its facts."""
    index = _read_index(held_out.url, length)
    table = windows.read_table(f"{name}.parquet")
    texts = table["text"].to_pylist()
    keep_N = np.ones(len(table), bool)
    report: list[dict[str, Any]] = []
    for identifier, rows in documents_of(table):
        text = "".join(texts[rows])
        found = index.found(text, min_share)
        if found is not None:
            keep_N[rows] = False
            what = {"held_out": found.name, "row": found.row, "share": found.share, "words": found.words}
            report.append({"id": identifier, **what, "text": text[:SHOWN_CHARACTERS]})
    table = table.filter(pa.array(keep_N))
    facts = {
        **counts(table),
        "contaminated": dict(sorted(Counter(row["held_out"] for row in report).items())),
    }
    if report:
        output.child(REPORT).write_table(f"{name}.parquet", pa.Table.from_pylist(report, CONTAMINATED), CONTAMINATED)
    output.write_table(f"{name}.parquet", table, WINDOWS, facts, **WRITE_OPTIONS)
    return facts
