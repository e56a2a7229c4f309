"""Normalisation of vectors, shared by all kinds of embedders.

Shapes: N texts, D width of the embedding.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays import F32


def normalise_rows(x_ND: NDArray[np.floating]) -> F32:
    """(N, D) rows scaled to length 1; a row that is zero or not finite becomes all NaN, so that it is not used as a direction."""
    x_ND = np.asarray(x_ND, dtype=np.float32)
    norm_N1 = np.linalg.norm(x_ND, axis=1, keepdims=True)
    usable_N1 = np.isfinite(norm_N1) & (norm_N1 > 0)
    unit_ND: F32 = np.divide(x_ND, norm_N1, out=np.full_like(x_ND, np.nan), where=usable_N1)
    return unit_ND
