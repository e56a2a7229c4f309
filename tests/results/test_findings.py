"""The words for what a run found."""

import pytest

from pipeline.results.findings import _find_tolerance


@pytest.mark.parametrize(("share", "rows", "tolerance"), [(0.9, 67, 0.110), (0.9, 1_000_000, 0.02), (0.5, 0, 1.5), (0.0, 67, 0.02)])
def test_shares_of_few_rows_may_differ_by_chance(share: float, rows: int, tolerance: float) -> None:
    assert _find_tolerance(share, rows) == pytest.approx(tolerance, abs=0.001)
