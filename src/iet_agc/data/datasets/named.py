"""Image sets that have a name, each read from the files in which it is published."""

import gzip
import io
import json
import math
import os
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, BinaryIO
from zipfile import BadZipFile, ZipFile, ZipInfo

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST
from torchvision.datasets.utils import check_integrity

from iet_agc.data.captions import is_caption, texts_of
from iet_agc.data.conversion import Resize
from iet_agc.data.decoding import Opener, UnfitError, in_words
from iet_agc.data.folders import is_image_name, load_images, read_images
from iet_agc.data.image_set import ImageSet
from iet_agc.runtime.files import shown

__all__ = [
    "AFHQ_SHAPE",
    "LAION_SHAPE",
    "afhq_folders",
    "captions_file",
    "cifar_folder",
    "fashion_folder",
    "read_afhq_dog",
    "read_captioned",
    "read_cifar",
    "read_digits",
    "read_fashion_mnist",
    "read_laion",
]

#: Training images and, where the set has a test part, that.
Parts = tuple[ImageSet, ImageSet | None]

#: What images of these sets are brought to, unless told otherwise: the sizes of the paper.
AFHQ_SHAPE = (3, 64, 64)
LAION_SHAPE = (3, 256, 256)

_CIFAR = {"cifar10": CIFAR10, "cifar100": CIFAR100}
_FASHION_FOLDERS = ("/usr/share/datasets/fashion-mnist",)
_AFHQ_HELP = (
    "set data.root to afhq.zip, to the folder with train/dog and test/dog or val/dog, or to a folder of dogs; "
    "https://github.com/clovaai/stargan-v2 tells how to get AFHQ"
)
_LAION_HELP = (
    "set data.root to the folder of images; https://github.com/somepago/DCR tells how to get images and captions"
)
_LARGEST_MEMBER = 2**28
#: Bytes of an IDX file; Fashion-MNIST's larger one has 47 million.
_LARGEST_IDX = 2**30


def read_digits() -> ImageSet:
    """scikit-learn's digits: 1,797 of 1 x 8 x 8, scaled from 0 .. 16 to 0 .. 255, with labels."""
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)  # (1797, 64), 0 .. 16
    pixels = np.rint(np.asarray(values) * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return ImageSet(torch.from_numpy(pixels), "digits", torch.from_numpy(labels).long())


# -- CIFAR


def read_cifar(root: Path | None, name: str, download: bool) -> Parts:
    """CIFAR-10 or CIFAR-100, the python version, by torchvision's loaders; labels are CIFAR-100's fine ones.

    The batches are pickles. Each is opened only after its MD5 is found to be the published one, wherever it came from.

    Args:
        root: the folder that holds, or is to hold, `cifar-10-batches-py` or `cifar-100-python`.
        name: "cifar10" or "cifar100".
        download: fetch, or unpack, what is not there.

    Raises:
        ValueError: files that are missing or not the published ones, or a download that failed.
    """
    kind = _CIFAR[name]
    if root is None:
        raise ValueError(f"data.name is {name!r}, but data.root does not say where: {_cifar_help(kind)}")
    if download:
        _download_cifar(kind, root)
    _check_cifar(kind, root)
    try:
        # torchvision compares all checksums once more before it opens the first file
        return _cifar_part(kind(root, train=True), name), _cifar_part(kind(root, train=False), name)
    except Exception as error:  # checksums hold, so only a set of other contents under given checksums comes here
        raise ValueError(f"{shown(root / kind.base_folder)} cannot be read as {name}: {in_words(error)}") from error


def cifar_folder(root: Path, name: str) -> Path:
    """The folder with the batches of CIFAR-10 or CIFAR-100."""
    return root / _CIFAR[name].base_folder


def _cifar_part(part: CIFAR10, name: str) -> ImageSet:
    pixels, labels = np.asarray(part.data), np.asarray(part.targets)
    if pixels.dtype != np.uint8 or len(pixels) != len(labels):
        raise ValueError(
            f"{len(labels)} labels for {len(pixels)} images of 3 x 32 x 32: its rows are not of three channels"
        )
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    return ImageSet(images, name, torch.from_numpy(labels).long())


def _check_cifar(kind: type[CIFAR10], root: Path) -> None:
    """Look for the first file that is missing or not the published one, so that it can be named."""
    folder = root / kind.base_folder
    if not folder.is_dir():
        there = f" ({kind.filename} is there, not unpacked)" if (root / kind.filename).is_file() else ""
        raise ValueError(f"{shown(folder)} is not there{there}: {_cifar_help(kind)}")
    for name, md5 in [*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]]:
        if not (folder / name).is_file():
            raise ValueError(f"{shown(folder / name)} is missing: {_cifar_help(kind)}")
        if not check_integrity(folder / name, md5):
            raise ValueError(
                f"{shown(folder / name)} is not the published file, its MD5 is not {md5}, so it was not opened: "
                f"remove {shown(folder)} and get it again"
            )


