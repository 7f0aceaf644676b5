"""Views of images in which altered copies are looked for: shifted, cropped, mirrored; and their halves.

Images are brought to at most 32 pixels a side and smoothed, so that resampling them makes no difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from iet_agc.metrics.descriptors import operator, plain, pooled
from iet_agc.metrics.registration import IDENTITY, blur, luma

__all__ = ["CELLS", "Halves", "Views", "cells", "inverse", "least_sides", "shrunk", "smooth", "smooth_grey"]

#: Sides of images that are compared, and of smaller ones that are not smoothed.
_SIDE, _SMALL = 32, 8

#: Images of no more pixels a side are looked at in every view, and in halves that begin anywhere.
_FEW = 16

#: Pixels by which images are shifted, at most.
_SHIFT = 4

#: The part of a side that stands for an image in every view; what parts of its sides a cropped one may show, every
#: second of which looks for candidates; and by how many pixels a crop is off the middle, as sides are odd or even.
_WINDOW, _CROPS, _OFF = 0.75, (0.96, 0.93, 0.9, 0.87, 0.84, 0.81, 0.78, 0.76), (-0.5, 0.0, 0.5)

#: Cells a side of descriptors of windows, and of whole images and halves.
_WINDOW_CELLS, CELLS = 8, 14


@dataclass(frozen=True)
class Views:
    """The views of an image: shifted, cropped and mirrored.

    Attributes:
        shift_y, shift_x: operators of the shifts, (2 * 4 + 1, cells, size).
        crop_y, crop_x: of the crops, (c, 3, cells, size).
        placement: of the image in each view, (V, 4): all shifts, then crops, then the image mirrored.
        coarse: the views that look for candidates, int64.
    """

    shift_y: Tensor
    shift_x: Tensor
    crop_y: Tensor
    crop_x: Tensor
    placement: Tensor
    coarse: Tensor

    @staticmethod
    def of(height: int, width: int) -> "Views":
        """Of images of this size, `shrunk` ones."""
        offsets, places = range(-_SHIFT, _SHIFT + 1), []

        def operators(zoom: float, by: Sequence[float], size: int) -> Tensor:
            cells = min(size, _WINDOW_CELLS)
            return torch.stack([operator(zoom * _WINDOW, 2 * each / size, size, cells) for each in by])

        places += [(1.0, 2 * down / height, 1.0, 2 * right / width) for down in offsets for right in offsets]
        zooms = [1 / part for part in _CROPS]
        places += [(zoom, 2 * y / height, zoom, 2 * x / width) for zoom in zooms for y in _OFF for x in _OFF]
        step, shifts, crops = 1 if min(height, width) <= _FEW else 2, len(offsets) ** 2, len(places)
        some = torch.arange(len(offsets))[::step]
        crossed = torch.arange(shifts, crops).view(len(zooms), -1)[step - 1 :: step, ::2]  # the middle and the corners
        return Views(
            operators(1.0, offsets, height),
            operators(1.0, offsets, width),
            torch.stack([operators(zoom, _OFF, height) for zoom in zooms]),
            torch.stack([operators(zoom, _OFF, width) for zoom in zooms]),
            torch.tensor([*places, IDENTITY]),
            torch.cat([(some[:, None] * len(offsets) + some).flatten(), crossed.flatten(), torch.tensor([crops])]),
        )

    def features(self, grey: Tensor) -> Tensor:
        """Of smooth grey images, (N, 1, H, W), every view, (N, V, F)."""
        images = grey[:, 0]
        shifted = torch.einsum("rgh,nhw,sfw->nrsgf", self.shift_y, images, self.shift_x)
        cropped = torch.einsum("zrgh,nhw,zsfw->nzrsgf", self.crop_y, images, self.crop_x)
        parts = [
            shifted.flatten(3).flatten(1, 2),
            cropped.flatten(4).flatten(1, 3),
            self.window(grey.flip(-1))[:, None],
        ]
        return plain(torch.cat(parts, dim=1))

    def window(self, grey: Tensor) -> Tensor:
        """The view of the image as it is, (N, F), before `plain`."""
        return torch.einsum("gh,nhw,fw->ngf", self.shift_y[_SHIFT], grey[:, 0], self.shift_x[_SHIFT]).flatten(1)


@dataclass(frozen=True)
class Halves:
    """Halves of images along one axis of (C, H, W), 1 or 2.

    Attributes:
        axis: that one.
        begins: where halves of samples begin: at both ends, in small images everywhere.
        ends: where those of training images do.
        length: of a half, in pixels.
    """

    axis: int
    begins: tuple[int, ...]
    ends: tuple[int, int]
    length: int

    @staticmethod
    def of(axis: int, size: int) -> "Halves":
        """Along an axis of so many pixels."""
        length = size // 2
        ends = (0, size - length)
        return Halves(axis, tuple(range(ends[1] + 1)) if size <= _FEW else ends, ends, length)

    def cut(self, images: Tensor, begin: int) -> Tensor:
        """One half of each image."""
        return images.narrow(1 + self.axis, begin, self.length)

    def features(self, grey: Tensor, begins: Sequence[int]) -> list[Tensor]:
        """Of smooth grey images, the halves that begin there."""
        return [pooled(self.cut(grey, begin), CELLS) for begin in begins]


# -- images


def least_sides(height: int, width: int) -> tuple[int, int]:
    """Of `shrunk` images."""
    return min(height, _SIDE), min(width, _SIDE)


def shrunk(images: Tensor) -> Tensor:
    """Images, uint8 (N, C, H, W), as float32 of at most 32 pixels a side."""
    height, width = least_sides(*images.shape[-2:])
    pixels = images.float()
    return pixels if images.shape[-2:] == (height, width) else adaptive_avg_pool2d(pixels, (height, width))


def smooth(images: Tensor) -> Tensor:
    """`shrunk` images, smoothed unless they are tiny; (N, C, H, W)."""
    return images if min(images.shape[-2:]) <= _SMALL else blur(images)


def smooth_grey(images: Tensor) -> Tensor:
    """`shrunk` images, smooth and of one channel, (N, 1, H, W)."""
    return smooth(luma(images))


def cells(images: Tensor) -> Tensor:
    """`shrunk` images, smoothed and averaged to at most `CELLS` a side, (N, F)."""
    height, width = (min(size, CELLS) for size in images.shape[-2:])
    return adaptive_avg_pool2d(smooth(images), (height, width)).flatten(1)


def inverse(placement: Tensor) -> Tensor:
    """How a training image lies over the view that shows it: the placement of the view, turned round."""
    zoom, shift = placement[:, 0::2], placement[:, 1::2]
    return torch.stack([1 / zoom, -shift / zoom], dim=2).flatten(1)
