"""Files that appear whole or not at all, and folders that are only written where they are ours."""

import hashlib
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath

from filelock import FileLock, Timeout

__all__ = [
    "check_ours",
    "check_replaceable",
    "flush",
    "holds_others",
    "only_one",
    "replace_text",
    "replacing",
    "replacing_folder",
    "sha256",
    "shown",
    "writing",
]

_LOCK = ".lock"


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Write to the path that is given; when the block ends well, it takes the place of `file` in one step.

    When it does not, nothing is left of what was written.
    """
    unfinished = file.with_name(f".{file.name}.unfinished")
    try:
        yield unfinished
        flush(unfinished)
        os.replace(unfinished, file)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise


def replace_text(file: Path, text: str) -> None:
    """Replace a text file in one step, on the disk when this returns."""
    with replacing(file) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Make a folder at the path that is given; when the block ends well, it takes the place of `folder`.

    A kill leaves the unfinished one, which the next attempt clears away.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    yield unfinished
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(unfinished, folder)


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Within it, whatever keeps `place` from being written becomes one clear line.

    Raises:
        ValueError: in place of the OSError; it names the place and what is in the way.
    """
    try:
        yield
    except OSError as error:
        taken = next((above for above in place.parents if os.path.exists(above) and not os.path.isdir(above)), None)
        reason = f"{shown(taken)} is a file, not a folder" if taken else error.strerror or type(error).__name__
        raise ValueError(f"{shown(place)} cannot be written: {reason}; choose another --out") from error


def holds_others(folder: Path, names: Collection[str]) -> bool:
    """Whether a folder holds anything but these names and what a kill left of writing them."""
    if not folder.exists():
        return False
    entries = {entry.name for entry in folder.iterdir()} - {_LOCK}
    return any(
        name not in names and name.removeprefix(".").removesuffix(".unfinished") not in names for name in entries
    )


def check_ours(folder: Path, mark: str, names: Collection[str], what: str) -> None:
    """Refuse a folder that is not ours to write into. Writes nothing.

    Args:
        folder: may not exist yet.
        mark: the file that says whose a folder is; with it, whatever else lies there is not looked at.
        names: what a kill may leave of it before there is the mark.
        what: it is, for people, such as "audit".

    Raises:
        ValueError: a file stands in the way, or the folder holds something else.
    """
    if any(os.path.lexists(place) and not place.is_dir() for place in (folder, *folder.parents)):
        raise ValueError(f"{folder} cannot be a folder: there is a file of that name")
    if not (folder / mark).exists() and holds_others(folder, names):
        raise ValueError(f"{folder} is not empty and holds no {what}: choose another --out")


def check_replaceable(file: Path, mark: str, what: str) -> None:
    """Refuse a file that is not ours to replace. Writes nothing.

    Args:
        file: may not exist yet.
        mark: stands in the first 4,096 bytes of every file that is ours.
        what: it is, for people, such as "report".

    Raises:
        ValueError: there is a device, a pipe, a link to nowhere or a file without the mark.
    """
    if not os.path.lexists(file):
        return
    if not file.is_file():
        raise ValueError(f"{shown(file)} is there and is no regular file: choose another --out")
    with file.open("rb") as stream:
        if mark.encode() not in stream.read(4096):
            raise ValueError(f"{shown(file)} is there and is no {what} of ours: choose another --out, or remove it")


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Make the folder, and keep other programs that ask for it out of it until the block ends, or this one is killed.

    Raises:
        ValueError: another one is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"another process is at work in {folder}: wait for it, or choose another --out") from None
    try:
        yield
    finally:
        lock.release()


def shown(text: PurePath | str) -> str:
    """Names from anywhere on one line, whatever bytes are in them."""
    return str(text) if str(text).isprintable() else ascii(str(text))


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(file: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
