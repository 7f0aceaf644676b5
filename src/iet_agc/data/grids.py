"""Grids of images, as files to look at."""

from pathlib import Path

from torch import Tensor

from iet_agc.runtime.files import writing

__all__ = ["image_grid", "save_image"]


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


def save_image(image: Tensor, file: Path) -> None:
    """Write one image, uint8 (C, H, W) with one channel or three, as PNG."""
    from torchvision.transforms.functional import to_pil_image

    with writing(file):
        to_pil_image(image).save(file, format="PNG")
