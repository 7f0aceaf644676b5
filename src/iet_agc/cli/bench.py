"""The verb bench: a board of methods to runs, a table and a page."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iet_agc.runtime.errors import UserError
from iet_agc.runtime.torchrun import is_one_of_several

if TYPE_CHECKING:
    from iet_agc.reporting.board import ArmResult, BoardRecord

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the verb takes."""
    parser.add_argument(
        "board", metavar="BOARD", help="a .toml file that says which methods, data and seeds; or the package's 'small'"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of runs, tables and page")
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="runs side by side, each in a process (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> tuple[int, object]:
    """Read the board, do its runs; 1 where one of them failed. See `iet_agc.api.bench.run_board`."""
    if is_one_of_several():
        raise UserError("bench starts processes of its own: run it without torchrun")
    from iet_agc.config.board import load_board, plan

    board = load_board(arguments.board)
    plan(board)  # impossible settings are told before heavy imports

    from iet_agc.api.bench import run_board
    from iet_agc.runtime.malloc import keep_freed_memory

    keep_freed_memory()
    record = run_board(board, arguments.out, arguments.jobs)
    return int(bool(record.failures)), _result(record, arguments.out)


def _result(record: "BoardRecord", out: Path) -> dict[str, Any]:
    """What is printed: all but the board itself and its runs, which board.json has."""
    told = record.model_dump(mode="json", include={"title", "baseline", "seeds", "budget", "samples", "failures"})
    files = {kind: str(out / f"board.{kind}") for kind in ("html", "csv", "json")}
    return told | {"runs": len(record.cells), "arms": {arm.name: _arm(arm) for arm in record.arms}, "files": files}


def _arm(arm: "ArmResult") -> dict[str, Any]:
    points = {point.label: point.model_dump(mode="json", exclude={"method", "knob"}) for point in arm.points}
    volumes = {method.method: method.hypervolume for method in arm.methods}
    told = arm.model_dump(mode="json", include={"budget", "reference", "noise"})
    return told | {"front": [point.label for point in arm.front], "points": points, "hypervolume": volumes}
