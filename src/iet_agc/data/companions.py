"""What comes along with images that are linked elsewhere: captions, and files that have their names.

beside an image     files of its name but for the ending: cat.txt, cat.caption, cat.json
metadata.jsonl      in any folder: a line for each of its images (the layout of Hugging Face's imagefolder)
one .json file      at the top: paths of images -> captions (see `captioned_folder.read_captioned`)
"""

import json
import os
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

from iet_agc.data.datasets.captioned_folder import paths_by_their_ends
from iet_agc.data.image_names import is_image_name
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import link_or_copy, replace_text, shown
from iet_agc.runtime.reading import parse_json, read_bytes

__all__ = ["Companions", "find_companions"]

_LINES, _OTHER_TABLES = "metadata.jsonl", {"metadata.csv", "metadata.parquet"}

#: Bytes of a file of captions: those of ten million images.
_LARGEST = 2**31

#: Endings of files that hold the caption of the image beside them.
_TEXTS = {".txt", ".caption"}


@dataclass(frozen=True)
class _Table:
    """A file that says something of many images.

    Attributes:
        place: its path below the folder.
        rows: of each image, what is written of it, by the image's path below the folder.
    """

    place: PurePath
    rows: Mapping[PurePath, Sequence[str]]

    def text(self, images: Sequence[PurePath]) -> str:
        """The file of some of the images; empty where it says nothing of them."""
        rows = [row for image in images for row in self.rows.get(image, ())]
        if self.place.name == _LINES:
            return "".join(f"{row}\n" for row in rows)
        entries = ",\n".join(rows)
        return f"{{\n{entries}\n}}\n" if rows else ""


@dataclass(frozen=True)
class Companions:
    """What comes along with the images of a folder.

    Attributes:
        folder: it.
        beside: files beside each image that have its name but for the ending, by paths below the folder.
        tables: files about many images.
        captioned: images that have a caption in any of these.
        left_behind: other files in the folders of the images, which do not come along.
    """

    folder: Path
    beside: Mapping[PurePath, Sequence[PurePath]]
    tables: Sequence[_Table]
    captioned: Collection[PurePath]
    left_behind: Collection[PurePath]

    def link(self, images: Sequence[PurePath], target: Path) -> list[PurePath]:
        """Put images, and what comes along with them, below another folder, where they are below their own.

        Args:
            images: some of the folder, by their paths below it.
            target: the other folder, which is new.

        Returns:
            The paths below it of the tables, which were written anew; all others are links or copies.
        """
        for file in dict.fromkeys(each for image in images for each in (image, *self.beside[image])):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(Path(os.path.realpath(self.folder / file)), target / file)
        texts = {table.place: text for table in self.tables if (text := table.text(images))}
        for place, text in texts.items():
            replace_text(target / place, text)
        return list(texts)


def find_companions(folder: Path, images: Sequence[PurePath], others: Collection[PurePath] = ()) -> Companions:
    """Look at what stands beside images.

    Args:
        folder: it.
        images: those that may go elsewhere, by their paths below the folder.
        others: images that do not, and may have captions as well.

    Raises:
        UserError: captions of images that are not there, twice of one, or in a table of a kind that is not read.
    """
    by_name: dict[PurePath, list[PurePath]] = defaultdict(list)
    known, files = {*images, *others}, _files_beside(folder, images)
    for file in files:
        if file not in known and not is_image_name(file.name) and file.name != _LINES:
            by_name[file.with_suffix("")].append(file)
    beside = {image: by_name[image.with_suffix("")] for image in images}
    tables = [_read_lines(folder, file, known) for file in files if file.name == _LINES]
    tables += _json_of_captions(folder, files, images)
    along = {file for some in beside.values() for file in some} | {table.place for table in tables}
    if odd := [file for file in files if file.name in _OTHER_TABLES]:
        raise UserError(f"{shown(folder / odd[0])} is not read: save its rows as {_LINES}, an object in each line")
    captioned = {image for image in images if any(file.suffix.lower() in _TEXTS for file in beside[image])}
    captioned |= {image for table in tables for image in table.rows}
    return Companions(folder, beside, tables, captioned & {*images}, {*files} - along - known)


def _files_beside(folder: Path, images: Sequence[PurePath]) -> list[PurePath]:
    """All files of the folders that images stand in, and at the top, by their paths below it, in order."""
    places = {PurePath(), *(image.parent for image in images)}
    entries = (place / entry.name for place in places for entry in os.scandir(folder / place) if entry.is_file())
    return sorted(entries)


def _read_lines(folder: Path, table: PurePath, images: Collection[PurePath]) -> _Table:
    rows: dict[PurePath, list[str]] = defaultdict(list)
    for number, line in enumerate(read_bytes(folder / table, _LARGEST).split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{shown(folder / table)}, line {number}"
        content = parse_json(line, where, "write it as JSON in UTF-8")
        name = content.get("file_name") if isinstance(content, dict) else None
        if not isinstance(name, str) or not name:
            raise UserError(f"{where} has no file_name: write an object with file_name in each line")
        image = table.parent / PurePosixPath(name)
        if image not in images:
            raise UserError(f"{where}: there is no image {shown(name)} beside it: remove the line, or mend the name")
        rows[image].append(line.decode().strip())
    return _Table(table, rows)


def _json_of_captions(folder: Path, files: Sequence[PurePath], images: Sequence[PurePath]) -> list[_Table]:
    """The only JSON file at the top, where it is an object of paths of images; any other is none of captions."""
    found = [file for file in files if len(file.parts) == 1 and file.suffix == ".json"]
    if len(found) != 1:
        return []
    content = parse_json(read_bytes(folder / found[0], _LARGEST), shown(folder / found[0]), "write it as JSON in UTF-8")
    if not isinstance(content, dict):
        return []
    keys = paths_by_their_ends([image.as_posix() for image in images], content)
    rows = {
        image: [
            f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(content[key], ensure_ascii=False)}" for key in some
        ]
        for image, some in zip(images, keys.values(), strict=True)
        if some
    }
    return [_Table(found[0], rows)] if rows else []
