"""What is done, if it is asked for, about image files that cannot be used as they are; and the list of them. No torch.

Unasked nothing is mended and nothing left out: files are refused. What was done is counted, and every file listed.
"""

import csv
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import replacing

__all__ = [
    "LEAST_IMAGES",
    "LIST_NAME",
    "SIZE",
    "Kind",
    "Mending",
    "TreatedFile",
    "UnusableFilesError",
    "counts",
    "in_short",
    "list_beside",
    "write_list",
]

#: What is wrong with a file.
Kind = Literal[
    "turned",
    "transparent",
    "animated",
    "over-8-bits",
    "colour-mode",
    "other-format",
    "damaged",
    "unreadable",
    "no-file",
    "too-large",
    "too-narrow",
    "other-size",
    "too-small",
    "grey",
    "missing",
    "out-of-memory",
    "folder",
    "duplicate",
]

#: Kinds that are never left out: how many images a folder holds that cannot be opened is not known, memory is another
#: the next time, and images of another size are no fault of the file.
_NEVER_LEFT_OUT = {"folder", "out-of-memory", "other-size"}

#: The option that mends files of a kind, with a value.
_MENDS = {"turned": ("orient", "true"), "transparent": ("background", "white")}

#: So many files are named rather than counted.
_FEW = 2

_LEFT_OUT = "; on_bad skip leaves such files out"

#: A size as it is asked for, HxW.
SIZE = r"[1-9]\d{0,4}x[1-9]\d{0,4}"

#: So many images must remain where others are left out.
LEAST_IMAGES = 2

#: The list of treated files in a result's folder.
LIST_NAME = "mending.csv"


@dataclass(frozen=True)
class Mending:
    """What to do about image files that cannot be used as they are.

    Attributes:
        orient: turn pixels as the EXIF orientation says.
        background: colour that transparent images are put on, "white", "black" or "#rrggbb"; None refuses them.
        on_bad: "fail" refuses a set in which files cannot be used; "skip" leaves these out, 2 images must remain.
        resize: bring images of another size to this, "HxW": the largest centred part of its proportions is resized.
        crop: cut this, "HxW", out of the middle of larger images, whose pixels stay as they are. One of the two.

    Raises:
        UserError: another colour, way or size, or both of the last two.
    """

    orient: bool = False
    background: str | None = None
    on_bad: Literal["fail", "skip"] = "fail"
    resize: str | None = None
    crop: str | None = None

    def __post_init__(self) -> None:
        if self.background is not None and not re.fullmatch(r"white|black|#[0-9a-fA-F]{6}", self.background):
            raise UserError(f"background {self.background!r} is not white, black or #rrggbb", "background")
        if self.on_bad not in ("fail", "skip"):
            raise UserError(f"on_bad {self.on_bad!r} is not fail or skip", "on_bad")
        for name, size in (("resize", self.resize), ("crop", self.crop)):
            if size is not None and not re.fullmatch(SIZE, size):
                raise UserError(f"{name} {size!r} is not HxW, such as 64x64", name)
        if self.resize and self.crop:
            raise UserError(f"resize {self.resize} and crop {self.crop} are two ways to one size: give one", "crop")

    @property
    def asked(self) -> dict[str, Any]:
        """What is asked for beyond refusing, by option; nothing by default."""
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name)) != each.default}

    @property
    def colour(self) -> tuple[int, int, int] | None:
        """The background as (R, G, B), 0 to 255."""
        if self.background is None:
            return None
        digits = {"white": "ffffff", "black": "000000"}.get(self.background, self.background.removeprefix("#"))
        red, green, blue = bytes.fromhex(digits)
        return red, green, blue

    @property
    def size(self) -> tuple[int, int] | None:
        """The (H, W) that images are brought to, if they are."""
        if (size := self.resize or self.crop) is None:
            return None
        height, width = map(int, size.split("x"))
        return height, width

    def leaves_out(self, kind: str) -> bool:
        """Whether files of that kind are left out."""
        return self.on_bad == "skip" and kind not in _NEVER_LEFT_OUT


@dataclass(frozen=True)
class TreatedFile:
    """A file that was not taken as it is: a row of the list.

    Attributes:
        path: below the folder of the images, or another name.
        kind: what is wrong with it.
        done: "oriented", "put on BACKGROUND", "resized to HxW", "cropped to HxW", "left out" or "refused".
        reason: the same for people, and how to mend it by hand.
    """

    path: str
    kind: str
    done: str
    reason: str


