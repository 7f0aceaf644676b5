"""Images at rest: uint8 arrays in memory, and which of them are equal."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from iet_agc.data.mending import TreatedFile
from iet_agc.runtime.errors import UserError

__all__ = ["ImageSet", "MOST_NAMED", "Parts", "Rows", "digests", "in_memory", "unique_images"]

#: So many things that are wrong with a set are named.
MOST_NAMED = 5
#: Images that are hashed at a time.
_SLICE = 1024


#: Copies the pixels of some images of a set: the set, places int64 (M,) -> uint8 (M, C, H, W).
Rows = Callable[["ImageSet", Tensor], Tensor]


def in_memory(images: "ImageSet", indices: Tensor) -> Tensor:
    """A copy of the pixels of some images; see `Rows`."""
    return images.images[indices]


@dataclass(frozen=True)
class ImageSet:
    """Images at rest.

    Attributes:
        images: uint8 (N, C, H, W).
        name: where they come from, for people.
        labels: class of each, int64 (N,), or None.
        files: path of each below the folder that they were read from, or None.
        captions: one or more texts about each, or None.
        treated: files that were mended or left out when the images were read, of all that were read.
    """

    images: Tensor
    name: str
    labels: Tensor | None = None
    files: tuple[str, ...] | None = None
    captions: tuple[tuple[str, ...], ...] | None = None
    treated: tuple[TreatedFile, ...] = ()

    @property
    def left_out(self) -> tuple[str, ...]:
        """The paths of files that were left out."""
        return tuple(file.path for file in self.treated if file.done == "left out")

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise UserError(
                f"{self.name}: images must be uint8 (N, C, H, W), not {self.images.dtype} {tuple(self.images.shape)}"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def size(self) -> str:
        """C x H x W, for people."""
        return " x ".join(map(str, self.shape))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over shape and pixels, hexadecimal."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().data)
        return digest.hexdigest()

    def take(self, indices: Tensor, rows: Rows = in_memory) -> "ImageSet":
        """The images at `indices`, int64 (M,), in that order; `rows` copies their pixels."""
        labels = None if self.labels is None else self.labels[indices]
        places = indices.tolist()
        files = None if self.files is None else tuple(self.files[place] for place in places)
        captions = None if self.captions is None else tuple(self.captions[place] for place in places)
        return replace(self, images=rows(self, indices), labels=labels, files=files, captions=captions)


def digests(images: Tensor, turn: Callable[[Tensor], Tensor] = lambda images: images) -> list[bytes]:
    """SHA-256 of each image's pixels.

    Args:
        images: uint8 (N, C, H, W).
        turn: what is done to them before, some at a time, such as `metrics.neighbors.mirror`.
    """
    parts = (turn(part).flatten(1).contiguous().numpy() for part in images.split(_SLICE))
    return [hashlib.sha256(row).digest() for rows in parts for row in rows]


def unique_images(images: Tensor) -> tuple[Tensor, Tensor]:
    """Find the images that are equal pixel by pixel.

    Args:
        images: uint8 (N, C, H, W).

    Returns:
        first: where each unique image stands first, int64 (U,), ascending.
        inverse: which of these each image is, int64 (N,).
    """
    first, inverse, place = [], [], {}
    for index, digest in enumerate(digests(images)):
        if digest not in place:
            place[digest] = len(first)
            first.append(index)
        inverse.append(place[digest])
    return torch.tensor(first, dtype=torch.int64), torch.tensor(inverse, dtype=torch.int64)


#: Training images and, where the set has a test part, that.
Parts = tuple[ImageSet, ImageSet | None]
