"""Expands the paths of a corpus to its input files: globs, folders, URLs and `pydocs://`."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from pipeline.config import Corpus
from pipeline.errors import CrispwrapError, InputError, is_utf8, shown
from pipeline.sources import Kind, pydocs
from pipeline.sources.streams import COMPRESSIONS
from pipeline.storage import S3_EXTRA, said

_PACKED = ("", *COMPRESSIONS)
_ENDINGS: dict[str, Kind] = {
    **{f"{ending}{packed}": "jsonl" for ending in (".jsonl", ".jsonlines", ".ndjson", ".json") for packed in _PACKED},
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **{f".csv{packed}": "csv" for packed in _PACKED},
    **{f"{ending}{packed}": "warc" for ending in (".warc", ".wet") for packed in _PACKED},
    **dict.fromkeys((".arrow", ".ipc", ".feather"), "ipc"),
}
_KNOWN = (
    f".jsonl, .jsonlines, .ndjson, .json, .csv, .warc and .wet, each also with {', '.join(COMPRESSIONS)}; "
    ".parquet, .pq, .arrow, .ipc, .feather"
)
_NAMED_ENDINGS = 8  # endings of ignored files that a message lists
# Files that `save_to_disk` of the library `datasets` writes next to the data.
_SAVED = ("state.json", "dataset_dict.json")
# Readers that `reader.type` may name; ours are strict versions of datatrove's readers of the same names.
READERS: dict[str, Kind] = {
    "JsonlReader": "jsonl",
    "ParquetReader": "parquet",
    "CsvReader": "csv",
    "CSVReader": "csv",
    "IpcReader": "ipc",
    "WarcReader": "warc",
    "HuggingFaceDatasetReader": "dataset",
}


@dataclass(frozen=True)
class Listing:
    """The files of a corpus as (URL, kind), and the number of ignored files in its folders by their ending."""

    files: Sequence[tuple[str, Kind]]
    left_out: Mapping[str, int]

    def describe_left_out(self, setting: str) -> str:
        """Return one line about the ignored files for the user; empty if there are none."""
        if not self.left_out:
            return ""
        ranked = sorted(self.left_out.items(), key=lambda item: (-item[1], item[0]))
        listed = ", ".join(f"{shown(ending) or '(none)'} {count:,}" for ending, count in ranked[:_NAMED_ENDINGS])
        more = f" and {len(ranked) - _NAMED_ENDINGS} other endings" if len(ranked) > _NAMED_ENDINGS else ""
        return f"{setting}: {sum(self.left_out.values()):,} files are no input by their endings ({listed}{more}); read are {_KNOWN}"


def list_files(corpus: Corpus, *, setting: str = "paths") -> list[tuple[str, Kind]]:
    """Return the files of `list_corpus`."""
    return list(list_corpus(corpus, setting=setting).files)


def list_corpus(corpus: Corpus, *, setting: str = "paths", workdir: str | None = None) -> Listing:
    """List the URL and kind of every file of the corpus: paths in the order given, the files of each path sorted.

    A path is a file, a glob, a folder (its files with a known ending, at any depth), any of these at an fsspec URL, or
    `pydocs://` (see `pipeline.sources.pydocs`). If a glob without `**` matches a folder, the files of that folder are listed. Links
    to folders are followed; a folder that is reached twice is listed once. Local files are returned as absolute paths.

    Args:
        setting: name of the setting in messages, such as `generalist.paths`.
        workdir: workdir of the run; it must not contain input files or lie in an input folder.

    Raises:
        InputError: nothing matches a path, an ending is unknown, a file is listed twice, a file name is not UTF-8, a file system is
            not available, a folder holds a saved dataset, or input and workdir overlap.
    """
    found: dict[str, Kind] = {}
    origin: dict[str, str] = {}
    left_out: Counter[str] = Counter()
    read_as = READERS[corpus.reader["type"]] if corpus.reader else None
    for path in corpus.paths:
        listed = _Expanded([path], read_as) if read_as == "dataset" else _expand(path, setting, read_as, workdir)
        left_out.update(listed.left_out)
        for url in listed.files:
            if url in found:
                raise InputError(f"{setting}: {url} comes twice, by {origin[url]!r} and {path!r}; leave one of them out")
            if not is_utf8(url):  # the name is written to manifests and tables, also as the source of its rows
                raise InputError(f"{setting}: {url!r}, which matches {path!r}, has a name that is not UTF-8; rename it")
            found[url], origin[url] = listed.kind_of(url), path
    return Listing(list(found.items()), left_out)


def file_system(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a URL and the path in it. Anything without `://` is a local path, whatever its name contains."""
    return fsspec.core.url_to_fs(url) if "://" in url else (LocalFileSystem(), LocalFileSystem._strip_protocol(url))


@contextmanager
def reading(url: str) -> Iterator[None]:
    """Turn exceptions raised while the file at `url` is read into an `InputError` that names it.

    Raises:
        InputError: for any exception that is not a `CrispwrapError` already.
    """
    try:
        yield
    except CrispwrapError:
        raise
    except Exception as error:  # storage clients and decompressors raise their own exception types
        raise InputError(f"cannot read {url}: {said(error)}; mend it, or leave it out of paths") from error


def base_name(url: str) -> str:
    """Return the file's name without folder and known ending: the `source` of rows that have none."""
    name = url.rstrip("/").rsplit("/", 1)[-1]
    ending = _ending(name)
    return name.removesuffix(ending) or name


