"""Folders as steps of datatrove take them, but safe on a store: files appear whole, and are read by names that are known.

Left to themselves, its steps write as they go, so that a kill leaves half a file, and find their input by a listing, which on a
store may not have the latest.
"""

from collections.abc import Sequence
from typing import Any

from datatrove.io import DataFolder

from pipeline.storage import Folder


class NamedFiles(DataFolder):  # type: ignore[misc]
    """Files of a folder, of which nobody needs to ask which there are."""

    def __init__(self, folder: Folder, names: Sequence[str]) -> None:
        super().__init__(folder.path, fs=folder.fs, auto_mkdir=False)
        self.names = sorted(names)

    def list_files(self, subdirectory: str = "", **_patterns: Any) -> list[str]:
        """Their names, or those below a folder."""
        below = f"{subdirectory}/" if subdirectory else ""
        return [name for name in self.names if name.startswith(below)]
