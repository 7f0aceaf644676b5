"""Settings replaced by name, as in `--train.steps 5` or {"train.steps": 5}."""

import os
import re
from collections.abc import Collection, Mapping

from iet_agc.config.other_images import changed_images, check_planting, described_by_changes, is_another_set
from iet_agc.config.settings import Settings, documented, fields_of, validate
from iet_agc.runtime.errors import UserError, did_you_mean
from iet_agc.runtime.reading import parse_toml

__all__ = ["customized", "override"]

#: Types of settings whose values are texts, and are written without quotes.
_OF_TEXT: Collection[object] = (str, str | None)


def override(settings: Settings, changes: Mapping[str, object]) -> Settings:
    """Replace settings by name.

    Args:
        settings: where to start from.
        changes: {"train.batch_size": 64}, or {"train.batch_size": "64"}: Python values, paths included; or texts as
            the command line has them, written as in a preset, where strings need no quotes, lists no brackets, and
            "none" stands for nothing.

    Raises:
        UserError: an unknown name (the nearest one is named), or an impossible value or one that is not UTF-8.
    """
    content = settings.model_dump()
    names = [name for name, *_ in documented(settings)]
    for name, value in changes.items():
        name, value = name.replace("-", "_"), os.fspath(value) if isinstance(value, os.PathLike) else value
        if name not in names:
            raise UserError(f"unknown setting {name!r}{did_you_mean(name, names)}")
        # what a shell passes on of other encodings; no file of a run could say it
        if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
            raise UserError(f"setting {name} {value!a} is not UTF-8: write it so, and name files and folders so")
        *section, field = name.split(".")
        target = content[section[0]] if section else content
        is_list = isinstance(target.get(field), tuple)
        owner = fields_of(getattr(settings, section[0])) if section else Settings.model_fields
        is_text = owner[field].annotation in _OF_TEXT
        target[field] = _read(value, is_text, is_list) if isinstance(value, str) else value
    return validate(content)


def customized(preset: Settings, changes: Mapping[str, object]) -> Settings:
    """`override` for a run that starts from a preset: planting and description are those of the preset's own images.

    Args:
        preset: see `load_preset`.
        changes: see `override`. Where they change which images are trained on, the description says so, unless they
            give one.

    Raises:
        UserError: see `override`; or they choose another image set than the preset's, some of which would be planted
            though they do not ask for it.
    """
    settings, given = override(preset, changes), {name.replace("-", "_") for name in changes}
    own, data = preset.data.model_dump(), settings.data.model_dump()
    if is_another_set(own, data):
        check_planting(preset.name, own, data, {name.removeprefix("data.") for name in given})
    if "description" in given or not changed_images(own, data):
        return settings
    return settings.model_copy(update={"description": described_by_changes(preset.name, own, data)})


def _read(text: str, is_text: bool, is_list: bool) -> object:
    """A value that is written as in a preset."""
    return _unquoted(text) if is_text else _parse(text, is_list)


def _unquoted(text: str) -> str | None:
    if text.lower() == "none":
        return None
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _parse(text: str, is_list: bool) -> object:
    if text.lower() == "none":
        return None
    written = f"[{text}]" if is_list and not text.startswith("[") else text
    try:
        return parse_toml(f"value = {written}", "the value")["value"]
    except UserError:
        return text
