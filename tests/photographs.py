"""Folders as people have them: smooth pictures of any size, with copies, damage and odd formats where asked for."""

from pathlib import Path

import numpy as np
from PIL import Image


def photograph(seed: int, width: int = 40, height: int = 40, mode: str = "RGB") -> Image.Image:
    """A smooth picture, no two alike: noise of few pixels, enlarged."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def album(place: Path, count: int = 12, first: int = 0) -> Path:
    """A folder of PNGs."""
    place.mkdir(parents=True)
    for number in range(count):
        photograph(first + number).save(place / f"{number:03d}.png")
    return place


def with_copies(place: Path, count: int = 12) -> Path:
    """An album with an equal copy of 000.png, a near copy of 001.png, and 002.png mirrored."""
    album(place, count)
    photograph(0).save(place / "b.png")
    photograph(1).save(place / "c.jpg", quality=90)
    photograph(2).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(place / "d.png")
    return place


def turned(file: Path, seed: int, width: int = 40, height: int = 40) -> None:
    """A JPEG that viewers turn."""
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph(seed, width, height).save(file, exif=exif)
