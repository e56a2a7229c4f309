"""Figures over a few seeds and many documents, with intervals that few seeds deserve.

Shapes: S seeds, D documents of a held-out text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from pipeline.arrays import F64

_TAIL = 0.05


@dataclass(frozen=True)
class Estimate:
    """A figure and its 90% interval."""

    value: float
    low: float
    high: float


def estimate(terms: Sequence[tuple[F64, F64]]) -> Estimate:
    """The mean over seeds of a sum of figures in bits per byte, one of each held-out text: (S, D) bits, and (D,) bytes.

    Bits are of an arm, or of a difference of arms, which pairs their seeds and documents. What seeds and what documents add to the
    variance is put together; the interval is Student's, with the degrees of freedom of Welch (1947) and Satterthwaite (1946): with
    three seeds a normal one would hold the truth in seven cases of ten.
    """
    value_S = np.sum([bits_SD.sum(1) / bytes_D.sum() for bits_SD, bytes_D in terms], axis=0)
    parts = [(float(value_S.var(ddof=1)) / len(value_S), len(value_S) - 1)]
    for bits_SD, bytes_D in terms:
        bits_D, count = bits_SD.mean(0), len(bytes_D)
        left_D = bits_D - bits_D.sum() / bytes_D.sum() * bytes_D  # of a ratio of sums
        parts.append((float(left_D @ left_D) * count / (count - 1) / float(bytes_D.sum()) ** 2, count - 1))
    value, variance = float(value_S.mean()), sum(part for part, _ in parts)
    if variance == 0:
        return Estimate(value, value, value)
    freedom = variance**2 / sum(part**2 / of for part, of in parts)
    reach = -float(stdtrit(freedom, _TAIL)) * variance**0.5
    return Estimate(value, value - reach, value + reach)
