"""The curve of a run: a page, a table and its numbers. No torch here."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iet_agc.metrics.curve import Point, Recommendation
from iet_agc.reporting import charts
from iet_agc.reporting.curve_charts import watch_charts
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import check_replaceable, holds_others, replace_text, writing
from iet_agc.runtime.tables import table_text

__all__ = ["CURVE_FILES", "check_curve_folder", "write_curve", "write_curve_page"]

#: What a curve's folder holds, by kind, and what tells each file from others of its name.
CURVE_FILES = {"html": "curve.html", "csv": "curve.csv", "json": "curve.json"}
_MARKS = {"html": 'content="iet-agc curve"', "csv": "step,images_seen,", "json": '"kind": "iet-agc curve"'}

#: Beside them, sample sets of the snapshots.
_SAMPLES = "samples"


def check_curve_folder(out: Path) -> None:
    """Refuse a folder that holds something else, before any work is done.

    Raises:
        UserError: it does, or it is a file.
    """
    with writing(out):
        if out.exists() and not out.is_dir():
            raise UserError(f"{out} is a file, and a curve is a folder: choose another output", "out")
        if holds_others(out, {*CURVE_FILES.values(), _SAMPLES}):
            raise UserError(f"{out} holds other things than a curve: choose another output", "out")
        for kind, name in CURVE_FILES.items():
            check_replaceable(out / name, _MARKS[kind], "curve")


def write_curve(points: Sequence[Point], found: Recommendation, facts: Mapping[str, Any], out: Path) -> dict[str, str]:
    """Write the curve of a run.

    Args:
        points: at least one, in the order of steps.
        found: the recommendation.
        facts: of the run and of how its points were measured, JSON values only: "run", "measured".
        out: folder, see `check_curve_folder`.

    Returns:
        The paths, by "html", "csv" and "json".
    """
    text = _page(points, found, facts)
    content = {"kind": "iet-agc curve", "version": 1, **facts, "recommendation": found.model_dump(mode="json")}
    content["points"] = [point.model_dump(mode="json") for point in points]
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        replace_text(out / CURVE_FILES["json"], json.dumps(content, indent=1) + "\n")
        replace_text(out / CURVE_FILES["csv"], _table(points))
        replace_text(out / CURVE_FILES["html"], text)
    return {kind: str(out / name) for kind, name in CURVE_FILES.items()}


def write_curve_page(points: Sequence[Point], found: Recommendation, facts: Mapping[str, Any], file: Path) -> Path:
    """Write the page alone into a file, which appears whole or not at all.

    Args:
        points, found, facts: see `write_curve`.
        file: the page; replaced if it is there and is one of these.

    Returns:
        `file`.

    Raises:
        UserError: `file` is a folder, something else than such a page, or cannot be written.
    """
    with writing(file):
        check_replaceable(file, _MARKS["html"], "curve")
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, _page(points, found, facts))
    return file


def _page(points: Sequence[Point], found: Recommendation, facts: Mapping[str, Any]) -> str:
    with charts.style():
        return charts.page(
            "curve_page.html.j2",
            {},
            title=f"When {facts['run']} starts to copy",
            points=points,
            recommendation=found,
            facts=facts,
            charts=watch_charts(points, found),
        )


def _table(points: Sequence[Point]) -> str:
    """A row per point; nothing where nothing is known."""
    return table_text([_row(point) for point in points])


def _row(point: Point) -> dict[str, object]:
    low, high = point.copied.ci95
    losses, agreement, distance = point.losses, point.agreement, point.distance
    return {
        "step": point.step,
        "images_seen": point.images_seen,
        "samples": point.copied.total,
        "copied": point.copied.count,
        "share": point.copied.share,
        "share_low": low,
        "share_high": high,
        "least": point.least,
        "above_chance": int(point.above_chance),
        "distance": distance and distance.value,
        "loss_train": losses and losses.train,
        "loss_held_out": losses and losses.held_out,
        "agreement": agreement and agreement.value,
        "adapter": point.adapter and point.adapter.value,
        "skip_rate": point.skip_rate if point.seen else None,
    }
