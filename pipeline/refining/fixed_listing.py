"""A datatrove folder with a fixed list of files.

datatrove's steps find their input by listing the folder, and a listing on a remote store may lag behind the latest writes.
"""

from collections.abc import Sequence
from typing import Any

from datatrove.io import DataFolder

from pipeline.storage import Folder


class FixedListingFolder(DataFolder):  # type: ignore[misc]
    """A folder whose file names are given, so that it is never listed."""

    def __init__(self, folder: Folder, names: Sequence[str]) -> None:
        super().__init__(folder.path, fs=folder.fs, auto_mkdir=False)
        self.names = sorted(names)

    def list_files(self, subdirectory: str = "", **_patterns: Any) -> list[str]:
        """Return the names, sorted; with `subdirectory` only those below it."""
        below = f"{subdirectory}/" if subdirectory else ""
        return [name for name in self.names if name.startswith(below)]
