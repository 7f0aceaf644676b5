"""Audits read back: a folder that `iet-agc audit` wrote -> what a report needs of it, checked. No torch here.

Version 1 of audit.json has grown: statistics, feature spaces, warnings, names of files and the newer numbers of quality
may be absent, and so may similarities, alignment, prompts and the CLIP score.
"""

import csv
import io
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from iet_agc.metrics.intervals import calibration_rank
from iet_agc.runtime.errors import UserError, in_words
from iet_agc.runtime.reading import check_regular, read_object, read_text
from iet_agc.runtime.seal import unsealed

__all__ = [
    "CUT",
    "AlikePair",
    "Audit",
    "Copies",
    "Pair",
    "Quality",
    "Share",
    "Similarity",
    "Space",
    "Statistic",
    "Trained",
    "read_audit",
    "read_numbers",
]

#: The cut that every audit has, calibrated or not.
CUT = "0.15"

#: What is read beside audit.json.
_FILES = ("samples.csv", "training-images.csv", "pictures.npz", "curves.json")

#: The paper's nine.
_CUTS = ("0.15", "0.20", "0.30", "0.40", "0.50", "0.60", "0.70", "0.80", "0.90")

#: Numbers of quality, as audit.json names them; each is null, a number, or {"mean", "std"}.
_SETS = ("train", "held_out")
_MEASURES = (
    *(f"{measure}_{images}" for measure in ("frechet", "kid", "precision", "recall", "mifid") for images in _SETS),
    "frechet_train_to_held_out",
    "inception_score",
)

#: What a report takes from names, from the points of a curve, and from the words of a statistic.
_NAMES = ("train", "samples", "held_out")
_POINT = ("images_seen", "loss", "learning_rate", "skip_rate", "skip_rate_bands")
_WORDS = ("direction", "convention", "source")

#: What arithmetic in float32 may add to a number, or take from it.
_ROUNDING = 1e-6

#: One training image may have been copied by every sample, and a cell of the table names them all.
_LONGEST_CELL = 2**31 - 1

_T = TypeVar("_T")


@dataclass(frozen=True)
class Share:
    """A share of images with its 95 % interval."""

    count: int
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Statistic:
    """One of the field's other statistics: a share of samples and of held-out images, or (C_T) a value.

    Attributes:
        key: its name in audit.json.
        share, held_out: None where the statistic is no share, or was not taken.
        value: in standard deviations, with null_sd, that of samples which are like held-out images.
        cells: how many cells of space the value is a mean of.
        direction, convention, source: words.
    """

    key: str
    direction: str
    convention: str
    source: str
    share: Share | None = None
    held_out: Share | None = None
    value: float = math.nan
    null_sd: float | None = None
    cells: int | None = None


@dataclass(frozen=True)
class Copies:
    """How much is copied in one space, that of pixels or of a network's features.

    Attributes:
        samples, held_out: how many images.
        mq, held_out_mq: shares below the nine cuts; None where no held-out images were given.
        calibrated: share below the calibrated cut; None where held-out images are too few.
        cut: below it a sample is called a copy: the calibrated cut, or 0.15.
        false_alarm: the share of real images that the calibrated cut calls copies, by its making; else NaN.
        set_by: how many held-out images set the calibrated cut: those that are no near copies themselves.
        statistics: those that the audit has.
        warnings: sentences, why these numbers are not to be trusted; none in old audits.
    """

    samples: int
    held_out: int
    mq: dict[str, Share]
    held_out_mq: dict[str, Share] | None
    calibrated: Share | None
    cut: float
    false_alarm: float
    set_by: int
    statistics: list[Statistic]
    warnings: list[str]

    @property
    def copied(self) -> Share:
        """The share below `cut`."""
        return self.calibrated or self.mq[CUT]

    @property
    def most_false_alarms(self) -> float:
        """Upper end of the 95 % interval of the share of all real images that fall below the calibrated cut.

        The cut is the j-th smallest of H held-out ratios, so that share follows Beta(j, H + 1 - j) (Wilks, 1941).
        """
        return _most_false_alarms(self.false_alarm, self.set_by)


def _most_false_alarms(false_alarm: float, set_by: int) -> float:
    from scipy.stats import beta

    rank = calibration_rank(false_alarm, set_by)
    return float(beta.ppf(0.975, rank, set_by + 1 - rank))


