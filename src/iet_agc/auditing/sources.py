"""Sources: what a person calls an image set (a path, a run, a name) -> the images, and what comes with them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from iet_agc.auditing.guard import Guard, make_guard
from iet_agc.auditing.schema import AuditWarning, LeftOut, UnknownImages, UnknownOrigin
from iet_agc.config.data_settings import found_by_name
from iet_agc.config.run_folder import is_run, read_settings
from iet_agc.data.conversion import Resize, convert
from iet_agc.data.datasets.registry import load_dataset
from iet_agc.data.image_set import ImageSet
from iet_agc.data.mending import Mending
from iet_agc.data.pixel_store import PixelStore
from iet_agc.runtime.curves import read_curve
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.exposure import TrainingRecord, read_telemetry
from iet_agc.runtime.files import shown
from iet_agc.runtime.progress import say
from iet_agc.sampling.sample_set import load_samples, read_origin
from iet_agc.training.identity import check_files, check_images, check_samples, given_images, is_going_on
from iet_agc.training.watched import POINTS, read_points

__all__ = ["Part", "load_guard", "load_part", "read_record", "resize_of", "trained_with_flips"]

#: Of which images a source is asked.
Part = Literal["train", "samples", "held-out"]


def _say(warning: AuditWarning) -> None:
    say(warning.sentence)


def load_part(
    source: str,
    part: Part,
    shape: tuple[int, int, int] | None = None,
    on_images: Callable[[int], object] = lambda count: None,
    resize: Resize = "bicubic",
    warn: Callable[[AuditWarning], object] = _say,
    mending: Mending | None = Mending(),  # noqa: B008 (frozen)
    given: ImageSet | None = None,
    store: PixelStore | None = None,
) -> tuple[ImageSet, list[int] | None]:
    """Images of a run, a sample set, a folder, archives, tables, an array or a named image set.

    Args:
        source: a path or a pattern, see `load_images`, or the name of an image set that needs no root, such as
            "digits".
        part: of a run or a named image set, what it trains on or what it holds out; "samples" are those in RUN/samples,
            and any other images as they are.
        shape: bring every image to this (C, H, W); see `load_images`.
        on_images: called with a number of images that were read, for progress.
        resize: how they are brought to it; what a run trains on or holds out is brought to it as the run says.
        warn: told what could not be compared with what the run says of itself, and what was left out of a folder.
        mending: of a folder, see `load_images`; the images of a run are mended as the run says.
        given: the images, in memory already; `source` is then their name, or the run that was trained on them.
        store: see `load_images`; what a run trains on or holds out, and named image sets, are held in memory.

    Returns:
        The images and, of a sample set, their seeds.

    Raises:
        UserError: nothing there, or it holds no such part; images that are not those of the run's training any more,
            or samples in RUN/samples that were not drawn from its weights.
    """
    path = Path(source)
    if given is not None:
        if part == "train" and is_run(path):
            check_images(path, part, given)
        return (given if shape is None else convert(given, shape, resize)), None
    if is_run(path) and part == "samples":
        if not (path / "samples").exists():
            raise UserError(f"{source} has no samples yet: run 'iet-agc sample {source} --out {source}/samples'")
        path = path / "samples"
    if is_run(path):
        train, held_out = _load_run(path)
        resize = resize_of(source)
    elif (named := found_by_name(source)) and not path.exists():
        train, held_out = load_dataset(named)
    else:
        if part == "samples":
            _check_origin(path, warn)
        found, seeds = load_samples(path, shape, on_images, resize, mending, store)
        if found.left_out:
            warn(LeftOut(source=shown(source), images=part, num=len(found.left_out)))
        return found, seeds
    images = held_out if part == "held-out" else train
    if len(images) == 0:
        raise UserError(f"{source} holds out no images: set data.num_train lower, or give other images")
    if is_run(path) and part != "samples" and not check_images(path, part, images):
        which = "training" if part == "train" else "held-out"
        warn(UnknownImages(source=shown(source), which=which))
    return (images if shape is None else convert(images, shape, resize)), None


def _load_run(run: Path) -> tuple[ImageSet, ImageSet]:
    """What a run's settings train on and hold out; of a run of given images only where these are the same."""
    given = given_images(run)
    try:
        train, held_out = load_dataset(read_settings(run).data)
    except UserError as error:
        if given:
            raise UserError(f"{run} was trained on {given}: give those images themselves, not the run") from error
        raise
    if given:
        check_images(run, "train", train)
    return train, held_out


def _check_origin(samples: Path, warn: Callable[[AuditWarning], object]) -> None:
    """Compare what RUN/samples was drawn from with the weights of RUN; samples in other places may be anything."""
    run = samples.absolute().parent
    if samples.absolute().name == "samples" and is_run(run):
        origin = read_origin(samples)
        if origin is None or not check_samples(run, origin):
            warn(UnknownOrigin(samples=shown(samples), run=shown(run), says_origin=origin is not None))


def read_record(source: str, num_images: int) -> TrainingRecord | None:
    """What a source's training can tell: telemetry and curves of a finished run; None of anything else.

    Raises:
        UserError: telemetry or curves are not as the run left them, or not those of so many training images.
    """
    run = Path(source)
    table = run / "telemetry.csv"
    if not is_run(run) or not table.is_file() or is_going_on(run):
        return None
    files = sorted((run / "curves").glob("*.jsonl"))
    check_files(run, [table, *files, run / POINTS])
    seen, skipped = read_telemetry(table)
    if len(seen) != num_images:
        raise UserError(
            f"{table} has {len(seen)} images, the training set of {source} has {num_images}: if either was changed "
            "after training, give the training images themselves, not the run"
        )
    watch = [point.model_dump(mode="json") for point in read_points(run)]
    return TrainingRecord(seen, skipped, {file.stem: read_curve(file) for file in files}, watch)


def trained_with_flips(source: str) -> bool:
    """Whether a source is a run that mirrored its training images; copies may be mirrored then."""
    run = Path(source)
    return is_run(run) and read_settings(run).data.flips


def resize_of(source: str) -> Resize:
    """How a run resizes its images; of other sources, bicubic."""
    run = Path(source)
    return read_settings(run).data.resize if is_run(run) else "bicubic"


def load_guard(
    train: str,
    held_out: str | None = None,
    flips: bool = False,
    given: Mapping[Part, ImageSet] = MappingProxyType({}),
) -> Guard:
    """The guard against copies from a training set.

    Args:
        train: see `load_part`.
        held_out: real images that were not trained on, at least 99; by default what a run `train` holds out.
        flips: whether mirrored copies count; they do in any case where the run `train` was trained with flips.
        given: those of the two sets that are in memory, see `load_part`.

    Raises:
        UserError: no held-out images, too few, or what `load_part` refuses.
    """
    if held_out is None and not is_run(Path(train)):
        raise UserError(f"the guard by {train} needs real images to set its cut on: give held-out images", "held_out")
    flips = flips or trained_with_flips(train)
    real = load_part(held_out or train, "held-out", mending=None, given=given.get("held-out"))[0]
    return make_guard(load_part(train, "train", mending=None, given=given.get("train"))[0], real, flips)
