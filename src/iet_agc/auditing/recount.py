"""An audit's numbers, counted again from what its folder keeps of each image, and compared with those it prints.

Counted are shares, intervals, percentiles, cuts, checks, the verdict and the gate, by the functions that the audit
counted with. What only images can tell, such as quality, is named as not counted again.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iet_agc.auditing.copies import (
    ALTERATIONS,
    Scores,
    check_similarity,
    copies_of,
    copy_groups,
    crowding,
    joined,
    judged_far,
    transformed_of,
)
from iet_agc.auditing.schema import (
    AuditRecord,
    Copies,
    Groups,
    LeftOut,
    Space,
    UnknownImages,
    UnknownOrigin,
    read_record,
)
from iet_agc.auditing.scores import SpaceArrays, from_arrays
from iet_agc.auditing.verdict import check_share, verdict
from iet_agc.metrics.memorization import distance_ratio
from iet_agc.metrics.similarity import similarities
from iet_agc.runtime import tables
from iet_agc.runtime.array_files import read_arrays
from iet_agc.runtime.errors import UserError, one_line
from iet_agc.runtime.files import shown
from iet_agc.runtime.reading import read_text

__all__ = ["MOST_ARRAYS", "Difference", "Recount", "compare_leaves", "leaves", "read_table", "recount"]

#: Numbers that are no farther apart are equal: libraries of another version may round the last digits otherwise.
_RELATIVE, _ABSOLUTE = 1e-9, 1e-12

#: Bytes of all arrays of a file: twenty times those of the paper's size with one network.
MOST_ARRAYS = 2**30

#: What an audit says of when, how and from what it was made; nothing is counted there.
_NOT_COUNTED = ("version", "made_of", "names", "provenance", "mending", "sha256", "conventions")

#: What only images can tell, of the whole audit and of each feature space.
_ONLY_IMAGES = {
    "quality",
    "clip",
    "prompts",
    "train_copies.near",
    "num_held_out_in_train",
    "num_held_out_repeated",
    "feature space: quality",
    "feature space: dimensions",
    "feature space: sha256",
    "feature space: alignment",
}

#: Warnings that come from sources, not from numbers.
_OF_SOURCES = (UnknownImages, UnknownOrigin, LeftOut)


@dataclass(frozen=True)
class Difference:
    """A number, or a text, that is another one when it is made again.

    Attributes:
        where: it is printed: file, and name in it.
        printed, found: short, for people.
    """

    where: str
    printed: str
    found: str

    def __str__(self) -> str:
        return f"{self.where} is printed as {self.printed}, and counted again it is {self.found}"


@dataclass
class Recount:
    """What came of counting again.

    Attributes:
        counted: how many numbers were, of those that are printed.
        differences: in the order in which they are printed.
        only_images: by name, how many printed numbers only images can tell.
    """

    counted: int = 0
    differences: list[Difference] = field(default_factory=list)
    only_images: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Kept:
    """What an audit's folder keeps of each image: arrays, and the columns of the two tables."""

    record: AuditRecord
    printed: Mapping[str, Any]
    arrays: SpaceArrays
    samples: Sequence[Mapping[str, str]]
    images: Sequence[Mapping[str, str]]

    @property
    def multiplicities(self) -> NDArray[np.int64]:
        """How often each unique training image stands in the training set."""
        return np.array([int(row["multiplicity"]) for row in self.images])

    @property
    def prompts(self) -> list[str] | None:
        """Of the samples, if they have any."""
        return [row["prompt"] for row in self.samples] if "prompt" in self.samples[0] else None


