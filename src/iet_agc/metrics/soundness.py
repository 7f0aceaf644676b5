"""Whether held-out images may set a cut: of the same source as the training set, but not of the same images. No torch.

A calibrated cut keeps its promise where held-out images are to the training set what training images are to each other.
Checks tell where they are not, and none sees what the others do:

- **Too close.** A = P(a held-out image is nearer to the training set than a training image is to the other ones). It is
  1/2 for held-out images that were set apart at random, whatever the data are. Crops, re-encoded or noised copies of
  training images have more, and set a cut that is too low.
- **A part too close.** Among the held-out images more are as near to the training set as only the nearest training
  images are to the other ones. Under a random split the number of held-out images below the t-th smallest of L training
  images is beta-binomial, but for mutual neighbours. So a few copies are found out that hardly move A, and they are
  what sets a cut.
- **Too far.** Held-out images of another domain set a cut that is too high, and what lies below it need not be copied.
  Where they are farther than training images are from each other, as those of other photographs are as well, copies
  are called found only where enough samples prove to be near copies when they are laid over their training images.
- **Blind.** Near copies of training images are made as people find them, and searched for as samples are. A cut below
  most of them would not see them in samples either.

Held-out images that are a training image again, altered, are left out of the cut where they are found (see
`iet_agc.metrics.near_copies.same_pictures`) and would move it.

All are pure functions of distances and ratios, in pixels or in features.
"""

from collections.abc import Iterator, Mapping, Sequence
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
    "OF_SPACE",
    "Area",
    "Blind",
    "CloseTail",
    "Farther",
    "HeldOutCheck",
    "Kind",
    "SameImages",
    "TooClose",
    "TooFar",
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

#: A part of the held-out images is too close where so many are nearer than the nearest training images, of these
#: shares, that less than one random split of 1,000 has as many; or of 20, where it is known that training images are
#: among them. Less than so many times as many as by chance move the cut little, and large sets would show them.
_TAILS, _RARE, _LIKELY, _MORE = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2), 0.001, 0.05, 1.5

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
    "noise_5": "given noise of standard deviation 5/255",
    "squeezed_90": "squeezed to 90 % of their width and back",
}

_CONVENTION = (
    "nearer: P(a held-out image has less than a training image), ties half, Newcombe's interval; a training image is "
    "compared with the other unique ones; without near copies by d1/d2 < 1/3 on either side. found: share of near "
    "copies of training images beyond the cut"
)


# Why it is not known ----------------------------------------------------------------------------------------


def _of_pairs(compared: Compared, nearer: float) -> dict[str, str]:
    """In words, of how many pairs of a held-out and a training image the held-out one is nearer, and by what."""
    return {"chance": f"in {100 * nearer:.1f} %", "compared": _COMPARED[compared]}


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
        interval = f"{hundredths(self.ci95[0])} to {hundredths(self.ci95[1])} %"
        return {**_of_pairs(self.compared, self.nearer), "interval": interval}


class CloseTail(Warned):
    """A part of the held-out images is nearer to the training set than its images are to each other."""

    words: ClassVar[str] = (
        "a part of the held-out images is too close to the training set: {count:,} of {total:,} are {compared} than "
        "{of_train} of the training images are, and {usual} would be by chance, as where crops or altered copies of "
        "training images are among them, so the cut is too low; give held-out images of photographs that are not in "
        "the training set"
    )
    code: Literal["close_tail"] = "close_tail"
    compared: Compared
    count: Count
    total: Count
    train_share: Portion
    chance: Portion

    def told(self) -> dict[str, object]:
        """See `Warned`."""
        return {
            **dict(self),
            "compared": _COMPARED[self.compared],
            "of_train": f"{100 * (1 - self.train_share):.3g} %",
            "usual": f"{self.train_share * self.total:.0f}",
        }


