"""How much text a corpus holds: counted by `prepare`, or estimated from the beginnings of some of its files."""

import io
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from statistics import fmean

from pipeline import embedders
from pipeline.config import GENERALIST, Config, Corpus
from pipeline.errors import InputError
from pipeline.execution.step import Step, choose_by_hash
from pipeline.sources import FileKind, InputFile, pydocs
from pipeline.sources.listing import convert_read_errors, list_files, url_to_fs
from pipeline.sources.readers import read_rows
from pipeline.sources.streams import compression_of, decompress
from pipeline.text.windows import WindowCutter

_MAX_FILES_SIZED, _MIN_FILES_READ = 256, 8
_MAX_FILES_READ, _READ_BYTES = 32, 8 << 20  # of small files, more are read, of about this size together
_HEAD_BYTES = 1 << 20
_HEADS_BYTES = (_HEAD_BYTES, 8 * _HEAD_BYTES, 64 * _HEAD_BYTES)
_BLOCK_BYTES, _MAX_DECOMPRESSED_BYTES = 1 << 14, 128 << 20
_MAX_ROWS = 200  # rows kept per file
_MIN_PACKED_PARTS = 64  # `prepare` packs small files into parts, but into no fewer than this
_COUNTABLE: tuple[FileKind, ...] = ("parquet", "ipc")  # formats that store their number of rows


@dataclass(frozen=True)
class CorpusSize:
    """The text of a corpus.

    Attributes:
        files: number of input files.
        parts: number of parts that `prepare` writes.
        python_bytes: bytes of Python source that has to be parsed, if the text is docstrings.
        estimated_from_rows: number of rows that the estimate is based on; None if `prepare` has counted.
    """

    files: float
    documents: float
    text_bytes: float
    tokens: float
    windows: float
    parts: float
    python_bytes: float = 0.0
    estimated_from_rows: int | None = None


def find_corpus_size(config: Config, corpus: str, prepared: Step) -> CorpusSize | None:
    """Return the size of the generalist corpus or a specialist sample: counted if the step is done, else estimated.

    Returns None for a corpus with `datasets`, whose size is unknown until `prepare` is done.

    Args:
        prepared: the step that writes the windows of the corpus.

    Raises:
        InputError: a file cannot be read.
    """
    if not prepared.done:
        settings = config.specialists.get(corpus, config.generalist)
        return _estimate_size(config, settings, setting=corpus if corpus == GENERALIST else f"specialists.{corpus}")
    facts = prepared.manifest
    return CorpusSize(
        files=len(facts["input_files"]) if "input_files" in facts else 1,
        documents=facts["documents"],
        text_bytes=facts["text_bytes"],
        tokens=facts["tokens"],
        windows=facts["windows"],
        parts=len(facts["parts"]),
    )


