"""Audit: how much of a sample set is copied from a training set, with its uncertainty.

Every share has a 95 % Wilson interval. The same statistic on held-out real images stands beside it,
since a cut alone says nothing: real images, too, have near neighbours.
"""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor

from iet_agc.config import is_run, read_settings
from iet_agc.data import DATASETS, ImageSet, load_dataset
from iet_agc.files import holds_others, replace_text, replacing
from iet_agc.log import progress_bar, read_curve
from iet_agc.metrics.memorization import CUTS, distance_ratio
from iet_agc.metrics.neighbors import nearest
from iet_agc.metrics.quality import default_extractor, features, frechet_distance
from iet_agc.samples import load_samples
from iet_agc.telemetry import read_telemetry

__all__ = [
    "FALSE_ALARM_PERCENT",
    "AuditResult",
    "TrainingRecord",
    "audit",
    "audit_sources",
    "load_part",
    "read_record",
    "save_audit",
    "share_below",
]

#: Of held-out real images, so many in a hundred may be called copies by the calibrated cut.
FALSE_ALARM_PERCENT = 1

#: How many neighbours the mean of the distance ratio takes, the paper's number.
NEIGHBORS = 50


#: What an audit's folder holds; a kill may have left a part of it.
_FILES = {"audit.json", "samples.csv", "training-images.csv", "pictures.npz", "curves.json", "report.html"}


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


@dataclass(frozen=True)
class AuditResult:
    """The numbers of an audit and what they were taken from.

    Attributes:
        numbers: the content of audit.json.
        ratios: distance ratio of each sample, float64 (N,).
        nearest: its nearest training image, int64 (N,), an index into the training set.
        distances: squared L2 to it on [0, 1] pixels, float64 (N,).
        mirrored: whether it is nearer to the mirrored image, bool (N,).
        held_out_ratios: float64 (H,), or None.
        samples, train: the image sets.
        seeds: of the samples, if known.
        unique: where each unique training image stands first, int64 (U,), ascending.
        place: which unique image each training image is, int64 (M,).
        record: of the training run, if known.
    """

    numbers: dict[str, Any]
    ratios: Tensor
    nearest: Tensor
    distances: Tensor
    mirrored: Tensor
    held_out_ratios: Tensor | None
    samples: ImageSet
    train: ImageSet
    unique: Tensor
    place: Tensor
    seeds: Sequence[int] | None = None
    record: TrainingRecord | None = None

    @property
    def cut(self) -> float:
        """Below it a sample is called a copy: the calibrated cut, or 0.15 without held-out images."""
        calibrated = self.numbers["calibrated"]
        return calibrated["cut"] if calibrated else CUTS[0]


def share_below(ratios: Tensor, cut: float) -> dict[str, Any]:
    """Count and share of ratios below a cut.

    Returns:
        {"count", "share", "ci95": [low, high]}; the interval is Wilson's, for a share of independent draws.
    """
    count, total = int((ratios < cut).sum()), len(ratios)
    interval = binomtest(count, total).proportion_ci(0.95, method="wilson")
    return {"count": count, "share": count / total, "ci95": [float(interval.low), float(interval.high)]}


