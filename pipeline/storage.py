"""Folders on any fsspec file system, written so that a reader never sees half a file.

A file is built in memory (parts and shards are bounded), then appears at once: locally by a rename of a temporary name,
on an object store by one put. `manifest.json` is written last, so its presence means that all it names is there.

A store may fail for a moment, or lose the answer to what it did: every call is safe to make again, and is. Its listings may lag
behind, so a name that is known is asked for by itself, and a listing only ever saves work.
"""

import errno
import hashlib
import json
import os
import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import ConfigError, StorageError, one_line
from pipeline.tables import cast

MANIFEST = "manifest.json"
PUBLISHED_MANIFEST = "_manifest.json"  # beside data that other programs read: pandas and pyarrow skip names that begin with _
_TMP = ".tmp-"
_ABANDONED_S = 3600.0  # a file is written in seconds
_FACTS = b"crispwrap"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ATTEMPTS = 6  # of a call to a store, beyond what its own client does
_FIRST_PAUSE_S = 0.2  # doubled after each

_LASTING = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError, pa.ArrowInvalid)
_REFUSED = (errno.EINVAL, errno.ENOSYS, errno.EPERM)  # by a store that understood what was asked
_CLIENTS = {"aiohttp", "azure", "botocore", "gcsfs", "google", "httpx", "huggingface_hub", "requests"}
S3_EXTRA = 'pip install "crispwrap[s3]"'

T = TypeVar("T")


