"""Image files in tar archives in webdataset's layout, found by their headers and read where they lie.

Nothing is extracted to disk and nothing unpickled. Headers are walked here, since `tarfile` keeps an object for each
member and reads extended headers of any size. Only regular members are opened. What an archive lacks at its end cannot
be known, so an archive that is cut short is refused as a whole.
"""

import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from iet_agc.data.decoding import Opener
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import shown
from iet_agc.runtime.reading import open_file

__all__ = ["Member", "key_of", "members"]

_BLOCK = tarfile.BLOCKSIZE

#: Bytes of a long name or an extended header, at most; and how far behind its end an archive is looked at.
_LONGEST, _BEYOND = 2**20, 2**16

#: Headers that say something of the next one, or of all.
_LONG_NAME, _LONG_LINK, _OF_ALL = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE
_EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


@dataclass(frozen=True, slots=True)
class Member:
    """What stands in an archive.

    Attributes:
        archive: its file.
        name: as the archive says it.
        start, size: where its bytes lie, and how many there are.
        odd: why it cannot be opened, in words that follow its name; nothing of a regular file.
    """

    archive: Path
    name: str
    start: int
    size: int
    odd: str

    @property
    def opener(self) -> Opener:
        """Opens it where it lies."""
        return partial(_opened, self.archive, self.start, self.size)


def key_of(name: str) -> str:
    """What the files of one sample have in common in webdataset's layout: all before the first dot of the file name."""
    path = PurePosixPath(name)
    return str(path.with_name(path.name.partition(".")[0] or path.name))


def members(archive: Path) -> Iterator[Member]:
    """What stands in an archive, in its order, folders left out.

    Raises:
        UserError: it is no tar archive, compressed, damaged, cut short, sparse, or several joined to one.
    """
    with open_file(archive) as file:
        total, at = file.seek(0, os.SEEK_END), 0
        told = _Told()
        while header := _header(archive, file, at):
            at += _BLOCK
            size = header.size if told.size is None else told.size
            has_bytes = header.isreg() or header.type not in tarfile.SUPPORTED_TYPES
            of_others = header.type in (_LONG_NAME, _LONG_LINK, _OF_ALL, *_EXTENDED)
            size = header.size if of_others else size if has_bytes else 0
            if size < 0 or at + size > total:
                raise _damaged(archive, f"its member {shown(told.name or header.name)} is cut short")
            if header.type == _LONG_NAME:
                told.name = _text(archive, file, size).rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif header.type in _EXTENDED:
                told.read(archive, _text(archive, file, size))
            elif not of_others:
                if header.type != tarfile.DIRTYPE:
                    name = told.name or header.name
                    yield Member(archive, name, at, size, _odd(header, told, name))
                told = _Told()
            at += -(-size // _BLOCK) * _BLOCK


class _Told:
    """What extended headers say of the next member."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.size: int | None = None
        self.is_sparse = False

    def read(self, archive: Path, records: bytes) -> None:
        """Take in the records of a header of POSIX.1-2001, each "LENGTH KEY=VALUE" and a line break."""
        try:
            while records:
                length = int(records.partition(b" ")[0])
                key, equals, value = records[:length].partition(b" ")[2].removesuffix(b"\n").partition(b"=")
                if length < 5 or length > len(records) or not equals:
                    raise ValueError
                if key == b"path":
                    self.name = value.decode("utf-8", "surrogateescape")
                elif key == b"size":
                    self.size = int(value)
                self.is_sparse |= key.startswith(b"GNU.sparse.")
                records = records[length:]
        except ValueError:
            raise _damaged(archive, "an extended header is none") from None


def _header(archive: Path, file: BinaryIO, at: int) -> tarfile.TarInfo | None:
    """The header at a place; None at the archive's end."""
    file.seek(at)
    block = file.read(_BLOCK)
    if len(block) < _BLOCK:
        raise _damaged(archive, "its end is missing" if at else "it is too short")
    if not any(block):
        if any(file.read(_BEYOND)):
            raise _damaged(archive, "it goes on after its end, such as where archives were joined")
        return None
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        what = f"the header at byte {at} is none" if at else "it is compressed or something else"
        raise _damaged(archive, what) from None
    if header.type == tarfile.GNUTYPE_SPARSE:
        raise _damaged(archive, f"its member {shown(header.name)} is sparse")
    return header


def _text(archive: Path, file: BinaryIO, size: int) -> bytes:
    if size > _LONGEST:
        raise _damaged(archive, f"an extended header has {size:,} bytes")
    return file.read(size)


def _odd(header: tarfile.TarInfo, told: _Told, name: str) -> str:
    """Why a member cannot be opened."""
    if header.type not in _REGULAR:
        return "is a link, a pipe or a device in its archive, no file: pack the file itself"
    if told.is_sparse:
        return "is sparse in its archive: pack it as a plain file"
    if "\0" in name or name.startswith("/") or ".." in PurePosixPath(name).parts:
        return "has a path that leaves the archive: pack it again"
    return ""


def _damaged(archive: Path, what: str) -> UserError:
    return UserError(f"{shown(archive)} is no tar archive that can be read, {what}: pack or copy it again, as .tar")


class _Section(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("a place before the beginning")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._file.seek(self._start + self._at)
        content = self._file.read(max(0, min(len(buffer), self._size - self._at)))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


def _opened(archive: Path, start: int, size: int) -> BinaryIO:
    return io.BufferedReader(_Section(archive.open("rb", buffering=0), start, size))
