"""Image sets: uint8 images in memory, from the embedded digits, Fashion-MNIST, a folder or an array."""

import gzip
import hashlib
import math
import tokenize
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from iet_agc.seeds import generator

__all__ = [
    "DATASETS",
    "ImageSet",
    "image_grid",
    "load_dataset",
    "load_images",
    "plant_duplicates",
    "save_image",
    "split",
]

DATASETS = ("digits", "fashion-mnist")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
_FASHION_FOLDERS = ("/usr/share/datasets/fashion-mnist",)


@dataclass(frozen=True)
class ImageSet:
    """Images at rest.

    Attributes:
        images: uint8 (N, C, H, W).
        name: where they come from, for people.
        labels: class of each, int64 (N,), or None.
    """

    images: Tensor
    name: str
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(
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
    def fingerprint(self) -> str:
        """SHA-256 over shape and pixels, hexadecimal."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().data)
        return digest.hexdigest()

    def take(self, indices: Tensor) -> "ImageSet":
        """The images at `indices`, int64 (M,), in that order."""
        return replace(self, images=self.images[indices], labels=None if self.labels is None else self.labels[indices])


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


def load_images(path: Path) -> ImageSet:
    """Images of a folder (any depth), or of one .npz or .npy file.

    A folder's images all have one size; files come in the order of their paths. Grey images stay
    one-channel when all are grey. Arrays are uint8, (N, C, H, W) or (N, H, W, C); an .npz names
    them "images". Nothing is unpickled.

    Raises:
        ValueError: nothing there, or a file that is not what it should be; the message names it.
    """
    if path.suffix in {".npz", ".npy"}:
        return ImageSet(_array_images(path), name=str(path))
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder of images, nor an .npz or .npy file")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
    if not files:
        raise ValueError(f"{path} holds no images ({', '.join(sorted(_SUFFIXES))})")
    arrays = [_decode(file) for file in files]
    channels = max(array.shape[2] for array in arrays)
    for file, array in zip(files, arrays, strict=True):
        if array.shape[:2] != arrays[0].shape[:2]:
            this, other = (f"{one.shape[1]} x {one.shape[0]}" for one in (array, arrays[0]))
            raise ValueError(f"{file} is {this}, {files[0]} is {other}: all images of a set must have one size")
    stacked = np.stack([np.repeat(array, channels // array.shape[2], axis=2) for array in arrays])
    return ImageSet(torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous(), name=str(path))


def _decode(file: Path) -> np.ndarray:
    try:
        with Image.open(file) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise ValueError(f"{file} is animated: give single images")
            if image.mode not in {"L", "RGB", "1", "P", "RGBA", "LA"}:
                raise ValueError(f"{file} has colour mode {image.mode}: convert it to 8-bit grey or RGB")
            grey = image.mode in {"L", "1"}
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise ValueError(f"{file} cannot be read as an image: {error}") from error
    return pixels[:, :, None] if grey else pixels


def _array_images(path: Path) -> Tensor:
    try:
        loaded = np.load(path, allow_pickle=False)
        array = loaded if isinstance(loaded, np.ndarray) else loaded["images"]
    except KeyError:
        raise ValueError(f"{path} has no array named 'images'") from None
    except (
        OSError,
        ValueError,
        EOFError,
        BadZipFile,
        zlib.error,
        NotImplementedError,
        RuntimeError,
        tokenize.TokenError,
    ) as error:
        raise ValueError(f"{path} cannot be read as an array: {error}") from error
    if array.dtype != np.uint8 or array.ndim != 4:
        raise ValueError(f"{path} holds {array.dtype} {array.shape}, not uint8 (N, C, H, W) or (N, H, W, C)")
    if array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.shape[1] not in (1, 3):
        raise ValueError(
            f"{path} holds {array.dtype} {array.shape}, not uint8 (N, C, H, W) or (N, H, W, C) of 1 or 3 channels"
        )
    return torch.from_numpy(np.ascontiguousarray(array))


def image_grid(images: Tensor, most: int = 64, tile: int = 32) -> Tensor:
    """Images side by side, to look at.

    Args:
        images: uint8 (N, C, H, W).
        most: how many of them to show.
        tile: smallest height of one, pixels; smaller images are enlarged without smoothing.

    Returns:
        uint8 (3, height, width).
    """
    scale = -(-tile // images.shape[2])
    enlarged = images[:most].repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return make_grid(enlarged, nrow=max(1, round(len(enlarged) ** 0.5)), padding=2, pad_value=128)


def save_image(image: Tensor, file: Path) -> None:
    """Write one image, uint8 (C, H, W) with one channel or three, as PNG."""
    to_pil_image(image).save(file, format="PNG")


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
