"""Presets: TOML files with one section per class of settings.

`extends = "NAME"` at its top takes what a preset leaves out from another one; `extends = "FILE.toml"` in a file from
another file, whose path is relative to the first one.
"""

import tomllib
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from iet_agc.config.extending import merged, read_base
from iet_agc.config.other_images import check_planting, described_by_changes, is_another_set
from iet_agc.config.settings import Settings, validate
from iet_agc.runtime.errors import UserError, did_you_mean
from iet_agc.runtime.files import shown
from iet_agc.runtime.reading import read_toml

__all__ = ["load_preset", "preset_names"]


def preset_names() -> list[str]:
    """The presets that come with the package, sorted."""
    return sorted(file.name.removesuffix(".toml") for file in _preset_folder().iterdir() if file.name.endswith(".toml"))


def load_preset(name: str) -> Settings:
    """The settings of a preset.

    Args:
        name: of a preset that comes with the package, or the path of a .toml file in the same form.

    Raises:
        UserError: there is none of that name (the message names the nearest), or the file is no preset.
    """
    if name.endswith(".toml"):
        return _read_preset(Path(name))
    if name not in preset_names():
        raise UserError(f"unknown preset {name!r}{did_you_mean(name, preset_names())}; 'iet-agc presets' lists them")
    return validate({"name": name} | _content(name))


def _content(name: str) -> dict[str, Any]:
    """What a preset of the package says, what it extends included."""
    return _extended(_packaged(name))


def _packaged(name: str) -> dict[str, Any]:
    """What the file of a preset of the package says."""
    if name not in preset_names():
        what = f"extends {name!r}, which is no preset{did_you_mean(name, preset_names())}"
        raise UserError(f"{what}; a file is named by its path, with .toml")
    return tomllib.loads((_preset_folder() / f"{name}.toml").read_text(encoding="utf-8"))


def _extended(content: dict[str, Any], files: Sequence[Path] = ()) -> dict[str, Any]:
    """The content of a preset on top of what it extends, section by section.

    Args:
        content: of the preset.
        files: see `read_base`.
    """
    base = content.pop("extends", None)
    if base is None:
        return content
    below = _extended(*read_base(base, files, _packaged))
    both = merged(below, content)
    validate({"name": str(base)} | both)  # what follows compares values of the right kinds
    own, data = below.get("data", {}), both.get("data", {})
    if isinstance(data, dict) and is_another_set(own, data):
        check_planting(str(base), own, data, content["data"])
        both |= {"description": content.get("description", described_by_changes(str(base), own, data))}
    return both


def _read_preset(file: Path) -> Settings:
    content = read_toml(file)
    try:
        return validate({"name": file.stem} | _extended(content, [file]))
    except UserError as error:
        raise UserError(f"{shown(file)} is no preset: {error}") from None


def _preset_folder() -> Traversable:
    return resources.files("iet_agc.config") / "presets"
