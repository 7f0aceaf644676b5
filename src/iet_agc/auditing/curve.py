"""The curve of a run that was watched, or of a watch on any loop: when it starts to copy, and which point to keep.

The points are those that were measured while it trained; or, of the models that a run kept, new ones, with as many
images as are asked for.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iet_agc.auditing.sources import load_part
from iet_agc.config.run_folder import read_settings
from iet_agc.config.settings import Settings
from iet_agc.data.image_set import ImageSet
from iet_agc.metrics.curve import Point, point_of, recommend
from iet_agc.metrics.watch import Watch
from iet_agc.reporting.curve_page import check_curve_folder, write_curve, write_curve_page
from iet_agc.runtime import distributed
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import shown
from iet_agc.runtime.reading import read_json, read_object
from iet_agc.sampling.sample_set import load_samples, sample_run
from iet_agc.training.watched import MARK, WatchRecord, read_points, read_watch, snapshots

__all__ = ["draw_curve", "report_watch"]


def draw_curve(
    run: Path, out: Path, num: int | None = None, steps: int | None = None, device: str = "auto"
) -> dict[str, Any]:
    """Write the curve of a run, as a page, a table and JSON; what `iet-agc curve` does.

    Args:
        run: its folder, or that of an `iet_agc.MemorizationWatch`.
        out: folder of the curve; sample sets of the models stand in its folder "samples", where the same call goes on.
        num: draw so many images with each model that was kept, and measure these; None: what was measured before.
        steps: denoising steps of these images; by default the run's sample.steps.
        device: "auto", "cpu" or "cuda".

    Returns:
        A summary, JSON values only.

    Raises:
        UserError: no run; one without points or, where images are to be drawn, without models; a folder that is taken.
    """
    record = read_watch(run)
    check_curve_folder(out)
    if record is not None:
        if num is not None:
            raise UserError(f"{shown(run)} is a watch, which holds no models to draw with", "num_images")
        points, measured = _points_of_watch(run), _cost(record)
    else:
        points, measured = _points_of_run(run, out, num, steps, device)
    found = recommend(points, by_quality=record is not None)
    files = write_curve(points, found, {"run": shown(run.resolve().name), "measured": measured}, out)
    return {
        "run": str(run),
        "points": len(points),
        "measured": measured,
        "recommendation": found.model_dump(mode="json"),
        "files": files,
    }


def report_watch(watch: Path, file: Path) -> Path:
    """Write the page of a watch on any loop; what `iet-agc report` does with one.

    Args:
        watch: folder of an `iet_agc.MemorizationWatch`.
        file: the page.

    Returns:
        `file`.

    Raises:
        UserError: no such folder, or one without points; `file` is there and is no such page.
    """
    record = read_watch(watch)
    if record is None:
        raise UserError(f"{shown(watch)} is no folder of a watch")
    points = _points_of_watch(watch)
    facts = {"run": shown(watch.resolve().name), "measured": _cost(record)}
    return write_curve_page(points, recommend(points, by_quality=True), facts, file)


def _points_of_watch(watch: Path) -> list[Point]:
    points = read_points(watch)
    if not points:
        raise UserError(f"{shown(watch)} has no points yet: they come while the training goes on")
    return points


def _cost(record: WatchRecord) -> str:
    share = record.seconds_watching / record.seconds_training if record.seconds_training else 0.0
    return f"measured while it trained; watching took {100 * share:.1f} % of the training's time"


def _points_of_run(run: Path, out: Path, num: int | None, steps: int | None, device: str) -> tuple[list[Point], str]:
    """The points of a run, and how they were measured."""
    settings = read_settings(run)
    points, measured = read_points(run), "measured while it trained"
    if num is not None:
        steps = steps or settings.sample.steps
        points = _measured(run, out, settings, num, steps, device)
        measured = f"measured by {num:,} images of each model, {steps} denoising steps"
    if not points:
        raise UserError(
            f"{shown(run)} has no points: train it with run.watch_every, or give a number of images to draw with the "
            "models that were kept",
            "num_images",
        )
    return points, measured


def _measured(run: Path, out: Path, settings: Settings, num: int, steps: int, device: str) -> list[Point]:
    """A point for each model that was kept."""
    kept = snapshots(run)
    if not kept:
        raise UserError(f"{shown(run)} kept no models to draw with: train it with run.keep_watched", "num_images")
    train, _ = load_part(str(run), "train")
    held_out = _held_out(run)
    where = distributed.choose_device(device)
    watch = Watch(train.images, None if held_out is None else held_out.images, settings.data.flips, where)
    before = {point.step: point for point in read_points(run)}
    points = []
    for step, folder in kept.items():
        samples = _samples(folder, out / "samples" / folder.name, settings, num, steps, device)
        points.append(_point(watch, samples, step, read_object(folder / MARK)["images_seen"], before.get(step)))
    return points


def _held_out(run: Path) -> ImageSet | None:
    """What a run holds out; None where that is nothing."""
    from iet_agc.training.identity import read_identity

    known = read_identity(run) or {}
    return load_part(str(run), "held-out")[0] if known.get("held_out") else None


def _samples(folder: Path, out: Path, settings: Settings, num: int, steps: int, device: str) -> ImageSet:
    """The sample set of one model, drawn or found."""
    given: dict[str, Any] = {"num": num, "steps": steps, "precision": settings.sample.precision}
    prompts: Sequence[str] = ()
    if (captions := folder / "captions.json").is_file():
        texts: Any = read_json(captions, "restore it from a copy")
        prompts = [some[0] for some in texts]
        given["guidance"] = settings.sample.guidance
    sample_run(folder / settings.sample.weights, out, given, device=device, prompts=prompts)
    return load_samples(out)[0]


def _point(watch: Watch, samples: ImageSet, step: int, images_seen: int, before: Point | None) -> Point:
    """What is measured anew, beside what only the training could know."""
    found = watch.measure(samples.images)
    kept = ("seen", "skipped", "skip_rate", "losses", "agreement")
    unknown = {"seen": 0, "skipped": 0, "skip_rate": 0.0, "losses": None, "agreement": None}
    known = unknown if before is None else {name: getattr(before, name) for name in kept}
    return point_of(found, step=step, images_seen=images_seen, **known)
