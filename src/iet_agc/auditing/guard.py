"""Guard: lets through the generated images that the audit would not call copies, and knows what they come near to."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from iet_agc.auditing.compute import calibrate
from iet_agc.data.image_set import ImageSet
from iet_agc.metrics.calibration import NEIGHBORS
from iet_agc.metrics.memorization import calibrated_cut, distance_ratio
from iet_agc.metrics.neighbors import References, mirror
from iet_agc.runtime.errors import UserError

__all__ = ["Guard", "make_guard"]

#: Bytes that a search may work with.
_MEMORY = 2 * 1024**3


@dataclass(frozen=True)
class Guard:
    """A training set and the cut below which an image counts as a copy from it.

    Attributes:
        references: unique training images, uint8 (U, C, H, W).
        cut: of the distance ratio.
        flips: whether mirrored copies count.
        about: what the guard follows from, JSON values only.
        held_out: the real images that set the cut, uint8 (H, C, H, W).
        labels: class of each of these, int64 (H,), or None.
    """

    references: Tensor
    cut: float
    flips: bool
    about: dict[str, Any]
    held_out: Tensor
    labels: Tensor | None = None

    def passes(self, images: Tensor) -> Tensor:
        """Whether each image, uint8 (N, C, H, W), is no copy; bool (N,)."""
        return distance_ratio(self._search.nearest(images, self.flips)[0]) >= self.cut

    def neighbors(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See `iet_agc.diffusion.guidance.TrainingImages`."""
        distances, indices = self._search.nearest(images, self.flips)
        found = self.references[indices[:, 0]]
        if not self.flips:
            return distances, found
        off, off_mirrored = (_squared(images, each) for each in (found, mirror(found)))
        return distances, torch.where((off_mirrored < off)[:, None, None, None], mirror(found), found)

    def threshold(self, images: Tensor) -> float:
        """See `iet_agc.diffusion.guidance.TrainingImages`."""
        ratios = distance_ratio(self._search.nearest(images, self.flips)[0])
        return calibrated_cut(ratios) or 0.0  # fewer than 99 cannot tell: the cut of the audit counts

    @cached_property
    def _search(self) -> References:
        """The training images, laid out once."""
        count = min(NEIGHBORS, len(self.references))
        return References(self.references, count, _MEMORY, self.references.device)


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """Squared distance of images, int64 (N,)."""
    return (a.long() - b.long()).square().flatten(1).sum(1)


def make_guard(train: ImageSet, held_out: ImageSet, flips: bool = False) -> Guard:
    """The guard that an audit against the same sets agrees with.

    Args:
        train: the training set.
        held_out: real images that were not trained on, at least 99.
        flips: whether mirrored copies count.

    Raises:
        UserError: empty or mismatched sets, too few held-out images, or such as cannot tell copies, since the guard
            would let these through; see `iet_agc.metrics.soundness`.
    """
    references, cut, reasons = calibrate(train, held_out, flips)
    if cut is None:
        few = "that are no copies or near copies of training images"
        raise UserError(f"a guard needs 99 held-out images {few}, and {held_out.name} has fewer: give more", "held_out")
    if reasons:
        raise UserError(f"a guard by {held_out.name} would let copies through: {reasons[0].sentence}", "held_out")
    about = {
        "train": train.name,
        "held_out": held_out.name,
        "sha256": {"train": train.fingerprint, "held_out": held_out.fingerprint},
        "cut": cut,
        "flips": flips,
    }
    return Guard(references, cut, flips, about, held_out.images, held_out.labels)
