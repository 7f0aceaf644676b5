"""Membership inference: can one tell from a model's losses which images it was trained on?

    s_i = 1 - mean over draws of the share of all images whose loss at that draw is below that of image i

A draw is a timestep and a noise, the same for all images, so that draws of large losses do not outweigh the others.
Those count whose timestep is in the lower three tenths: with more noise, how hard an image is outweighs whether it was
trained on (so at little noise in Carlini et al., 2023, too). The others are shown by bands. An image that was trained
on has a lower loss than others like it, and the more so the better it is remembered: the attacker calls those images
members whose s_i is large. On average that says little. What counts is how many members are told at few false alarms
(Carlini et al., IEEE S&P 2022, arXiv 2112.03570).

Source of the attack: Yeom et al., CSF 2018, arXiv 1709.01604; on diffusion models Matsumoto et al., 2023, arXiv
2302.03262, and Carlini et al., USENIX Security 2023, arXiv 2301.13188, section 5. It needs no other model; attacks that
train models of their own tell more, so what this one does not show is not shown to be safe. No torch here.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from iet_agc.metrics.intervals import (
    Count,
    Interval,
    Portion,
    Proportion,
    Record,
    auc_interval,
    calibration_rank,
    share,
)

__all__ = [
    "BANDS",
    "FALSE_ALARMS",
    "Area",
    "Band",
    "Correlation",
    "Found",
    "Membership",
    "TooFew",
    "attacked",
    "correlation",
    "membership",
    "scores",
]

#: Rates of false alarms at which members are told, and bands of timesteps.
FALSE_ALARMS, BANDS = (0.01, 0.001), 10

#: The score is of draws below this share of all timesteps.
_ATTACKED = 0.3


class Area(Record):
    """Area under the ROC curve: how often a member has the higher score of a random pair, ties half; 0.5 is chance.

    The interval is over images of both kinds (Newcombe, 2006), of one model.
    """

    value: Portion
    ci95: Interval


class Found(Proportion):
    """The share of members above the score under which all but the allowed share of other images lie.

    Attributes:
        false_alarm: the share of images that were not trained on which is called members, by the cut's making.
        cut: the score.
        num_held_out: how many images set it.
    """

    false_alarm: Annotated[float, Field(gt=0, lt=1)]
    cut: float
    num_held_out: Count


class TooFew(Record):
    """Why there is no share of members found at a rate of false alarms: it takes more held-out images."""

    false_alarm: Annotated[float, Field(gt=0, lt=1)]
    num_held_out: Count
    num_needed: Count


class Band(Record):
    """Timesteps [low, high): mean losses of both kinds, and the area by draws in that band alone."""

    low: Count
    high: Count
    loss_train: float
    loss_held_out: float
    auc: Area


class Correlation(Record):
    """Spearman's rank correlation, with the interval of Bonett and Wright (Psychometrika, 2000)."""

    value: Annotated[float, Field(ge=-1, le=1)]
    ci95: Interval


class Membership(Record):
    """How well losses tell training images from others.

    Attributes:
        num_train, num_held_out, draws: images of either kind, and losses of each.
        auc: by the draws that count, and so what is found.
        found: at each rate of false alarms.
        bands: those of timesteps in which there are draws.
    """

    num_train: Count
    num_held_out: Count
    draws: Count
    auc: Area
    found: tuple[Found | TooFew, ...]
    bands: tuple[Band, ...]


