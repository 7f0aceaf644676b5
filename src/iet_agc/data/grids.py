"""Grids of images, as files to look at."""

from pathlib import Path

import torch
from torch import Tensor

from iet_agc.runtime.files import writing

__all__ = ["image_grid", "pair_grid", "save_image"]


def image_grid(images: Tensor, most: int = 64, tile: int = 32, columns: int | None = None) -> Tensor:
    """Images side by side, to look at.

    Args:
        images: uint8 (N, C, H, W).
        most: how many of them to show.
        tile: smallest height of one, pixels; smaller images are enlarged without smoothing.
        columns: images side by side; None makes it about square.

    Returns:
        uint8 (3, height, width).
    """
    scale = -(-tile // images.shape[2])
    enlarged = images[:most].repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    from torchvision.utils import make_grid

    return make_grid(enlarged, nrow=columns or max(1, round(len(enlarged) ** 0.5)), padding=2, pad_value=128)


def pair_grid(above: Tensor, below: Tensor, tile: int = 32) -> Tensor:
    """Pairs side by side: one image of each above, the other below.

    Args:
        above, below: uint8 (N, C, H, W), N >= 1.
        tile: see `image_grid`.

    Returns:
        uint8 (3, height, width).
    """
    return image_grid(torch.cat([above, below]), 2 * len(above), tile, columns=len(above))


def save_image(image: Tensor, file: Path) -> None:
    """Write one image, uint8 (C, H, W) with one channel or three, as PNG."""
    from torchvision.transforms.functional import to_pil_image

    with writing(file):
        to_pil_image(image).save(file, format="PNG")