class UnusableFilesError(UserError):
    """Files of an image set that cannot be used.

    Attributes:
        where: the set.
        files: all of them.
        mends: arguments that would mend them, with a value each, such as {"orient": "true"}; of images of several sizes
            resize, and convert_to for a training; nothing where none would, or none can be asked for.
        short: the message for who gets the list of all files beside it.
    """

    def __init__(
        self, message: str, where: str, files: Sequence[TreatedFile], mends: dict[str, str], short: str = ""
    ) -> None:
        super().__init__(message)
        self.where, self.files, self.mends, self.short = where, tuple(files), mends, short or message

    @classmethod
    def of(
        cls, problem: str, which: str, where: str, files: Sequence[TreatedFile], mending: Mending | None
    ) -> "UnusableFilesError":
        """The error about such files.

        Args:
            problem: what is wrong, for people.
            which: some of the files, for people.
            where: the set.
            files: all that are refused.
            mending: as asked for; None where nothing can be asked for.
        """
        if mending is None:
            return cls(f"{problem}: {which}", where, files, {})
        kinds = dict(sorted(Counter(file.kind for file in files).items()))
        mends = dict(_MENDS[kind] for kind in kinds if kind in _MENDS)
        told = [f"{count} {kind}{_mended_by(kind)}" for kind, count in kinds.items()]
        ways = ["mended"] if mends else []
        if kinds.keys() - _NEVER_LEFT_OUT and mending.on_bad == "fail":
            mends["on_bad"] = "skip"
            others = sorted(kinds.keys() & _NEVER_LEFT_OUT)
            told[-1] += f"; on_bad skip leaves out all but {', '.join(others)}" if others else _LEFT_OUT
            ways.append(f"left out, but for {', '.join(others)}" if others else "left out")
        message = f"{problem}: {which}; {', '.join(told)}"
        if len(files) <= _FEW or not ways:
            return cls(message, where, files, mends)
        counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        return cls(message, where, files, mends, f"{problem}: {counted}; have them {' or '.join(ways)}")


def _mended_by(kind: str) -> str:
    return f" (mended by {_MENDS[kind][0]} {_MENDS[kind][1]})" if kind in _MENDS else ""


def counts(files: Iterable[TreatedFile]) -> dict[str, int]:
    """How many files were treated in each way, those left out by kind, as {"oriented": 3, "left out: damaged": 1}."""
    keys = (f"{file.done}: {file.kind}" if file.done in ("left out", "refused") else file.done for file in files)
    return dict(sorted(Counter(keys).items()))


def in_short(name: str, files: Sequence[TreatedFile], place: Path) -> str:
    """One line about treated files, and where all are listed.

    Args:
        name: of the image set.
        files: those that were treated.
        place: of the list.
    """
    told = ", ".join(f"{count} {what}" for what, count in counts(files).items())
    return f"{name}: {told} (all are listed in {place})"


def write_list(place: Path, sets: Mapping[str, Sequence[TreatedFile]]) -> None:
    """Write the list of treated files: CSV in UTF-8 with the columns set, path, kind, done, reason.

    Args:
        place: the file.
        sets: the treated files by the name of their set.

    Raises:
        WriteError: it cannot be written.
    """
    with replacing(place) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["set", *(each.name for each in fields(TreatedFile))])
        writer.writerows((name, *astuple(file)) for name, files in sets.items() for file in files)


def list_beside(error: UnusableFilesError, out: Path | None) -> Path:
    """Write the list of refused files where nothing else is written, since the work is refused.

    Args:
        error: about those files.
        out: the output of the work; the list stands beside it, as OUT.mending.csv. None, an output among the images
            themselves, or a place that cannot be written: a file in the system's folder of temporary ones.

    Returns:
        The list.
    """
    if out is not None and not _is_below(out := Path(os.path.abspath(out)), error.where):
        place = out.with_name(f"{out.name}.{LIST_NAME}")
        with suppress(OSError, UserError):
            place.parent.mkdir(parents=True, exist_ok=True)
            write_list(place, {error.where: error.files})
            return place
    handle, name = tempfile.mkstemp(f".{LIST_NAME}", "iet-agc-")
    os.close(handle)
    write_list(Path(name), {error.where: error.files})
    return Path(name)


def _is_below(path: Path, where: str) -> bool:
    return os.path.isdir(where) and path.resolve().is_relative_to(Path(where).resolve())
