"""Image sets: uint8 images in memory, from the embedded digits, Fashion-MNIST, a folder or an array."""

import gzip
import hashlib
import math
import os
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO, BinaryIO, TypeVar
from zipfile import ZipFile

import numpy as np
import torch
from numpy.lib import format as npy
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from iet_agc.files import shown
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

#: What is read: formats whose plugins in Pillow decode and do nothing else (EPS, for one, would run Ghostscript).
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_SUFFIXES = set(
    ".apng .bmp .dib .gif .jfif .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()  # noqa: SIM905
)
#: Images that are not read: they are named, so that nobody takes them for counted.
_OTHER_SUFFIXES = set(
    ".arw .avif .avifs .cr2 .cr3 .dds .dng .eps .exr .hdr .heic .heif .hif .ico .j2k .jp2 .jpf .jpx .jxl "  # noqa: SIM905
    ".jxr .nef .orf .pcx .pfm .psd .qoi .raf .rw2 .sgi .svg .tga .xcf".split()
)
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA"}
_MOST_NAMED = 5
_NUM_THREADS = min(16, os.cpu_count() or 1)
_PIECE = 2**20
_NPY_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ImageSet:
    """Images at rest.

    Attributes:
        images: uint8 (N, C, H, W).
        name: where they come from, for people.
        labels: class of each, int64 (N,), or None.
        files: path of each below the folder that they were read from, or None.
    """

    images: Tensor
    name: str
    labels: Tensor | None = None
    files: tuple[str, ...] | None = None

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

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over shape and pixels, hexadecimal."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().data)
        return digest.hexdigest()

    def take(self, indices: Tensor) -> "ImageSet":
        """The images at `indices`, int64 (M,), in that order."""
        labels = None if self.labels is None else self.labels[indices]
        files = None if self.files is None else tuple(self.files[index] for index in indices.tolist())
        return replace(self, images=self.images[indices], labels=labels, files=files)


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


