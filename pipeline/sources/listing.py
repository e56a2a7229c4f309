"""Expands the paths of a corpus to its input files: globs, folders, URLs and `pydocs://`."""

import errno
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from pipeline.config import Corpus
from pipeline.errors import ConfigError, CrispwrapError, InputError, is_utf8, shown
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
    to folders are followed, also by globs; a folder that is reached twice by one path is listed once. Local files are returned as
    absolute paths.

    Args:
        setting: name of the setting in messages, such as `generalist.paths`.
        workdir: workdir of the run; it must not contain input files, lie in an input folder or in a folder of a dataset, or lie
            where a glob can match, whether or not anything there matches yet.

    Raises:
        InputError: nothing matches a path, an ending is unknown, a file is listed twice, a file name is not UTF-8, a file system is
            not available, a local folder cannot be listed, a folder holds a saved dataset, or input and workdir overlap.
        ConfigError: `reader` has settings that `load_from_disk` ignores.
    """
    found: dict[str, Kind] = {}
    origin: dict[str, str] = {}
    left_out: Counter[str] = Counter()
    read_as = READERS[corpus.reader["type"]] if corpus.reader else None
    if read_as == "dataset":
        _refuse_ignored_options(corpus.reader or {}, setting.removesuffix("paths") + "reader")
    for path in corpus.paths:
        if read_as == "dataset":
            listed = _Expanded([path], read_as)
            if workdir is not None and os.path.isdir(path):  # other names are those of the hub
                _refuse_overlap(path, [path], [path], setting, workdir)
        else:
            listed = _expand(path, setting, read_as, workdir)
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
        matches = _matches(fs, inner)
        named, folders = matches.files, matches.folders
        in_folders = list(walk_files(folders)) if is_local else [file for folder in folders for file in fs.find(folder)]
    except InputError as error:
        raise InputError(f"{setting}: {error}") from error
    except Exception as error:  # storage clients raise their own exception types
        raise InputError(f"{setting}: {path!r} cannot be listed: {said(error)}") from error
    if is_local and named:  # a link among the folders may lead back to the folder of the named files
        places = set(map(_place, named))
        in_folders = [file for file in in_folders if _place(file) not in places]
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
        searched = [(folder if is_local else fs.unstrip_protocol(folder), rest) for folder, rest in matches.searched]
        _refuse_reach(path, searched, setting, workdir)
    endings = Counter(os.path.splitext(file)[1].lower() for file in set(in_folders) - set(used))
    return _Expanded(urls, read_as, endings)


@dataclass(frozen=True)
class _Matches:
    """What a path names or matches, and the folders that its glob searches, each with the patterns below that folder."""

    files: Sequence[str]
    folders: Sequence[str]
    searched: Sequence[tuple[str, Sequence[str]]] = ()


def _matches(fs: fsspec.AbstractFileSystem, path: str) -> _Matches:
    if fs.isfile(path):  # before globbing: a file name may contain brackets
        return _Matches([path], [])
    if fs.isdir(path):
        return _Matches([], [path])
    root, patterns = _split_glob(path)
    if isinstance(fs, LocalFileSystem) and patterns:
        return _glob(root, patterns)
    kinds = {match: info.get("type") for match, info in fs.glob(path, detail=True).items()}
    folders = [match for match, kind in kinds.items() if kind == "directory"]
    files = [match for match in kinds if match not in folders]
    return _Matches(files, [] if "**" in patterns else folders, [(root, patterns)])


def _split_glob(path: str) -> tuple[str, list[str]]:
    """Return the folder before the first component of a path that has a wildcard, and the components from there on."""
    parts = path.split("/")
    first = next((i for i, part in enumerate(parts) if any(character in part for character in "*?[")), len(parts))
    return "/".join(parts[:first]) or "/", [part for part in parts[first:] if part]


def _glob(root: str, patterns: Sequence[str]) -> _Matches:
    """Match patterns, one for each level, below a local folder. Unlike fsspec's glob, links to folders are followed.

    Of the folders that are the same at one level, by links, only the first is searched, real folders before links.
    """
    searched: list[tuple[str, Sequence[str]]] = []
    files: list[str] = []
    folders = [root] if os.path.isdir(root) else []
    for level, pattern in enumerate(patterns):
        if pattern == "**":
            walked = list(_walk(folders))
            folders = [folder for folder, _ in walked]
            files = [file for _, of_folder in walked for file in of_folder]
        searched += [(folder, patterns[level:]) for folder in folders]
        if pattern != "**":
            wanted = re.compile(glob_translate(pattern))
            inside = [_entries(folder) for folder in folders]
            files = [path for _, of_folder in inside for path in of_folder if wanted.match(os.path.basename(path))]
            matched = (path for below, _ in inside for path in below if wanted.match(os.path.basename(path)))
            once = {os.path.realpath(path): path for path in sorted(matched, key=_real_first, reverse=True)}
            folders = sorted(once.values())
    return _Matches(files, [] if "**" in patterns else folders, searched)


def walk_files(folders: Iterable[str]) -> Iterator[str]:
    """Yield the files below local folders, following links to folders; a folder that is reached twice is walked once.

    Raises:
        InputError: a folder cannot be listed.
    """
    for _, files in _walk(folders):
        yield from files


def _walk(folders: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each local folder at or below `folders`, with the paths of its files in the order of their names."""
    seen: set[str] = set()
    pending = sorted(folders, key=_real_first, reverse=True)
    while pending:
        folder = pending.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        below, files = _entries(folder)
        yield folder, files
        pending += sorted(below, key=_real_first, reverse=True)


