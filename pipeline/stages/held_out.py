"""Held-out text that no rewrite may overlap: a rewrite of it would escape n-gram decontamination of raw text."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from loguru import logger

from pipeline.config import Config, Corpus
from pipeline.engine import Engine
from pipeline.errors import InputError
from pipeline.rewriting.filters import HeldOut
from pipeline.sources import Document, InputFile
from pipeline.sources.input_files import list_input_files
from pipeline.sources.readers import read_rows
from pipeline.storage import Folder

HELD_OUT_FILE = "held_out.parquet"
_COUNTS_FILE = "held_out.json"
_BATCH_TEXTS = 1000


def identify_held_out(config: Config, workdir: Folder) -> dict[str, Any] | None:
    """Return, by setting, how held-out text is read and the digests of its files; None without held-out text.

    Raises:
        InputError: no file matches, or a file cannot be read.
    """
    corpora = _list_files(config, workdir)
    return {
        setting: {**corpus.identity(), "files": [file.digest for file in files]} for setting, (corpus, files) in corpora.items()
    } or None


def write_held_out_ngrams(engine: Engine, config: Config, folder: Folder) -> tuple[Folder | None, dict[str, Any]]:
    """Write the n-grams of the held-out text to `folder`, unless they are already there.

    Returns:
        The folder, or None without held-out text; and by setting the numbers of `rows` and of `blank` rows.
    """
    corpora = _list_files(config, Folder(config.workdir))
    if not corpora:
        return None, {}
    if not folder.exists(HELD_OUT_FILE):
        files = [_HeldOutFile(setting, corpus, file) for setting, (corpus, of_corpus) in corpora.items() for file in of_corpus]
        parts: list[HeldOut] = []
        counts = {setting: {"rows": 0, "blank": 0} for setting in corpora}
        for index, (part, rows, blank) in engine.map(_read_ngrams, files, title="held-out text", unit="files", shared=None):
            parts.append(part)
            counts[files[index].setting]["rows"] += rows
            counts[files[index].setting]["blank"] += blank
        for setting, of_setting in counts.items():
            log_blank_rows(setting, **of_setting)
        folder.write_json(_COUNTS_FILE, counts)
        schema = pa.schema([pa.field("ngram", pa.uint64(), nullable=False)])
        folder.write_table(HELD_OUT_FILE, HeldOut.combine(parts).to_table(), schema)
    return folder, folder.read_json(_COUNTS_FILE) or {}


@dataclass(frozen=True)
class _HeldOutFile:
    """An item of work: one held-out file."""

    setting: str
    corpus: Corpus
    file: InputFile

    @property
    def name(self) -> str:
        return self.file.url


def _list_files(config: Config, workdir: Folder) -> dict[str, tuple[Corpus, list[InputFile]]]:
    """Return the held-out corpora for rewrites and their files, by setting: `rephrase.held_out`, else those of `decontaminate`."""
    assert config.rephrase
    corpora: dict[str, Corpus] = {}
    if config.rephrase.held_out:
        corpora["rephrase.held_out"] = config.rephrase.held_out
    elif config.decontaminate:
        corpora = {f"decontaminate.held_out.{name}": corpus for name, corpus in config.decontaminate.held_out.items()}
    return {name: (corpus, list_input_files(corpus, workdir, setting=f"{name}.paths")[0]) for name, corpus in corpora.items()}


def iter_held_out_documents(file: InputFile, corpus: Corpus, setting: str) -> Iterator[tuple[int, Document | None]]:
    """Yield the number and the document of each row of a held-out file; the document of a blank row, which cannot leak, is None.

    Raises:
        InputError: a row is bad. If it were ignored, its text could leak unnoticed.
    """
    for row in read_rows(file, corpus):
        if row.problem and row.problem.reason != "empty_text":
            raise InputError(
                f"{file.url} row {row.number} of {setting} cannot be used ({row.problem.reason}): repair the row or remove it"
            )
        if not row.skipped:
            yield row.number, row.document


def log_blank_rows(setting: str, rows: int, blank: int) -> None:
    """Log one line if rows of a held-out corpus are blank."""
    if blank:
        logger.info(f"{setting}: {blank:,} of {rows:,} rows are blank and were skipped")


def _read_ngrams(item: _HeldOutFile, _: None) -> tuple[HeldOut, int, int]:
    """Return the n-grams of a file, its number of rows, and the number of blank rows."""
    parts: list[HeldOut] = []
    texts: list[str] = []
    rows = blank = 0
    for _row, document in iter_held_out_documents(item.file, item.corpus, item.setting):
        rows += 1
        if document is None:
            blank += 1
            continue
        texts.append(document.text)
        if len(texts) == _BATCH_TEXTS:
            parts.append(HeldOut.from_texts(texts))
            texts = []
    return HeldOut.combine([*parts, HeldOut.from_texts(texts)]), rows, blank