def _download_cifar(kind: type[CIFAR10], root: Path) -> None:
    archive = root / kind.filename
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{kind.filename}.lock"):
        try:
            _check_cifar(kind, root)
            return
        except ValueError:
            if archive.exists() and not check_integrity(archive, kind.tgz_md5):
                raise ValueError(
                    f"{shown(archive)} is cut short or not the published file, its MD5 is not {kind.tgz_md5}: "
                    "remove it, and it is fetched again"
                ) from None
        _fetch(kind, root, kind.url)


def _fetch(kind: type[Any], root: Path, address: str) -> None:
    """Let torchvision download and unpack a set, with its checksums."""
    try:
        kind(root, download=True)
    except (RuntimeError, OSError, EOFError) as error:
        raise ValueError(
            f"{kind.__name__} could not be fetched from {address} into {shown(root)}: {in_words(error)}; "
            "fetch it elsewhere and set data.root to its folder"
        ) from error


def _cifar_help(kind: type[CIFAR10]) -> str:
    return (
        f"set data.root to the folder that holds {kind.base_folder}, or add --data.download true to fetch or unpack "
        f"{kind.url}"
    )


# -- AFHQ


def read_afhq_dog(root: Path | None, shape: tuple[int, int, int] | None = None, resize: Resize = "bicubic") -> Parts:
    """The dogs of AFHQ in the layout of StarGAN v2, brought to `shape` as `images.convert` does.

    Args:
        root: the archive, the folder with `train/dog` and `test/dog` (or `val/dog`), or a folder of dogs alone; a
            folder `train/dog` brings the test part beside it.
        shape: (C, H, W); None is 3 x 64 x 64, as in the paper.
        resize: the paper's is bilinear; see `images.convert`.

    Returns:
        The training images; the images of `test/dog`, or else `val/dog`, or None.

    Raises:
        ValueError: no such layout, and what `load_images` refuses; a grey image is an error, too.
    """
    if root is None:
        raise ValueError(f"data.name is 'afhq-dog', but data.root does not say where: {_AFHQ_HELP}")
    shape = shape or AFHQ_SHAPE
    if root.is_file():
        return _afhq_archive(root, shape, resize)
    train, test = afhq_folders(root)
    read = partial(load_images, shape=shape, in_colour=True, resize=resize)
    return read(train), read(test) if test else None


def afhq_folders(root: Path) -> tuple[Path, Path | None]:
    """The folders of the training dogs and of the test dogs.

    Raises:
        ValueError: neither StarGAN v2's layout nor a folder of images alone.
    """
    for base in (root, root / "afhq"):
        if (base / "train" / "dog").is_dir():
            return base / "train" / "dog", _afhq_test(base)
    entries = list(root.iterdir()) if root.is_dir() else []
    if not any(is_image_name(entry.name) for entry in entries) or any(entry.is_dir() for entry in entries):
        raise ValueError(f"{shown(root)} holds no train/dog, and is no folder of images alone: {_AFHQ_HELP}")
    whole = root.absolute()
    return root, _afhq_test(whole.parent.parent) if whole.parts[-2:] == ("train", "dog") else None


def _afhq_test(base: Path) -> Path | None:
    places = [base / part / "dog" for part in ("test", "val")]
    return next((place for place in places if place.is_dir()), None)


def _afhq_archive(file: Path, shape: tuple[int, int, int], resize: Resize) -> Parts:
    try:
        archive = ZipFile(file)
    except (BadZipFile, OSError) as error:
        raise ValueError(f"{shown(file)} cannot be read, {in_words(error)}: fetch the archive again") from error
    with archive:
        parts = {part: _dogs(archive, part) for part in ("train", "test", "val")}
        if not parts["train"]:
            raise ValueError(f"{shown(file)} holds no images in train/dog: {_AFHQ_HELP}")
        read = partial(read_images, where=shown(file), shape=shape, in_colour=True, resize=resize)
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
        raise UnfitError(f"is too large, {member.file_size} bytes: make it smaller")
    return io.BytesIO(archive.read(member))  # whole, since only then its checksum is compared


# -- captions, and LAION-10k