class Folder:
    """One folder, by its fsspec URL. Cheap to make and to send to a worker."""

    def __init__(self, url: str) -> None:
        try:
            # Listings that a client remembers do not have what other workers have written since.
            self.fs, self.path = fsspec.core.url_to_fs(str(url), use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"{url} cannot be opened: {error}; install what it needs (s3://: {S3_EXTRA}), or use another place"
            ) from error
        self.path = self.path.rstrip("/")
        self.is_local = isinstance(self.fs, LocalFileSystem)
        # Local paths are made absolute: a worker's working directory is not the driver's.
        self.url = self.path if self.is_local else str(url).rstrip("/")

    def __reduce__(self) -> tuple[type["Folder"], tuple[str]]:
        return Folder, (self.url,)

    def __repr__(self) -> str:
        return f"Folder({self.url!r})"

    def child(self, name: str) -> "Folder":
        """A folder below; see `file`."""
        return Folder(f"{self.url}/{self._inside(name)}")

    def file(self, name: str) -> str:
        """The path of a file in the folder, as its file system spells it.

        Raises:
            StorageError: the name leads out of the folder: names come from manifests, which somebody else may have written.
        """
        return f"{self.path}/{self._inside(name)}"

    def _inside(self, name: str) -> str:
        if name.startswith("/") or "\\" in name or "\0" in name or {"", ".", ".."} & set(name.split("/")):
            raise StorageError(f"{name!r} is no name of a file in {self.url}; delete the manifest that has it, and run again")
        return name

    def exists(self, name: str) -> bool:
        path = self.file(name)
        with _named_failure("read", path):
            try:
                self._steadily(lambda: self.fs.info(path))
            except (FileNotFoundError, NotADirectoryError):
                return False
            return True

    def holds(self, names: Iterable[str]) -> bool:
        """Whether all these files are there, also those that a listing does not show yet."""
        return all(self.exists(name) for name in self._unlisted(names))

    def _unlisted(self, names: Iterable[str]) -> list[str]:
        """Those of the names that a listing does not show: there is none, or it was just written."""
        return sorted(set(names) - set(self.files()))

    def names(self, suffix: str = "") -> list[str]:
        """Sorted names of the files here that end in `suffix`, temporary ones left out; empty if there is no folder."""
        with _named_failure("list", self.path):
            try:
                paths = self._steadily(lambda: self.fs.ls(self.path, detail=False))
            except FileNotFoundError:
                return []
        names = (path.rstrip("/").rsplit("/", 1)[-1] for path in paths)
        return sorted(name for name in names if name.endswith(suffix) and not name.startswith(_TMP))

    def files(self) -> list[str]:
        """Sorted names of all files below the folder, with the folders between, temporary ones left out."""
        with _named_failure("list", self.path):
            paths = self._steadily(lambda: self.fs.find(self.path))
        names = (path[len(self.path) + 1 :] for path in paths)
        return sorted(name for name in names if name and not name.rsplit("/", 1)[-1].startswith(_TMP))

    def write_bytes(self, name: str, data: bytes | memoryview) -> None:
        """Put a whole file in place at once, replacing what was there.

        Raises:
            StorageError: the disk is full, or the file may not be written.
        """
        target = self.file(name)
        with _named_failure("write", target):
            if not self.is_local:
                self._steadily(lambda: self.fs.pipe_file(target, bytes(data)))
                return
            temporary = f"{self.path}/{_TMP}{uuid.uuid4().hex}"
            os.makedirs(self.path, exist_ok=True)
            try:
                with open(temporary, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, target)
            except BaseException:
                if os.path.exists(temporary):
                    os.remove(temporary)
                raise

    def read_bytes(self, name: str, most: int | None = None) -> bytes:
        """A whole file, or its first `most` bytes."""
        path = self.file(name)
        with _named_failure("read", path):
            return bytes(self._steadily(lambda: self.fs.cat_file(path, end=most)))

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, (json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode())

    def create_json(self, name: str, value: Any) -> bool:
        """Write a JSON file if there is none of the name; False where there is, or another writer was faster."""
        data = json.dumps(value, sort_keys=True).encode()
        path = self.file(name)
        with _named_failure("write", path):
            if self.is_local:
                return self._create_here(path, data)
            try:
                self._steadily(lambda: self.fs.pipe_file(path, data, mode="create"))
            except OSError:
                # There is one: another writer's, or this one's, which was written and whose answer was lost.
                if not self.exists(name):
                    raise
            return self.read_bytes(name) == data

    def _create_here(self, path: str, data: bytes) -> bool:
        temporary = f"{self.path}/{_TMP}{uuid.uuid4().hex}"
        os.makedirs(self.path, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
        try:
            os.link(temporary, path)  # unlike a rename it does not replace, and the name never has less than the whole
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links: for a moment the file is there and empty
            with suppress(FileExistsError), open(path, "xb") as file:
                file.write(data)
                return True
            return False
        finally:
            os.remove(temporary)
        return True

    def read_json(self, name: str) -> Any:
        """The object in a JSON file, or None where there is none, or a damaged one: whoever wrote it writes it again."""
        path = self.file(name)
        with _named_failure("read", path):
            try:
                value = json.loads(self._steadily(lambda: self.fs.cat_file(path)))
            except (FileNotFoundError, NotADirectoryError, ValueError):
                return None
        return value if isinstance(value, dict) else None

    def write_table(
        self, name: str, table: pa.Table, schema: pa.Schema, facts: dict[str, Any] | None = None, **options: Any
    ) -> dict[str, Any]:
        """Write Parquet with exactly `schema`; returns its `bytes` and `sha256`.

        `facts` go into the file's footer, for `read_facts`. `options` go to `pyarrow.parquet.write_table`; zstd unless they say
        otherwise.
        """
        table = cast(table, schema)
        if facts is not None:
            table = table.replace_schema_metadata({_FACTS: json.dumps(facts, sort_keys=True)})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, **{"compression": "zstd", **options})
        data = memoryview(sink.getvalue())
        self.write_bytes(name, data)
        return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """Read a Parquet file.

        Raises:
            StorageError: it is not there, or is not the Parquet file it should be.
        """
        with _named_failure("read", self.file(name)):
            return self._steadily(lambda: self._parquet(name).read(columns=columns))

    def read_facts(self, name: str) -> dict[str, Any]:
        """What the writer of a Parquet file noted in its footer."""
        with _named_failure("read", self.file(name)):
            metadata = self._steadily(lambda: self._parquet(name).schema_arrow.metadata)
        facts: dict[str, Any] = json.loads(metadata[_FACTS])
        return facts

    def remove(self, name: str) -> None:
        path = self.file(name)
        # A store may have removed it and lost the answer.
        with _named_failure("remove", path), suppress(*() if self.is_local else (FileNotFoundError,)):
            self._steadily(lambda: self.fs.rm_file(path))

    def remove_all(self, known: Iterable[str] = ()) -> None:
        """Delete the folder and everything in it, if it is there; of `known` names also what a listing does not show yet."""
        if known and not self.is_local:
            for name in self._unlisted(known):
                self.remove(name)
        with _named_failure("remove", self.path), suppress(FileNotFoundError):
            self._steadily(lambda: self.fs.rm(self.path, recursive=True))

    def link(self, name: str, target: "Folder") -> None:
        """Let `target` hold a file of this folder too: a hard link where that can be, else a copy."""
        source, copy = self.file(name), target.file(name)
        with _named_failure("write", copy):
            if self.is_local:
                os.makedirs(target.path, exist_ok=True)
                try:
                    os.link(source, copy)
                except OSError:  # a file system without hard links
                    target.write_bytes(name, self.read_bytes(name))
                return
            self._steadily(lambda: self.fs.cp_file(source, copy))

    def remove_temporary(self) -> None:
        """Delete what killed writers left in the folder and below; what is fresh may be another run's."""
        if not self.is_local:
            return
        for folder, _, names in os.walk(self.path):
            for name in names:
                path = os.path.join(folder, name)
                if name.startswith(_TMP) and time.time() - os.path.getmtime(path) > _ABANDONED_S:
                    os.remove(path)

    def abort_uploads(self) -> None:
        """Abort what killed writers have put in part into the folder and below: S3 charges for it, and shows it in no listing.

        A put of several parts that is under way fails. Other stores forget such puts by themselves.
        """
        if not hasattr(self.fs, "call_s3"):
            return
        bucket, _, prefix = self.path.partition("/")

        def call(method: str, **arguments: str) -> Any:
            return self._steadily(lambda: self.fs.call_s3(method, Bucket=bucket, **arguments))

        after: dict[str, str] = {}
        with _named_failure("clean", self.path):
            while True:
                page = call("list_multipart_uploads", Prefix=prefix and f"{prefix}/", **after)
                for upload in page.get("Uploads", ()):
                    with suppress(FileNotFoundError):
                        call("abort_multipart_upload", Key=upload["Key"], UploadId=upload["UploadId"])
                if not page.get("IsTruncated"):
                    return
                after = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def _parquet(self, name: str) -> pq.ParquetFile:
        return pq.ParquetFile(self.file(name), filesystem=None if self.is_local else self.fs)

    def _steadily(self, operation: Callable[[], T]) -> T:
        """What the operation returns; on a store it is tried again where what failed may pass, so it must bear being done twice.

        Raises:
            OSError: whatever the client of a store raised.
        """
        pause_s = _FIRST_PAUSE_S
        for _ in range(0 if self.is_local else _ATTEMPTS - 1):
            try:
                return operation()
            except _LASTING:
                raise
            except Exception as error:  # clients have errors of their own
                if getattr(error, "errno", None) in _REFUSED:
                    raise
                time.sleep(pause_s * random.uniform(0.5, 1.5))
                pause_s *= 2
        try:
            return operation()
        except (OSError, pa.ArrowInvalid):
            raise
        except Exception as error:
            raise OSError(said(error)) from error


