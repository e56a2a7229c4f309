"""Test text that no rewrite may overlap: rewrites of it would escape the n-gram decontamination of raw text (METHODS, WRAP)."""

from typing import Any

import pyarrow as pa

from pipeline.config import Config, Corpus
from pipeline.engine import Engine
from pipeline.errors import InputError
from pipeline.readers import InputFile, read_rows
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
    assert config.rephrase
    if config.rephrase.held_out is None:
        return None
    return {**config.rephrase.held_out.identity(), "files": [file.digest for file in _files(config, workdir)]}


def read_held_out(engine: Engine, config: Config, folder: Folder) -> Folder | None:
    """The folder with the n-grams of the held-out text, or None where there is no such text."""
    assert config.rephrase
    corpus = config.rephrase.held_out
    if corpus is None:
        return None
    if not folder.exists(_FILE):
        files = _files(config, Folder(config.workdir))
        parts = [part for _, part in engine.map(_ngrams, files, title="held-out text", unit="files", shared=(corpus,))]
        table = HeldOut.combine(parts).to_table()
        folder.write_table(_FILE, table, pa.schema([pa.field("ngram", pa.uint64(), nullable=False)]))
    return folder


def _files(config: Config, workdir: Folder) -> list[InputFile]:
    assert config.rephrase
    corpus = config.rephrase.held_out
    return input_files(corpus, workdir, setting="rephrase.held_out.paths")[0] if corpus else []


def _ngrams(file: InputFile, corpus: Corpus) -> HeldOut:
    parts: list[HeldOut] = []
    texts: list[str] = []
    for row in read_rows(file, corpus):
        if row.document is None:
            assert row.bad
            # Held-out text that goes unread would leak in silence.
            raise InputError(
                f"{file.url} row {row.row} of rephrase.held_out cannot be used: {row.bad.reason}; mend it, or take it out"
            )
        texts.append(row.document.text)
        if len(texts) == _BATCH:
            parts.append(HeldOut.of(texts))
            texts = []
    return HeldOut.combine([*parts, HeldOut.of(texts)])