def scores(
    train: NDArray[np.floating], held_out: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """s of each image, see this module.

    Args:
        train, held_out: losses, (N, T) and (M, T): a row per image, a column per draw.

    Returns:
        float64 (N,) and (M,), in [0, 1].

    Raises:
        ValueError: no images of one kind, no draws, other draws, or a loss that is no number.
    """
    from scipy.stats import rankdata

    if (
        train.ndim != 2
        or held_out.ndim != 2
        or train.shape[1] != held_out.shape[1]
        or 0 in train.shape + held_out.shape
    ):
        raise ValueError(f"losses are (N, T) and (M, T), not {train.shape} and {held_out.shape}")
    both = np.concatenate([train, held_out])
    if not np.isfinite(both).all():
        raise ValueError("a loss is not finite")
    below = (rankdata(both, axis=0) - 1) / (len(both) - 1)  # of the others, ties half
    found = 1 - below.mean(axis=1)
    return found[: len(train)], found[len(train) :]


def attacked(timesteps: Sequence[int], num_timesteps: int) -> NDArray[np.bool_]:
    """Which draws count, bool (T,); all, where none has so little noise."""
    low = np.asarray(timesteps) < _ATTACKED * num_timesteps
    return low if low.any() else ~low


def membership(
    train: NDArray[np.floating],
    held_out: NDArray[np.floating],
    timesteps: Sequence[int],
    num_timesteps: int,
    false_alarms: Sequence[float] = FALSE_ALARMS,
) -> Membership:
    """How well losses tell training images from others.

    Args:
        train, held_out: see `scores`.
        timesteps: of each draw, (T,), in [0, num_timesteps).
        num_timesteps: of the noise schedule.
        false_alarms: shares of other images that may be called members.
    """
    mine, others = scores(*(each[:, attacked(timesteps, num_timesteps)] for each in (train, held_out)))
    return Membership(
        num_train=len(mine),
        num_held_out=len(others),
        draws=train.shape[1],
        auc=_area(mine, others),
        found=tuple(_found(mine, others, rate) for rate in false_alarms),
        bands=tuple(_bands(train, held_out, np.asarray(timesteps), num_timesteps)),
    )


def correlation(first: Sequence[float], second: Sequence[float]) -> Correlation | None:
    """Spearman's rank correlation; None of fewer than 4 pairs, or where one side is all the same."""
    from scipy.stats import spearmanr

    if len(first) < 4 or len({*first}) == 1 or len({*second}) == 1:
        return None
    value = float(np.clip(np.asarray(spearmanr(first, second))[0], -1, 1))
    error = 1.959964 * np.sqrt((1 + value**2 / 2) / (len(first) - 3))
    low, high = np.tanh(np.arctanh(np.clip(value, -1 + 1e-12, 1 - 1e-12)) + np.array([-error, error])).tolist()
    return Correlation(value=value, ci95=(min(low, value), max(high, value)))


def _area(mine: NDArray[np.float64], others: NDArray[np.float64]) -> Area:
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([mine, others]))[: len(mine)]
    value = float(ranks.sum() - len(mine) * (len(mine) + 1) / 2) / (len(mine) * len(others))
    return Area(value=value, ci95=auc_interval(value, len(mine), len(others)))


def _found(mine: NDArray[np.float64], others: NDArray[np.float64], false_alarm: float) -> Found | TooFew:
    rank = calibration_rank(false_alarm, len(others))
    if not rank:
        needed = round(1 / false_alarm) - 1
        return TooFew(false_alarm=false_alarm, num_held_out=len(others), num_needed=needed)
    cut = float(np.sort(others)[-rank])
    told = share(int((mine > cut).sum()), len(mine))
    return Found(**dict(told), false_alarm=false_alarm, cut=cut, num_held_out=len(others))


def _bands(
    train: NDArray[np.floating], held_out: NDArray[np.floating], timesteps: NDArray[np.int64], num_timesteps: int
) -> list[Band]:
    found = []
    for number in range(BANDS):
        low, high = (round(edge * num_timesteps / BANDS) for edge in (number, number + 1))
        inside = (timesteps >= low) & (timesteps < high)
        if inside.any():
            mine, others = train[:, inside], held_out[:, inside]
            means = {"loss_train": float(mine.mean()), "loss_held_out": float(others.mean())}
            found.append(Band(low=low, high=high, **means, auc=_area(*scores(mine, others))))
    return found
