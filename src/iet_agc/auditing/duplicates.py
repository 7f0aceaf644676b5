"""Duplicates of an image set on disk: from a source to a folder.

duplicates.json   counts, conventions, versions; written last, with it the folder is whole
groups.csv        every image of every group, how it lies over the centre of its group, and whether it is kept
report.html       the groups in pictures
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from iet_agc.auditing.sources import load_part, resize_of
from iet_agc.data.copy_tables import Copy, is_pair_table, pair_table
from iet_agc.data.image_set import ImageSet, unique_images
from iet_agc.data.mending import LIST_NAME, Mending, counts, in_short, write_list
from iet_agc.metrics.duplicates import Group, Member, duplicate_groups, redundant
from iet_agc.metrics.intervals import hundredths
from iet_agc.metrics.near_copies import RULE
from iet_agc.reporting.duplicates_page import MOST_GROUPS, MOST_IMAGES, ShownGroup, ShownImage, render_duplicates
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import check_ours, only_one, replace_text, sha256, shown, writing
from iet_agc.runtime.progress import progress_bar, say

__all__ = ["find_duplicates"]

_SUMMARY, _TABLE, _PAGE = "duplicates.json", "groups.csv", "report.html"

_CONVENTIONS = {
    "exact": "Exact copies are equal pixel by pixel, by SHA-256, once all images have one size.",
    "near": "Near copies are decided on thumbnails of at most 16 pixels a side, under the zoom, shift, gain and offset "
    "that fit best. The distance is the share of variance that is left over: 0 of equal images, about 1 of others.",
    "rule": "A near copy differs little, in the whole and in every part, and much less than the image's other "
    "candidates do: so images that are merely alike are not linked.",
    "groups": "Every member of a group is a copy of its centre; there are no chains.",
    "kept": "Of each group the largest file is kept, or else the first image.",
}
#: Less zoom, and shifts of fewer pixels, are not worth telling.
_SEEN_ZOOM, _SEEN_SHIFT = 0.015, 0.25

_MIRRORED = {True: "Mirrored images count as copies.", False: "Mirrored images are no copies."}


def find_duplicates(
    source: str,
    out: Path,
    *,
    near: bool = True,
    flips: bool = True,
    convert_to: tuple[int, int, int] | None = None,
    mending: Mending = Mending(),  # noqa: B008 (frozen)
    keep_list: Path | None = None,
    pairs: Path | None = None,
    fail_above: float | None = None,
    on_done: Callable[[float], object] | None = None,
) -> dict[str, Any]:
    """Find the images that stand more than once in what lies on disk: what `iet-agc duplicates` does.

    Args:
        source: see `load_part`; of a run, what it trains on.
        out: folder for the result; an earlier one in it is replaced.
        near, flips: see `duplicate_groups`.
        convert_to: bring every image to this (C, H, W), see `load_images`.
        mending: of a folder, see `load_part`; files that were mended or left out are listed in OUT/mending.csv.
        keep_list: a file that gets one line for each image that stays where one of each group does: its path below the
            folder `source`, else its index. One that was written here before is replaced.
        pairs: a file that gets the copies as other programs write them, see `data.copy_tables.pair_table`: .json as
            imagededup, .csv as fastdup. One that was written here before is replaced.
        fail_above: the largest share of images beyond one of each group that passes.
        on_done: called with a share of all the work, in place of the progress bar.

    Returns:
        The content of duplicates.json.

    Raises:
        UserError: see `load_part`; `out`, `keep_list` or `pairs` holds something else or cannot be written, or `pairs`
            is of another kind.
    """
    check_ours(out, _SUMMARY, {_SUMMARY, _TABLE, _PAGE, LIST_NAME}, "duplicates of ours")
    if pairs and not is_pair_table(pairs):
        raise UserError(f"{shown(pairs)} is neither .json, as imagededup writes, nor .csv, as fastdup does", "pairs")
    for name, file in (("keep_list", keep_list), ("pairs", pairs)):
        if file:
            _check_list(file, out, name)
    shown_bar = on_done is None
    with progress_bar("read", None, unit="image", shown=shown_bar) as bar:
        images, _ = load_part(source, "train", convert_to, bar.update, resize_of(source), mending=mending)
    with progress_bar("compare", len(images), unit="image", shown=shown_bar) as bar:
        groups = duplicate_groups(images.images, near, flips, on_done or (lambda part: bar.update(part * len(images))))
    kept = _kept(groups, images, Path(source))
    lines = "".join(f"{name}\n" for name in _names_kept(groups, kept, images))
    numbers = _summary(source, images, groups, near, flips, convert_to is not None, fail_above)
    if mending.asked or images.treated:
        numbers["mending"] = {**asdict(mending), "files": counts(images.treated)}
    with writing(out), only_one(out):
        (out / LIST_NAME).unlink(missing_ok=True)
        if images.treated:
            write_list(out / LIST_NAME, {shown(source): images.treated})
            say(in_short(images.name, images.treated, out / LIST_NAME))
        replace_text(out / _TABLE, _table(groups, kept, images))
        replace_text(out / _PAGE, render_duplicates(numbers, _shown(groups, kept, images)))
        if keep_list:
            numbers["keep_list"] = {"file": str(keep_list), "sha256": _write_list(keep_list, lines)}
        if pairs:
            numbers["pairs"] = {"file": str(pairs), "sha256": _write_list(pairs, _pairs(pairs, groups, images, source))}
        replace_text(out / _SUMMARY, json.dumps(numbers, indent=1, ensure_ascii=False))
    if numbers["gate"] and numbers["gate"]["failed"]:
        share = numbers["redundant"]["share"]
        say(f"iet-agc: check failed: {share:.2%} of images are beyond one of each group, more than {fail_above:.2%}")
    return numbers


def _summary(
    source: str,
    images: ImageSet,
    groups: Sequence[Group],
    near: bool,
    flips: bool,
    converted: bool,
    fail_above: float | None,
) -> dict[str, Any]:
    """The content of duplicates.json, without the list of what is kept."""
    further, kinds = redundant(groups), Counter(group.kind for group in groups)
    share = further / len(images)
    conventions = _CONVENTIONS if near else {key: _CONVENTIONS[key] for key in ("exact", "groups", "kept")}
    return {
        "version": 1,
        "source": source,
        "images": len(images),
        "unique": len(unique_images(images.images)[0]),
        "kept": len(images) - further,
        "groups": {"exact": kinds["exact"], "near": kinds["near"]},
        "images_in_groups": sum(len(group.members) for group in groups),
        "largest_group": max((len(group.members) for group in groups), default=0),
        "redundant": {"count": further, "share": share},
        "gate": None if fail_above is None else {"fail_above": fail_above, "failed": share > fail_above},
        "near": near,
        "flips": flips,
        "shape": list(images.shape),
        "converted": converted,
        "sha256": images.fingerprint,
        "conventions": conventions | {"flips": _MIRRORED[flips]},
        "rule": RULE if near else None,
        "versions": {"iet-agc": version("iet-agc"), "torch": torch.__version__},
        "keep_list": None,
        "pairs": None,
    }


# -- which one stays


def _kept(groups: Sequence[Group], images: ImageSet, folder: Path) -> list[int]:
    """Of each group the image with the largest file, the first among equals; without files the first."""
    return [
        max((member.image for member in group.members), key=lambda image: (_bytes(images, image, folder), -image))
        for group in groups
    ]


def _bytes(images: ImageSet, image: int, folder: Path) -> int:
    file = folder / images.files[image] if images.files else folder
    return file.stat().st_size if images.files and file.is_file() else 0


def _names_kept(groups: Sequence[Group], kept: Sequence[int], images: ImageSet) -> list[str]:
    """Names of all images but those of each group that do not stay."""
    left_out = {member.image for group in groups for member in group.members} - set(kept)
    return [_name(images, image) for image in range(len(images)) if image not in left_out]


def _name(images: ImageSet, image: int) -> str:
    return images.files[image] if images.files else str(image)


def _check_list(file: Path, out: Path, name: str) -> None:
    """Refuse a file that is not the list, or the pairs, that stands in `out` under this name. Writes nothing."""
    if file.is_dir():
        raise UserError(f"{shown(file)} is a folder, and the list is one file: name a file")
    if not file.exists():
        return
    before = json.loads((out / _SUMMARY).read_text(encoding="utf-8")) if (out / _SUMMARY).exists() else {}
    if (before.get(name) or {}).get("sha256") != sha256(file):
        raise UserError(f"{shown(file)} is there and is not the list of {shown(out)}: choose another, or remove it")


def _write_list(file: Path, lines: str) -> str:
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, lines)
    return sha256(file)


def _pairs(file: Path, groups: Sequence[Group], images: ImageSet, source: str) -> str:
    """The copies as other programs write them; paths of fastdup's begin with the folder of images."""
    found = [sorted(group.members, key=lambda member: (member.image != group.centre, member.image)) for group in groups]
    named = [[Copy(_name(images, member.image), member.distance) for member in members] for members in found]
    root = source.rstrip("/") if images.files and Path(source).is_dir() else ""
    return pair_table(file, [_name(images, image) for image in range(len(images))], named, root)


