"""Counts over all groups of requests. Workers read and add them up, so the driver holds only sums and one entry per group.

Shapes: L clusters.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pyarrow as pa

from pipeline.arrays import F64
from pipeline.tables import REWRITE_CLUSTERS

SUM_KEYS = ("requests", "rewrites", "tokens", "moved", "moved_tokens", "prompt_tokens", "output_tokens")
COUNT_KEYS = ("outcomes", "removed", "openings")

Counts = dict[str, Counter[str]]  # by style


@dataclass
class RewriteCounts:
    """Sums over the results of `judging.summarise_group`, in any order and grouping."""

    parts: list[dict[str, Any]] = field(default_factory=list)  # name, rows, tokens of each group
    sums: Counter[str] = field(default_factory=Counter)
    requested: Counter[int] = field(default_factory=Counter)  # source tokens, by cluster of the source window
    # Windows and tokens of rewrites, by own cluster and source window's cluster.
    by_cluster_pair: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    counts: dict[str, Counts] = field(default_factory=lambda: {name: {} for name in COUNT_KEYS})

    @classmethod
    def from_group(cls, name: str, facts: Mapping[str, Any]) -> Self:
        """Return the counts of one group, from its `judging.summarise_group`."""
        return cls(
            parts=[{"name": name, "rows": facts["rewrites"], "tokens": facts["tokens"]}],
            sums=Counter({key: facts[key] for key in SUM_KEYS}),
            requested=Counter({int(leaf): tokens for leaf, tokens in facts["requested_source_tokens"].items() if int(leaf) >= 0}),
            by_cluster_pair={(leaf, parent): (windows, tokens) for leaf, parent, windows, tokens in facts["by_cluster_pair"]},
            counts={key: {style: Counter(counts) for style, counts in facts[key].items()} for key in COUNT_KEYS},
        )

    @classmethod
    def combine(cls, parts: Iterable[Self]) -> Self:
        """Return the sum of the given counts."""
        total = cls()
        for part in parts:
            total.add(part)
        return total

    def add(self, other: Self) -> Self:
        """Add other counts to these in place, and return these."""
        self.parts += other.parts
        self.parts.sort(key=lambda part: str(part["name"]))
        self.sums.update(other.sums)
        self.requested.update(other.requested)
        for pair, (windows, tokens) in other.by_cluster_pair.items():
            before = self.by_cluster_pair.get(pair, (0, 0))
            self.by_cluster_pair[pair] = (before[0] + windows, before[1] + tokens)
        for key, by_style in other.counts.items():
            for style, counts in by_style.items():
                self.counts[key].setdefault(style, Counter()).update(counts)
        return self

    def count_requested_tokens(self, num_leaves: int) -> F64:
        """Return (L,) source tokens of the requests, by cluster of the source window."""
        total_L = np.zeros(num_leaves)
        for leaf, tokens in self.requested.items():
            total_L[leaf] = tokens
        return total_L

    def build_cluster_pairs(self) -> pa.Table:
        """Return windows and tokens of rewrites by own cluster and source window's cluster, as a sorted REWRITE_CLUSTERS table."""
        rows = [(*pair, *counts) for pair, counts in sorted(self.by_cluster_pair.items())]
        columns = zip(*rows, strict=True) if rows else [[]] * len(REWRITE_CLUSTERS)
        return pa.table(
            [pa.array(column, field.type) for column, field in zip(columns, REWRITE_CLUSTERS, strict=True)], schema=REWRITE_CLUSTERS
        )

    def get_counts(self, key: str) -> dict[str, dict[str, int]]:
        """Return the counts of one `key` of COUNT_KEYS, by style and name, both sorted."""
        return {style: dict(sorted(counts.items())) for style, counts in sorted(self.counts[key].items())}
