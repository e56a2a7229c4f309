"""Counts of all groups of requests. Workers read and add them up, so the driver holds only sums and one entry per group.

Shapes: L clusters.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pyarrow as pa

from pipeline.arrays import F64
from pipeline.tables import LANDED

SUMMED = ("requests", "rewrites", "tokens", "moved", "moved_tokens", "prompt_tokens", "output_tokens")
COUNTED = ("outcomes", "removed", "openings")

Counts = dict[str, Counter[str]]  # by style


@dataclass
class Ledger:
    """Sums over the results of `judging.facts_of`. The result of `combine` and `add` does not depend on order or grouping."""

    parts: list[dict[str, Any]] = field(default_factory=list)  # name, rows, tokens of each group
    sums: Counter[str] = field(default_factory=Counter)
    asked: Counter[int] = field(default_factory=Counter)  # source tokens sent, by cluster of the source window
    landed: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)  # windows and tokens by (own leaf, source leaf)
    counts: dict[str, Counts] = field(default_factory=lambda: {name: {} for name in COUNTED})

    @classmethod
    def of_group(cls, name: str, facts: Mapping[str, Any]) -> Self:
        """Return the ledger of one group, from its `judging.facts_of`."""
        return cls(
            parts=[{"name": name, "rows": facts["rewrites"], "tokens": facts["tokens"]}],
            sums=Counter({key: facts[key] for key in SUMMED}),
            asked=Counter({int(leaf): tokens for leaf, tokens in facts["asked"].items() if int(leaf) >= 0}),
            landed={(leaf, parent): (windows, tokens) for leaf, parent, windows, tokens in facts["landed"]},
            counts={key: {style: Counter(found) for style, found in facts[key].items()} for key in COUNTED},
        )

    @classmethod
    def combine(cls, ledgers: Iterable[Self]) -> Self:
        """Return the sum of the ledgers."""
        total = cls()
        for ledger in ledgers:
            total.add(ledger)
        return total

    def add(self, other: Self) -> Self:
        """Add another ledger to this one in place, and return this one."""
        self.parts += other.parts
        self.parts.sort(key=lambda part: str(part["name"]))
        self.sums.update(other.sums)
        self.asked.update(other.asked)
        for pair, (windows, tokens) in other.landed.items():
            before = self.landed.get(pair, (0, 0))
            self.landed[pair] = (before[0] + windows, before[1] + tokens)
        for key, by_style in other.counts.items():
            for style, found in by_style.items():
                self.counts[key].setdefault(style, Counter()).update(found)
        return self

    def asked_L(self, num_leaves: int) -> F64:
        """Return (L,) source tokens sent, by cluster of the source window."""
        total_L = np.zeros(num_leaves)
        for leaf, tokens in self.asked.items():
            total_L[leaf] = tokens
        return total_L

    def landed_table(self) -> pa.Table:
        """Return windows and tokens of rewrites by own cluster and source window's cluster, as a sorted LANDED table."""
        rows = [(*pair, *counts) for pair, counts in sorted(self.landed.items())]
        columns = zip(*rows, strict=True) if rows else [[]] * len(LANDED)
        return pa.table([pa.array(column, field.type) for column, field in zip(columns, LANDED, strict=True)], schema=LANDED)

    def counted(self, key: str) -> dict[str, dict[str, int]]:
        """Return the counts of one `key` of COUNTED, by style and name, both sorted."""
        return {style: dict(sorted(found.items())) for style, found in sorted(self.counts[key].items())}
