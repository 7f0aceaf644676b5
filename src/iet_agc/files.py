"""Files that appear whole or not at all, and folders that are only written where they are ours."""

import hashlib
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["flush", "holds_others", "replace_text", "replacing", "sha256", "shown"]


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Write to the path that is given; when the block ends well, it takes the place of `file` in one step."""
    unfinished = file.with_name(f".{file.name}.unfinished")
    yield unfinished
    flush(unfinished)
    os.replace(unfinished, file)


def replace_text(file: Path, text: str) -> None:
    """Replace a text file in one step, on the disk when this returns."""
    with replacing(file) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def holds_others(folder: Path, names: Collection[str]) -> bool:
    """Whether a folder holds anything but these names and what a kill left of writing them."""
    if not folder.exists():
        return False
    entries = {entry.name for entry in folder.iterdir()}
    return any(
        name not in names and name.removeprefix(".").removesuffix(".unfinished") not in names for name in entries
    )


def shown(text: Path | str) -> str:
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
