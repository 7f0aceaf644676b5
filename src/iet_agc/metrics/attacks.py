"""How many training images an attack recovers, with held-out images as its control. No torch here.

Each drawn image is of a target: of the image that it was redrawn from or that an embedding was fitted to, or of the
nearest one where only a prompt, or nothing, said what to draw. The score of a target is the smallest ratio r of the
images drawn of it, see `metrics.target_ratios`. It is

    recovered    where its score < min(cut of the audit, cut of the attack)

The cut of the attack is the score that 1 % of held-out images stay below, which went through the same attack: what is
redrawn from an image is near it by the making. Held-out images are halved at random. Each half sets a cut, by which the
other half is counted; training images are counted by the smaller one. What is drawn of a recovered image is thus a copy
as an audit finds it, and one that the procedure alone does not explain.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from iet_agc.metrics.intervals import Count, Interval, Proportion, Record, calibration_rank, difference, share

__all__ = [
    "LEAST_HELD_OUT",
    "WAYS",
    "Attack",
    "Attacks",
    "Difference",
    "Drawn",
    "Rate",
    "Way",
    "attack",
    "against_sampling",
    "halves",
]

#: A way to look for copies.
Way = Literal["sampling", "redrawing", "ranking", "embeddings"]

#: What each is, in words.
WAYS: dict[Way, str] = {
    "sampling": "plain sampling",
    "redrawing": "targets noised and redrawn",
    "ranking": "suspicious captions sampled",
    "embeddings": "embeddings fitted to targets",
}

#: Share of held-out images that the cut of an attack may call recovered, and how many are needed: 99 in each half.
_FALSE_ALARM, LEAST_HELD_OUT = 0.01, 198

#: Samples and seconds that rates are for.
_SAMPLES, _HOUR = 1000, 3600.0


class Rate(Record):
    """A number of images for each unit of effort, with the interval of the share of images that were recovered."""

    value: Annotated[float, Field(ge=0)]
    ci95: Interval


class Difference(Record):
    """How much larger the share of training images is that was recovered, than that of held-out images."""

    value: float
    ci95: Interval


class Attack(Record):
    """What one way recovers.

    Attributes:
        way: which.
        drawings: images that were drawn for training images; the control is not among them, and not in what follows.
        evaluations: of the model, one for each image and step; two with guidance, three where it is differentiated.
        seconds: of a CPU core, or of the GPU, drawing; without the search for copies.
        cut: of the scores of training images; the smaller of the audit's and the attack's.
        own_cut: that of the attack; None where not even 1 % of held-out images were drawn.
        train: different training images recovered, of those that were attacked.
        held_out: the same of held-out images, each by the cut of the half that it is not in.
        beyond_chance: the difference of both shares.
        per_1000_samples: training images recovered for as many evaluations as 1,000 plain samples take.
        per_hour: training images recovered in an hour of one CPU core, or of the GPU.
        found_after: evaluations until each recovered image was, ascending.
        sampling_by_then: how many training images plain sampling recovered with as many evaluations; None of itself.
        times_sampling: recovered per second, over that of plain sampling with as many evaluations; None of itself, and
            where that recovered none.
    """

    way: Way
    drawings: Annotated[int, Field(ge=1)]
    evaluations: Annotated[int, Field(ge=1)]
    seconds: Annotated[float, Field(gt=0)]
    cut: float
    own_cut: float | None
    train: Proportion
    held_out: Proportion
    beyond_chance: Difference
    per_1000_samples: Rate
    per_hour: Rate
    found_after: tuple[Count, ...]
    sampling_by_then: Count | None = None
    times_sampling: Rate | None = None

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if len(self.found_after) != self.train.count:
            raise ValueError(f"{self.train.count} images are recovered, and {len(self.found_after)} were found")
        return self

    @property
    def is_beyond_chance(self) -> bool:
        """Whether training images are recovered more often than held-out images, by the interval."""
        return self.beyond_chance.ci95[0] > 0


class Attacks(Record):
    """Ways to look for copies of the same images in the same model.

    Attributes:
        num_train: unique training images.
        num_held_out: held-out images that are no near copies of them.
        audit_cut: see `attack`.
        unit: what `Attack.seconds` are of.
        attacks: plain sampling, then the others.
    """

    num_train: Count
    num_held_out: Count
    audit_cut: float
    unit: Literal["CPU", "GPU"]
    attacks: tuple[Attack, ...]


@dataclass(frozen=True)
class Drawn:
    """Images that were drawn, in their order.

    Attributes:
        targets: which image each is of, int64 (N,).
        ratios: r of each, float64 (N,).
        num_targets: how many images were attacked, M.
    """

    targets: NDArray[np.int64]
    ratios: NDArray[np.float64]
    num_targets: int

    @property
    def scores(self) -> NDArray[np.float64]:
        """The smallest ratio of each target, float64 (M,); infinite where none was drawn of it."""
        found = np.full(self.num_targets, np.inf)
        np.minimum.at(found, self.targets, self.ratios)
        return found

    def recovered(self, cut: float) -> dict[int, int]:
        """The targets recovered by a cut, each with the first drawing that did, in the order of these."""
        below = np.flatnonzero(self.ratios < cut)
        targets, first = np.unique(self.targets[below], return_index=True)
        return {int(targets[at]): int(below[first[at]]) for at in np.argsort(first)}

    def closest(self, most: int) -> list[tuple[int, int]]:
        """The targets of the lowest scores, at most so many: each, and the drawing that has it."""
        order = np.lexsort((np.arange(len(self.ratios)), self.ratios))
        _, first = np.unique(self.targets[order], return_index=True)
        return [(int(self.targets[at]), int(at)) for at in order[np.sort(first)][:most]]


def halves(count: int) -> NDArray[np.bool_]:
    """Which of so many held-out images are in the first half, bool (count,), drawn at random by a fixed seed."""
    chosen = np.zeros(count, dtype=np.bool_)
    chosen[np.random.default_rng(0).permutation(count)[: (count + 1) // 2]] = True
    return chosen


def attack(
    way: Way,
    train: Drawn,
    held_out: Drawn,
    audit_cut: float,
    evaluations: int,
    seconds: float,
    steps: int,
    before: int = 0,
) -> Attack:
    """Count what one way recovers.

    Args:
        way: which.
        train, held_out: what was drawn of either kind.
        audit_cut: the distance ratio below which an audit calls an image a copy.
        evaluations, seconds: see `Attack`.
        steps: evaluations of the model for one plain sample.
        before: those of `evaluations` that come before the first drawing.

    Raises:
        ValueError: fewer than `LEAST_HELD_OUT` held-out images.
    """
    if held_out.num_targets < LEAST_HELD_OUT:
        raise ValueError(f"{held_out.num_targets} held-out images set no cut: give {LEAST_HELD_OUT} or more")
    first, real = halves(held_out.num_targets), held_out.scores
    own_cuts = [_own_cut(real[half]) for half in (first, ~first)]
    cut = min(*own_cuts, audit_cut)
    counts = [
        int((real[half] < min(own, audit_cut)).sum()) for half, own in zip((~first, first), own_cuts, strict=True)
    ]
    found = train.recovered(cut)
    mine, others = share(len(found), train.num_targets), share(sum(counts), len(real))
    value, limits = difference((mine.share, mine.ci95), (others.share, others.ci95))
    return Attack(
        way=way,
        drawings=len(train.ratios),
        evaluations=evaluations,
        seconds=seconds,
        cut=cut,
        own_cut=min(own_cuts) if np.isfinite(min(own_cuts)) else None,
        train=mine,
        held_out=others,
        beyond_chance=Difference(value=value, ci95=limits),
        per_1000_samples=_rate(mine, evaluations / steps / _SAMPLES),
        per_hour=_rate(mine, seconds / _HOUR),
        found_after=tuple(
            before + (drawing + 1) * (evaluations - before) // len(train.ratios) for drawing in found.values()
        ),
    )


def _own_cut(scores: NDArray[np.float64]) -> float:
    """The score that 1 % of further images like these stay below; infinite where so many were not drawn."""
    return float(np.sort(scores)[calibration_rank(_FALSE_ALARM, len(scores)) - 1])


def against_sampling(found: Attack, sampling: Attack) -> Attack:
    """The same, compared with plain sampling at as many evaluations."""
    by_then = sum(after <= found.evaluations for after in sampling.found_after)
    seconds = sampling.seconds * min(1, found.evaluations / sampling.evaluations)
    times = _times(found.train.count, found.seconds, by_then, seconds)
    return found.model_copy(update={"sampling_by_then": by_then, "times_sampling": times})


def _times(count: int, seconds: float, other: int, other_seconds: float) -> Rate | None:
    """The ratio of two rates per second; its interval is that of a binomial share of all that were recovered.

    Of m + n events in two times, m are binomial, whatever the sum (Przyborowski and Wilenski, Biometrika 31, 1940).
    """
    if not other:
        return None
    effort = other_seconds / seconds
    low, high = share(count, count + other).ci95
    return Rate(value=count / other * effort, ci95=(low / (1 - low) * effort, high / (1 - high) * effort))


def _rate(found: Proportion, effort: float) -> Rate:
    low, high = found.ci95
    return Rate(value=found.count / effort, ci95=(low * found.total / effort, high * found.total / effort))
