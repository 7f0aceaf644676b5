"""What a watch leaves in a run's folder, or in one of its own, read and written:

watch.jsonl              a point of the curve on each line, see `iet_agc.metrics.curve.Point`
recommendation.json      which of them to keep, when the run has ended
watched/step-000000800   the model at a point: pipelines `raw` and `ema`, and watched.json with the SHA-256 of each
                         file; all of it or nothing
memorization-watch.json  in a folder of its own: what is watched, and what that cost; see `WatchRecord`
"""

import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from iet_agc.metrics.curve import Point, Recommendation
from iet_agc.metrics.intervals import Count, Record
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import flush, hashes_below, replace_text, replacing_folder, writing
from iet_agc.runtime.paths import WATCH
from iet_agc.runtime.reading import read_bytes, read_object
from iet_agc.runtime.seal import unsealed, write_sealed

__all__ = [
    "MARK",
    "POINTS",
    "WatchRecord",
    "WatchedImages",
    "add_point",
    "copy_snapshot",
    "drop_snapshots",
    "keep_points",
    "put_point",
    "read_points",
    "read_watch",
    "save_snapshot",
    "snapshot",
    "snapshots",
    "write_recommendation",
    "write_watch",
]

#: The file of points.
POINTS = "watch.jsonl"

#: What makes a snapshot one; written last.
MARK = "watched.json"

_PIPELINES, _CAPTIONS = ("raw", "ema"), "captions.json"

#: What exports pipelines into a folder, replacing files of its own there, and returns what it wrote; `Task.export`.
Export = Callable[[Path, Mapping[str, Collection[str]]], dict[str, dict[str, str]]]


def read_points(run: Path) -> list[Point]:
    """The points of a run's watch, in the order of steps; none where it was not watched.

    A last line that was cut off by a kill is left out.

    Raises:
        UserError: another line is no point.
    """
    file = run / POINTS
    lines = read_bytes(file).split(b"\n")[:-1] if file.exists() else []
    points: list[Point] = []
    for number, line in enumerate(lines):
        try:
            points.append(Point.model_validate_json(line))
        except ValidationError:
            raise UserError(f"{file} is damaged: line {number + 1} is no point; restore it, or remove it") from None
    return points


def keep_points(run: Path, step: int) -> list[Point]:
    """Those up to a step, at which a run goes on; the others, left by a session that was killed, are dropped."""
    points = read_points(run)
    kept = [point for point in points if point.step <= step]
    if (run / POINTS).exists():
        replace_text(run / POINTS, "".join(point.model_dump_json() + "\n" for point in kept))
    return kept


def add_point(run: Path, point: Point) -> None:
    """Append a point."""
    file = run / POINTS
    with writing(file), file.open("a", encoding="utf-8") as stream:
        stream.write(point.model_dump_json() + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def put_point(folder: Path, point: Point) -> list[Point]:
    """Put a point in its place in the order of steps, instead of one that was taken at the same step; all of them."""
    points = [each for each in read_points(folder) if each.step != point.step] + [point]
    points.sort(key=lambda each: each.step)
    replace_text(folder / POINTS, "".join(each.model_dump_json() + "\n" for each in points))
    return points


def write_recommendation(run: Path, recommendation: Recommendation) -> None:
    """Leave the recommendation beside the points."""
    replace_text(run / "recommendation.json", json.dumps(recommendation.model_dump(mode="json"), indent=1) + "\n")


# A watch's own folder ---------------------------------------------------------------------------------------


class WatchedImages(Record):
    """A set of images that a watch compares with.

    Attributes:
        name: for people.
        num: how many.
        sha256: of shape and pixels, hexadecimal.
    """

    name: str
    num: Count
    sha256: str


class WatchRecord(Record):
    """What a watch in a folder of its own looks at, and what that has cost.

    Attributes:
        reference, held_out: training images, and others.
        images, losses: how many are drawn, and compared of either kind, at each point.
        rows: so many at a time.
        flips: whether mirrored copies count.
        prompts: SHA-256 of those that images are drawn for; None without any.
        seconds_training, seconds_watching: of all sessions until the last point.
    """

    kind: Literal["iet-agc watch"] = "iet-agc watch"
    version: Literal[1] = 1
    reference: WatchedImages
    held_out: WatchedImages | None
    images: Annotated[int, Field(ge=1)]
    losses: Annotated[int, Field(ge=1)]
    rows: Annotated[int, Field(ge=1)]
    flips: bool
    prompts: str | None
    seconds_training: Annotated[float, Field(ge=0, le=1e12)] = 0.0
    seconds_watching: Annotated[float, Field(ge=0, le=1e12)] = 0.0

    @property
    def asked(self) -> dict[str, object]:
        """What makes it another watch, by name; not what it has cost."""
        return self.model_dump(mode="json", exclude={"seconds_training", "seconds_watching"})


def read_watch(folder: Path) -> WatchRecord | None:
    """What a folder says of the watch that it holds; None of another folder.

    Raises:
        UserError: it is damaged.
    """
    file = folder / WATCH
    if not file.exists():
        return None
    try:
        return WatchRecord.model_validate_json(json.dumps(read_object(file)))
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "it"
        raise UserError(f"{file} is damaged: {where} is not what a watch writes; restore it, or remove it") from None


def write_watch(folder: Path, record: WatchRecord) -> None:
    """Leave what is watched, and what that has cost, beside the points."""
    replace_text(folder / WATCH, json.dumps(record.model_dump(mode="json"), indent=1) + "\n")


# Snapshots --------------------------------------------------------------------------------------------------


def snapshots(run: Path) -> dict[int, Path]:
    """The folders of all snapshots that are whole, by step."""
    marks = sorted((run / "watched").glob(f"step-*/{MARK}"))
    return {int(mark.parent.name.removeprefix("step-")): mark.parent for mark in marks}


def snapshot(run: Path, step: int) -> Path:
    """Where the snapshot of a step is, or would be."""
    return run / "watched" / f"step-{step:09d}"


def save_snapshot(run: Path, step: int, export: Export, about: Mapping[str, Any]) -> None:
    """Keep the model of a step.

    Args:
        run: its folder.
        step: of a member.
        export: writes the pipelines.
        about: what else is written into watched.json, JSON values only.
    """
    with replacing_folder(snapshot(run, step)) as unfinished:
        export(unfinished, dict.fromkeys(_PIPELINES, ()))
        files = hashes_below(unfinished)
        write_sealed(unfinished / MARK, {"step": step, **about}, files)


def drop_snapshots(run: Path, steps: Collection[int]) -> None:
    """Remove those of some steps; the mark goes first, so that no half of one is left."""
    for step in steps:
        folder = snapshot(run, step)
        (folder / MARK).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def copy_snapshot(run: Path, step: int, own: Mapping[str, Collection[str]]) -> dict[str, dict[str, str]]:
    """Make a snapshot the pipelines of its run; see `Task.export` of arguments and result.

    Raises:
        UserError: it is damaged.
    """
    folder = snapshot(run, step)
    unsealed(folder / MARK, read_object(folder / MARK), "restore it from a copy", None)
    written: dict[str, dict[str, str]] = {}
    for name in _PIPELINES:
        with replacing_folder(run / name, own[name]) as unfinished:
            shutil.copytree(folder / name, unfinished)
            written[name] = hashes_below(unfinished)
    if (folder / _CAPTIONS).is_file():
        shutil.copy2(folder / _CAPTIONS, run / _CAPTIONS)
        flush(run / _CAPTIONS)
    return written
