"""Images of .npz and .npy files, whose headers are read and whose objects are not."""

import math
import os
from pathlib import Path
from typing import IO
from zipfile import ZipFile

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from iet_agc.data.decoding import UnfitError
from iet_agc.data.image_set import MOST_NAMED
from iet_agc.data.room import room
from iet_agc.runtime.errors import UserError, in_words
from iet_agc.runtime.files import shown
from iet_agc.runtime.reading import check_regular

__all__ = ["array_images", "as_planes", "is_large", "may_be_mapped"]

_PIECE = 2**20

#: So many pixels are mapped into memory, not held there, where they lie in the order of images.
MAPPED_FROM = 2**29

_NPY_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def array_images(path: Path) -> Tensor:
    """Images of one .npz or .npy file, uint8 (N, C, H, W).

    Those of a large .npy file of (N, C, H, W) or (N, H, W) are mapped: the machine reads what is looked at and forgets
    it again, so that they may be more than its memory. Writing to them does not change the file; who looks at them for
    long asks in the end whether another program did, see `may_be_mapped`.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"PK"
        array = _read_npz(path) if zipped else _read_npy(path)
    except UnfitError as error:
        raise UserError(f"{shown(path)} {error}") from None
    except Exception as error:  # damaged files make decoders raise nearly anything
        raise UserError(f"{shown(path)} cannot be read as an array: {in_words(error)}") from error
    return torch.from_numpy(np.ascontiguousarray(array))


def is_large(num_pixels: int) -> bool:
    """Whether so many pixels are to be mapped."""
    return num_pixels >= MAPPED_FROM


def may_be_mapped(path: Path) -> bool:
    """Whether a file is as large as those whose images `array_images` maps."""
    return path.is_file() and is_large(path.stat().st_size)


def _read_npy(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        shape, columns_first = _shape(file, os.fstat(file.fileno()).st_size)
        axes = _axes(shape, np.dtype(np.uint8))
        if is_large(math.prod(shape)) and not columns_first and axes in (None, (0, 1, 2, 3)):
            return as_planes(
                np.memmap(file, np.uint8, "c", file.tell(), shape)
            )  # copy on write: torch has no read-only
        return _read_pixels(file, shape, columns_first)


def _read_npz(path: Path) -> np.ndarray:
    with ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        if len(names) != 1 and "images.npy" not in names:
            there = ", ".join(repr(name.removesuffix(".npy")) for name in names[:MOST_NAMED]) or "none"
            raise UnfitError(f"has no array named 'images', and not one alone (it has {there}): name it 'images'")
        member = archive.getinfo("images.npy" if "images.npy" in names else names[0])
        with archive.open(member) as file:
            return _read_pixels(file, *_shape(file, member.file_size))


def _shape(file: IO[bytes], size: int) -> tuple[tuple[int, ...], bool]:
    """Shape of the pixels of an .npy file of `size` bytes, and whether the first axis is the fastest.

    Its header may ask for no more memory than it fills.
    """
    version = npy.read_magic(file)
    if version not in _NPY_HEADERS:
        raise UnfitError(f"is an .npy file of version {version}, not of plain uint8 pixels: save it as uint8")
    try:
        shape, columns_first, dtype = _NPY_HEADERS[version](file)
    except Exception:  # numpy tells of Python's syntax, in which headers are written
        raise UnfitError("has a damaged header: save it again") from None
    _axes(shape, dtype)  # refuses before memory is taken
    if math.prod(shape) != size - file.tell():
        raise UserError(f"it holds {size - file.tell()} bytes of pixels, its header says {math.prod(shape)}")
    return shape, columns_first


def _read_pixels(file: IO[bytes], shape: tuple[int, ...], columns_first: bool) -> np.ndarray:
    """uint8 (N, C, H, W), from where the pixels begin."""
    pixels = room((math.prod(shape),), "its pixels")
    for at in range(0, len(pixels), _PIECE):  # by pieces, so that memory holds one copy
        place = pixels[at : at + _PIECE]
        piece = file.read(len(place))  # an archive compares its checksum at the end of a member
        if len(piece) != len(place):
            raise EOFError("it is cut short")
        place[:] = np.frombuffer(piece, np.uint8)
    return as_planes(pixels.reshape(shape, order="F" if columns_first else "C"))


def as_planes(array: np.ndarray) -> np.ndarray:
    """An array of images as (N, C, H, W), a view of it.

    Args:
        array: uint8 (N, C, H, W) or (N, H, W, C) of 1 or 3 channels, or grey (N, H, W).

    Raises:
        UnfitError: it is none of these, or holds no images; in words that follow what it is.
    """
    axes = _axes(array.shape, array.dtype)
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