def audit(
    train: ImageSet,
    samples: ImageSet,
    held_out: ImageSet | None = None,
    *,
    flips: bool = False,
    extractor: str | None = None,
    seeds: Sequence[int] | None = None,
    record: TrainingRecord | None = None,
    on_images: Callable[[int], object] = lambda count: None,
) -> AuditResult:
    """Measure copies and quality.

    Args:
        train: the training set, duplicates included. They count once as neighbours, and their number is kept.
        samples: the generated images.
        held_out: real images of the same kind that were not trained on; calibrates the cut.
        flips: also look for mirrored copies.
        extractor: features of the Fréchet distance; by default chosen by the images' size.
        seeds: of the samples.
        record: what the training run can tell.
        on_images: called with a number of images that are done, of samples and held-out together.

    Raises:
        ValueError: empty or mismatched sets.
    """
    _check_sets(train, samples, held_out)
    first, inverse = unique_images(train.images)
    unique = train.images[first]
    k = min(NEIGHBORS, len(unique))
    distances, indices = nearest(samples.images, unique, k, flips, on_queries=on_images)
    ratios, closest = distance_ratio(distances), first[indices[:, 0]]
    truly_held_out, held_ratios = None, None
    if held_out:
        held_distances, _ = nearest(held_out.images, unique, k, flips, on_queries=on_images)
        truly_held_out, held_ratios = _not_trained_on(held_out, held_distances)
    mirrored = torch.zeros(len(samples), dtype=torch.bool)
    if flips:
        mirrored = _is_mirrored(samples.images, train.images, closest, distances[:, 0])
    numbers = {
        **_sizes(train, unique, samples, held_out, truly_held_out),
        "conventions": _conventions(k, flips),
        "mq": _quantities(ratios),
        "held_out": None if held_ratios is None else {"mq": _quantities(held_ratios)},
        "calibrated": None if held_ratios is None else _calibrated(ratios, held_ratios),
        "quality": _quality(unique, samples, truly_held_out, extractor or default_extractor(train.shape)),
    }
    return AuditResult(
        numbers, ratios, closest, distances[:, 0], mirrored, held_ratios, samples, train, first, inverse, seeds, record,
    )  # fmt: skip


def unique_images(images: Tensor) -> tuple[Tensor, Tensor]:
    """Find the images that are equal pixel by pixel.

    Args:
        images: uint8 (N, C, H, W).

    Returns:
        first: where each unique image stands first, int64 (U,), ascending.
        inverse: which of these each image is, int64 (N,).
    """
    rows = np.ascontiguousarray(images.flatten(1).numpy())
    keys = rows.view(np.dtype((np.void, rows.shape[1]))).ravel()
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return torch.from_numpy(first[order]), torch.from_numpy(place[inverse.ravel()])


def _check_sets(train: ImageSet, samples: ImageSet, held_out: ImageSet | None) -> None:
    for what, images in (("training set", train), ("sample set", samples), ("held-out set", held_out)):
        if images is None:
            continue
        if len(images) < 2:
            raise ValueError(f"the {what} {images.name} has {len(images)} images: an audit needs at least 2")
        if images.shape != train.shape:
            sizes = f"{_size(images)}, the training set {train.name} is {_size(train)}"
            raise ValueError(f"the {what} {images.name} is {sizes}: sizes must agree")


def _size(images: ImageSet) -> str:
    return " x ".join(str(extent) for extent in images.shape)


def _sizes(
    train: ImageSet, unique: Tensor, samples: ImageSet, given: ImageSet | None, held_out: ImageSet | None
) -> dict[str, Any]:
    """What was audited: how many images, and which, by their fingerprints."""
    num_held_out = len(held_out) if held_out else 0
    return {
        "version": 1,
        "num_samples": len(samples),
        "num_train": len(train),
        "num_train_unique": len(unique),
        "num_held_out": num_held_out,
        "num_held_out_in_train": (len(given) if given else 0) - num_held_out,
        "sha256": {
            "train": train.fingerprint,
            "samples": samples.fingerprint,
            "held_out": held_out.fingerprint if held_out else None,
        },
    }


def _conventions(k: int, flips: bool) -> dict[str, Any]:
    return {
        "distance": "squared L2 on [0, 1] pixels, exact",
        "ratio": "nearest distance / mean of the k nearest, the nearest included",
        "k": k,
        "references": "unique training images",
        "flips": flips,
        "below": "ratio < cut",
        "interval": "Wilson, 95 %",
        "direction": "a lower share is less copied; a lower Fréchet distance is better",
    }


def _quantities(ratios: Tensor) -> dict[str, Any]:
    return {f"{cut:.2f}": share_below(ratios, cut) for cut in CUTS}


def _calibrated(ratios: Tensor, held_out: Tensor) -> dict[str, Any] | None:
    """The cut under which a further real image falls with a probability of at most 1 %.

    Among H + 1 exchangeable ratios the j-th smallest of H has j / (H + 1) below it on average, so
    j = floor(0.01 (H + 1)); fewer than 99 images cannot tell such a cut.
    """
    rank = (len(held_out) + 1) * FALSE_ALARM_PERCENT // 100
    if rank == 0:
        return None
    cut = float(held_out.sort().values[rank - 1])
    return {"false_alarm": FALSE_ALARM_PERCENT / 100, "cut": cut, **share_below(ratios, cut)}