def load_images(
    path: Path,
    shape: tuple[int, int, int] | None = None,
    on_images: Callable[[int], object] = lambda count: None,
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

    Raises:
        ValueError: nothing there, files that cannot be used (how many, and what is wrong with the first five),
            images of several sizes, or more than the machine's memory holds.
    """
    if shape is not None:
        _check_shape(shape)
    if os.path.isdir(path):
        return _folder_images(path, shape, on_images)
    if path.suffix.lower() not in {".npz", ".npy"}:
        raise ValueError(f"{shown(path)} is not a folder of images, nor an .npz or .npy file")
    images = ImageSet(_array_images(path), name=shown(path))
    on_images(len(images))
    return convert(images, shape) if shape else images


def convert(images: ImageSet, shape: tuple[int, int, int]) -> ImageSet:
    """Bring all images to one shape; `load_images(path, shape)` gives the same pixels.

    Colour becomes grey by Pillow's luma (ITU-R 601-2), grey three equal channels. The largest centred part with
    the proportions of `shape` is then resized, bicubic with antialiasing; what stands outside of that part is
    lost. Images that have the shape stay as they are, to the bit.

    Args:
        images: of one channel or three.
        shape: (C, H, W), C 1 or 3.

    Raises:
        ValueError: another shape or number of channels, or more than the machine's memory holds.
    """
    _check_shape(shape)
    if images.shape == shape:
        return images
    if images.shape[0] not in (1, 3):
        raise ValueError(f"{images.name} has images of {images.shape[0]} channels: only 1 or 3 can be converted")
    out = _room((len(images), *shape), f"{len(images)} images of {images.name}")

    def fill(at: int) -> None:
        out[at] = _planes(_fit(to_pil_image(images.images[at]), shape))

    _in_order(fill, range(len(images)))
    return replace(images, images=torch.from_numpy(out))


def _check_shape(shape: tuple[int, int, int]) -> None:
    if len(shape) != 3 or shape[0] not in (1, 3) or min(shape) < 1:
        given = "x".join(str(extent) for extent in shape)
        raise ValueError(f"cannot bring images to {given}: give CxHxW with 1 or 3 channels, such as 3x32x32")


def _fit(image: Image.Image, shape: tuple[int, int, int]) -> Image.Image:
    channels, height, width = shape
    mode = "L" if channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)


def _planes(image: Image.Image) -> np.ndarray:
    """uint8 (C, H, W) of a grey or RGB image."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _in_order(
    work: Callable[[Item], Result], items: Sequence[Item], on_images: Callable[[int], object] = lambda count: None
) -> list[Result]:
    """The work on every item, done by threads; results in the order of the items."""
    length = max(1, min(64, len(items) // (4 * _NUM_THREADS)))
    results: list[Result] = []
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        starts = range(0, len(items), length)
        for part in pool.map(lambda start: [work(item) for item in items[start : start + length]], starts):
            results += part
            on_images(len(part))
    return results


def _room(shape: tuple[int, ...], what: str) -> np.ndarray:
    """Memory for uint8 pixels; pages are taken as they are filled."""
    needed = math.prod(shape)
    try:
        if needed > _memory():
            raise MemoryError
        return np.empty(shape, np.uint8)
    except MemoryError:
        sizes = f"{needed / 2**30:.1f} GiB, this machine has {_memory() / 2**30:.1f}"
        raise ValueError(f"{what} need {sizes}: give fewer or smaller images") from None


def _memory() -> int:
    """Bytes of memory that the machine has; where it does not tell, no limit."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize


class _UnfitError(Exception):
    """What is wrong with a file and how to mend it, in words that follow its name."""


def _folder_images(folder: Path, shape: tuple[int, int, int] | None, on_images: Callable[[int], object]) -> ImageSet:
    files, bad = _list_images(folder)
    count = len(files) + len(bad)
    if not count:
        raise ValueError(f"{shown(folder)} holds no images ({', '.join(sorted(_SUFFIXES))})")
    with _strict_pillow():
        looks = _attempt(_look, files, bad) if shape is None else dict.fromkeys(files, shape)
        # with bad files nothing is kept; the others are decoded all the same, to name all that is wrong at once
        out = None
        if not bad:
            out = _room((count, *(shape or _one_shape(folder, looks))), f"{count} images of {shown(folder)}")
        places = {file: at for at, file in enumerate(looks)}

        def fill(file: Path) -> None:
            image = _decode(file)
            if out is not None:
                _put(_planes(_fit(image, shape) if shape else image), out[places[file]])

        _attempt(fill, list(looks), bad, on_images)
    if bad or out is None:
        raise ValueError(_complaint(folder, bad, count))
    names = tuple(shown(file.relative_to(folder)) for file in looks)
    return ImageSet(torch.from_numpy(out), name=shown(folder), files=names)


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
            bad[here] = _reason(error)
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
    work: Callable[[Path], Result],
    files: list[Path],
    bad: dict[Path, str],
    on_images: Callable[[int], object] = lambda count: None,
) -> dict[Path, Result]:
    """The work on every file, by file; those where it fails are entered into `bad` instead."""

    def outcome(file: Path) -> Result | _UnfitError:
        try:
            return work(file)
        except Exception as error:  # damaged files make decoders raise nearly anything
            return _UnfitError(_reason(error))

    done: dict[Path, Result] = {}
    for file, result in zip(files, _in_order(outcome, files, on_images), strict=True):
        if isinstance(result, _UnfitError):
            bad[file] = str(result)
        else:
            done[file] = result
    return done


def _reason(error: Exception) -> str:
    """What an error says about a file, and the mend."""
    match error:
        case _UnfitError():
            return str(error)
        case Image.DecompressionBombError():
            return f"is too large to be decoded safely, {_words(error)}: make it smaller"
        case UnidentifiedImageError():
            return "cannot be read as an image, it is damaged or of an unknown format: copy it again or remove it"
        case PermissionError():
            return f"cannot be opened, {_words(error)}: make it readable"
        case _:
            return f"cannot be read as an image, {_words(error)}: copy it again or remove it"


def _words(error: Exception) -> str:
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return shown(" ".join(words.split()).rstrip(".")) or type(error).__name__


def _complaint(folder: Path, bad: dict[Path, str], count: int) -> str:
    """One line about all that cannot be used."""
    named = [f"{shown(path.relative_to(folder))} {bad[path]}" for path in sorted(bad)[:_MOST_NAMED]]
    if len(bad) > _MOST_NAMED:
        named.append(f"and {len(bad) - _MOST_NAMED} more")
    return f"{shown(folder)}: {len(bad)} of {count} files cannot be used: {'; '.join(named)}"


def _one_shape(folder: Path, looks: dict[Path, tuple[int, int, int]]) -> tuple[int, int, int]:
    """The (C, H, W) of a set whose images have one size, grey ones among colours counted as colours."""
    sizes = Counter(look[1:] for look in looks.values())
    height, width = sizes.most_common(1)[0][0]
    odd = [file for file, look in looks.items() if look[1:] != (height, width)]
    if odd:
        like = next(file for file, look in looks.items() if look[1:] == (height, width))
        raise ValueError(
            f"{shown(folder)}: {len(odd)} of {len(looks)} images have another size: "
            f"{shown(odd[0].relative_to(folder))} is {looks[odd[0]][2]} x {looks[odd[0]][1]}, "
            f"{shown(like.relative_to(folder))} is {width} x {height} (width x height): all images of a set must have "
            "one size; 'iet-agc audit' brings them to one with --convert-to CxHxW"
        )
    return max(look[0] for look in looks.values()), height, width


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Pillow with all its plugins and no warnings, refusing cut files whatever the calling program has set."""
    Image.init()
    lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def _look(file: Path) -> tuple[int, int, int]:
    """(C, H, W) by the header alone."""
    with file.open("rb") as handle:
        image = _open(handle)
        return (1 if _is_grey(image) else 3), image.height, image.width


def _decode(file: Path) -> Image.Image:
    """The pixels, in mode L or RGB."""
    with file.open("rb") as handle:
        image = _open(handle)
        coding = _coding(image)
        image.load()
        if _is_turned(image):
            raise _UnfitError("is to be turned, by its EXIF orientation: turn its pixels or remove the tag")
        if _is_transparent(image, coding):
            raise _UnfitError("is transparent in places: put it on a background and save it without alpha")
        return image.convert("L" if _is_grey(image) else "RGB")


def _open(handle: BinaryIO) -> ImageFile.ImageFile:
    """The header of one image of at most 8 bits, grey or RGB; only plugins that run nothing are let near it."""
    if not os.fstat(handle.fileno()).st_size:
        raise _UnfitError("is empty, 0 bytes: copy it again or remove it")
    image = Image.open(handle, formats=_FORMATS)
    if (count := getattr(image, "n_frames", 1)) > 1:
        raise _UnfitError(f"is animated or has pages, {count} pictures: give single images")
    if image.mode == "F":
        raise _UnfitError("has floating-point pixels: save it with 8 bits per channel")
    if (bits := _bits(image)) > 8:
        raise _UnfitError(f"has {bits} bits per channel: save it with 8")
    if image.mode not in _MODES:
        raise _UnfitError(f"has colour mode {image.mode}: convert it to 8-bit grey or RGB")
    return image


def _bits(image: ImageFile.ImageFile) -> int:
    """Bits per channel in the file; Pillow opens 16-bit colours as 8-bit ones without a word."""
    if image.format == "TIFF":
        return max(getattr(image, "tag_v2").get(258, (1,)))  # noqa: B009
    coding = _coding(image)
    deepest = coding[1] if image.format == "PPM" and isinstance(coding, tuple) else 0
    return 16 if image.mode.startswith("I") or "16B" in str(coding) or deepest > 255 else 8


def _coding(image: ImageFile.ImageFile) -> object:
    """How pixels are packed in the file, in Pillow's words; known until they are loaded."""
    return image.tile[0][3] if image.tile else ""


def _is_grey(image: Image.Image) -> bool:
    if image.mode not in {"P", "PA"}:
        return image.mode in {"1", "L", "LA"}
    palette = image.getpalette() or []
    return palette[0::3] == palette[1::3] == palette[2::3]


def _is_transparent(image: Image.Image, coding: object) -> bool:
    if image.mode not in {"LA", "PA", "RGBA"} and "transparency" not in image.info:
        return False
    # grey of 2 or 4 bits: Pillow widens the pixels, but not the value that stands for transparent, so look no closer
    return coding in {"L;2", "L;4"} or image.convert("RGBA").getchannel("A").getextrema() != (255, 255)


def _is_turned(image: Image.Image) -> bool:
    """Whether viewers turn it; Pillow itself turns TIFF files, and broken EXIF data says nothing."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except Exception:
        return False


def _put(planes: np.ndarray, place: np.ndarray) -> None:
    if planes.shape[0] > place.shape[0] or planes.shape[1:] != place.shape[1:]:
        raise _UnfitError("is not what its header says, or changed while it was read: try again")
    place[...] = planes


def _array_images(path: Path) -> Tensor:
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"PK"
        array = _read_npz(path) if zipped else _read_npy(path)
    except _UnfitError as error:
        raise ValueError(f"{shown(path)} {error}") from None
    except Exception as error:  # damaged files make decoders raise nearly anything
        raise ValueError(f"{shown(path)} cannot be read as an array: {_words(error)}") from error
    return torch.from_numpy(np.ascontiguousarray(array))


def _read_npy(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        return _read_pixels(file, os.fstat(file.fileno()).st_size)


def _read_npz(path: Path) -> np.ndarray:
    with ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        if len(names) != 1 and "images.npy" not in names:
            there = ", ".join(repr(name.removesuffix(".npy")) for name in names[:_MOST_NAMED]) or "none"
            raise _UnfitError(f"has no array named 'images', and not one alone (it has {there}): name it 'images'")
        member = archive.getinfo("images.npy" if "images.npy" in names else names[0])
        with archive.open(member) as file:
            return _read_pixels(file, member.file_size)


def _read_pixels(file: IO[bytes], size: int) -> np.ndarray:
    """uint8 (N, C, H, W) of an .npy file of `size` bytes; its header may ask for no more memory than it fills."""
    version = npy.read_magic(file)
    if version not in _NPY_HEADERS:
        raise _UnfitError(f"is an .npy file of version {version}, not of plain uint8 pixels: save it as uint8")
    shape, columns_first, dtype = _NPY_HEADERS[version](file)
    axes = _axes(shape, dtype)
    if math.prod(shape) != size - file.tell():
        raise ValueError(f"it holds {size - file.tell()} bytes of pixels, its header says {math.prod(shape)}")
    pixels = _room((math.prod(shape),), "its pixels")
    for at in range(0, len(pixels), _PIECE):  # by pieces, so that memory holds one copy
        place = pixels[at : at + _PIECE]
        piece = file.read(len(place))  # an archive compares its checksum at the end of a member
        if len(piece) != len(place):
            raise EOFError("it is cut short")
        place[:] = np.frombuffer(piece, np.uint8)
    array = pixels.reshape(shape, order="F" if columns_first else "C")
    return array[:, None] if axes is None else array.transpose(axes)


def _axes(shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, ...] | None:
    """The order of axes that makes it (N, C, H, W); None where C is missing."""
    if dtype.hasobject:
        raise _UnfitError("holds Python objects, which are never unpickled: save the pixels as uint8")
    what = f"holds {dtype} {shape}, not uint8 (N, C, H, W) or (N, H, W, C) of 1 or 3 channels, or grey (N, H, W)"
    if dtype != np.uint8 or len(shape) not in (3, 4):
        raise _UnfitError(what)
    if min(shape) < 1:
        raise _UnfitError(f"holds no images, its shape is {shape}")
    if len(shape) == 4 and shape[1] in (1, 3):
        return (0, 1, 2, 3)
    if len(shape) == 4 and shape[3] in (1, 3):
        return (0, 3, 1, 2)
    if len(shape) == 3 and shape[0] != 3 and shape[2] > 4:
        return None
    raise _UnfitError(f"{what}; one image alone needs a first axis of 1" if len(shape) == 3 else what)


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
