"""What a folder of images holds: sizes, channels, formats, copies, captions, classes, files that need mending."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

import torch

from iet_agc.data.folders import image_sizes, load_images, packed_of
from iet_agc.data.image_set import ImageSet, unique_images
from iet_agc.data.mending import Mending
from iet_agc.data.packed import packed_texts
from iet_agc.data.tar_files import key_of
from iet_agc.metrics.duplicates import MOST_UNASKED, Group, duplicate_groups

__all__ = ["Copies", "Looked", "Survey", "captions_of", "look_at", "num_classes", "survey_folder"]

#: The file of captions in the layout of Hugging Face's imagefolder.
_LINES = "metadata.jsonl"


@dataclass(frozen=True)
class Copies:
    """Images of a set that stand in it more than once.

    Attributes:
        looked_for: "near", or "exact" in a set that is too large to look for others in a moment.
        groups: of images that are copies of each other, mirrored ones among them.
        largest: how many images the largest group has; 0 without groups.
        redundant: images beyond one of each group.
        redundant_exact: images beyond one of those that are equal pixel by pixel.
    """

    looked_for: Literal["exact", "near"]
    groups: int
    largest: int
    redundant: int
    redundant_exact: int

    @property
    def deduplicate(self) -> Literal["exact", "near"] | None:
        """The setting of data.deduplicate that leaves one of each; None where there are no copies."""
        if not self.redundant:
            return None
        return "exact" if self.redundant == self.redundant_exact else "near"


@dataclass(frozen=True)
class Survey:
    """What a folder holds.

    Attributes:
        images: those that can be used, brought to one size.
        sizes: (C, H, W) of each in its file.
        formats: how many files there are by the ending of their names.
        copies: at the size that images are brought to.
        held_out: the images of another folder, or None; and how many of these are copies of images of the folder.
        captions: how the folder says captions, as data.captions does, or None.
        classes: how many subfolders hold images, where all images stand in some; else 0.
    """

    images: ImageSet
    sizes: Sequence[tuple[int, int, int]]
    formats: Mapping[str, int]
    copies: Copies
    held_out: ImageSet | None
    held_out_copies: int
    captions: str | None
    classes: int

    @property
    def short_sides(self) -> list[int]:
        """The shorter side of each image, in pixels."""
        return [min(size[1:]) for size in self.sizes]


@dataclass(frozen=True)
class Looked:
    """The images of a folder.

    Attributes:
        images: of the folder, brought to one size.
        sizes: (C, H, W) of each file.
        held_out: images that are not to be trained on, None where none are given.
    """

    images: ImageSet
    sizes: Sequence[tuple[int, int, int]]
    held_out: ImageSet | None


def look_at(
    folder: Path,
    choose: Callable[[Sequence[tuple[int, int, int]]], tuple[int, int, int]],
    held_out: Path | None = None,
    mending: Mending = Mending(),  # noqa: B008 (frozen)
    on_images: Callable[[int], object] = lambda count: None,
) -> Looked:
    """Read all images of a folder.

    Args:
        folder: it.
        choose: the (C, H, W) that images are brought to, by those that they have.
        held_out: a folder of images that are not to be trained on.
        mending: what to do about files that cannot be used.
        on_images: called with a number of images that were read.

    Raises:
        UnusableFilesError: files that cannot be used, see `load_images`.
        UserError: no such folder, or no images there; what `choose` raises.
    """
    sizes = image_sizes(folder, mending)
    if not sizes:  # not one file has a header that can be used
        load_images(folder, None, on_images, mending=mending)
    shape = choose([*sizes.values()])
    images = load_images(folder, shape, on_images, mending=mending)
    real = load_images(held_out, shape, on_images, mending=mending) if held_out else None
    return Looked(images, [sizes[file] for file in images.files or ()], real)


def survey_folder(folder: Path, looked: Looked, on_compared: Callable[[float], object] = lambda share: None) -> Survey:
    """What a folder holds.

    Args:
        folder: it.
        looked: see `look_at`.
        on_compared: called with a share of the comparisons of images that are done.
    """
    images, real, files = looked.images, looked.held_out, looked.images.files or ()
    together = images.images if real is None else torch.cat([images.images, real.images])
    packed = packed_of(folder)
    near = len(together) <= MOST_UNASKED
    groups = duplicate_groups(together, near, near, on_compared)
    return Survey(
        images=images,
        sizes=looked.sizes,
        formats=dict(Counter(PurePath(file).suffix.lower().removeprefix(".") for file in files).most_common()),
        copies=_copies(groups, images, "near" if near else "exact"),
        held_out=real,
        held_out_copies=sum(_leaked(group, len(images)) for group in groups),
        captions=captions_in(packed, files) if packed else captions_of(folder, files),
        classes=0 if packed else num_classes(files),
    )


def _copies(groups: Sequence[Group], images: ImageSet, looked_for: Literal["exact", "near"]) -> Copies:
    """Those among the first images of what was compared."""
    sizes = [sum(each.image < len(images) for each in group.members) for group in groups]
    several = [size for size in sizes if size > 1]
    equal = len(images) - len(unique_images(images.images)[0])
    return Copies(looked_for, len(several), max(several, default=0), sum(several) - len(several), equal)


def _leaked(group: Group, most: int) -> int:
    """How many images from a number on stand in a group with one below it."""
    beyond = sum(each.image >= most for each in group.members)
    return beyond if beyond < len(group.members) else 0


def captions_of(folder: Path, files: Sequence[str]) -> str | None:
    """How a folder says captions, if it does: metadata.jsonl, its only .json file, or "txt" for a file beside each.

    Args:
        folder: of the images.
        files: their paths below it.
    """
    if (folder / _LINES).is_file():
        return _LINES
    if len(found := sorted(folder.glob("*.json"))) == 1:
        return found[0].name
    return "txt" if all((folder / file).with_suffix(".txt").is_file() for file in files) else None


def captions_in(packed: Sequence[Path], files: Sequence[str]) -> str | None:
    """The same of archives: "txt" for a .txt member of each image's key.

    Args:
        packed: the archives, or tables.
        files: names of their images.
    """
    texts = packed_texts(packed)
    return "txt" if all(f"{key_of(file)}.txt" in texts for file in files) else None


def num_classes(files: Sequence[str]) -> int:
    """How many subfolders hold images, where every image stands in one; else 0.

    Args:
        files: paths of the images below their folder.
    """
    first = [PurePath(file).parts[0] for file in files if len(PurePath(file).parts) > 1]
    return len({*first}) if len(first) == len(files) else 0
