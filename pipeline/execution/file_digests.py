"""SHA-256 digests of local files."""

import functools
import hashlib
import os


def file_sha256(path: str) -> str:
    """Hex SHA-256 of a file; cached in this process while its size and modification time stay the same."""
    stat = os.stat(path)
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


def folder_sha256(folder: str) -> str:
    """Hex SHA-256 of the sorted (relative path, digest) pairs of all files below a folder.

    Hidden files and .md files are ignored: they change no value, and copies of a model often lack them.
    """
    lines = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and not name.endswith(".md"):
                path = os.path.join(parent, name)
                lines.append(f"{os.path.relpath(path, folder)}\0{file_sha256(path)}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


@functools.lru_cache(maxsize=1024)
def _sha256(path: str, size: int, mtime_ns: int) -> str:  # noqa: ARG001  size and time are part of the cache key
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