def _not_trained_on(held_out: ImageSet, distances: Tensor) -> tuple[ImageSet, Tensor]:
    """Leave out the held-out images that stand in the training set; the others, and their ratios."""
    fresh = (distances[:, 0] > 0).nonzero()[:, 0]
    if len(fresh) == 0:
        raise ValueError(f"every held-out image of {held_out.name} stands in the training set: give other images")
    return held_out.take(fresh), distance_ratio(distances[fresh])


def _quality(unique: Tensor, samples: ImageSet, held_out: ImageSet | None, extractor: str) -> dict[str, Any]:
    mine = features(samples.images, extractor)
    theirs = features(unique, extractor)
    held = features(held_out.images, extractor) if held_out else None
    return {
        "extractor": extractor,
        "dimensions": mine.shape[1],
        "frechet_train": frechet_distance(mine, theirs),
        "frechet_held_out": None if held is None else frechet_distance(mine, held),
        "frechet_train_to_held_out": None if held is None else frechet_distance(theirs, held),
        "few_images": min(len(mine), len(theirs), len(mine) if held is None else len(held)) <= mine.shape[1],
    }


def _is_mirrored(samples: Tensor, train: Tensor, closest: Tensor, distances: Tensor) -> Tensor:
    """Where the plain difference is larger than the distance found, the mirror image was the nearer one."""
    parts = zip(samples.split(1024), closest.split(1024), strict=True)
    plain = [(part.double() - train[own].double()).flatten(1).square().sum(1) / 255.0**2 for part, own in parts]
    return torch.cat(plain) > distances


# Where image sets come from ---------------------------------------------------------------------------


