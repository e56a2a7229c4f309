"""How much text a corpus holds: as `prepare` counted it, or guessed from the beginnings of some of its files."""

import io
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from statistics import fmean

from pipeline import embedders
from pipeline.config import Config, Corpus
from pipeline.errors import InputError
from pipeline.execution.step import Step, hash_chosen
from pipeline.sources import InputFile, Kind, pydocs
from pipeline.sources.listing import file_system, list_files, reading
from pipeline.sources.readers import read_rows
from pipeline.sources.streams import compression_of, unpacked
from pipeline.text.windows import WindowCutter

_FILES_SIZED, _FILES_READ = 256, 8
_SMALL_FILES_READ, _SMALL_BYTES = 32, 8 << 20  # where files are small, more of them, of about so much in all
_HEAD_BYTES = 1 << 20
_HEADS_BYTES = (_HEAD_BYTES, 8 * _HEAD_BYTES, 64 * _HEAD_BYTES)
_BLOCK_BYTES, _UNPACKED_BYTES = 1 << 14, 128 << 20
_ROWS = 200
_SMALL_PARTS = 64  # small files share parts, but not in fewer
_COUNTED: tuple[Kind, ...] = ("parquet", "ipc")  # say themselves how many rows they have


@dataclass(frozen=True)
class Size:
    """Text of a corpus: `parts` as `prepare` cuts it, `files` of the input. `rows_read` where it is guessed from so many.

    `python_bytes` are of the source files that have to be parsed for it, where it is docstrings.
    """

    files: float
    documents: float
    text_bytes: float
    tokens: float
    windows: float
    parts: float
    python_bytes: float = 0.0
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
    """What was read of one file: some of its text, and about how much it has in all."""

    texts: Sequence[str]
    rows: float
    text_bytes: float

    @classmethod
    def of(cls, texts: Sequence[str], share: float) -> "_Seen":
        """From all texts of such a share of the file."""
        read = sum(len(text.encode()) for text in texts)
        return cls(texts[:: max(1, -(-len(texts) // _ROWS))], len(texts) / share, read / share)


def _guessed(config: Config, corpus: Corpus, *, setting: str) -> Size | None:
    listed = list_files(corpus, setting=f"{setting}.paths")
    names = [url for url, _ in listed]
    kinds = dict(listed)
    if "dataset" in kinds.values():
        return None  # to look into it is to download it
    sized = hash_chosen(names, _FILES_SIZED, seed=config.seed, purpose="costs.sized")
    bytes_of = {url: _stored_bytes(url, kinds[url]) for url in sized}
    mean_bytes = fmean(bytes_of.values())
    num_read = max(_FILES_READ, min(_SMALL_FILES_READ, int(_SMALL_BYTES / max(1.0, mean_bytes))))
    read = hash_chosen(sized, num_read, seed=config.seed, purpose="costs.read")
    whole = corpus.model_copy(update={"limit": None})
    seen = {url: _seen(url, kinds[url], whole, bytes_of[url]) for url in read}
    rows, text_bytes, python_bytes = _of_all(listed, bytes_of, seen, corpus.limit)
    texts = [text for found in seen.values() for text in found.texts]
    if not texts:
        raise InputError(f"{setting}: no row of {', '.join(read)} can be used; see its paths and text_key")
    cutter = WindowCutter(embedders.tokenizer_file(config.embed), config.window.tokens)
    cut = cutter.cut(texts)
    a_byte = 1.0 / sum(len(text.encode()) for text in texts)
    parts = max(text_bytes / config.prepare.part_bytes, rows / config.prepare.part_documents, min(len(names), _SMALL_PARTS))
    return Size(
        files=len(names),
        documents=rows,
        text_bytes=text_bytes,
        tokens=text_bytes * a_byte * sum(tokens for windows in cut for _, tokens in windows),
        windows=text_bytes * a_byte * sum(map(len, cut)),
        parts=parts,
        python_bytes=python_bytes,
        rows_read=len(texts),
    )


def _of_all(
    listed: Sequence[tuple[str, Kind]], bytes_of: Mapping[str, float], seen: Mapping[str, _Seen], limit: int | None
) -> tuple[float, float, float]:
    """Rows, bytes of text, and bytes of Python to be parsed, of all files: from the sizes of some, and what was seen of a few."""
    seen_rows, seen_bytes = sum(found.rows for found in seen.values()), sum(bytes_of[url] for url in seen)
    most_bytes = float("inf")
    if limit is None:  # the rows of a file go with its size
        scale = fmean(bytes_of.values()) * len(listed) / seen_bytes if seen_bytes else len(listed) / len(seen)
        share = dict.fromkeys(seen, scale)
    else:  # they are bounded, and files so more alike than their sizes
        share = {url: len(listed) / len(seen) * min(1.0, limit / max(1.0, found.rows)) for url, found in seen.items()}
        most_bytes = limit * seen_bytes / max(1.0, seen_rows)
    packages = {url for url, kind in listed if kind == "pydocs"}
    return (
        sum(share[url] * found.rows for url, found in seen.items()),
        sum(share[url] * found.text_bytes for url, found in seen.items()),
        fmean(min(size, most_bytes) if url in packages else 0.0 for url, size in bytes_of.items()) * len(listed),
    )


def _stored_bytes(url: str, kind: Kind) -> float:
    if kind == "pydocs":
        return float(pydocs.source_bytes(url))
    with reading(url):
        fs, path = file_system(url)
        return float(fs.size(path) or 0)


def _seen(url: str, kind: Kind, corpus: Corpus, stored_bytes: float) -> _Seen:
    file = InputFile(number=0, url=url, kind=kind, digest="")
    if kind in _COUNTED:
        with reading(url):
            texts = list(_texts(file, corpus, _ROWS))
            return _Seen.of(texts, max(len(texts), 1) / max(_counted_rows(url, kind), 1))
    if kind == "pydocs" or stored_bytes <= _HEAD_BYTES:
        texts = list(_texts(file, corpus, None))
        return _Seen.of(texts, 1.0)
    with reading(url):
        fs, path = file_system(url)
        texts, share = [], 1.0
        for head_bytes in _HEADS_BYTES:  # more, where a line is longer
            head: bytes = fs.cat_file(path, 0, head_bytes)
            texts, read_bytes = _texts_of_head(head, os.path.basename(path), kind, corpus)
            share = min(1.0, read_bytes / stored_bytes)
            if texts or share == 1.0:
                break
    return _Seen.of(texts, share)


def _texts_of_head(head: bytes, name: str, kind: Kind, corpus: Corpus) -> tuple[list[str], int]:
    """The texts in the beginning of a file, and how many of its bytes they are."""
    read_bytes = len(head)
    if kind != "warc":
        head, read_bytes, name = _unpacked(head, name)
        head = head[: head.rfind(b"\n") + 1]
    texts: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, name)
        with open(local, "wb") as out:
            out.write(head)
        with suppress(InputError):  # its end is missing
            texts.extend(_texts(InputFile(number=0, url=local, kind=kind, digest=""), corpus, None))
    return texts, read_bytes


def _texts(file: InputFile, corpus: Corpus, most: int | None) -> Iterator[str]:
    rows = read_rows(file, corpus)
    return islice((row.document.text for row in rows if row.document), most)


def _counted_rows(url: str, kind: Kind) -> int:
    import pyarrow.dataset as ds

    fs, path = file_system(url)
    return int(ds.dataset(path, filesystem=fs, format=kind).count_rows())


def _unpacked(head: bytes, name: str) -> tuple[bytes, int, str]:
    """Some of what the beginning of a packed file holds, of how many bytes, and the name without the packing's ending."""
    kind = compression_of(name)
    if kind is None:
        return head, len(head), name
    raw, found = io.BytesIO(head), bytearray()
    stream = unpacked(raw, kind)
    with suppress(EOFError):  # its end is missing
        while len(found) < _UNPACKED_BYTES and (block := stream.read1(_BLOCK_BYTES)):
            found += block
    return bytes(found), raw.tell(), os.path.splitext(name)[0]
