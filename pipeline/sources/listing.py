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
from pipeline.errors import ConfigError, CrispwrapError, InputError, is_utf8, replace_controls
from pipeline.sources import FileKind, pydocs
from pipeline.sources.streams import COMPRESSIONS
from pipeline.storage import S3_EXTRA, describe_error

_COMPRESSION_ENDINGS = ("", *COMPRESSIONS)
_ENDINGS: dict[str, FileKind] = {
    **{
        f"{ending}{compressed}": "jsonl"
        for ending in (".jsonl", ".jsonlines", ".ndjson", ".json")
        for compressed in _COMPRESSION_ENDINGS
    },
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **{f".csv{compressed}": "csv" for compressed in _COMPRESSION_ENDINGS},
    **{f"{ending}{compressed}": "warc" for ending in (".warc", ".wet") for compressed in _COMPRESSION_ENDINGS},
    **dict.fromkeys((".arrow", ".ipc", ".feather"), "ipc"),
}
_KNOWN_ENDINGS = (
    f".jsonl, .jsonlines, .ndjson, .json, .csv, .warc and .wet, each also with {', '.join(COMPRESSIONS)}; "
    ".parquet, .pq, .arrow, .ipc, .feather"
)
_MAX_LISTED_ENDINGS = 8  # endings of ignored files that a message lists
# Files that `save_to_disk` of the library `datasets` writes next to the data.
_SAVED_DATASET_FILES = ("state.json", "dataset_dict.json")
# Readers that `reader.type` may name; ours are strict versions of datatrove's readers of the same names.
READERS: dict[str, FileKind] = {
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

    files: Sequence[tuple[str, FileKind]]
    ignored: Mapping[str, int]

    def describe_ignored(self, setting: str) -> str:
        """Return one line about the ignored files for the user; empty if there are none."""
        if not self.ignored:
            return ""
        ranked = sorted(self.ignored.items(), key=lambda item: (-item[1], item[0]))
        listed = ", ".join(f"{replace_controls(ending) or '(none)'} {count:,}" for ending, count in ranked[:_MAX_LISTED_ENDINGS])
        more = f" and {len(ranked) - _MAX_LISTED_ENDINGS} other endings" if len(ranked) > _MAX_LISTED_ENDINGS else ""
        num_files = sum(self.ignored.values())
        return f"{setting}: ignored {num_files:,} files with unknown endings ({listed}{more}); supported: {_KNOWN_ENDINGS}"


def list_files(corpus: Corpus, *, setting: str = "paths") -> list[tuple[str, FileKind]]:
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
    found: dict[str, FileKind] = {}
    origin: dict[str, str] = {}
    ignored: Counter[str] = Counter()
    reader_kind = READERS[corpus.reader["type"]] if corpus.reader else None
    if reader_kind == "dataset":
        _reject_ignored_options(corpus.reader or {}, setting.removesuffix("paths") + "reader")
    for path in corpus.paths:
        if reader_kind == "dataset":
            listed = _ExpandedPath([path], reader_kind)
            if workdir is not None and os.path.isdir(path):  # other names are those of the hub
                _reject_overlap(path, [path], [path], setting, workdir)
        else:
            listed = _expand_path(path, setting, reader_kind, workdir)
        ignored.update(listed.ignored)
        for url in listed.files:
            if url in found:
                raise InputError(f"{setting}: {url} is matched by both {origin[url]!r} and {path!r}; remove one of them")
            if not is_utf8(url):  # the name is written to manifests and tables, also as the source of its rows
                raise InputError(f"{setting}: {url!r}, which matches {path!r}, has a name that is not UTF-8; rename it")
            found[url], origin[url] = listed.kind_of(url), path
    return Listing(list(found.items()), ignored)


def url_to_fs(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a URL and the path in it. Anything without `://` is a local path, whatever its name contains."""
    return fsspec.core.url_to_fs(url) if "://" in url else (LocalFileSystem(), LocalFileSystem._strip_protocol(url))


@contextmanager
def convert_read_errors(url: str) -> Iterator[None]:
    """Convert exceptions raised while the file at `url` is read to an `InputError` that names it.

    Raises:
        InputError: for any exception that is not a `CrispwrapError` already.
    """
    try:
        yield
    except CrispwrapError:
        raise
    except Exception as error:  # storage clients and decompressors raise their own exception types
        raise InputError(f"cannot read {url}: {describe_error(error)}; repair it, or remove it from paths") from error


def base_name(url: str) -> str:
    """Return the file's name without folder and known ending: the `source` of rows that have none."""
    name = url.rstrip("/").rsplit("/", 1)[-1]
    ending = _known_ending(name)
    return name.removesuffix(ending) or name


@dataclass(frozen=True)
class _ExpandedPath:
    """The files of one path, and the number of ignored files in its folders by ending."""

    files: Sequence[str]
    reader_kind: FileKind | None
    ignored: Mapping[str, int] = field(default_factory=dict)

    def kind_of(self, url: str) -> FileKind:
        if url.startswith(pydocs.SCHEME):
            return "pydocs"
        return self.reader_kind or _ENDINGS[_known_ending(url)]


def _expand_path(path: str, setting: str, reader_kind: FileKind | None, workdir: str | None) -> _ExpandedPath:
    if path.startswith(pydocs.SCHEME):
        return _ExpandedPath(list(pydocs.expand(path, setting=setting)), None)
    try:
        fs, inner = url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise InputError(f"{setting}: {path!r} cannot be opened: {error} (s3://: {S3_EXTRA})") from error
    is_local = isinstance(fs, LocalFileSystem)
    try:
        matches = _match_path(fs, inner)
        named, folders = matches.files, matches.folders
        in_folders = list(walk_files(folders)) if is_local else [file for folder in folders for file in fs.find(folder)]
    except InputError as error:
        raise InputError(f"{setting}: {error}") from error
    except Exception as error:  # storage clients raise their own exception types
        raise InputError(f"{setting}: {path!r} cannot be listed: {describe_error(error)}") from error
    if is_local and named:  # a link in the folders may point back to the folder of the named files
        named_paths = set(map(_resolve_folder, named))
        in_folders = [file for file in in_folders if _resolve_folder(file) not in named_paths]
    for match in named:
        if not _known_ending(match) and not reader_kind:
            raise InputError(
                f"{setting}: {match} has an unknown ending (supported: {_KNOWN_ENDINGS}); rename it, narrow {path!r}, or set reader"
            )
    _reject_saved_datasets(in_folders, setting)
    used = [file for file in in_folders if reader_kind or _known_ending(file)]
    files = sorted({*named, *used})
    if not files:
        where = f" (looked in {os.getcwd()})" if is_local and not os.path.isabs(path) else ""
        others = f"; {len(in_folders):,} files have unknown endings" if in_folders else ""
        raise InputError(f"{setting}: no file matches {path!r}{where}{others}; supported endings: {_KNOWN_ENDINGS}")
    urls = [match if is_local else fs.unstrip_protocol(match) for match in files]
    roots = folders if is_local else [fs.unstrip_protocol(folder) for folder in folders]
    if workdir is not None:
        _reject_overlap(path, roots, urls, setting, workdir)
        searched = [(folder if is_local else fs.unstrip_protocol(folder), rest) for folder, rest in matches.searched]
        _reject_reachable_workdir(path, searched, setting, workdir)
    endings = Counter(os.path.splitext(file)[1].lower() for file in set(in_folders) - set(used))
    return _ExpandedPath(urls, reader_kind, endings)


@dataclass(frozen=True)
class _Matches:
    """What a path names or matches, and the folders that its glob searches, each with the patterns below that folder."""

    files: Sequence[str]
    folders: Sequence[str]
    searched: Sequence[tuple[str, Sequence[str]]] = ()


def _match_path(fs: fsspec.AbstractFileSystem, path: str) -> _Matches:
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

    If several folders at one level are the same through links, only the first is searched; real folders come before links.
    """
    searched: list[tuple[str, Sequence[str]]] = []
    files: list[str] = []
    folders = [root] if os.path.isdir(root) else []
    for level, pattern in enumerate(patterns):
        if pattern == "**":
            walked = list(_walk_folders(folders))
            folders = [folder for folder, _ in walked]
            files = [file for _, of_folder in walked for file in of_folder]
        searched += [(folder, patterns[level:]) for folder in folders]
        if pattern != "**":
            name_pattern = re.compile(glob_translate(pattern))
            inside = [_list_folder(folder) for folder in folders]
            files = [path for _, of_folder in inside for path in of_folder if name_pattern.match(os.path.basename(path))]
            matched = (path for below, _ in inside for path in below if name_pattern.match(os.path.basename(path)))
            once = {os.path.realpath(path): path for path in sorted(matched, key=_links_last, reverse=True)}
            folders = sorted(once.values())
    return _Matches(files, [] if "**" in patterns else folders, searched)


def walk_files(folders: Iterable[str]) -> Iterator[str]:
    """Yield the files below local folders, following links to folders; a folder that is reached twice is walked once.

    Raises:
        InputError: a folder cannot be listed.
    """
    for _, files in _walk_folders(folders):
        yield from files


def _walk_folders(folders: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each local folder at or below `folders`, with the paths of its files in the order of their names."""
    seen: set[str] = set()
    pending = sorted(folders, key=_links_last, reverse=True)
    while pending:
        folder = pending.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        below, files = _list_folder(folder)
        yield folder, files
        pending += sorted(below, key=_links_last, reverse=True)


def _links_last(folder: str) -> tuple[bool, str]:
    """Sort real folders before links to them, so that a file is listed under its real path."""
    return os.path.islink(folder), folder


def _list_folder(folder: str) -> tuple[list[str], list[str]]:
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
            f"{error.filename or folder} cannot be listed: {describe_error(error)}; "
            "make it readable, or choose paths that exclude it"
        ) from error
    return sorted(below), sorted(files)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself
            return False
        raise


def _resolve_folder(file: str) -> str:
    """Return the path of a local file with the links to its folder resolved; the file itself may be a link."""
    folder, name = os.path.split(file)
    return os.path.join(os.path.realpath(folder), name)


def _reject_ignored_options(reader: Mapping[str, Any], setting: str) -> None:
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
        raise ConfigError(f"{setting}: load_from_disk ignores {', '.join(ignored)}; remove these settings or load_from_disk")


def _reject_saved_datasets(files: Sequence[str], setting: str) -> None:
    saved = next((file for file in files if file.rpartition("/")[2] in _SAVED_DATASET_FILES), None)
    if saved is not None:
        folder = saved.rpartition("/")[0]
        raise InputError(
            f"{setting}: {folder} is a dataset saved with `save_to_disk` of the datasets library; name it in paths and set "
            "reader: {type: HuggingFaceDatasetReader, load_from_disk: true}"
        )


def _reject_overlap(path: str, folders: Sequence[str], files: Sequence[str], setting: str, workdir: str) -> None:
    """Reject input files in the workdir and a workdir in an input folder: a second run would read the output of the first.

    Raises:
        InputError: input and workdir overlap.
    """
    workdir_path = _canonical_path(workdir)
    if parent := next((folder for folder in folders if _is_inside(workdir_path, _canonical_path(folder))), None):
        raise InputError(f"{setting}: workdir {workdir} lies in {parent}, which {path!r} reads; choose a workdir outside of it")
    if file := next((file for file in files if _is_inside(_canonical_path(file), workdir_path)), None):
        raise InputError(f"{setting}: {file} lies in workdir {workdir}, where the run writes; choose another workdir")


def _reject_reachable_workdir(path: str, searched: Iterable[tuple[str, Sequence[str]]], setting: str, workdir: str) -> None:
    """Reject a workdir where a glob can match: a later run would read what the first writes there.

    Raises:
        InputError: the patterns below a searched folder match the components of the workdir's path, as far as both go.
    """
    workdir_path = _canonical_path(workdir)
    for folder, patterns in searched:
        if not _is_inside(workdir_path, real := _canonical_path(folder)):
            continue
        below = [part for part in workdir_path[len(real.rstrip("/")) :].split("/") if part]
        until = patterns.index("**") if "**" in patterns else len(patterns)
        if all(re.match(glob_translate(pattern), part) for pattern, part in zip(patterns[:until], below, strict=False)):
            raise InputError(
                f"{setting}: {path!r} can match files in workdir {workdir}, where the run writes; choose a workdir outside of "
                f"{folder}, or a glob that does not reach it"
            )


def _canonical_path(url: str) -> str:
    fs, path = url_to_fs(url)
    return os.path.realpath(path) if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(path).rstrip("/")


def _is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _known_ending(name: str) -> str:
    """Return the longest known ending of a name; empty if it has none."""
    return next((ending for ending in _ENDINGS_LONGEST_FIRST if name.lower().endswith(ending)), "")


_ENDINGS_LONGEST_FIRST = sorted(_ENDINGS, key=len, reverse=True)
