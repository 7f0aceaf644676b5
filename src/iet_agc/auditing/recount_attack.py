"""An attack's numbers, counted again from what its folder keeps of each drawn image, and compared with those it prints.

Counted are shares, intervals, cuts, rates, what each way recovered and when, and the table of images, by the functions
that the attack counted with. How many evaluations of the model a drawing took, and how long, only drawing tells.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from iet_agc.auditing.attack import AttackRecord, read_attack_record
from iet_agc.auditing.drawings import DRAWINGS, KINDS, Drawings, read_drawings
from iet_agc.auditing.recount import Difference, Recount, compare_leaves, read_table
from iet_agc.auditing.schema import read_record
from iet_agc.metrics.attacks import LEAST_HELD_OUT, Attack, Attacks, Way, against_sampling, attack, halves
from iet_agc.reporting.attack_page import ATTACK_FILES
from iet_agc.runtime.errors import UserError, one_line
from iet_agc.runtime.files import shown

__all__ = ["ONLY_DRAWING", "compare_with_audit", "recount_attack"]

#: What is taken as it is told, in words.
ONLY_DRAWING = "seconds, and the evaluations of redrawn images, are as told: only drawing tells them"


def recount_attack(folder: Path) -> Recount:
    """Count all numbers of an attack again that its folder allows to.

    Args:
        folder: of an attack that kept drawings.npz.

    Raises:
        UserError: a file is damaged, or does not fit the others.
    """
    record = read_attack_record(folder, [ATTACK_FILES["csv"], DRAWINGS])
    ways: tuple[Way, ...] = tuple(each.way for each in record.found.attacks)
    if [*ways[:2]] != ["sampling", "redrawing"] or len({*ways}) < len(ways):
        raise UserError(f"{shown(folder / ATTACK_FILES['json'])} does not tell of plain sampling, then of redrawing")
    drawings = read_drawings(folder, ways)
    result = Recount()
    try:
        again = _counted(record, drawings)
    except (ValueError, LookupError, ArithmeticError) as error:
        raise UserError(f"{shown(folder)}: what it keeps does not fit together: {one_line(str(error))}") from None
    file = f"{folder.name}/{ATTACK_FILES['json']}"
    compare_leaves(file, record.model_dump(mode="json"), _expected(again, drawings), result)
    _compare_table(folder, again, drawings, result)
    return result


def compare_with_audit(folder: Path, audit: Path) -> Recount | None:
    """Compare what an attack took from an audit's search: its cut, and how often each image stands in the training set.

    Args:
        folder: of an attack.
        audit: the folder of an audit.

    Returns:
        None where the audit is of other images, or searched them otherwise.

    Raises:
        UserError: a file is damaged.
    """
    attacked, record = read_attack_record(folder), read_record(audit / "audit.json")
    told = {"train": record.sha256.train, "held_out": record.sha256.held_out}
    alike = attacked.images is not None and attacked.images.model_dump() == told
    if not alike or record.groups or record.calibrated is None or record.conventions.flips != attacked.flips:
        return None
    result, where = Recount(), f"{folder.name}/{ATTACK_FILES['json']}"
    compare_leaves(where, {"audit_cut": attacked.found.audit_cut}, {"audit_cut": record.cut}, result)
    times = {row["image"]: row["multiplicity"] for row in read_table(audit / "training-images.csv")}
    for row in read_table(folder / ATTACK_FILES["csv"]):
        if row["set"] == "train":
            result.counted += 1
            if row["multiplicity"] != (found := times.get(row["image"], "nothing")):
                name = f"{folder.name}/{ATTACK_FILES['csv']}: train image {row['image']}: multiplicity"
                result.differences.append(Difference(name, row["multiplicity"], found))
    return result


def _counted(record: AttackRecord, drawings: Drawings) -> Attacks:
    """The numbers, from drawings, and from the effort that is told."""
    printed, found = record.found, list[Attack]()
    if min(each.drawn[1].num_targets for each in drawings.ways.values()) < LEAST_HELD_OUT:
        raise ValueError("too few held-out images were attacked")
    first = printed.attacks[0]
    per_sample = first.evaluations // first.drawings if record.text_to_image else record.steps
    for each in printed.attacks:
        way = drawings.ways[each.way]
        evaluations = per_sample * len(way.drawn[0].ratios) if each.way == "sampling" else each.evaluations
        effort = evaluations, each.seconds, per_sample, way.before
        one = attack(each.way, *way.drawn, printed.audit_cut, *effort)
        found.append(against_sampling(one, found[0]) if found else one)
    counts = dict(zip(("num_train", "num_held_out"), drawings.totals, strict=True))
    return printed.model_copy(update={**counts, "attacks": tuple(found)})


def _expected(again: Attacks, drawings: Drawings) -> dict[str, Any]:
    """What attack.json has to print, as far as it can be counted again."""
    found = json.loads(again.model_dump_json())
    for each in found["attacks"]:
        each.pop("seconds")
        if each["way"] != "sampling":
            each.pop("evaluations")
    own = drawings.ways["redrawing"].drawn[0]
    expected = {"budget": len(drawings.ways["sampling"].drawn[0].ratios)}
    expected["draws"] = len(own.ratios) // own.num_targets
    found.pop("unit")
    found.pop("audit_cut")
    return {**expected, "found": found}


# The table --------------------------------------------------------------------------------------------------


def _compare_table(folder: Path, again: Attacks, drawings: Drawings, result: Recount) -> None:
    """Its rows, in whatever order: which image each is, its half, and by each way its score and what follows."""
    printed = {(row["set"], row["image"]): row for row in read_table(folder / ATTACK_FILES["csv"])}
    file = f"{folder.name}/{ATTACK_FILES['csv']}"
    for (kind, image), row in _rows(again, drawings):
        where = f"{file}: {kind} image {image}"
        if (there := printed.pop((kind, image), None)) is None:
            result.differences.append(Difference(where, "nothing", "a row"))
            continue
        _compare_row(where, there, row, result)
    result.differences += [Difference(f"{file}: {kind} image {image}", "a row", "nothing") for kind, image in printed]


def _rows(again: Attacks, drawings: Drawings) -> Iterator[tuple[tuple[str, str], dict[str, object]]]:
    cuts: dict[Way, float] = {each.way: each.cut for each in again.attacks}
    for side, kind in enumerate(KINDS):
        images = drawings.images[side].tolist()
        half = [1 if first else 2 for first in halves(len(images)).tolist()] if kind == "held_out" else None
        scores: dict[Way, list[float]] = {way: drawings.scores(way, side).tolist() for way in cuts}
        for number, image in enumerate(images):
            row: dict[str, object] = {"half": "" if half is None else str(half[number])}
            for way, found in scores.items():
                row |= {f"{way}_score": found[number], f"{way}_recovered": str(found[number] < cuts[way])}
            yield (kind, str(image)), row


def _compare_row(where: str, printed: Mapping[str, str], found: Mapping[str, object], result: Recount) -> None:
    for name, value in found.items():
        result.counted += 1
        there = printed.get(name, "nothing")
        if not (_is_score(there, value) if isinstance(value, float) else there == value):
            told = "" if value == math.inf else str(value)
            result.differences.append(Difference(f"{where}: {name}", there, told))


def _is_score(printed: str, score: float) -> bool:
    """Whether a cell of the table has this score; of an image of which nothing was drawn it is empty."""
    if not math.isfinite(score):
        return not printed
    try:
        return math.isclose(float(printed), score, rel_tol=1e-9, abs_tol=1e-12)
    except ValueError:
        return False