def said(error: Exception) -> str:
    """What a file system or the client of a store says went wrong, in a line."""
    return one_line(getattr(error, "strerror", None) or error) or type(error).__name__


def of_a_store(error: Exception) -> bool:
    """Whether the client of a store raised it, beyond what it says as an OSError."""
    return type(error).__module__.partition(".")[0] in _CLIENTS


@contextmanager
def _named_failure(verb: str, path: str) -> Iterator[None]:
    """Turns a failure below into one line that names the file and the mend."""
    try:
        yield
    except pa.ArrowInvalid as error:
        raise StorageError(f"cannot {verb} {path}: {error}; delete it and run again, it will be made anew") from error
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise StorageError(
                f"cannot {verb} {path}: the disk is full; free space and run the same command again, finished parts are kept"
            ) from error
        mend = "is workdir a folder that you may write to?" if verb == "write" else "run again, what is missing will be made anew"
        raise StorageError(f"cannot {verb} {path}: {said(error)}; {mend}") from error


@contextmanager
def put_whole(folder: Folder) -> Iterator[str]:
    """A place on this machine; what lies in it at the end goes into the folder, each file at once."""
    with TemporaryDirectory(prefix="crispwrap-") as place:
        yield place
        for root, _, names in os.walk(place):
            below = os.path.relpath(root, place)
            target = folder if below == "." else folder.child(below)
            for name in sorted(names):
                with open(os.path.join(root, name), "rb") as file:
                    target.write_bytes(name, file.read())