@dataclass(frozen=True)
class AlikePair:
    """A sample and the training image most similar to it, in one feature space; pictures uint8 (C, H, W)."""

    sample: int
    seed: str
    similarity: float
    nearest: int
    picture: NDArray[np.uint8]
    original: NDArray[np.uint8]
    file: str = ""
    nearest_file: str = ""
    prompt: str = ""
    caption: str = ""


@dataclass(frozen=True)
class Similarity:
    """Cosine similarity with the most similar training image, in one feature space.

    Attributes:
        copy_detection: whether the features were made to find copies.
        threshold: above it, two images are a replication by the descriptor of the field.
        above, p95, mean: of "samples", "train" and, where there are any, "held_out": the share above the threshold;
            the 95th percentile and the mean, each with its interval.
        calibrated: share of samples above the calibrated cut; None where held-out images are too few.
        cut, false_alarm, set_by: see `Copies`.
        convention, source: words.
        values: the similarities of "samples", "train" and "held_out", float64.
        pairs: the most similar ones, each training image once.
    """

    copy_detection: bool
    threshold: float
    above: dict[str, Share]
    p95: dict[str, tuple[float, float, float]]
    mean: dict[str, float]
    calibrated: Share | None
    cut: float
    false_alarm: float
    set_by: int
    convention: str
    source: str
    values: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    pairs: list[AlikePair] = field(default_factory=list)

    @property
    def most_false_alarms(self) -> float:
        """See `Copies`."""
        return _most_false_alarms(self.false_alarm, self.set_by)


@dataclass(frozen=True)
class Quality:
    """How good the samples are in one space.

    Attributes:
        extractor: whose features, or "pixels".
        sha256: of its weights; None for pixels, and in old audits.
        dimensions: of a feature; None in old audits.
        values: number by its name in audit.json, with its standard deviation or None; nulls are left out.
        few_images: no more images than dimensions.
        warnings: sentences.
        conventions: words by name.
    """

    extractor: str
    sha256: str | None
    dimensions: int | None
    values: dict[str, tuple[float, float | None]]
    few_images: bool
    warnings: list[str]
    conventions: dict[str, Any]


@dataclass(frozen=True)
class Space:
    """What was found in the features of one network."""

    name: str
    sha256: str | None
    dimensions: int
    copies: Copies
    quality: Quality
    similarity: Similarity | None = None
    alignment: dict[str, Any] | None = None


@dataclass(frozen=True)
class Pair:
    """A sample and the training image nearest to it; pictures uint8 (C, H, W).

    `file` and `nearest_file` are their paths below the folders that they were read from, empty where there are none;
    `prompt` and `caption` what is said of them, empty likewise.
    """

    sample: int
    seed: str
    ratio: float
    nearest: int
    distance: float
    mirrored: bool
    picture: NDArray[np.uint8]
    original: NDArray[np.uint8]
    file: str = ""
    nearest_file: str = ""
    prompt: str = ""
    caption: str = ""

    @property
    def differences(self) -> NDArray[np.uint8]:
        """Absolute differences, (C, H, W); of a mirrored pair, after the original is mirrored."""
        original = self.original[:, :, ::-1] if self.mirrored else self.original
        return np.maximum(self.picture, original) - np.minimum(self.picture, original)


@dataclass(frozen=True)
class Trained:
    """A training image; samples are the numbers of those that copied it; seen and skipped are None without a run.

    `file` is its path below the folder that the set was read from, empty where it was read from none.
    """

    image: int
    multiplicity: int
    copied: int
    picture: NDArray[np.uint8]
    samples: list[int] = field(default_factory=list)
    seen: int | None = None
    skipped: int | None = None
    file: str = ""

    @property
    def skip_share(self) -> float:
        """Of the times that it was seen."""
        return (self.skipped or 0) / max(self.seen or 0, 1)