def recount(folder: Path) -> Recount:
    """Count all numbers of an audit again that its folder allows to.

    Args:
        folder: of an audit that kept scores.npz.

    Raises:
        NotNumbersError: an array file is not one of ours.
        UserError: a file is damaged, or does not fit the others.
    """
    kept = _read(folder)
    result = Recount()
    file = f"{folder.name}/audit.json"
    try:
        expected, spaces = _expected(kept)
        rest = compare_leaves(file, kept.printed, expected, result)
        _compare_tables(folder, kept, spaces, result)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{shown(folder)}: what it keeps does not fit together: {one_line(str(error))}") from None
    for path, value in rest.items():
        name = _group(path)
        if name in _ONLY_IMAGES or path[0] in _NOT_COUNTED:
            if _is_number(value) and name in _ONLY_IMAGES:
                result.only_images[name] = result.only_images.get(name, 0) + 1
        elif value is not None:
            result.differences.append(Difference(f"{file}: {_dotted(path)}", _told(value), _told(_MISSING)))
    return result


def _read(folder: Path) -> _Kept:
    record = read_record(folder / "audit.json")
    printed = json.loads(read_text(folder / "audit.json"))
    printed.pop("seal", None)
    arrays = read_arrays(folder / "scores.npz", MOST_ARRAYS)
    samples, images = (read_table(folder / f"{name}.csv") for name in ("samples", "training-images"))
    return _Kept(record, printed, arrays, samples, images)


def read_table(file: Path) -> list[dict[str, str]]:
    """The rows of a table.

    Raises:
        UserError: it is no UTF-8, or has none.
    """
    rows = tables.read_table(file)
    if not rows:
        raise UserError(f"{file} is damaged: it has no rows")
    return rows


# Numbers ----------------------------------------------------------------------------------------------------


def _expected(kept: _Kept) -> tuple[dict[str, Any], list[Scores]]:
    """What audit.json has to print, as far as it can be counted again; and the scores of each space."""
    record, times = kept.record, kept.multiplicities
    repeated = float(times[times > 1].sum()) / float(times.sum())
    spaces = [
        from_arrays(kept.arrays, space, record.num_held_out_in_train, repeated)
        for space in range(1 + len(record.feature_spaces))
    ]
    pixels, prompts = spaces[0], kept.prompts
    copies = judged_far(copies_of(pixels, prompts), pixels.confirmed)
    found = {
        name: _space(scores, record.feature_spaces[name], prompts)
        for name, scores in zip(record.feature_spaces, spaces[1:], strict=True)
    }
    transformed = transformed_of(pixels, copies.calibrated, prompts)
    again = {**dict(copies), "feature_spaces": found, "transformed": transformed, "verdict": None, "gate": None}
    counted = record.model_copy(update=again)
    gate = record.gate and check_share(counted, record.gate.fail_above)
    told = (*copies.warnings, *(one for one in record.warnings if isinstance(one, _OF_SOURCES)))
    exact = times[times > 1].tolist()
    expected: dict[str, Any] = {
        "num_samples": len(pixels.found.distances),
        "num_train": int(times.sum()),
        "num_train_unique": len(times),
        "num_held_out": 0 if pixels.found.held_out is None else len(pixels.found.held_out),
        "conventions": {"k": pixels.found.distances.shape[1]},
        **_dumped(copies.model_copy(update={"warnings": told})),
        "feature_spaces": {name: _dumped_space(space) for name, space in found.items()},
    }
    if transformed:
        expected["transformed"] = _dumped(transformed)
        if transformed.num_held_out_copies is None:  # an audit of before they were counted has no such key
            del expected["transformed"]["num_held_out_copies"]
    if record.verdict:
        expected["verdict"] = _dumped(verdict(counted))
    if gate:
        expected["gate"] = _dumped(gate)
    if record.train_copies:
        expected["train_copies"] = {"exact": _dumped(copy_groups(exact))}
    if record.groups and record.train_copies:
        found_groups = Counter(row["group"] for row in kept.images)
        crowded = crowding(pixels.found, copies.cut)
        told_groups = Groups(origin=record.groups.origin, num_groups=len(found_groups), crowded=crowded)
        expected["groups"] = _dumped(told_groups)
        expected["train_copies"]["near"] = _dumped(copy_groups([size for size in found_groups.values() if size > 1]))
    if record.prompts and prompts:
        expected["prompts"] = {"num_prompts": len(set(prompts))}
    return expected, spaces


