"""A baseline, the simplest selection by embeddings: the windows nearest to the mean embedding of the specialist sample.

Shapes: N windows, S specialists, D width of the embedding.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.arrays import F32
from pipeline.scoring import Model, RatioKind, Rows


class Nearest:
    """A `Scorer`: cosine similarity to the mean embedding of the sample. It needs no background."""

    ratio_kind: RatioKind = "top"
    background_windows: int | None = 0

    def background(self, rows: Rows) -> None:
        del rows

    def fit(self, backgrounds: Sequence[Any], sample: Rows) -> Model:
        del backgrounds
        return {"mean_D": sample.x_ND.mean(axis=0, dtype=np.float64)}

    def scores(self, models: Sequence[Model], rows: Rows, seed: int) -> F32:
        """(N, S) cosine similarities; embeddings are L2-normalised."""
        del seed
        mean_DS = np.stack([model["mean_D"] / max(float(np.linalg.norm(model["mean_D"])), 1e-30) for model in models], axis=1)
        return np.asarray(rows.x_ND.astype(np.float64) @ mean_DS, np.float32)
