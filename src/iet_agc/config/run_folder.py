"""What makes a folder a run's: config.json, which a resume reads, and settings.toml, the same for people."""

import json
from pathlib import Path

from iet_agc.config.fingerprint import as_found, differences, goes_on
from iet_agc.config.settings import Settings, documented, validate
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import check_ours, replace_text, shown
from iet_agc.runtime.reading import read_object

__all__ = ["annotated", "check_folder", "claim_folder", "is_run", "read_settings"]


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's."""
    return (folder / "config.json").is_file() and not (folder / "model_index.json").is_file()


def read_settings(folder: Path) -> Settings:
    """The settings of a run.

    Raises:
        UserError: the folder holds no run.
    """
    file = folder / "config.json"
    if not file.exists():
        raise UserError(f"{folder} is not a run: it has no config.json")
    content = read_object(file)
    try:
        return validate(content)
    except UserError as error:
        raise UserError(f"{shown(file)} is damaged: {error}") from None


def check_folder(settings: Settings, folder: Path) -> Settings | None:
    """Find out whether `folder` is free, or holds the run of these settings or one that goes on to it. Writes nothing.

    Ends of a gap that are yet to be found are taken to be those that the run has found: training tells.

    Returns:
        The settings that its run has so far, where it goes on to these, with more rounds or steps; otherwise None.

    Raises:
        UserError: it holds another run, or something else; the message says what differs.
    """
    check_ours(folder, "config.json", {"config.json", "settings.toml"}, "run")
    if not (folder / "config.json").exists():
        return None
    earlier = read_settings(folder)
    settings = as_found(settings, earlier)
    if not (changed := differences(earlier, settings)):
        return None
    if not goes_on(earlier, settings):
        raise UserError(
            f"{folder} holds another run ({'; '.join(changed)}): choose another output, or the settings of then, of "
            + _what_can_be_raised(earlier),
            "out",
        )
    return earlier


def _what_can_be_raised(settings: Settings) -> str:
    if settings.looks_to_its_end:
        return "which none can be raised, since train.learning_rate_fall or train.average_last counts from the end"
    return "which method.rounds can be raised, and train.steps of one round of one member"


def claim_folder(settings: Settings, folder: Path) -> None:
    """Make `folder` the run of these settings, after `check_folder`.

    config.json is what a resume reads; settings.toml says the same to people, with the meaning of each
    setting, and is a preset.

    Raises:
        UserError: see `check_folder`.
    """
    check_folder(settings, folder)
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "settings.toml", annotated(settings))
    replace_text(folder / "config.json", settings.model_dump_json(indent=1) + "\n")


def annotated(settings: Settings) -> str:
    """The settings as a preset file, each with its meaning and unit."""
    lines: list[str] = []
    for dotted, value, meaning in documented(settings):
        section, _, field = dotted.rpartition(".")
        if section and f"[{section}]" not in lines:
            lines += ["", f"[{section}]"]
        line = f"# {field}: none" if value is None else f"{field} = {json.dumps(value, ensure_ascii=False)}"
        lines.append(f"{line:<40} # {meaning}")
    return "\n".join(lines) + "\n"
