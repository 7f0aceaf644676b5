"""What Anti-Gradient Control did to each training image, as a table: RUN/telemetry.csv.

image,member,seen,skipped        one row per training image, in the order of the training set
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iet_agc.files import replace_text

__all__ = ["TrainingRecord", "read_telemetry", "write_telemetry"]


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


def write_telemetry(file: Path, shards: Sequence[Tensor], seen: Sequence[Tensor], skipped: Sequence[Tensor]) -> None:
    """Write the table.

    Args:
        file: where.
        shards: per member, the training images of its shard, int64 (n,).
        seen: per member, how often each of them was drawn, int64 (n,).
        skipped: per member, how often it was left out of the gradient, int64 (n,).
    """
    rows = [
        (image, member, *counts)
        for member, columns in enumerate(zip(shards, seen, skipped, strict=True))
        for image, *counts in zip(*(column.tolist() for column in columns), strict=True)
    ]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["image", "member", "seen", "skipped"])
    table.writerows(sorted(rows))
    replace_text(file, text.getvalue())


def read_telemetry(file: Path) -> tuple[Tensor, Tensor]:
    """How often each training image was seen, and skipped; int64 (M,) each.

    Raises:
        ValueError: the file is damaged; the message names it.
    """
    try:
        with file.open() as stream:
            rows = [(int(row["seen"]), int(row["skipped"])) for row in csv.DictReader(stream)]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is not a table of image, member, seen, skipped: {error}") from None
    counts = torch.tensor(rows, dtype=torch.int64).reshape(-1, 2)
    return counts[:, 0], counts[:, 1]
