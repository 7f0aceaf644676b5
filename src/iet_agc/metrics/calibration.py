"""The cut that held-out images set, and whether they may: what an audit and a watch search for it.

Held-out images that are near copies of training images set no cut. They are told by d1/d2, and, among those that are
nearest to the training set, by laying them over training images. Whether the others may set it is asked of training
images among each other, and of near copies that are made of some; see `iet_agc.metrics.soundness`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from iet_agc.metrics.altered import near_copies
from iet_agc.metrics.intervals import Count, Proportion, Record, calibration_rank, share
from iet_agc.metrics.memorization import FALSE_ALARM, calibrated_cut, distance_ratio, is_near_copy
from iet_agc.metrics.near_copies import CANDIDATES, same_pictures
from iet_agc.metrics.neighbors import References
from iet_agc.metrics.soundness import MOST_COPIED, MOST_TRAINED, HeldOutCheck, Kind, Unsound, check_held_out

__all__ = [
    "NEIGHBORS",
    "Calibration",
    "Kept",
    "Nearest",
    "Neighbors",
    "Once",
    "Probe",
    "at_once",
    "calibrate",
    "check_cut",
    "draw_probe",
    "num_laid_over",
    "probed",
    "without_copies",
    "without_itself",
]

#: How many neighbours the mean of the distance ratio takes, the paper's number.
NEIGHBORS = 50

#: Numbers that are made as a whole, by one process.
Kept = TypeVar("Kept", bound=Record)


class Once(Protocol):
    """Who has such numbers made."""

    def __call__(self, name: str, kind: type[Kept], make: Callable[[], Kept]) -> Kept:
        """Make a record, or find it made; takes the name of the work, the kind of record, and the maker."""
        ...


def at_once(name: str, kind: type[Kept], make: Callable[[], Kept]) -> Kept:
    """Make a record here and now."""
    del name, kind
    return make()


#: Of fewer unique training images, held-out images are not checked: they have no two neighbours among the other ones.
_LEAST_TRAINED = 3

#: Of held-out images, and of training images, so many that are nearest to the training set are laid over it: the share,
#: at least and at most. Those that are near copies are left out of the cut where it rises by more than this factor.
_LAID_OVER, _FEWEST_LAID, _MOST_LAID, _RISES = 0.05, 20, 500, 1.25


@dataclass(frozen=True)
class Probe:
    """What held-out images are checked with, see `iet_agc.metrics.soundness`.

    Attributes:
        drawn: unique training images to compare with the other ones, int64 (L,).
        altered: near copies of the first of them, uint8 (n, C, H, W), by how they were made; none of an audit that is
            read back.
        in_train: the share of held-out images that stood in the training set; that of repeated training images.
    """

    drawn: Tensor
    altered: Mapping[Kind, Tensor]
    in_train: tuple[Proportion, float]

    @property
    def images(self) -> Tensor:
        """All near copies, one kind after the other."""
        return torch.cat([*self.altered.values()])

    @property
    def num_images(self) -> int:
        """How many near copies there are."""
        return sum(map(len, self.altered.values()))

    def by_kind(self, found: Tensor) -> dict[Kind, list[bool]]:
        """What is true of each near copy, bool (n * kinds,), by kind."""
        return dict(zip(self.altered, found.view(len(self.altered), -1).tolist(), strict=True))


def draw_probe(
    unique: Tensor, place: Tensor, num_held_out: int, in_train: int, among: Tensor | None = None
) -> Probe | None:
    """Draw training images, and make near copies of some.

    Args:
        unique: the unique training images, uint8 (U, C, H, W).
        place: which of them each training image is, int64 (M,).
        num_held_out: how many held-out images there are, in_train: how many more stood in the training set.
        among: which unique ones may be drawn, int64 (G,): one of each group of copies; by default all.

    Returns:
        None where held-out images are too few to set a cut.
    """
    among = torch.arange(len(unique)) if among is None else among
    if not calibration_rank(FALSE_ALARM, num_held_out) or len(among) < _LEAST_TRAINED:
        return None
    drawn = among[torch.randperm(len(among), generator=torch.Generator().manual_seed(0))[:MOST_TRAINED]]
    repeated = int((torch.bincount(place)[place] > 1).sum()) / len(place)
    altered = near_copies(unique[drawn[:MOST_COPIED]])
    return Probe(drawn, altered, (share(in_train, in_train + num_held_out), repeated))


@dataclass(frozen=True)
class Neighbors:
    """Squared distances and indices of the nearest unique training images.

    Attributes:
        distances, indices: of the samples, (N, k).
        own: of each sample's nearest training image, the distance to its nearest other one, (N,).
        held_out, held_own: of the held-out images, (H, k) and (H,); None where there are none.
        held_indices: indices of the former, (H, k).
        others, other_indices: of training images that were drawn, to the nearest other ones, (L, k), or one less where
            they are few.
        altered: of near copies of training images, (n, k).
        left_out: held-out images that are near copies when they are laid over training images and would move the cut,
            bool (H,); None for none.
        same, laid_over: see `check_held_out`.
    """

    distances: Tensor
    indices: Tensor
    own: Tensor
    held_out: Tensor | None = None
    held_own: Tensor | None = None
    held_indices: Tensor | None = None
    others: Tensor | None = None
    other_indices: Tensor | None = None
    altered: Tensor | None = None
    left_out: Tensor | None = None
    same: tuple[Proportion, Proportion] | None = None
    laid_over: int = 0

    @property
    def ratios(self) -> Tensor:
        """Distance ratios of the samples, (N,)."""
        return distance_ratio(self.distances)

    @property
    def held_out_ratios(self) -> Tensor | None:
        """Those of the held-out images, (H,)."""
        return None if self.held_out is None else distance_ratio(self.held_out)

    @property
    def fresh(self) -> Tensor | None:
        """Which held-out images are no near copies of training images, bool (H,)."""
        if self.held_out is None:
            return None
        apart = ~is_near_copy(self.held_out)
        return apart if self.left_out is None else apart & ~self.left_out


@dataclass(frozen=True)
class Nearest:
    """The nearest references of some images: squared distances, ascending, and indices, both (N, k)."""

    distances: Tensor
    indices: Tensor


def probed(
    search: Callable[..., Nearest],
    found: Neighbors,
    probe: Probe,
    unique: Tensor,
    altered: Tensor,
    groups: Tensor | None = None,
) -> Neighbors:
    """Search for what held-out images are checked with: training images, each among the other ones; near copies.

    With `groups`, that of each unique training image, int64 (U,), `search` finds the nearest image of each.
    """
    trained = search("trained", unique[probe.drawn], NEIGHBORS + 1)
    others = without_itself(trained, probe.drawn, groups)
    altered = search("altered", altered, NEIGHBORS).distances
    return replace(found, others=others.distances, other_indices=others.indices, altered=altered)


def without_itself(found: Nearest, own: Tensor, groups: Tensor | None = None) -> Nearest:
    """Other images, or groups, (N, k - 1); of an image that is not among its k nearest, all of distance 0."""
    itself = found.indices == own[:, None] if groups is None else groups[found.indices] == groups[own][:, None]
    itself[~itself.any(1), -1] = True
    return Nearest(*(each[~itself].view(len(own), -1) for each in (found.distances, found.indices)))


class _LaidOver(Record):
    """Which held-out images, and which training images that were drawn, are near copies when they are laid over."""

    held_out: tuple[Count, ...]
    train: tuple[Count, ...]


def without_copies(
    found: Neighbors,
    unique: Tensor,
    held_out: Tensor | None,
    flips: bool,
    probe: Probe,
    once: Once = at_once,
) -> Neighbors:
    """Find held-out images that are training images again, altered, and leave them out if they would move the cut.

    They are looked for where they do harm: among those that are nearest to the training set, by their ratios. So are
    training images among the other ones; held-out images have to be found more than twice as often as these.
    """
    held, others = found.held_out, found.others
    if held_out is None or held is None or others is None:
        return found
    if found.held_indices is None or found.other_indices is None:
        return found
    real = held_out, held, found.held_indices
    trained = unique[probe.drawn], others, found.other_indices

    def measure() -> _LaidOver:
        copies, usual = (tuple(_copies_among(*part, unique, flips)) for part in (real, trained))
        return _LaidOver(held_out=copies, train=usual)

    laid_over = once("pixels-laid-over", _LaidOver, measure)
    copies, usual = laid_over.held_out, laid_over.train
    many = num_laid_over(len(held))
    found = replace(found, same=(share(len(copies), len(held)), share(len(usual), len(others))), laid_over=many)
    left_out = torch.zeros(len(held), dtype=torch.bool)
    left_out[list(copies)] = True
    often = len(copies) * len(others) > 2 * len(usual) * len(held)
    few = 2 * len(copies) <= many  # or else there are more, and what is left sets no cut that can be trusted
    return replace(found, left_out=left_out) if often and few and _moves_the_cut(found, left_out) else found


def _copies_among(images: Tensor, distances: Tensor, indices: Tensor, references: Tensor, flips: bool) -> list[int]:
    """Which of the images that are nearest to the references are near copies of some, but not by d1/d2."""
    ratios = distance_ratio(distances).masked_fill(is_near_copy(distances), torch.inf)
    closest = ratios.argsort(stable=True)[: num_laid_over(len(images))]
    closest = closest[ratios[closest].isfinite()]
    if not len(closest):
        return []
    return (
        closest[same_pictures(images[closest], references, indices[closest, :CANDIDATES], flips)].sort().values.tolist()
    )


def num_laid_over(total: int) -> int:
    """How many of so many images, the nearest, are laid over the training set."""
    return min(total, max(_FEWEST_LAID, min(_MOST_LAID, round(_LAID_OVER * total))))


def _moves_the_cut(found: Neighbors, left_out: Tensor) -> bool:
    """Whether the ratio of the rank that sets the cut rises by more than a quarter without some held-out images."""
    fresh, ratios = found.fresh, found.held_out_ratios
    if fresh is None or ratios is None or (rank := calibration_rank(FALSE_ALARM, int(fresh.sum()))) == 0:
        return False
    before, after = ratios[fresh].sort().values, ratios[fresh & ~left_out].sort().values
    return len(after) < rank or bool(after[rank - 1] > _RISES * before[rank - 1])


def check_cut(found: Neighbors, probe: Probe, cut: float | None, in_features: bool) -> HeldOutCheck | None:
    """Whether held-out images may set the cut on distance ratios; these are of as many neighbours on both sides."""
    if found.held_out is None or found.others is None or found.altered is None:
        return None
    k = min(found.held_out.shape[1], found.others.shape[1])
    real, trained = found.held_out[:, :k], found.others[:, :k]
    below = {} if cut is None else probe.by_kind(distance_ratio(found.altered) < cut)
    return check_held_out(
        {"distance": (real[:, 0], trained[:, 0]), "ratio": (distance_ratio(real), distance_ratio(trained))},
        (is_near_copy(real).tolist(), is_near_copy(trained).tolist()),
        below,
        None if in_features else probe.in_train,
        in_features,
        None if found.left_out is None else found.left_out.tolist(),
        found.same,
        found.laid_over,
    )


@dataclass(frozen=True)
class Calibration:
    """What held-out images set in pixels.

    Attributes:
        cut: below this distance ratio a sample counts as a copy; None where held-out images are too few.
        fresh: which held-out images are no near copies of training images, bool (H,); these set it.
        reasons: why the cut cannot tell, if it cannot.
    """

    cut: float | None
    fresh: Tensor
    reasons: tuple[Unsound, ...]


def calibrate(unique: Tensor, place: Tensor, held_out: Tensor, in_train: int, flips: bool = False) -> Calibration:
    """The cut in pixels that an audit against these images uses.

    Args:
        unique: the unique training images, uint8 (U, C, H, W).
        place: which of them each training image is, int64 (M,).
        held_out: real images that do not stand in the training set, each once, uint8 (H, C, H, W).
        in_train: how many more there were that do.
        flips: also look at mirrored training images.
    """
    references = References(unique, min(NEIGHBORS + 1, len(unique)), 2 * 1024**3, held_out.device)

    def search(name: str, rows: Tensor, k: int) -> Nearest:
        del name
        return Nearest(*(each[:, :k] for each in references.nearest(rows, flips)))

    held = search("held-out", held_out, NEIGHBORS)
    distances, own = held.distances, held.distances[:, 0]
    found = Neighbors(distances, held.indices, own, distances, own, held.indices)  # they are the samples as well
    probe = draw_probe(unique, place, len(held_out), in_train)
    if probe:
        found = probed(search, found, probe, unique, probe.images)
        found = without_copies(found, unique, held_out, flips, probe)
    fresh = ~is_near_copy(distances) if found.fresh is None else found.fresh
    cut = calibrated_cut(found.ratios[fresh])
    check = check_cut(found, probe, cut, False) if probe else None
    return Calibration(cut, fresh, check.reasons if check else ())
