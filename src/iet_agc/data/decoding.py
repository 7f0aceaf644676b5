"""One image file -> its pixels: 8 bits, grey or RGB, opaque, upright and single; or what is wrong with it."""

import os
import threading
import time
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, BinaryIO

from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from iet_agc.data.mending import Kind, Mending
from iet_agc.runtime.errors import in_words

__all__ = ["Opener", "UnfitError", "decode", "explain", "look", "orientation", "strict_pillow"]

#: What is read: formats whose plugins in Pillow decode and do nothing else (EPS, for one, would run Ghostscript).
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
#: What opens an image file, wherever it lies: on the disk, in an archive, in a table.
Opener = Callable[[], BinaryIO]
#: Bytes that a file may have beside its pixels (profiles, previews, a film), and for each pixel.
_MOST_BESIDE, _MOST_PER_PIXEL = 2**26, 8
#: Seconds of this thread's time that a file may take to be opened, and each pixel to be decoded.
_LONGEST, _LONGEST_PER_PIXEL = 10.0, 1e-6
#: What brings an image upright, by its EXIF orientation; from 5 on width and height are exchanged.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA"}


class UnfitError(Exception):
    """What is wrong with a file and how to mend it, in words that follow its name; and of which kind that is."""

    def __init__(self, message: str, kind: Kind = "damaged") -> None:
        super().__init__(message)
        self.kind: Kind = kind


def explain(error: Exception) -> UnfitError:
    """What an error says about a file, and the mend."""
    match error:
        case UnfitError():
            return error
        case Image.DecompressionBombError():
            return UnfitError(f"is too large to be decoded safely, {in_words(error)}: make it smaller", "too-large")
        case UnidentifiedImageError():
            return UnfitError(
                "cannot be read as an image, it is damaged or of an unknown format: copy it again or remove it"
            )
        case PermissionError():
            return UnfitError(f"cannot be opened, {in_words(error)}: make it readable", "unreadable")
        case _:
            kind = "out-of-memory" if isinstance(error, MemoryError) else "damaged"
            return UnfitError(f"cannot be read as an image, {in_words(error)}: copy it again or remove it", kind)


#: Pillow's flags and Python's filters of warnings are of the whole process: one reader of images sets them at a time.
_ALONE = threading.RLock()


@contextmanager
def strict_pillow() -> Generator[None]:
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


def look(file: Opener, mending: Mending = Mending()) -> tuple[int, int, int]:  # noqa: B008 (frozen)
    """(C, H, W) by the header alone, as `decode` gives it."""
    with file() as handle:
        image = _open(handle)
        width, height = image.size
        if mending.orient and image.format != "TIFF" and orientation(image) >= 5:
            width, height = height, width
        return (1 if is_grey(image) and not _gets_colour(image, mending) else 3), height, width


def decode(file: Opener, mending: Mending = Mending()) -> tuple[Image.Image, dict[Kind, str]]:  # noqa: B008 (frozen)
    """The pixels, in mode L or RGB, and what was mended: the kind, and what was done.

    Raises:
        UnfitError: what is wrong with it and not mended; and what decoders raise.
    """
    done: dict[Kind, str] = {}
    with file() as handle:
        opened = _open(handle)
        coding = _coding(opened)
        opened.load()
        image: Image.Image = opened
        if (turn := _UPRIGHT.get(orientation(image))) is not None:
            if not mending.orient:
                what = "is to be turned, by its EXIF orientation: turn its pixels or remove the tag"
                raise UnfitError(what, "turned")
            image, done["turned"] = image.transpose(turn), "oriented"
        if _is_transparent(image, coding):
            if mending.colour is None:
                what = "is transparent in places: put it on a background and save it without alpha"
                raise UnfitError(what, "transparent")
            image, done["transparent"] = _composed(image, coding, mending.colour), f"put on {mending.background}"
        return image.convert("L" if is_grey(image) else "RGB"), done


def _composed(image: Image.Image, coding: object, colour: tuple[int, int, int]) -> Image.Image:
    """An image on a background; grey on grey stays grey."""
    mode = "L" if is_grey(image) and _is_grey_colour(colour) else "RGB"
    if widened := {"L;2": 85, "L;4": 17}.get(str(coding)):  # as Pillow widens the pixels
        image.info["transparency"] *= widened
    below = Image.new("RGBA", image.size, (*colour, 255))
    return Image.alpha_composite(below, image.convert("RGBA")).convert(mode)


def _gets_colour(image: ImageFile.ImageFile, mending: Mending) -> bool:
    """Whether a grey image will be put on a background that is not grey."""
    if mending.colour is None or _is_grey_colour(mending.colour):
        return False
    coding = _coding(image)
    image.load()
    return _is_transparent(image, coding)


def _is_grey_colour(colour: tuple[int, int, int]) -> bool:
    return len({*colour}) == 1


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
        raise UnfitError(f"is animated or has pages, {count} pictures: give single images", "animated")
    if image.mode == "F":
        raise UnfitError("has floating-point pixels: save it with 8 bits per channel", "over-8-bits")
    if (bits := _bits(image)) > 8:
        raise UnfitError(f"has {bits} bits per channel: save it with 8", "over-8-bits")
    if image.mode not in _MODES:
        raise UnfitError(f"has colour mode {image.mode}: convert it to 8-bit grey or RGB", "colour-mode")
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


def orientation(image: Image.Image) -> int:
    """How viewers turn it, 1 to 8. Pillow itself turns TIFF files as it loads them; broken EXIF data says nothing."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
    return int(value) if value in range(1, 9) else 1
