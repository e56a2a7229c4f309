"""The shards in the forms that trainers read: one writer a format, behind one interface; each works on one shard at a time.

Wherever a trainer's own library, or datatrove, writes its format, it writes it here.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.storage import Folder


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of Hugging Face's: its file's text, without truncation and padding, and its token that ends a text."""

    name: str  # as the user calls it
    json: str
    eos_token: str | None
    digest: str


@dataclass(frozen=True)
class Shard:
    """One shard on its way into an export."""

    number: int
    of: int
    source: Folder
    name: str  # of the file in `source`

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Its rows."""
        return self.source.read_table(self.name, columns=list(columns) if columns else None)


class Format(ABC):
    """One format."""

    name: str
    tokenized: bool = False  # whether it holds token ids
    needs_eos: bool = False  # whether texts must end with a token
    extra: str | None = None  # of ours, that brings what it needs

    def check(self) -> None:
        """Raises ImportError where the library that writes it is missing."""
        return

    @abstractmethod
    def write(self, shard: Shard, folder: Folder, tokenizer: Tokenizer | None) -> Mapping[str, Any]:
        """Write a shard below `folder`; its facts: `rows`, `tokens` where it is tokenized, and its `files`."""

    def finish(self, folder: Folder, manifest: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> list[str]:
        """Write what belongs to all shards together, once these are there; its files. `manifest` is that of the shards."""
        del folder, manifest, parts
        return []
