"""Images at rest: uint8 arrays in memory, read from folders of image files and from array files, and converted."""

import hashlib
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path, PurePath
from typing import IO, Literal, TypeVar, get_args
from zipfile import ZipFile

import numpy as np
import torch
from numpy.lib import format as npy
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from iet_agc.data.decoding import Opener, UnfitError, decode, explain, in_words, look, strict_pillow
from iet_agc.runtime.files import shown

__all__ = [
    "ImageSet",
    "Resize",
    "convert",
    "digests",
    "image_grid",
    "is_image_name",
    "load_images",
    "read_images",
    "save_image",
    "unique_images",
]

_SUFFIXES = set(
    ".apng .bmp .dib .gif .jfif .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()  # noqa: SIM905
)
#: Images that are not read: they are named, so that nobody takes them for counted.
_OTHER_SUFFIXES = set(
    ".arw .avif .avifs .cr2 .cr3 .dds .dng .eps .exr .hdr .heic .heif .hif .ico .j2k .jp2 .jpf .jpx .jxl "  # noqa: SIM905
    ".jxr .nef .orf .pcx .pfm .psd .qoi .raf .rw2 .sgi .svg .tga .xcf".split()
)
#: How images are brought to a size, see `convert`.
Resize = Literal["bicubic", "bilinear"]

#: An image is resized to an area of at most so many times the part that is then cropped.
_MOST_COVERED = 64

_MOST_NAMED = 5
_NUM_THREADS = min(16, os.cpu_count() or 1)
_PIECE = 2**20
#: Images that are hashed at a time.
_SLICE = 1024
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
        captions: one or more texts about each, or None.
    """

    images: Tensor
    name: str
    labels: Tensor | None = None
    files: tuple[str, ...] | None = None
    captions: tuple[tuple[str, ...], ...] | None = None

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
    def size(self) -> str:
        """C x H x W, for people."""
        return " x ".join(map(str, self.shape))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over shape and pixels, hexadecimal."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().data)
        return digest.hexdigest()

    def take(self, indices: Tensor) -> "ImageSet":
        """The images at `indices`, int64 (M,), in that order."""
        labels = None if self.labels is None else self.labels[indices]
        places = indices.tolist()
        files = None if self.files is None else tuple(self.files[place] for place in places)
        captions = None if self.captions is None else tuple(self.captions[place] for place in places)
        return replace(self, images=self.images[indices], labels=labels, files=files, captions=captions)


def digests(images: Tensor, turn: Callable[[Tensor], Tensor] = lambda images: images) -> list[bytes]:
    """SHA-256 of each image's pixels.

    Args:
        images: uint8 (N, C, H, W).
        turn: what is done to them before, some at a time, such as `metrics.neighbors.mirror`.
    """
    parts = (turn(part).flatten(1).contiguous().numpy() for part in images.split(_SLICE))
    return [hashlib.sha256(row).digest() for rows in parts for row in rows]


def unique_images(images: Tensor) -> tuple[Tensor, Tensor]:
    """Find the images that are equal pixel by pixel.

    Args:
        images: uint8 (N, C, H, W).

    Returns:
        first: where each unique image stands first, int64 (U,), ascending.
        inverse: which of these each image is, int64 (N,).
    """
    first, inverse, place = [], [], {}
    for index, digest in enumerate(digests(images)):
        if digest not in place:
            place[digest] = len(first)
            first.append(index)
        inverse.append(place[digest])
    return torch.tensor(first, dtype=torch.int64), torch.tensor(inverse, dtype=torch.int64)


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
        ValueError: nothing there, files that cannot be used (how many, and what is wrong with the first five),
            images of several sizes, or more than the machine's memory holds.
    """
    if shape is not None:
        _check_target(shape, resize)
    if os.path.isdir(path):
        return _folder_images(path, shape, on_images, in_colour, resize)
    if path.suffix.lower() not in {".npz", ".npy"}:
        raise ValueError(f"{shown(path)} is not a folder of images, nor an .npz or .npy file")
    images = ImageSet(_array_images(path), name=shown(path))
    on_images(len(images))
    return convert(images, shape, resize) if shape else images


