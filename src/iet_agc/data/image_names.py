"""Which files are images, by their names alone."""

from pathlib import PurePath

from iet_agc.data.decoding import UnfitError

__all__ = ["IMAGE_SUFFIXES", "is_image_name", "other_format"]

IMAGE_SUFFIXES = set(
    ".apng .bmp .dib .gif .jfif .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()  # noqa: SIM905
)


#: Images that are not read: they are named, so that nobody takes them for counted.
_OTHER_SUFFIXES = set(
    ".arw .avif .avifs .cr2 .cr3 .dds .dng .eps .exr .hdr .heic .heif .hif .ico .j2k .jp2 .jpf .jpx .jxl "  # noqa: SIM905
    ".jxr .nef .orf .pcx .pfm .psd .qoi .raf .rw2 .sgi .svg .tga .xcf".split()
)


def is_image_name(name: str) -> bool:
    """Whether a file of that name is read as an image."""
    return PurePath(name).suffix.lower() in IMAGE_SUFFIXES


def other_format(name: str) -> UnfitError | None:
    """What is wrong with a file that is an image by its name, of a format that is not read."""
    suffix = PurePath(name).suffix.lower()
    if suffix not in _OTHER_SUFFIXES:
        return None
    return UnfitError(f"is {suffix[1:].upper()}, which is not read: convert it to PNG", "other-format")