def read_laion(
    root: Path | None,
    captions: str | None = None,
    shape: tuple[int, int, int] | None = None,
    resize: Resize = "bicubic",
) -> ImageSet:
    """Images and captions in the layout of DCR (Somepalli et al.): a folder of images, and a JSON file of captions.

    Args:
        root: the folder of images, at any depth.
        captions: see `read_captioned`; None is the only .json file in `root`.
        shape: (C, H, W) to bring images to; None is 3 x 256 x 256, as in the paper.
        resize: the paper's is bilinear; see `images.convert`.

    Raises:
        ValueError: see `read_captioned`.
    """
    if root is None or not root.is_dir():
        where = "data.root does not say where" if root is None else f"{shown(root)} is no folder"
        raise ValueError(f"data.name is 'laion-10k', but {where}: {_LAION_HELP}")
    return read_captioned(root, captions or _only_json(root), shape or LAION_SHAPE, resize)


def _only_json(root: Path) -> str:
    if len(found := sorted(root.glob("*.json"))) != 1:
        raise ValueError(
            f"{shown(root)} holds {len(found)} .json files: give the captions, one JSON file in data.root or as "
            "data.captions"
        )
    return found[0].name


def read_captioned(
    root: Path, captions: str, shape: tuple[int, int, int] | None = None, resize: Resize = "bicubic"
) -> ImageSet:
    """The images of a folder, with captions as data in UTF-8.

    Args:
        root: the folder of images, at any depth.
        captions: a file (in `root`, or else its path), or "txt":
            .jsonl: in each line an object with `file_name`, a path below `root`, and `text`, a caption or a list of
            them (the layout of Hugging Face's imagefolder);
            any other: a JSON object: path of an image -> a caption, or a list of captions. Paths may be those of
            another machine: an image has the captions of the only path that ends with its own path below `root`, or
            has its name;
            "txt": beside each image a .txt file of its name, with a caption in each line.
        shape, resize: see `images.load_images`.

    Raises:
        ValueError: images without captions, captions without an image, an empty caption, a file that is not there or
            not of that form, and what `load_images` refuses.
    """
    if not root.is_dir():
        raise ValueError(f"{shown(root)} is no folder: data.captions is for a folder of images")
    if captions == "txt":
        images = load_images(root, shape, resize=resize)
        beside = {image: str(PurePath(image).with_suffix(".txt")) for image in images.files or ()}
        texts = _read_beside(root)
        found = {image: [text] if text in texts else [] for image, text in beside.items()}
        return replace(images, captions=_match(images, texts, found, "its .txt files"))
    file = captions_file(root, captions)
    lines = file.suffix == ".jsonl"
    texts = _read_lines(file) if lines else _read_captions(file)
    images = load_images(root, shape, resize=resize)
    paths = images.files or ()
    found = {path: [path] if path in texts else [] for path in paths} if lines else _by_their_ends(paths, texts)
    return replace(images, captions=_match(images, texts, found, shown(file)))


def captions_file(root: Path, captions: str) -> Path:
    """The file with the captions of a folder.

    Raises:
        ValueError: it is not there.
    """
    for place in (root / captions, Path(captions)):
        if place.is_file():
            return place
    raise ValueError(
        f"{shown(captions)} is not there: give the captions, one JSON file in data.root or as data.captions, a .jsonl "
        "file, or txt"
    )


def _read_captions(file: Path) -> dict[str, tuple[str, ...]]:
    """Captions by path, of one JSON object."""
    content = _json(_utf8(_bytes(file), shown(file)), shown(file))
    if not isinstance(content, dict):
        raise ValueError(f"{shown(file)} is not a JSON object of paths and captions")
    return {path: texts_of(value, f"{shown(file)}: {shown(path)}") for path, value in content.items()}


def _read_lines(file: Path) -> dict[str, tuple[str, ...]]:
    """Captions by path below the folder, of an object in each line."""
    texts: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(_bytes(file).split(b"\n"), 1):
        where = f"{shown(file)}, line {number}"
        if not line.strip():
            continue
        content = _json(_utf8(line, where), where)
        name = content.get("file_name") if isinstance(content, dict) else None
        if not isinstance(name, str) or not name:
            raise ValueError(f"{where} has no file_name: write an object with file_name and text in each line")
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{where}: {shown(name)} leaves the folder: give paths below it")
        if str(path) in texts:
            raise ValueError(f"{where}: {shown(name)} stands there more than once: give it a list of captions")
        texts[str(path)] = texts_of(content.get("text"), f"{where}: {shown(name)}")
    return texts


def _read_beside(root: Path) -> dict[str, tuple[str, ...]]:
    """Captions by path below the folder of the .txt file that holds them."""
    folders = os.walk(root, followlinks=True)
    files = [Path(folder, name) for folder, _, names in folders for name in names if name.endswith(".txt")]
    texts: dict[str, tuple[str, ...]] = {}
    for file in sorted(files):
        lines = _utf8(_bytes(file), shown(file)).removesuffix("\n").split("\n")
        if empty := [number for number, line in enumerate(lines, 1) if not is_caption(line)]:
            raise ValueError(f"{shown(file)} has no caption in line {empty[0]}: write one in every line")
        texts[str(file.relative_to(root))] = tuple(line.strip() for line in lines)
    return texts


