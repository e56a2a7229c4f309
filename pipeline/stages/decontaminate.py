"""Remove documents that contain held-out text from the generalist corpus and from the specialist samples.

A specialist sample that contains text of its own test set is an error. The held-out text is indexed once; then each part of windows
is written again without the contaminated documents. The text is already cut into windows: a document is a sequence of consecutive
windows with one id in one part.
"""

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from loguru import logger

from pipeline.config import Config, Decontaminate, HeldOut
from pipeline.engine import Engine
from pipeline.errors import InputError
from pipeline.execution.step import Step, map_parts, part_names
from pipeline.refining.contamination import Index, make_search_texts, parse_choices
from pipeline.sources import InputFile
from pipeline.sources.input_files import list_input_files
from pipeline.sources.parts import REPORT_EXCERPT_CHARACTERS, WRITE_OPTIONS, count_part, iter_documents, sum_part_counts
from pipeline.stages.held_out import iter_held_out_documents, log_blank_rows
from pipeline.storage import Folder
from pipeline.tables import CONTAMINATED, HELD_OUT_NGRAMS, HELD_OUT_ROWS, WINDOWS

CONTAMINATED_FOLDER = "contaminated"  # the removed documents with the reasons; next to the parts
_NGRAMS, _ROWS = "held_out_ngrams.parquet", "held_out_rows.parquet"
_MAX_LISTED_DOCUMENTS = 3  # in an error


