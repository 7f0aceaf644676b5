"""One training for several runs that differ in their names and samples only."""

import shutil
from collections.abc import Callable
from pathlib import Path

from iet_agc.config.fingerprint import as_found, differences
from iet_agc.config.run_folder import claim_folder, is_run, read_settings
from iet_agc.config.settings import Settings
from iet_agc.runtime.files import digest, replacing_folder
from iet_agc.training.identity import damaged_exports, is_going_on

__all__ = ["NOT_OF_TRAINING", "take_training", "training_of"]

#: What stands in a run's folder and does not follow from its training: its settings, and what was made of it.
NOT_OF_TRAINING = frozenset({"config.json", "settings.toml", "samples", "audit", "cell.json", "README.md"})

#: Settings of section sample that training looks at, for previews and the watch.
_SHOWN = {"steps", "weights", "guidance"}


def training_of(settings: Settings) -> str:
    """SHA-256 of all that training leaves in a folder follows from, but for the folder's own settings."""
    content = settings.model_dump(mode="json", exclude={"name", "description", "sample"})
    shows = settings.run.preview_images > 0 or settings.run.watch_every > 0
    return digest(content | {"sample": settings.sample.model_dump(mode="json", include=_SHOWN) if shows else {}})


def take_training(source: Path, settings: Settings, out: Path) -> bool:
    """Make `out` the finished run of these settings by the training of another, as it would be by its own.

    Args:
        source: the folder of a run with the same `training_of`.
        settings: of the run in `out`.
        out: its folder, whole or not there afterwards.

    Returns:
        Whether it was done: `out` holds no run yet, and `source` is finished and as it was left.
    """
    if is_run(out) or not is_run(source) or is_going_on(source) or damaged_exports(source) != []:
        return False
    trained = read_settings(source)
    if differences(trained, as_found(settings, trained)):
        return False
    own = {name: getattr(settings, name) for name in ("name", "description", "sample", "run")}
    with replacing_folder(out) as unfinished:
        claim_folder(trained.model_copy(update=own), unfinished)
        shutil.copytree(source, unfinished, ignore=_not_of_training(source), dirs_exist_ok=True)
    return True


def _not_of_training(run: Path) -> Callable[[str, list[str]], set[str]]:
    """What `copytree` is to leave out."""

    def ignored(folder: str, names: list[str]) -> set[str]:
        hidden = {name for name in names if name.startswith(".")}
        return hidden | (NOT_OF_TRAINING & {*names}) if Path(folder) == run else set()

    return ignored
