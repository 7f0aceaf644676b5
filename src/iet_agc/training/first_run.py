"""From a folder of images to a file of settings that fits it: what `iet-agc init` does."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from iet_agc.config.data_settings import FolderData
from iet_agc.config.first_settings import (
    ENOUGH_HELD_OUT,
    Found,
    Machine,
    Method,
    as_settings,
    as_toml,
    choose_size,
    first_settings,
)
from iet_agc.config.settings import Settings
from iet_agc.data.mending import Mending, counts
from iet_agc.data.survey import Survey, look_at, survey_folder
from iet_agc.runtime.distributed import choose_device
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import replace_text, shown, writing
from iet_agc.runtime.paths import check_held_out_place, check_settings_place
from iet_agc.runtime.progress import phase, progress_bar
from iet_agc.runtime.reading import read_text
from iet_agc.training.trial import Trial, machine, try_out

__all__ = ["init_folder"]

#: What each option of mending is for, for people.
_WHY = {
    "orient": "{} are turned, as their EXIF orientation says",
    "background": "{} are transparent in places, and put on this colour",
    "on_bad": "{} cannot be used, and are left out",
}

#: Training images that a trial is given at most.
_TRIED = 256


def init_folder(
    folder: Path,
    out: Path,
    *,
    held_out: Path | None = None,
    mending: Mending = Mending(),  # noqa: B008 (frozen)
    method: Method = "agc",
    size: int | None = None,
    device: str = "auto",
) -> dict[str, object]:
    """Look at a folder of images, choose settings, try them for a few steps, and write them down.

    Args:
        folder: of the images.
        out: the file of settings. One that is there stays, and is refused if it says something else.
        held_out: a folder of images that are never trained on; None holds out some of the folder's.
        mending: what to do about files that cannot be used; the settings say what of it was needed.
        method: see `first_settings`.
        size: pixels of a side; None chooses, see `choose_size`.
        device: "auto", "cpu" or "cuda".

    Returns:
        What was found, chosen and measured, JSON values only.

    Raises:
        UnusableFilesError: files that cannot be used and are not mended.
        UserError: no such folder, held-out images among the others, too few images, or a file in the way.
    """
    check_settings_place(out)
    if held_out:
        check_held_out_place(held_out, folder)
    where = choose_device(device)
    found_machine = machine(where)

    def shape(sizes: Sequence[tuple[int, int, int]]) -> tuple[int, int, int]:
        equal = len({each[1:] for each in sizes}) == 1 and sizes[0][1] == sizes[0][2]
        side = choose_size([min(each[1:]) for each in sizes], equal, found_machine.device, size)
        return max(each[0] for each in sizes), side, side

    with progress_bar("look", None, unit="image") as bar:
        looked = look_at(folder, shape, held_out, mending, bar.update)
    with progress_bar("compare", 100, unit="") as bar:
        survey = survey_folder(folder, looked, lambda share: bar.update(100 * share))
    found = _found(folder, survey, held_out, mending)
    choices = first_settings(found, found_machine, method)
    settings = as_settings(choices, out.stem)
    _check_in_the_way(out, text := as_toml(choices, _heading(folder, out)))
    tried = survey.images.take(torch.arange(min(_TRIED, len(survey.images))))
    with phase("try"):
        trial = try_out(settings, tried, where)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_text(out, text)
    return _summary(folder, out, survey, settings, found_machine, trial)


def _check_in_the_way(out: Path, text: str) -> None:
    """Refuse to replace other settings: a person may have changed them."""
    if out.exists() and read_text(out) != text:
        raise UserError(f"{shown(out)} is there and says something else: choose another output, or remove it", "out")


def _found(folder: Path, survey: Survey, held_out: Path | None, mending: Mending) -> Found:
    """What settings follow from."""
    _, height, _ = survey.images.shape
    files = (*survey.images.treated, *(survey.held_out.treated if survey.held_out else ()))
    treated = counts(files)
    needed = {
        "orient": treated.get("oriented", 0),
        "background": treated.get(f"put on {mending.background}", 0),
        "on_bad": sum(count for done, count in treated.items() if done.startswith("left out")),
    }
    return Found(
        root=str(folder.absolute()),
        images=len(survey.images) - survey.copies.redundant,
        channels=survey.images.shape[0],
        size=height,
        as_they_are=all(size[1:] == (height, height) for size in survey.sizes),
        held_out=str(held_out.absolute()) if held_out else None,
        deduplicate=survey.copies.deduplicate,
        mending=[
            (option, getattr(mending, option), _WHY[option].format(f"{count} files"))
            for option, count in needed.items()
            if count
        ],
        captions=survey.captions,
        classes=survey.classes,
    )


def _heading(folder: Path, out: Path) -> list[str]:
    """The comment at the top of the file."""
    return [
        f"Settings for the images of {shown(folder)}, written by 'iet-agc init'. Every line may be changed.",
        f"What there is to set, and what it means: iet-agc train {out.name} --help",
    ]


def _summary(
    folder: Path, out: Path, survey: Survey, settings: Settings, place: Machine, trial: Trial
) -> dict[str, object]:
    """What was found, chosen and measured."""
    images, data, copies = survey.images, settings.data, survey.copies
    used = len(images) - copies.redundant
    num_train = data.num_train or used
    held_out = len(survey.held_out) if survey.held_out else used - num_train
    widths, heights = [size[2] for size in survey.sizes], [size[1] for size in survey.sizes]
    side = images.shape[1]
    seen = settings.total_steps * settings.train.batch_size
    return {
        "settings": str(out),
        "folder": str(folder),
        "images": len(images),
        "formats": dict(survey.formats),
        "grey": sum(size[0] == 1 for size in survey.sizes),
        "width": [min(widths), max(widths)],
        "height": [min(heights), max(heights)],
        "enlarged": sum(short < side for short in survey.short_sides),
        "mending": counts(images.treated),
        "copies": asdict(copies),
        "captions": survey.captions,
        "classes": survey.classes,
        "training_images": num_train,
        "held_out_images": held_out,
        "held_out_from": str(data.held_out if isinstance(data, FolderData) and data.held_out else folder),
        "held_out_copies": survey.held_out_copies,
        "shape": list(images.shape),
        "members": settings.method.members,
        "rounds": settings.method.rounds,
        "steps": settings.total_steps,
        "batch_size": settings.train.batch_size,
        "images_seen": seen,
        "device": place.device,
        "parameters": trial.parameters,
        "seconds_per_step": round(trial.seconds_per_step, 4),
        "train_seconds": round(settings.total_steps * trial.seconds_per_step, 1),
        "samples": settings.sample.num,
        "sample_seconds": round(settings.sample.num * trial.seconds_per_image, 1),
        "memory": trial.memory,
        "warnings": _warnings(survey, held_out),
    }


def _warnings(survey: Survey, held_out: int) -> list[str]:
    """What a person should know before training, sentences without their full stops."""
    warnings = []
    if held_out < ENOUGH_HELD_OUT:
        warnings.append(
            f"{held_out} held-out images are too few: an audit needs {ENOUGH_HELD_OUT} that are no copies of training "
            "images to tell copies from chance. Give more images, or a folder of held-out ones"
        )
    if survey.held_out_copies:
        warnings.append(
            f"{survey.held_out_copies} held-out images are copies of images of the folder: an audit does not count them"
        )
    if survey.copies.looked_for == "exact":
        warnings.append(
            "Near copies were not looked for among so many images: 'iet-agc "
            "duplicates' does, and data.deduplicate near leaves them out"
        )
    return warnings
