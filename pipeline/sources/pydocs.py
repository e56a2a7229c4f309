"""The source `pydocs://`: docstrings of the installed Python packages and of the standard library, read without importing them.

    pydocs://                   everything
    pydocs://numpy,stdlib       only these
    pydocs://-torch,-numpy      all except these

A name is that of a distribution or of a module it installs (`sklearn`); case and the choice between `-`, `_` and `.` do not matter.
`stdlib` is the standard library. Each distribution is one input file. Excluded: tests, vendored copies, docstrings under 200
characters, repeats of a docstring within a distribution, and distributions without a RECORD (pip always writes one).
"""

import ast
import csv
import difflib
import functools
import hashlib
import importlib.metadata
import inspect
import os
import platform
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson

from pipeline.errors import InputError
from pipeline.sources import ALL_COLUMNS, EXCERPT_CHARACTERS, Document, MetadataColumns, Row, RowError, RowProblem, validate_text

SCHEME = "pydocs://"
STDLIB = "stdlib"
MIN_CHARACTERS = 200
_SKIPPED_FOLDERS = {
    *("test", "tests", "testing", "idle_test", "_vendor", "vendor", "vendored", "_vendored"),
    *("thirdparty_files", "site-packages", "__pycache__"),
}
_SKIPPED_FILES = re.compile(r"(conftest|test_.*|.*_test|__editable__.*)\.py")


@dataclass(frozen=True)
class _Package:
    """A distribution. `files` are its Python files as paths relative to `root`, sorted."""

    name: str
    root: str
    files: tuple[str, ...]
    digest: str

    @property
    def import_names(self) -> set[str]:
        return {file.split("/", 1)[0].removesuffix(".py") for file in self.files}


def expand(spec: str, *, setting: str = "paths") -> list[str]:
    """Expand a `pydocs://` specification to URLs `pydocs://<distribution>`, sorted.

    Raises:
        InputError: a named package is not installed (the message suggests the nearest name), or no package is left.
    """
    names = [name.strip() for name in spec.removeprefix(SCHEME).split(",") if name.strip()]
    requested = [_normalize(name) for name in names if not name.startswith("-")]
    excluded = {_normalize(name[1:]) for name in names if name.startswith("-")}
    packages = _list_installed().values()
    spellings = {package.name: {package.name, *map(_normalize, package.import_names)} for package in packages}
    spellings[STDLIB] = {STDLIB}  # a module such as `json` does not stand for the whole library
    known = set().union(*spellings.values())
    for name in requested:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else "`pip list` shows the installed packages"
            raise InputError(f"{setting}: {spec!r}: package {name!r} is not installed here, or has no Python files; {hint}")
    chosen = [
        name for name, spelling in spellings.items() if (not requested or spelling & set(requested)) and not spelling & excluded
    ]
    if not chosen:
        raise InputError(f"{setting}: {spec!r} excludes every package; exclude fewer")
    return [f"{SCHEME}{name}" for name in sorted(chosen)]


def digest(url: str) -> str:
    """Return a distribution's name, version and SHA-256 of its RECORD; for `stdlib`, Python's implementation and version.

    Raises:
        InputError: the distribution is not installed here.
    """
    return _find_package(url).digest


def count_source_bytes(url: str) -> int:
    """Return the total bytes of a distribution's Python files, all of which are parsed for docstrings.

    Raises:
        InputError: the distribution is not installed here.
    """
    package = _find_package(url)
    total = 0
    for file in package.files:
        with suppress(OSError):  # deleted after installation
            total += os.path.getsize(os.path.join(package.root, file))
    return total


def read_rows(url: str, columns: MetadataColumns = ALL_COLUMNS, *, sample: bool = False) -> Iterator[Row]:
    """Yield the docstrings of one distribution, file by file in sorted order, outer before inner.

    A document's id is its dotted name (with `#2`, `#3` if a name is repeated), its source is the top-level package, its metadata
    are `kind` (module, class, function), `file` (relative) and `line`. A file that is not valid Python is one bad row.

    Args:
        sample: visit files ordered by the hash of their paths, so that the first rows represent all files.

    Raises:
        InputError: the distribution is not installed here.
    """
    package = _find_package(url)
    files = sorted(package.files, key=lambda file: hashlib.sha256(file.encode()).digest()) if sample else package.files
    seen: set[bytes] = set()
    uses: dict[str, int] = {}
    row = -1
    for file in files:
        try:
            with open(os.path.join(package.root, file), "rb") as opened:
                docstrings = _extract_docstrings(opened.read(), file)
        except FileNotFoundError:
            continue  # deleted after installation, but still listed in RECORD
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            row += 1
            yield Row(row, None, RowProblem("not_python", f"{type(error).__name__}: {error}", file))
            continue
        for name, kind, line, text in docstrings:
            fingerprint = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
            if fingerprint in seen:
                continue
            seen.add(fingerprint)
            uses[name] = uses.get(name, 0) + 1
            identifier = name if uses[name] == 1 else f"{name}#{uses[name]}"
            row += 1
            yield _make_row(row, identifier, text, columns.select({"kind": kind, "file": file, "line": line}))


