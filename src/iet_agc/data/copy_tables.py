"""Tables of copies, as this program and others write them: who is a copy of whom in an image set.

FOLDER           what `iet-agc duplicates` wrote: groups.csv in it
*.csv            of columns image and group, such as groups.csv and an audit's training-images.csv; or of columns from
                 and to, as fastdup's similarity.csv, of which every row counts
*.json           imagededup's: of each file, the list of its duplicates, with scores or without

A file is known by its path below the folder of images, or by the end of its path where that is one image's only. Of
sets without files an image is its number.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from iet_agc.data.image_set import ImageSet
from iet_agc.runtime import tables
from iet_agc.runtime.errors import UserError, one_line
from iet_agc.runtime.files import shown
from iet_agc.runtime.reading import read_json, read_object

__all__ = ["Copy", "Pairs", "is_pair_table", "pair_table", "read_pairs"]

#: Places of two images that are copies.
Pairs = list[tuple[int, int]]

_KINDS = "an imagededup .json, a .csv with columns from and to or image and group, or a folder of 'iet-agc duplicates'"

#: A path that begins with a folder which holds the set is cut to at most so many parts.
_DEEPEST = 64


def read_pairs(place: Path, images: ImageSet) -> Pairs:
    """Which images of a set are copies of which, as a table says.

    Args:
        place: the table, or the folder of one.
        images: the set that it is about.

    Returns:
        Pairs of places in the set. Of a group, each image with one of them.

    Raises:
        UserError: no such table, a damaged one, or one of other images; one line.
    """
    if place.is_dir():
        _check_folder(place, images)
        return _of_groups(place / "groups.csv", images)
    if not place.is_file():
        raise UserError(f"{shown(place)} is not there: give {_KINDS}", "groups")
    if place.suffix.lower() == ".json":
        return _of_imagededup(place, images)
    if place.suffix.lower() == ".csv":
        return _of_groups(place, images)
    raise UserError(f"{shown(place)} is no table of copies: give {_KINDS}", "groups")


def _check_folder(folder: Path, images: ImageSet) -> None:
    """Refuse duplicates of another set; one that was brought to another size is known by its files."""
    if not (folder / "duplicates.json").is_file():
        raise UserError(f"{shown(folder)} holds no duplicates: give {_KINDS}", "groups")
    told = read_object(folder / "duplicates.json", f"run 'iet-agc duplicates' again into {shown(folder)}")
    if told.get("sha256") != images.fingerprint and images.files is None:
        raise UserError(
            f"{shown(folder)} is of other images than {images.name}: give duplicates of this set, at its size", "groups"
        )


def _of_groups(file: Path, images: ImageSet) -> Pairs:
    rows = _rows(file)
    columns = set(rows[0]) if rows else set()
    if {"from", "to"} <= columns:
        names = _Names(file, images)
        return [(names.place(row["from"]), names.place(row["to"])) for row in rows]
    if rows and not {"image", "group"} <= columns:
        raise UserError(f"{shown(file)} has no columns from and to, or image and group: give {_KINDS}", "groups")
    names, first = _Names(file, images), dict[str, int]()
    pairs = [(names.row(row), row["group"]) for row in rows]
    return [(first.setdefault(group, place), place) for place, group in pairs]


def _rows(file: Path) -> list[dict[str, str]]:
    try:
        rows = tables.read_table(file)
    except csv.Error as error:
        raise UserError(f"{shown(file)} is no table: {one_line(str(error))}", "groups") from None
    if any({*map(type, [*row, *row.values()])} != {str} for row in rows):  # csv puts None where a cell is missing
        raise UserError(f"{shown(file)} is damaged: a row has fewer columns, or more, than the header", "groups")
    return rows


def _of_imagededup(file: Path, images: ImageSet) -> Pairs:
    told, names, pairs = read_json(file), _Names(file, images), Pairs()
    if not isinstance(told, dict):
        raise UserError(f"{shown(file)} is no dictionary of files and their duplicates, as imagededup writes", "groups")
    for name, others in told.items():
        if not isinstance(others, list):
            raise UserError(f"{shown(file)}: {name!r:.60} has no list of duplicates, as imagededup writes", "groups")
        pairs += [(names.place(name), names.place(_name(each, file))) for each in others]
    return pairs


def _name(entry: Any, file: Path) -> str:
    """A duplicate, beside which its score may stand."""
    name = entry[0] if isinstance(entry, list) and len(entry) == 2 else entry
    if not isinstance(name, str):
        raise UserError(f"{shown(file)}: {entry!r:.60} is no file name, as imagededup writes", "groups")
    return name


class _Names:
    """What a table calls an image -> its place in the set."""

    def __init__(self, file: Path, images: ImageSet) -> None:
        self._file, self._images = file, images
        self._places: dict[str, int | None] = {}
        for place, name in enumerate(images.files or ()):
            for end in _ends(name):
                self._places[end] = None if end in self._places else place
        for place, name in enumerate(images.files or ()):  # a whole path before the end of another
            self._places[name] = place

    def place(self, name: str) -> int:
        """Of a path, or of a number where the set has no files.

        Raises:
            UserError: none of the set, or several.
        """
        if self._images.files is None:
            return self._number(name)
        for end in _ends(name):
            if end in self._places:
                if (found := self._places[end]) is not None:
                    return found
                raise UserError(f"{shown(self._file)}: {name!r:.80} may be several images of {self._images.name}")
        raise self._unknown(name)

    def row(self, row: Mapping[str, str]) -> int:
        """Of a row with an image's number and, if the set has files, its file."""
        if self._images.files is not None and row.get("file"):
            return self.place(row["file"])
        return self._number(row["image"])

    def _number(self, text: str) -> int:
        if not text.isdecimal() or not text.isascii() or not int(text[:12]) < len(self._images) or len(text) > 12:
            raise self._unknown(text)
        return int(text)

    def _unknown(self, name: str) -> UserError:
        return UserError(
            f"{shown(self._file)}: {name!r:.80} is no image of {self._images.name}: give its own", "groups"
        )


def _ends(name: str) -> Iterator[str]:
    """A path, and what is left of it without its first folders."""
    yield name
    parts = PurePath(name).parts[-_DEEPEST:]
    for start in range(1, len(parts)):
        yield "/".join(parts[start:])


# Writing ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Copy:
    """A member of a group: its name, and the share of the variance by which it differs from the group's centre."""

    name: str
    distance: float


def is_pair_table(file: Path) -> bool:
    """Whether `pair_table` knows the kind of this file."""
    return file.suffix.lower() in (".json", ".csv")


def pair_table(file: Path, names: Sequence[str], groups: Sequence[Sequence[Copy]], root: str) -> str:
    """A table of copies as other programs write it.

    Args:
        file: *.json, imagededup's: of each image, all others of its group; *.csv, fastdup's similarity.csv: each image
            of a group beside its centre, with 1 - distance, 1 of equal images.
        names: of all images.
        groups: the members of each, the centre first.
        root: folder that paths in fastdup's table begin with; "" for none.
    """
    if file.suffix.lower() == ".json":
        of: dict[str, list[str]] = {name: [] for name in names}
        for group in groups:
            for member in group:
                of[member.name] = [each.name for each in group if each is not member]
        return json.dumps(of, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    rows = [
        {"from": _path(root, centre.name), "to": _path(root, each.name), "distance": f"{1 - each.distance:.6f}"}
        for centre, *others in groups
        for each in others
    ]
    rows.sort(key=lambda row: row["distance"], reverse=True)
    return tables.table_text(rows, ("from", "to", "distance"))


def _path(root: str, name: str) -> str:
    return f"{root}/{name}" if root else name
