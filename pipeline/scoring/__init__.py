"""Scorers: each window of the generalist corpus gets a score per specialist, its similarity to the specialist sample.

A scorer is fitted once, on the specialist sample and on a background of generalist windows. Then it reads every window once. Its
attribute `ratio_kind` says how scores become copies (`mixture.strata`):

- `odds`: a score is the log of P(x | specialist) / P(x | generalist); copies grow with that ratio, up to the cap;
- `top`: the windows with the highest scores are taken once each, until the budget is full.

A new scorer is one module here and one entry in `make_scorer`. The package imports the foundation only (arrays, hashing, text).

Shapes: N windows, S specialists, D width of the embedding, M chosen rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays import F32

# A fitted scorer as NumPy arrays by name, the form in which it is stored.
Model = Mapping[str, NDArray[Any]]
RatioKind = Literal["odds", "top"]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The columns of windows that a scorer reads."""

    key_N: NDArray[np.uint64]
    texts: Sequence[str]
    x_ND: F32

    def __len__(self) -> int:
        return len(self.key_N)

    def take(self, row_M: NDArray[np.integer]) -> "Rows":
        """The chosen rows, in the order of `row_M`."""
        return Rows(key_N=self.key_N[row_M], texts=[self.texts[row] for row in row_M], x_ND=self.x_ND[row_M])

    @staticmethod
    def concat(parts: Sequence["Rows"]) -> "Rows":
        """The rows of one or more parts, in the order of the parts."""
        return Rows(
            key_N=np.concatenate([part.key_N for part in parts]),
            texts=[text for part in parts for text in part.texts],
            x_ND=np.concatenate([part.x_ND for part in parts]),
        )


class Scorer(Protocol):
    """A method to score windows; the result of each method depends on its arguments only."""

    ratio_kind: RatioKind
    background_windows: int | None  # windows of the background, chosen by hash; None: all, backgrounds summed with `+`

    def background(self, rows: Rows) -> Any:
        """What `fit` needs of some generalist windows; computed by a worker and sent to the fit."""

    def fit(self, backgrounds: Sequence[Any], sample: Rows) -> Model:
        """The model of one specialist, from its sample and all backgrounds, in the order of the parts."""

    def scores(self, models: Sequence[Model], rows: Rows, seed: int) -> F32:
        """(N, S) score of each window by each model; -inf: never take the window."""


def make_scorer(name: str) -> Scorer:
    """The scorer for the name of an estimator."""
    from pipeline.scoring import classifier, density, dsir, nearest

    made: dict[str, Scorer] = {
        "density": density.Density(),
        "dsir": dsir.Dsir(),
        "classifier": classifier.Classifier(),
        "nearest": nearest.Nearest(),
    }
    return made[name]
