"""CIFAR-10 and CIFAR-100 as they are published: pickles, opened after their checksums only."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from filelock import FileLock

from iet_agc.config.data_settings import CifarData
from iet_agc.data.datasets.download import fetch
from iet_agc.data.image_set import ImageSet, Parts
from iet_agc.runtime.errors import UserError, in_words
from iet_agc.runtime.files import shown

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

__all__ = ["cifar_origin", "read_cifar"]


def read_cifar(data: CifarData) -> Parts:
    """CIFAR-10 or CIFAR-100, the python version, by torchvision's loaders; labels are CIFAR-100's fine ones.

    The batches are pickles. Each is opened only after its MD5 is found to be the published one, wherever it came from.

    `data.root` is the folder that holds, or is to hold, `cifar-10-batches-py` or `cifar-100-python`. With
    `data.download` what is not there is fetched, or unpacked.

    Raises:
        UserError: files that are missing or not the published ones, or a download that failed.
    """
    kind, name, root = _loader(data.name), data.name, data.root_path
    if root is None:
        raise UserError(f"data.name is {name!r}, but data.root does not say where: {_cifar_help(kind)}")
    if data.download:
        _download_cifar(kind, root)
    _check_cifar(kind, root)
    try:
        # torchvision compares all checksums once more before it opens the first file
        return _cifar_part(kind(root, train=True), name), _cifar_part(kind(root, train=False), name)
    except Exception as error:  # checksums hold, so only a set of other contents under given checksums comes here
        raise UserError(f"{shown(root / kind.base_folder)} cannot be read as {name}: {in_words(error)}") from error


def cifar_origin(data: CifarData) -> list[Path]:
    """The folder with the batches."""
    return [data.root_path / _loader(data.name).base_folder] if data.root_path else []


def _loader(name: str) -> "type[CIFAR10]":
    """torchvision's class, which knows the names of the files and their checksums."""
    from torchvision.datasets import CIFAR10, CIFAR100

    return {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]


def _cifar_part(part: "CIFAR10", name: str) -> ImageSet:
    pixels, labels = np.asarray(part.data), np.asarray(part.targets)
    if pixels.dtype != np.uint8 or len(pixels) != len(labels):
        raise UserError(
            f"{len(labels)} labels for {len(pixels)} images of 3 x 32 x 32: its rows are not of three channels"
        )
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    return ImageSet(images, name, torch.from_numpy(labels).long())


def _check_cifar(kind: "type[CIFAR10]", root: Path) -> None:
    """Look for the first file that is missing or not the published one, so that it can be named."""
    from torchvision.datasets.utils import check_integrity

    folder = root / kind.base_folder
    if not folder.is_dir():
        there = f" ({kind.filename} is there, not unpacked)" if (root / kind.filename).is_file() else ""
        raise UserError(f"{shown(folder)} is not there{there}: {_cifar_help(kind)}")
    for name, md5 in [*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]]:
        if not (folder / name).is_file():
            raise UserError(f"{shown(folder / name)} is missing: {_cifar_help(kind)}")
        if not check_integrity(folder / name, md5):
            raise UserError(
                f"{shown(folder / name)} is not the published file, its MD5 is not {md5}, so it was not opened: "
                f"remove {shown(folder)} and get it again"
            )


def _download_cifar(kind: "type[CIFAR10]", root: Path) -> None:
    from torchvision.datasets.utils import check_integrity

    archive = root / kind.filename
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{kind.filename}.lock"):
        try:
            _check_cifar(kind, root)
            return
        except ValueError:
            if archive.exists() and not check_integrity(archive, kind.tgz_md5):
                raise UserError(
                    f"{shown(archive)} is cut short or not the published file, its MD5 is not {kind.tgz_md5}: "
                    "remove it, and it is fetched again"
                ) from None
        fetch(kind, root, kind.url)


def _cifar_help(kind: "type[CIFAR10]") -> str:
    return (
        f"set data.root to the folder that holds {kind.base_folder}, or set data.download true to fetch or unpack "
        f"{kind.url}"
    )