# -- the table and the page


def _table(groups: Sequence[Group], kept: Sequence[int], images: ImageSet) -> str:
    """groups.csv."""
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(["group", "kind", "image", "file", "kept", "copy", "distance", "aligned"])
    for number, (group, stays) in enumerate(_by_size(groups, kept), start=1):
        for member in group.members:
            copy = "centre" if member.image == group.centre else member.kind
            name = images.files[member.image] if images.files else ""
            row = [member.image, name, int(member.image == stays), copy, f"{member.distance:.6g}"]
            table.writerow([number, group.kind, *row, _aligned(member, images.shape[1:])])
    return stream.getvalue()


def _by_size(groups: Sequence[Group], kept: Sequence[int]) -> list[tuple[Group, int]]:
    """The largest groups first."""
    return sorted(zip(groups, kept, strict=True), key=lambda pair: (-len(pair[0].members), pair[0].first))


def _aligned(member: Member, size: Sequence[int]) -> str:
    """How an image lies over the centre of its group, for people; nothing where it lies as the centre does."""
    down, right = (shift * side for shift, side in zip(member.shift, size, strict=True))
    parts = ["mirrored"] * member.mirrored
    if any(abs(zoom - 1) >= _SEEN_ZOOM for zoom in member.zoom):
        parts.append(f"zoomed {member.zoom[1]:.2f} x {member.zoom[0]:.2f}")
    if any(abs(shift) >= _SEEN_SHIFT for shift in (down, right)):
        parts.append(f"shifted {right:+.1f}, {down:+.1f} px")
    return ", ".join(parts)


def _shown(groups: Sequence[Group], kept: Sequence[int], images: ImageSet) -> list[ShownGroup]:
    """What the page shows: the largest groups, and of each the one that is kept, the centre, and the first others."""
    found = []
    for number, (group, stays) in enumerate(_by_size(groups, kept)[:MOST_GROUPS], start=1):
        ends = {stays: 0, group.centre: 1}
        members = sorted(group.members, key=lambda each: (ends.get(each.image, 2), each.image))[:MOST_IMAGES]
        pictures = [
            ShownImage(
                _name(images, each.image) if images.files else f"image {each.image}",
                _relation(each, group, images.shape[1:]),
                each.image == stays,
                images.images[each.image].numpy(),
            )
            for each in members
        ]
        found.append(ShownGroup(number, group.kind, len(group.members), pictures))
    return found


def _relation(member: Member, group: Group, size: Sequence[int]) -> str:
    if member.image == group.centre:
        return "centre"
    if member.kind != "near":
        return "equal" if member.kind == "exact" else "equal when mirrored"
    aligned = _aligned(member, size)
    return f"differs by {hundredths(member.distance)}\u00a0%{', ' if aligned else ''}{aligned}"