def index_step(config: Config, workdir: Folder) -> Step:
    """Build the step that indexes all held-out text.

    Raises:
        InputError: no file matches, or a file cannot be read.
    """
    settings = config.decontaminate
    assert settings is not None
    files = {
        name: list_input_files(corpus, workdir, setting=f"decontaminate.held_out.{name}.paths")[0]
        for name, corpus in settings.held_out.items()
    }

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        inputs = IndexInputs(settings, files)
        ((_, counts),) = engine.map(_write_index, [folder], title="held-out text", unit="indices", shared=inputs)
        for name, (rows, blank, short) in counts.items():
            if blank + short == rows:
                raise InputError(
                    f"decontaminate.held_out.{name}: none of its {rows:,} rows has {settings.ngram} words, so none can be matched; "
                    "lower decontaminate.ngram, or set answer_key and choices_key for questions"
                )
            log_blank_rows(f"decontaminate.held_out.{name}", rows, blank)
            if short:
                logger.warning(
                    f"decontaminate.held_out.{name}: {short:,} of {rows:,} rows are ignored because they have fewer than "
                    f"{settings.ngram} words"
                )
        return {
            "rows": {name: rows for name, (rows, _, _) in counts.items()},
            "blank": {name: blank for name, (_, blank, _) in counts.items()},
            "short": {name: short for name, (_, _, short) in counts.items()},
        }

    return Step(
        stage="held-out",
        version=3,
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
        inputs = DecontaminateInputs(windows.folder, held_out.folder, folder, settings.ngram, settings.min_share)
        parts = map_parts(engine, folder, part_names(windows), _decontaminate_part, title=f"decontaminate {corpus}", shared=inputs)
        count_by_set: Counter[str] = Counter()
        for part in parts:
            count_by_set.update(part["contaminated"])
        reported_parts = [name for name, part in zip(part_names(windows), parts, strict=True) if part["contaminated"]]
        _check_own_test_sets(settings, corpus, folder.child(CONTAMINATED_FOLDER), reported_parts, count_by_set)
        dropped = count_by_set.total()
        documents = windows.manifest["documents"] - dropped
        for name, count in count_by_set.most_common():
            logger.info(f"{count:,} of {windows.manifest['documents']:,} documents of {corpus} contain text of held_out.{name}")
        if not sum(part["rows"] for part in parts):
            raise InputError(
                f"{corpus}: every document contains held-out text; check decontaminate.held_out, or raise decontaminate.min_share"
            )
        return {
            "corpus": corpus,
            **{name: windows.manifest[name] for name in ("input_files", "quarantined", "reasons")},
            "documents": documents,
            "dropped": dropped,
            "held_out": dict(sorted(count_by_set.items())),
            **sum_part_counts(parts),
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


def _check_own_test_sets(
    settings: Decontaminate, corpus: str, report: Folder, reported_parts: Sequence[str], count_by_set: Mapping[str, int]
) -> None:
    """Check that a specialist sample contains no text of its own test sets. The error lists the first documents that do.

    Args:
        report: the folder of CONTAMINATED tables.
        reported_parts: the parts that have such a table.
        count_by_set: contaminated documents by held-out set.

    Raises:
        InputError: it contains text of one of them.
    """
    own_sets = [name for name, text in settings.held_out.items() if text.of == corpus and count_by_set.get(name)]
    if not own_sets:
        return
    contaminated = (row for name in reported_parts for row in report.read_table(f"{name}.parquet").to_pylist())
    rows = [row for row in contaminated if row["held_out"] in own_sets]
    listed = ", ".join(
        f"{row['id']} (row {row['row']}, {row['share']:.0%}: {row['words']!r})" for row in rows[:_MAX_LISTED_DOCUMENTS]
    )
    sets = f"test set{'s' if len(own_sets) > 1 else ''} {', '.join(f'held_out.{name}' for name in own_sets)}"
    raise InputError(
        f"specialists.{corpus}: text of its own {sets} is in {len(rows):,} of its documents: {listed}"
        f"{', …' if len(rows) > _MAX_LISTED_DOCUMENTS else ''}; remove it from the sample or from the test set "
        f"(all these documents are listed in {report.url})"
    )


@dataclass(frozen=True)
class IndexInputs:
    """What the task that indexes the held-out text reads."""

    settings: Decontaminate
    files: Mapping[str, Sequence[InputFile]]  # by name of the held-out set


def _write_index(folder: Folder, inputs: IndexInputs) -> dict[str, tuple[int, int, int]]:
    """Write the index; return by name the numbers of rows, of blank rows, and of rows that are too short for an n-gram."""
    settings, files = inputs.settings, inputs.files
    names = sorted(files)
    num_rows, num_blank = dict.fromkeys(names, 0), dict.fromkeys(names, 0)

    def iter_rows() -> Iterator[tuple[int, int, Sequence[str]]]:
        for number, name in enumerate(names):
            for file in files[name]:
                for search_texts in _read_search_texts(file, settings.held_out[name], name, settings.ngram):
                    if search_texts is None:
                        num_blank[name] += 1
                    else:
                        yield number, num_rows[name], search_texts
                    num_rows[name] += 1

    index, num_short = Index.build(iter_rows(), names, settings.ngram)
    ngrams, row_names = index.tables()
    folder.write_table(_NGRAMS, ngrams, HELD_OUT_NGRAMS)
    folder.write_table(_ROWS, row_names, HELD_OUT_ROWS)
    return {name: (num_rows[name], num_blank[name], num_short[number]) for number, name in enumerate(names)}


def _read_search_texts(file: InputFile, corpus: HeldOut, name: str, ngram_words: int) -> Iterator[Sequence[str] | None]:
    """Yield the search texts of each row (see `refining.contamination`); None for a blank row."""
    for row, document in iter_held_out_documents(file, corpus, f"decontaminate.held_out.{name}"):
        if document is None:
            yield None
            continue
        metadata = orjson.loads(document.metadata)
        for key in (corpus.answer_key, corpus.choices_key):
            if key is not None and key not in metadata:
                raise InputError(
                    f"{file.url} row {row} has no {key!r}, which decontaminate.held_out.{name} names; fix one of the two"
                )
        try:
            choices, labels = parse_choices(metadata[corpus.choices_key] if corpus.choices_key else [])
        except ValueError as error:
            raise InputError(f"{file.url} row {row}: {corpus.choices_key!r} {error}; fix that row") from error
        answer = metadata[corpus.answer_key] if corpus.answer_key else None
        yield make_search_texts(document.text, ngram_words, answer=answer, choices=choices, labels=labels)


@functools.lru_cache(maxsize=1)
def _read_index(url: str, ngram_words: int) -> Index:
    """Load the index; cached in each worker process."""
    folder = Folder(url)
    return Index.from_tables(folder.read_table(_NGRAMS), folder.read_table(_ROWS), ngram_words)


@dataclass(frozen=True)
class DecontaminateInputs:
    """Inputs shared by the tasks that decontaminate the parts of one corpus."""

    windows: Folder
    index: Folder
    output: Folder
    ngram_words: int
    min_share: float


def _decontaminate_part(name: str, inputs: DecontaminateInputs) -> dict[str, Any]:
    """Write a part without the documents that contain held-out text; return its facts."""
    index = _read_index(inputs.index.url, inputs.ngram_words)
    table = inputs.windows.read_table(f"{name}.parquet")
    texts = table["text"].to_pylist()
    keep_N = np.ones(len(table), bool)
    report: list[dict[str, Any]] = []
    for identifier, rows in iter_documents(table):
        text = "".join(texts[rows])
        match = index.best_match(text, inputs.min_share)
        if match is not None:
            keep_N[rows] = False
            found = {"held_out": match.name, "row": match.row, "share": match.share, "words": match.words}
            report.append({"id": identifier, **found, "text": text[:REPORT_EXCERPT_CHARACTERS]})
    table = table.filter(pa.array(keep_N))
    facts = {
        **count_part(table),
        "contaminated": dict(sorted(Counter(row["held_out"] for row in report).items())),
    }
    if report:
        inputs.output.child(CONTAMINATED_FOLDER).write_table(
            f"{name}.parquet", pa.Table.from_pylist(report, CONTAMINATED), CONTAMINATED
        )
    inputs.output.write_table(f"{name}.parquet", table, WINDOWS, facts, **WRITE_OPTIONS)
    return facts
