"""Boards made up for tests: a miniature of one that runs in seconds, and results of runs that never were."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iet_agc.config.board import Board, load_board, plan
from iet_agc.metrics.intervals import share
from iet_agc.reporting.board import BoardRecord, CellResult, board_record, standing

#: 60 digits, two steps: three points over two seeds.
MINIATURE = """
baseline = "default"
budget = 16
samples = 30
seeds = [0, 1]
methods = ["default"]

[settings]
data.num_train = 60
data.planted_images = 0
model.channels = 8
model.groups = 4
train.batch_size = 8
sample.steps = 2
run.preview_images = 0
run.device = "cpu"

[[data]]
name = "digits"
preset = "digits-default"

[[method]]
name = "skip"
knob = { setting = "method.random_skip", values = [0.1, 0.5] }
"""


def written(folder: Path, text: str = MINIATURE, name: str = "board") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    return folder / f"{name}.toml"


def board(folder: Path, text: str = MINIATURE) -> Board:
    return load_board(str(written(folder, text)))


def result(cell: Any, copied: int, distance: float, **changes: Any) -> CellResult:
    """What a run came to, of which so many of 1,000 samples are copied."""
    content: dict[str, Any] = {
        "copied": share(copied, 1000),
        "cut": 0.1,
        "below_015": share(copied, 1000),
        "held_out_distance": distance,
        "train_distance": distance / 2,
        "extractor": "pixels",
        "images_seen": cell.images_seen,
        "skipped": 0.0,
        "seconds": 2.0,
        "verdict": "copies",
    }
    return CellResult(**standing(cell), **(content | changes))


def record_of(made: Board, numbers: Sequence[tuple[int, float]]) -> BoardRecord:
    """The record of a board whose runs came to (copied, distance), in the order of its plan."""
    cells = plan(made)
    results = [result(cell, *each) for cell, each in zip(cells, numbers, strict=True)]
    return board_record(made, results, {"budget": made.budget}, {"iet-agc": "0.1.0"})
