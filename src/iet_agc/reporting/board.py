"""The record of a board: board.json, version 1, from the results of its runs; and board.csv, a row per run. No torch.

A point is what the seeds of one method, with its knob at one value, say together. Intervals are those of
`iet-agc compare`: of shares Wilson's over runs, of distances Student's t; differences from the baseline are taken over
the seeds that both have, of distances in pairs.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationError

from iet_agc.auditing.schema import AuditRecord, one_line
from iet_agc.config.board import Arm, Board, Cell
from iet_agc.metrics.frontier import (
    Difference,
    Noise,
    hypervolume,
    noise,
    paired_difference,
    pareto_set,
    share_difference,
)
from iet_agc.metrics.intervals import Count, Interval, Portion, Proportion, Record, mean, share_over_runs
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.reading import read_object
from iet_agc.runtime.seal import unsealed
from iet_agc.runtime.tables import table_text

__all__ = [
    "ArmResult",
    "BoardRecord",
    "CellResult",
    "Failure",
    "MethodResult",
    "PointResult",
    "Standing",
    "board_record",
    "cell_result",
    "csv_table",
    "read_board",
]

#: The version of board.json; it is raised when keys come, go or change their meaning.
VERSION = 1

#: So many seeds are needed to claim a difference.
FEWEST_SEEDS = 3

#: The worst means of an arm lie within its reference point, as far as this.
_BEYOND = 1.1

#: Where nothing was copied at all, hypervolumes need a width: as much as a cut calls copies by chance.
_LEAST_SHARE = 0.01

_AGAIN = "run the same 'iet-agc bench' again"

#: A value of a knob; None of a method without one.
Value = bool | int | float | str | None


# What runs say --------------------------------------------------------------------------------------------


class Standing(Record):
    """Which run of a board: see `iet_agc.config.board.Cell`.

    Attributes:
        folder: of the run, below that of the board.
    """

    arm: str
    method: str
    knob: str | None
    value: Value
    seed: Count
    folder: str


class CellResult(Standing):
    """What one run came to.

    Attributes:
        copied: the share of samples below the calibrated cut, with the interval of its audit.
        cut: that one, a distance ratio.
        below_015: the share of samples with a ratio below 0.15, the paper's smallest cut.
        held_out_distance, train_distance: Fréchet distances of the samples.
        extractor: in whose features.
        images_seen: in training, skipped ones included; `skipped` is their share.
        seconds: of training, all members one after the other, without reading data; of the machine as busy as it was.
        verdict: of the audit.
    """

    copied: Proportion
    cut: float
    below_015: Proportion
    held_out_distance: Annotated[float, Field(ge=0)]
    train_distance: Annotated[float, Field(ge=0)]
    extractor: str
    images_seen: Annotated[int, Field(ge=1)]
    skipped: Portion
    seconds: Annotated[float, Field(ge=0)]
    verdict: Literal["copies", "undecided", "chance", "cannot_tell"]


class Failure(Standing):
    """A run that came to nothing, and why."""

    reason: str


def standing(cell: Cell) -> dict[str, Any]:
    """The arguments of `Standing`."""
    return {
        "arm": cell.arm,
        "method": cell.method,
        "knob": cell.knob,
        "value": cell.value,
        "seed": cell.seed,
        "folder": cell.folder,
    }


def cell_result(cell: Cell, audit: AuditRecord, skipped: float, seconds: float) -> CellResult:
    """The result of a run, from its audit.

    Args:
        cell: the run.
        audit: of its samples, with held-out images.
        skipped, seconds: see `CellResult`.

    Raises:
        UserError: held-out images are too few to set a cut, or quality was not measured.
    """
    found = {name: audit.quality.measured(f"frechet_{name}") for name in ("held_out", "train")}
    if audit.calibrated is None or found["held_out"] is None or found["train"] is None:
        raise UserError(
            f"its audit has no calibrated cut or no Fréchet distance, {audit.num_held_out} images are held out: leave "
            "some for it by data.num_train"
        )
    assert audit.verdict is not None, "audits of today have a verdict"
    return CellResult(
        **standing(cell),
        copied=_plain(audit.calibrated),
        cut=audit.calibrated.cut,
        below_015=_plain(audit.mq["0.15"]),
        held_out_distance=found["held_out"][0],
        train_distance=found["train"][0],
        extractor=audit.quality.extractor or "",
        images_seen=cell.images_seen,
        skipped=skipped,
        seconds=seconds,
        verdict=audit.verdict.outcome,
    )


def _plain(found: Proportion) -> Proportion:
    """A share without what else its audit knows of it."""
    return Proportion(**{name: getattr(found, name) for name in Proportion.model_fields})


# What they say together -----------------------------------------------------------------------------------


class Estimate(Record):
    """A mean over seeds with its 95 % interval; None of a single one, unless draws tell."""

    mean: float
    ci95: Interval | None


class Against(Record):
    """A point less the baseline, over the seeds that both have.

    Attributes:
        seeds: how many those are.
        copied, held_out_distance: below 0, the point is better.
        hidden: of `copied` and `held_out_distance`, those of which the interval does not hold 0 but which are smaller
            than what one seed of the baseline differs from another.
        images, seconds: the cost, as a multiple of the baseline's.
    """

    seeds: Annotated[int, Field(ge=1)]
    copied: Difference
    held_out_distance: Difference
    hidden: tuple[Literal["copied", "held_out_distance"], ...]
    images: float
    seconds: float


class PointResult(Record):
    """One method with its knob at one value, over its seeds.

    Attributes:
        on_front: no other point of the arm has as low a copied share and as low a distance, and one of them lower.
        against: the baseline; None of itself, and where the two have no seed in common.
    """

    method: str
    knob: str | None
    value: Value
    seeds: tuple[Count, ...]
    copied: Estimate
    held_out_distance: Estimate
    train_distance: float
    images_seen: float
    skipped: float
    seconds: float
    on_front: bool
    against: Against | None

    @property
    def label(self) -> str:
        """The method, and where its knob stands."""
        return self.method if self.knob is None else f"{self.method} {self.value}"


class MethodResult(Record):
    """A method in one arm.

    Attributes:
        hypervolume: that of its points, see `metrics.frontier.hypervolume`, up to the arm's reference point.
    """

    method: str
    hypervolume: Portion


class ArmResult(Record):
    """One arm.

    Attributes:
        reference: copied share and held-out distance up to which hypervolumes are taken.
        noise: the spread of the baseline over its seeds, of each of the two numbers.
        points: those with a seed at least, in the order of the board.
    """

    name: str
    description: str
    budget: Annotated[int, Field(ge=1)]
    reference: tuple[float, float]
    noise: dict[Literal["copied", "held_out_distance"], Noise]
    points: tuple[PointResult, ...]
    methods: tuple[MethodResult, ...]

    def of(self, method: str) -> list[PointResult]:
        """The points of a method, in the order of its knob."""
        return [point for point in self.points if point.method == method]

    @property
    def front(self) -> list[PointResult]:
        """The Pareto set, by rising copied share."""
        return sorted((p for p in self.points if p.on_front), key=lambda p: (p.copied.mean, p.held_out_distance.mean))


class BoardRecord(Record):
    """All of board.json.

    Attributes:
        board: the board as it was read, its methods included.
        made_of: what no later call in the same folder may change.
        versions: of iet-agc and torch, by name.
        arms: those of which any run came to something.
        cells, failures: each run of the board is one of them.
    """

    version: Literal[1] = VERSION
    title: str
    description: str
    baseline: str
    budget: Annotated[int, Field(ge=1)]
    samples: Annotated[int, Field(ge=1)]
    seeds: tuple[Count, ...]
    methods: dict[str, str]
    board: dict[str, JsonValue]
    made_of: dict[str, JsonValue]
    versions: dict[str, str]
    arms: tuple[ArmResult, ...]
    cells: tuple[CellResult, ...]
    failures: tuple[Failure, ...]

    @property
    def claims(self) -> bool:
        """Whether there are seeds enough to claim a difference."""
        return len(self.seeds) >= FEWEST_SEEDS


def board_record(
    board: Board,
    results: Sequence[CellResult | Failure],
    made_of: Mapping[str, Any],
    versions: Mapping[str, str],
) -> BoardRecord:
    """The record of a board.

    Args:
        board: which.
        results: of all its runs, in the order of `plan`.
        made_of, versions: see `BoardRecord`.
    """
    cells = [each for each in results if isinstance(each, CellResult)]
    arms = [(arm, mine) for arm in board.data if (mine := [cell for cell in cells if cell.arm == arm.name])]
    return BoardRecord(
        title=board.title or board.name,
        description=board.description,
        baseline=board.baseline,
        budget=board.budget,
        samples=board.samples,
        seeds=board.seeds,
        methods={method.name: method.description for method in board.method},
        board=board.model_dump(mode="json"),
        made_of=dict(made_of),
        versions=dict(versions),
        arms=tuple(_arm(board, arm, mine) for arm, mine in arms),
        cells=tuple(cells),
        failures=tuple(each for each in results if isinstance(each, Failure)),
    )


#: The runs of each point, by method and value of the knob: JSON tells 1 from true, a dictionary does not.
_Points = Mapping[tuple[str, str], Sequence[CellResult]]


def _arm(board: Board, arm: Arm, cells: Sequence[CellResult]) -> ArmResult:
    groups: dict[tuple[str, str], list[CellResult]] = {}
    for cell in cells:
        groups.setdefault((cell.method, json.dumps(cell.value)), []).append(cell)
    means = {name: (_mean(mine, _share), _mean(mine, _distance)) for name, mine in groups.items()}
    base = next((mine for (method, _), mine in groups.items() if method == board.baseline), [])
    spread = (
        {"copied": noise([*map(_share, base)]), "held_out_distance": noise([*map(_distance, base)])} if base else {}
    )
    front, reference = pareto_set(means), arm.reference or _reference([*means.values()])
    found = [
        _point(mine, name in front, None if name[0] == board.baseline else _against(mine, base, spread))
        for name, mine in groups.items()
    ]
    names = dict.fromkeys(method for method, _ in groups)
    return ArmResult(
        name=arm.name,
        description=arm.description,
        budget=round(board.budget * arm.times),
        reference=reference,
        noise=spread,  # pyright: ignore[reportArgumentType]
        points=tuple(found),
        methods=tuple(
            MethodResult(
                method=name,
                hypervolume=hypervolume([at for (method, _), at in means.items() if method == name], reference),
            )
            for name in names
        ),
    )


def _share(cell: CellResult) -> float:
    return cell.copied.share


def _distance(cell: CellResult) -> float:
    return cell.held_out_distance


def _mean(cells: Sequence[CellResult], read: Callable[[CellResult], float]) -> float:
    return sum(map(read, cells)) / len(cells)


def _reference(means: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """A little beyond the worst means."""
    copied, distance = (max(each) for each in zip(*means, strict=True))
    return _BEYOND * max(copied, _LEAST_SHARE), _BEYOND * distance if distance else 1.0


def _point(cells: Sequence[CellResult], on_front: bool, against: Against | None) -> PointResult:
    first, counts = cells[0], [(cell.copied.count, cell.copied.total) for cell in cells]
    limits = share_over_runs(*zip(*counts, strict=True)) if len(cells) > 1 else first.copied.ci95
    distance = mean([*map(_distance, cells)])
    return PointResult(
        method=first.method,
        knob=first.knob,
        value=first.value,
        seeds=tuple(cell.seed for cell in cells),
        copied=Estimate(mean=_mean(cells, _share), ci95=limits),
        held_out_distance=Estimate(mean=distance.mean, ci95=distance.ci95),
        train_distance=_mean(cells, lambda cell: cell.train_distance),
        images_seen=_mean(cells, lambda cell: cell.images_seen),
        skipped=_mean(cells, lambda cell: cell.skipped),
        seconds=_mean(cells, lambda cell: cell.seconds),
        on_front=on_front,
        against=against,
    )


def _against(cells: Sequence[CellResult], base: Sequence[CellResult], spread: Mapping[str, Noise]) -> Against | None:
    theirs = {cell.seed: cell for cell in base}
    pairs = [(cell, theirs[cell.seed]) for cell in cells if cell.seed in theirs]
    if not pairs:
        return None
    mine, others = ([*side] for side in zip(*pairs, strict=True))
    apart = {
        "copied": share_difference(*([(c.copied.count, c.copied.total) for c in side] for side in (mine, others))),
        "held_out_distance": paired_difference([*map(_distance, mine)], [*map(_distance, others)]),
    }
    hidden = [name for name, found in apart.items() if found.is_sure and spread[name].hides(found)]
    seconds = _mean(others, lambda cell: cell.seconds)
    return Against(
        seeds=len(pairs),
        **apart,
        hidden=tuple(hidden),  # pyright: ignore[reportArgumentType]
        images=_mean(mine, lambda cell: cell.images_seen) / _mean(others, lambda cell: cell.images_seen),
        seconds=_mean(mine, lambda cell: cell.seconds) / seconds if seconds else 1.0,
    )


# Files ----------------------------------------------------------------------------------------------------


def csv_table(record: BoardRecord) -> str:
    """board.csv: a row for each run that came to something; floats to their last digit."""
    return table_text([_row(cell) for cell in record.cells], _COLUMNS)


_COLUMNS = (
    *("arm", "method", "knob", "value", "seed", "copied", "copied_low", "copied_high", "copied_count", "samples"),
    *("cut", "below_0.15", "held_out_distance", "train_distance", "images_seen", "skipped", "seconds", "verdict"),
    "folder",
)


def _row(cell: CellResult) -> dict[str, object]:
    low, high = cell.copied.ci95
    told: dict[str, object] = cell.model_dump(include={*_COLUMNS} - {"copied"})
    shares = {"copied": cell.copied.share, "copied_low": low, "copied_high": high, "copied_count": cell.copied.count}
    return told | shares | {"samples": cell.copied.total, "below_0.15": cell.below_015.share}


def read_board(folder: Path, files: Sequence[str] = ()) -> BoardRecord:
    """Read the board.json of a folder.

    Args:
        folder: of the board.
        files: of those beside it, which have to be as they were written, too.

    Raises:
        UserError: it is not there, of another version, or damaged; one line.
    """
    file = folder / "board.json"
    if not file.exists():
        raise UserError(f"{folder} holds no finished board: {_AGAIN}")
    content = read_object(file, _AGAIN)
    if (version := content.get("version")) != VERSION:
        raise UserError(f"{file} has version {version!r}, this iet-agc reads {VERSION}: {_AGAIN}")
    try:
        return BoardRecord.model_validate_json(json.dumps(unsealed(file, content, _AGAIN, files)))
    except ValidationError as error:
        raise UserError(f"{file} is damaged: {one_line(error)}; {_AGAIN}") from None