class TooFar(Warned):
    """Samples are below a cut that held-out images of another domain set."""

    words: ClassVar[str] = (
        "held-out images are far from the training set: {chance} of pairs of a held-out and a training image, the "
        "held-out one is {compared} (50 % where images are set apart at random), so the cut may be too high, and of "
        "{below:,} samples below it only {confirmed:,} prove to be near copies when they are laid over training "
        "images; give held-out images that are made as the training images are"
    )
    code: Literal["too_far"] = "too_far"
    compared: Compared
    nearer: Portion
    below: Count
    confirmed: Count

    def told(self) -> dict[str, object]:
        """See `Warned`."""
        return {**dict(self), **_of_pairs(self.compared, self.nearer)}


class SameImages(Warned):
    """Many held-out images are training images, or near copies of some."""

    words: ClassVar[str] = (
        "{count:,} of {of} held-out images {are}, far more than training images have among each other ({usual}): "
        "the two sets have one source, and what is left of it sets a cut that is too low; give held-out images of "
        "photographs that are not in the training set"
    )
    code: Literal["same_images"] = "same_images"
    exact: bool
    count: Count
    total: Count
    among_train: Portion
    nearest: bool = False

    def told(self) -> dict[str, object]:
        """See `Warned`."""
        are = "stand in the training set" if self.exact else "are near copies of training images"
        of = f"the {self.total:,} nearest" if self.nearest else f"{self.total:,}"
        return {"count": self.count, "of": of, "are": are, "usual": f"{100 * self.among_train:.1f} %"}


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


#: Reasons that lie in the cut of one space; the others lie in the held-out images, and hold for every space.
OF_SPACE = (Blind, TooFar)

Unsound = Annotated[TooClose | CloseTail | TooFar | SameImages | Blind, Field(discriminator="code")]


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
        return {**_of_pairs(self.compared, self.nearer)}


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
        left_out: held-out images that were left out of the cut besides those by d1/d2, since they are near copies when
            they are laid over training images; `near_copies` counts them as well.
        found: by how near copies of training images were made, the share beyond the cut.
        reasons: why the cut cannot tell; empty where it can.
    """

    num_train: Count
    nearer: dict[Compared, Area]
    near_copies: Proportion
    near_copies_train: Proportion
    left_out: Count = 0
    found: dict[Kind, Proportion]
    reasons: tuple[Unsound, ...]
    convention: str = _CONVENTION

    @property
    def of_set(self) -> tuple[Unsound, ...]:
        """Those reasons that lie in the held-out images, not in the cut of this space."""
        return tuple(reason for reason in self.reasons if not isinstance(reason, OF_SPACE))

    def judged_too_far(self, below: int, total: int, confirmed: int, most: float) -> "HeldOutCheck":
        """The same with the reason that it is too far, where samples below the cut do not prove to be near copies.

        Args:
            below: samples below the cut, of how many in `total`.
            confirmed: how many of them prove to be near copies.
            most: the largest share that may be chance.
        """
        far = self.farther
        if far is None or share(confirmed, total).ci95[0] > most:
            return self
        reason = TooFar(compared=far.compared, nearer=far.nearer, below=below, confirmed=confirmed)
        return self.model_copy(update={"reasons": (reason, *self.reasons)})

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
    left_out: Sequence[bool] | None = None,
    same: tuple[Proportion, Proportion] | None = None,
    laid_over: int = 0,
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
        left_out: which held-out images were left out of the cut besides; none by default.
        same: of the images that are nearest to the training set, those that were found to be near copies when they were
            laid over training images, as shares of all held-out and of all training images that were compared.
        laid_over: how many held-out images were. Where most of them are near copies, the others are not known to be
            apart from the training set.
    """
    trained = share(sum(near[1]), len(near[1]))
    besides = np.zeros(len(near[0]), dtype=bool) if left_out is None else np.asarray(left_out, dtype=bool)
    known = np.asarray(near[0], dtype=bool) | besides
    real = share(int(known.sum()), len(known))
    kept = ~known, ~np.asarray(near[1], dtype=bool)
    apart: dict[Compared, tuple[np.ndarray, np.ndarray]] = {
        by: (np.asarray(mine)[kept[0]], np.asarray(others)[kept[1]])
        for by, (mine, others) in compared.items()
        if kept[0].any() and kept[1].any()
    }
    nearer: dict[Compared, Area] = {by: area(mine, others) for by, (mine, others) in apart.items()}
    shares: dict[Kind, Proportion] = {kind: share(sum(each), len(each)) for kind, each in found.items()}
    return HeldOutCheck(
        num_train=trained.total,
        nearer=nearer,
        near_copies=real,
        near_copies_train=trained,
        left_out=int((besides & ~np.asarray(near[0], dtype=bool)).sum()),
        found=shares,
        reasons=(
            *_same_images(real, trained, in_train, same, laid_over),
            *_too_close(apart, nearer, [each for each in ((real, trained), same) if each]),
            *_blind(shares, in_features),
        ),
    )