def _bytes(file: Path) -> bytes:
    """The content of a file, without the mark that some editors put before UTF-8."""
    try:
        return file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise ValueError(f"{shown(file)} cannot be read, {in_words(error)}: make it readable or remove it") from None


def _utf8(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8, at byte {error.start}: save it as UTF-8") from None


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} cannot be read as JSON: {in_words(error)}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(content := dict(pairs)) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{shown(twice)} stands there more than once")
    return content


def _by_their_ends(images: Sequence[str], texts: Collection[str]) -> dict[str, list[str]]:
    """The paths that may be meant by each image's, from whatever machine they come."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for path in texts:
        by_name[PurePath(path).name].append(path)
    return {image: _paths_of(image, by_name[PurePath(image).name]) for image in images}


def _match(
    images: ImageSet, texts: Mapping[str, tuple[str, ...]], found: Mapping[str, list[str]], where: str
) -> tuple[tuple[str, ...], ...]:
    """The captions of each image, every one of them used; `found` are the keys of `texts` that an image may have."""
    unsure = [image for image, paths in found.items() if len(paths) != 1]
    counts = Counter(path for paths in found.values() for path in paths)
    left = texts.keys() - counts.keys()
    shared = [path for path, count in counts.items() if count > 1]
    if unsure or left or shared:
        complaints = {"images have no captions of their own": unsure, "captions have no image": sorted(left)}
        complaints["captions fit more than one image"] = shared
        told = [f"{len(odd)} {what}, such as {shown(odd[0])}" for what, odd in complaints.items() if odd]
        raise ValueError(f"{images.name} and {where} do not match: {'; '.join(told)}")
    return tuple(texts[paths[0]] for paths in found.values())


def _paths_of(image: str, paths: list[str]) -> list[str]:
    """Of the paths with an image's name, those that end with its whole path; if none does, all."""
    exact = [path for path in paths if f"/{path}".endswith(f"/{image}")]
    return exact or paths


# -- Fashion-MNIST


def read_fashion_mnist(root: Path | None, download: bool) -> Parts:
    """Fashion-MNIST: 60,000 training and 10,000 test images of 1 x 28 x 28, with labels.

    Args:
        root: folder with its four files, or the one that torchvision downloads to; None is Debian's package.
        download: fetch into `root`, by torchvision, what is not there.

    Raises:
        ValueError: missing or damaged files.
    """
    if download:
        _download_fashion(root)
    folder = fashion_folder(root)
    train, test = (
        ImageSet(
            _read_idx(folder / f"{part}-images-idx3-ubyte.gz")[:, None],
            "fashion-mnist",
            _read_idx(folder / f"{part}-labels-idx1-ubyte.gz").long(),
        )
        for part in ("train", "t10k")
    )
    return train, test


def _download_fashion(root: Path | None) -> None:
    if root is None:
        raise ValueError("data.download needs a folder to download to: set data.root")
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".FashionMNIST.lock"):
        _fetch(FashionMNIST, root, FashionMNIST.mirrors[0])


def fashion_folder(root: Path | None) -> Path:
    """The folder with Fashion-MNIST's four files.

    Raises:
        ValueError: it is not where it is looked for.
    """
    name = "train-images-idx3-ubyte.gz"
    places = [root, root / "FashionMNIST" / "raw"] if root else [Path(folder) for folder in _FASHION_FOLDERS]
    for place in places:
        if (place / name).is_file():
            return place
    where = " or ".join(str(place) for place in places)
    raise ValueError(
        f"Fashion-MNIST is not in {where} (no {name}): install Debian's dataset-fashion-mnist, or set data.root to a "
        "folder that torchvision.datasets.FashionMNIST downloaded, or to any with --data.download true"
    )


def _read_idx(file: Path) -> Tensor:
    """An IDX file of unsigned bytes: 2 zero bytes, type 8, rank, the sizes (big-endian), the bytes.

    It is unzipped as far as its header says, and one byte more, which there must not be: a small file can hold zeros
    without end.
    """
    try:
        with gzip.open(file) as stream:
            start = stream.read(4)
            rank = start[3] if start[:3] == b"\0\0\x08" and len(start) == 4 else 0
            header = stream.read(4 * rank)
            sizes = [int.from_bytes(header[at : at + 4], "big") for at in range(0, len(header), 4)]
            total = math.prod(sizes)
            fits = rank > 0 and len(header) == 4 * rank and 0 < total <= _LARGEST_IDX
            content = stream.read(total + 1) if fits else b""
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not fits or len(content) != total:
        raise ValueError(f"{file} is not an IDX file of bytes, or it is cut short or longer than its header says")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(sizes)