def _real_first(folder: str) -> tuple[bool, str]:
    """Sort real folders before links to them, so that a file is listed under its real path."""
    return os.path.islink(folder), folder


def _entries(folder: str) -> tuple[list[str], list[str]]:
    """Return the paths of the folders in a local folder, links to folders included, and those of its files, each sorted.

    Raises:
        InputError: the folder cannot be listed.
    """
    below: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                (below if _is_folder(entry) else files).append(entry.path)
    except OSError as error:
        raise InputError(
            f"{error.filename or folder} cannot be listed: {said(error)}; make it readable, or choose paths that leave it out"
        ) from error
    return sorted(below), sorted(files)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself
            return False
        raise


def _place(file: str) -> str:
    """Return the path of a local file with the links to its folder resolved; the file itself may be a link."""
    folder, name = os.path.split(file)
    return os.path.join(os.path.realpath(folder), name)


def _refuse_ignored_options(reader: Mapping[str, Any], setting: str) -> None:
    """Reject settings of a dataset reader that have no effect.

    Raises:
        ConfigError: `load_from_disk` ignores a setting.
    """
    if not reader.get("load_from_disk"):
        return
    ignored = [f"dataset_options.{name}" for name in reader.get("dataset_options") or {} if name != "split"]
    if reader.get("streaming"):
        ignored.append("streaming")
    if ignored:
        raise ConfigError(f"{setting}: load_from_disk ignores {', '.join(ignored)}; leave it out, or leave out load_from_disk")


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


def _refuse_reach(path: str, searched: Iterable[tuple[str, Sequence[str]]], setting: str, workdir: str) -> None:
    """Reject a workdir where a glob can match: a later run would read what the first writes there.

    Raises:
        InputError: the patterns below a searched folder match the components of the workdir's path, as far as both go.
    """
    work = _real(workdir)
    for folder, patterns in searched:
        if not _is_inside(work, real := _real(folder)):
            continue
        below = [part for part in work[len(real.rstrip("/")) :].split("/") if part]
        until = patterns.index("**") if "**" in patterns else len(patterns)
        if all(re.match(glob_translate(pattern), part) for pattern, part in zip(patterns[:until], below, strict=False)):
            raise InputError(
                f"{setting}: {path!r} can match files in workdir {workdir}, where the run writes; choose a workdir outside of "
                f"{folder}, or a glob that does not reach it"
            )


def _real(url: str) -> str:
    fs, path = file_system(url)
    return os.path.realpath(path) if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(path).rstrip("/")


def _is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _ending(name: str) -> str:
    """Return the longest known ending of a name; empty if it has none."""
    return next((ending for ending in _LONGEST_FIRST if name.lower().endswith(ending)), "")


_LONGEST_FIRST = sorted(_ENDINGS, key=len, reverse=True)
