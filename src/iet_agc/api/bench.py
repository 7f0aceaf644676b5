"""Boards on disk: every run of one is trained, sampled and audited, and what they say together becomes a page.

board.json      the record, written last; with it the folder is whole
board.csv       a row per run
board.html      the page
cells           ARM/METHOD/VALUE/seed-N: a run with its samples, its audit, and cell.json, what it came to; beside it
                seed-N-error.txt, where a mistake of ours broke it
.parts          while it is at work

The same call again goes on: a run that is finished, and as it was written, is not looked at again. Methods, values of
knobs and seeds may be added to a board in its folder; arms, budget, samples and common settings may not change.

Runs that differ in how they are sampled only are trained once: the first of them, whose training the others copy.
"""

import json
import shutil
import traceback
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from iet_agc.api.whole_run import whole_run, work_of
from iet_agc.config.board import Board, Cell, plan
from iet_agc.config.fingerprint import fingerprint
from iet_agc.config.run_folder import check_folder, is_run
from iet_agc.reporting.board import BoardRecord, CellResult, Failure, board_record, cell_result, csv_table, standing
from iet_agc.reporting.board_page import board_page
from iet_agc.runtime.curves import read_curve
from iet_agc.runtime.errors import CheckFailed, UserError, in_words, one_line
from iet_agc.runtime.exposure import read_telemetry
from iet_agc.runtime.files import digest, replace_text
from iet_agc.runtime.progress import progress_bar
from iet_agc.runtime.reading import read_object
from iet_agc.runtime.result_folder import ResultFolder
from iet_agc.runtime.seal import damaged, is_sealed, write_sealed
from iet_agc.runtime.workers import in_workers
from iet_agc.training.shared import take_training, training_of

__all__ = ["run_board"]

_FILES = ("board.csv", "board.html")

#: What a run is known by to be as it was when its cell.json was written.
_SEALED = ("config.json", "samples/samples.json", "samples/samples.npz", "audit/audit.json", "audit/samples.csv")

#: The whole of a bar.
_ALL = 1000


def run_board(board: Board, out: Path, jobs: int = 1) -> BoardRecord:
    """Do, or go on with, every run of a board, and write its folder: what `iet-agc bench` does.

    A run that fails is recorded, and the others go on; the same call tries it again.

    Args:
        board: see `iet_agc.config.board.load_board`.
        out: its folder.
        jobs: runs side by side, each in a process of its own with the threads of its settings, 1 unless the board says
            otherwise; the results are the same, bit for bit. See `runtime.workers` for what scripts need.

    Returns:
        The content of board.json.

    Raises:
        UserError: an impossible board, or `out` holds another one, or something else, or another process is at work
            there; nothing is done then.
        CheckFailed: the system ended a process.
    """
    if jobs < 1:
        raise UserError(f"jobs {jobs}: give 1 or more", "jobs")
    cells, about = plan(board), _about(board)
    folder = ResultFolder(out, "board.json", "board", "made_of", {"data": "arms"}, {"cells", *_FILES})
    folder.check(about)
    for cell in cells:
        check_folder(cell.settings, out / cell.folder)
    with folder.at_work(about, anew=True):
        results = _results(cells, out, jobs)
        record = board_record(board, results, about, {name: version(name) for name in ("iet-agc", "torch")})
        replace_text(out / "board.csv", csv_table(record))
        replace_text(out / "board.html", board_page(record, out))
        folder.finish(record.model_dump(mode="json"), _FILES)
    return record


def _about(board: Board) -> dict[str, Any]:
    """What makes another board of it; methods, values and seeds are told apart by their folders."""
    data = {arm.name: digest(arm.model_dump(mode="json", exclude={"description", "reference"})) for arm in board.data}
    common = {"budget": board.budget, "samples": board.samples, "settings": digest(board.settings)}
    return common | {"data": data}


# The runs -------------------------------------------------------------------------------------------------


def _results(cells: Sequence[Cell], out: Path, jobs: int) -> list[CellResult | Failure]:
    """What every run came to, those that are finished as they are."""
    found: dict[int, CellResult | Failure] = {
        number: done for number, cell in enumerate(cells) if (done := _finished(cell, out / cell.folder))
    }
    alike, tasks = _trained_alike(cells), _tasks(cells, found)
    work = [work_of(cell.settings) for cell in cells]
    before, total = sum(work[number] for number in found), sum(work)
    workers = min(jobs, len(tasks)) or 1
    with progress_bar("board", _ALL, int(_ALL * before / total), unit="") as bar:

        def show(done: float) -> None:
            bar.update(min(_ALL, int(_ALL * (before + done) / total)) - bar.n)

        bar.name_phase(_phase(found, cells))
        given = [([cells[number] for number in task], alike[task[0]], out) for task in tasks]
        for place, results in in_workers(_do_all, given, workers, show):
            for number, result in zip(tasks[place], results, strict=True):
                found[number] = result
                bar.name_phase(_phase(found, cells))
                bar.show_figures(_figures(cells[number], result))
        bar.update(_ALL - bar.n)
    return [found[number] for number in range(len(cells))]


