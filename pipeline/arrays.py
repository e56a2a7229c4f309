"""Type aliases for NumPy arrays."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Ints = NDArray[np.integer[Any]]
Keys = NDArray[np.uint64]  # identities of windows (`pipeline.hashing.window_keys`)
