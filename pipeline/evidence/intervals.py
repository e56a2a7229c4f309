"""Means over a few seeds and many documents, with confidence intervals that are valid for few seeds.

Shapes: S seeds, D documents of a held-out text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from pipeline.arrays import F64

_TAIL = 0.05  # probability in each tail


@dataclass(frozen=True)
class Estimate:
    """A value and its 90% confidence interval."""

    value: float
    low: float
    high: float


def estimate_mean(terms: Sequence[tuple[F64, F64]]) -> Estimate:
    """The mean over seeds of a sum of terms in bits per byte. Each term is a held-out text's (S, D) bits and (D,) bytes.

    Bits are those of an arm, or of a difference of arms, which pairs their seeds and documents. The variance is the sum of the
    variance between seeds and, for each term, the variance between documents. The interval is Student's, with the degrees of
    freedom of Welch (1947) and Satterthwaite (1946): with three seeds, a normal interval would contain the true value only 70% of
    the time. If the variance is 0, the interval is the value itself.
    """
    value_S = np.sum([bits_SD.sum(1) / bytes_D.sum() for bits_SD, bytes_D in terms], axis=0)
    components = [(float(value_S.var(ddof=1)) / len(value_S), len(value_S) - 1)]
    for bits_SD, bytes_D in terms:
        bits_D, num_documents = bits_SD.mean(0), len(bytes_D)
        residual_D = bits_D - bits_D.sum() / bytes_D.sum() * bytes_D  # of a ratio of sums
        ratio_variance = float(residual_D @ residual_D) * num_documents / (num_documents - 1) / float(bytes_D.sum()) ** 2
        components.append((ratio_variance, num_documents - 1))
    value, variance = float(value_S.mean()), sum(component for component, _ in components)
    if variance == 0:
        return Estimate(value, value, value)
    degrees_of_freedom = variance**2 / sum(component**2 / freedom for component, freedom in components)
    half_width = -float(stdtrit(degrees_of_freedom, _TAIL)) * variance**0.5
    return Estimate(value, value - half_width, value + half_width)
