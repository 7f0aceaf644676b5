"""What stands for a set of images wherever one is asked for: a path, a name, a result, or images in memory.

A path is that of a folder, of tar archives or parquet tables (a folder, a file or a pattern such as DIR/*.tar), of an
.npz or .npy file, a run or a sample set; a name that of an image set, such as "digits"; a result what the verbs return;
and images in memory what `data.datasets.in_memory` takes: uint8 tensors and NumPy arrays, lists of PIL images, torch
and Hugging Face datasets.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from iet_agc.api.results import Run

if TYPE_CHECKING:
    from iet_agc.auditing.sources import Part
    from iet_agc.data.datasets.in_memory import InMemory
    from iet_agc.data.image_set import ImageSet

__all__ = ["Images", "Place", "named", "sources"]

#: A path, or a result, which is one.
Place: TypeAlias = str | os.PathLike[str]
#: A set of images, see this module.
Images: TypeAlias = "Place | InMemory"


def named(images: "Images", argument: str) -> tuple[str, "ImageSet | None"]:
    """What a set of images is called, and the images where they are in memory.

    Args:
        images: see this module.
        argument: that they were given as, for messages.

    Raises:
        UserError: images in memory that cannot be used.
    """
    if isinstance(images, Run):
        return os.fspath(images), images.images
    if isinstance(images, str | os.PathLike):
        return os.fspath(images), None
    from iet_agc.data.datasets.in_memory import load_in_memory

    found = load_in_memory(images, argument)
    return found.name, found


def sources(parts: "Mapping[Part, Images | None]") -> "tuple[dict[Part, str], dict[Part, ImageSet]]":
    """The names of the sets that there are, and those of them that are in memory."""
    names: dict[Part, str] = {}
    given: dict[Part, ImageSet] = {}
    for part, images in parts.items():
        if images is not None:
            names[part], found = named(images, part.replace("-", "_"))
            given |= {} if found is None else {part: found}
    return names, given