def convert(images: ImageSet, shape: tuple[int, int, int], resize: Resize = "bicubic") -> ImageSet:
    """Bring all images to one shape; `load_images(path, shape)` gives the same pixels.

    Colour becomes grey by Pillow's luma (ITU-R 601-2), grey three equal channels. The largest centred part with
    the proportions of `shape` is then brought to that size by one of Pillow's filters, which antialias; what stands
    outside of that part is lost. Images that have the shape stay as they are, to the bit.

    Args:
        images: of one channel or three.
        shape: (C, H, W), C 1 or 3.
        resize: "bicubic" takes the exact part, to fractions of a pixel, and the filter sees nothing else. "bilinear" is
            torchvision's Resize(S) and CenterCrop(S) of PIL images, pixel by pixel where H = W = S: the whole image is
            resized, its longer edge cut to whole pixels, and then cropped.

    Raises:
        ValueError: another shape, number of channels or way to resize, or more than the machine's memory holds.
    """
    _check_target(shape, resize)
    if images.shape == shape:
        return images
    if images.shape[0] not in (1, 3):
        raise ValueError(f"{images.name} has images of {images.shape[0]} channels: only 1 or 3 can be converted")
    out = _room((len(images), *shape), f"{len(images)} images of {images.name}")

    def fill(at: int) -> None:
        out[at] = _planes(_fit(to_pil_image(images.images[at]), shape, resize))

    try:
        _in_order(fill, range(len(images)))
    except UnfitError as error:
        raise ValueError(f"{images.name}: each image {error}") from None
    return replace(images, images=torch.from_numpy(out))


def _check_target(shape: tuple[int, int, int], resize: Resize) -> None:
    if len(shape) != 3 or shape[0] not in (1, 3) or min(shape) < 1:
        given = "x".join(str(extent) for extent in shape)
        raise ValueError(f"cannot bring images to {given}: give CxHxW with 1 or 3 channels, such as 3x32x32")
    if resize not in get_args(Resize):
        raise ValueError(f"cannot resize images by {resize!r}: use one of {', '.join(get_args(Resize))}")


def _fit(image: Image.Image, shape: tuple[int, int, int], resize: Resize) -> Image.Image:
    channels, height, width = shape
    mode = "L" if channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    if image.size == (width, height):
        return image
    if resize == "bicubic":
        return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    large = image.resize(_covering(image.size, width, height), Image.Resampling.BILINEAR)
    left, top = round((large.width - width) / 2), round((large.height - height) / 2)  # halves to even, as torchvision
    return large.crop((left, top, left + width, top + height))


