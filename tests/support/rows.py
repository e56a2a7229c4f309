"""Reads the rows of a corpus."""

from typing import Any

from pipeline.config import Corpus
from pipeline.sources import InputFile, Row
from pipeline.sources.listing import list_files
from pipeline.sources.readers import read_rows


def make_corpus(*paths: object, **settings: Any) -> Corpus:
    return Corpus(paths=[str(path) for path in paths], **settings)


def read_corpus_rows(path: object, number: int = 0, **settings: Any) -> list[Row]:
    corpus = make_corpus(path, **settings)
    [(url, kind)] = list_files(corpus)
    return list(read_rows(InputFile(number, url, kind, ""), corpus))
