"""Image sets that a program holds in memory: what it may hand over -> an `ImageSet`. Strict: no range is guessed.

tensors, arrays     uint8 (N, C, H, W) or (N, H, W, C) of 1 or 3 channels, or grey (N, H, W)
sequences           of PIL images in mode L or RGB, or of tensors or arrays of one image each
torch datasets      with a length; of images as above, alone, as (image,) or as (image, class)
Hugging Face        a `datasets.Dataset` with one column of images and at most one of classes

Grey among colours gets three equal channels, as in a folder.
"""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from PIL import Image

from iet_agc.data.arrays import as_planes
from iet_agc.data.conversion import planes
from iet_agc.data.datasets.hugging_face import table_images
from iet_agc.data.decoding import UnfitError, orientation
from iet_agc.data.image_set import ImageSet
from iet_agc.data.room import room
from iet_agc.runtime.errors import UserError

__all__ = ["InMemory", "is_in_memory", "load_in_memory"]

#: What `load_in_memory` takes; a `datasets.Dataset` as well, which is not imported for its name.
InMemory: TypeAlias = "ImageSet | torch.Tensor | np.ndarray | Sequence[Any] | torch.utils.data.Dataset[Any]"

_RANGE = (
    "; the range of other numbers is not guessed: give uint8 from 0 to 255, of x in [0, 1] (x * 255).round(), of x in "
    "[-1, 1] ((x + 1) * 127.5).round()"
)


def is_in_memory(given: object) -> bool:
    """Whether something is of a kind that `load_in_memory` takes."""
    kinds = ImageSet, torch.Tensor, np.ndarray, list, tuple, torch.utils.data.Dataset
    return isinstance(given, kinds) or _is_table(given)


def load_in_memory(given: object, name: str = "images") -> ImageSet:
    """Images that are in memory, as they are: nothing is scaled, resized, turned or left out.

    Args:
        given: see this module. An `ImageSet` stays as it is. Tensors and arrays of uint8 are not copied where their
            axes are in order.
        name: of the argument, for messages.

    Raises:
        UserError: something else; numbers that are not uint8; images of several sizes; PIL images of other modes,
            transparent, or to be turned by their EXIF data; labels that are no classes.
    """
    try:
        if isinstance(given, ImageSet):
            return given
        if isinstance(given, torch.Tensor | np.ndarray):
            return ImageSet(_pixels(given), _named(given, len(given) if given.ndim else 0))
        if _is_table(given):
            return _of_table(given)
        if isinstance(given, torch.utils.data.Dataset):
            return _of_dataset(given)
        if isinstance(given, list | tuple):
            return ImageSet(_stacked(given), f"a list of {len(given)} images")
    except UnfitError as error:
        raise UserError(f"{name} {error}", name) from None
    raise UserError(
        f"{name} is of type {type(given).__name__}: give a path, a uint8 tensor or array, a list of PIL images, or a "
        "dataset with a length",
        name,
    )


def _named(given: torch.Tensor | np.ndarray, count: int) -> str:
    return f"a {'tensor' if isinstance(given, torch.Tensor) else 'NumPy array'} of {count} images"


def _pixels(given: torch.Tensor | np.ndarray) -> torch.Tensor:
    """uint8 (N, C, H, W)."""
    array = given.detach().cpu().numpy() if isinstance(given, torch.Tensor) else given
    try:
        return torch.from_numpy(np.ascontiguousarray(as_planes(array)))
    except UnfitError as error:
        raise UnfitError(f"{error}{_RANGE if array.dtype != np.uint8 else ''}") from None


def _stacked(images: Sequence[object]) -> torch.Tensor:
    """Images of one size each, uint8 (N, C, H, W)."""
    if not images:
        raise UnfitError("holds no images")
    each = [_one(image, place) for place, image in enumerate(images)]
    height, width = each[0].shape[1:]
    if odd := [place for place, image in enumerate(each) if image.shape[1:] != (height, width)]:
        other = each[odd[0]].shape
        raise UnfitError(
            f"holds images of several sizes: number {odd[0]} is {other[2]} x {other[1]}, number 0 is {width} x "
            f"{height} (width x height); bring them to one"
        )
    out = room((len(each), max(len(image) for image in each), height, width), f"{len(each)} images")
    for place, image in enumerate(each):
        out[place] = image
    return torch.from_numpy(out)


