"""Estimators that look at windows one by one: each window gets a score, how much it is like a specialist's sample.

A scorer learns once, from the samples and from what it needs of the generalist, and then reads every window once. What its scores
mean for the number of copies is said by `draws`:

- `odds`: a score is the log of P(x | specialist) / P(x | generalist), and copies are in proportion to that ratio, up to the cap;
- `top`: windows with the highest scores are taken once each, until the budget is full.

Shapes: N windows, S specialists, D width of the embedding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays import F32

# A fitted scorer, as plain arrays by name: what is kept on disk.
Model = Mapping[str, NDArray[Any]]
Draws = Literal["odds", "top"]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Windows, as a scorer sees them."""

    key_N: NDArray[np.uint64]
    texts: Sequence[str]
    x_ND: F32

    def __len__(self) -> int:
        return len(self.key_N)

    def take(self, row_M: NDArray[np.integer]) -> "Rows":
        """Some of the rows."""
        return Rows(key_N=self.key_N[row_M], texts=[self.texts[row] for row in row_M], x_ND=self.x_ND[row_M])

    @staticmethod
    def joined(parts: Sequence["Rows"]) -> "Rows":
        """The rows of one or more parts, in their order."""
        return Rows(
            key_N=np.concatenate([part.key_N for part in parts]),
            texts=[text for part in parts for text in part.texts],
            x_ND=np.concatenate([part.x_ND for part in parts]),
        )


class Scorer(Protocol):
    """One way to score windows; all of it is a function of its arguments."""

    draws: Draws
    background_windows: int | None  # how many windows of the generalist, chosen by hash, it learns from; None: all, added up

    def background(self, rows: Rows) -> Any:
        """What is learnt from some windows of the generalist; goes from a worker to the fit."""

    def fit(self, backgrounds: Sequence[Any], sample: Rows) -> Model:
        """The model of one specialist, from its sample and the backgrounds of all parts, in the order of the parts."""

    def scores(self, models: Sequence[Model], rows: Rows, seed: int) -> F32:
        """(N, S) score of each window by each model; -inf: not to be taken."""


def scorer(name: str) -> Scorer:
    """The scorer of an estimator's name."""
    from pipeline.scoring import classifier, density, dsir, nearest

    made: dict[str, Scorer] = {
        "density": density.Density(),
        "dsir": dsir.Dsir(),
        "classifier": classifier.Classifier(),
        "nearest": nearest.Nearest(),
    }
    return made[name]
