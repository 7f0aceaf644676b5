"""One image of each group of copies, so that no image is trained on more often than others."""

from collections.abc import Iterator

from iet_agc.data.image_set import ImageSet
from iet_agc.data.mending import TreatedFile
from iet_agc.metrics.duplicates import Group, duplicate_groups, representatives
from iet_agc.runtime import torchrun
from iet_agc.runtime.progress import progress_bar

__all__ = ["one_of_each"]


def one_of_each(images: ImageSet, near: bool) -> ImageSet:
    """The first image of each group of copies, and all images that stand alone, in their order.

    Args:
        images: the set; `ImageSet.treated` of the result lists the images that are left out, too, as "duplicate".
        near: whether near copies count, and mirrored ones, see `duplicate_groups`; else images that are equal pixel by
            pixel.
    """
    with progress_bar("compare", len(images), unit="image", shown=near and torchrun.is_first()) as bar:
        groups = duplicate_groups(images.images, near, near, lambda part: bar.update(part * len(images)))
    if not groups:
        return images
    left_out = [file for group in groups for file in _left_out(images, group)]
    one = images.take(representatives(groups, len(images)))
    return ImageSet(one.images, one.name, one.labels, one.files, one.captions, (*images.treated, *left_out))


def _left_out(images: ImageSet, group: Group) -> Iterator[TreatedFile]:
    """All members of a group but the first."""
    names = [images.files[each.image] if images.files else f"image {each.image}" for each in group.members]
    relation = "is equal to" if {each.kind for each in group.members} == {"exact"} else "is in a group of copies with"
    for name in names[1:]:
        yield TreatedFile(name, "duplicate", "left out", f"{relation} {names[0]}")