def _one(image: object, place: int) -> np.ndarray:
    """One image, uint8 (C, H, W)."""
    if isinstance(image, Image.Image):
        return _upright(image, place)
    if isinstance(image, torch.Tensor | np.ndarray):
        try:
            return _pixels(image[None])[0].numpy()
        except UnfitError as error:
            raise UnfitError(f"cannot be used, number {place} {error}") from None
    raise UnfitError(f"cannot be used, number {place} is of type {type(image).__name__} and no image")


def _upright(image: Image.Image, place: int) -> np.ndarray:
    """The pixels of a PIL image that says itself what they are."""
    wrong = None
    if image.mode not in ("L", "RGB"):
        wrong = f"has mode {image.mode}: convert('RGB') or convert('L') makes it one of 8 bits without alpha"
    elif "transparency" in image.info:
        wrong = "is transparent in places: put it on a background"
    elif orientation(image) != 1:
        wrong = "is to be turned, by its EXIF orientation: PIL.ImageOps.exif_transpose turns it"
    if wrong:
        raise UnfitError(f"cannot be used, number {place} {wrong}")
    return planes(image)


def _of_dataset(given: torch.utils.data.Dataset[Any]) -> ImageSet:
    """The items of a dataset: images, (image,) or (image, class)."""
    if not hasattr(given, "__len__"):
        raise UnfitError(f"is of type {type(given).__name__}, without a length: give the images themselves, in a list")
    items = [given[place] for place in range(len(cast("Any", given)))]
    name = f"{type(given).__name__} of {len(items)} images"
    if not items or not isinstance(items[0], tuple | list):
        return ImageSet(_stacked(items), name)
    lengths = {len(item) if isinstance(item, tuple | list) else 0 for item in items}
    if lengths not in ({1}, {2}):
        raise UnfitError("holds items that are not all images, all (image,) or all (image, class)")
    labels = _classes(label for _, label in items) if lengths == {2} else None
    return ImageSet(_stacked([item[0] for item in items]), name, labels)


def _classes(labels: Iterable[object]) -> torch.Tensor:
    """int64 (N,)."""
    values = [label.item() if isinstance(label, torch.Tensor | np.generic) else label for label in labels]
    if odd := [value for value in values if type(value) is not int or not 0 <= value < 2**63]:
        raise UnfitError(f"has {odd[0]!r} for a class: classes are whole numbers from 0")
    return torch.tensor(values, dtype=torch.int64)


def _is_table(given: object) -> bool:
    """Whether something is of the package `datasets`, which is only there where it was imported."""
    return type(given).__module__.partition(".")[0] == "datasets"


def _of_table(given: Any) -> ImageSet:
    if type(given).__name__ != "Dataset":
        what = type(given).__name__
        raise UnfitError(f"is of Hugging Face's type {what}: give one of its splits, as a Dataset with a length")
    if given.format["type"] is not None:
        raise UnfitError(f"has the format {given.format['type']!r}: give it as it is, with_format(None)")
    columns = {
        kind: [name for name, feature in given.features.items() if type(feature).__name__ == kind]
        for kind in ("Image", "ClassLabel")
    }
    if len(columns["Image"]) != 1 or len(columns["ClassLabel"]) > 1 or not len(given):
        found = ", ".join(map(repr, [*columns["Image"], *columns["ClassLabel"]])) or "none"
        raise UnfitError(
            f"is a Dataset of {len(given)} rows with the columns {found} of images and of classes: give rows, with one "
            "column of images and at most one of classes, by select_columns"
        )
    name = given.info.dataset_name or f"a Dataset of {len(given)} images"
    return table_images(given, name, columns["Image"][0], next(iter(columns["ClassLabel"]), None))
