"""Named image sets: scikit-learn's digits, Fashion-MNIST, a folder; what is held out, and what is planted."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from iet_agc.images import ImageSet, convert, image_grid, load_images, save_image
from iet_agc.seeds import generator

__all__ = [
    "DATASETS",
    "ImageSet",
    "convert",
    "image_grid",
    "load_dataset",
    "load_images",
    "plant_duplicates",
    "save_image",
    "split",
]

DATASETS = ("digits", "fashion-mnist")
_FASHION_FOLDERS = ("/usr/share/datasets/fashion-mnist",)


def split(images: ImageSet, num_train: int | None, seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """A random training part and the rest, held out.

    Args:
        images: all of them.
        num_train: size of the training part; None takes all and holds nothing out.
        seed: what shuffles.
    """
    num_train = len(images) if num_train is None else num_train
    if not 1 <= num_train <= len(images):
        raise ValueError(f"data.num_train {num_train} is not between 1 and the {len(images)} images of {images.name}")
    order = torch.randperm(len(images), generator=generator("split", seed))
    return images.take(order[:num_train]), images.take(order[num_train:])


def plant_duplicates(images: ImageSet, num_images: int, copies: int) -> ImageSet:
    """Repeat the first images, as a crawl of the web would, so that they get memorized.

    Args:
        images: the unique ones.
        num_images: how many of them to repeat.
        copies: how often each of these stands in the result; 1 changes nothing.

    Returns:
        The images as they were, then the further copies.
    """
    if not 0 <= num_images <= len(images) or copies < 1:
        raise ValueError(f"cannot plant {num_images} of {len(images)} images {copies} times each")
    further = torch.arange(num_images).repeat(copies - 1)
    return images.take(torch.cat([torch.arange(len(images)), further]))


def load_dataset(
    name: str,
    root: Path | str | None = None,
    num_train: int | None = None,
    planted_images: int = 0,
    planted_copies: int = 1,
    seed: int = 0,
) -> tuple[ImageSet, ImageSet]:
    """The training set of a run and the images held out from it.

    Args:
        name: "digits" (scikit-learn's, 1,797 of 1 x 8 x 8), "fashion-mnist" (70,000 of 1 x 28 x 28), or
            "folder" for the images under `root`.
        root: where the files are; for Fashion-MNIST, Debian's package is found by itself.
        num_train: how many unique images to train on; the others are held out. Of Fashion-MNIST it is
            always the test part that is held out. None takes all.
        planted_images: how many of them to repeat.
        planted_copies: how often each of these stands in the training set.
        seed: which images are trained on, and which repeated.

    Raises:
        ValueError: unknown name, missing or damaged files, impossible numbers.
    """
    root = Path(root) if root else None
    if name == "digits":
        train, held_out = split(_digits(), num_train, seed)
    elif name == "fashion-mnist":
        train, held_out = _fashion_mnist(root, num_train, seed)
    elif name == "folder":
        if root is None:
            raise ValueError("data.name is 'folder', but data.root does not say which: set data.root")
        train, held_out = split(load_images(root), num_train, seed)
    else:
        raise ValueError(f"unknown data.name {name!r}: use one of {', '.join((*DATASETS, 'folder'))}")
    return plant_duplicates(train, planted_images, planted_copies), held_out


def _digits() -> ImageSet:
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)  # (1797, 64), 0 .. 16
    pixels = np.rint(np.asarray(values) * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return ImageSet(torch.from_numpy(pixels), "digits", torch.from_numpy(labels).long())


def _fashion_mnist(root: Path | None, num_train: int | None, seed: int) -> tuple[ImageSet, ImageSet]:
    folder = _fashion_folder(root)
    train, test = (
        ImageSet(
            _read_idx(folder / f"{part}-images-idx3-ubyte.gz")[:, None],
            "fashion-mnist",
            _read_idx(folder / f"{part}-labels-idx1-ubyte.gz").long(),
        )
        for part in ("train", "t10k")
    )
    return split(train, num_train, seed)[0], test


def _fashion_folder(root: Path | None) -> Path:
    name = "train-images-idx3-ubyte.gz"
    places = [root, root / "FashionMNIST" / "raw"] if root else [Path(folder) for folder in _FASHION_FOLDERS]
    for place in places:
        if (place / name).is_file():
            return place
    where = " or ".join(str(place) for place in places)
    raise ValueError(
        f"Fashion-MNIST is not in {where} (no {name}): install Debian's dataset-fashion-mnist, or set data.root to a "
        "folder that torchvision.datasets.FashionMNIST downloaded"
    )


def _read_idx(file: Path) -> Tensor:
    """An IDX file of unsigned bytes: 2 zero bytes, type 8, rank, the sizes (big-endian), the bytes."""
    try:
        content = gzip.decompress(file.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    rank = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    start = 4 + 4 * rank
    sizes = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if not rank or len(content) != start + math.prod(sizes):
        raise ValueError(f"{file} is not an IDX file of bytes, or it is cut short")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[start:].reshape(sizes)
