"""Shares, means and percentiles, with 95 % intervals. No torch here: the audit counts, and the report compares.

What they return are records, checked whenever one is made, and so when one is read.
"""

import functools
import math
from collections.abc import Hashable, Sequence
from fractions import Fraction
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

__all__ = [
    "ROUNDING",
    "Count",
    "Interval",
    "Mean",
    "Percentile",
    "Portion",
    "Proportion",
    "Record",
    "auc_interval",
    "calibration_rank",
    "clustered_share",
    "difference",
    "hundredths",
    "least_calibrated_share",
    "mean",
    "percentile",
    "share",
    "share_over_runs",
    "student",
    "surely_above",
    "three_digits",
    "wilson",
]

#: A cut's rate of false alarms is averaged over so many of its quantiles: a tail is right to 1e-4.
_QUANTILES = 4096

#: What arithmetic in float32 may add to a number, or take from it.
ROUNDING = 1e-6


# Records ----------------------------------------------------------------------------------------------------


def _in_order(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError(f"an interval from {interval[0]!r} to {interval[1]!r}")
    return interval


#: The largest number of images: all whole numbers up to it are floats, too.
_MOST = 2**53

#: Limits, the lower one first; how many there are; and a number in [0, 1].
Interval = Annotated[tuple[float, float], AfterValidator(_in_order)]
Count = Annotated[int, Field(ge=0, le=_MOST)]
Portion = Annotated[float, Field(ge=0, le=1)]


class Record(BaseModel):
    """Numbers and words that belong together: finite, of just these names and kinds, and never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _OfDraws(Record):
    """What draws tell that may come in clusters, such as samples by their prompts; of others, no word of clusters."""

    @model_serializer(mode="wrap")
    def _unless_independent(self, plain: SerializerFunctionWrapHandler) -> dict[str, object]:
        found: dict[str, object] = plain(self)
        return {key: value for key, value in found.items() if value is not None or key not in _CLUSTERED}


#: What is left out of a record of independent draws.
_CLUSTERED = ("clusters", "design_effect")


class Proportion(_OfDraws):
    """A share of draws with its 95 % interval.

    Attributes:
        count, total: how many count, of how many.
        share: count / total.
        ci95: its limits, in [0, 1].
        clusters, design_effect: of draws that come in clusters, see `clustered_share`; None of independent ones.
    """

    count: Count
    total: Annotated[int, Field(ge=1, le=_MOST)]
    share: float
    ci95: Interval
    clusters: Annotated[int, Field(ge=1)] | None = None
    design_effect: Annotated[float, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        (low, high), expected = self.ci95, self.share * self.total
        if self.count > self.total or not math.isclose(self.count, expected, abs_tol=ROUNDING * self.total):
            raise ValueError(f"a share is {self.share!r}, and its count is {self.count} of {self.total}")
        if not -ROUNDING <= low <= self.share + ROUNDING or not self.share - ROUNDING <= high <= 1 + ROUNDING:
            raise ValueError(f"a share of {self.share!r} has the interval from {low!r} to {high!r}")
        if (self.clusters is None) != (self.design_effect is None):
            raise ValueError(f"a share has {self.clusters} clusters, the design effect {self.design_effect!r}")
        return self


class Mean(_OfDraws):
    """A mean of draws; its 95 % interval is None where it is that of one draw, or one cluster."""

    mean: float
    ci95: Interval | None
    clusters: Annotated[int, Field(ge=1)] | None = None


class Percentile(Record):
    """A percentile of draws with its 95 % interval."""

    value: float
    ci95: Interval


# Shares -----------------------------------------------------------------------------------------------------


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


def least_calibrated_share(count: int, total: int, false_alarm: float, held_out: int, risk: float) -> float:
    """Lower limit of the share of samples that a calibrated cut calls copies, with the cut's own uncertainty.

    The cut is drawn, too: given it, the rate of false alarms is F ~ Beta(j, H + 1 - j) (see `calibration_rank`). Where
    a share s of samples is copied and the others are like held-out images, a cut of just the nominal rate would call a
    share r of them copies, and a drawn one a share q:

        r = s + (1 - s) false_alarm        q = s + (1 - s) F        number below the cut ~ Binomial(total, q)

    Where r < false_alarm, fewer samples than held-out images come near: then q = F r / false_alarm. The limit is the
    smallest r that makes as many below the cut, or more, as frequent as `risk` over draws of held-out images and of
    samples. Chance is in it: a model that copies nothing has r = false_alarm.

    Args:
        count, total: samples below the cut, and all.
        false_alarm, held_out: what the cut was calibrated with.
        risk: in (0, 1): so often, at most, the limit lies above r.

    Returns:
        r, in [0, 1]; 0 where no sample is below the cut.

    Raises:
        ValueError: held-out images that are too few to set a cut.
    """
    low, high = 0.0, 1.0
    for _ in range(60 if count else 0):
        middle = (low + high) / 2
        above = _tail(count, total, middle, false_alarm, held_out) >= risk
        low, high = (low, middle) if above else (middle, high)
    return low


def surely_above(share: float, total: int, false_alarm: float, held_out: int, risk: float) -> tuple[int, float]:
    """From how many samples below a calibrated cut on `least_calibrated_share` is above a share.

    Returns:
        The count, `total` + 1 where none is enough; and how often samples that are like held-out images reach it.
    """
    low, high = 0, total + 1
    while high - low > 1:
        middle = (low + high) // 2
        enough = _tail(middle, total, share, false_alarm, held_out) < risk
        low, high = (low, middle) if enough else (middle, high)
    return high, _tail(high, total, false_alarm, false_alarm, held_out)


def _tail(count: int, total: int, share: float, false_alarm: float, held_out: int) -> float:
    """How often `count` samples or more are below a drawn cut; `share` is r of `least_calibrated_share`."""
    from scipy.special import betainc

    if not 0 < count <= total:
        return float(count <= 0)
    rates = _rates(false_alarm, held_out)
    copied = (share - false_alarm) / (1 - false_alarm)
    rates = share / false_alarm * rates if copied < 0 else copied + (1 - copied) * rates
    return float(betainc(count, total - count + 1, rates).mean())  # the binomial tail, without all of scipy.stats


@functools.lru_cache(16)
def _rates(false_alarm: float, held_out: int) -> NDArray[np.float64]:
    """Rates of false alarms of a cut, as likely one as another."""
    from scipy.special import betaincinv

    rank = calibration_rank(false_alarm, held_out)
    if rank < 1:
        raise ValueError(f"{held_out} held-out images set no cut of {false_alarm} false alarms: give more")
    return betaincinv(rank, held_out + 1 - rank, (np.arange(_QUANTILES) + 0.5) / _QUANTILES)


def share(count: int, total: int) -> Proportion:
    """A share of independent draws, with Wilson's 95 % score interval (Wilson, 1927).

    Raises:
        ValueError: no draws at all, or more counted than drawn.
    """
    if total < 1 or not 0 <= count <= total:
        raise ValueError(
            f"there is no share of {count} in {total} images: give at least one image, and count within them"
        )
    from scipy.stats import binomtest

    interval = binomtest(count, total).proportion_ci(0.95, method="wilson")
    limits = float(interval.low), float(interval.high)
    return Proportion(count=count, total=total, share=count / total, ci95=limits)


def auc_interval(auc: float, count: int, others: int) -> Interval:
    """Limits of an area under the ROC curve, which have width at 0 and 1, too; the Mann-Whitney statistic is one.

    Its limits are the areas A at which (A - auc)^2 = z^2 V(A), with m and n draws of each kind and

        V(A) = A (1 - A) (1 + ((m + n) / 2 - 1) ((1 - A) / (2 - A) + A / (1 + A))) / (m n)

    Source: Newcombe, Statistics in Medicine 25, 2006, page 559, method 5.

    Args:
        auc: in [0, 1].
        count, others: m and n, at least 1 each.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    z, paired = float(norm.ppf(0.975)), (count + others) / 2 - 1

    def excess(area: float) -> float:
        variance = area * (1 - area) * (1 + paired * ((1 - area) / (2 - area) + area / (1 + area))) / (count * others)
        return (area - auc) ** 2 - z**2 * variance

    inside = min(max(auc, 1e-9), 1 - 1e-9)  # where the excess is below 0, also of an area of 0 or 1
    low = 0.0 if auc == 0 else float(brentq(excess, 0, inside))  # pyright: ignore[reportArgumentType]
    high = 1.0 if auc == 1 else float(brentq(excess, inside, 1))  # pyright: ignore[reportArgumentType]
    return low, high


def student(freedom: float) -> float:
    """Student's 97.5 % quantile, half the width of a 95 % interval in standard errors; `freedom` in degrees."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))


def wilson(share: float, number: float, freedom: float) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share of an effective number of draws, with Student's quantile t:

        (p + t^2 / 2n -+ t sqrt(p (1 - p) / n + t^2 / 4n^2)) / (1 + t^2 / n)

    n is the number of independent draws that would make the share as uncertain as it is. As for shares in complex
    surveys (Kott and Carr, Journal of Official Statistics 13, 1997; Franco et al., Journal of Survey Statistics and
    Methodology 7, 2019).

    Args:
        share: p, in [0, 1].
        number: n, above 0.
        freedom: degrees of freedom of the estimate of n.

    Returns:
        (low, high), in [0, 1]; never without width.
    """
    quantile = student(freedom)
    square = quantile**2 / number
    reach = quantile * math.sqrt(share * (1 - share) / number + square / (4 * number))
    low, high = ((share + square / 2 + side * reach) / (1 + square) for side in (-1, 1))
    return max(low, 0.0) if share > 0 else 0.0, min(high, 1.0) if share < 1 else 1.0


def clustered_share(counted: Sequence[bool], clusters: Sequence[Hashable] | None) -> Proportion:
    """A share of draws that come in clusters, such as samples by their prompts: those of one are alike.

    The design effect D says how many draws are worth one that is independent: the variance of the share between
    clusters (of a ratio, with residuals x_j - p n_j) over the binomial one. It is estimated with one more cluster of
    average size, which speaks against the majority as a whole. Otherwise none of 24 prompts copied in 144 draws would
    pass for none of 144, though it is not known whether copies come singly or by prompts. 1 <= D <= sum n_j^2 / n. The
    interval is `wilson` of n / D draws, with a degree of freedom less than there are clusters.

    Args:
        counted: of each draw, whether it counts.
        clusters: which cluster each draw is of; None, or all different: independent draws.

    Returns:
        `share` of independent draws; else with clusters and design effect. Draws of a single cluster tell nothing of
        others: the interval is that of independent draws of this cluster, D is 1.
    """
    count, total = sum(map(bool, counted)), len(counted)
    found = share(count, total)
    if clusters is None or len(sizes := _sizes(clusters)) == total:
        return found
    effect, limits = 1.0, found.ci95
    if len(sizes) > 1:
        effect = _design_effect(_sums(counted, clusters), sizes)
        limits = wilson(found.share, total / effect, len(sizes) - 1)
    return Proportion(
        count=count, total=total, share=found.share, ci95=limits, clusters=len(sizes), design_effect=effect
    )


def _design_effect(counts: NDArray[np.float64], sizes: NDArray[np.float64]) -> float:
    most = float((sizes**2).sum() / sizes.sum())
    average = sizes.mean()
    against = average if 2 * counts.sum() <= sizes.sum() else 0.0
    counts, sizes = np.append(counts, against), np.append(sizes, average)
    share, number = counts.sum() / sizes.sum(), len(sizes)
    between = number / (number - 1) * ((counts - share * sizes) ** 2).sum() / sizes.sum() ** 2
    return float(np.clip(between * sizes.sum() / (share * (1 - share)), 1, most))


def _sums(values: Sequence[float], clusters: Sequence[Hashable]) -> NDArray[np.float64]:
    """Sums by cluster, in the order in which clusters first appear."""
    sums: dict[Hashable, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + value
    return np.array([*sums.values()], dtype=np.float64)


def _sizes(clusters: Sequence[Hashable]) -> NDArray[np.float64]:
    return _sums([1.0] * len(clusters), clusters)


def share_over_runs(
    counts: Sequence[int],
    totals: Sequence[int],
    others: tuple[Sequence[int], Sequence[int]] | None = None,
    prompts: Sequence[tuple[int, float]] | None = None,
) -> tuple[float, float]:
    """95 % interval of a mean share over training runs, of which each has a share of its own.

    With p the mean of K shares, its variance is p (1 - p) / n where runs agree, and where they do not that between
    runs: the larger of the variance of the shares and of that of their log odds, brought back by (p (1 - p))^2, since a
    skewed share shows its spread on one of the two. The larger of all gives the effective number of samples,
    p (1 - p) / variance, for `wilson` with K - 1 degrees of freedom. So it never claims more than the samples of all
    runs put together do, and with three runs that agree less, for three say little of how runs differ. How often it
    holds stands in docs/metrics.md.

    Args:
        counts, totals: of each run.
        others: those of two or more runs; a single run is taken to vary as these do. Only with a single run.
        prompts: of each run, clusters and design effect of `clustered_share`. Runs of the same prompts see no more
            prompts than one of them does, so the interval then holds that of one such run, at the mean, as well.

    Returns:
        (low, high), in [0, 1].

    Raises:
        ValueError: a single run, and no others.
    """
    told = others or (counts, totals)
    if len(told[0]) < 2:
        raise ValueError("one run does not tell how runs differ: give two or more")
    shares = np.divide(counts, totals)
    mean, width = float(shares.mean()), float(shares.mean() * (1 - shares.mean()))
    number = len(shares) / float(np.mean(1 / np.asarray(totals)))
    between = _variance_of_log_odds(*told) * width / len(shares)
    low, high = wilson(mean, 1 / between if between * number > 1 else number, len(told[0]) - 1)
    if prompts is None or (least := min(clusters for clusters, _ in prompts)) < 2:
        return low, high
    draws = float(np.mean([total / effect for total, (_, effect) in zip(totals, prompts, strict=True)]))
    by_prompt = wilson(mean, draws, least - 1)
    return min(low, by_prompt[0]), max(high, by_prompt[1])


def _variance_of_log_odds(counts: Sequence[int], totals: Sequence[int]) -> float:
    """Variance of the log odds of runs, by their shares or by the log odds themselves, whichever is larger."""
    if len({count / total for count, total in zip(counts, totals, strict=True)}) == 1:
        return 0.0
    x, n = np.asarray(counts, dtype=np.float64), np.asarray(totals, dtype=np.float64)
    mean = (x / n).mean()
    log_odds = np.log((x + 0.5) / (n - x + 0.5))
    return float(max(np.var(x / n, ddof=1) / (mean * (1 - mean)) ** 2, np.var(log_odds, ddof=1)))


def mean(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Mean:
    """A mean of draws, with Student's 95 % interval.

    Args:
        values: the draws.
        clusters: see `clustered_share`; then the variance is that between clusters, of a ratio.

    Raises:
        ValueError: no draws at all.
    """
    if len(values) < 1:
        raise ValueError("there is no mean of no numbers: give at least one")
    found = float(np.mean(values))
    if clusters is not None and (number := len(set(clusters))) < len(values):
        return Mean(mean=found, ci95=_clustered_limits(values, clusters, found), clusters=number)
    if len(values) < 2:
        return Mean(mean=found, ci95=None)
    deviation = float(np.std(values, ddof=1)) if min(values) < max(values) else 0.0
    reach = student(len(values) - 1) * deviation / math.sqrt(len(values))
    return Mean(mean=found, ci95=(found - reach, found + reach))


def _clustered_limits(values: Sequence[float], clusters: Sequence[Hashable], mean: float) -> Interval | None:
    residuals = _sums([value - mean for value in values], clusters)
    number = len(residuals)
    if number < 2:
        return None
    error = math.sqrt(number / (number - 1) * float((residuals**2).sum())) / len(values)
    reach = student(number - 1) * error
    return mean - reach, mean + reach


def percentile(values: Sequence[float], of: float, limits: tuple[float, float]) -> Percentile:
    """A percentile of independent draws, with a 95 % interval of two order statistics that supposes no distribution.

    Of n draws B lie at or below the percentile of their population, and B is binomial with n and `of`. With l the 2.5th
    and u the 97.5th percentile of B, the l-th and the (u + 1)-th smallest draw enclose it with 95 % or more
    (Conover, Practical Nonparametric Statistics, 3.2). Where there is no such draw, a limit stands in its place: 95 %
    needs 72 draws or more for an upper bound.

    Args:
        values: the draws; between two of them the percentile is interpolated, as numpy does.
        of: which, in (0, 1).
        limits: the smallest and the largest value that could be.

    Raises:
        ValueError: no draws at all, or no such percentile.
    """
    if len(values) < 1 or not 0 < of < 1:
        raise ValueError(f"there is no percentile {of} of {len(values)} numbers: give some, and one between 0 and 1")
    from scipy.stats import binom

    low, high = (int(binom.ppf(tail, len(values), of)) for tail in (0.025, 0.975))
    ranks = [limits[0], *np.sort(np.asarray(values, dtype=np.float64)).tolist(), limits[1]]
    return Percentile(value=float(np.quantile(values, of)), ci95=(ranks[low], ranks[high + 1]))


def difference(first: tuple[float, Interval], second: tuple[float, Interval]) -> tuple[float, tuple[float, float]]:
    """How much larger the first of two shares is, for comparing two runs, or two methods over runs.

    From the limits l, u of each (MOVER; Zou and Donner, Statistics in Medicine 27, 2008):

        d - sqrt((p1 - l1)^2 + (u2 - p2)^2)  ..  d + sqrt((u1 - p1)^2 + (p2 - l2)^2)

    With Wilson's limits of independent draws it is Newcombe's hybrid score interval (Statistics in Medicine 17, 1998,
    method 10). It supposes that the two are independent, and is too wide where they rise and fall together, as runs
    of one seed may; three pairs cannot tell how much.

    Args:
        first, second: a share and its limits, each.

    Returns:
        The difference, and its limits (low, high), in [-1, 1]; 95 %. They know what the limits of the two know: those
        of one run know only its draws, and training seeds differ more.
    """
    (p1, (low1, high1)), (p2, (low2, high2)) = first, second
    below, above = math.hypot(p1 - low1, high2 - p2), math.hypot(high1 - p1, p2 - low2)
    return p1 - p2, (p1 - p2 - below, p1 - p2 + above)


def three_digits(share: float) -> str:
    """A share in percent, for people, in three digits where it has them."""
    return f"{100 * share:.3g} %"


def hundredths(share: float) -> str:
    """A share in percent, for people, with one decimal; 0 and 100 only where they are exact."""
    percent = 100 * share
    if 0 < percent < 0.05:
        return "<\u00a00.1"
    if 99.95 <= percent < 100:
        return ">\u00a099.9"
    return f"{percent:.0f}" if percent in (0, 100) else f"{percent:.1f}"
