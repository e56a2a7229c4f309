"""Compare an arm's curve over the natural share with the single points of other arms.

It answers two questions: at equal loss on the other text, which arm gains more on the first held-out text; and at equal gain,
which arm loses less.

Shapes: P points along a curve, S seeds, D documents of a held-out text.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.arrays import F64
from pipeline.evidence.intervals import Estimate, estimate_mean
from pipeline.evidence.settings import SPECIALIST_ONLY
from pipeline.evidence.steps import Comparison


@dataclass(frozen=True)
class CurveComparison:
    """A curve compared with the point of another arm. An estimate is None if the curve does not reach the point's value."""

    curve: str  # the first arm of the curve
    point: str  # the other arm
    gain: Estimate | None  # bits per byte of the first text, curve minus point, where the curve is no worse on the other text
    price: Estimate | None  # bits per byte of the other text, curve minus natural, where the curve is no worse on the first
    point_price: float  # bits per byte of the other text, point minus natural


def find_natural_arm(comparison: Comparison) -> str | None:
    """The arm with the natural mixture of the generalist corpus; None if no arm has it."""
    natural = (arm for arm, run in comparison.runs.items() if run.config.weights.estimator == "natural" and arm != SPECIALIST_ONLY)
    return next(natural, None)


def find_curves(comparison: Comparison) -> dict[str, list[str]]:
    """All curves: maps the arm with the smallest natural share to the arms along its curve, in ascending order of the share.

    The arms of a curve differ only in `weights.natural_share`. The natural arm, if present, is the last point of each curve; it
    and the specialist-only arm have no curve of their own.
    """
    runs = comparison.runs
    natural = find_natural_arm(comparison)
    arms_by_settings: dict[str, dict[float, str]] = {}
    for arm, run in runs.items():
        weights = run.config.resolved_weights
        if weights.estimator == "natural" or arm == SPECIALIST_ONLY:
            continue
        without_share = run.config.model_copy(update={"weights": weights.model_copy(update={"natural_share": 0.0})})
        arms_by_settings.setdefault(without_share.model_dump_json(exclude={"engine"}), {})[run.config.natural_share] = arm
    curves = ([arms[share] for share in sorted(arms)] for arms in arms_by_settings.values() if len(arms) > 1)
    return {curve[0]: [*curve, *([natural] if natural else [])] for curve in curves}


def list_plain_arms(comparison: Comparison) -> list[str]:
    """All arms except those that are a second or later point of a curve; the natural arm is included."""
    later_points = {arm for curve in find_curves(comparison).values() for arm in curve[1:]} - {find_natural_arm(comparison)}
    return [arm for arm in comparison.runs if arm not in later_points]


def compare_curves(comparison: Comparison, other: str) -> list[CurveComparison]:
    """Compare each curve with each plain arm except its own and the natural one, on the first held-out text and `other`.

    Empty if no arm is natural.
    """
    first = next(iter(comparison.held_out))
    natural = find_natural_arm(comparison)
    if natural is None:
        return []
    seeds_by_arm = {arm: step.manifest["seeds"] for arm, step in comparison.proxies.items()}
    first_bits, other_bits = (HeldOutBits.from_seeds(seeds_by_arm, name) for name in (first, other))
    return [
        compare_curve(first_bits, other_bits, curve, arm, natural)
        for curve_arm, curve in find_curves(comparison).items()
        for arm in list_plain_arms(comparison)
        if arm not in (curve_arm, natural)
    ]


