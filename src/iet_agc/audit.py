"""Audit: how much of a sample set is copied from a training set, with its uncertainty.

Every share has a 95 % Wilson interval. The same statistic on held-out real images stands beside it,
since a cut alone says nothing: real images, too, have near neighbours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor

from iet_agc.data import ImageSet
from iet_agc.metrics.memorization import CUTS, distance_ratio
from iet_agc.metrics.neighbors import nearest
from iet_agc.metrics.quality import default_extractor, features, frechet_distance
from iet_agc.sources import TrainingRecord

__all__ = ["FALSE_ALARM_PERCENT", "AuditResult", "audit", "share_below", "unique_images"]

#: Of held-out real images, so many in a hundred may be called copies by the calibrated cut.
FALSE_ALARM_PERCENT = 1

#: How many neighbours the mean of the distance ratio takes, the paper's number.
NEIGHBORS = 50


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
