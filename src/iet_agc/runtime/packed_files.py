"""Files that hold many images each, tar archives and parquet tables: which of them a path names. No torch."""

import glob
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import shown

__all__ = ["PACKED", "is_packed_name", "packed_files", "packed_in"]

#: What such files are called.
PACKED = (".tar", ".parquet")

#: So many files are named by braces, at most.
_MOST = 100_000

_BRACES = re.compile(r"\{([^{}]*)\}")
_WILDCARDS = re.compile(r"[*?\[]")


def is_packed_name(path: Path) -> bool:
    """Whether a path is named like such files, or is a pattern of their names."""
    return path.suffix.lower() in PACKED and not os.path.isdir(path)


def packed_files(path: Path) -> list[Path]:
    """The files that a path names, in the order of their names.

    Args:
        path: of one file, or a pattern: DIR/*.parquet, or DIR/train-{000..099}.tar in the manner of webdataset. Of
            braces every file has to be there. Anything else, a folder included, names none.

    Raises:
        UserError: a pattern that fits no file, or a file of braces that is not there.
    """
    if not is_packed_name(path):
        return []
    if os.path.lexists(path):
        return [path]
    texts = [*itertools.islice(_expanded(str(path)), _MOST + 1)]
    if len(texts) > _MOST:
        raise UserError(f"{shown(path)} names more than {_MOST:,} files: give fewer")
    return sorted({file for text in texts for file in _fitting(text)})


def packed_in(folder: Path) -> list[Path]:
    """The archives or tables that lie in a folder itself, in the order of their names.

    Raises:
        UserError: both, or those of several splits, such as train-0000.tar and test-0000.tar.
    """
    found = sorted(file for file in folder.iterdir() if is_packed_name(file))
    kinds = sorted({file.suffix.lower() for file in found})
    splits = sorted({re.sub(r"\d+([-_]of[-_]\d+)?$", "", file.stem) for file in found})
    if len(kinds) > 1:
        raise UserError(f"{shown(folder)} holds {' and '.join(kinds)} files: give one kind, as {shown(folder)}/*.tar")
    if len(splits) > 1:
        named = ", ".join(f"{shown(split)}*" for split in splits[:5])
        pattern = f"{shown(folder)}/{shown(splits[0])}*{kinds[0]}"
        raise UserError(f"{shown(folder)} holds several splits ({named}): give one of them, as {pattern}")
    return found


def _expanded(pattern: str) -> Iterator[str]:
    """A pattern without its braces: {000..099} are numbers of one width, {a,b} words."""
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    for word in _words(braces[1]):
        yield from _expanded(pattern[: braces.start()] + word + pattern[braces.end() :])


def _words(inside: str) -> Iterator[str]:
    numbers = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", inside)
    if numbers is None:
        yield from inside.split(",")
        return
    width = len(numbers[1]) if numbers[1].startswith("0") else 1
    for number in range(int(numbers[1]), int(numbers[2]) + 1):
        yield f"{number:0{width}}"


def _fitting(text: str) -> list[Path]:
    """The files that a pattern without braces fits."""
    if os.path.lexists(text) or not _WILDCARDS.search(text):
        if not os.path.lexists(text):
            raise UserError(f"{shown(Path(text))} is not there")
        return [Path(text)]
    found = [Path(name) for name in glob.glob(text, recursive=True)]
    if not found:
        raise UserError(f"{shown(Path(text))} fits no file")
    return found
