"""Lists the input files of a corpus with a digest of each. The workdir caches digests by file size and modification time."""

import hashlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from pipeline.config import Corpus
from pipeline.sources import InputFile, pydocs
from pipeline.sources.listing import Listing, convert_read_errors, list_corpus, url_to_fs
from pipeline.storage import Folder

_DIGEST_THREADS = 8
_DIGEST_CACHE = "inputs.json"
# Keys of fsspec's `info` that identify content, best first; S3, Google, Azure, Hugging Face and HTTP use different names.
_CHECKSUM_KEYS = ("sha256", "md5hash", "content_md5", "crc32c", "etag", "blob_id", "checksum")
_VERSION_KEYS = ("generation", "versionid", "version_id", "mtime", "lastmodified", "last_modified", "updated", "created")


def list_input_files(settings: Corpus, workdir: Folder, *, setting: str) -> tuple[list[InputFile], dict[str, Any]]:
    """Return the files of a corpus with their digests, and the entries to cache with `cache_digests`.

    Raises:
        InputError: as `list_corpus` and `digest`.
    """
    return digest_files(list_corpus(settings, setting=setting, workdir=workdir.url), workdir)


def digest_files(listing: Listing, workdir: Folder) -> tuple[list[InputFile], dict[str, Any]]:
    cached = _load_cached_digests(workdir)

    def resolve(entry: tuple[str, str]) -> tuple[str, str, str]:
        url, kind = entry
        stamp = _size_and_mtime(url)
        if stamp and url in cached and cached[url]["stamp"] == stamp:
            return url, stamp, cached[url]["digest"]
        return url, stamp, digest(url, kind)

    with ThreadPoolExecutor(_DIGEST_THREADS) as pool:
        resolved = list(pool.map(resolve, listing.files))
    entries = {url: {"stamp": stamp, "digest": value} for url, stamp, value in resolved if stamp}
    files = [
        InputFile(number=number, url=url, kind=kind, digest=value)
        for number, ((_, kind), (url, _, value)) in enumerate(zip(listing.files, resolved, strict=True))
    ]
    return files, entries


def _load_cached_digests(workdir: Folder) -> dict[str, dict[str, str]]:
    """Return the entries cached by `cache_digests`. Those in another format are ignored; the digests are then computed again."""
    entries = workdir.read_json(_DIGEST_CACHE) or {}
    return {url: entry for url, entry in entries.items() if isinstance(entry, dict) and entry.keys() == {"stamp", "digest"}}


def cache_digests(workdir: Folder, stamps: dict[str, Any]) -> None:
    """Cache the digests of files by size and modification time."""
    cached = _load_cached_digests(workdir)
    if any(cached.get(url) != stamp for url, stamp in stamps.items()):
        workdir.write_json(_DIGEST_CACHE, {**cached, **stamps})


def _size_and_mtime(url: str) -> str:
    """Return the size and modification time of a local file; empty for anything else, whose digest is not cached.

    Folders are not cached: a folder's own modification time does not change with the files below it.
    """
    try:
        status = os.stat(url)
    except (OSError, ValueError):
        return ""
    if stat.S_ISDIR(status.st_mode):
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}"


def digest(url: str, kind: str) -> str:
    """Return the digest of a file's content, which does not depend on its path.

    Local file: SHA-256 of its bytes. Remote file: its size with the store's checksum, else with its version or modification time;
    if the store reports none of these, SHA-256 of its bytes. `pydocs`: the distribution's name, version and SHA-256 of its RECORD.
    `dataset`: see `pipeline.sources.datasets.digest`.

    Raises:
        InputError: the file does not exist or cannot be read.
    """
    if kind == "pydocs":
        return pydocs.digest(url)
    if kind == "dataset":
        from pipeline.sources.datasets import digest as digest_dataset

        return digest_dataset(url)
    with convert_read_errors(url):
        fs, path = url_to_fs(url)
        if not isinstance(fs, LocalFileSystem):
            info = {str(key).lower(): value for key, value in fs.info(path).items()}
            for key in (*_CHECKSUM_KEYS, *_VERSION_KEYS):
                if info.get(key):
                    return f"{key}:{str(info[key]).strip(chr(34))} size:{info.get('size')}"
        with fs.open(path, "rb") as file:
            sha256 = hashlib.sha256()
            while block := file.read(1 << 20):
                sha256.update(block)
            return f"sha256:{sha256.hexdigest()}"