@dataclass(frozen=True)
class Audit:
    """All of an audit's folder.

    Attributes:
        name: for people.
        folder: where it lies.
        numbers: the content of audit.json.
        copies: in pixels.
        quality: in the space that was asked for first.
        spaces: of the networks.
        exact: how many samples equal a training image, pixel by pixel, as it is or mirrored.
        ratios, held_out_ratios: distance ratios in pixels, float64 (N,) and (H,).
        pairs: the closest ones, closest first.
        top, skipped: training images, most often copied or skipped first.
        curves: points by member.
    """

    name: str
    folder: Path
    numbers: dict[str, Any]
    copies: Copies
    quality: Quality
    spaces: list[Space]
    exact: int
    ratios: NDArray[np.float64]
    held_out_ratios: NDArray[np.float64]
    pairs: list[Pair]
    top: list[Trained]
    skipped: list[Trained]
    curves: dict[str, list[dict[str, Any]]]


def read_audit(name: str, folder: Path) -> Audit:
    """Read an audit's folder.

    Args:
        name: for people.
        folder: that `iet-agc audit` wrote.

    Raises:
        UserError: the folder holds no audit, one of another version, or a damaged one.
    """
    numbers, (copies, quality, spaces) = _read_content(folder / "audit.json", _FILES)
    rows = _attempt(folder / "samples.csv", partial(_sample_rows, copies=copies))
    training = _attempt(folder / "training-images.csv", partial(_training_rows, numbers=numbers))
    pictures = _attempt(folder / "pictures.npz", partial(_read_pictures, copies=copies))
    curves = _attempt(folder / "curves.json", _read_curves)
    pairs = _attempt(folder / "pictures.npz", lambda _: _pairs(rows, pictures))
    table = _attempt(folder / "samples.csv", _rows)
    spaces = [
        _attempt(folder / "pictures.npz", partial(_with_values, space, number, table, pictures))
        for number, space in enumerate(spaces)
    ]
    copying = _copying(rows, copies.cut)
    top, skipped = (
        _attempt(folder / "pictures.npz", partial(_trained, training, copying, pictures, kind))
        for kind in ("top", "skipped")
    )
    exact, ratios = sum(row["distance"] == 0 for row in rows), np.array([row["ratio"] for row in rows])
    real = pictures["held_out_ratios"]
    return Audit(name, folder, numbers, copies, quality, spaces, exact, ratios, real, pairs, top, skipped, curves)


def read_numbers(file: Path) -> dict[str, Any]:
    """The content of an audit.json, after the same checks as `read_audit` makes of it.

    Numbers are finite, shares are those of their counts and within [0, 1], counts within what they are counted in, and
    intervals are in order and hold their share.

    Raises:
        UserError: it is not there, of another version, or damaged.
    """
    return _read_content(file)[0]


def _read_content(file: Path, files: Sequence[str] = ()) -> tuple[dict[str, Any], tuple[Copies, Quality, list[Space]]]:
    if not file.is_file():
        raise UserError(f"{file} is not there: give a folder that 'iet-agc audit --out' wrote")
    numbers = read_object(file, "run the same 'iet-agc audit' again")
    if numbers.get("version") != 1:
        raise UserError(
            f"{file} has version {numbers.get('version')!r}, this iet-agc reads 1: run 'iet-agc audit' again"
        )
    numbers = unsealed(file, numbers, "run the same 'iet-agc audit' again", files)
    return numbers, _attempt(file, lambda _: _read_numbers(numbers))


def _attempt(file: Path, read: Callable[[Path], _T]) -> _T:
    """Call `read`; whatever shows that the file is damaged becomes one clear line."""
    try:
        return read(file)
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        EOFError,
        zipfile.BadZipFile,
        csv.Error,
    ) as error:
        reason = "not there" if isinstance(error, FileNotFoundError) else f"damaged: {in_words(error)}"
        raise UserError(f"{file} is {' '.join(reason.split())}; run the same 'iet-agc audit' again") from error


# audit.json ---------------------------------------------------------------------------------------------


