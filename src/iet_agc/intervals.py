"""Shares and differences of shares, with 95 % intervals. No torch here: the audit counts, and the report compares."""

import math
from fractions import Fraction
from typing import Any

from scipy.stats import binomtest

__all__ = ["calibration_rank", "difference_of_shares", "hundredths", "share"]


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
