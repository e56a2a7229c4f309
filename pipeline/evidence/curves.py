"""Compare an arm's curve over the natural share with the single points of other arms.

Two questions are answered: at equal loss on other text, which gains more on the first held-out text; and at equal gain, which
loses less.

Shapes: P points along a curve, S seeds, D documents of a held-out text.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.arrays import F64
from pipeline.evidence.intervals import Estimate, estimate
from pipeline.evidence.settings import SPECIALIST_ONLY
from pipeline.evidence.steps import Comparison


@dataclass(frozen=True)
class Versus:
    """A curve compared with the point of another arm. An estimate is None if the curve does not reach the point's value."""

    curve: str  # its arm
    point: str  # the other arm
    gain: Estimate | None  # bits per byte of the first text, curve minus point, where the curve is no worse on the other text
    price: Estimate | None  # bits per byte of the other text, curve minus natural, where the curve is no worse on the first
    point_price: float  # bits per byte of the other text, point minus natural


def natural_arm(comparison: Comparison) -> str | None:
    """The arm with the natural mixture of the generalist corpus, if there is one."""
    natural = (arm for arm, run in comparison.runs.items() if run.config.weights.estimator == "natural" and arm != SPECIALIST_ONLY)
    return next(natural, None)


def curves_of(comparison: Comparison) -> dict[str, list[str]]:
    """All curves: maps the arm with the smallest natural share to the arms along its curve, in ascending order of the share.

    The arms of a curve differ only in `weights.natural_share`. The natural arm, if there is one, ends each curve; it and the
    specialist-only arm have no curve of their own.
    """
    runs = comparison.runs
    natural = natural_arm(comparison)
    arms_of: dict[str, dict[float, str]] = {}
    for arm, run in runs.items():
        weights = run.config.full_weights
        if weights.estimator == "natural" or arm == SPECIALIST_ONLY:
            continue
        like = run.config.model_copy(update={"weights": weights.model_copy(update={"natural_share": 0.0})})
        arms_of.setdefault(like.model_dump_json(exclude={"engine"}), {})[run.config.natural_share] = arm
    curves = ([arms[share] for share in sorted(arms)] for arms in arms_of.values() if len(arms) > 1)
    return {along[0]: [*along, *([natural] if natural else [])] for along in curves}


def plain_arms(comparison: Comparison) -> list[str]:
    """All arms except those that are a second or later point of a curve; the natural arm is included."""
    further = {arm for along in curves_of(comparison).values() for arm in along[1:]} - {natural_arm(comparison)}
    return [arm for arm in comparison.runs if arm not in further]


def versus(comparison: Comparison, other: str) -> list[Versus]:
    """Compare each curve with each plain arm but its own and the natural one, on the first held-out text and `other`.

    Empty if there is no natural arm.
    """
    first = next(iter(comparison.held_out))
    natural = natural_arm(comparison)
    if natural is None:
        return []
    seeds_of = {arm: step.manifest["seeds"] for arm, step in comparison.proxies.items()}
    texts = [Text.of(seeds_of, name) for name in (first, other)]
    return [
        read(texts[0], texts[1], along, arm, natural)
        for curve, along in curves_of(comparison).items()
        for arm in plain_arms(comparison)
        if arm not in (curve, natural)
    ]


@dataclass(frozen=True)
class Text:
    """The scores of all proxies on a held-out text."""

    bits_SD: Mapping[str, F64]  # (S, D) by arm
    bytes_D: F64

    @classmethod
    def of(cls, seeds_of: Mapping[str, Sequence[Mapping[str, Mapping[str, Sequence[float]]]]], name: str) -> "Text":
        bits = {arm: np.array([seed["bits"][name] for seed in seeds]) for arm, seeds in seeds_of.items()}
        return cls(bits, np.array(next(iter(seeds_of.values()))[0]["bytes"][name], np.float64))

    def figure(self, arm: str) -> float:
        """Bits per byte of an arm, mean over seeds."""
        return float(self.bits_SD[arm].mean(0).sum() / self.bytes_D.sum())

    def sum(self, factors: Sequence[tuple[float, str]]) -> tuple[F64, F64]:
        """A linear combination of the arms' bits, (S, D), and the bytes, (D,): a term for `estimate`."""
        return np.sum([factor * self.bits_SD[arm] for factor, arm in factors], axis=0), self.bytes_D


def read(first: Text, other: Text, along: Sequence[str], point: str, natural: str) -> Versus:
    """Compare a curve with a point, where both lose the same on `other` and where both gain the same on `first`.

    The curve is interpolated linearly between neighbouring points, at the first place where it reaches the value of the point,
    not at the most favourable one; if its first point already loses no more on `other`, that point is used. The interval includes
    the uncertainty of the place (delta method): with slope b there, the gain is the curve's value at the place minus the point's,
    plus b times (loss of the point minus loss at the place).
    """
    x_P, y_P = ([text.figure(arm) for arm in along] for text in (other, first))
    x, y = other.figure(point), first.figure(point)

    gain = price = None
    # The smallest natural share at which the other text is no worse.
    if x_P[0] <= x:
        gain = estimate([first.sum([(1.0, along[0]), (-1.0, point)])])
    elif place := crossing(x_P, x):
        gain = _read_at(first, other, along, place, _slope(x_P, y_P, place), point, less=point)
    # The largest natural share at which the first text is no worse.
    if place := crossing(y_P, y):
        price = _read_at(other, first, along, place, _slope(y_P, x_P, place), point, less=natural)
    elif y_P[0] <= y:
        price = estimate([other.sum([(1.0, along[-1]), (-1.0, natural)])])
    return Versus(along[0], point, gain, price, x - other.figure(natural))


def _read_at(
    text: Text, by: Text, along: Sequence[str], place: tuple[int, float], slope: float, point: str, *, less: str
) -> Estimate:
    """Bits per byte of `text` on the curve at `place`, minus those of the arm `less`; `by` is the text that determined the place.

    `slope` is that of the curve of `text` over `by` at the place.
    """
    i, part = place
    here = [(1 - part, along[i]), (part, along[i + 1])]
    away = [(slope, point), *((-slope * factor, arm) for factor, arm in here)]
    return estimate([text.sum([*here, (-1.0, less)]), by.sum(away)])


def crossing(value_P: Sequence[float], limit: float) -> tuple[int, float] | None:
    """Where the line through the values first reaches `limit`: index of the point before, and fraction of the way to the next.

    None if it never does.
    """
    for i, (start, end) in enumerate(itertools.pairwise(value_P)):
        if start != end and min(start, end) <= limit <= max(start, end):
            return i, (limit - start) / (end - start)
    return None


def _slope(from_P: Sequence[float], to_P: Sequence[float], place: tuple[int, float]) -> float:
    i, _ = place
    return (to_P[i + 1] - to_P[i]) / (from_P[i + 1] - from_P[i])
