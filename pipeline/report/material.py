"""What several sections of the page look at, read once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.report.atlas import Drawn
from pipeline.run import Run
from pipeline.shares import Floats, Shares
from pipeline.step import Step
from pipeline.storage import Folder


@dataclass(frozen=True)
class Material:
    """A run that has its weights, and with `drawn` its corpus."""

    run: Run
    tables: Folder  # of the report step
    shares: Shares
    drawn: Drawn | None

    @classmethod
    def of(cls, run: Run, made: Step, *, drawn: bool) -> "Material":
        """Read it; `made` is the report step."""
        shares = Shares(run, planned=drawn)
        table = made.folder.read_table("drawn.parquet")
        return cls(run, made.folder, shares, Drawn.of_table(table, len(shares.before_L)) if drawn else None)

    @property
    def after_L(self) -> Floats:
        """(L,) shares of what was drawn; before that of what is asked for."""
        return self.drawn.tokens_L / max(1.0, float(self.drawn.tokens_L.sum())) if self.drawn else self.shares.after_L

    @property
    def most_copies(self) -> int | None:
        """Of one window in the new corpus; None where nothing is drawn."""
        if self.drawn is None:
            return None
        return 1 + max(self.tables.read_table("drawn.parquet", columns=["copy"])["copy"].to_pylist(), default=-1)

    @property
    def manifest(self) -> Mapping[str, Any] | None:
        """Of the step that has all shards, where it is done."""
        return self.run.corpus.manifest if self.drawn else None
