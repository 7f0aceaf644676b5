"""Files that appear whole or not at all, and folders that are only written where they are ours."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Generator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath

from filelock import FileLock, Timeout

from iet_agc.runtime.errors import UserError

__all__ = [
    "WriteError",
    "check_ours",
    "check_replaceable",
    "digest",
    "flush",
    "hashes_below",
    "holds_others",
    "link_or_copy",
    "only_one",
    "put_back",
    "replace_text",
    "replacing",
    "replacing_folder",
    "sha256",
    "shown",
    "writing",
]

_LOCK = ".lock"

#: What the system says where there is no more room.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

#: How libraries in Rust tell of an error of the system: safetensors, tokenizers.
_OF_RUST = re.compile(r"([^:()]+) \(os error (\d+)\)")


class WriteError(UserError):
    """A place that cannot be written, such as on a full disk: the same again may do where there is room."""


@contextmanager
def replacing(file: Path) -> Generator[Path]:
    """Write to the path that is given; when the block ends well, it takes the place of `file` in one step.

    When it does not, nothing is left of what was written.

    Raises:
        WriteError: see `writing`.
    """
    unfinished = file.with_name(f".{file.name}.unfinished")
    try:
        with writing(file):
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
def replacing_folder(folder: Path, own: Collection[str] | None = None) -> Generator[Path]:
    """Make a folder at the path that is given; when the block ends well, it takes the place of `folder`.

    Whenever a kill comes, the old folder or the new one is there, whole: between the two renames the old one stands
    beside its place, as .NAME.replaced, where the next attempt puts it back. That also clears away what a kill left
    unfinished; an error leaves nothing of it.

    Args:
        folder: the place; of a link, the one that it leads to.
        own: paths below it of the files that are ours to replace; whatever else stands there is taken along. None: all
            of it is ours.

    Raises:
        WriteError: see `writing`.
    """
    folder = folder.resolve()
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    try:
        with writing(folder):
            put_back(folder)
            shutil.rmtree(unfinished, ignore_errors=True)
            yield unfinished
            if own is not None:
                _take_along(folder, unfinished, own)
            for entry in (*unfinished.rglob("*"), unfinished):
                if not entry.is_symlink():
                    flush(entry)
            _exchange(folder, unfinished)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _exchange(folder: Path, unfinished: Path) -> None:
    try:
        if folder.exists():
            os.rename(folder, _aside(folder))
        os.rename(unfinished, folder)
    finally:
        put_back(folder)
    flush(folder.parent)


def _aside(folder: Path) -> Path:
    """Where a folder stands while it is being replaced."""
    return folder.with_name(f".{folder.name}.replaced")


def put_back(folder: Path) -> None:
    """End what a kill, or an error, may have cut off between the two renames of `replacing_folder`."""
    aside = _aside(folder)
    if aside.exists() and not folder.exists():
        os.rename(aside, folder)
    shutil.rmtree(aside, ignore_errors=True)


def _take_along(folder: Path, target: Path, own: Collection[str]) -> None:
    """Have the files of a folder that are neither ours nor written anew in the new one as well, as links if it goes."""
    for file in folder.rglob("*"):
        path = file.relative_to(folder)
        if (file.is_file() or file.is_symlink()) and str(path) not in own and not os.path.lexists(target / path):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(file, target / path)


def link_or_copy(source: Path, target: Path) -> None:
    """A second name of a file, or a copy where there is no such thing."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target, follow_symlinks=False)


@contextmanager
def writing(place: Path) -> Generator[None]:
    """Within it, whatever keeps `place` from being written becomes one clear line.

    Raises:
        WriteError: in place of what the system says, or a library that it told; it names the place and what is in the
            way.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (found := _of_system(error)) is None:
            raise
        reason, number = found
        taken = next((above for above in place.parents if os.path.exists(above) and not os.path.isdir(above)), None)
        reason = f"{shown(taken)} is a file, not a folder" if taken else reason
        mend = "make room there, or choose another output" if number in _NO_ROOM else "choose another output"
        raise WriteError(f"{shown(place)} cannot be written: {reason}; {mend}", "out") from error


def _of_system(error: Exception) -> tuple[str, int | None] | None:
    """What the system said, in words, and its number if that is known; None of errors of other kinds."""
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__, error.errno
    found = _OF_RUST.search(str(error))
    return (found[1].strip(), int(found[2])) if found else None


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
        UserError: a file stands in the way, or the folder holds something else.
    """
    if any(os.path.lexists(place) and not place.is_dir() for place in (folder, *folder.parents)):
        raise UserError(f"{folder} cannot be a folder: there is a file of that name")
    if not (folder / mark).exists() and holds_others(folder, names):
        raise UserError(f"{folder} is not empty and holds no {what}: choose another output", "out")


def check_replaceable(file: Path, mark: str, what: str) -> None:
    """Refuse a file that is not ours to replace. Writes nothing.

    Args:
        file: may not exist yet.
        mark: stands in the first 4,096 bytes of every file that is ours.
        what: it is, for people, such as "report".

    Raises:
        UserError: there is a device, a pipe, a link to nowhere or a file without the mark.
    """
    if not os.path.lexists(file):
        return
    if not file.is_file():
        raise UserError(f"{shown(file)} is there and is no regular file: choose another output", "out")
    with file.open("rb") as stream:
        if mark.encode() not in stream.read(4096):
            raise UserError(
                f"{shown(file)} is there and is no {what} of ours: choose another output, or remove it", "out"
            )


@contextmanager
def only_one(folder: Path) -> Generator[None]:
    """Make the folder, and keep other programs that ask for it out of it until the block ends, or this one is killed.

    Raises:
        UserError: another one is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"another process is at work in {folder}: wait for it, or choose another output", "out"
        ) from None
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


def digest(value: object) -> str:
    """SHA-256 of JSON values, hexadecimal: of their text in ASCII, keys in order, as `json.dumps` writes it."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def hashes_below(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder, at any depth, by its path below it."""
    return {str(file.relative_to(folder)): sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()}
