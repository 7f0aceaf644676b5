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

from iet_agc.runtime.errors import UserError, in_words
from iet_agc.runtime.files import replace_text
from iet_agc.runtime.reading import read_text

__all__ = ["TrainingRecord", "read_telemetry", "write_telemetry"]


@dataclass(frozen=True)
class TrainingRecord:
    """What a run can tell about its training.

    Attributes:
        seen, skipped: how often each training image was drawn, and left out by AGC; int64 (M,).
        curves: per member, the points of its curve.
        watch: the points of its watch, JSON values only.
    """

    seen: Tensor
    skipped: Tensor
    curves: dict[str, list[dict[str, Any]]]
    watch: Sequence[dict[str, Any]] = ()


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
        UserError: the file is damaged: no such table, rows that are not those of images 0, 1, ..., counts that are no
            whole numbers from 0, or an image skipped more often than seen. The message names the file and the line.
    """
    text = read_text(file, "restore it from a copy")
    try:
        rows = [_counts(number, row) for number, row in enumerate(csv.DictReader(io.StringIO(text, newline="")))]
    except (KeyError, TypeError, AttributeError, ValueError, csv.Error) as error:
        raise UserError(f"{file} is not a table of image, member, seen, skipped: {in_words(error)}") from None
    counts = torch.tensor(rows, dtype=torch.int64).reshape(-1, 2)
    return counts[:, 0], counts[:, 1]


def _counts(number: int, row: dict[str, str]) -> tuple[int, int]:
    """Seen and skipped of a row, which must be that of image `number`."""
    image, seen, skipped = (_whole(row[column]) for column in ("image", "seen", "skipped"))
    if image != number:
        raise UserError(f"line {number + 2} is that of image {image}, not {number}")
    if skipped > seen:
        raise UserError(f"line {number + 2} says skipped {skipped}, more than seen {seen}")
    return seen, skipped


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) < 2**63):
        raise UserError(f"{text!r} is no count")
    return int(text)
