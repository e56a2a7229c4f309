"""Counts of rewrites do not depend on grouping, and every window is in exactly one group of requests."""

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.rewriting.rewrite_counts import SUM_KEYS, RewriteCounts
from pipeline.rewriting.selection import RewritingProgress, list_style_variants
from pipeline.stages.request_groups import plan_round_groups


def facts(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    pairs = {(int(leaf), int(parent)) for leaf, parent in rng.integers(-1, 4, (5, 2))}
    return {
        **{name: int(rng.integers(100)) for name in SUM_KEYS},
        "requested_source_tokens": {str(leaf): int(rng.integers(100)) for leaf in range(-1, 3)},
        "by_cluster_pair": [[leaf, parent, 1 + seed % 3, 10 + seed % 7] for leaf, parent in sorted(pairs)],
        "outcomes": {"qa": {"accepted": seed % 5, "cut": 1}},
        "removed": {"qa": {}},
        "openings": {"qa": {f"Question {seed % 3}": 1}},
    }


@given(st.permutations(range(6)), st.integers(1, 5))
def test_sums_do_not_depend_on_order_or_grouping(order: list[int], cut: int) -> None:
    entries = {i: RewriteCounts.from_group(f"round-0-{i}", facts(i)) for i in range(6)}
    whole = RewriteCounts.combine(entries[i] for i in range(6))
    grouped = RewriteCounts.combine(
        [RewriteCounts.combine(entries[i] for i in order[:cut]), RewriteCounts.combine(entries[i] for i in order[cut:])]
    )
    assert grouped == whole
    assert whole.sums["tokens"] == sum(facts(i)["tokens"] for i in range(6))
    assert whole.count_requested_tokens(4).sum() == sum(
        n for i in range(6) for leaf, n in facts(i)["requested_source_tokens"].items() if leaf != "-1"
    )
    table = whole.build_cluster_pairs()
    assert pa.compute.sum(table["tokens"]).as_py() == sum(row[3] for i in range(6) for row in facts(i)["by_cluster_pair"])
    assert whole.get_counts("outcomes")["qa"] == {"accepted": sum(i % 5 for i in range(6)), "cut": 6}


@given(st.integers(1, 5), st.integers(1, 200_000_000))
def test_every_window_is_in_one_group(num_parts: int, tokens: int) -> None:
    zero_L = np.zeros(1)
    progress = RewritingProgress(np.array([1.0]), np.array([tokens]), zero_L, zero_L, 0, zero_L)
    names = [f"part-{i}" for i in range(num_parts)]
    slices = plan_round_groups(0, names, progress, np.array([1.0]), list_style_variants({"qa": 1.0}, {"qa": 1.0}, 1), 250.0)
    found = [
        (part, key) for one in slices.values() for part in one.parts for key in range(60) if key % one.num_slices == one.remainder
    ]
    if len(slices) <= 60:
        assert sorted(found) == [(part, key) for part in names for key in range(60)]
    assert len(slices) >= min(tokens / 250 / 2048, num_parts) / 2
    assert list(slices) == sorted(slices)