def _same_images(
    real: Proportion,
    trained: Proportion,
    in_train: tuple[Proportion, float] | None,
    same: tuple[Proportion, Proportion] | None,
    laid_over: int,
) -> Iterator[SameImages]:
    """Whether held-out images are training images again: exactly; by d1/d2, or else when they are laid over these."""
    if in_train and in_train[0].ci95[0] > max(_COMMON, in_train[1]):
        yield _same(in_train[0], in_train[1], exact=True)
    if real.ci95[0] > max(_COMMON, trained.ci95[1]):
        yield _same(real, trained.share, exact=False)
    elif same and 2 * same[0].count > laid_over and same[0].share > 2 * same[1].share:
        usual = same[1].share
        yield SameImages(exact=False, count=same[0].count, total=laid_over, among_train=usual, nearest=True)


def _too_close(
    apart: Mapping[Compared, tuple[np.ndarray, np.ndarray]],
    nearer: Mapping[Compared, Area],
    copies: Sequence[tuple[Proportion, Proportion]],
) -> list[TooClose] | list[CloseTail]:
    """Whether held-out images are nearer than training images are to each other: all of them, or else the nearest.

    Args:
        apart: what is compared, without near copies.
        nearer: areas of the same.
        copies: near copies among held-out and among training images, by each way of finding them.
    """
    close = [TooClose(compared=by, nearer=each.value, ci95=each.ci95) for by, each in nearer.items()]
    if closer := sorted((one for one in close if one.ci95[0] > _CLOSE), key=lambda one: -one.ci95[0]):
        return closer[:1]
    tails = [tail for by, (mine, others) in apart.items() if (tail := _tail(mine, others, by))]
    rare = _LIKELY if any(_more(*each) for each in copies) else _RARE
    return sorted((one for one in tails if one.chance * len(nearer) < rare), key=lambda one: one.chance)[:1]


def _blind(shares: Mapping[Kind, Proportion], in_features: bool) -> list[Blind]:
    """The kind of near copies that the cut misses most, where it misses too many."""
    missed = [
        Blind(kind=kind, count=each.count, total=each.total, in_features=in_features)
        for kind, each in shares.items()
        if each.share < LEAST_FOUND
    ]
    return sorted(missed, key=lambda one: one.count)[:1]


def _tail(held_out: np.ndarray, train: np.ndarray, by: Compared) -> CloseTail | None:
    """The share of the nearest training images below which held-out images are too many, by chance the least.

    `chance` is that as many are there or more, times the number of shares that are looked at.
    """
    from scipy.stats import betabinom

    ordered, total, found = np.sort(train), len(held_out), []
    for part in _TAILS:
        rank = max(1, round(part * len(train)))
        count = int((held_out < ordered[rank - 1]).sum())
        if count > _MORE * rank / len(train) * total:
            chance = float(betabinom.sf(count - 1, total, rank, len(train) + 1 - rank))
            found.append((min(1.0, len(_TAILS) * max(chance, 0.0)), count, rank / len(train)))
    if not found:
        return None
    chance, count, part = min(found)
    return CloseTail(compared=by, count=count, total=total, train_share=part, chance=chance)


def _more(held_out: Proportion, train: Proportion) -> bool:
    """Whether more held-out images are such, so surely that one random split of 1,000 has as many more."""
    from scipy.stats import hypergeom

    both, total = held_out.count + train.count, held_out.total + train.total
    return bool(hypergeom.sf(held_out.count - 1, total, both, held_out.total) < _RARE)


def _same(found: Proportion, among_train: float, exact: bool) -> SameImages:
    return SameImages(exact=exact, count=found.count, total=found.total, among_train=among_train)
