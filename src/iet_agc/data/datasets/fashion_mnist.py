"""Fashion-MNIST in IDX files."""

import gzip
import math
import zlib
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from iet_agc.config.data_settings import FashionMnistData
from iet_agc.data.datasets.download import fetch
from iet_agc.data.image_set import ImageSet, Parts
from iet_agc.runtime.errors import UserError, in_words
from iet_agc.runtime.reading import open_file

__all__ = ["fashion_mnist_origin", "read_fashion_mnist"]

_FASHION_FOLDERS = ("/usr/share/datasets/fashion-mnist",)

#: Bytes of an IDX file; Fashion-MNIST's larger one has 47 million.
_LARGEST_IDX = 2**30


def read_fashion_mnist(data: FashionMnistData) -> Parts:
    """Fashion-MNIST: 60,000 training and 10,000 test images of 1 x 28 x 28, with labels.

    `data.root` is the folder with its four files, or the one that torchvision downloads to; None is Debian's package.
    With `data.download` torchvision fetches into it what is not there.

    Raises:
        UserError: missing or damaged files.
    """
    if data.download:
        _download_fashion(data.root_path)
    folder = _fashion_folder(data.root_path)
    train, test = (
        ImageSet(
            _read_idx(folder / f"{part}-images-idx3-ubyte.gz")[:, None],
            data.name,
            _read_idx(folder / f"{part}-labels-idx1-ubyte.gz").long(),
        )
        for part in ("train", "t10k")
    )
    return train, test


def fashion_mnist_origin(data: FashionMnistData) -> list[Path]:
    """The folder with its four files, once it is there."""
    try:
        return [_fashion_folder(data.root_path)]
    except UserError:  # what reads it downloads it, or says so
        return []


def _download_fashion(root: Path | None) -> None:
    if root is None:
        raise UserError("data.download needs a folder to download to: set data.root")
    from torchvision.datasets import FashionMNIST

    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".FashionMNIST.lock"):
        fetch(FashionMNIST, root, FashionMNIST.mirrors[0])


def _fashion_folder(root: Path | None) -> Path:
    name = "train-images-idx3-ubyte.gz"
    places = [root, root / "FashionMNIST" / "raw"] if root else [Path(folder) for folder in _FASHION_FOLDERS]
    for place in places:
        if (place / name).is_file():
            return place
    where = " or ".join(str(place) for place in places)
    raise UserError(
        f"Fashion-MNIST is not in {where} (no {name}): install Debian's dataset-fashion-mnist, or set data.root to a "
        "folder that torchvision.datasets.FashionMNIST downloaded, or set data.download true to download it to any"
    )


def _read_idx(file: Path) -> Tensor:
    """An IDX file of unsigned bytes: 2 zero bytes, type 8, rank, the sizes (big-endian), the bytes.

    It is unzipped as far as its header says, and one byte more, which there must not be: a small file can hold zeros
    without end.
    """
    try:
        with open_file(file) as packed, gzip.open(packed) as stream:
            start = stream.read(4)
            rank = start[3] if start[:3] == b"\0\0\x08" and len(start) == 4 else 0
            header = stream.read(4 * rank)
            sizes = [int.from_bytes(header[at : at + 4], "big") for at in range(0, len(header), 4)]
            total = math.prod(sizes)
            fits = rank > 0 and len(header) == 4 * rank and 0 < total <= _LARGEST_IDX
            content = stream.read(total + 1) if fits else b""
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file} cannot be read: {in_words(error)}") from error
    if not fits or len(content) != total:
        raise UserError(f"{file} is not an IDX file of bytes, or it is cut short or longer than its header says")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(sizes)
