"""Which files a corpus is, and what identifies their content."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline import pydocs
from pipeline.config import Corpus
from pipeline.errors import CrispwrapError, InputError
from pipeline.sources import Kind
from pipeline.storage import S3_EXTRA, said

_COMPRESSIONS = ("", ".gz", ".zst")
_ENDINGS: dict[str, Kind] = {
    **{f"{ending}{packed}": "jsonl" for ending in (".jsonl", ".ndjson", ".json") for packed in _COMPRESSIONS},
    ".parquet": "parquet",
    **{f".csv{packed}": "csv" for packed in _COMPRESSIONS},
    **{f"{ending}{packed}": "warc" for ending in (".warc", ".wet") for packed in _COMPRESSIONS},
    **dict.fromkeys((".arrow", ".ipc", ".feather"), "ipc"),
}
# What `reader` may name: ours are datatrove's of the same names, made strict.
READERS: dict[str, Kind] = {
    "JsonlReader": "jsonl",
    "ParquetReader": "parquet",
    "CsvReader": "csv",
    "CSVReader": "csv",
    "IpcReader": "ipc",
    "WarcReader": "warc",
    "HuggingFaceDatasetReader": "dataset",
}
# What stores say about content, best first; S3, Google, Azure, Hugging Face and HTTP spell it differently.
_CHECKSUMS = ("sha256", "md5hash", "content_md5", "crc32c", "etag", "blob_id", "checksum")
_VERSIONS = ("generation", "versionid", "version_id", "mtime", "lastmodified", "last_modified", "updated", "created")


def list_files(corpus: Corpus, *, setting: str = "paths") -> list[tuple[str, Kind]]:
    """The URL and kind of every file of the corpus: paths in the order given, the files of each path sorted.

    A path is a file, a glob, a folder (its files with a known ending, at any depth), any of these at an fsspec URL, or
    `pydocs://` (see `pipeline.pydocs`). Local files come back as absolute paths.

    Args:
        setting: how messages call the setting, such as `generalist.paths`.

    Raises:
        InputError: nothing matches a path, an ending is unknown, a file comes twice, or a file system is not available.
    """
    found: dict[str, Kind] = {}
    origin: dict[str, str] = {}
    read_as = READERS[corpus.reader["type"]] if corpus.reader else None
    for path in corpus.paths:
        for url, kind in [(path, read_as)] if read_as == "dataset" else _expand(path, setting, read_as):
            if url in found:
                raise InputError(f"{setting}: {url} comes twice, by {origin[url]!r} and {path!r}; leave one of them out")
            found[url], origin[url] = kind, path
    return list(found.items())


def digest(url: str, kind: str) -> str:
    """The identity of a file's content, never of its path.

    A local file: SHA-256 of its bytes. A remote one: its size with the store's checksum, else its version or time of change,
    else SHA-256 of its bytes. `pydocs`: the distribution's name, version and SHA-256 of its RECORD.

    Raises:
        InputError: the file is not there, or may not be read.
    """
    if kind == "pydocs":
        return pydocs.digest(url)
    if kind == "dataset":
        from pipeline.sources.datasets import digest as digest_dataset

        return digest_dataset(url)
    with reading(url):
        fs, path = fsspec.core.url_to_fs(url)
        if not isinstance(fs, LocalFileSystem):
            info = {str(key).lower(): value for key, value in fs.info(path).items()}
            for key in (*_CHECKSUMS, *_VERSIONS):
                if info.get(key):
                    return f"{key}:{str(info[key]).strip(chr(34))} size:{info.get('size')}"
        with fs.open(path, "rb") as file:
            sha256 = hashlib.sha256()
            while block := file.read(1 << 20):
                sha256.update(block)
            return f"sha256:{sha256.hexdigest()}"


@contextmanager
def reading(url: str) -> Iterator[None]:
    """What cannot be read is said of the file.

    Raises:
        InputError: for anything but what is one of our errors already.
    """
    try:
        yield
    except CrispwrapError:
        raise
    except Exception as error:  # clients of stores, and what unpacks, have errors of their own
        raise InputError(f"cannot read {url}: {said(error)}; mend it, or leave it out of paths") from error


def base_name(url: str) -> str:
    """The file's name without folder and endings: the `source` of rows that name none."""
    name = url.rstrip("/").rsplit("/", 1)[-1]
    ending = _ending(name)
    return name.removesuffix(ending) or name


def _expand(path: str, setting: str, read_as: Kind | None) -> list[tuple[str, Kind]]:
    if path.startswith(pydocs.SCHEME):
        return [(url, "pydocs") for url in pydocs.expand(path, setting=setting)]
    try:
        fs, inner = fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise InputError(f"{setting}: {path!r} cannot be opened: {error} (s3://: {S3_EXTRA})") from error
    try:
        matches, explicit = _matches(fs, inner, any_ending=read_as is not None)
    except Exception as error:  # clients of stores have errors of their own
        raise InputError(f"{setting}: {path!r} cannot be listed: {said(error)}") from error
    if not matches:
        where = f" (looked in {os.getcwd()})" if isinstance(fs, LocalFileSystem) and not os.path.isabs(path) else ""
        raise InputError(f"{setting}: no file matches {path!r}{where}; known endings are {', '.join(_ENDINGS)}")
    for match in matches:
        if explicit and not _ending(match) and not read_as:
            raise InputError(
                f"{setting}: {match} has an unknown ending; known are {', '.join(_ENDINGS)}: rename it, narrow {path!r}, or name a "
                "reader"
            )
    is_local = isinstance(fs, LocalFileSystem)
    return [(match if is_local else fs.unstrip_protocol(match), read_as or _ENDINGS[_ending(match)]) for match in sorted(matches)]


def _matches(fs: fsspec.AbstractFileSystem, path: str, *, any_ending: bool) -> tuple[list[str], bool]:
    """The files of a path, and whether it names them itself."""
    if fs.isfile(path):  # first, as a file may have brackets in its name
        return [path], True
    if fs.isdir(path):
        return [match for match in fs.find(path) if any_ending or _ending(match)], False
    return [match for match, info in fs.glob(path, detail=True).items() if info.get("type") != "directory"], True


def _ending(name: str) -> str:
    """The known ending of a name, longest first; empty where there is none."""
    return next((ending for ending in sorted(_ENDINGS, key=len, reverse=True) if name.lower().endswith(ending)), "")
