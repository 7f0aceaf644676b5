"""Duplicates planted in a training set, so that something is there to be memorized."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from iet_agc.data.image_set import ImageSet
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import shown
from iet_agc.runtime.seeds import generator

__all__ = ["Kind", "plant_duplicates"]

#: How a planted copy differs from its image.
Kind = Literal["exact", "shifted", "brightness"]

#: A shifted copy is moved by at most this part of each side, in whole pixels, and at least by up to one.
_SHIFT = 8

#: A copy of another brightness has its levels multiplied by a factor between these.
_DARKEST, _BRIGHTEST = 0.7, 1.3


def plant_duplicates(
    images: ImageSet,
    num_images: int,
    copies: int,
    captions: Literal["same", "different"] | None = None,
    *,
    kind: Kind = "exact",
    seed: int = 0,
) -> ImageSet:
    """Repeat the first images, as a crawl of the web would, so that they get memorized.

    Args:
        images: the unique ones.
        num_images: how many of them to repeat.
        copies: how often each of these stands in the result; 1 changes nothing.
        captions: of planted images, as in Somepalli et al., 2023 (arXiv 2305.20086): "same", every copy has the first
            caption, so that image and text are duplicated; "different", copy j has caption j modulo their number, so
            that the image is; None, every copy has all of them.
        kind: of further copies: "exact"; "shifted" by whole pixels, up to an eighth of each side, the edge repeated;
            "brightness", levels times a factor from 0.7 to 1.3. Each copy is altered in its own way.
        seed: of these ways.

    Returns:
        The images as they were but for those captions, then the further copies.

    Raises:
        UserError: impossible numbers, or captions or a kind without effect.
    """
    if not 0 <= num_images <= len(images) or copies < 1:
        raise UserError(f"cannot plant {num_images} of {len(images)} images {copies} times each")
    if num_images == 0 or copies == 1:
        for name, is_set in (("captions", captions is not None), ("kind", kind != "exact")):
            if is_set:
                raise UserError(f"data.planted_{name} has no effect: set data.planted_images and data.planted_copies")
        return images  # as it is, mapped into memory perhaps
    further = torch.arange(num_images).repeat(copies - 1)
    planted = images.take(torch.cat([torch.arange(len(images)), further]))
    if kind != "exact":
        altered = torch.stack([_altered(image, kind, seed, n) for n, image in enumerate(planted.images[len(images) :])])
        planted = replace(planted, images=torch.cat([planted.images[: len(images)], altered]))
    return replace(planted, captions=of_copies(images, num_images, copies, captions)) if captions else planted


def _altered(image: Tensor, kind: Kind, seed: int, number: int) -> Tensor:
    """A near copy of an image, uint8 (C, H, W); `number` counts the further copies."""
    drawn = generator("planted", kind, seed, number)
    if kind == "brightness":
        factor = _DARKEST + (_BRIGHTEST - _DARKEST) * torch.rand((), generator=drawn)
        return (image * factor).round().clamp(0, 255).to(torch.uint8)
    rows, columns = (_moved(side, drawn) for side in image.shape[1:])
    return image[:, rows][:, :, columns]


def _moved(side: int, drawn: torch.Generator) -> Tensor:
    """The rows, or columns, of which a shifted image is made."""
    most = max(1, side // _SHIFT)
    by = int(torch.randint(-most, most + 1, (), generator=drawn))
    return (torch.arange(side) + by).clamp(0, side - 1)


def of_copies(images: ImageSet, num_images: int, copies: int, captions: str) -> tuple[tuple[str, ...], ...]:
    """The captions of all images and of their copies, of which each planted one has one."""
    if images.captions is None:
        raise UserError(f"{images.name} has no captions, so data.planted_captions has no effect: leave it out")
    planted, others = images.captions[:num_images], images.captions[num_images:]
    if alone := [number for number, texts in enumerate(planted) if len(texts) == 1 and captions == "different"]:
        which = images.files[alone[0]] if images.files else f"image {alone[0]}"
        raise UserError(
            f"data.planted_captions is 'different', but {len(alone)} planted images of {images.name} have one caption "
            f"only, such as {shown(which)}: give them more, or choose 'same'"
        )
    step = 1 if captions == "different" else 0
    first, *further = [[(texts[step * copy % len(texts)],) for texts in planted] for copy in range(copies)]
    return (*first, *others, *(texts for some in further for texts in some))
