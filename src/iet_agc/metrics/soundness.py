"""Whether held-out images may set a cut: of the same source as the training set, but not of the same images. No torch.

A calibrated cut keeps its promise where held-out images are to the training set what training images are to each other.
Two checks tell where they are not, and neither sees what the other does:

- **Too close.** A = P(a held-out image is nearer to the training set than a training image is to the other ones). It is
  1/2 for held-out images that were set apart at random, whatever the data are. Crops, re-encoded or noised copies of
  training images have more, and set a cut that is too low.
- **Blind.** Near copies of training images are made as people find them, and searched for as samples are. A cut below
  most of them would not see them in samples either.

All are pure functions of distances and ratios, in pixels or in features.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from iet_agc.metrics.intervals import Count, Interval, Portion, Proportion, Record, auc_interval, hundredths, share
from iet_agc.metrics.records import Warned

__all__ = [
    "LEAST_FOUND",
    "MOST_COPIED",
    "MOST_TRAINED",
    "Area",
    "Blind",
    "Farther",
    "HeldOutCheck",
    "Kind",
    "SameImages",
    "TooClose",
    "Unsound",
    "area",
    "check_held_out",
]

#: At most so many unique training images are compared with the other ones, drawn at random; the area's standard error
#: is below 0.007 by their draw. Near copies are made of so many of them; the standard error of a share of 0.8 is 0.03.
MOST_TRAINED, MOST_COPIED = 2000, 200

#: Held-out images are too close where the lower limit of the area is above this. A random split has 0.5: with the
#: fewest held-out images that set a cut, 99, less than one of 1,000 comes here. Where a tenth are copies it is 0.55.
_CLOSE = 0.55
#: They are so far that false alarms may be fewer or more than the cut promises: a split by source is like that.
_FAR = 0.35

#: A held-out set may have so many images in common with the training set; public test sets have up to 3 %.
_COMMON = 0.05

#: The power that is usual for a test (Cohen, Statistical Power Analysis, 1988): so many near copies lie below the cut.
LEAST_FOUND = 0.8

#: What is compared: distance to the nearest training image, distance ratio, cosine similarity with it.
Compared = Literal["distance", "ratio", "similarity"]
_COMPARED: Mapping[Compared, str] = {
    "distance": "nearer to the training set",
    "ratio": "nearer to one training image alone",
    "similarity": "more similar to a training image",
}

#: How near copies are made; in words. Squeezing needs images of 16 pixels.
Kind = Literal["jpeg_75", "noise_5", "squeezed_90"]
_KINDS: Mapping[Kind, str] = {
    "jpeg_75": "encoded as JPEG of quality 75",
    "noise_5": "with noise of standard deviation 5/255",
    "squeezed_90": "squeezed to 90 % of their width and back",
}

_CONVENTION = (
    "nearer: P(a held-out image has less than a training image), ties half, Newcombe's interval; a training image is "
    "compared with the other unique ones; without near copies by d1/d2 < 1/3 on either side. found: share of near "
    "copies of training images beyond the cut"
)


# Why it is not known ----------------------------------------------------------------------------------------


class TooClose(Warned):
    """Held-out images are nearer to the training set than its images are to each other."""

    words: ClassVar[str] = (
        "held-out images are too close to the training set: {chance} of pairs of a held-out and a training image, the "
        "held-out one is {compared} (95 % interval {interval}; 50 % where images are set apart at random), as of crops "
        "or altered copies of training images, so the cut is too low; give held-out images of photographs that are not "
        "in the training set"
    )
    code: Literal["too_close"] = "too_close"
    compared: Compared
    nearer: Portion
    ci95: Interval

    def told(self) -> dict[str, object]:
        """See `Warned`."""
        chance, interval = (
            f"in {100 * self.nearer:.1f} %",
            f"{hundredths(self.ci95[0])} to {hundredths(self.ci95[1])} %",
        )
        return {"chance": chance, "compared": _COMPARED[self.compared], "interval": interval}


class SameImages(Warned):
    """Many held-out images are training images, or near copies of some."""

    words: ClassVar[str] = (
        "{count:,} of {total:,} held-out images {are}, far more than training images have among each other ({usual}): "
        "the two sets have one source, and what is left of it sets a cut that is too low; give held-out images of "
        "photographs that are not in the training set"
    )
    code: Literal["same_images"] = "same_images"
    exact: bool
    count: Count
    total: Count
    among_train: Portion

    def told(self) -> dict[str, object]:
        """See `Warned`."""
        are = "stand in the training set" if self.exact else "are near copies of training images (d1/d2 < 1/3)"
        return {"count": self.count, "total": self.total, "are": are, "usual": f"{100 * self.among_train:.1f} %"}


class Blind(Warned):
    """Near copies of training images do not lie beyond the cut."""

    words: ClassVar[str] = (
        "the cut would not see copies: only {count:,} of {total:,} training images that were {made} are beyond it, and "
        "80 % are needed; {mend}"
    )
    code: Literal["blind"] = "blind"
    kind: Kind
    count: Count
    total: Count
    in_features: bool

    def told(self) -> dict[str, object]:
        """See `Warned`."""
        mend = "give held-out images of another source than the training images, or, where all images are this alike, "
        mend += "audit with the features of a network that finds copies"
        if self.in_features:
            mend = "give held-out images of another source than the training images, or use other features"
        return {"count": self.count, "total": self.total, "made": _KINDS[self.kind], "mend": mend}


Unsound = Annotated[TooClose | SameImages | Blind, Field(discriminator="code")]


class Farther(Warned):
    """Held-out images are farther from the training set than its images are from each other."""

    words: ClassVar[str] = (
        "held-out images are farther from the training set than its images are from each other: {chance} of pairs of a "
        "held-out and a training image, the held-out one is {compared} (50 % where images are set apart at random), as "
        "where whole sources, such as patients, were set apart; chance may be higher than the cut promises"
    )
    code: Literal["farther"] = "farther"
    compared: Compared
    nearer: Portion

    def told(self) -> dict[str, object]:
        """See `Warned`."""
        return {"chance": f"in {100 * self.nearer:.1f} %", "compared": _COMPARED[self.compared]}


# Records ----------------------------------------------------------------------------------------------------


class Area(Record):
    """How often one of a pair of draws is the smaller one, ties half, with its 95 % interval."""

    value: Portion
    ci95: Interval


class HeldOutCheck(Record):
    """Whether held-out images may set the cut of one kind of copying; see this module.

    Attributes:
        num_train: unique training images that were compared with the other ones.
        nearer: by what is compared, how often a held-out image is nearer to the training set than a training image.
        near_copies, near_copies_train: near copies of other images among held-out and among training images.
        found: by how near copies of training images were made, the share beyond the cut.
        reasons: why the cut cannot tell; empty where it can.
    """

    num_train: Count
    nearer: dict[Compared, Area]
    near_copies: Proportion
    near_copies_train: Proportion
    found: dict[Kind, Proportion]
    reasons: tuple[Unsound, ...]
    convention: str = _CONVENTION

    @property
    def of_set(self) -> tuple[Unsound, ...]:
        """Those reasons that lie in the held-out images; a blind cut may lie in the space instead."""
        return tuple(reason for reason in self.reasons if not isinstance(reason, Blind))

    @property
    def farther(self) -> Farther | None:
        """A warning of held-out images that are far from the training set, by the farthest comparison."""
        far = [Farther(compared=by, nearer=each.value) for by, each in self.nearer.items() if each.ci95[1] < _FAR]
        return min(far, key=lambda one: one.nearer, default=None)


# Checks -----------------------------------------------------------------------------------------------------


def area(held_out: ArrayLike, train: ArrayLike) -> Area:
    """How often a held-out image has less than a training image: Mann-Whitney's U over the number of pairs.

    Args:
        held_out, train: what is compared, the smaller the nearer, (H,) and (L,), at least one each.
    """
    from scipy.stats import rankdata

    first, second = np.asarray(held_out, dtype=np.float64), np.asarray(train, dtype=np.float64)
    n, m = len(first), len(second)
    more = float(rankdata(np.concatenate([first, second]))[:n].sum()) - n * (n + 1) / 2
    value = min(max(1 - more / (n * m), 0.0), 1.0)
    return Area(value=value, ci95=auc_interval(value, n, m))


def check_held_out(
    compared: Mapping[Compared, tuple[ArrayLike, ArrayLike]],
    near: tuple[Sequence[bool], Sequence[bool]],
    found: Mapping[Kind, Sequence[bool]],
    in_train: tuple[Proportion, float] | None = None,
    in_features: bool = False,
) -> HeldOutCheck:
    """Check held-out images that set a cut.

    Args:
        compared: by name, what held-out images have and what training images have among each other, (H,) and (L,), the
            smaller the nearer.
        near: whether each held-out image is a near copy of a training image, and each training image of another one.
            They are left out of what is compared.
        found: by how near copies were made, whether each lies beyond the cut; empty where there is no cut.
        in_train: the share of held-out images that stood in the training set and were left out, and of training images,
            the share that are repeated.
        in_features: whether the space is that of a network's features.
    """
    real, trained = (share(sum(each), len(each)) for each in near)
    kept = [~np.asarray(each, dtype=bool) for each in near]
    nearer: dict[Compared, Area] = {
        by: area(np.asarray(mine)[kept[0]], np.asarray(others)[kept[1]])
        for by, (mine, others) in compared.items()
        if kept[0].any() and kept[1].any()
    }
    shares: dict[Kind, Proportion] = {kind: share(sum(each), len(each)) for kind, each in found.items()}
    reasons: list[TooClose | SameImages | Blind] = []
    if in_train and in_train[0].ci95[0] > max(_COMMON, in_train[1]):
        reasons.append(_same(in_train[0], in_train[1], exact=True))
    if real.ci95[0] > max(_COMMON, trained.ci95[1]):
        reasons.append(_same(real, trained.share, exact=False))
    close = [TooClose(compared=by, nearer=each.value, ci95=each.ci95) for by, each in nearer.items()]
    reasons += sorted((one for one in close if one.ci95[0] > _CLOSE), key=lambda one: -one.ci95[0])[:1]
    missed = [
        Blind(kind=kind, count=each.count, total=each.total, in_features=in_features)
        for kind, each in shares.items()
        if each.share < LEAST_FOUND
    ]
    reasons += sorted(missed, key=lambda one: one.count)[:1]
    return HeldOutCheck(
        num_train=trained.total,
        nearer=nearer,
        near_copies=real,
        near_copies_train=trained,
        found=shares,
        reasons=tuple(reasons),
    )


def _same(found: Proportion, among_train: float, exact: bool) -> SameImages:
    return SameImages(exact=exact, count=found.count, total=found.total, among_train=among_train)
