"""Small descriptors of images in which altered copies are looked for: principal components, whitened.

Less its mean and at unit length, an image keeps its descriptor when it becomes brighter or its contrast changes. In
whitened components unrelated images point in unrelated directions, however alike all images of a set look: the image
that shares something with a sample stands out although much else of it differs, as in blends (Jégou and Chum, ECCV
2012). The magnitudes of the Fourier transform keep when an image is shifted before a plain background.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from iet_agc.metrics.registration import resample
from iet_agc.runtime.threads import num_threads

__all__ = ["Denoising", "Whitening", "fourier", "operator", "plain", "pooled"]

#: Lengths of images, in grey levels, that are taken for noise of coding: flat images have no descriptor.
_NOISE = 20.0

#: Variances of components are raised by this part of the largest one before they are divided by.
_RIDGE = 0.01

#: Sides of images before the Fourier transform, and of its corner of low frequencies.
_FOURIER, _FREQUENCIES = 14, 10


@dataclass(frozen=True)
class Whitening:
    """Whitened principal components.

    Attributes:
        mean: of the training images, (F,).
        turn: from features to components, (F, d).
    """

    mean: Tensor
    turn: Tensor

    @staticmethod
    def of(features: Tensor, components: int, power: float = 1.0) -> "Whitening":
        """Of the features of training images, (M, F).

        Args:
            features: of the training images.
            components: at most so many; no more than there are features.
            power: 1 gives components equal variances, 0 leaves them; fewer components tell more in between.
        """
        mean = features.mean(0)
        variances, vectors = _principal(features - mean, components)
        scale = (variances + _RIDGE * variances[0] + 1e-12) ** (power / 2)
        return Whitening(mean, (vectors / scale).float())

    def __call__(self, features: Tensor) -> Tensor:
        """Descriptors of unit length, (..., d), of features, (..., F)."""
        turned = (features - self.mean) @ self.turn
        return turned / turned.norm(dim=-1, keepdim=True).clamp(min=1e-6)


@dataclass(frozen=True)
class Denoising:
    """Wiener's filter, by what varies in the training set; what is noise in an image then weighs less.

    Attributes:
        turn: from features to filtered principal components, (F, d).
    """

    turn: Tensor

    @staticmethod
    def of(features: Tensor, components: int, deviation: float) -> "Denoising":
        """Of the features of training images, (M, F), against noise of so many grey levels."""
        level = _level(features)
        with num_threads(1):  # so that sums have one order
            mean = level.mean(0)
        variances, vectors = _principal(level - mean, components)
        return Denoising((vectors * (variances / (variances + deviation**2))).float())

    def __call__(self, features: Tensor) -> Tensor:
        """Of features, (N, F), less the mean of each image; (N, d)."""
        return _level(features) @ self.turn


def _principal(centred: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """The largest variances of centred features, (M, F), descending, and their directions, (F, d); float64."""
    with num_threads(1):  # so that sums have one order
        exact = centred.double()
        variances, vectors = torch.linalg.eigh(exact.T @ exact / len(exact))
    return variances.flip(0)[:components].clamp(min=0), vectors.flip(1)[:, :components]


def _level(features: Tensor) -> Tensor:
    return features - features.mean(-1, keepdim=True)


def plain(features: Tensor) -> Tensor:
    """Less the mean of each image and at unit length, (..., F); shorter where an image is nearly flat."""
    centred = features - features.mean(-1, keepdim=True)
    return centred / (centred.norm(dim=-1, keepdim=True) + _NOISE)


def pooled(grey: Tensor, cells: int) -> Tensor:
    """`plain` features of grey images, (N, 1, H, W), averaged to at most so many cells a side."""
    height, width = (min(size, cells) for size in grey.shape[-2:])
    return plain(adaptive_avg_pool2d(grey, (height, width)).flatten(1))


def fourier(grey: Tensor) -> Tensor:
    """Magnitudes of low frequencies, equal for mirrored images, at unit length; of grey images, (N, 1, H, W)."""
    height, width = (min(size, _FOURIER) for size in grey.shape[-2:])
    small = adaptive_avg_pool2d(grey - grey.mean((1, 2, 3), keepdim=True), (height, width))
    found = torch.fft.rfft2(small, s=(2 * _FOURIER, 2 * _FOURIER))[:, 0].abs()
    both = (found + torch.cat([found[:, :1], found[:, 1:].flip(1)], dim=1)) / 2
    corner = both[:, :_FREQUENCIES, :_FREQUENCIES].flatten(1)
    return corner / (corner.norm(dim=1, keepdim=True) + _NOISE)


def operator(zoom: float, shift: float, size: int, cells: int) -> Tensor:
    """What zooms, shifts and averages along one axis, (cells, size); see `registration.resample`."""
    eye = torch.eye(size)[None, None]
    rows = resample(eye, torch.tensor([[zoom, shift, 1.0, 0.0]]))[0]
    return adaptive_avg_pool2d(rows, (cells, size))[0, 0]
