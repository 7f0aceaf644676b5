"""Guard: lets through the generated images that the audit would not call copies."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from iet_agc.auditing.compute import NEIGHBORS, calibrate
from iet_agc.data.image_set import ImageSet
from iet_agc.metrics.memorization import distance_ratio
from iet_agc.metrics.neighbors import nearest
from iet_agc.runtime.errors import UserError

__all__ = ["Guard", "make_guard"]


@dataclass(frozen=True)
class Guard:
    """A training set and the cut below which an image counts as a copy from it.

    Attributes:
        references: unique training images, uint8 (U, C, H, W).
        cut: of the distance ratio.
        flips: whether mirrored copies count.
        about: what the guard follows from, JSON values only.
    """

    references: Tensor
    cut: float
    flips: bool
    about: dict[str, Any]

    def passes(self, images: Tensor) -> Tensor:
        """Whether each image, uint8 (N, C, H, W), is no copy; bool (N,)."""
        distances, _ = nearest(images, self.references, min(NEIGHBORS, len(self.references)), self.flips)
        return distance_ratio(distances) >= self.cut


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
    return Guard(references, cut, flips, about)
