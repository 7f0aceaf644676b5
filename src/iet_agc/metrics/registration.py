"""Registration: laying one image over another, and what is left over when that is done.

Pictures of one scene that were cropped, shifted or resized differ by a zoom and a shift along each axis, and brighter
or darker ones by a gain and an offset of their pixels:

    second(u) = gain * first(zoom * u + shift) + offset        u in [-1, 1] along each axis

Zooms and shifts are found by Gauss and Newton's method on the squared difference (Lucas and Kanade, 1981, with the
gain and offset of Baker and Matthews, IJCV 2004). As zoom and shift act on each axis by itself, resampling is two
products of matrices, linear interpolation between pixels. Pixels that fall outside the first image do not count.

What is left over is a share of the variance: 0 where the images are equal then, about 1 where they have nothing in
common.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, pad

__all__ = ["IDENTITY", "Difference", "blur", "difference", "luma", "register", "resample"]

#: (zoom y, shift y, zoom x, shift x) that change nothing.
IDENTITY = (1.0, 0.0, 1.0, 0.0)

#: Luma of red, green and blue (ITU-R 601-2).
_LUMA = (0.299, 0.587, 0.114)

#: A copy shows at least three quarters of each side of its original, or is shown so; it is moved by no more than 30 %.
_ZOOM, _SHIFT = (0.75, 1 / 0.75), 0.3

#: One step changes zoom and shift by no more than this, as gradients tell nothing about what is farther away.
_STEP = 0.15

#: Gain and offset (in grey levels of 255) that still count as the same picture, a little brighter or darker.
_GAIN, _OFFSET = (0.7, 1.4), 40.0

#: So many pixels at each edge do not count, in images of more than so many a side: they were smoothed with what is not
#: there, and a crop of an image shows what is.
_EDGE, _SMALL = 1, 8

#: Variance of pixels, in squared grey levels, that is taken for noise of coding.
_NOISE = 4.0

#: An image has so many cells a side when one asks where two differ most.
_CELLS = 4


@dataclass(frozen=True)
class Difference:
    """What is left over between pairs of images.

    Attributes:
        whole: mean squared difference over the variance of the image with less of it, float32 (P,).
        worst: the same of the one among 4 x 4 cells that differs most, over the variance of the whole image.
    """

    whole: Tensor
    worst: Tensor


def luma(images: Tensor) -> Tensor:
    """One channel of images, float (N, C, H, W) -> (N, 1, H, W): ITU-R 601-2 of three channels, else their mean."""
    if images.shape[1] != len(_LUMA):
        return images.mean(1, keepdim=True)
    return (images * torch.tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)


def blur(images: Tensor) -> Tensor:
    """Images, float (N, C, H, W), smoothed by (1, 2, 1) / 4 along each axis; edges are repeated."""
    padded = pad(images, (1, 1, 1, 1), mode="replicate")
    across = torch.add(padded[..., :-2], padded[..., 1:-1], alpha=2).add_(padded[..., 2:]).div_(4)
    return torch.add(across[..., :-2, :], across[..., 1:-1, :], alpha=2).add_(across[..., 2:, :]).div_(4)


def resample(images: Tensor, placement: Tensor) -> tuple[Tensor, Tensor]:
    """Zoom and shift images.

    Args:
        images: float (P, C, H, W).
        placement: (zoom y, shift y, zoom x, shift x) of each, float (P, 4); shifts are in halves of a side.

    Returns:
        The images, (P, C, H, W), and which pixels count: 1 inside of both the old and the new image, but for the
        outermost ones, else 0; (P, 1, H, W).
    """
    count, channels, height, width = images.shape
    rows, inside_y = _interpolation(placement[:, 0], placement[:, 1], height)
    columns, inside_x = _interpolation(placement[:, 2], placement[:, 3], width)
    across = torch.bmm(images.reshape(count, channels * height, width), columns.transpose(1, 2))
    resampled = torch.matmul(rows[:, None], across.reshape(count, channels, height, width))
    return resampled, (inside_y[:, :, None] * inside_x[:, None, :])[:, None]


def _interpolation(zoom: Tensor, shift: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Weights of old pixels in new ones along one axis, (P, size, size), and which new ones lie inside, (P, size)."""
    places = ((zoom[:, None] * _axis(size) + shift[:, None]) + 1) * (size / 2) - 0.5
    weights = 1 - (places.clamp(0, size - 1)[:, :, None] - torch.arange(size)).abs()
    edge = _EDGE if size > _SMALL else 0
    there = (places >= edge - 0.5) & (places <= size - edge - 0.5)
    there[:, :edge], there[:, size - edge :] = False, False
    return weights.clamp_(min=0), there.float()