def _space(scores: Scores, printed: Space, prompts: Sequence[str] | None) -> Space:
    if scores.similar is None:
        raise ValueError("there is no array similar")
    found = similarities(scores.similar, scores.found.fresh, printed.similarity.copy_detection, prompts)
    check = check_similarity(scores, found)
    copies = copies_of(scores, prompts, in_features=True)
    return printed.model_copy(update={**dict(copies), "similarity": found, "similarity_check": check})


def _dumped(record: Any) -> dict[str, Any]:
    return json.loads(record.model_dump_json())


def _dumped_space(space: Space) -> dict[str, Any]:
    """What was counted in a feature space."""
    names = (*Copies.model_fields, "similarity", "similarity_check")
    return {name: value for name, value in _dumped(space).items() if name in names}


# Tables -----------------------------------------------------------------------------------------------------


def _compare_tables(folder: Path, kept: _Kept, spaces: Sequence[Scores], result: Recount) -> None:
    """Columns of the tables, and arrays of the pictures, that follow from the scores."""
    pixels = spaces[0]
    columns = {"ratio": distance_ratio(pixels.found.distances), "distance": pixels.found.distances[:, 0]}
    if joint := joined(pixels):
        columns["joint_score"] = joint.samples
    for number, scores in enumerate(spaces[1:]):
        if scores.similar:
            columns[f"similarity_{number}"] = scores.similar.samples
    for name, values in columns.items():
        told = np.array([float(row[name]) for row in kept.samples])
        _compare_arrays(f"{folder.name}/samples.csv: {name}", told, values.numpy(), result)
    if joint:
        found = [ALTERATIONS[at] for at in joint.by.tolist()]
        told_by = [row["copied_by"] for row in kept.samples]
        result.counted += len(found)
        if odd := [row for row, pair in enumerate(zip(told_by, found, strict=True)) if pair[0] != pair[1]]:
            where = f"{folder.name}/samples.csv: copied_by, row {odd[0]}"
            result.differences.append(Difference(where, told_by[odd[0]], found[odd[0]]))
    _compare_copied(folder, kept, columns["ratio"].numpy(), result)
    if kept.record.groups:
        _compare_groups(folder, kept, result)
    pictures = read_arrays(folder / "pictures.npz", MOST_ARRAYS)
    real = pixels.found.held_out
    shown = {"held_out_ratios": np.empty(0) if real is None else distance_ratio(real).numpy()}
    for number, scores in enumerate(spaces[1:]):
        if scores.similar:
            shown[f"similar_{number}_samples"] = scores.similar.samples.numpy()
            shown[f"similar_{number}_train"] = scores.similar.train.numpy()
    for name, values in shown.items():
        _compare_arrays(f"{folder.name}/pictures.npz: {name}", pictures[name], values, result)


def _compare_copied(folder: Path, kept: _Kept, ratios: NDArray[Any], result: Recount) -> None:
    """How often each training image was copied, and by which samples."""
    copied: dict[str, list[str]] = {}
    for number in np.flatnonzero(ratios < _cut(kept)).tolist():
        copied.setdefault(kept.samples[number]["nearest"], []).append(str(number))
    for row in kept.images:
        samples = copied.pop(row["image"], [])
        result.counted += 1
        if (row["copied"], row["samples"]) != (str(len(samples)), " ".join(samples)):
            where = f"{folder.name}/training-images.csv: copied, image {row['image']}"
            result.differences.append(Difference(where, row["copied"], str(len(samples))))
    if copied:
        where = f"{folder.name}/samples.csv: nearest"
        result.differences.append(Difference(where, next(iter(copied)), "no training image of the table"))