def _read_numbers(numbers: Mapping[str, Any]) -> tuple[Copies, Quality, list[Space]]:
    """Whatever a report takes from audit.json is there, and of the right kind."""
    samples, train, unique, held_out = (
        _count(numbers, key) for key in ("num_samples", "num_train", "num_train_unique", "num_held_out")
    )
    if not 0 < unique <= train or not samples:
        raise UserError(f"there are {samples} samples, and {unique} unique ones of {train} training images")
    _ = [_count(numbers, key) for key in ("num_held_out_in_train", "num_held_out_repeated") if key in numbers]
    for key in ("conventions", "names"):
        _object(numbers, key)
    _ = [_string(_object(numbers, "sha256"), key) for key in ("train", "samples")] if numbers.get("sha256") else []
    if "prompts" in numbers:
        _ = [_count(_object(numbers, "prompts"), key) for key in ("num_prompts", "num_train_images")]
    if numbers.get("clip"):
        _ = [_mean(numbers["clip"]["score"]), _string(numbers["clip"], "model")]
    if numbers.get("gate"):
        _check_gate(_object(numbers, "gate"), samples)
    _ = [_string(numbers["names"], key) for key in _NAMES]
    totals = {"samples": samples, "train": unique, "held_out": held_out}
    spaces = _object(numbers, "feature_spaces") if "feature_spaces" in numbers else {}
    read = [_read_space(name, space, totals) for name, space in spaces.items()]
    return _read_copies(numbers, totals), _read_quality(_object(numbers, "quality")), read


def _check_gate(entry: Mapping[str, Any], samples: int) -> None:
    """A gate failed where one of its checks did, and a check where its limit is above the share that is allowed."""
    fail_above, checks = _portion(entry, "fail_above"), _of_kind(entry, "checks", list)
    _ = _portion(entry, "risk"), _string(entry, "convention")
    for check in checks:
        count, share, least = _count(check, "count"), _portion(check, "share"), _portion(check, "least")
        _ = _string(check, "what"), _count(check, "fails_from"), _portion(check, "harmless")
        if count > samples or not math.isclose(count, share * samples, abs_tol=_ROUNDING * samples):
            raise UserError(f"a gate's share is {share!r}, and its count is {count} of {samples}")
        if _of_kind(check, "failed", bool) != (least > fail_above):
            raise UserError(f"a check's failed is {check['failed']!r}: {least!r} at least, {fail_above!r} allowed")
    if not checks or _of_kind(entry, "failed", bool) != any(check["failed"] for check in checks):
        raise UserError(f"a gate's failed is {entry['failed']!r}, with {len(checks)} checks")


def _read_space(name: str, entry: Mapping[str, Any], totals: Mapping[str, int]) -> Space:
    copies, quality = _read_copies(entry, totals), _read_quality(_object(entry, "quality"))
    similarity = _read_similarity(_object(entry, "similarity"), totals) if "similarity" in entry else None
    aligned = _read_alignment(_object(entry, "alignment")) if entry.get("alignment") else None
    return Space(name, entry["sha256"], _count(entry, "dimensions"), copies, quality, similarity, aligned)


def _read_similarity(entry: Mapping[str, Any], totals: Mapping[str, int]) -> Similarity:
    found = {"samples": _object(entry, "samples")} | {images: entry[images] for images in _SETS if entry[images]}
    calibrated, cut, false_alarm, set_by = entry["calibrated"], math.nan, math.nan, 0
    if calibrated:
        cut, false_alarm, set_by = *(_number(calibrated, key) for key in ("cut", "false_alarm")), _set_by(calibrated)
        if calibration_rank(false_alarm, set_by) < 1 or set_by > totals["held_out"] or abs(cut) > 1 + _ROUNDING:
            raise UserError(f"calibrated is {calibrated!r}")
    return Similarity(
        bool(entry["copy_detection"]),
        _number(entry, "threshold"),
        {images: _share(each["above"], totals[images]) for images, each in found.items()},
        {images: (_number(each["p95"], "value"), *_interval(each["p95"])) for images, each in found.items()},
        {images: _mean(each["mean"]) for images, each in found.items()},
        _share(calibrated, totals["samples"]) if calibrated else None,
        cut,
        false_alarm,
        set_by,
        _string(entry, "convention"),
        _string(entry, "source"),
    )


