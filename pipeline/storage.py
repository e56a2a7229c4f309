"""Folders on any fsspec file system, with atomic writes: a reader never sees half a file.

A file is built in memory (parts and shards are bounded) and then appears atomically: locally by renaming a temporary file, on an
object store by one put. `manifest.json` is written last, so its presence means that all files it names exist.

An object store may fail for a moment, or carry out a request and lose the response. So every operation is idempotent and is
retried. Listings may be stale, so a known name is checked directly; a listing only saves such checks.
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
PUBLISHED_MANIFEST = "_manifest.json"  # next to data for other programs: pandas and pyarrow skip names that begin with _
_TMP = ".tmp-"
_MAX_TMP_AGE_S = 3600.0  # a temporary file that is older has no live writer: writing takes seconds
_FACTS_KEY = b"crispwrap"
_DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MAX_ATTEMPTS = 6  # per call to an object store, on top of the retries of its own client
_FIRST_PAUSE_S = 0.2  # doubled after each attempt

_PERMANENT_ERRORS = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError, pa.ArrowInvalid)
_REFUSED_ERRNOS = (errno.EINVAL, errno.ENOSYS, errno.EPERM)  # the store understood the request and refused it: a retry is useless
_CLIENT_PACKAGES = {"aiohttp", "azure", "botocore", "gcsfs", "google", "httpx", "huggingface_hub", "requests"}
S3_EXTRA = 'pip install "crispwrap[s3]"'

T = TypeVar("T")


class Folder:
    """One folder, given by its fsspec URL. Cheap to create and to send to a worker."""

    def __init__(self, url: str) -> None:
        try:
            # A client's cached listing misses what other workers have written since.
            self.fs, self.path = fsspec.core.url_to_fs(str(url), use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"{url} cannot be opened: {error}; install the package for this URL scheme (s3://: {S3_EXTRA}), "
                "or use another location"
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
        """A subfolder; raises as `file`."""
        return Folder(f"{self.url}/{self._check_name(name)}")

    def file(self, name: str) -> str:
        """The path of a file in the folder, in the form its file system expects.

        Raises:
            StorageError: the name leads out of the folder. Names come from manifests, which are untrusted.
        """
        return f"{self.path}/{self._check_name(name)}"

    def _check_name(self, name: str) -> str:
        if name.startswith("/") or "\\" in name or "\0" in name or {"", ".", ".."} & set(name.split("/")):
            raise StorageError(
                f"{name!r} is not a valid file name in {self.url}; delete the manifest that contains it, and run again"
            )
        return name

    def exists(self, name: str) -> bool:
        path = self.file(name)
        with _convert_errors("read", path):
            try:
                self._retry(lambda: self.fs.info(path))
            except (FileNotFoundError, NotADirectoryError):
                return False
            return True

    def has_files(self, names: Iterable[str]) -> bool:
        """Whether all these files exist, including those that a stale listing does not show."""
        return all(self.exists(name) for name in self._find_unlisted(names))

    def _find_unlisted(self, names: Iterable[str]) -> list[str]:
        """The names that a listing does not show, sorted: missing files, and files that were just written."""
        return sorted(set(names) - set(self.files()))

    def names(self, suffix: str = "") -> list[str]:
        """Sorted names of the entries that end in `suffix`, without temporary files; empty if the folder does not exist."""
        with _convert_errors("list", self.path):
            try:
                paths = self._retry(lambda: self.fs.ls(self.path, detail=False))
            except FileNotFoundError:
                return []
        names = (path.rstrip("/").rsplit("/", 1)[-1] for path in paths)
        return sorted(name for name in names if name.endswith(suffix) and not name.startswith(_TMP))

    def files(self) -> list[str]:
        """Sorted names of all files at any depth, relative to the folder, without temporary files."""
        with _convert_errors("list", self.path):
            paths = self._retry(lambda: self.fs.find(self.path))
        names = (path[len(self.path) + 1 :] for path in paths)
        return sorted(name for name in names if name and not name.rsplit("/", 1)[-1].startswith(_TMP))

    def write_bytes(self, name: str, data: bytes | memoryview) -> None:
        """Write a file atomically, replacing an existing one.

        Raises:
            StorageError: the disk is full, or the file cannot be written.
        """
        target = self.file(name)
        with _convert_errors("write", target):
            if not self.is_local:
                self._retry(lambda: self.fs.pipe_file(target, bytes(data)))
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

    def read_bytes(self, name: str, max_bytes: int | None = None) -> bytes:
        """The content of a file, or its first `max_bytes` bytes."""
        path = self.file(name)
        with _convert_errors("read", path):
            return bytes(self._retry(lambda: self.fs.cat_file(path, end=max_bytes)))

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, (json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode())

    def create_json(self, name: str, value: Any) -> bool:
        """Create a JSON file; False if the file exists or another writer was faster."""
        data = json.dumps(value, sort_keys=True).encode()
        path = self.file(name)
        with _convert_errors("write", path):
            if self.is_local:
                return self._create_local(path, data)
            try:
                self._retry(lambda: self.fs.pipe_file(path, data, mode="create"))
            except OSError:
                # The file exists: another writer's, or ours if the put succeeded and its response was lost.
                if not self.exists(name):
                    raise
            return self.read_bytes(name) == data

    def _create_local(self, path: str, data: bytes) -> bool:
        temporary = f"{self.path}/{_TMP}{uuid.uuid4().hex}"
        os.makedirs(self.path, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
        try:
            os.link(temporary, path)  # unlike a rename, a link never replaces a file; the content is complete from the start
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links: the file is incomplete for a moment
            with suppress(FileExistsError), open(path, "xb") as file:
                file.write(data)
                return True
            return False
        finally:
            os.remove(temporary)
        return True

    def read_json(self, name: str) -> Any:
        """The object in a JSON file; None if the file is missing, damaged or not an object, so that its writer writes it again."""
        path = self.file(name)
        with _convert_errors("read", path):
            try:
                value = json.loads(self._retry(lambda: self.fs.cat_file(path)))
            except (FileNotFoundError, NotADirectoryError, ValueError):
                return None
        return value if isinstance(value, dict) else None

    def write_table(
        self, name: str, table: pa.Table, schema: pa.Schema, facts: dict[str, Any] | None = None, **options: Any
    ) -> dict[str, Any]:
        """Write a Parquet file with exactly `schema`; return its `bytes` and `sha256`.

        Args:
            facts: JSON values for the file's footer, see `read_facts`.
            options: for `pyarrow.parquet.write_table`; the default compression is zstd.

        Raises:
            ValueError: the table does not fit the schema, see `pipeline.tables.cast`.
            StorageError: as `write_bytes`.
        """
        table = cast(table, schema)
        if facts is not None:
            table = table.replace_schema_metadata({_FACTS_KEY: json.dumps(facts, sort_keys=True)})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, **{"compression": "zstd", **options})
        data = memoryview(sink.getvalue())
        self.write_bytes(name, data)
        return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """Read a Parquet file.

        Raises:
            StorageError: the file is missing or is not valid Parquet.
        """
        with _convert_errors("read", self.file(name)):
            return self._retry(lambda: self._open_parquet(name).read(columns=columns))

    def read_facts(self, name: str) -> dict[str, Any]:
        """The `facts` that `write_table` stored in the footer of a Parquet file."""
        with _convert_errors("read", self.file(name)):
            metadata = self._retry(lambda: self._open_parquet(name).schema_arrow.metadata)
        facts: dict[str, Any] = json.loads(metadata[_FACTS_KEY])
        return facts

    def remove(self, name: str) -> None:
        path = self.file(name)
        # On a store, an earlier attempt may have removed the file although its response was lost.
        with _convert_errors("remove", path), suppress(*() if self.is_local else (FileNotFoundError,)):
            self._retry(lambda: self.fs.rm_file(path))

    def remove_all(self, known: Iterable[str] = ()) -> None:
        """Delete the folder with its content, if it exists, and also those `known` files that a stale listing does not show."""
        if known and not self.is_local:
            for name in self._find_unlisted(known):
                self.remove(name)
        with _convert_errors("remove", self.path), suppress(FileNotFoundError):
            self._retry(lambda: self.fs.rm(self.path, recursive=True))

    def link(self, name: str, target: "Folder") -> None:
        """Add a file of this folder to `target` under the same name: a hard link where possible, otherwise a copy."""
        source, copy = self.file(name), target.file(name)
        with _convert_errors("write", copy):
            if self.is_local:
                os.makedirs(target.path, exist_ok=True)
                try:
                    os.link(source, copy)
                except OSError:  # a file system without hard links
                    target.write_bytes(name, self.read_bytes(name))
                return
            self._retry(lambda: self.fs.cp_file(source, copy))

    def remove_temporary(self) -> None:
        """Delete temporary files of killed writers, at any depth. Files younger than an hour may belong to a live run and stay.

        On a store this does nothing: writes there use no temporary files.
        """
        if not self.is_local:
            return
        for folder, _, names in os.walk(self.path):
            for name in names:
                path = os.path.join(folder, name)
                if name.startswith(_TMP) and time.time() - os.path.getmtime(path) > _MAX_TMP_AGE_S:
                    os.remove(path)

    def abort_uploads(self) -> None:
        """Abort unfinished multipart uploads of killed writers, at any depth: S3 charges for them and shows them in no listing.

        A multipart upload that is still in progress fails too. On other stores this does nothing: they drop unfinished uploads
        themselves.
        """
        if not hasattr(self.fs, "call_s3"):
            return
        bucket, _, prefix = self.path.partition("/")

        def call(method: str, **arguments: str) -> Any:
            return self._retry(lambda: self.fs.call_s3(method, Bucket=bucket, **arguments))

        after: dict[str, str] = {}
        with _convert_errors("clean", self.path):
            while True:
                page = call("list_multipart_uploads", Prefix=prefix and f"{prefix}/", **after)
                for upload in page.get("Uploads", ()):
                    with suppress(FileNotFoundError):
                        call("abort_multipart_upload", Key=upload["Key"], UploadId=upload["UploadId"])
                if not page.get("IsTruncated"):
                    return
                after = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def _open_parquet(self, name: str) -> pq.ParquetFile:
        return pq.ParquetFile(self.file(name), filesystem=None if self.is_local else self.fs)

    def _retry(self, operation: Callable[[], T]) -> T:
        """The result of the operation, which must be idempotent: on a store it is retried after errors that may be transient.

        Raises:
            OSError: the last attempt failed; other errors of a store's client are converted to OSError.
            pa.ArrowInvalid: the file is not valid Parquet.
        """
        pause_s = _FIRST_PAUSE_S
        for _ in range(0 if self.is_local else _MAX_ATTEMPTS - 1):
            try:
                return operation()
            except _PERMANENT_ERRORS:
                raise
            except Exception as error:  # a store's client has its own error classes
                if getattr(error, "errno", None) in _REFUSED_ERRNOS:
                    raise
                time.sleep(pause_s * random.uniform(0.5, 1.5))
                pause_s *= 2
        try:
            return operation()
        except (OSError, pa.ArrowInvalid):
            raise
        except Exception as error:
            raise OSError(describe_error(error)) from error


def describe_error(error: Exception) -> str:
    """The one-line message of an error of a file system or a store's client."""
    return one_line(getattr(error, "strerror", None) or error) or type(error).__name__