def _trained_alike(cells: Sequence[Cell]) -> dict[int, list[Cell]]:
    """The cells that have one training, by the number of each of them."""
    alike: dict[str, list[Cell]] = {}
    kinds = [training_of(cell.settings) for cell in cells]
    for cell, kind in zip(cells, kinds, strict=True):
        alike.setdefault(kind, []).append(cell)
    return {number: alike[kind] for number, kind in enumerate(kinds)}


def _tasks(cells: Sequence[Cell], found: Collection[int]) -> list[list[int]]:
    """What is left to do, by number: those with one training together, seed by seed.

    So a board that is stopped early has whole curves.
    """
    seeds = [*dict.fromkeys(cell.seed for cell in cells)]
    tasks: dict[str, list[int]] = {}
    for number, cell in enumerate(cells):
        if number not in found:
            tasks.setdefault(training_of(cell.settings), []).append(number)
    return sorted(tasks.values(), key=lambda task: (seeds.index(cells[task[0]].seed), task[0]))


def _phase(found: Mapping[int, CellResult | Failure], cells: Sequence[Cell]) -> str:
    failed = sum(isinstance(each, Failure) for each in found.values())
    return f"board: {len(found)} of {len(cells)} runs{f', {failed} failed' if failed else ''}"


def _figures(cell: Cell, result: CellResult | Failure) -> str:
    if isinstance(result, Failure):
        return f"{cell.label}: {result.reason}"
    return f"{cell.label}: {100 * result.copied.share:.1f} % copied, distance {result.held_out_distance:.3f}"


def _do_all(cells: Sequence[Cell], alike: Sequence[Cell], out: Path) -> list[CellResult | Failure]:
    """Runs with one training, one after another, first those that have begun; all that have it are in `alike`."""
    begun = sorted(range(len(cells)), key=lambda number: not is_run(out / cells[number].folder))
    results = {number: _do(cells[number], alike, out) for number in begun}
    return [results[number] for number in range(len(cells))]


def _do(cell: Cell, alike: Sequence[Cell], out: Path) -> CellResult | Failure:
    """One run, from wherever it stands; a failure is a result."""
    run = out / cell.folder
    try:
        next((each for each in alike if take_training(out / each.folder, cell.settings, run)), None)
        audit = whole_run(cell.settings, run, cell.sampling)
        seen, skipped = read_telemetry(run / "telemetry.csv")
        result = cell_result(cell, audit, int(skipped.sum()) / max(int(seen.sum()), 1), _training_seconds(run))
        write_sealed(run / "cell.json", _known_by(cell) | result.model_dump(mode="json"), _SEALED)
    except Exception as error:
        if not isinstance(error, UserError | CheckFailed):  # a mistake of ours: its traceback is kept
            run.parent.mkdir(parents=True, exist_ok=True)
            replace_text(_traceback_of(run), traceback.format_exc())
        return Failure(**standing(cell), reason=_reason(error, run))
    _traceback_of(run).unlink(missing_ok=True)
    return result


def _traceback_of(run: Path) -> Path:
    """Beside a run: within, it would be in the way of training."""
    return run.with_name(f"{run.name}-error.txt")


def _reason(error: Exception, run: Path) -> str:
    if isinstance(error, UserError | CheckFailed):
        return one_line(str(error))
    return f"{type(error).__name__}: {in_words(error)}; its traceback is in {_traceback_of(run).name}"


def _training_seconds(run: Path) -> float:
    """How long training took, all members and sessions: from the speed at each point of their curves."""
    return round(sum(_seconds(read_curve(file)) for file in sorted((run / "curves").glob("*.jsonl"))), 2)


def _seconds(points: Sequence[Mapping[str, float]]) -> float:
    seen, seconds = 0.0, 0.0
    for point in points:
        seconds += (point["images_seen"] - seen) / point["images_per_second"]
        seen = point["images_seen"]
    return seconds


def _finished(cell: Cell, run: Path) -> CellResult | None:
    """The result of a run that is finished and as it was written; None of any other."""
    file = run / "cell.json"
    try:
        content = read_object(file, "remove it") if file.is_file() else {}
        known = _known_by(cell)
        if not is_sealed(content) or any(content.get(name) != value for name, value in known.items()):
            return None
        if odd := [*damaged(file, content, None)]:
            _drop_damaged(run, odd)
            return None
        return CellResult.model_validate_json(
            json.dumps({name: value for name, value in content.items() if name not in (*known, "seal")})
        )
    except ValueError:  # a UserError, or a record that is none
        return None


def _drop_damaged(run: Path, files: Sequence[Path]) -> None:
    """Remove samples and audit where a file of theirs is not as it was written: they are made again as they were."""
    for part in ("samples", "audit"):
        if any(run / part in file.parents for file in files):
            shutil.rmtree(run / part)


def _known_by(cell: Cell) -> dict[str, Any]:
    """What a cell.json says of what it is of: all that its run, and its samples, depend on.

    A setting that there was not when it was made does not make it another one, as of runs.
    """
    sample = cell.settings.sample.model_dump(mode="json", exclude_defaults=True)
    known = {
        "format": "iet-agc cell",
        "version": 1,
        "run_sha256": fingerprint(cell.settings),
        "sample_sha256": digest(sample),
    }
    return known | ({"sampling": cell.sampling} if cell.sampling else {})
