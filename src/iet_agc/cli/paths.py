"""Cheap checks of what a verb is given, before its heavy imports: a wrong path is told in under a second."""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import shown
from iet_agc.runtime.paths import (
    check_audit_place,
    check_compared_place,
    check_held_out_place,
    check_images_place,
    check_model_name,
    check_pipeline_place,
    check_reported_places,
    check_settings_place,
    is_watch,
)
from iet_agc.runtime.reading import check_regular

if TYPE_CHECKING:
    from iet_agc.config.settings import Settings

__all__ = [
    "check_audit",
    "check_card",
    "check_compare",
    "check_curve",
    "check_detect",
    "check_init",
    "check_model_and_images",
    "check_report",
    "check_sample",
    "check_source",
    "check_train",
]


def check_train(settings: "Settings") -> None:
    """The image set of a folder, and the model to start from.

    Raises:
        UserError: one is not there.
    """
    from iet_agc.config.data_settings import FolderData

    data = settings.data
    if isinstance(data, FolderData) and data.root_path is not None and not data.captions:
        check_images_place(data.root_path)
    if isinstance(data, FolderData) and data.held_out:
        check_images_place(Path(data.held_out))
    if settings.init.model:
        check_model_name(settings.init.model)


def check_init(arguments: Namespace) -> None:
    """The folders of images, and the place of the settings.

    Raises:
        UserError: one is not there, or they lie in each other; no file of settings can stand there.
    """
    for folder in (arguments.folder, arguments.held_out):
        if folder is not None and not folder.is_dir():
            what = "is no folder: give the folder that holds the images" if folder.exists() else "is not there"
            raise UserError(f"{shown(folder)} {what}")
    if arguments.held_out:
        check_held_out_place(arguments.held_out, arguments.folder)
    check_settings_place(arguments.out)


def check_sample(arguments: Namespace) -> None:
    """The images of a guard and of AMG, then what draws, then prompts.

    Raises:
        UserError: one is not there.
    """
    for source in (arguments.guard, arguments.amg, arguments.held_out):
        check_source(source)
    check_detect(arguments)


def check_detect(arguments: Namespace) -> None:
    """What draws, then files of prompts.

    Raises:
        UserError: one is not there.
    """
    _check_model(arguments.source)
    for file in (arguments.prompts, getattr(arguments, "memorized", None)):
        if file is not None:
            check_regular(file)


def check_model_and_images(arguments: Namespace) -> None:
    """The model, then the two sets of images.

    Raises:
        UserError: one is not there.
    """
    _check_model(arguments.source)
    for source in (arguments.train, arguments.held_out):
        check_source(source)


def _check_model(source: Path) -> None:
    """A finished run, or a pipeline folder."""
    from iet_agc.config.run_folder import is_run

    if not is_run(source):
        check_pipeline_place(source)
    elif not any((source / weights).exists() for weights in ("raw", "ema")):
        raise UserError(f"{source} is not finished: run the same 'iet-agc train' again to finish it")


def check_audit(arguments: Namespace) -> None:
    """The three sets of images, and what says which are copies.

    Raises:
        UserError: one is not there.
    """
    for source in (arguments.train, arguments.samples, arguments.held_out):
        check_source(source)
    if isinstance(arguments.groups, str) and not Path(arguments.groups).exists():
        raise UserError(f"{shown(Path(arguments.groups))} is not there: give a table of copies", "groups")


def check_report(arguments: Namespace) -> None:
    """The audits, or the one watch.

    Raises:
        UserError: one is not there.
    """
    check_reported_places(arguments.audits)


def check_card(arguments: Namespace) -> None:
    """The run, and its audits.

    Raises:
        UserError: one is not there.
    """
    from iet_agc.config.run_folder import read_settings

    read_settings(arguments.run_folder)
    for folder in arguments.audits:
        check_audit_place(folder)


def check_compare(arguments: Namespace) -> None:
    """The runs, or their audits.

    Raises:
        UserError: one is not there.
    """
    for folder in arguments.runs:
        check_compared_place(folder)


def check_curve(run: Path, out: Path) -> None:
    """The run or the watch, and the folder of its curve.

    Raises:
        UserError: no such thing, or one that was not watched; a folder that is taken.
    """
    from iet_agc.config.run_folder import read_settings
    from iet_agc.reporting.curve_page import check_curve_folder

    if is_watch(run):
        check_curve_folder(out)
        return
    read_settings(run)
    if not (run / "watch.jsonl").exists() and not (run / "watched").is_dir():
        raise UserError(
            f"{shown(run)} was not watched: train with run.watch_every, and with run.keep_watched to keep its models"
        )
    check_curve_folder(out)


def check_source(source: str | None) -> None:
    """What a person calls an image set: a path, or the name of one that needs no root.

    Raises:
        UserError: it is neither.
    """
    from iet_agc.config.data_settings import found_by_name

    if source is not None and not Path(source).exists() and not found_by_name(source):
        check_images_place(Path(source))
