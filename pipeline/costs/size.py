"""How much text a corpus holds: as `prepare` counted it, or guessed from the beginnings of some of its files."""

import os
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean

import fsspec
import zstandard

from pipeline import embedders
from pipeline.config import Config, Corpus
from pipeline.errors import InputError
from pipeline.readers import read_rows
from pipeline.sources import InputFile, Kind
from pipeline.sources.listing import list_files
from pipeline.step import Step, hash_chosen
from pipeline.storage import said
from pipeline.windows import WindowCutter

_FILES_SIZED, _FILES_READ = 256, 8
_HEAD_BYTES = 1 << 20
_ROWS = 200
_SMALL_PARTS = 64  # small files share parts, but not in fewer
_COUNTED: tuple[Kind, ...] = ("parquet", "ipc")  # say themselves how many rows they have


@dataclass(frozen=True)
class Size:
    """Text of a corpus: `parts` as `prepare` cuts it, `files` of the input. `rows_read` where it is guessed from so many."""

    files: float
    documents: float
    text_bytes: float
    tokens: float
    windows: float
    parts: float
    rows_read: int | None = None


def size_of(config: Config, corpus: str, prepared: Step) -> Size | None:
    """The size of the generalist corpus, or of a specialist's sample; None where only `prepare` can tell: of `datasets`.

    Raises:
        InputError: a file cannot be read.
    """
    if not prepared.done:
        settings = config.specialists.get(corpus, config.generalist)
        return _guessed(config, settings, setting=corpus)
    facts = prepared.manifest
    return Size(
        files=len(facts["input_files"]) if "input_files" in facts else 1,
        documents=facts["documents"],
        text_bytes=facts["text_bytes"],
        tokens=facts["tokens"],
        windows=facts["windows"],
        parts=len(facts["parts"]),
    )


@dataclass(frozen=True)
class _Seen:
    """What was read of one file: some of its text, and about how many rows it has in all."""

    texts: Sequence[str]
    rows: float


def _guessed(config: Config, corpus: Corpus, *, setting: str) -> Size | None:
    listed = list_files(corpus, setting=f"{setting}.paths")
    names = [url for url, _ in listed]
    kinds = dict(listed)
    if "dataset" in kinds.values():
        return None  # to look into it is to download it
    sized = hash_chosen(names, _FILES_SIZED, seed=config.seed, purpose="costs.sized")
    bytes_of = {url: _stored_bytes(url, kinds[url]) for url in sized}
    read = hash_chosen(sized, _FILES_READ, seed=config.seed, purpose="costs.read")
    seen = {url: _seen(url, kinds[url], corpus, bytes_of[url]) for url in read}
    # Of files whose size is known, the rows go with it; packages are as large as those that were read.
    bytes_read = sum(bytes_of[url] for url in read)
    all_bytes = fmean(bytes_of.values()) * len(names)
    rows = sum(found.rows for found in seen.values()) * (all_bytes / bytes_read if bytes_read else len(names) / len(read))
    if corpus.limit is not None:
        rows = min(rows, corpus.limit * len(names))
    texts = [text for found in seen.values() for text in found.texts]
    if not texts:
        raise InputError(f"{setting}: no row of {', '.join(read)} can be used; see its paths and text_key")
    cutter = WindowCutter(embedders.tokenizer_file(config.embed), config.window.tokens)
    cut = cutter.cut(texts)
    scale = rows / len(texts)
    text_bytes = scale * sum(len(text.encode()) for text in texts)
    parts = max(text_bytes / config.prepare.part_bytes, rows / config.prepare.part_documents, min(len(names), _SMALL_PARTS))
    return Size(
        files=len(names),
        documents=rows,
        text_bytes=text_bytes,
        tokens=scale * sum(tokens for windows in cut for _, tokens in windows),
        windows=scale * sum(map(len, cut)),
        parts=parts,
        rows_read=len(texts),
    )


def _stored_bytes(url: str, kind: Kind) -> float:
    if kind == "pydocs":
        return 0.0
    try:
        fs, path = fsspec.core.url_to_fs(url)
        return float(fs.size(path) or 0)
    except Exception as error:  # clients of stores have errors of their own
        raise InputError(f"cannot read {url}: {said(error)}; mend it, or leave it out of paths") from error


def _seen(url: str, kind: Kind, corpus: Corpus, stored_bytes: float) -> _Seen:
    file = InputFile(number=0, url=url, kind=kind, digest="")
    if kind == "pydocs":
        texts = list(_texts(file, corpus, None))
        return _Seen(texts[:_ROWS], len(texts))
    if kind in _COUNTED:
        return _Seen(list(_texts(file, corpus, _ROWS)), _counted_rows(url, kind))
    fs, path = fsspec.core.url_to_fs(url)
    head: bytes = fs.cat_file(path, 0, _HEAD_BYTES)
    with tempfile.TemporaryDirectory() as folder:
        whole = len(head) >= stored_bytes
        name = os.path.basename(path)
        if kind != "warc":
            head, name = _unpacked(head, name)
            head = head if whole else head[: head.rfind(b"\n") + 1]
        local = os.path.join(folder, name)
        with open(local, "wb") as out:
            out.write(head)
        texts = []
        try:
            for text in _texts(InputFile(number=0, url=local, kind=kind, digest=""), corpus, None):
                texts.append(text)
        except InputError:
            if whole:
                raise
    share = min(1.0, _HEAD_BYTES / max(1.0, stored_bytes))
    return _Seen(texts[:: max(1, -(-len(texts) // _ROWS))], len(texts) / share)


def _texts(file: InputFile, corpus: Corpus, most: int | None) -> Iterator[str]:
    rows = read_rows(file, corpus)
    return islice((row.document.text for row in rows if row.document), most)


def _counted_rows(url: str, kind: Kind) -> int:
    import pyarrow.dataset as ds

    fs, path = fsspec.core.url_to_fs(url)
    return int(ds.dataset(path, filesystem=fs, format=kind).count_rows())


def _unpacked(head: bytes, name: str) -> tuple[bytes, str]:
    """As much of a packed file as its beginning gives, and the name without the packing's ending."""
    if name.endswith(".gz"):
        unpacked = b""
        while head:
            inflating = zlib.decompressobj(31)
            unpacked += inflating.decompress(head)
            head = inflating.unused_data if inflating.eof else b""
        return unpacked, name.removesuffix(".gz")
    if name.endswith(".zst"):
        unpacked = b""
        while head:
            opened = zstandard.ZstdDecompressor().decompressobj()
            unpacked += opened.decompress(head)
            head = opened.unused_data if opened.eof else b""
        return unpacked, name.removesuffix(".zst")
    return head, name
