"""The curve of a run that was watched: when it starts to copy, and which of its models to keep.

The points are those that were measured while it trained; or, of the models that were kept, new ones, with as many
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
from iet_agc.reporting.curve_page import check_curve_folder, write_curve
from iet_agc.runtime import distributed
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import shown
from iet_agc.runtime.reading import read_json, read_object
from iet_agc.sampling.sample_set import load_samples, sample_run
from iet_agc.training.watched import MARK, read_points, snapshots

__all__ = ["draw_curve"]


def draw_curve(
    run: Path, out: Path, num: int | None = None, steps: int | None = None, device: str = "auto"
) -> dict[str, Any]:
    """Write the curve of a run, as a page, a table and JSON; what `iet-agc curve` does.

    Args:
        run: its folder.
        out: folder of the curve; sample sets of the models stand in its folder "samples", where the same call goes on.
        num: draw so many images with each model that was kept, and measure these; None: what was measured before.
        steps: denoising steps of these images; by default the run's sample.steps.
        device: "auto", "cpu" or "cuda".

    Returns:
        A summary, JSON values only.

    Raises:
        UserError: no run; one without points or, where images are to be drawn, without models; a folder that is taken.
    """
    settings = read_settings(run)
    check_curve_folder(out)
    points = read_points(run)
    measured = "measured while it trained"
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
    found = recommend(points)
    files = write_curve(points, found, {"run": shown(run.resolve().name), "measured": measured}, out)
    return {
        "run": str(run),
        "points": len(points),
        "measured": measured,
        "recommendation": found.model_dump(mode="json"),
        "files": files,
    }


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
