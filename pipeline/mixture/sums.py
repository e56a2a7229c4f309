"""Sums that do not depend on the order: of integers, and of fractions in fixed point.

Shapes: M entries, G groups.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays import I64

FIXED = 2.0**18  # units per token, so that a sum of up to 3.5e13 tokens fits an int64


def to_fixed_point(x_M: NDArray[Any]) -> I64:
    """The numbers in fixed point: rounded multiples of 1 / FIXED."""
    return np.rint(x_M * FIXED).astype(np.int64)


def sum_by_group(group_M: NDArray[Any], x_M: NDArray[Any], num_groups: int) -> I64:
    """(G,) integer sums of `x_M` over each group."""
    sum_G = np.zeros(num_groups, np.int64)
    np.add.at(sum_G, group_M, x_M)
    return sum_G
