"""Held-out text that no rewrite may overlap: a rewrite of it would escape n-gram decontamination of raw text (METHODS, WRAP)."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from loguru import logger

from pipeline.config import Config, Corpus
from pipeline.engine import Engine
from pipeline.errors import InputError
from pipeline.rewriting.filters import HeldOut
from pipeline.sources import Document, InputFile
from pipeline.sources.input_files import input_files
from pipeline.sources.readers import read_rows
from pipeline.storage import Folder

HELD_OUT = "held_out.parquet"
_COUNTS = "held_out.json"
_BATCH = 1000


def held_out_identity(config: Config, workdir: Folder) -> dict[str, Any] | None:
    """Return by setting how held-out text is read, and the digests of its files; None if there is no held-out text.

    Raises:
        InputError: no file matches, or a file cannot be read.
    """
    found = _files(config, workdir)
    return {
        name: {**corpus.identity(), "files": [file.digest for file in files]} for name, (corpus, files) in found.items()
    } or None


def read_held_out(engine: Engine, config: Config, folder: Folder) -> tuple[Folder | None, dict[str, Any]]:
    """Write the n-grams of the held-out text to `folder`, unless they are there.

    Returns:
        The folder, or None if there is no held-out text; and by setting the numbers of `rows` and of `blank` rows.
    """
    found = _files(config, Folder(config.workdir))
    if not found:
        return None, {}
    if not folder.exists(HELD_OUT):
        items = [(setting, corpus, file) for setting, (corpus, files) in found.items() for file in files]
        parts: list[HeldOut] = []
        counts = {setting: {"rows": 0, "blank": 0} for setting in found}
        for number, (part, rows, blank) in engine.map(_ngrams, items, title="held-out text", unit="files"):
            parts.append(part)
            counts[items[number][0]]["rows"] += rows
            counts[items[number][0]]["blank"] += blank
        for setting, counted in counts.items():
            log_blank(setting, **counted)
        folder.write_json(_COUNTS, counts)
        schema = pa.schema([pa.field("ngram", pa.uint64(), nullable=False)])
        folder.write_table(HELD_OUT, HeldOut.combine(parts).to_table(), schema)
    return folder, folder.read_json(_COUNTS) or {}


def _files(config: Config, workdir: Folder) -> dict[str, tuple[Corpus, list[InputFile]]]:
    """Return the held-out corpora for rewrites and their files, by setting: `rephrase.held_out`, else those of `decontaminate`."""
    assert config.rephrase
    texts: dict[str, Corpus] = {}
    if config.rephrase.held_out:
        texts["rephrase.held_out"] = config.rephrase.held_out
    elif config.decontaminate:
        texts = {f"decontaminate.held_out.{name}": corpus for name, corpus in config.decontaminate.held_out.items()}
    return {name: (corpus, input_files(corpus, workdir, setting=f"{name}.paths")[0]) for name, corpus in texts.items()}


def held_out_documents(file: InputFile, corpus: Corpus, setting: str) -> Iterator[tuple[int, Document | None]]:
    """Yield the number and the document of each row of a held-out file; the document of a blank row, which cannot leak, is None.

    Raises:
        InputError: a row cannot be used. If it were ignored, its text could leak unnoticed.
    """
    for row in read_rows(file, corpus):
        if row.bad and row.bad.reason != "empty_text":
            raise InputError(f"{file.url} row {row.row} of {setting} cannot be used ({row.bad.reason}): mend it, or take it out")
        if not row.skipped:
            yield row.row, row.document


def log_blank(setting: str, rows: int, blank: int) -> None:
    """Log one line if rows of a held-out corpus are blank."""
    if blank:
        logger.info(f"{setting}: {blank:,} of {rows:,} rows are blank and were skipped")


def _ngrams(item: tuple[str, Corpus, InputFile]) -> tuple[HeldOut, int, int]:
    """Return the n-grams of a file, its number of rows, and the number of blank rows."""
    setting, corpus, file = item
    parts: list[HeldOut] = []
    texts: list[str] = []
    rows = blank = 0
    for _, document in held_out_documents(file, corpus, setting):
        rows += 1
        if document is None:
            blank += 1
            continue
        texts.append(document.text)
        if len(texts) == _BATCH:
            parts.append(HeldOut.of(texts))
            texts = []
    return HeldOut.combine([*parts, HeldOut.of(texts)]), rows, blank
