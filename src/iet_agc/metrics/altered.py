"""Near copies of images as people find them: encoded again, with noise, squeezed and stretched back.

They are what `iet_agc.metrics.soundness` looks for: a cut that does not see these sees no copies.
"""

from collections.abc import Callable
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from iet_agc.metrics.soundness import Kind

__all__ = ["near_copies"]

#: Of the noise; as JPEG of quality 75 leaves it.
_DEVIATION = 5.0
_QUALITY = 75

#: Images are squeezed to this share of their width; smaller ones than this many pixels would lose more than people do.
_SQUEEZED, _LEAST_SIDE = 0.9, 16


def near_copies(images: Tensor, seed: int = 0) -> dict[Kind, Tensor]:
    """Near copies of each image, by how they were made.

    Args:
        images: uint8 (N, C, H, W), C is 1 or 3.
        seed: of the noise.

    Returns:
        uint8 (N, C, H, W) each; squeezed ones of images of at least 16 x 16 pixels only.
    """
    copies: dict[Kind, Tensor] = {"jpeg_75": _each(images, _encoded), "noise_5": _noised(images, seed)}
    if min(images.shape[2:]) >= _LEAST_SIDE:
        copies["squeezed_90"] = _each(images, _squeezed)
    return copies


def _noised(images: Tensor, seed: int) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return (images.float() + _DEVIATION * noise).round().clamp(0, 255).to(torch.uint8)


def _encoded(image: Image.Image) -> Image.Image:
    file = BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return Image.open(file)


def _squeezed(image: Image.Image) -> Image.Image:
    narrow = int(image.width * _SQUEEZED), image.height
    return image.resize(narrow, Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)


def _each(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    rows = images.cpu().permute(0, 2, 3, 1).numpy()
    grey = rows.shape[3] == 1
    changed = [np.asarray(change(Image.fromarray(row[:, :, 0] if grey else row))) for row in rows]
    stacked = torch.from_numpy(np.stack(changed))
    return stacked[:, None] if grey else stacked.permute(0, 3, 1, 2).contiguous()
