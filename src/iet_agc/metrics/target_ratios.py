"""How near a drawn image is to one image that is looked for, whether it is a training image or not.

    r(y, x) = d(y, x) / mean of d(y, x) and the 49 smallest d(y, z)        z: training images other than x

Where x is the nearest training image this is the distance ratio of an audit. Of an image that was held out, it is what
an audit would find if x had been trained on, so both kinds are measured alike.
"""

import torch
from torch import Tensor

from iet_agc.metrics.neighbors import References, mirror

__all__ = ["nearest_of", "target_ratios"]

#: Images are compared in pieces of so many, so that differences stay small in memory.
_PIECE = 1024

#: Pixels are 0 .. 255; distances are on the [0, 1] scale.
_UNIT = 255.0**2


def target_ratios(drawn: Tensor, targets: Tensor, own: Tensor, references: References, flips: bool = False) -> Tensor:
    """r of each drawn image and its target, see this module.

    Args:
        drawn: uint8 (N, C, H, W).
        targets: uint8, as `drawn`.
        own: which reference each target is, int64 (N,); -1 of a target that is none.
        references: the unique training images; their k stands for 50 where there are fewer.
        flips: whether a mirrored target counts as well.

    Returns:
        float64 (N,), at least 0.
    """
    distances, indices = references.nearest(drawn, flips)
    to_target = _squared(drawn, targets)
    if flips:
        to_target = torch.minimum(to_target, _squared(drawn, mirror(targets)))
    others = distances.masked_fill(indices == own[:, None], torch.inf).sort(dim=1).values[:, :-1]
    mean = (to_target + others.sum(1)) / references.k
    return torch.where(mean > 0, to_target / mean, torch.zeros_like(mean))


def nearest_of(drawn: Tensor, images: References, flips: bool = False) -> Tensor:
    """Which of some images is nearest to each drawn one, int64 (N,)."""
    return images.nearest(drawn, flips)[1][:, 0]


def _squared(first: Tensor, second: Tensor) -> Tensor:
    """Squared L2 of pairs on [0, 1] pixels, float64 (N,)."""
    pieces = zip(first.split(_PIECE), second.split(_PIECE), strict=True)
    found = [(a.long() - b.long()).square().flatten(1).sum(1) for a, b in pieces]
    return torch.cat([torch.zeros(0, dtype=torch.int64), *found]).double() / _UNIT
