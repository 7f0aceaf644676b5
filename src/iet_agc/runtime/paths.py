"""Whether what a path names is there at all: asked at once, before what reads it takes seconds to import. No torch.

Whoever reads such a path asks here as well, so that a wrong one is told in the same words by both.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import shown
from iet_agc.runtime.packed_files import is_packed_name, packed_files
from iet_agc.runtime.reading import check_regular

__all__ = [
    "WATCH",
    "check_audit_place",
    "check_compared_place",
    "check_held_out_place",
    "check_images_place",
    "check_model_name",
    "check_pipeline_place",
    "check_reported_places",
    "check_settings_place",
    "is_watch",
    "network_file",
    "network_options",
]

#: What makes a folder that of a watch on any loop, see `iet_agc.training.watched`.
WATCH = "memorization-watch.json"

_ARRAYS = {".npz", ".npy"}


def check_images_place(path: Path) -> None:
    """Refuse what is neither a folder nor named as an array file, an archive, a table or a pattern of these.

    Raises:
        UserError: it is none of them, or there is no such file.
    """
    if os.path.isdir(path):
        return
    if is_packed_name(path):
        for file in packed_files(path):
            check_regular(file)
        return
    if path.suffix.lower() not in _ARRAYS:
        raise UserError(f"{shown(path)} is not a folder of images, nor an .npz, .npy, .tar or .parquet file")
    check_regular(path)


def check_held_out_place(held_out: Path, root: Path) -> None:
    """Refuse held-out images that lie among those that are trained on, or around them.

    Raises:
        UserError: they do.
    """
    place, other = (Path(os.path.realpath(each)) for each in (held_out, root))
    if place == other or place in other.parents or other in place.parents:
        raise UserError(
            f"{shown(held_out)} and {shown(root)} lie in each other, and held-out images must not be trained on: give "
            "a folder beside it",
            "held_out",
        )


def check_settings_place(file: Path) -> None:
    """Refuse a place where no file of settings can stand.

    Raises:
        UserError: its name is none of a settings file, or there is a folder.
    """
    if file.suffix != ".toml":
        raise UserError(f"{shown(file)}: settings are read from files named .toml, name it so", "out")
    if file.is_dir():
        raise UserError(f"{shown(file)} is a folder: name a file", "out")


def check_pipeline_place(folder: Path) -> None:
    """Refuse a folder without a pipeline's index.

    Raises:
        UserError: it is not there.
    """
    if not (folder / "model_index.json").is_file():
        raise UserError(f"{folder} is not a diffusers pipeline: it has no model_index.json")


def check_audit_place(folder: Path) -> None:
    """Refuse a folder without audit.json.

    Raises:
        UserError: it is not there.
    """
    if not (file := folder / "audit.json").is_file():
        raise UserError(f"{file} is not there: give a folder that 'iet-agc audit --out' wrote")


def is_watch(folder: Path) -> bool:
    """Whether a folder is that of a watch on any loop, an `iet_agc.MemorizationWatch`."""
    return (folder / WATCH).is_file()


def network_file(name: str) -> Path:
    """The file that a feature network is named by, without the options that may stand behind an ONNX file."""
    path, dot, _ = name.partition(".onnx?")
    return Path(path + dot.removesuffix("?"))


def network_options(name: str) -> str:
    """What stands behind it, such as "size=224x224"; nothing of other files."""
    return name.partition(".onnx?")[2]


def check_reported_places(folders: Sequence[Path]) -> None:
    """Refuse what no page is made of: of audits one is, and of one watch.

    Raises:
        UserError: a folder is neither, or there is a watch among others.
    """
    if len(folders) == 1 and is_watch(folders[0]):
        return
    for folder in folders:
        if is_watch(folder):
            raise UserError(f"{shown(folder)} is a watch, which has a page of its own: give it alone")
        check_audit_place(folder)


def check_compared_place(folder: Path) -> None:
    """Refuse a folder that is neither a run nor an audit, or in an audit's folder of a run.

    Raises:
        UserError: it is neither.
    """
    own = folder.parent if folder.name == "audit" else folder
    if not any((each / name).exists() for each in (folder, own) for name in ("config.json", "audit.json")):
        raise UserError(f"{folder} is not a run: it has no config.json; and no audit: it has no audit.json")


def check_model_name(name: str) -> None:
    """Refuse a model to start from that is neither on the disk nor named as one of the hub.

    Raises:
        UserError: it is neither.
    """
    if not Path(name).exists() and not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise UserError(f"{name} is no run, no folder and no hub id such as google/ddpm-cifar10-32")
