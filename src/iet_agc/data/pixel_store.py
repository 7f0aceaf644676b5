"""Where decoded pixels lie: in memory, or in a file that is mapped where they are many and there is a folder for them.

Beside such a file stand checksums, one for each image, written after its pixels. So whoever comes later, after a kill
or at the same time, decodes what is missing or damaged, and nothing else.
"""

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from iet_agc.data.arrays import is_large
from iet_agc.data.image_set import ImageSet
from iet_agc.data.room import room
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import digest, shown, writing
from iet_agc.runtime.stamps import stamps

__all__ = ["PixelStore", "Pixels", "pixels_for"]

#: Bytes of a checksum, and images that are copied at a time.
_CHECKSUM, _SLICE = 8, 64


class Pixels(Protocol):
    """A place for so many images."""

    def has(self, at: int) -> bool:
        """Whether the image at a place is there already."""
        ...

    def put(self, at: int, planes: np.ndarray, keep: bool) -> None:
        """Put an image, uint8 (C, H, W), in its place; `keep` lets `has` find it another time."""
        ...

    def images(self) -> Tensor:
        """All of them, uint8 (N, C, H, W); nothing is put there afterwards."""
        ...


class _InMemory:
    def __init__(self, shape: tuple[int, int, int, int], what: str) -> None:
        self._array = room(shape, what)

    def has(self, at: int) -> bool:
        return False

    def put(self, at: int, planes: np.ndarray, keep: bool) -> None:
        self._array[at] = planes

    def images(self) -> Tensor:
        return torch.from_numpy(self._array)


class _OnDisk:
    """Pixels in a file and their checksums in another; threads may put images at once.

    Args:
        file: of pixels; may be there.
        shape: (N, C, H, W).
    """

    def __init__(self, file: Path, shape: tuple[int, int, int, int]) -> None:
        self._file, self._shape, self._length = file, shape, math.prod(shape[1:])
        with writing(file.parent):
            self._pixels = os.open(file, os.O_RDWR | os.O_CREAT)
            os.ftruncate(self._pixels, math.prod(shape))
            self._checksums = os.open(file.with_suffix(".checksums"), os.O_RDWR | os.O_CREAT)
            os.ftruncate(self._checksums, shape[0] * _CHECKSUM)

    def has(self, at: int) -> bool:
        known = os.pread(self._checksums, _CHECKSUM, at * _CHECKSUM)
        return any(known) and known == _checksum(os.pread(self._pixels, self._length, at * self._length))

    def put(self, at: int, planes: np.ndarray, keep: bool) -> None:
        content = np.ascontiguousarray(np.broadcast_to(planes, self._shape[1:])).tobytes()
        with writing(self._file.parent):
            _write(self._pixels, content, at * self._length)
            _write(self._checksums, _checksum(content) if keep else bytes(_CHECKSUM), at * _CHECKSUM)

    def images(self) -> Tensor:
        # copy on write, as torch has no read-only tensors
        return torch.from_numpy(np.memmap(self._file, np.uint8, "c", shape=self._shape))

    def close(self) -> None:
        os.close(self._pixels)
        os.close(self._checksums)


def _write(file: int, content: bytes, at: int) -> None:
    """Write all of it; a full disk is an OSError, where writing to a mapped file would be a bus error."""
    while content:
        written = os.pwrite(file, content, at)
        content, at = content[written:], at + written


def _checksum(content: bytes) -> bytes:
    """Of an image that is there; never all zeros, which stand for none."""
    found = hashlib.blake2b(content, digest_size=_CHECKSUM).digest()
    return found if any(found) else b"\1" * _CHECKSUM


@dataclass(frozen=True)
class PixelStore:
    """A folder for the pixels of large sets while they are needed.

    Processes that ask for the same share one file: the first fills it, and the others wait for it.

    Attributes:
        folder: made when it is needed. Who ends the work removes it, see `remove`.
        origin: files, and folders of files, that the pixels come from.
    """

    folder: Path
    origin: Sequence[Path] = ()

    def of(self, origin: Sequence[Path]) -> "PixelStore":
        """The same, for pixels that come from these files."""
        return replace(self, origin=tuple(origin))

    @contextmanager
    def place(self, shape: tuple[int, int, int, int], key: object) -> Generator[Pixels]:
        """A place for images, in which those that are there already are found.

        Args:
            shape: (N, C, H, W).
            key: what the pixels follow from beside the files that they come from, JSON values.

        Raises:
            UserError: it cannot be written, or the files changed meanwhile.
        """
        before = self._stamps()
        name = digest([shape, key, before])[:32]
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / f"{name}.lock").acquire()
        with lock:
            pixels = _OnDisk(self.folder / f"{name}.pixels", shape)
            try:
                yield pixels
            finally:
                pixels.close()
        if self._stamps() != before:
            raise UserError(f"{_named(self.origin)} changed while it was read: start again when it is written")

    def _stamps(self) -> list[tuple[str, int, int]]:
        """What tells the files that pixels come from, whose folder may hold this one."""
        own = os.path.join(os.path.abspath(self.folder), "")
        return [each for each in stamps(self.origin) if not each[0].startswith(own)]

    def rows(self, images: ImageSet, indices: Tensor) -> Tensor:
        """Some images of a set, uint8 (M, C, H, W); on the disk where they are many.

        Args:
            images: the set.
            indices: places, int64 (M,).
        """
        shape = (len(indices), *images.shape)
        if not is_large(math.prod(shape)):
            return images.images[indices]
        with self.place(shape, [images.fingerprint, digest(indices.tolist())]) as pixels:
            for start in range(0, len(indices), _SLICE):
                for at, image in enumerate(images.images[indices[start : start + _SLICE]], start):
                    if not pixels.has(at):
                        pixels.put(at, image.numpy(), keep=True)
            return pixels.images()

    def remove(self) -> None:
        """Remove the folder; what is mapped from it stays until it is let go."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # the folder above holds something, or is gone
            self.folder.parent.rmdir()


def _named(origin: Sequence[Path]) -> str:
    return shown(origin[0]) if len(origin) == 1 else f"{shown(origin[0])} or another of {len(origin)} files"


@contextmanager
def pixels_for(
    shape: tuple[int, int, int, int], what: str, store: PixelStore | None, key: Callable[[], object]
) -> Generator[Pixels]:
    """A place for decoded images: in memory, or in `store` where they are many.

    Args:
        shape: (N, C, H, W).
        what: they are, for people.
        store: None: in memory.
        key: see `PixelStore.place`; asked for only there.

    Raises:
        UserError: more than the machine's memory holds, and no store; or see `PixelStore.place`.
    """
    if store is None or not is_large(math.prod(shape)):
        yield _InMemory(shape, what)
    else:
        with store.place(shape, key()) as pixels:
            yield pixels
