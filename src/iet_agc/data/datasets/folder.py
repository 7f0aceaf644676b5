"""A folder of images, or an array file, with captions or classes where there are some."""

from dataclasses import replace
from pathlib import Path, PurePath

import torch

from iet_agc.config.data_settings import FolderData
from iet_agc.data.datasets.captioned_folder import read_captioned
from iet_agc.data.datasets.reader import mending_of
from iet_agc.data.folders import load_images, packed_of
from iet_agc.data.image_set import ImageSet, Parts
from iet_agc.data.mending import Mending
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import shown
from iet_agc.runtime.paths import check_held_out_place

__all__ = ["read_folder"]


def read_folder(data: FolderData) -> Parts:
    """The images under `data.root`, with `data.captions` as `read_captioned` takes them and classes by subfolders;
    those of `data.held_out` as the test part.

    Raises:
        UserError: a folder of held-out images within the other, or around it; what `load_images` and `read_captioned`
            refuse, images in no subfolder or classes without images, and what would mend image files where there are
            none.
    """
    if (root := data.root_path) is None:
        raise UserError("data.name is 'folder', but data.root does not say which: set data.root")
    mending = mending_of(data)
    packed = packed_of(root)
    if mending.asked and root.is_file() and not packed:
        option = f"data.{next(iter(mending.asked))}"
        raise UserError(f"{shown(root)} is an array file, on which {option} has no effect: leave it out", option)
    if data.captions:
        images = read_captioned(root, data.captions, data.shape, data.resize, mending)
    else:
        images = load_images(root, data.shape, resize=data.resize, mending=mending)
    held_out = _held_out(data, images.shape, mending) if data.held_out else None
    if data.classes == "folders" and packed:
        raise UserError(
            f"{images.name} is no folder of images: data.classes 'folders' needs a subfolder for each class"
        )
    return (_with_classes(images, root) if data.classes == "folders" else images), held_out


def _held_out(data: FolderData, shape: tuple[int, int, int], mending: Mending) -> ImageSet:
    """The images of another folder, brought to the size of those that are trained on."""
    place = Path(data.held_out or "")
    check_held_out_place(place, Path(data.root or ""))
    mending = Mending() if place.is_file() and not packed_of(place) else mending
    return load_images(place, data.shape or shape, resize=data.resize, mending=mending)


def _with_classes(images: ImageSet, root: Path) -> ImageSet:
    """The images with the class of the subfolder that each stands in, in the order of the folders' names."""
    if images.files is None:
        raise UserError(f"{images.name} is no folder: data.classes 'folders' needs one with a subfolder for each class")
    files = [PurePath(file) for file in images.files]
    if alone := [file for file in files if len(file.parts) < 2]:
        raise UserError(
            f"{images.name}: {alone[0]} stands in no subfolder, so data.classes 'folders' gives it no class"
        )
    names = sorted({file.parts[0] for file in files})
    folders = [entry.name for entry in sorted(root.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
    if empty := [folder for folder in folders if folder not in names]:
        raise UserError(f"{images.name}: class {shown(empty[0])} has no images: remove the folder or fill it")
    places = {name: place for place, name in enumerate(names)}
    return replace(images, labels=torch.tensor([places[file.parts[0]] for file in files], dtype=torch.int64))