@dataclass(frozen=True)
class HeldOutBits:
    """The bits that the proxies of all arms need to encode a held-out text."""

    bits_SD: Mapping[str, F64]  # (S, D) by arm
    bytes_D: F64

    @classmethod
    def from_seeds(
        cls, seeds_by_arm: Mapping[str, Sequence[Mapping[str, Mapping[str, Sequence[float]]]]], name: str
    ) -> "HeldOutBits":
        """The bits on the held-out text `name`, from the results of each seed in the manifests of the proxies."""
        bits = {arm: np.array([seed["bits"][name] for seed in seeds]) for arm, seeds in seeds_by_arm.items()}
        return cls(bits, np.array(next(iter(seeds_by_arm.values()))[0]["bytes"][name], np.float64))

    def mean_bits_per_byte(self, arm: str) -> float:
        """Bits per byte of an arm, mean over seeds."""
        return float(self.bits_SD[arm].mean(0).sum() / self.bytes_D.sum())

    def combine(self, factors: Sequence[tuple[float, str]]) -> tuple[F64, F64]:
        """A linear combination of the arms' bits, (S, D), and the bytes, (D,): a term for `estimate_mean`."""
        return np.sum([factor * self.bits_SD[arm] for factor, arm in factors], axis=0), self.bytes_D


def compare_curve(first: HeldOutBits, other: HeldOutBits, curve: Sequence[str], point: str, natural: str) -> CurveComparison:
    """Compare a curve with a point, where both lose the same on `other` and where both gain the same on `first`.

    `curve` lists its arms. The curve is interpolated linearly between neighbouring points, at the first crossing with the value of
    the point, not at the most favourable one; if its first point already loses no more on `other`, that point is used. The interval
    includes the uncertainty of the crossing (delta method): with slope b there, the gain is the curve's value at the crossing minus
    the point's, plus b times (loss of the point minus loss at the crossing).
    """
    x_P, y_P = ([text.mean_bits_per_byte(arm) for arm in curve] for text in (other, first))
    x, y = other.mean_bits_per_byte(point), first.mean_bits_per_byte(point)

    gain = price = None
    # The smallest natural share at which the other text is no worse.
    if x_P[0] <= x:
        gain = estimate_mean([first.combine([(1.0, curve[0]), (-1.0, point)])])
    elif crossing := find_crossing(x_P, x):
        gain = _estimate_at(crossing, first, other, curve, _compute_slope(x_P, y_P, crossing), point, subtracted=point)
    # The largest natural share at which the first text is no worse.
    if crossing := find_crossing(y_P, y):
        price = _estimate_at(crossing, other, first, curve, _compute_slope(y_P, x_P, crossing), point, subtracted=natural)
    elif y_P[0] <= y:
        price = estimate_mean([other.combine([(1.0, curve[-1]), (-1.0, natural)])])
    return CurveComparison(curve[0], point, gain, price, x - other.mean_bits_per_byte(natural))


def _estimate_at(
    crossing: tuple[int, float],
    text: HeldOutBits,
    crossed: HeldOutBits,
    curve: Sequence[str],
    slope: float,
    point: str,
    *,
    subtracted: str,
) -> Estimate:
    """Bits per byte of `text` on the curve at `crossing`, minus those of the arm `subtracted`.

    `crossed` is the text on which the curve reaches the point's value. `slope` is that of the curve of `text` over `crossed` at the
    crossing.
    """
    i, fraction = crossing
    interpolated = [(1 - fraction, curve[i]), (fraction, curve[i + 1])]
    shift = [(slope, point), *((-slope * factor, arm) for factor, arm in interpolated)]
    return estimate_mean([text.combine([*interpolated, (-1.0, subtracted)]), crossed.combine(shift)])


def find_crossing(value_P: Sequence[float], limit: float) -> tuple[int, float] | None:
    """Find where the line through the values first reaches `limit`: index of the point before, and fraction of the way to the next.

    None if the line never reaches it.
    """
    for i, (start, end) in enumerate(itertools.pairwise(value_P)):
        if start != end and min(start, end) <= limit <= max(start, end):
            return i, (limit - start) / (end - start)
    return None


def _compute_slope(x_P: Sequence[float], y_P: Sequence[float], crossing: tuple[int, float]) -> float:
    i, _ = crossing
    return (y_P[i + 1] - y_P[i]) / (x_P[i + 1] - x_P[i])
