"""One image file -> its pixels: 8 bits, grey or RGB, opaque, upright and single; or what is wrong with it."""

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from iet_agc.runtime.errors import in_words

__all__ = ["Opener", "UnfitError", "decode", "look", "explain", "strict_pillow"]

#: What is read: formats whose plugins in Pillow decode and do nothing else (EPS, for one, would run Ghostscript).
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
#: What opens an image file, wherever it lies: on the disk, in an archive, in a table.
Opener = Callable[[], BinaryIO]
#: Bytes that a file may have beside its pixels (profiles, previews, a film), and for each pixel.
_MOST_BESIDE, _MOST_PER_PIXEL = 2**26, 8
#: Seconds of this thread's time that a file may take to be opened, and each pixel to be decoded.
_LONGEST, _LONGEST_PER_PIXEL = 10.0, 1e-6
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA"}


class UnfitError(Exception):
    """What is wrong with a file and how to mend it, in words that follow its name."""


def explain(error: Exception) -> str:
    """What an error says about a file, and the mend."""
    match error:
        case UnfitError():
            return str(error)
        case Image.DecompressionBombError():
            return f"is too large to be decoded safely, {in_words(error)}: make it smaller"
        case UnidentifiedImageError():
            return "cannot be read as an image, it is damaged or of an unknown format: copy it again or remove it"
        case PermissionError():
            return f"cannot be opened, {in_words(error)}: make it readable"
        case _:
            return f"cannot be read as an image, {in_words(error)}: copy it again or remove it"


#: Pillow's flags and Python's filters of warnings are of the whole process: one reader of images sets them at a time.
_ALONE = threading.RLock()


@contextmanager
def strict_pillow() -> Iterator[None]:
    """Pillow with all its plugins and no warnings, refusing cut files whatever the calling program has set."""
    with _ALONE, warnings.catch_warnings():
        Image.init()
        lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = lenient


class _Bounded:
    """A file as Pillow reads it, until the time is over: some decoders look for the end of an image for hours.

    It has no descriptor, so that no decoder reads past it.

    Args:
        file: the file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.seek, self.tell = file.seek, file.tell
        self.began, self.seconds = time.thread_time(), _LONGEST

    def read(self, size: int = -1) -> bytes:
        """What the file's own says, in time."""
        if time.thread_time() - self.began > self.seconds:
            raise UnfitError("takes too long to be decoded, it is damaged or made to: copy it again or remove it")
        return self.file.read(size)


def look(file: Opener) -> tuple[int, int, int]:
    """(C, H, W) by the header alone."""
    with file() as handle:
        image = _open(handle)
        return (1 if is_grey(image) else 3), image.height, image.width


def decode(file: Opener) -> Image.Image:
    """The pixels, in mode L or RGB."""
    with file() as handle:
        image = _open(handle)
        coding = _coding(image)
        image.load()
        if _is_turned(image):
            raise UnfitError("is to be turned, by its EXIF orientation: turn its pixels or remove the tag")
        if _is_transparent(image, coding):
            raise UnfitError("is transparent in places: put it on a background and save it without alpha")
        return image.convert("L" if is_grey(image) else "RGB")


def _open(handle: BinaryIO) -> ImageFile.ImageFile:
    """The header of one image of at most 8 bits, grey or RGB; only plugins that run nothing are let near it."""
    if not (size := handle.seek(0, os.SEEK_END)):
        raise UnfitError("is empty, 0 bytes: copy it again or remove it")
    handle.seek(0)
    bounded: Any = _Bounded(handle)
    image = Image.open(bounded, formats=_FORMATS)
    if size > _MOST_BESIDE + _MOST_PER_PIXEL * image.width * image.height:
        raise UnfitError(f"has {size} bytes for {image.width} x {image.height} pixels: copy it again or remove it")
    bounded.seconds += _LONGEST_PER_PIXEL * image.width * image.height
    if (count := getattr(image, "n_frames", 1)) > 1:
        raise UnfitError(f"is animated or has pages, {count} pictures: give single images")
    if image.mode == "F":
        raise UnfitError("has floating-point pixels: save it with 8 bits per channel")
    if (bits := _bits(image)) > 8:
        raise UnfitError(f"has {bits} bits per channel: save it with 8")
    if image.mode not in _MODES:
        raise UnfitError(f"has colour mode {image.mode}: convert it to 8-bit grey or RGB")
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


def is_grey(image: Image.Image) -> bool:
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
