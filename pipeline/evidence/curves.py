"""What curves over the natural share say at the points of other arms: who gains more at a price, and who pays less for a gain.

Shapes: P points along a curve.
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
    """A curve against the point of another arm. None where the curve does not get there."""

    curve: str
    point: str
    gain: Estimate | None  # bits per byte of the first text, curve less point, where the other text costs the curve no more
    price: Estimate | None  # what the other text loses to natural on the curve, where its first text is no worse
    point_price: float  # what it loses at the point


def natural_arm(comparison: Comparison) -> str | None:
    """The arm that draws as the generalist is, where there is one."""
    natural = (arm for arm, run in comparison.runs.items() if run.config.weights.estimator == "natural" and arm != SPECIALIST_ONLY)
    return next(natural, None)


def curves_of(comparison: Comparison) -> dict[str, list[str]]:
    """By the arm with the smallest natural share: the arms along its curve, by rising share.

    They differ in `weights.natural_share` alone. Natural text, where it is an arm, ends each; it and the sample alone have none.
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
    """All arms but the further points of curves."""
    further = {arm for along in curves_of(comparison).values() for arm in along[1:]} - {natural_arm(comparison)}
    return [arm for arm in comparison.runs if arm not in further]


def versus(comparison: Comparison, other: str) -> list[Versus]:
    """Each curve against each arm that is not on it: the first held-out text against `other`. None without natural text."""
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
    """What all proxies make of a held-out text."""

    bits_SD: Mapping[str, F64]  # by arm
    bytes_D: F64

    @classmethod
    def of(cls, seeds_of: Mapping[str, Sequence[Mapping[str, Mapping[str, Sequence[float]]]]], name: str) -> "Text":
        bits = {arm: np.array([seed["bits"][name] for seed in seeds]) for arm, seeds in seeds_of.items()}
        return cls(bits, np.array(next(iter(seeds_of.values()))[0]["bytes"][name], np.float64))

    def figure(self, arm: str) -> float:
        """Bits per byte."""
        return float(self.bits_SD[arm].mean(0).sum() / self.bytes_D.sum())

    def sum(self, factors: Sequence[tuple[float, str]]) -> tuple[F64, F64]:
        """A term of an estimate: the arms' bits, each times its factor."""
        return np.sum([factor * self.bits_SD[arm] for factor, arm in factors], axis=0), self.bytes_D


def read(first: Text, other: Text, along: Sequence[str], point: str, natural: str) -> Versus:
    """Read a curve where it costs what a point costs, and where it gains what the point gains.

    It is read at one place, on the line between two of its points, and not where noise is kindest. How far that place is off is
    part of the interval (delta method): with slope b there, the gain is that of the curve at its place less the point's, plus b
    times what the point costs more than the place.
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
    if y_P[0] <= y:
        place = crossing(y_P, y)
        if place:
            price = _read_at(other, first, along, place, _slope(y_P, x_P, place), point, less=natural)
        else:
            price = estimate([other.sum([(1.0, along[-1]), (-1.0, natural)])])
    return Versus(along[0], point, gain, price, x - other.figure(natural))


def _read_at(
    text: Text, by: Text, along: Sequence[str], place: tuple[int, float], slope: float, point: str, *, less: str
) -> Estimate:
    """A curve's figure of one text, less an arm's, at a place that was found by another text."""
    i, part = place
    here = [(1 - part, along[i]), (part, along[i + 1])]
    away = [(slope, point), *((-slope * factor, arm) for factor, arm in here)]
    return estimate([text.sum([*here, (-1.0, less)]), by.sum(away)])


def crossing(value_P: Sequence[float], limit: float) -> tuple[int, float] | None:
    """Where the lines that join values first reach a limit: the point before, and what part of the way to the next one."""
    for i, (start, end) in enumerate(itertools.pairwise(value_P)):
        if start != end and min(start, end) <= limit <= max(start, end):
            return i, (limit - start) / (end - start)
    return None


def _slope(from_P: Sequence[float], to_P: Sequence[float], place: tuple[int, float]) -> float:
    i, _ = place
    return (to_P[i + 1] - to_P[i]) / (from_P[i + 1] - from_P[i])