@dataclass(frozen=True)
class _Expanded:
    """The files of one path, and the number of ignored files in its folders by ending."""

    files: Sequence[str]
    read_as: Kind | None
    left_out: Mapping[str, int] = field(default_factory=dict)

    def kind_of(self, url: str) -> Kind:
        if url.startswith(pydocs.SCHEME):
            return "pydocs"
        return self.read_as or _ENDINGS[_ending(url)]


def _expand(path: str, setting: str, read_as: Kind | None, workdir: str | None) -> _Expanded:
    if path.startswith(pydocs.SCHEME):
        return _Expanded(list(pydocs.expand(path, setting=setting)), None)
    try:
        fs, inner = file_system(path)
    except (ImportError, ValueError) as error:
        raise InputError(f"{setting}: {path!r} cannot be opened: {error} (s3://: {S3_EXTRA})") from error
    is_local = isinstance(fs, LocalFileSystem)
    try:
        named, folders = _matches(fs, inner)
        in_folders = [file for folder in folders for file in (walk_files(folder) if is_local else fs.find(folder))]
    except Exception as error:  # storage clients raise their own exception types
        raise InputError(f"{setting}: {path!r} cannot be listed: {said(error)}") from error
    for match in named:
        if not _ending(match) and not read_as:
            raise InputError(
                f"{setting}: {match} has an unknown ending; read are {_KNOWN}: rename it, narrow {path!r}, or name a reader"
            )
    _refuse_saved_datasets(in_folders, setting)
    used = [file for file in in_folders if read_as or _ending(file)]
    files = sorted({*named, *used})
    if not files:
        where = f" (looked in {os.getcwd()})" if is_local and not os.path.isabs(path) else ""
        others = f", and none of the {len(in_folders):,} files in there has a known ending" if in_folders else ""
        raise InputError(f"{setting}: no file matches {path!r}{where}{others}; read are {_KNOWN}")
    urls = [match if is_local else fs.unstrip_protocol(match) for match in files]
    roots = folders if is_local else [fs.unstrip_protocol(folder) for folder in folders]
    if workdir is not None:
        _refuse_overlap(path, roots, urls, setting, workdir)
    endings = Counter(os.path.splitext(file)[1].lower() for file in set(in_folders) - set(used))
    return _Expanded(urls, read_as, endings)


def walk_files(folder: str) -> Iterator[str]:
    """Yield the files below a local folder, following links to folders; a folder that is reached twice is walked once."""
    seen: set[str] = set()
    for inside, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(inside)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        # Real folders before links to them, so that a file is listed under its real path.
        folders.sort(key=lambda name: (os.path.islink(os.path.join(inside, name)), name))
        yield from (os.path.join(inside, file) for file in sorted(files))


def _matches(fs: fsspec.AbstractFileSystem, path: str) -> tuple[list[str], list[str]]:
    """Return the files and the folders that a path names or matches."""
    if fs.isfile(path):  # before globbing: a file name may contain brackets
        return [path], []
    if fs.isdir(path):
        return [], [path]
    if isinstance(fs, LocalFileSystem) and "**" in path:
        # fsspec's own `**` does not follow links to folders.
        root = path[: path.index("**")].rpartition("/")[0] or "/"
        wanted = re.compile(glob_translate(path))
        roots = [root] if not any(character in root for character in "*?[") else [*fs.glob(root)]
        return sorted({file for folder in roots for file in walk_files(folder) if wanted.match(file)}), []
    kinds = {match: info.get("type") for match, info in fs.glob(path, detail=True).items()}
    folders = [match for match, kind in kinds.items() if kind == "directory" or (kind == "link" and fs.isdir(match))]
    return [match for match in kinds if match not in folders], [] if "**" in path else folders


def _refuse_saved_datasets(files: Sequence[str], setting: str) -> None:
    saved = next((file for file in files if file.rpartition("/")[2] in _SAVED), None)
    if saved is not None:
        folder = saved.rpartition("/")[0]
        raise InputError(
            f"{setting}: {folder} is a dataset that `save_to_disk` of the library datasets wrote; name it in paths with reader: "
            "{type: HuggingFaceDatasetReader, load_from_disk: true}"
        )


def _refuse_overlap(path: str, folders: Sequence[str], files: Sequence[str], setting: str, workdir: str) -> None:
    """Reject input files in the workdir and a workdir in an input folder: a second run would read the output of the first.

    Raises:
        InputError: input and workdir overlap.
    """
    work = _real(workdir)
    if holder := next((folder for folder in folders if _is_inside(work, _real(folder))), None):
        raise InputError(f"{setting}: workdir {workdir} lies in {holder}, which {path!r} reads; choose a workdir outside of it")
    if file := next((file for file in files if _is_inside(_real(file), work)), None):
        raise InputError(f"{setting}: {file} lies in workdir {workdir}, where the run writes; choose another workdir")


def _real(url: str) -> str:
    fs, path = file_system(url)
    return os.path.realpath(path) if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(path).rstrip("/")


def _is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _ending(name: str) -> str:
    """Return the longest known ending of a name; empty if it has none."""
    return next((ending for ending in _LONGEST_FIRST if name.lower().endswith(ending)), "")


_LONGEST_FIRST = sorted(_ENDINGS, key=len, reverse=True)