def _make_row(row: int, identifier: str, text: str, metadata: dict[str, Any]) -> Row:
    try:
        validate_text({"text": text}, "text")
        text.encode()
    except (RowError, UnicodeEncodeError) as error:
        excerpt = text[:EXCERPT_CHARACTERS].encode("utf-8", "replace").decode()
        if isinstance(error, RowError):
            return Row(row, None, RowProblem(error.reason, error.detail, excerpt, identifier))
        return Row(row, None, RowProblem("invalid_utf8", f"a lone surrogate at character {error.start}", excerpt, identifier))
    return Row(row, Document(identifier, text, identifier.split(".", 1)[0], orjson.dumps(metadata).decode()), None)


def _extract_docstrings(source: bytes, file: str) -> list[tuple[str, str, int, str]]:
    """Return (dotted name, kind, line, cleaned text) of the docstrings in a file.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: the running Python cannot parse the file.
    """
    if len(source) < MIN_CHARACTERS or (b'"""' not in source and b"'''" not in source):
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SyntaxWarning: invalid escapes in other people's strings
        tree = ast.parse(source)
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    found = []
    pending: list[tuple[ast.AST, str]] = [(tree, module)]
    while pending:
        node, name = pending.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            raw = ast.get_docstring(node, clean=False)
            text = inspect.cleandoc(raw) if raw and len(raw) >= MIN_CHARACTERS else ""
            if len(text) >= MIN_CHARACTERS:
                kind = {ast.Module: "module", ast.ClassDef: "class"}.get(type(node), "function")
                found.append((name, kind, node.body[0].lineno, text))
        inner = []
        for block in ("body", "handlers", "orelse", "finalbody"):  # statements only: expressions contain no definitions
            for child in getattr(node, block, ()):
                if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    inner.append((child, f"{name}.{child.name}"))
                elif hasattr(child, "body"):
                    inner.append((child, name))
        pending += reversed(inner)
    return found


def _find_package(url: str) -> _Package:
    name = url.removeprefix(SCHEME)
    if name == STDLIB:
        return _load_standard_library()
    package = _list_installed().get(name)
    if package is None:
        raise InputError(
            f"{url}: the package is not installed on {platform.node()}; install the same packages on all machines of a run"
        )
    return package


def _list_installed() -> dict[str, _Package]:
    """The installed packages that have Python files, by name."""
    folders = [path or "." for path in sys.path]
    return _list_packages(tuple((path, os.stat(path).st_mtime_ns) for path in folders if os.path.exists(path)))


@functools.lru_cache(maxsize=1)  # parsing the records of hundreds of packages takes half a second
def _list_packages(_search_path: tuple[tuple[str, int], ...]) -> dict[str, _Package]:
    packages: dict[str, _Package] = {}
    for distribution in importlib.metadata.distributions():
        package = _load_package(distribution)
        if package is not None:
            packages.setdefault(package.name, package)  # an import finds the first one on the path
    return packages


def _load_package(distribution: importlib.metadata.Distribution) -> _Package | None:
    record = distribution.read_text("RECORD")
    if record is None:
        return None
    files = tuple(sorted({fields[0] for fields in csv.reader(record.splitlines()) if fields and _is_wanted(fields[0])}))
    if not files:
        return None
    metadata = distribution.metadata  # parsed anew at each access
    name = _normalize(metadata["Name"])
    identity = f"{name}=={metadata['Version']} record:{hashlib.sha256(record.encode()).hexdigest()}"
    return _Package(name, str(distribution.locate_file("")), files, identity)


def _load_standard_library() -> _Package:
    root = sysconfig.get_paths()["stdlib"]
    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED_FOLDERS]
        paths = (os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/") for name in names)
        files += [path for path in paths if _is_wanted(path)]
    identity = f"{STDLIB}=={platform.python_implementation()}-{platform.python_version()}"
    return _Package(STDLIB, root, tuple(sorted(files)), identity)


def _is_wanted(file: str) -> bool:
    *folders, name = file.split("/")
    if not name.endswith(".py") or _SKIPPED_FILES.fullmatch(name):
        return False
    # A folder whose name is not an identifier (../bin, x.data) cannot be imported.
    return all(folder.isidentifier() and folder not in _SKIPPED_FOLDERS for folder in folders)


def _normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
