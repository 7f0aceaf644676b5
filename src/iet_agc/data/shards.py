"""Shards of an image set on disk, for trainers that know nothing of them: a list of each, and a folder of links.

shards.json     how the set was cut, and the size of every shard; written last, with it the folder is whole
shard-0.txt     the images of shard 0: in each line a path below the source, or of an array file an index
shard-0/        the same images, below it where they are below the source, with what comes along (see `companions`)

Images in a folder are hard links, which take no room and stay when the source is moved; copies, where a file system has
no links. Whoever changes the pixels of a link changes those of the source.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

import torch
from torch import Tensor

from iet_agc.config.run_folder import is_run
from iet_agc.data.companions import Companions, find_companions
from iet_agc.data.folders import image_files, load_images
from iet_agc.data.image_names import is_image_name
from iet_agc.data.image_set import ImageSet, unique_images
from iet_agc.data.mending import LIST_NAME, Mending, TreatedFile, in_short, write_list
from iet_agc.method.sharding import partition
from iet_agc.metrics.duplicates import duplicate_groups
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import digest, replace_text, replacing_folder, shown, writing
from iet_agc.runtime.paths import check_images_place
from iet_agc.runtime.progress import progress_bar, say
from iet_agc.runtime.reading import read_object
from iet_agc.runtime.result_folder import ResultFolder
from iet_agc.runtime.seal import unsealed

__all__ = ["KeepTogether", "cut_shards", "shard_sizes"]

#: Which copies of an image stay with it.
KeepTogether = Literal["exact", "near"]

_MARK, _VERSION = "shards.json", 1

#: What files of any size are brought to, only to be compared.
_COMPARED = (3, 64, 64)


def cut_shards(
    source: Path,
    out: Path,
    members: int,
    seed: int = 0,
    keep_together: KeepTogether | None = None,
    *,
    lists_only: bool = False,
    on_bad: Literal["fail", "skip"] = "fail",
) -> dict[str, Any]:
    """Cut an image set into disjoint shards of one size, to one image, or as far as copies allow.

    They are those of `partition` of the images in the order of their paths. Every shard has the same share of each
    class, which is the first subfolder that an image stands in.

    Args:
        source: a folder of images at any depth, or an .npz or .npy file, whose shards are lists only.
        out: folder of the result. The same call again leaves it as it is, and goes on after a kill.
        members: how many shards.
        seed: what shuffles; another seed, another split.
        keep_together: copies that go to one shard. "exact": equal pixel by pixel; "near": near and mirrored copies as
            well, see `duplicate_groups`. Files of a folder are compared at 64 x 64 pixels, turned as their EXIF data
            say and on white. None: files are not decoded, each stands for itself.
        lists_only: write no folders.
        on_bad: what to do about files of a folder that cannot be images, or cannot be decoded where that is needed:
            "fail" refuses them, "skip" leaves them out of all shards.

    Returns:
        The content of shards.json, without its seal.

    Raises:
        UnusableFilesError: such files.
        UserError: no images, fewer than shards, captions that `find_companions` refuses, or `out` holds other shards or
            anything else.
    """
    cut = _found(source, out, Mending(True, "white", on_bad))
    about = {
        "images_sha256": cut.identity,
        "members": members,
        "seed": seed,
        "keep_together": keep_together,
        "folders": cut.folder is not None and not lists_only,
        "on_bad": on_bad,
    }
    result = ResultFolder(out, _MARK, "set of shards", words={"images_sha256": "images"})
    with writing(out):
        result.check(about)
        plan = None if result.is_whole else _planned(cut, about)  # what cannot be cut leaves no folder
        with result.at_work(about, anew=result.is_whole and not _has_links(out)) as to_do:
            if to_do:
                plan = plan or _planned(cut, about)
                files = _write(cut, plan, out)
                result.finish(about | {"version": _VERSION, "source": shown(source), **_told(cut, plan)}, files)
    return unsealed(out / _MARK, read_object(out / _MARK), "remove it")


def shard_sizes(folder: Path) -> list[int]:
    """The number of images of each shard, in their order: the weights by which members are averaged.

    Args:
        folder: that `cut_shards` wrote.

    Raises:
        UserError: it is not finished, or damaged.
    """
    if not (mark := folder / _MARK).is_file():
        raise UserError(f"{shown(mark)} is not there: give a folder that 'iet-agc shards --out' wrote and finished")
    sizes = unsealed(mark, read_object(mark), "cut the shards again").get("sizes")
    if not isinstance(sizes, list) or not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise UserError(f"{shown(mark)} is damaged, it does not say how large shards are: cut the shards again")
    return sizes


# What is cut -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cut:
    """An image set that is to be cut.

    Attributes:
        folder: of the images; None of an array file.
        files: their paths below it, in order.
        array: the images of an array file.
        mending: see `cut_shards`.
        treated: files that were left out by their names.
    """

    folder: Path | None
    files: Sequence[PurePath]
    array: ImageSet | None
    mending: Mending
    treated: Sequence[TreatedFile] = ()

    @property
    def names(self) -> list[str]:
        """What lists call each image."""
        if self.array is not None:
            return [str(index) for index in range(len(self.array))]
        return [shown(file) for file in self.files]

    @property
    def classes(self) -> list[str]:
        """The subfolder of each image; the empty name of those that stand in none."""
        if self.array is not None:
            return [""] * len(self.array)
        return [file.parts[0] if len(file.parts) > 1 else "" for file in self.files]

    @property
    def labels(self) -> Tensor:
        """The same in numbers, by the order of their names, int64 (N,)."""
        classes = self.classes
        places = {name: place for place, name in enumerate(sorted(set(classes)))}
        return torch.tensor([places[name] for name in classes], dtype=torch.int64)

    @property
    def identity(self) -> str:
        """What tells it from others: names and sizes of files, or all pixels of an array."""
        if self.array is not None or self.folder is None:
            return self.array.fingerprint if self.array else ""
        return digest([(shown(file), os.stat(self.folder / file).st_size) for file in self.files])


def _found(source: Path, out: Path, mending: Mending) -> _Cut:
    if is_run(source):
        raise UserError(f"{shown(source)} is a run: give the images that are to be trained on")
    check_images_place(source)
    if not source.is_dir():
        return _Cut(None, (), load_images(source), mending)
    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(source)):
        raise UserError(f"{shown(out)} lies in {shown(source)}, where its links would be images, too", "out")
    files, treated = image_files(source, mending)
    return _Cut(source, files, None, mending, treated)


@dataclass(frozen=True)
class _Plan:
    """What is to be written.

    Attributes:
        shards: the images of each, by their places in the set.
        copies: what is told of copies that stay together.
        treated: all files that were left out.
        along: what comes along with the images; None where no folders are written.
    """

    shards: Sequence[Sequence[int]]
    copies: Mapping[str, int]
    treated: Sequence[TreatedFile]
    along: Companions | None


def _planned(cut: _Cut, about: Mapping[str, Any]) -> _Plan:
    members, seed, kind = about["members"], about["seed"], about["keep_together"]
    if kind is None:
        used, groups, treated = torch.arange(len(cut.names)), None, cut.treated
    else:
        images, used = _compared(cut)
        groups = unique_images(images.images)[1] if kind == "exact" else _near_groups(images)
        treated = [file for file in images.treated if file.done == "left out"]
    parts = partition(cut.labels[used], members, seed=seed, groups=groups)
    along = _companions(cut, used.tolist()) if about["folders"] else None
    return _Plan([used[part].tolist() for part in parts], _copies(groups), treated, along)


def _copies(groups: Tensor | None) -> dict[str, int]:
    """How many groups of copies there are, and the size of the largest."""
    sizes = torch.zeros(1) if groups is None else groups.bincount()
    largest = int(sizes.max())
    return {"groups": int((sizes > 1).sum()), "largest_group": largest if largest > 1 else 0}


def _companions(cut: _Cut, used: Sequence[int]) -> Companions:
    """What comes along with the images that are in shards; others may have captions, too."""
    assert cut.folder is not None
    images = [cut.files[place] for place in used]
    others = {*cut.files, *(PurePath(file.path) for file in cut.treated)} - {*images}
    return find_companions(cut.folder, images, others)


def _compared(cut: _Cut) -> tuple[ImageSet, Tensor]:
    """The images that can be compared, and their places in the set, int64 (M,)."""
    if cut.folder is None:
        assert cut.array is not None
        return cut.array, torch.arange(len(cut.array))
    with progress_bar("read", len(cut.files), unit="image") as bar:
        images = load_images(cut.folder, _COMPARED, bar.update, mending=cut.mending)
    places = {name: place for place, name in enumerate(cut.names)}
    return images, torch.tensor([places[name] for name in images.files or ()], dtype=torch.int64)


def _near_groups(images: ImageSet) -> Tensor:
    """A number per image that its exact, mirrored and near copies have as well, int64 (N,)."""
    groups = torch.arange(len(images))
    with progress_bar("compare", len(images), unit="image") as bar:
        found = duplicate_groups(images.images, on_done=lambda share: bar.update(share * len(images)))
    for group in found:
        groups[[member.image for member in group.members]] = group.first
    return groups


# What is written -------------------------------------------------------------------------------------------


def _write(cut: _Cut, plan: _Plan, out: Path) -> list[str]:
    """Write lists and folders; the files that are sealed."""
    names, files = cut.names, list[str]()
    for name, shard in zip(_names(plan), plan.shards, strict=True):
        replace_text(out / f"{name}.txt", "".join(f"{names[place]}\n" for place in shard))
        tables = _link(plan.along, [cut.files[place] for place in shard], out / name) if plan.along else []
        files += [f"{name}.txt", *(f"{name}/{table}" for table in tables)]
    (out / LIST_NAME).unlink(missing_ok=True)
    if plan.treated and cut.folder:
        write_list(out / LIST_NAME, {shown(cut.folder): plan.treated})
        say(in_short(shown(cut.folder), plan.treated, out / LIST_NAME))
        files.append(LIST_NAME)
    return files


def _link(along: Companions, images: Sequence[PurePath], folder: Path) -> list[PurePath]:
    """The folder of a shard, whole or not at all; the tables that were written into it."""
    with replacing_folder(folder) as unfinished:
        unfinished.mkdir()
        return along.link(images, unfinished)


def _names(plan: _Plan) -> list[str]:
    """The name of each shard; in the order of their names they are in order."""
    width = len(str(len(plan.shards) - 1))
    return [f"shard-{number:0{width}d}" for number in range(len(plan.shards))]


def _told(cut: _Cut, plan: _Plan) -> dict[str, Any]:
    """What shards.json says of the shards."""
    sizes, classes = [len(shard) for shard in plan.shards], cut.classes
    counts = [Counter(shown(classes[place]) for place in shard if classes[place]) for shard in plan.shards]
    told: dict[str, Any] = {
        "num_images": sum(sizes),
        "num_classes": len({*classes} - {""}),
        "left_out": len(plan.treated),
        **plan.copies,
    }
    if plan.along:
        told |= {"captioned": len(plan.along.captioned), "left_behind": len(plan.along.left_behind)}
    shards = [
        {"name": name, "images": size, "classes": dict(sorted(some.items()))}
        for name, size, some in zip(_names(plan), sizes, counts, strict=True)
    ]
    return told | {"sizes": sizes, "shards": shards}


def _has_links(out: Path) -> bool:
    """Whether the folders of finished shards still hold as many images as they should."""
    content = read_object(out / _MARK, "remove it")
    shards = content.get("shards", ()) if content.get("folders") else ()
    return all(_count(out / shard["name"]) == shard["images"] for shard in shards)


def _count(folder: Path) -> int:
    return sum(is_image_name(name) for _, _, names in os.walk(folder) for name in names)