def _compare_groups(folder: Path, kept: _Kept, result: Recount) -> None:
    """How many images the group of each training image has, of which the first gives its name; the same of samples."""
    sizes, first = Counter[str](), dict[str, str]()
    for row in kept.images:
        sizes[row["group"]] += int(row["multiplicity"])
        first.setdefault(row["group"], row["image"])
    of = {row["image"]: (first[row["group"]], str(sizes[row["group"]])) for row in kept.images}
    for table, key, rows in (("training-images", "image", kept.images), ("samples", "nearest", kept.samples)):
        for number, row in enumerate(rows):
            result.counted += 1
            if (told := (row["group"], row["group_images"])) != of[row[key]]:
                where = f"{folder.name}/{table}.csv: group, row {number}"
                result.differences.append(Difference(where, " of ".join(told), " of ".join(of[row[key]])))


def _cut(kept: _Kept) -> float:
    """The cut below which a sample was called a copy; whether it is the right one is compared elsewhere."""
    return kept.record.cut


def _compare_arrays(where: str, printed: NDArray[Any], found: NDArray[Any], result: Recount) -> None:
    result.counted += found.size
    if printed.shape != found.shape:
        result.differences.append(Difference(where, f"{printed.shape[0]} numbers", f"{found.shape[0]}"))
        return
    odd = np.flatnonzero(~np.isclose(printed, found, rtol=_RELATIVE, atol=_ABSOLUTE))
    if odd.size:
        first = int(odd[0])
        also = f" ({odd.size - 1:,} more differ)" if odd.size > 1 else ""
        result.differences.append(
            Difference(f"{where}, row {first}{also}", repr(float(printed[first])), repr(float(found[first])))
        )


# Comparison -------------------------------------------------------------------------------------------------

_Path = tuple[str | int, ...]


def leaves(value: object, path: _Path = ()) -> Iterator[tuple[_Path, object]]:
    """All that is no list or object in JSON, with where it stands; of empty ones, themselves."""
    if isinstance(value, dict) and value:
        for name, each in value.items():
            yield from leaves(each, (*path, name))
    elif isinstance(value, list) and value:
        for place, each in enumerate(value):
            yield from leaves(each, (*path, place))
    else:
        yield path, value


def compare_leaves(
    where: str,
    printed: Mapping[str, Any],
    expected: Mapping[str, Any],
    result: Recount,
    relative: float = _RELATIVE,
) -> dict[_Path, object]:
    """Compare what is printed with what is expected.

    Args:
        where: what is printed stands, for people.
        printed, expected: JSON values.
        result: gets differences, and how many numbers were expected.
        relative: numbers that differ by less, relatively, are equal.

    Returns:
        What is printed and not expected, by where it stands.
    """
    wanted, there = dict(leaves(expected)), dict(leaves(printed))
    for path, value in wanted.items():
        result.counted += _is_number(value)
        if not _same(there.get(path, _MISSING), value, relative):
            told = _told(there.get(path, _MISSING)), _told(value)
            result.differences.append(Difference(f"{where}: {_dotted(path)}", *told))
    return {path: value for path, value in there.items() if path not in wanted}


_MISSING = object()


def _same(printed: object, found: object, relative: float) -> bool:
    if isinstance(printed, bool) or isinstance(found, bool) or not (_is_number(printed) and _is_number(found)):
        return type(printed) is type(found) and printed == found
    assert isinstance(printed, int | float)
    assert isinstance(found, int | float)
    return math.isclose(printed, found, rel_tol=relative, abs_tol=_ABSOLUTE)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _dotted(path: _Path) -> str:
    return ".".join(map(str, path))


def _told(value: object) -> str:
    if value is _MISSING:
        return "nothing"
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _group(path: _Path) -> str:
    """What a number that only images can tell belongs to: section, and name in it."""
    words = [str(each) for each in path]
    if words[0] == "feature_spaces" and len(words) > 2:
        return f"feature space: {words[2]}"
    return ".".join(words[:2]) if words[0] == "train_copies" else words[0]
