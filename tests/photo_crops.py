"""Photographs of our own making: smooth light and shade, edges and texture, of which crops are alike but not equal."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIDE = 32


def photographs(count: int, rng: np.random.Generator) -> list[Image.Image]:
    """RGB, 96 x 72: a field of colours, some shapes, and grain."""
    return [_photograph(rng) for _ in range(count)]


def _photograph(rng: np.random.Generator) -> Image.Image:
    colours = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    picture = colours.resize((96, 72), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for _ in range(6):
        left, top = rng.integers(-10, 90), rng.integers(-10, 66)
        box = (left, top, left + rng.integers(8, 40), top + rng.integers(8, 40))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape([int(edge) for edge in box], fill=tuple(int(value) for value in rng.integers(0, 256, 3)))
    grain = np.asarray(picture) + rng.normal(0, 6, (72, 96, 3))
    return Image.fromarray(grain.clip(0, 255).astype(np.uint8))


def crops(pictures: list[Image.Image], count: int, rng: np.random.Generator) -> list[Image.Image]:
    """Of each picture in turn a part of 90 to 100 % of its sides, at 32 x 32."""
    return [_crop(pictures[number % len(pictures)], rng) for number in range(count)]


def _crop(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    width, height = (int(side * rng.uniform(0.9, 1)) for side in picture.size)
    left, top = (int(rng.integers(0, room + 1)) for room in (picture.width - width, picture.height - height))
    return picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, (left, top, left + width, top + height))


def squeezed_copy(image: Image.Image) -> Image.Image:
    """Squeezed to 90 % of its width and back, and encoded as JPEG of quality 80."""
    narrow = image.resize((SIDE * 9 // 10, SIDE), Image.Resampling.BICUBIC)
    stream = BytesIO()
    narrow.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=80)
    return Image.open(stream).convert("RGB")


def save_mixed(folder: Path, images: list[Image.Image]) -> Path:
    """A folder of PNG and JPEG files."""
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        if number % 3 == 0:
            image.save(folder / f"{number:03}.jpg", quality=95)
        else:
            image.save(folder / f"{number:03}.png")
    return folder
