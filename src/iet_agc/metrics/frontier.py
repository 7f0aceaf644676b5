"""Several numbers at once, all of which are better when lower: Pareto sets, hypervolumes, differences over seeds.

No torch here: pages compare with it.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from iet_agc.metrics.intervals import Interval, Record, difference, mean, share, share_over_runs

__all__ = ["Difference", "Noise", "hypervolume", "noise", "paired_difference", "pareto_set", "share_difference"]

Name = TypeVar("Name", bound=Hashable)

#: A point of two numbers, of both of which less is better.
Point = tuple[float, float]


class Difference(Record):
    """How much larger one mean is than another.

    Attributes:
        mean: the difference of the two means.
        ci95: its 95 % interval; None where it is not known, as of a single seed.
    """

    mean: float
    ci95: Interval | None

    @property
    def is_sure(self) -> bool:
        """Whether the interval does not hold 0."""
        return self.ci95 is not None and not self.ci95[0] <= 0 <= self.ci95[1]


class Noise(Record):
    """How much a number differs between seeds.

    Attributes:
        deviation: standard deviation over seeds; None of a single one.
    """

    deviation: float | None

    def hides(self, apart: Difference) -> bool:
        """Whether a difference is smaller than what one seed differs from another."""
        return self.deviation is not None and abs(apart.mean) < self.deviation


def pareto_set(points: Mapping[Name, Point]) -> list[Name]:
    """The points than which no other is as low in both numbers and lower in one.

    Args:
        points: by name.

    Returns:
        Names, by rising first number. Of equal points all are in it, or none.
    """
    best = [
        name
        for name, (x, y) in points.items()
        if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points.values())
    ]
    return sorted(best, key=lambda name: points[name])


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """The area that points dominate below a reference point, as a share of the rectangle between it and (0, 0).

    A place is dominated by a point that is as low or lower in both numbers. The measure of Zitzler and Thiele, IEEE
    Transactions on Evolutionary Computation 3, 1999, in two dimensions; it only grows when a point is added.

    Args:
        points: of numbers from 0 on; what is not below the reference point in both adds nothing.
        reference: both above 0.

    Returns:
        In [0, 1]; 0 of no points.

    Raises:
        ValueError: no rectangle, or a number below 0.
    """
    if min(reference) <= 0 or any(min(point) < 0 for point in points):
        raise ValueError(f"no share of the rectangle up to {reference}: numbers must be 0 or more, it above 0")
    right, top = reference
    height, area = top, 0.0
    for x, y in sorted(points):
        if x < right and y < height:
            area += (right - x) * (height - y)
            height = y
    return area / (right * top)


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """The mean of the first less that of the second, seed by seed, with Student's 95 % interval.

    Args:
        first, second: a number of each seed, in the same order.

    Returns:
        Without an interval where there is one pair, or pairs that differ by the same to the last digit: so few tell
        nothing of how seeds differ.

    Raises:
        ValueError: not as many of the one as of the other, or none.
    """
    apart = [a - b for a, b in zip(first, second, strict=True)]
    found = mean(apart)
    agree = max(apart) - min(apart) <= 1e-12 * max(map(abs, (*first, *second)))
    return Difference(mean=found.mean, ci95=None if agree else found.ci95)


def share_difference(first: Sequence[tuple[int, int]], second: Sequence[tuple[int, int]]) -> Difference:
    """The mean share of the first less that of the second, with a 95 % interval that knows how shares vary over seeds.

    From the intervals of the two (`intervals.share_over_runs`, of a single run `intervals.share`), as if they were
    independent (`intervals.difference`): Student's t of pairs has no width where no run copied anything.

    Args:
        first, second: (count, total) of each seed.
    """
    mine, theirs = _with_limits(first), _with_limits(second)
    apart, limits = difference(mine, theirs)
    return Difference(mean=apart, ci95=limits)


def _with_limits(runs: Sequence[tuple[int, int]]) -> tuple[float, Interval]:
    counts, totals = [count for count, _ in runs], [total for _, total in runs]
    limits = share_over_runs(counts, totals) if len(runs) > 1 else share(counts[0], totals[0]).ci95
    return float(np.mean(np.divide(counts, totals))), limits


def noise(values: Sequence[float]) -> Noise:
    """The standard deviation over seeds, with n - 1 in the denominator.

    Args:
        values: of each seed.
    """
    return Noise(deviation=float(np.std(values, ddof=1)) if len(values) > 1 else None)
