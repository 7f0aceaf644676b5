"""Images of a folder: which files count, and what is wrong with the others."""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePath

import numpy as np
import torch

from iet_agc.data.arrays import array_images
from iet_agc.data.conversion import Item, Resize, Result, check_target, convert, fit, in_order, planes, room
from iet_agc.data.decoding import Opener, UnfitError, decode, explain, look, strict_pillow
from iet_agc.data.image_set import MOST_NAMED, ImageSet
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import shown
from iet_agc.runtime.paths import check_images_place

__all__ = ["is_image_name", "load_images", "read_images"]

_SUFFIXES = set(
    ".apng .bmp .dib .gif .jfif .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()  # noqa: SIM905
)


#: Images that are not read: they are named, so that nobody takes them for counted.
_OTHER_SUFFIXES = set(
    ".arw .avif .avifs .cr2 .cr3 .dds .dng .eps .exr .hdr .heic .heif .hif .ico .j2k .jp2 .jpf .jpx .jxl "  # noqa: SIM905
    ".jxr .nef .orf .pcx .pfm .psd .qoi .raf .rw2 .sgi .svg .tga .xcf".split()
)


def load_images(
    path: Path,
    shape: tuple[int, int, int] | None = None,
    on_images: Callable[[int], object] = lambda count: None,
    in_colour: bool = False,
    resize: Resize = "bicubic",
) -> ImageSet:
    """Images of a folder (any depth), or of one .npz or .npy file.

    Folders: PNG, JPEG, WebP, BMP, GIF, TIFF and netpbm files in the order of their paths, whatever the number of
    threads; other files are no images. Links are followed, and a file with two paths counts twice. A set is grey
    when every image is, by its colour mode or by a palette without colours; otherwise grey images get three equal
    channels. Pixels are taken as stored: colour profiles are not applied. No image is left out and nothing
    guessed: a file that is damaged, animated, transparent in places, to be turned by its EXIF data, of more than 8
    bits or of other colours than grey and RGB is an error.

    Arrays: uint8 (N, C, H, W), (N, H, W, C) or grey (N, H, W); of an .npz the array "images", or the only one.
    Nothing is unpickled.

    Args:
        path: the folder or the file.
        shape: (C, H, W) to bring every image to, as `convert` does; None takes images of one size as they are.
        on_images: called with a number of images that were read, for progress.
        in_colour: whether a grey file in a folder is an error.
        resize: how images are brought to `shape`, see `convert`.

    Raises:
        UserError: nothing there, files that cannot be used (how many, and what is wrong with the first five),
            images of several sizes, or more than the machine's memory holds.
    """
    if shape is not None:
        check_target(shape, resize)
    if os.path.isdir(path):
        return _folder_images(path, shape, on_images, in_colour, resize)
    check_images_place(path)
    images = ImageSet(array_images(path), name=shown(path))
    on_images(len(images))
    return convert(images, shape, resize) if shape else images


def _folder_images(
    folder: Path,
    shape: tuple[int, int, int] | None,
    on_images: Callable[[int], object],
    in_colour: bool,
    resize: Resize,
) -> ImageSet:
    files, bad = _list_images(folder)
    if not files and not bad:
        raise UserError(f"{shown(folder)} holds no images ({', '.join(sorted(_SUFFIXES))})")
    openers: dict[PurePath, Opener] = {file.relative_to(folder): partial(open, file, "rb") for file in files}
    reasons: dict[PurePath, str] = {file.relative_to(folder): reason for file, reason in bad.items()}
    return read_images(openers, shown(folder), shape, reasons, on_images, in_colour, resize)


def read_images(
    files: Mapping[PurePath, Opener],
    where: str,
    shape: tuple[int, int, int] | None = None,
    bad: Mapping[PurePath, str] | None = None,
    on_images: Callable[[int], object] = lambda count: None,
    in_colour: bool = False,
    resize: Resize = "bicubic",
) -> ImageSet:
    """Image files from anywhere, decoded by the rules of `load_images`.

    Args:
        files: what opens each, by its name; the images keep this order.
        where: what holds them all, for messages.
        shape: see `load_images`.
        bad: what is there and cannot be an image, by its name, with the reason.
        on_images: see `load_images`.
        in_colour: whether a grey file is an error.
        resize: see `load_images`.

    Raises:
        UserError: see `load_images`.
    """
    if shape is not None:
        check_target(shape, resize)
    bad, count = dict(bad or {}), len(files) + len(bad or {})
    with strict_pillow():
        looks = _attempt(look, files, bad) if shape is None else dict.fromkeys(files, shape)
        # with bad files nothing is kept; the others are decoded all the same, to name all that is wrong at once
        out = None
        if not bad:
            out = room((count, *(shape or _one_shape(where, looks))), f"{count} images of {where}")
        places = {file: at for at, file in enumerate(looks)}

        def fill(place: tuple[PurePath, Opener]) -> None:
            image = decode(place[1])
            if in_colour and image.mode != "RGB":
                raise UnfitError("is grey, where three channels are expected: give the set's own files")
            if out is not None:
                _put(planes(fit(image, shape, resize) if shape else image), out[places[place[0]]])

        _attempt(fill, {file: (file, files[file]) for file in looks}, bad, on_images)
    if bad or out is None:
        raise UserError(_complaint(where, bad, count))
    return ImageSet(torch.from_numpy(out), name=where, files=tuple(shown(file) for file in looks))