def audit_sources(
    train: str,
    samples: str,
    held_out: str | None,
    out: Path,
    flips: bool = False,
    extractor: str | None = None,
    on_images: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Audit what lies on disk and write the audit's folder: what `iet-agc audit` does.

    Args:
        train, held_out: see `load_part`. A run brings its telemetry and curves along.
        samples: the generated images.
        out: folder of the audit.
        flips: see `audit`; a run that trained with flips is audited with them in any case.
        extractor, on_images: see `audit`; `on_images` in place of the progress bar.

    Returns:
        The content of audit.json.
    """
    _check_out(out)
    training, _ = load_part(train, "train")
    images, seeds = load_part(samples, "samples")
    real = load_part(held_out, "held-out")[0] if held_out else None
    total = len(images) + (len(real) if real else 0)
    run = Path(train)
    flips = flips or (is_run(run) and read_settings(run).data.flips)
    with progress_bar("audit", total, unit="image", shown=on_images is None) as bar:
        result = audit(
            training,
            images,
            real,
            flips=flips,
            extractor=extractor,
            seeds=seeds,
            record=read_record(run),
            on_images=on_images or bar.update,
        )
    save_audit(result, out, {"train": train, "samples": samples, "held_out": held_out or ""})
    return result.numbers


def load_part(source: str, part: str) -> tuple[ImageSet, list[int] | None]:
    """Images of a run, a sample set, a folder, an array or a named image set.

    Args:
        source: a path, or one of `iet_agc.data.DATASETS`.
        part: "train" or "held-out", which part of a run or a named image set; "samples" takes the
            images as they are.

    Returns:
        The images and, of a sample set, their seeds.

    Raises:
        ValueError: nothing there, or it holds no such part.
    """
    path = Path(source)
    if is_run(path) and part != "samples":
        train, held_out = load_dataset(**read_settings(path).data.source())
    elif source in DATASETS and not path.exists():
        train, held_out = load_dataset(source)
    else:
        return load_samples(path)
    images = train if part != "held-out" else held_out
    if len(images) == 0:
        raise ValueError(f"{source} holds out no images: set data.num_train lower, or give other images")
    return images, None


def read_record(run: Path) -> TrainingRecord | None:
    """The telemetry and curves of a finished run; None of anything else."""
    table = run / "telemetry.csv"
    if not table.is_file():
        return None
    curves = {file.stem: read_curve(file) for file in sorted((run / "curves").glob("*.jsonl"))}
    return TrainingRecord(*read_telemetry(table), curves)


# On disk ------------------------------------------------------------------------------------------------


def save_audit(result: AuditResult, out: Path, names: Mapping[str, str] | None = None, most: int = 24) -> Path:
    """Write an audit's folder: audit.json, two tables, and the images that a report shows.

    Args:
        result: the audit.
        out: folder; an earlier audit in it is replaced, anything else refused.
        names: what was audited, as the person who asked for it wrote it: "train", "samples", "held_out".
        most: how many pairs and training images to keep pictures of.
    """
    _check_out(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "audit.json").unlink(missing_ok=True)  # it comes last: with it, the folder is whole
    names = names or {"train": result.train.name, "samples": result.samples.name, "held_out": ""}
    table = _per_unique_image(result)
    worst = result.ratios.argsort(stable=True)[:most]
    top = result.unique[table["copied"].argsort(descending=True, stable=True)[:most]]
    skipped = top[:0]
    if result.record:
        skipped = result.unique[_surely_skipped(table).argsort(descending=True, stable=True)[:most]]
    rows = zip(*(column.tolist() for column in table.values()), strict=True)
    _write_table(out / "samples.csv", _sample_rows(result))
    _write_table(out / "training-images.csv", [dict(zip(table, row, strict=True)) for row in rows])
    pictures = {
        "worst": worst,
        "worst_samples": result.samples.images[worst],
        "worst_originals": result.train.images[result.nearest[worst]],
        "top": top,
        "top_images": result.train.images[top],
        "skipped": skipped,
        "skipped_images": result.train.images[skipped],
        "held_out_ratios": torch.empty(0) if result.held_out_ratios is None else result.held_out_ratios,
    }
    with replacing(out / "pictures.npz") as unfinished, unfinished.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **{name: tensor.numpy() for name, tensor in pictures.items()})
    replace_text(out / "curves.json", json.dumps(result.record.curves if result.record else {}))
    replace_text(out / "audit.json", json.dumps(result.numbers | {"names": dict(names)}, indent=1) + "\n")
    return out


def _check_out(out: Path) -> None:
    if not (out / "audit.json").exists() and holds_others(out, _FILES):
        raise ValueError(f"{out} is not empty and holds no audit: choose another --out")


def _per_unique_image(result: AuditResult) -> dict[str, Tensor]:
    """The table of training images, int64 (U,) each; the places of a repeated image count together."""
    copies = result.place[result.nearest[result.ratios < result.cut]]
    table = {
        "image": result.unique,
        "multiplicity": torch.bincount(result.place),
        "copied": torch.bincount(copies, minlength=len(result.unique)),
    }
    if result.record:
        zeros = torch.zeros_like(result.unique)
        table["seen"] = zeros.index_add(0, result.place, result.record.seen)
        table["skipped"] = zeros.index_add(0, result.place, result.record.skipped)
    return table


def _surely_skipped(table: Mapping[str, Tensor]) -> Tensor:
    """Lower Wilson limit of each image's skipped share: one that was hardly seen does not lead the ranking."""
    n, p, z = table["seen"].clamp(min=1).double(), table["skipped"] / table["seen"].clamp(min=1), 1.96
    return (p + z**2 / (2 * n) - z * (p * (1 - p) / n + z**2 / (4 * n**2)).sqrt()) / (1 + z**2 / n)


def _sample_rows(result: AuditResult) -> list[Mapping[str, Any]]:
    columns = (result.ratios, result.nearest, result.distances, result.mirrored)
    return [
        {
            "sample": number,
            "seed": result.seeds[number] if result.seeds else "",
            "ratio": repr(ratio),
            "nearest": index,
            "distance": repr(distance),
            "mirrored": int(mirrored),
        }
        for number, (ratio, index, distance, mirrored) in enumerate(zip(*(c.tolist() for c in columns), strict=True))
    ]


def _write_table(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with replacing(file) as unfinished, unfinished.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