@dataclass(frozen=True)
class _FileEstimate:
    """At most `_MAX_ROWS` texts of one file, and the estimated rows and text of the whole file."""

    texts: Sequence[str]
    rows: float
    text_bytes: float

    @classmethod
    def from_texts(cls, texts: Sequence[str], share: float) -> "_FileEstimate":
        """Extrapolate from all texts in this share of the file."""
        read_bytes = sum(len(text.encode()) for text in texts)
        return cls(texts[:: max(1, -(-len(texts) // _MAX_ROWS))], len(texts) / share, read_bytes / share)


def _estimate_size(config: Config, corpus: Corpus, *, setting: str) -> CorpusSize | None:
    files = list_files(corpus, setting=f"{setting}.paths")
    urls = [url for url, _ in files]
    kinds = dict(files)
    if "dataset" in kinds.values():
        return None  # reading a dataset would download it
    sized = choose_by_hash(urls, _MAX_FILES_SIZED, seed=config.seed, purpose="costs.sized")
    file_bytes = {url: _get_file_size(url, kinds[url]) for url in sized}
    mean_bytes = fmean(file_bytes.values())
    num_read = max(_MIN_FILES_READ, min(_MAX_FILES_READ, int(_READ_BYTES / max(1.0, mean_bytes))))
    read = choose_by_hash(sized, num_read, seed=config.seed, purpose="costs.read")
    unlimited = corpus.model_copy(update={"limit": None})
    estimates = {url: _estimate_file(url, kinds[url], unlimited, file_bytes[url]) for url in read}
    rows, text_bytes, python_bytes = _extrapolate(files, file_bytes, estimates, corpus.limit)
    texts = [text for estimate in estimates.values() for text in estimate.texts]
    if not texts:
        raise InputError(f"{setting}: no row of {', '.join(read)} can be used; check {setting}.paths and {setting}.text_key")
    cutter = WindowCutter(embedders.find_tokenizer_file(config.embed), config.window.tokens)
    cut = cutter.cut(texts)
    per_byte = 1.0 / sum(len(text.encode()) for text in texts)
    parts = max(text_bytes / config.prepare.part_bytes, rows / config.prepare.part_documents, min(len(urls), _MIN_PACKED_PARTS))
    return CorpusSize(
        files=len(urls),
        documents=rows,
        text_bytes=text_bytes,
        tokens=text_bytes * per_byte * sum(tokens for windows in cut for _, tokens in windows),
        windows=text_bytes * per_byte * sum(map(len, cut)),
        parts=parts,
        python_bytes=python_bytes,
        estimated_from_rows=len(texts),
    )


def _extrapolate(
    files: Sequence[tuple[str, FileKind]],
    file_bytes: Mapping[str, float],
    estimates: Mapping[str, _FileEstimate],
    limit: int | None,
) -> tuple[float, float, float]:
    """Extrapolate to all files; return rows, bytes of text, and bytes of Python to be parsed.

    Args:
        file_bytes: sizes of some files.
        estimates: estimates of a few of these.
        limit: maximum rows per file.
    """
    estimated_rows = sum(estimate.rows for estimate in estimates.values())
    estimated_bytes = sum(file_bytes[url] for url in estimates)
    max_python_bytes = float("inf")
    if limit is None:  # the rows of a file are proportional to its size
        scale = fmean(file_bytes.values()) * len(files) / estimated_bytes if estimated_bytes else len(files) / len(estimates)
        scales = dict.fromkeys(estimates, scale)
    else:  # the limit makes the rows of files more alike than their sizes, so all files count the same
        scales = {url: len(files) / len(estimates) * min(1.0, limit / max(1.0, found.rows)) for url, found in estimates.items()}
        max_python_bytes = limit * estimated_bytes / max(1.0, estimated_rows)
    packages = {url for url, kind in files if kind == "pydocs"}
    return (
        sum(scales[url] * estimate.rows for url, estimate in estimates.items()),
        sum(scales[url] * estimate.text_bytes for url, estimate in estimates.items()),
        fmean(min(size, max_python_bytes) if url in packages else 0.0 for url, size in file_bytes.items()) * len(files),
    )


def _get_file_size(url: str, kind: FileKind) -> float:
    if kind == "pydocs":
        return float(pydocs.count_source_bytes(url))
    with convert_read_errors(url):
        fs, path = url_to_fs(url)
        return float(fs.size(path) or 0)


def _estimate_file(url: str, kind: FileKind, corpus: Corpus, file_bytes: float) -> _FileEstimate:
    file = InputFile(number=0, url=url, kind=kind, digest="")
    if kind in _COUNTABLE:
        with convert_read_errors(url):
            texts = list(_read_texts(file, corpus, _MAX_ROWS))
            return _FileEstimate.from_texts(texts, max(len(texts), 1) / max(_count_rows(url, kind), 1))
    if kind == "pydocs" or file_bytes <= _HEAD_BYTES:
        texts = list(_read_texts(file, corpus, None))
        return _FileEstimate.from_texts(texts, 1.0)
    with convert_read_errors(url):
        fs, path = url_to_fs(url)
        texts, share = [], 1.0
        for num_bytes in _HEADS_BYTES:  # a longer head if the first line does not end in a shorter one
            head: bytes = fs.cat_file(path, 0, num_bytes)
            texts, read_bytes = _read_head_texts(head, os.path.basename(path), kind, corpus)
            share = min(1.0, read_bytes / file_bytes)
            if texts or share == 1.0:
                break
    return _FileEstimate.from_texts(texts, share)


def _read_head_texts(head: bytes, name: str, kind: FileKind, corpus: Corpus) -> tuple[list[str], int]:
    """Return the texts in the head of a file, and the number of bytes of the head that were used."""
    read_bytes = len(head)
    if kind != "warc":
        head, read_bytes, name = _decompress_head(head, name)
        head = head[: head.rfind(b"\n") + 1]
    texts: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, name)
        with open(local, "wb") as out:
            out.write(head)
        with suppress(InputError):  # the head is cut off
            texts.extend(_read_texts(InputFile(number=0, url=local, kind=kind, digest=""), corpus, None))
    return texts, read_bytes


def _read_texts(file: InputFile, corpus: Corpus, max_rows: int | None) -> Iterator[str]:
    rows = read_rows(file, corpus)
    return islice((row.document.text for row in rows if row.document), max_rows)


def _count_rows(url: str, kind: FileKind) -> int:
    import pyarrow.dataset as ds

    fs, path = url_to_fs(url)
    return int(ds.dataset(path, filesystem=fs, format=kind).count_rows())


def _decompress_head(head: bytes, name: str) -> tuple[bytes, int, str]:
    """Return decompressed bytes of a head, the number of compressed bytes used, and the name without the compression's ending."""
    kind = compression_of(name)
    if kind is None:
        return head, len(head), name
    raw, decompressed = io.BytesIO(head), bytearray()
    stream = decompress(raw, kind)
    with suppress(EOFError):  # the head is cut off
        while len(decompressed) < _MAX_DECOMPRESSED_BYTES and (block := stream.read1(_BLOCK_BYTES)):
            decompressed += block
    return bytes(decompressed), raw.tell(), os.path.splitext(name)[0]
