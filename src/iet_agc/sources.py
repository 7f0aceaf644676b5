"""Sources: what a person calls an image set (a path, a run, a name) -> the images, and what a run tells."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from iet_agc.config import is_run, read_settings
from iet_agc.data import DATASETS, ImageSet, load_dataset
from iet_agc.log import read_curve
from iet_agc.samples import load_samples
from iet_agc.telemetry import read_telemetry

__all__ = ["TrainingRecord", "load_part", "read_record"]


@dataclass(frozen=True)
class TrainingRecord:
    """What a run can tell about its training.

    Attributes:
        seen, skipped: how often each training image was drawn, and left out by AGC; int64 (M,).
        curves: per member, the points of its curve.
    """

    seen: Tensor
    skipped: Tensor
    curves: dict[str, list[dict[str, Any]]]


def load_part(source: str, part: str) -> tuple[ImageSet, list[int] | None]:
    """Images of a run, a sample set, a folder, an array or a named image set.

    Args:
        source: a path, or one of `iet_agc.data.DATASETS`.
        part: "train" or "held-out", which part of a run or a named image set; "samples" takes the
            images as they are.

    Returns:
        The images and, of a sample set, their seeds.

    Raises:
        ValueError: nothing there, or it holds no such part.
    """
    path = Path(source)
    if is_run(path) and part != "samples":
        train, held_out = load_dataset(**read_settings(path).data.source())
    elif source in DATASETS and not path.exists():
        train, held_out = load_dataset(source)
    else:
        return load_samples(path)
    images = train if part != "held-out" else held_out
    if len(images) == 0:
        raise ValueError(f"{source} holds out no images: set data.num_train lower, or give other images")
    return images, None


def read_record(run: Path) -> TrainingRecord | None:
    """The telemetry and curves of a finished run; None of anything else."""
    table = run / "telemetry.csv"
    if not table.is_file():
        return None
    curves = {file.stem: read_curve(file) for file in sorted((run / "curves").glob("*.jsonl"))}
    return TrainingRecord(*read_telemetry(table), curves)
