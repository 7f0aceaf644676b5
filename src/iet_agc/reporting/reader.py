"""Audits read back: a folder that `iet-agc audit` wrote -> what a report needs of it, checked. No torch here.

`iet_agc.auditing.schema` says what stands in audit.json; here are the tables, pictures and curves beside it, which
have to agree with it.
"""

import csv
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from iet_agc.auditing.schema import CUT, AuditRecord, one_line, read_record
from iet_agc.metrics.curve import Point as WatchPoint
from iet_agc.metrics.intervals import ROUNDING, Count
from iet_agc.runtime.errors import UserError, in_words
from iet_agc.runtime.reading import check_regular, read_bytes
from iet_agc.runtime.tables import read_table

__all__ = ["AlikePair", "Alikes", "Audit", "Pair", "Point", "Trained", "TransformedPair", "first_samples", "read_audit"]

#: What is read beside audit.json.
_FILES = ("samples.csv", "training-images.csv", "pictures.npz", "curves.json", "watch.json")

#: What numpy reads of a file, of any kind.
_Arrays = Mapping[str, NDArray[Any]]

_T = TypeVar("_T")
_Row = TypeVar("_Row", bound="_TableRow")


# What stands in the files -------------------------------------------------------------------------------


class _TableRow(BaseModel):
    """A row of a table, or a part of one; columns that are not named are others' business."""

    model_config = ConfigDict(allow_inf_nan=False, frozen=True)


class PairRow(_TableRow):
    """A sample and a training image that is near; `caption` is of that one."""

    sample: Count
    seed: str
    nearest: Count
    file: str = ""
    nearest_file: str = ""
    prompt: str = ""
    caption: str = Field("", alias="nearest_caption")


class SampleRow(PairRow):
    """A row of samples.csv, in pixels."""

    ratio: Annotated[float, Field(ge=-ROUNDING, le=1 + ROUNDING)]
    distance: Annotated[float, Field(ge=-ROUNDING)]
    mirrored: bool
    group_images: Count | None = None


class AlikeRow(PairRow):
    """The same in one feature space."""

    similarity: Annotated[float, Field(ge=-1 - ROUNDING, le=1 + ROUNDING)]


class TransformedRow(PairRow):
    """The same of a copy under a transformation, with the joint score of all ways."""

    score: float = Field(alias="joint_score")
    how: str = Field(alias="transformed_how")


class TrainedRow(_TableRow):
    """A training image; without a run, it is not known how often it was seen and skipped."""

    image: Count
    multiplicity: Count
    copied: Count
    seen: Count | None = None
    skipped: Count | None = None
    group: Count | None = None
    group_images: Count | None = None
    file: str = ""

    @model_validator(mode="after")
    def _was_seen(self) -> Self:
        if (self.skipped or 0) > (self.seen or 0):
            raise ValueError(f"training image {self.image} was skipped more often than it was seen")
        return self

    @property
    def skip_share(self) -> float:
        """Of the times that it was seen."""
        return (self.skipped or 0) / max(self.seen or 0, 1)


class Point(BaseModel):
    """A point of a training curve."""

    model_config = ConfigDict(allow_inf_nan=False, strict=True, frozen=True)

    images_seen: float
    loss: float
    learning_rate: float
    skip_rate: float
    skip_rate_bands: list[float | None]


# What a report needs ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Pictured(Generic[_Row]):
    """A sample and a training image that is near to it.

    Attributes:
        row: what the table says of them; files are paths below the folders that the images were read from.
        picture, original: of the sample and of the training image, uint8 (C, H, W).
        flat: whether the sample is flat (see `FLAT` of the schema).
    """

    row: _Row
    picture: NDArray[np.uint8]
    original: NDArray[np.uint8]
    flat: bool


