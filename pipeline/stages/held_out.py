"""Test text that no rewrite may overlap: rewrites of it would escape the n-gram decontamination of raw text (METHODS, WRAP)."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline.config import Config, Corpus
from pipeline.engine import Engine
from pipeline.errors import InputError
from pipeline.readers import Document, InputFile, read_rows
from pipeline.rewriting.filters import HeldOut
from pipeline.stages.prepare import input_files
from pipeline.storage import Folder

_FILE = "held_out.parquet"
_BATCH = 1000


def held_out_identity(config: Config, workdir: Folder) -> dict[str, Any] | None:
    """How the held-out text is read, and the digests of its files.

    Raises:
        InputError: none matches, or one cannot be read.
    """
    found = _files(config, workdir)
    return {
        name: {**corpus.identity(), "files": [file.digest for file in files]} for name, (corpus, files) in found.items()
    } or None


def read_held_out(engine: Engine, config: Config, folder: Folder) -> Folder | None:
    """The folder with the n-grams of the held-out text, or None where there is no such text."""
    found = _files(config, Folder(config.workdir))
    if not found:
        return None
    if not folder.exists(_FILE):
        items = [(setting, corpus, file) for setting, (corpus, files) in found.items() for file in files]
        parts = [part for _, part in engine.map(_ngrams, items, title="held-out text", unit="files")]
        table = HeldOut.combine(parts).to_table()
        folder.write_table(_FILE, table, pa.schema([pa.field("ngram", pa.uint64(), nullable=False)]))
    return folder


def _files(config: Config, workdir: Folder) -> dict[str, tuple[Corpus, list[InputFile]]]:
    """By setting: the held-out texts for rewrites and their files."""
    assert config.rephrase
    texts: dict[str, Corpus] = {}
    if config.rephrase.held_out:
        texts["rephrase.held_out"] = config.rephrase.held_out
    elif config.decontaminate:
        texts = {f"decontaminate.held_out.{name}": corpus for name, corpus in config.decontaminate.held_out.items()}
    return {name: (corpus, input_files(corpus, workdir, setting=f"{name}.paths")[0]) for name, corpus in texts.items()}


def held_out_documents(file: InputFile, corpus: Corpus, setting: str) -> Iterator[tuple[int, Document]]:
    """Every row of a file of held-out text: its number and its document.

    Raises:
        InputError: one of them cannot be used. Held-out text that goes unread would leak in silence.
    """
    for row in read_rows(file, corpus):
        if row.document is None:
            assert row.bad
            raise InputError(f"{file.url} row {row.row} of {setting} cannot be used ({row.bad.reason}): mend it, or take it out")
        yield row.row, row.document


def _ngrams(item: tuple[str, Corpus, InputFile]) -> HeldOut:
    setting, corpus, file = item
    parts: list[HeldOut] = []
    texts: list[str] = []
    for _, document in held_out_documents(file, corpus, setting):
        texts.append(document.text)
        if len(texts) == _BATCH:
            parts.append(HeldOut.of(texts))
            texts = []
    return HeldOut.combine([*parts, HeldOut.of(texts)])