def _covering(size: tuple[int, int], width: int, height: int) -> tuple[int, int]:
    """The (width, height) of an image resized to just cover a part, in whole pixels."""
    covering = max((width, size[1] * width // size[0]), (size[0] * height // size[1], height))
    if math.prod(covering) > _MOST_COVERED * width * height:  # most of which is for nothing
        raise UnfitError(f"is {size[0]} x {size[1]}, too narrow to be resized to {width} x {height}: crop it before")
    return covering


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


def _folder_images(
    folder: Path,
    shape: tuple[int, int, int] | None,
    on_images: Callable[[int], object],
    in_colour: bool,
    resize: Resize,
) -> ImageSet:
    files, bad = _list_images(folder)
    if not files and not bad:
        raise ValueError(f"{shown(folder)} holds no images ({', '.join(sorted(_SUFFIXES))})")
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
        ValueError: see `load_images`.
    """
    if shape is not None:
        _check_target(shape, resize)
    bad, count = dict(bad or {}), len(files) + len(bad or {})
    with strict_pillow():
        looks = _attempt(look, files, bad) if shape is None else dict.fromkeys(files, shape)
        # with bad files nothing is kept; the others are decoded all the same, to name all that is wrong at once
        out = None
        if not bad:
            out = _room((count, *(shape or _one_shape(where, looks))), f"{count} images of {where}")
        places = {file: at for at, file in enumerate(looks)}

        def fill(place: tuple[PurePath, Opener]) -> None:
            image = decode(place[1])
            if in_colour and image.mode != "RGB":
                raise UnfitError("is grey, where three channels are expected: give the set's own files")
            if out is not None:
                _put(_planes(_fit(image, shape, resize) if shape else image), out[places[place[0]]])

        _attempt(fill, {file: (file, files[file]) for file in looks}, bad, on_images)
    if bad or out is None:
        raise ValueError(_complaint(where, bad, count))
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
    for file, result in zip(items, _in_order(outcome, list(items.values()), on_images), strict=True):
        if isinstance(result, UnfitError):
            bad[file] = str(result)
        else:
            done[file] = result
    return done


def _complaint(where: str, bad: dict[PurePath, str], count: int) -> str:
    """One line about all that cannot be used."""
    named = [f"{shown(path)} {bad[path]}" for path in sorted(bad)[:_MOST_NAMED]]
    if len(bad) > _MOST_NAMED:
        named.append(f"and {len(bad) - _MOST_NAMED} more")
    return f"{where}: {len(bad)} of {count} files cannot be used: {'; '.join(named)}"


def _one_shape(where: str, looks: dict[PurePath, tuple[int, int, int]]) -> tuple[int, int, int]:
    """The (C, H, W) of a set whose images have one size, grey ones among colours counted as colours."""
    sizes = Counter(look[1:] for look in looks.values())
    height, width = sizes.most_common(1)[0][0]
    odd = [file for file, look in looks.items() if look[1:] != (height, width)]
    if odd:
        like = next(file for file, look in looks.items() if look[1:] == (height, width))
        raise ValueError(
            f"{where}: {len(odd)} of {len(looks)} images have another size: "
            f"{shown(odd[0])} is {looks[odd[0]][2]} x {looks[odd[0]][1]}, "
            f"{shown(like)} is {width} x {height} (width x height): all images of a set must have "
            "one size; 'iet-agc audit' brings them to one with --convert-to CxHxW, 'train' with --data.convert-to"
        )
    return max(look[0] for look in looks.values()), height, width


def _put(planes: np.ndarray, place: np.ndarray) -> None:
    if planes.shape[0] > place.shape[0] or planes.shape[1:] != place.shape[1:]:
        raise UnfitError("is not what its header says, or changed while it was read: try again")
    place[...] = planes


def _array_images(path: Path) -> Tensor:
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"PK"
        array = _read_npz(path) if zipped else _read_npy(path)
    except UnfitError as error:
        raise ValueError(f"{shown(path)} {error}") from None
    except Exception as error:  # damaged files make decoders raise nearly anything
        raise ValueError(f"{shown(path)} cannot be read as an array: {in_words(error)}") from error
    return torch.from_numpy(np.ascontiguousarray(array))


def _read_npy(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        return _read_pixels(file, os.fstat(file.fileno()).st_size)


def _read_npz(path: Path) -> np.ndarray:
    with ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        if len(names) != 1 and "images.npy" not in names:
            there = ", ".join(repr(name.removesuffix(".npy")) for name in names[:_MOST_NAMED]) or "none"
            raise UnfitError(f"has no array named 'images', and not one alone (it has {there}): name it 'images'")
        member = archive.getinfo("images.npy" if "images.npy" in names else names[0])
        with archive.open(member) as file:
            return _read_pixels(file, member.file_size)


def _read_pixels(file: IO[bytes], size: int) -> np.ndarray:
    """uint8 (N, C, H, W) of an .npy file of `size` bytes; its header may ask for no more memory than it fills."""
    version = npy.read_magic(file)
    if version not in _NPY_HEADERS:
        raise UnfitError(f"is an .npy file of version {version}, not of plain uint8 pixels: save it as uint8")
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
        raise UnfitError("holds Python objects, which are never unpickled: save the pixels as uint8")
    what = f"holds {dtype} {shape}, not uint8 (N, C, H, W) or (N, H, W, C) of 1 or 3 channels, or grey (N, H, W)"
    if dtype != np.uint8 or len(shape) not in (3, 4):
        raise UnfitError(what)
    if min(shape) < 1:
        raise UnfitError(f"holds no images, its shape is {shape}")
    if len(shape) == 4 and shape[1] in (1, 3):
        return (0, 1, 2, 3)
    if len(shape) == 4 and shape[3] in (1, 3):
        return (0, 3, 1, 2)
    if len(shape) == 3 and shape[0] != 3 and shape[2] > 4:
        return None
    raise UnfitError(f"{what}; one image alone needs a first axis of 1" if len(shape) == 3 else what)


def image_grid(images: Tensor, most: int = 64, tile: int = 32, columns: int | None = None) -> Tensor:
    """Images side by side, to look at.

    Args:
        images: uint8 (N, C, H, W).
        most: how many of them to show.
        tile: smallest height of one, pixels; smaller images are enlarged without smoothing.
        columns: images side by side; None makes it about square.

    Returns:
        uint8 (3, height, width).
    """
    scale = -(-tile // images.shape[2])
    enlarged = images[:most].repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return make_grid(enlarged, nrow=columns or max(1, round(len(enlarged) ** 0.5)), padding=2, pad_value=128)


def save_image(image: Tensor, file: Path) -> None:
    """Write one image, uint8 (C, H, W) with one channel or three, as PNG."""
    to_pil_image(image).save(file, format="PNG")
