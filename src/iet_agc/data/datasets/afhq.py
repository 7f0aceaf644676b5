"""AFHQ's dogs, from the archive or from folders."""

import io
from functools import partial
from pathlib import Path, PurePath, PurePosixPath
from typing import BinaryIO
from zipfile import ZipFile, ZipInfo

from iet_agc.config.data_settings import AfhqDogData
from iet_agc.data.conversion import Resize
from iet_agc.data.decoding import Opener, UnfitError
from iet_agc.data.folders import load_images, read_images
from iet_agc.data.image_names import is_image_name
from iet_agc.data.image_set import Parts
from iet_agc.runtime.errors import UserError, in_words
from iet_agc.runtime.files import shown
from iet_agc.runtime.reading import check_regular

__all__ = ["AFHQ_SHAPE", "afhq_dog_origin", "read_afhq_dog"]

#: What the images are brought to, unless the settings say otherwise: the size of the paper.
AFHQ_SHAPE = (3, 64, 64)

_AFHQ_HELP = (
    "set data.root to afhq.zip, to the folder with train/dog and test/dog or val/dog, or to a folder of dogs; "
    "https://github.com/clovaai/stargan-v2 tells how to get AFHQ"
)


_LARGEST_MEMBER = 2**28


def read_afhq_dog(data: AfhqDogData) -> Parts:
    """The dogs of AFHQ in the layout of StarGAN v2, brought to `data.shape` as `conversion.convert` does.

    `data.root` is the archive, the folder with `train/dog` and `test/dog` (or `val/dog`), or a folder of dogs alone; a
    folder `train/dog` brings the test part beside it. No shape is 3 x 64 x 64, as in the paper, whose way to resize is
    bilinear.

    Returns:
        The training images; the images of `test/dog`, or else `val/dog`, or None.

    Raises:
        UserError: no such layout, and what `load_images` refuses; a grey image is an error, too.
    """
    root, resize = data.root_path, data.resize
    if root is None:
        raise UserError(f"data.name is 'afhq-dog', but data.root does not say where: {_AFHQ_HELP}")
    shape = data.shape or AFHQ_SHAPE
    if root.is_file():
        return _afhq_archive(root, shape, resize)
    train, test = _folders(root)
    read = partial(load_images, shape=shape, in_colour=True, resize=resize, mending=None)
    return read(train), read(test) if test else None


def afhq_dog_origin(data: AfhqDogData) -> list[Path]:
    """The archive, or the folders of dogs."""
    root = data.root_path
    if root is None:
        return []
    return [place for place in _folders(root) if place] if root.is_dir() else [root]


def _folders(root: Path) -> tuple[Path, Path | None]:
    """The folders of the training dogs and of the test dogs.

    Raises:
        UserError: neither StarGAN v2's layout nor a folder of images alone.
    """
    for base in (root, root / "afhq"):
        if (base / "train" / "dog").is_dir():
            return base / "train" / "dog", _afhq_test(base)
    entries = list(root.iterdir()) if root.is_dir() else []
    if not any(is_image_name(entry.name) for entry in entries) or any(entry.is_dir() for entry in entries):
        raise UserError(f"{shown(root)} holds no train/dog, and is no folder of images alone: {_AFHQ_HELP}")
    whole = root.absolute()
    return root, _afhq_test(whole.parent.parent) if whole.parts[-2:] == ("train", "dog") else None


def _afhq_test(base: Path) -> Path | None:
    places = [base / part / "dog" for part in ("test", "val")]
    return next((place for place in places if place.is_dir()), None)


def _afhq_archive(file: Path, shape: tuple[int, int, int], resize: Resize) -> Parts:
    check_regular(file)
    try:
        archive = ZipFile(file)
    except Exception as error:  # damaged files make decoders raise nearly anything
        raise UserError(f"{shown(file)} cannot be read, {in_words(error)}: fetch the archive again") from error
    with archive:
        parts = {part: _dogs(archive, part) for part in ("train", "test", "val")}
        if not parts["train"]:
            raise UserError(f"{shown(file)} holds no images in train/dog: {_AFHQ_HELP}")
        read = partial(read_images, where=shown(file), shape=shape, in_colour=True, resize=resize, mending=None)
        test = parts["test"] or parts["val"]
        return read(parts["train"]), read(test) if test else None


def _dogs(archive: ZipFile, part: str) -> dict[PurePath, Opener]:
    """The image files of one part of an archive, in the order of their paths."""
    folders = (PurePosixPath(part, "dog"), PurePosixPath("afhq", part, "dog"))
    names = {PurePosixPath(info.filename): info for info in archive.infolist() if not info.is_dir()}
    dogs = sorted(name for name in names if name.parent in folders and is_image_name(name.name))
    return {name: partial(_unzipped, archive, names[name]) for name in dogs}


def _unzipped(archive: ZipFile, member: ZipInfo) -> BinaryIO:
    if member.file_size > _LARGEST_MEMBER:
        raise UnfitError(f"is too large, {member.file_size} bytes: make it smaller", "too-large")
    return io.BytesIO(archive.read(member))  # whole, since only then its checksum is compared
