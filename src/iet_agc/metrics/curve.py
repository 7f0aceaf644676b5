"""The curve of a training: points at which copying and quality were measured, and which of them to keep. No torch.

A point's copied share is above chance by the test of `iet_agc.metrics.gate`: where its lower limit, by the draws of
samples and of the cut, is above the false alarms that the cut was made for. The recommendation is one of the points
that are not: the last, or the one with the lowest held-out loss (the lowest distance, where losses are not known). The
points after it say how sure it is, since each of them copies or is worse; an earlier one that is above chance makes it
less so.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, computed_field, model_validator

from iet_agc.metrics.gate import PIXELS, gate
from iet_agc.metrics.intervals import Count, Portion, Record, hundredths
from iet_agc.metrics.records import Calibrated
from iet_agc.metrics.soundness import Unsound

__all__ = [
    "Agreement",
    "By",
    "ClosePair",
    "Distance",
    "Losses",
    "Measured",
    "Point",
    "Recommendation",
    "figures",
    "is_above_chance",
    "point_of",
    "quality_of",
    "recommend",
]

#: What sets the cut, in words.
Source = Literal["held-out images", "training images, each against the others"]

#: By what the recommended point is chosen among those that are not above chance.
By = Literal["last", "lowest held-out loss", "lowest distance"]

#: Losses and distances of any sign, and squared ones: more than any float32. A chart of larger ones cannot be drawn.
_Number = Annotated[float, Field(ge=-1e100, le=1e100)]
_Square = Annotated[float, Field(ge=0, le=1e100)]

#: One of these many bands of timesteps has no loss where no image was given noise of it.
_BandLosses = tuple[_Number | None, ...]


# What is measured -------------------------------------------------------------------------------------------


class ClosePair(Record):
    """A sample and the training image nearest to it.

    Attributes:
        sample: which of the samples.
        image: which of the training images; of equal ones the first.
        ratio: distance ratio.
        distance: squared L2 on [0, 1] pixels.
    """

    sample: Count
    image: Count
    ratio: Portion
    distance: _Square


class Distance(Record):
    """A Fréchet distance of the samples to real images; low is good.

    It is biased upward by about 1 / number of images: compare it with those of as many samples only.

    Attributes:
        to: held-out images that are no near copies of training images, or, without any, the unique training images.
        features: of what the two normal distributions are.
        num_real: how many real images.
    """

    value: _Number
    to: Literal["held-out images", "training images"]
    features: str
    num_real: Count


class Measured(Record):
    """What a watch finds in samples.

    Attributes:
        copied: the share below the calibrated cut.
        source: what set the cut.
        least: lower limit of the share, see `iet_agc.metrics.gate.Check`.
        fails_from: from so many copied samples on the share is above chance.
        harmless: how often it is where nothing is copied.
        above_chance: it is.
        distance: None of fewer than 2 samples.
        pairs: the samples with the smallest ratios, smallest first.
        reasons: why the held-out images may set no cut; empty where they may, or where the training images set it.
    """

    copied: Calibrated
    source: Source
    least: Portion
    fails_from: Count
    harmless: Portion
    above_chance: bool
    distance: Distance | None
    pairs: tuple[ClosePair, ...]
    reasons: tuple[Unsound, ...] = ()

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.above_chance != (self.least > self.copied.false_alarm):
            raise ValueError(f"above_chance is {self.above_chance}, at least {self.least!r} are below the cut")
        return self


class Losses(Record):
    """Losses of training images and of as many held-out images, at the same noise and timesteps.

    Attributes:
        train, held_out: means over all.
        gap: held_out - train; above 0 where training images are known better.
        train_bands, held_out_bands: the same in bands of the timesteps of equal width, from little noise to much;
            None where none fell into a band, and no bands where the timesteps are not known.
        num_images: of each kind; one that was given noise twice counts twice.
    """

    train: _Number
    held_out: _Number
    gap: _Number
    train_bands: _BandLosses
    held_out_bands: _BandLosses
    num_images: Count

    @property
    def gap_bands(self) -> list[float | None]:
        """The gap in each band."""
        pairs = zip(self.held_out_bands, self.train_bands, strict=True)
        return [None if held is None or own is None else held - own for held, own in pairs]


class Agreement(Record):
    """How far members draw the same image from the same seed; it needs no reference images.

    Models of disjoint halves of a data set draw the same images until they memorize their own halves (Kadkhodaie et
    al., ICLR 2024, arXiv 2310.02557; Favero et al., 2025, arXiv 2505.16959).

    Attributes:
        value: 1 - same / different. 1: equal images; 0: as different as images of different seeds.
        same: mean squared difference on [0, 1] pixels of two members' images of one seed.
        different: of two members' images of different seeds.
        members, seeds: how many.
    """

    value: Annotated[float, Field(ge=-1e100, le=1)]
    same: _Square
    different: _Square
    members: Annotated[int, Field(ge=2)]
    seeds: Annotated[int, Field(ge=2)]


class Point(Measured):
    """A point of the curve.

    Attributes:
        step: of a member.
        images_seen: by all members together, repetitions counted; None where it is not known.
        seen, skipped: images that AGC saw and left out, up to here, by all members.
        skip_rate: the share that it left out since the point before.
        losses: None where there are no held-out images, or none whose loss can be measured.
        agreement: of members before they were averaged; None of one member.
        adapter: agreement of images at strength 1 of a LoRA with those at strength 0; None where it is not measured.
    """

    step: Count
    images_seen: Count | None
    seen: Count
    skipped: Count
    skip_rate: Portion
    losses: Losses | None
    agreement: Agreement | None
    adapter: Agreement | None = None


def point_of(found: Measured, **known: object) -> Point:
    """What a watch finds in samples and the other fields of a point, which are known besides."""
    return Point.model_validate({**{name: getattr(found, name) for name in type(found).model_fields}, **known})


def is_above_chance(copied: Calibrated) -> dict[str, object]:
    """The fields of `Measured` by which a share is above chance or not."""
    (check,) = gate({PIXELS: copied}, copied.false_alarm).checks
    return {
        "least": check.least,
        "fails_from": check.fails_from,
        "harmless": check.harmless,
        "above_chance": check.failed,
    }


def figures(point: Point) -> dict[str, float]:
    """The numbers of a point that are known, by the names under which boards of curves show them."""
    losses = point.losses
    known: dict[str, float | None] = {
        "copied": point.copied.share,
        "copied, lower limit": point.least,
        "distance": point.distance and point.distance.value,
        "skip_rate": point.skip_rate if point.seen else None,
        "agreement": point.agreement and point.agreement.value,
        "adapter": point.adapter and point.adapter.value,
        "loss/train": losses and losses.train,
        "loss/held_out": losses and losses.held_out,
        **{f"loss_gap/{band}": gap for band, gap in enumerate(losses.gap_bands if losses else ())},
    }
    return {name: value for name, value in known.items() if value is not None}


# Which to keep ----------------------------------------------------------------------------------------------


class Recommendation(Record):
    """Which point to keep of those whose copied share is not above chance, and how sure that is.

    Attributes:
        step, images_seen: of the point; None where the share is above chance at every point.
        by: what it was chosen by.
        copying: "never" above chance; "from the start", at every point; "later", at points after the recommended one
            (by "last", at all of them); "before": only before it.
        copied: at the point; None as above.
        confidence: "high": there are two or more later points, no earlier one is above chance, and the held-out images
            may set the cut. "low": an earlier one is, there is one point only, or the held-out images may not. "fair":
            otherwise.
        points, above_before, above_after: how many there are, and how many above chance before and after it.
        first_above: the step of the first that is above chance.
        detectable: from this share of samples on a point is above chance.
    """

    step: int | None
    images_seen: Count | None
    by: By = "last"
    copying: Literal["never", "from the start", "later", "before"]
    copied: Calibrated | None
    confidence: Literal["high", "fair", "low"]
    points: Annotated[int, Field(ge=1)]
    above_before: Count
    above_after: Count
    first_above: int | None
    detectable: Annotated[float, Field(ge=0)]
    doubts: tuple[str, ...] = ()

    @computed_field
    @property
    def sentence(self) -> str:
        """It in words, sentences without the last full stop."""
        return ". ".join([self._which(), *self._why(), *(f"Held-out images: {doubt}" for doubt in self.doubts)])

    def _which(self) -> str:
        if self.step is None or self.copied is None:
            return f"No point is recommended: the copied share is above chance at {_every(self.points)}"
        low, high = self.copied.ci95
        share = f"{100 * self.copied.share:.1f}% copied, 95% interval {hundredths(low)} to {hundredths(high)}%"
        why = "" if self.by == "last" else f", {self.by} of the points that are not above chance"
        return f"Recommended: step {self.step:,} ({share}){why}, confidence {self.confidence}"

    def _why(self) -> list[str]:
        least = f"A share below {100 * self.detectable:.1f}% cannot be told from chance here"
        match self.copying:
            case "from the start":
                return ["Watch earlier, or more often"]
            case "never":
                return [f"The copied share is not above chance at {_any(self.points)}", least]
            case "before":
                return [f"{self._earlier()}, and not at {'the last' if self.by == 'last' else 'later ones'}", least]
            case "later":
                before = [self._earlier()] if self.above_before else []
                return [self._later(), *before, least]

    def _earlier(self) -> str:
        points = "one earlier point" if self.above_before == 1 else f"{self.above_before} earlier points"
        return f"It is above chance at {points}, first at step {self.first_above or 0:,}"

    def _later(self) -> str:
        number = {1: "the one point", 2: "both points"}.get(self.above_after, f"all {self.above_after} points")
        if self.by != "last":
            number = "one point" if self.above_after == 1 else f"{self.above_after} points"
            first = "" if self.above_before else f", first at step {self.first_above or 0:,}"
            return f"The copied share is above chance at {number} after it{first}"
        return f"The copied share is above chance at {number} after it"


def _any(points: int) -> str:
    return "the only point" if points == 1 else f"any of {points} points"


def _every(points: int) -> str:
    return "the only point" if points == 1 else f"each of {points} points"


def recommend(points: Sequence[Point], by_quality: bool = False) -> Recommendation:
    """Which point of a curve to keep; see this module.

    Args:
        points: at least one, in the order of steps.
        by_quality: the best of those that are not above chance, not the last; of equal ones the first.

    Raises:
        ValueError: there is none.
    """
    if not points:
        raise ValueError("a curve without points recommends nothing")
    above = [place for place, point in enumerate(points) if point.above_chance]
    harmless = [place for place in range(len(points)) if place not in above]
    by = quality_of(points) if by_quality else "last"
    best = _best(points, harmless, by)
    before = 0 if best is None else sum(place < best for place in above)
    later = 0 if best is None else len(points) - 1 - best
    doubts = tuple(reason.sentence for reason in points[-1].reasons)
    chosen = None if best is None else points[best]
    return Recommendation(
        step=chosen and chosen.step,
        images_seen=chosen and chosen.images_seen,
        by=by,
        copying=_copying(len(points), before, len(above) - before),
        copied=chosen and chosen.copied,
        confidence=_confidence(len(points), before, later, bool(doubts)),
        points=len(points),
        above_before=before,
        above_after=len(above) - before,
        first_above=points[above[0]].step if above else None,
        detectable=max(point.fails_from / point.copied.total for point in points),
        doubts=doubts,
    )


def quality_of(points: Sequence[Point]) -> By:
    """What all points can be compared by: held-out losses, or else distances, or else the order of steps alone."""
    if all(point.losses for point in points):
        return "lowest held-out loss"
    return "lowest distance" if all(point.distance for point in points) else "last"


def _best(points: Sequence[Point], harmless: Sequence[int], by: By) -> int | None:
    """Which of the points that are not above chance to keep."""
    if not harmless:
        return None
    match by:
        case "last":
            return harmless[-1]
        case "lowest held-out loss":
            return min(harmless, key=lambda place: losses.held_out if (losses := points[place].losses) else math.inf)
        case "lowest distance":
            return min(harmless, key=lambda place: found.value if (found := points[place].distance) else math.inf)


def _copying(points: int, before: int, after: int) -> Literal["never", "from the start", "later", "before"]:
    if after == points:
        return "from the start"
    return "later" if after else "before" if before else "never"


def _confidence(points: int, before: int, later: int, doubted: bool) -> Literal["high", "fair", "low"]:
    if points == 1 or before or doubted:
        return "low"
    return "high" if later > 1 else "fair"