def is_image_name(name: str) -> bool:
    """Whether a file of that name is read as an image."""
    return PurePath(name).suffix.lower() in _SUFFIXES


def _list_images(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """Image files under a folder, in the order of their paths; and what cannot be one, with the reason."""
    files: list[Path] = []
    bad: dict[Path, str] = {}
    todo: list[tuple[Path, tuple[str, ...]]] = [(folder, (os.path.realpath(folder),))]
    while todo:
        here, chain = todo.pop()
        try:
            with os.scandir(here) as entries:
                paths = [Path(entry.path) for entry in entries]
        except OSError as error:
            bad[here] = explain(error)
            continue
        for path in paths:
            if os.path.isdir(path):
                real = os.path.realpath(path) if path.is_symlink() else os.path.join(chain[-1], path.name)
                if path.is_symlink() and any(os.path.commonpath([one, real]) == real for one in chain):
                    bad[path] = "is a link to a folder that it stands in: remove it"
                else:
                    todo.append((path, (*chain, real)))
            elif reason := _not_a_file(path):
                bad[path] = reason
            elif path.suffix.lower() in _SUFFIXES:
                files.append(path)
    return sorted(files), bad


def _not_a_file(path: Path) -> str | None:
    """Why something cannot be opened that is named like an image, or may have been a folder of them."""
    suffix = path.suffix.lower()
    if suffix in _OTHER_SUFFIXES:
        return f"is {suffix[1:].upper()}, which is not read: convert it to PNG"
    if not os.path.exists(path):
        return "is a link to nothing: mend the link or remove it"
    if suffix in _SUFFIXES and not os.path.isfile(path):
        return "is a pipe, a socket or a device, no file: remove it"
    return None


def _attempt(
    work: Callable[[Item], Result],
    items: Mapping[PurePath, Item],
    bad: dict[PurePath, str],
    on_images: Callable[[int], object] = lambda count: None,
) -> dict[PurePath, Result]:
    """The work on every item, by its name; those where it fails are entered into `bad` instead."""

    def outcome(item: Item) -> Result | UnfitError:
        try:
            return work(item)
        except Exception as error:  # damaged files make decoders raise nearly anything
            return UnfitError(explain(error))

    done: dict[PurePath, Result] = {}
    for file, result in zip(items, in_order(outcome, list(items.values()), on_images), strict=True):
        if isinstance(result, UnfitError):
            bad[file] = str(result)
        else:
            done[file] = result
    return done


def _complaint(where: str, bad: dict[PurePath, str], count: int) -> str:
    """One line about all that cannot be used."""
    named = [f"{shown(path)} {bad[path]}" for path in sorted(bad)[:MOST_NAMED]]
    if len(bad) > MOST_NAMED:
        named.append(f"and {len(bad) - MOST_NAMED} more")
    return f"{where}: {len(bad)} of {count} files cannot be used: {'; '.join(named)}"


def _one_shape(where: str, looks: dict[PurePath, tuple[int, int, int]]) -> tuple[int, int, int]:
    """The (C, H, W) of a set whose images have one size, grey ones among colours counted as colours."""
    sizes = Counter(look[1:] for look in looks.values())
    height, width = sizes.most_common(1)[0][0]
    odd = [file for file, look in looks.items() if look[1:] != (height, width)]
    if odd:
        like = next(file for file, look in looks.items() if look[1:] == (height, width))
        raise UserError(
            f"{where}: {len(odd)} of {len(looks)} images have another size: "
            f"{shown(odd[0])} is {looks[odd[0]][2]} x {looks[odd[0]][1]}, "
            f"{shown(like)} is {width} x {height} (width x height): all images of a set must have "
            "one size; an audit brings them to one by convert_to CxHxW, a training by data.convert_to"
        )
    return max(look[0] for look in looks.values()), height, width


def _put(planes: np.ndarray, place: np.ndarray) -> None:
    if planes.shape[0] > place.shape[0] or planes.shape[1:] != place.shape[1:]:
        raise UnfitError("is not what its header says, or changed while it was read: try again")
    place[...] = planes
