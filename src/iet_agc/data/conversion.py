"""Images of any size brought to one, some at a time."""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal, TypeVar, get_args

import numpy as np
import PIL
from PIL import Image, ImageOps

from iet_agc.data.decoding import UnfitError
from iet_agc.data.image_set import ImageSet
from iet_agc.data.pixel_store import PixelStore, pixels_for
from iet_agc.runtime.errors import UserError

__all__ = ["IN_FLIGHT", "Item", "Resize", "Result", "check_target", "convert", "fit", "in_order", "planes"]

#: How images are brought to a size, see `convert`.
Resize = Literal["bicubic", "bilinear"]

#: An image is resized to an area of at most so many times the part that is then cropped.
_MOST_COVERED = 64

_NUM_THREADS = min(16, os.cpu_count() or 1)

#: Items that a thread takes at a time, at most; and how far items that are at work are apart.
_LONGEST = 64
IN_FLIGHT = _NUM_THREADS * _LONGEST

Item = TypeVar("Item")

Result = TypeVar("Result")


def convert(
    images: ImageSet, shape: tuple[int, int, int], resize: Resize = "bicubic", store: PixelStore | None = None
) -> ImageSet:
    """Bring all images to one shape; `load_images(path, shape)` gives the same pixels.

    Colour becomes grey by Pillow's luma (ITU-R 601-2), grey three equal channels. The largest centred part with
    the proportions of `shape` is then brought to that size by one of Pillow's filters, which antialias; what stands
    outside of that part is lost. Images that have the shape stay as they are, to the bit.

    Args:
        images: of one channel or three.
        shape: (C, H, W), C 1 or 3.
        resize: "bicubic" takes the exact part, to fractions of a pixel, and the filter sees nothing else. "bilinear" is
            torchvision's Resize(S) and CenterCrop(S) of PIL images, pixel by pixel where H = W = S: the whole image is
            resized, its longer edge cut to whole pixels, and then cropped.
        store: for the pixels of large sets; None: these are held in memory.

    Raises:
        UserError: another shape, number of channels or way to resize, or more than the machine's memory holds.
    """
    check_target(shape, resize)
    if images.shape == shape:
        return images
    from torchvision.transforms.functional import to_pil_image

    if images.shape[0] not in (1, 3):
        raise UserError(f"{images.name} has images of {images.shape[0]} channels: only 1 or 3 can be converted")
    what = f"{len(images)} images of {images.name}"
    with pixels_for((len(images), *shape), what, store, lambda: ["converted", PIL.__version__, resize]) as pixels:

        def fill(at: int) -> None:
            if not pixels.has(at):
                pixels.put(at, planes(fit(to_pil_image(images.images[at]), shape, resize)), keep=True)

        try:
            in_order(fill, range(len(images)))
        except UnfitError as error:
            raise UserError(f"{images.name}: each image {error}") from None
        return replace(images, images=pixels.images())


def check_target(shape: tuple[int, int, int], resize: Resize) -> None:
    """Refuse a shape that is not (C, H, W), C 1 or 3, and ways to resize that there are not."""
    if len(shape) != 3 or shape[0] not in (1, 3) or min(shape) < 1:
        given = "x".join(str(extent) for extent in shape)
        raise UserError(f"cannot bring images to {given}: give CxHxW with 1 or 3 channels, such as 3x32x32")
    if resize not in get_args(Resize):
        raise UserError(f"cannot resize images by {resize!r}: use one of {', '.join(get_args(Resize))}")


def fit(image: Image.Image, shape: tuple[int, int, int], resize: Resize) -> Image.Image:
    """One image brought to (C, H, W); see `convert`."""
    channels, height, width = shape
    mode = "L" if channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    if image.size == (width, height):
        return image
    if resize == "bicubic":
        return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    large = image.resize(_covering(image.size, width, height), Image.Resampling.BILINEAR)
    left, top = round((large.width - width) / 2), round((large.height - height) / 2)  # halves to even, as torchvision
    return large.crop((left, top, left + width, top + height))


def _covering(size: tuple[int, int], width: int, height: int) -> tuple[int, int]:
    """The (width, height) of an image resized to just cover a part, in whole pixels."""
    covering = max((width, size[1] * width // size[0]), (size[0] * height // size[1], height))
    if math.prod(covering) > _MOST_COVERED * width * height:  # most of which is for nothing
        what = f"is {size[0]} x {size[1]}, too narrow to be resized to {width} x {height}: crop it before"
        raise UnfitError(what, "too-narrow")
    return covering


def planes(image: Image.Image) -> np.ndarray:
    """uint8 (C, H, W) of a grey or RGB image."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def in_order(
    work: Callable[[Item], Result], items: Sequence[Item], on_images: Callable[[int], object] = lambda count: None
) -> list[Result]:
    """The work on every item, done by threads; results in the order of the items."""
    length = max(1, min(_LONGEST, len(items) // (4 * _NUM_THREADS)))
    results: list[Result] = []
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        starts = range(0, len(items), length)
        for part in pool.map(lambda start: [work(item) for item in items[start : start + length]], starts):
            results += part
            on_images(len(part))
    return results
