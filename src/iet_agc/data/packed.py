"""Image files in tar archives and parquet tables: which there are, in what order, and what opens each."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from iet_agc.data.decoding import Opener, UnfitError
from iet_agc.data.image_names import is_image_name, other_format
from iet_agc.data.parquet_files import rows_of
from iet_agc.data.tar_files import key_of, members
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import shown
from iet_agc.runtime.reading import decoded_text

__all__ = ["packed_images", "packed_texts"]

#: Bytes of a text in an archive.
_LONGEST_TEXT = 2**20


def packed_images(files: Sequence[Path]) -> tuple[dict[PurePath, Opener], dict[PurePath, UnfitError]]:
    """The images of archives or tables, file by file as they are given, and in the order in which they stand there.

    Of an archive in webdataset's layout those members are images that are named like one; a sample (what stands before
    the first dot of a name) has one. Other members, such as texts, classes and pickled objects, are not opened.

    Args:
        files: tar archives or parquet tables.

    Returns:
        What opens each image, by a name: that of its file, and of the member or the number of the row. And what is
        named like an image and cannot be one, with the reason.

    Raises:
        UserError: files that cannot be read, two members of one name, or two images of one sample.
    """
    openers: dict[PurePath, Opener] = {}
    bad: dict[PurePath, UnfitError] = {}
    for file, inside in _inside(files):
        if _is_archive(file):
            _add_archive(file, inside, openers, bad)
        else:
            openers.update((inside / f"row {row:07d}", opener) for row, opener in enumerate(rows_of(file)))
    return openers, bad


def packed_texts(files: Sequence[Path]) -> dict[str, str]:
    """The .txt members of archives, by the name of their file and their own; tables have none.

    Raises:
        UserError: archives that cannot be read, or texts that are not UTF-8, too long or no plain files.
    """
    texts: dict[str, str] = {}
    for file, inside in _inside(files):
        for member in members(file) if _is_archive(file) else ():
            if not member.name.endswith(".txt"):
                continue
            name = shown(inside / member.name)
            if member.odd or member.size > _LONGEST_TEXT:
                raise UserError(f"{name} {member.odd or f'has {member.size:,} bytes, which is no caption'}")
            with member.opener() as stream:
                texts[name] = decoded_text(stream.read(), name)
    return texts


def _inside(files: Sequence[Path]) -> Iterator[tuple[Path, PurePath]]:
    """Files, and what each is called among the others."""
    above = os.path.commonpath([file.absolute().parent for file in files])
    for file in files:
        yield file, PurePath(os.path.relpath(file.absolute(), above))


def _is_archive(file: Path) -> bool:
    return file.suffix.lower() == ".tar"


def _add_archive(
    file: Path, inside: PurePath, openers: dict[PurePath, Opener], bad: dict[PurePath, UnfitError]
) -> None:
    """The images of one archive, which stands at `inside` among the others."""
    taken: dict[str, str] = {}
    for member in members(file):
        reason = other_format(member.name)
        if reason is None and not is_image_name(member.name):
            continue
        key, name = key_of(member.name), inside / member.name.lstrip("/")
        if key in taken:
            names = f"{shown(taken[key])} and {shown(member.name)}"
            raise UserError(f"{shown(file)} holds more than one image of a sample, {names}: pack one for each")
        taken[key] = member.name
        if member.odd:
            reason = UnfitError(member.odd, "no-file")
        if reason is None:
            openers[name] = member.opener
        else:
            bad[name] = reason