def is_store_error(error: Exception) -> bool:
    """Whether the error's class comes from the client library of an object store."""
    return type(error).__module__.partition(".")[0] in _CLIENT_PACKAGES


@contextmanager
def _convert_errors(verb: str, path: str) -> Iterator[None]:
    """Convert errors of the block to a one-line StorageError that names the file and the remedy."""
    try:
        yield
    except pa.ArrowInvalid as error:
        raise StorageError(f"cannot {verb} {path}: {error}; delete the file and run again, it will be regenerated") from error
    except OSError as error:
        if error.errno in _DISK_FULL_ERRNOS:
            raise StorageError(
                f"cannot {verb} {path}: the disk is full; free space and run the same command again, finished parts are kept"
            ) from error
        remedy = "check that you may write there" if verb == "write" else "run again, missing files will be regenerated"
        raise StorageError(f"cannot {verb} {path}: {describe_error(error)}; {remedy}") from error


@contextmanager
def upload_on_exit(folder: Folder) -> Iterator[str]:
    """Yield a temporary local directory; on success, copy its files into the folder, each file atomically."""
    with TemporaryDirectory(prefix="crispwrap-") as local:
        yield local
        for root, _, names in os.walk(local):
            subfolder = os.path.relpath(root, local)
            target = folder if subfolder == "." else folder.child(subfolder)
            for name in sorted(names):
                with open(os.path.join(root, name), "rb") as file:
                    target.write_bytes(name, file.read())