def _read_alignment(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Per set of images, what a page shows of it."""
    return {
        "convention": _string(entry, "convention"),
        "source": _string(entry, "source"),
        "sets": {
            images: {
                "samples": _count(each, "num_samples"),
                "captions": _count(each, "num_captions"),
                "percentile": (_mean(each["percentile"]), each["percentile"]["ci95"]),
                "reciprocal_rank": (_mean(each["reciprocal_rank"]), each["reciprocal_rank"]["ci95"]),
                **{top: _share(each[top], each["num_samples"]) for top in ("top1", "top10")},
                "chance": {key: _number(each["chance"], key) for key in ("percentile", "top1", "top10")},
            }
            for images in _SETS
            if (each := entry[images])
        },
    }


def _read_copies(entry: Mapping[str, Any], totals: Mapping[str, int]) -> Copies:
    held_out, calibrated, (samples, real) = entry["held_out"], entry["calibrated"], _samples_and_real(totals)
    mq = {cut: _share(entry["mq"][cut], samples) for cut in sorted({*entry["mq"], *_CUTS}, key=float)}
    held_out_mq = {cut: _share(held_out["mq"][cut], real) for cut in mq} if held_out else None
    cut, false_alarm, set_by = float(CUT), math.nan, real
    if calibrated:
        cut, false_alarm = _number(calibrated, "cut"), _number(calibrated, "false_alarm")
        set_by = _set_by(calibrated) if "num_held_out" in calibrated else real  # old audits took all
        if cut < 0 or set_by > real or calibration_rank(false_alarm, set_by) < 1:
            raise UserError(f"calibrated is {calibrated!r} on {real} held-out images")
    of_held_out = (held_out or {}).get("statistics") or {}
    given = {key: each for key, each in (entry.get("statistics") or {}).items() if each}
    found = [_statistic(key, each, of_held_out.get(key), totals) for key, each in given.items()]
    share = _share(calibrated, samples) if calibrated else None
    return Copies(samples, real, mq, held_out_mq, share, cut, false_alarm, set_by, found, _sentences(entry))


def _samples_and_real(totals: Mapping[str, int]) -> tuple[int, int]:
    return totals["samples"], totals["held_out"]


def _set_by(calibrated: Mapping[str, Any]) -> int:
    """How many held-out images set a cut."""
    return _count(calibrated, "num_held_out")


def _share(entry: Mapping[str, Any], total: int) -> Share:
    """A share of so many images, which is what its count says, with its interval around it."""
    count, share, (low, high) = _count(entry, "count"), _number(entry, "share"), _interval(entry)
    if not count <= total or not math.isclose(count, share * total, abs_tol=_ROUNDING * total):
        raise UserError(f"a share is {share!r}, and its count is {count} of {total}")
    if not -_ROUNDING <= low <= share + _ROUNDING or not share - _ROUNDING <= high <= 1 + _ROUNDING:
        raise UserError(f"a share of {share!r} has the interval from {low!r} to {high!r}")
    if "clusters" in entry and (_count(entry, "clusters") < 1 or _number(entry, "design_effect") < 1):
        raise UserError(f"a share has {entry['clusters']} clusters, the design effect {entry['design_effect']!r}")
    return Share(count, share, low, high)


def _interval(entry: Mapping[str, Any]) -> tuple[float, float]:
    low, high = (_number(entry["ci95"], place) for place in range(len(entry["ci95"])))
    if low > high:
        raise UserError(f"ci95 is {entry['ci95']!r}")
    return low, high


def _mean(entry: Mapping[str, Any]) -> float:
    """A mean, whose interval is null where it is that of one number."""
    _ = _interval(entry) if entry["ci95"] is not None else ()
    return _number(entry, "mean")


def _statistic(
    key: str, entry: Mapping[str, Any], held_out: Mapping[str, Any] | None, totals: Mapping[str, int]
) -> Statistic:
    direction, convention, source = (_string(entry, word) for word in _WORDS)
    if "value" not in entry:
        real = _share(held_out, totals["held_out"]) if held_out else None
        return Statistic(key, direction, convention, source, share=_share(entry, totals["samples"]), held_out=real)
    null_sd = _number(entry, "null_sd") if "null_sd" in entry else None
    value, cells = _number(entry, "value"), _count(entry, "cells")
    return Statistic(key, direction, convention, source, value=value, null_sd=null_sd, cells=cells)


def _read_quality(entry: Mapping[str, Any]) -> Quality:
    _ = entry["frechet_train"], entry["frechet_held_out"]  # every audit has them, if only as null
    values = {name: _spread(entry, name) for name in _MEASURES if entry.get(name) is not None}
    for name in (f"{measure}_{images}" for measure in ("precision", "recall") for images in _SETS):
        if not 0 <= values.get(name, (0, None))[0] <= 1:
            raise UserError(f"{name} is {entry[name]!r}")
    dimensions = _count(entry, "dimensions") if "dimensions" in entry else None
    conventions = _object(entry, "conventions") if "conventions" in entry else {}
    extractor, few_images = _string(entry, "extractor"), bool(entry["few_images"])
    return Quality(extractor, entry.get("sha256"), dimensions, values, few_images, _sentences(entry), conventions)


def _sentences(entry: Mapping[str, Any]) -> list[str]:
    """The warnings of an entry; old audits have none."""
    warnings = entry.get("warnings", [])
    if not isinstance(warnings, list) or not all(isinstance(each, str) for each in warnings):
        raise UserError(f"warnings is {warnings!r}")
    return warnings


def _spread(entry: Mapping[str, Any], name: str) -> tuple[float, float | None]:
    """A number with its standard deviation, if it has one."""
    each = entry[name]
    return (_number(each, "mean"), _number(each, "std")) if isinstance(each, dict) else (_number(entry, name), None)


def _number(entry: Any, key: Any) -> float:
    if isinstance(entry[key], bool) or not math.isfinite(_of_kind(entry, key, (int, float))):
        raise UserError(f"{key} is {entry[key]!r}")
    return entry[key]


def _portion(entry: Any, key: str) -> float:
    if not 0 <= _number(entry, key) <= 1:
        raise UserError(f"{key} is {entry[key]!r}")
    return entry[key]


def _count(entry: Mapping[str, Any], key: str) -> int:
    if isinstance(entry[key], bool) or _of_kind(entry, key, int) < 0:
        raise UserError(f"{key} is {entry[key]!r}")
    return entry[key]


def _string(entry: Mapping[str, Any], key: str) -> str:
    return _of_kind(entry, key, str)


def _object(entry: Mapping[str, Any], key: str) -> dict[str, Any]:
    return _of_kind(entry, key, dict)


def _of_kind(entry: Any, key: Any, kind: type | tuple[type, ...]) -> Any:
    if not isinstance(entry[key], kind):
        raise UserError(f"{key} is {entry[key]!r}")
    return entry[key]


# The tables, pictures and curves ------------------------------------------------------------------------


def _rows(file: Path) -> list[dict[str, str]]:
    csv.field_size_limit(_LONGEST_CELL)
    return list(csv.DictReader(io.StringIO(read_text(file), newline="")))


def _sample_rows(file: Path, copies: Copies) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {
            "sample": _whole(row, "sample"),
            "seed": row["seed"],
            "ratio": _within(row, "ratio", 1),
            "nearest": _whole(row, "nearest"),
            "distance": _within(row, "distance"),
            "mirrored": bool(("0", "1").index(row["mirrored"])),
            "file": row.get("file") or "",
            "nearest_file": row.get("nearest_file") or "",
            "prompt": row.get("prompt") or "",
            "caption": row.get("nearest_caption") or "",
        }
        for row in _rows(file)
    ]
    if len(rows) != copies.samples:
        raise UserError(f"{len(rows)} rows, audit.json counts {copies.samples} samples")
    if [row["sample"] for row in rows] != [*range(len(rows))]:
        raise UserError("its samples are not numbered from 0 on")
    below, told = sum(row["ratio"] < float(CUT) for row in rows), copies.mq[CUT].count
    if below != told:
        raise UserError(f"{below} ratios are below {CUT}, audit.json counts {told}")
    return rows


def _whole(row: Mapping[str, str], column: str) -> int:
    value = int(row[column])
    if value < 0:
        raise UserError(f"a value of {column} is {value}")
    return value


def _within(row: Mapping[str, str], column: str, most: float = math.inf, least: float = 0) -> float:
    value = float(row[column])
    if not (math.isfinite(value) and least - _ROUNDING <= value <= most + _ROUNDING):
        raise UserError(f"a value of {column} is {value}")
    return value


def _training_rows(file: Path, numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    columns = ("image", "multiplicity", "copied", "seen", "skipped")
    rows: list[dict[str, Any]] = [
        {column: _whole(row, column) for column in columns if column in row} | {"file": row.get("file") or ""}
        for row in _rows(file)
    ]
    if odd := [row["image"] for row in rows if row.get("skipped", 0) > row.get("seen", 0)]:
        raise UserError(f"training image {odd[0]} was skipped more often than it was seen")
    if len(rows) != numbers["num_train_unique"]:
        raise UserError(f"{len(rows)} rows, audit.json counts {numbers['num_train_unique']} unique training images")
    return rows


def _read_pictures(file: Path, copies: Copies) -> dict[str, NDArray[Any]]:
    check_regular(file)
    with np.load(file, allow_pickle=False) as archive:
        pictures = {key: archive[key] for key in archive.files}
    if len(pictures["held_out_ratios"]) != copies.held_out:
        raise UserError(f"{len(pictures['held_out_ratios'])} held-out ratios, audit.json counts {copies.held_out}")
    if not _all_within(pictures["held_out_ratios"], 0):
        raise UserError("a held-out ratio is not between 0 and 1")
    return pictures


def _all_within(values: NDArray[Any], least: float) -> bool:
    """Whether all are finite, and from `least` to 1."""
    return bool(((values >= least - _ROUNDING) & (values <= 1 + _ROUNDING)).all())


def _read_curves(file: Path) -> dict[str, list[dict[str, Any]]]:
    curves = read_object(file)
    absent = [key for points in curves.values() for point in points for key in _POINT if key not in point]
    if absent:
        raise UserError(f"a point without {absent[0]}")
    for point in (point for points in curves.values() for point in points):
        _ = [_number(point, key) for key in _POINT if key != "skip_rate_bands"]
        bands = point["skip_rate_bands"]
        _ = [_number(bands, place) for place, band in enumerate(bands) if band is not None]
    return curves


def _pairs(rows: Sequence[Mapping[str, Any]], pictures: Mapping[str, NDArray[Any]]) -> list[Pair]:
    found = zip(pictures["worst"].tolist(), pictures["worst_samples"], pictures["worst_originals"], strict=True)
    return [Pair(**rows[number], picture=picture, original=original) for number, picture, original in found]


def _with_values(
    space: Space, number: int, rows: Sequence[Mapping[str, str]], pictures: Mapping[str, NDArray[Any]], _: Path
) -> Space:
    """A feature space with its similarities and most similar pairs, which stand in the table and among the pictures."""
    if space.similarity is None:
        return space
    values = {images: pictures[f"similar_{number}_{images}"] for images in ("samples", *_SETS)}
    if not all(_all_within(each, -1) for each in values.values()):
        raise UserError(f"a similarity of {space.name} is not between -1 and 1")
    above, told = int((values["samples"] > space.similarity.threshold).sum()), space.similarity.above["samples"].count
    if above != told:
        raise UserError(f"{above} similarities of {space.name} are above the threshold, audit.json counts {told}")
    found = zip(
        *(pictures[f"similar_{number}_{part}"] for part in ("pairs", "pair_samples", "pair_originals")), strict=True
    )
    pairs = [_alike(rows[int(sample)], number, picture, original) for sample, picture, original in found]
    return replace(space, similarity=replace(space.similarity, values=values, pairs=pairs))


def _alike(row: Mapping[str, str], number: int, picture: NDArray[np.uint8], original: NDArray[np.uint8]) -> AlikePair:
    return AlikePair(
        _whole(row, "sample"),
        row["seed"],
        _within(row, f"similarity_{number}", 1, -1),
        _whole(row, f"nearest_{number}"),
        picture,
        original,
        row.get("file") or "",
        row.get(f"nearest_file_{number}") or "",
        row.get("prompt") or "",
        row.get(f"nearest_caption_{number}") or "",
    )


def _copying(rows: Sequence[Mapping[str, Any]], cut: float) -> dict[int, list[int]]:
    """Of each training image that was copied, the samples that copied it."""
    samples: dict[int, list[int]] = {}
    for row in rows:
        if row["ratio"] < cut:
            samples.setdefault(row["nearest"], []).append(row["sample"])
    return samples


def _trained(
    rows: Sequence[Mapping[str, Any]],
    copying: Mapping[int, list[int]],
    pictures: Mapping[str, NDArray[Any]],
    kind: str,
    _: Path,
) -> list[Trained]:
    found = zip(pictures[kind].tolist(), pictures[f"{kind}_images"], strict=True)
    by_image = {row["image"]: row for row in rows}
    trained = [Trained(**by_image[image], picture=picture, samples=copying.get(image, [])) for image, picture in found]
    for each in trained:
        if len(each.samples) != each.copied:
            told = f"training-images.csv counts {each.copied}"
            raise UserError(f"{len(each.samples)} samples copied training image {each.image}, {told}")
    return trained
