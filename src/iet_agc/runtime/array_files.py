"""Arrays by name in an .npz file that anyone may have written: numbers only, and no more than is allowed for.

Headers are read first. What they claim has to be what the archive holds, so that neither a header nor a compressed
member takes memory that was not granted. Objects are never unpickled.
"""

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from iet_agc.runtime.errors import UserError, in_words
from iet_agc.runtime.files import shown
from iet_agc.runtime.reading import check_regular

__all__ = ["NotNumbersError", "read_arrays"]

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}

#: Kinds of dtypes that are read: bool, integers, floats, texts of fixed length.
_KINDS = "biufU"

#: An archive has at most so many arrays.
_MOST = 1000


class NotNumbersError(UserError):
    """An .npz file asks for more memory than is allowed, or holds Python objects: it was not written by us."""


def read_arrays(file: Path, most: int) -> dict[str, NDArray[Any]]:
    """All arrays of an .npz file.

    Args:
        file: a regular one.
        most: bytes of all arrays together.

    Raises:
        NotNumbersError: it would take more, or holds objects.
        UserError: it is damaged.
    """
    check_regular(file)
    try:
        with zipfile.ZipFile(file) as archive:
            _check_members(file, archive, most)
            return {member.filename.removesuffix(".npy"): _read(file, archive, member) for member in archive.infolist()}
    except UserError:
        raise
    except Exception as error:  # damaged archives make decoders raise nearly anything
        raise UserError(f"{shown(file)} is damaged: {in_words(error)}") from None


def _check_members(file: Path, archive: zipfile.ZipFile, most: int) -> None:
    members = archive.infolist()
    if len(members) > _MOST or len({member.filename for member in members}) < len(members):
        raise NotNumbersError(f"{shown(file)} holds {len(members)} arrays, some of the same name or too many")
    if (total := sum(member.file_size for member in members)) > most:
        raise NotNumbersError(f"{shown(file)} would take {total:,} bytes, and {most:,} are allowed")


def _read(file: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(member) as stream:
        shape, columns_first, dtype = _header(file, member, stream)
        claimed, there = math.prod(shape) * dtype.itemsize, member.file_size - stream.tell()
        if claimed != there:
            raise NotNumbersError(
                f"{shown(file)}: {member.filename!r:.60} claims {claimed:,} bytes and holds {there:,}"
            )
        content = np.frombuffer(stream.read(), dtype)  # the archive compares its checksum at the end of a member
        return content.reshape(shape, order="F" if columns_first else "C").copy()


def _header(file: Path, member: zipfile.ZipInfo, stream: IO[bytes]) -> tuple[tuple[int, ...], bool, "np.dtype[Any]"]:
    version = npy.read_magic(stream)
    if version not in _HEADERS:
        raise NotNumbersError(f"{shown(file)}: {member.filename!r:.60} is of version {version}, not of plain numbers")
    shape, columns_first, dtype = _HEADERS[version](stream)
    if dtype.hasobject or dtype.kind not in _KINDS:
        raise NotNumbersError(f"{shown(file)}: {member.filename!r:.60} holds Python objects, which are never unpickled")
    return shape, columns_first, dtype