def _axis(size: int) -> Tensor:
    """Centres of the pixels of a side, in [-1, 1]."""
    return (torch.arange(size) + 0.5) * (2 / size) - 1


def register(first: Tensor, second: Tensor, placement: Tensor, steps: int) -> Tensor:
    """Find the zoom and shift of one image that lay it over another.

    Args:
        first: grey images, float (P, 1, H, W), smooth enough that neighbouring pixels tell the way.
        second: those that they are laid over.
        placement: where to begin, (P, 4), see `resample`.
        steps: of Gauss and Newton.

    Returns:
        float (P, 4). Where there is nothing to be found, anything within bounds.
    """
    axes = _axis(first.shape[2])[:, None], _axis(first.shape[3])
    for _ in range(steps):
        placement = _closer(first, second, placement, *axes)
    return placement


def _closer(first: Tensor, second: Tensor, placement: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """One step: least squares of `second` by the resampled first image, a constant, and what each parameter moves."""
    moved, inside = resample(first, placement)
    height, width = first.shape[2:]
    padded = pad(moved, (1, 1, 1, 1), mode="replicate")[:, 0]
    down = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) * (height / 4)
    right = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) * (width / 4)
    parts = torch.stack([moved[:, 0], torch.ones_like(down), y * down, down, x * right, right], dim=1).flatten(2)
    weighted = parts * inside.flatten(2)
    normal = torch.bmm(weighted, parts.transpose(1, 2))
    ridge = 1e-3 * (normal.diagonal(dim1=1, dim2=2) + height * width)
    target = torch.bmm(weighted, second.flatten(2).transpose(1, 2))
    found = torch.linalg.solve(normal + torch.diag_embed(ridge), target)[..., 0]
    change = (found[:, 2:] / found[:, :1].clamp(min=0.3)).clamp(-_STEP, _STEP)
    zoom, shift = (placement + change)[:, 0::2].clamp(*_ZOOM), (placement + change)[:, 1::2].clamp(-_SHIFT, _SHIFT)
    return torch.stack([zoom, shift], dim=2).flatten(1)


def difference(first: Tensor, second: Tensor, placement: Tensor) -> Difference:
    """What is left over between images when the first is laid over the second, and made as bright.

    Args:
        first, second: float (P, C, H, W) on 0 .. 255.
        placement: (P, 4), see `resample`.
    """
    moved, inside = resample(first, placement)
    inside = inside.expand_as(moved)
    count = inside.sum((1, 2, 3)).clamp(min=1)

    def mean(values: Tensor) -> Tensor:
        return ((values * inside).sum((1, 2, 3)) / count)[:, None, None, None]

    centred, target = moved - mean(moved), second - mean(second)
    variance, other = mean(centred.square()), mean(target.square())
    gain = ((mean(centred * target) + _NOISE) / (variance + _NOISE)).clamp(*_GAIN)  # 1 of flat images
    offset = (mean(second) - gain * mean(moved)).clamp(-_OFFSET, _OFFSET)
    squares = ((second - gain * moved - offset) * inside).square()
    least = torch.minimum(gain.square() * variance, other)[:, 0, 0, 0] + _NOISE
    cells = adaptive_avg_pool2d(squares.mean(1, keepdim=True), _CELLS).flatten(1)
    return Difference(squares.sum((1, 2, 3)) / count / least, cells.amax(1) / least)
