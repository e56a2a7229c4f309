"""Export formats: writers that convert shards to the formats that trainers read, and the mixture files of these trainers.

Each format is a subclass of `Format` and converts one shard at a time. Where the trainer's own library or datatrove has a writer
for the format, the subclass calls it. The package may import the layers from `clustering` and `sources` downwards, but no stage.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.storage import Folder


@dataclass(frozen=True)
class Tokenizer:
    """A Hugging Face tokenizer, with truncation and padding disabled, and the token to append to each text."""

    name: str  # as given by the user
    json: str  # content of its tokenizer.json
    eos_token: str | None  # None: no token is appended
    digest: str  # sha256 of `json` with sorted keys


@dataclass(frozen=True)
class Shard:
    """One shard to export."""

    number: int
    num_shards: int
    source: Folder
    name: str  # file name in `source`

    def read_table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the rows of the shard; all columns by default."""
        return self.source.read_table(self.name, columns=list(columns) if columns else None)


class Format(ABC):
    """Base class of the export formats."""

    name: str
    tokenized: bool = False  # whether files hold token ids instead of text
    needs_eos: bool = False  # whether a token must end each text
    extra: str | None = None  # crispwrap's optional dependency group that installs the required library

    def check(self) -> None:
        """Raise ImportError if the library that writes the format is not installed."""
        return

    @abstractmethod
    def write(self, shard: Shard, folder: Folder, tokenizer: Tokenizer | None) -> Mapping[str, Any]:
        """Write a shard to `folder`; return its facts: `rows`, `files` (relative to `folder`) and, if `tokenized`, `tokens`."""

    def finish(self, folder: Folder, manifest: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> list[str]:
        """Write the files that describe all shards together, after all shards are written; return their names.

        `manifest` is the manifest of the shards, empty for a group of a mixture; `parts` holds the facts that `write` returned, in
        the order of the shards.
        """
        del folder, manifest, parts
        return []
