"""What curves over the natural share say at the points of other arms: who gains more at a price, and who pays less for a gain.

Shapes: R resamples of seeds and documents (the first is no resample, but the figures themselves), S seeds, D documents, P points.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.evidence.settings import SPECIALIST_ONLY
from pipeline.evidence.steps import Comparison

_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A figure with its 90% interval over seeds and documents."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Versus:
    """A curve against the point of another arm. None where the curve does not get there."""

    curve: str
    point: str
    gain: Estimate | None  # bits per byte of the first text, curve less point, where the curve's figure of the other is no higher
    price: Estimate | None  # what the other text loses to natural on the curve, where its figure of the first text is no higher
    point_price: float  # what it loses at the point


def natural_arm(comparison: Comparison) -> str | None:
    """The arm that draws as the generalist is, where there is one."""
    natural = (arm for arm, run in comparison.runs.items() if run.config.weights.estimator == "natural" and arm != SPECIALIST_ONLY)
    return next(natural, None)


def curves_of(comparison: Comparison) -> dict[str, list[str]]:
    """By the arm without a natural share: the arms along its curve, by rising share. They differ in `weights.natural_share` alone.

    Natural text, where it is an arm, is the end of every curve; it and the sample alone have none of their own.
    """
    runs = comparison.runs
    natural = natural_arm(comparison)
    arms_of: dict[str, dict[float, str]] = {}
    for arm, run in runs.items():
        if run.config.weights.estimator == "natural" or arm == SPECIALIST_ONLY:
            continue
        like = run.config.model_copy(update={"weights": run.config.weights.model_copy(update={"natural_share": 0.0})})
        arms_of.setdefault(like.model_dump_json(), {}).setdefault(run.config.weights.natural_share, arm)
    curves = ([arms[share] for share in sorted(arms)] for arms in arms_of.values() if len(arms) > 1)
    return {along[0]: [*along, *([natural] if natural else [])] for along in curves}


def plain_arms(comparison: Comparison) -> list[str]:
    """All arms but the further points of curves."""
    further = {arm for along in curves_of(comparison).values() for arm in along[1:]} - {natural_arm(comparison)}
    return [arm for arm in comparison.runs if arm not in further]


def versus(comparison: Comparison, other: str) -> list[Versus]:
    """Each curve against each arm that is not on it: the first held-out text against `other`."""
    first = next(iter(comparison.held_out))
    natural = natural_arm(comparison)
    if natural is None:
        return []
    xy_R = _resampled(comparison, [other, first])
    natural_R = xy_R[natural][:, 0]
    found = []
    for curve, along in curves_of(comparison).items():
        points_RP2 = np.stack([xy_R[arm] for arm in along], axis=1)
        for arm in plain_arms(comparison):
            if arm in (curve, natural):
                continue
            x_R, y_R = xy_R[arm].T
            gain_R = lowest(points_RP2[..., 0], points_RP2[..., 1], x_R) - y_R
            price_R = lowest(points_RP2[..., 1], points_RP2[..., 0], y_R) - natural_R
            found.append(Versus(curve, arm, _estimate(gain_R), _estimate(price_R), float(x_R[0] - natural_R[0])))
    return found


def lowest(x_RP: NDArray[np.float64], y_RP: NDArray[np.float64], limit_R: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R,) least y on the lines that join the points in their order, where x is at most `limit`; infinite where it nowhere is."""
    limit_R1 = limit_R[:, None]
    at_point_R: NDArray[np.float64] = np.where(x_RP <= limit_R1, y_RP, np.inf).min(axis=1)
    x0, x1, y0, y1 = x_RP[:, :-1], x_RP[:, 1:], y_RP[:, :-1], y_RP[:, 1:]
    crosses = (np.minimum(x0, x1) <= limit_R1) & (limit_R1 <= np.maximum(x0, x1)) & (x0 != x1)
    part = (limit_R1 - x0) / np.where(crosses, x1 - x0, 1.0)
    at_crossing_R: NDArray[np.float64] = np.where(crosses, y0 + part * (y1 - y0), np.inf).min(axis=1)
    found_R: NDArray[np.float64] = np.minimum(at_point_R, at_crossing_R)
    return found_R


def _resampled(comparison: Comparison, names: Sequence[str]) -> Mapping[str, NDArray[np.float64]]:
    """By arm: (R, names) bits per byte. All arms are resampled alike: the same seeds, and the same documents of a text."""
    rng = np.random.default_rng(0)
    columns: dict[str, list[NDArray[np.float64]]] = {arm: [] for arm in comparison.proxies}
    num_seeds = comparison.evidence.seeds
    weight_RS = _weights(rng, num_seeds)
    for name in names:
        some = next(iter(comparison.proxies.values())).manifest["seeds"]
        bytes_D = np.array(some[0]["bytes"][name], np.float64)
        weight_RD = _weights(rng, len(bytes_D))
        for arm, step in comparison.proxies.items():
            bits_SD = np.array([seed["bits"][name] for seed in step.manifest["seeds"]])
            bits_R = (weight_RS * (weight_RD @ bits_SD.T)).sum(1) / num_seeds
            columns[arm].append(bits_R / (weight_RD @ bytes_D))
    return {arm: np.stack(of_arm, axis=1) for arm, of_arm in columns.items()}


def _weights(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """(R, count) how often each is drawn; once in the first row."""
    drawn = [np.bincount(rng.integers(count, size=count), minlength=count) for _ in range(_RESAMPLES)]
    return np.stack([np.ones(count), *drawn]).astype(np.float64)


def _estimate(found_R: NDArray[np.float64]) -> Estimate | None:
    """None where the curve itself does not get there; a resample in which it does not counts as infinitely bad."""
    if not np.isfinite(found_R[0]):
        return None
    low, high = np.percentile(found_R[1:], [5, 95], method="nearest")
    return Estimate(float(found_R[0]), float(low), float(high))