class Pair(Pictured[SampleRow]):
    """A sample and the training image nearest to it in pixels."""

    @property
    def differences(self) -> NDArray[np.uint8]:
        """Absolute differences, (C, H, W); of a mirrored pair, after the original is mirrored."""
        original = self.original[:, :, ::-1] if self.row.mirrored else self.original
        return np.maximum(self.picture, original) - np.minimum(self.picture, original)


#: A sample and the training image most similar to it, in one feature space.
AlikePair = Pictured[AlikeRow]


@dataclass(frozen=True, kw_only=True)
class TransformedPair(Pictured[TransformedRow]):
    """A sample and the training image that it is most likely a transformed copy of.

    Attributes:
        overlaid: the training image, so transformed, uint8 (C, H, W).
    """

    overlaid: NDArray[np.uint8]


@dataclass(frozen=True)
class Alikes:
    """Similarities with the most similar training image, in one feature space.

    Attributes:
        values: of "samples", "train" and "held_out", float64.
        pairs: the most similar ones, each training image once; those of flat samples last.
    """

    values: dict[str, NDArray[np.float64]]
    pairs: list[AlikePair]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A training image: its row in the table, its picture, and the numbers of the samples that copied it."""

    row: TrainedRow
    picture: NDArray[np.uint8]
    samples: list[int]


@dataclass(frozen=True, kw_only=True)
class Audit:
    """All of an audit's folder.

    Attributes:
        name: for people.
        folder: where it lies.
        numbers: the content of audit.json.
        exact: how many samples equal a training image, pixel by pixel, as it is or mirrored.
        ratios, held_out_ratios: distance ratios in pixels, float64 (N,) and (H,).
        first: the first samples, uint8 (N, C, H, W); none of audits that were made before these were kept.
        pairs: the closest ones, closest first; those of flat samples last.
        transformed: the closest ones by another way than as they are; none of audits that did not look for these, or
            kept no such pictures.
        alike: by the name of each feature space.
        top, skipped: training images, most often copied or skipped first.
        curves: points by member.
        watch: the points of the run's watch; none where it was not watched.
    """

    name: str
    folder: Path
    numbers: AuditRecord
    exact: int
    ratios: NDArray[np.float64]
    held_out_ratios: NDArray[np.float64]
    first: NDArray[np.uint8]
    pairs: list[Pair]
    transformed: list[TransformedPair]
    alike: dict[str, Alikes]
    top: list[Trained]
    skipped: list[Trained]
    curves: dict[str, list[Point]]
    watch: list[WatchPoint]


def read_audit(name: str, folder: Path) -> Audit:
    """Read an audit's folder.

    Args:
        name: for people.
        folder: that `iet-agc audit` wrote.

    Raises:
        UserError: the folder holds no audit, one of another version, or a damaged one.
    """
    numbers = read_record(folder / "audit.json", _FILES)
    table = _attempt(folder / "samples.csv", read_table)
    rows = _attempt(folder / "samples.csv", lambda _: _sample_rows(table, numbers))
    training = _attempt(folder / "training-images.csv", partial(_training_rows, numbers=numbers))
    pictures = _attempt(folder / "pictures.npz", partial(_pictures, numbers=numbers))
    curves = _attempt(folder / "curves.json", _curves)
    copying = _copying(rows, numbers.cut)

    def shown(read: Callable[[], _T]) -> _T:
        return _attempt(folder / "pictures.npz", lambda _: read())

    return Audit(
        name=name,
        folder=folder,
        numbers=numbers,
        exact=sum(row.distance == 0 for row in rows),
        ratios=np.array([row.ratio for row in rows]),
        held_out_ratios=pictures["held_out_ratios"],
        first=pictures.get("first_samples", pictures["worst_samples"][:0]),
        pairs=shown(lambda: _pairs(rows, pictures)),
        transformed=shown(lambda: _transformed(table, pictures)),
        alike=shown(lambda: _alike(numbers, table, pictures)),
        top=shown(lambda: _trained(training, copying, pictures, "top")),
        skipped=shown(lambda: _trained(training, copying, pictures, "skipped")),
        curves=curves,
        watch=_attempt(folder / "watch.json", _watch) if (folder / "watch.json").is_file() else [],
    )


def first_samples(folder: Path) -> NDArray[np.uint8]:
    """The first samples of an audit, uint8 (N, C, H, W); none where its folder does not hold their pictures.

    Raises:
        UserError: they are damaged.
    """
    file, none = folder / "pictures.npz", np.empty((0, 1, 1, 1), np.uint8)
    if not file.exists():
        return none
    numbers = read_record(folder / "audit.json", (file.name,))
    return _attempt(file, partial(_pictures, numbers=numbers)).get("first_samples", none)


def _attempt(file: Path, read: Callable[[Path], _T]) -> _T:
    """Call `read`; whatever shows that the file is damaged becomes one clear line."""
    try:
        return read(file)
    except FileNotFoundError as error:
        raise UserError(f"{file} is not there; run the same 'iet-agc audit' again") from error
    except (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile, csv.Error) as error:
        reason = one_line(error) if isinstance(error, ValidationError) else in_words(error)
        raise UserError(f"{file} is damaged: {reason}; run the same 'iet-agc audit' again") from error


def _checked(kind: type[_Row], rows: Sequence[Mapping[str, str]]) -> list[_Row]:
    """Rows of a table as they are meant."""
    return [kind.model_validate_strings(row) for row in rows]


def _sample_rows(table: Sequence[Mapping[str, str]], numbers: AuditRecord) -> list[SampleRow]:
    rows = _checked(SampleRow, table)
    if len(rows) != numbers.num_samples:
        raise UserError(f"{len(rows)} rows, audit.json counts {numbers.num_samples} samples")
    if [row.sample for row in rows] != [*range(len(rows))]:
        raise UserError("its samples are not numbered from 0 on")
    below, told = sum(row.ratio < float(CUT) for row in rows), numbers.mq[CUT].count
    if below != told:
        raise UserError(f"{below} ratios are below {CUT}, audit.json counts {told}")
    return rows


def _training_rows(file: Path, numbers: AuditRecord) -> list[TrainedRow]:
    rows = _checked(TrainedRow, read_table(file))
    if len(rows) != numbers.num_train_unique:
        raise UserError(f"{len(rows)} rows, audit.json counts {numbers.num_train_unique} unique training images")
    return rows


def _pictures(file: Path, numbers: AuditRecord) -> _Arrays:
    check_regular(file)
    with np.load(file, allow_pickle=False) as archive:
        pictures = {key: archive[key] for key in archive.files}
    found = len(pictures["held_out_ratios"])
    if found != numbers.num_held_out:
        raise UserError(f"{found} held-out ratios, audit.json counts {numbers.num_held_out}")
    if not _all_within(pictures["held_out_ratios"], 0):
        raise UserError("a held-out ratio is not between 0 and 1")
    return pictures


def _all_within(values: NDArray[Any], least: float) -> bool:
    """Whether all are finite, and from `least` to 1."""
    return bool(((values >= least - ROUNDING) & (values <= 1 + ROUNDING)).all())


def _curves(file: Path) -> dict[str, list[Point]]:
    return TypeAdapter(dict[str, list[Point]]).validate_json(read_bytes(file))


def _watch(file: Path) -> list[WatchPoint]:
    return TypeAdapter(list[WatchPoint]).validate_json(read_bytes(file))


#: Of a pair: the sample, its picture, the one of the training image, and whether the sample is flat.
_Pictured = Iterator[tuple[int, NDArray[np.uint8], NDArray[np.uint8], bool]]


def _pictured(pictures: _Arrays, names: Sequence[str], flat: str) -> _Pictured:
    """Pairs by the names of their arrays; of an audit that does not know which are flat, none is."""
    numbers, samples, originals = (pictures[name] for name in names)
    told = pictures.get(flat, np.zeros(len(numbers), bool))
    return zip(numbers.tolist(), samples, originals, told.tolist(), strict=True)


def _pairs(rows: Sequence[SampleRow], pictures: _Arrays) -> list[Pair]:
    found = _pictured(pictures, ("worst", "worst_samples", "worst_originals"), "worst_flat")
    return [Pair(row=rows[n], picture=sample, original=original, flat=flat) for n, sample, original, flat in found]


def _transformed(table: Sequence[Mapping[str, str]], pictures: _Arrays) -> list[TransformedPair]:
    if "transformed" not in pictures:
        return []
    names = "transformed", "transformed_samples", "transformed_originals"
    found = zip(_pictured(pictures, names, "transformed_flat"), pictures["transformed_overlaid"], strict=True)
    return [
        TransformedPair(row=_transformed_row(table[n]), picture=sample, original=original, flat=flat, overlaid=overlaid)
        for (n, sample, original, flat), overlaid in found
    ]


def _transformed_row(row: Mapping[str, str]) -> TransformedRow:
    """A row in terms of the training image that was transformed."""
    others = {key: value for key, value in row.items() if not key.startswith("nearest")}
    own = {key: row[f"transformed_{key}"] for key in ("nearest", "nearest_file")}
    return TransformedRow.model_validate_strings(others | own)


def _alike(numbers: AuditRecord, table: Sequence[Mapping[str, str]], pictures: _Arrays) -> dict[str, Alikes]:
    """The most similar pairs of each feature space; the table and the pictures know it by its place among them."""
    found = {}
    for number, (name, space) in enumerate(numbers.feature_spaces.items()):
        parts = {key: pictures[f"similar_{number}_{key}"] for key in ("samples", "train", "held_out")}
        if not all(_all_within(each, -1) for each in parts.values()):
            raise UserError(f"a similarity of {name} is not between -1 and 1")
        threshold, told = space.similarity.threshold, space.similarity.samples.above.count
        above = int((parts["samples"] > threshold).sum())
        if above != told:
            raise UserError(f"{above} similarities of {name} are above the threshold, audit.json counts {told}")
        names = [f"similar_{number}_{part}" for part in ("pairs", "pair_samples", "pair_originals")]
        pairs = [
            AlikePair(row=_alike_row(table[sample], number), picture=picture, original=original, flat=flat)
            for sample, picture, original, flat in _pictured(pictures, names, f"similar_{number}_pairs_flat")
        ]
        found[name] = Alikes(parts, pairs)
    return found


def _alike_row(row: Mapping[str, str], number: int) -> AlikeRow:
    """A row in terms of one feature space, whose columns end in its number."""
    others = {key: value for key, value in row.items() if not key.startswith("nearest")}
    own = {key.removesuffix(f"_{number}"): value for key, value in row.items() if key.endswith(f"_{number}")}
    return AlikeRow.model_validate_strings(others | own)


def _copying(rows: Sequence[SampleRow], cut: float) -> dict[int, list[int]]:
    """Of each training image that was copied, the samples that copied it."""
    samples: dict[int, list[int]] = {}
    for row in rows:
        if row.ratio < cut:
            samples.setdefault(row.nearest, []).append(row.sample)
    return samples


def _trained(
    rows: Sequence[TrainedRow], copying: Mapping[int, list[int]], pictures: _Arrays, kind: str
) -> list[Trained]:
    by_image, found = {row.image: row for row in rows}, []
    for image, picture in zip(pictures[kind].tolist(), pictures[f"{kind}_images"], strict=True):
        row, samples = by_image[image], copying.get(image, [])
        if len(samples) != row.copied:
            told = f"training-images.csv counts {row.copied}"
            raise UserError(f"{len(samples)} samples copied training image {image}, {told}")
        found.append(Trained(row=row, picture=picture, samples=samples))
    return found
