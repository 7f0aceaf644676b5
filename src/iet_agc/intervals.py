"""Shares, means and percentiles, with 95 % intervals. No torch here: the audit counts, and the report compares."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from scipy.stats import binom, binomtest, t

__all__ = ["calibration_rank", "difference_of_shares", "hundredths", "mean", "percentile", "share"]


def calibration_rank(false_alarm: float, held_out: int) -> int:
    """Which of the smallest of H held-out values is the cut under which a further real image rarely falls.

    Of H + 1 exchangeable values any is equally likely to be the smallest, the second smallest and so on. So a
    further one lies below the j-th smallest of H with a probability of at most j / (H + 1), and less with ties, as
    "below" is strict. The largest j that keeps this under a false-alarm rate is floor(false_alarm (H + 1)): the
    rule of split conformal prediction (Vovk et al., 2005). That probability is a mean over held-out sets; given one
    of them it follows Beta(j, H + 1 - j), with a standard deviation of about false_alarm / sqrt(j).

    Args:
        false_alarm: in (0, 1), taken as the decimal number that it is written as.
        held_out: how many values, H.

    Returns:
        j, from 1; 0 where H values cannot tell such a cut: at 1 %, fewer than 99.

    Raises:
        ValueError: false_alarm outside (0, 1).
    """
    if not 0 < false_alarm < 1:
        raise ValueError(f"false_alarm {false_alarm} is not between 0 and 1: give a share such as 0.01")
    return math.floor(Fraction(str(false_alarm)) * (held_out + 1))


def share(count: int, total: int) -> dict[str, Any]:
    """A share of independent draws, with Wilson's 95 % score interval (Wilson, 1927).

    Returns:
        {"count", "share", "ci95": [low, high]}, in [0, 1].

    Raises:
        ValueError: no draws at all, or more counted than drawn.
    """
    if total < 1 or not 0 <= count <= total:
        raise ValueError(
            f"there is no share of {count} in {total} images: give at least one image, and count within them"
        )
    interval = binomtest(count, total).proportion_ci(0.95, method="wilson")
    return {"count": count, "share": count / total, "ci95": [float(interval.low), float(interval.high)]}


def mean(values: Sequence[float]) -> dict[str, Any]:
    """A mean of independent draws, with Student's 95 % interval.

    Returns:
        {"mean", "ci95": [low, high]}; the interval of a single draw is null.

    Raises:
        ValueError: no draws at all.
    """
    if len(values) < 1:
        raise ValueError("there is no mean of no numbers: give at least one")
    found = float(np.mean(values))
    if len(values) < 2:
        return {"mean": found, "ci95": None}
    deviation = float(np.std(values, ddof=1)) if min(values) < max(values) else 0.0
    reach = float(t.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))
    return {"mean": found, "ci95": [found - reach, found + reach]}


def percentile(values: Sequence[float], of: float, limits: tuple[float, float]) -> dict[str, Any]:
    """A percentile of independent draws, with a 95 % interval of two order statistics that supposes no distribution.

    Of n draws B lie at or below the percentile of their population, and B is binomial with n and `of`. With l the 2.5th
    and u the 97.5th percentile of B, the l-th and the (u + 1)-th smallest draw enclose it with 95 % or more
    (Conover, Practical Nonparametric Statistics, 3.2). Where there is no such draw, a limit stands in its place: 95 %
    needs 72 draws or more for an upper bound.

    Args:
        values: the draws; between two of them the percentile is interpolated, as numpy does.
        of: which, in (0, 1).
        limits: the smallest and the largest value that could be.

    Returns:
        {"value", "ci95": [low, high]}.

    Raises:
        ValueError: no draws at all, or no such percentile.
    """
    if len(values) < 1 or not 0 < of < 1:
        raise ValueError(f"there is no percentile {of} of {len(values)} numbers: give some, and one between 0 and 1")
    low, high = (int(binom.ppf(tail, len(values), of)) for tail in (0.025, 0.975))
    ranks = [limits[0], *np.sort(np.asarray(values, dtype=np.float64)).tolist(), limits[1]]
    return {"value": float(np.quantile(values, of)), "ci95": [ranks[low], ranks[high + 1]]}


def difference_of_shares(count1: int, total1: int, count2: int, total2: int) -> dict[str, Any]:
    """How much larger the first of two independent shares is, for comparing two runs.

    Newcombe's hybrid score interval (Statistics in Medicine 17, 1998, method 10): with Wilson's limits l, u of each,

        d - sqrt((p1 - l1)^2 + (u2 - p2)^2)  ..  d + sqrt((u1 - p1)^2 + (p2 - l2)^2)

    Returns:
        {"difference", "ci95": [low, high]}, in [-1, 1]; 95 %. Training seeds differ more than draws of one
        model do, and this interval knows only the draws.

    Raises:
        ValueError: see `share`.
    """
    first, second = share(count1, total1), share(count2, total2)
    (low1, high1), (low2, high2) = first["ci95"], second["ci95"]
    p1, p2 = first["share"], second["share"]
    below, above = math.hypot(p1 - low1, high2 - p2), math.hypot(high1 - p1, p2 - low2)
    return {"difference": p1 - p2, "ci95": [p1 - p2 - below, p1 - p2 + above]}


def hundredths(share: float) -> str:
    """A share in percent, for people, with one decimal; 0 and 100 only where they are exact."""
    percent = 100 * share
    if 0 < percent < 0.05:
        return "<\u00a00.1"
    if 99.95 <= percent < 100:
        return ">\u00a099.9"
    return f"{percent:.0f}" if percent in (0, 100) else f"{percent:.1f}"
