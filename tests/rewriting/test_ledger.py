"""The accounts: the same sums however the groups are put together, and every window in exactly one group of requests."""

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.rewriting.choosing import Tally, ways
from pipeline.rewriting.ledger import SUMMED, Ledger
from pipeline.stages.passages import groups_of_round


def facts(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    pairs = {(int(leaf), int(parent)) for leaf, parent in rng.integers(-1, 4, (5, 2))}
    return {
        **{name: int(rng.integers(100)) for name in SUMMED},
        "asked": {str(leaf): int(rng.integers(100)) for leaf in range(-1, 3)},
        "landed": [[leaf, parent, 1 + seed % 3, 10 + seed % 7] for leaf, parent in sorted(pairs)],
        "outcomes": {"qa": {"accepted": seed % 5, "cut": 1}},
        "removed": {"qa": {}},
        "openings": {"qa": {f"Question {seed % 3}": 1}},
    }


@given(st.permutations(range(6)), st.integers(1, 5))
def test_sums_do_not_depend_on_order_or_grouping(order: list[int], cut: int) -> None:
    entries = {i: Ledger.of_group(f"round-0-{i}", facts(i)) for i in range(6)}
    whole = Ledger.combine(entries[i] for i in range(6))
    grouped = Ledger.combine([Ledger.combine(entries[i] for i in order[:cut]), Ledger.combine(entries[i] for i in order[cut:])])
    assert grouped == whole
    assert whole.sums["tokens"] == sum(facts(i)["tokens"] for i in range(6))
    assert whole.asked_L(4).sum() == sum(n for i in range(6) for leaf, n in facts(i)["asked"].items() if leaf != "-1")
    table = whole.landed_table()
    assert pa.compute.sum(table["tokens"]).as_py() == sum(row[3] for i in range(6) for row in facts(i)["landed"])
    assert whole.counted("outcomes")["qa"] == {"accepted": sum(i % 5 for i in range(6)), "cut": 6}


@given(st.integers(1, 5), st.integers(1, 200_000_000))
def test_every_window_is_in_one_group(num_parts: int, tokens: int) -> None:
    zero_L = np.zeros(1)
    tally = Tally(np.array([1.0]), np.array([tokens]), zero_L, zero_L, 0, zero_L)
    names = [f"part-{i}" for i in range(num_parts)]
    slices = groups_of_round(0, names, tally, np.array([1.0]), ways({"qa": 1.0}, {"qa": 1.0}, 1), 250.0)
    found = [(part, key) for one in slices.values() for part in one.parts for key in range(60) if key % one.of == one.number]
    if len(slices) <= 60:
        assert sorted(found) == [(part, key) for part in names for key in range(60)]
    assert len(slices) >= min(tokens / 250 / 2048, num_parts) / 2
    assert list(slices) == sorted(slices)
