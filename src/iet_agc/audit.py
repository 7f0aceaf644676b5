"""Audit: how much of a sample set is copied from a training set, with its uncertainty.

Every share has a 95 % Wilson interval. The same statistic on held-out real images stands beside it,
since a cut alone says nothing: real images, too, have near neighbours. Copies are looked for in pixels,
exactly, and in the features of every network that is asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iet_agc.data import ImageSet
from iet_agc.metrics.features import Extractor, Features, default_extractor, load_extractor, nearest_features
from iet_agc.metrics.memorization import (
    CUTS,
    calibrated_cut,
    cells,
    distance_ratio,
    held_out_statistics,
    share_below,
    statistics,
)
from iet_agc.metrics.neighbors import mirror, nearest
from iet_agc.metrics.quality import quality
from iet_agc.telemetry import TrainingRecord

__all__ = ["FALSE_ALARM", "AuditResult", "Work", "audit", "calibrate", "unique_images"]

#: Of held-out real images, at most this share may be called copies by the calibrated cut.
FALSE_ALARM = 0.01

#: How many neighbours the mean of the distance ratio takes, the paper's number.
NEIGHBORS = 50

#: Tensors by name, one row per item; and what makes them for some of the items.
Arrays = Mapping[str, Tensor]
Maker = Callable[[slice], Arrays]


def _at_once(name: str, total: int, make: Maker, on_done: Callable[[int], object]) -> Arrays:
    """Make all rows here and now, which needs no name and finds nothing done."""
    del name, on_done
    return make(slice(0, total))


@dataclass(frozen=True)
class Work:
    """How the long parts of an audit are done; nothing here changes a number.

    Attributes:
        compute: takes the name of a piece of work, its number of items, what makes the rows of a slice of them, and
            whom to tell the number of those that were found made. It may keep slices on disk, or leave some to other
            processes.
        memory: bytes of working memory for each search, beyond images and results.
        device: where to search and to extract features.
        on_done: called with a share of all the work, in [0, 1], for progress.
    """

    compute: Callable[[str, int, Maker, Callable[[int], object]], Arrays] = _at_once
    memory: int = 2 * 1024**3
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    on_done: Callable[[float], object] = lambda share: None


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


def audit(
    train: ImageSet,
    samples: ImageSet,
    held_out: ImageSet | None = None,
    *,
    flips: bool = False,
    extractors: Sequence[str | Extractor] = (),
    seeds: Sequence[int] | None = None,
    record: TrainingRecord | None = None,
    work: Work | None = None,
) -> AuditResult:
    """Measure copies and quality.

    Args:
        train: the training set, duplicates included. They count once as neighbours, and their number is kept.
        samples: the generated images.
        held_out: real images of the same kind that were not trained on; calibrates the cut.
        flips: also look for mirrored copies.
        extractors: by name, see `load_extractor`. Quality is measured in the features of the first, by default
            one that suits the images' size; copies are looked for in those of every one that is not "pixels".
        seeds: of the samples.
        record: what the training run can tell.
        work: how long work is done.

    Raises:
        ValueError: empty or mismatched sets, an unknown extractor, or one without its weights.
    """
    _check_sets(train, samples, held_out)
    work = work or Work()
    networks = [
        load_extractor(one, work.device) if isinstance(one, str) else one
        for one in extractors or [default_extractor(train.shape)]
    ]
    first, place = unique_images(train.images)
    sets = _Sets(train.take(first), samples, held_out, flips)
    work = _shared_out(work, sets, networks)
    pixels = _search_pixels(sets, work)
    sets, pixels = _without_leaks(sets, pixels)
    spaces = {one.name: _in_features(one, sets, work) for one in networks}
    closest = first[pixels.indices[:, 0]]
    numbers = {
        **_sizes(train, sets, held_out),
        "conventions": _conventions(pixels.distances.shape[1], flips),
        **_copies(pixels, sets.unique.images, samples.images, sets.real),
        "quality": spaces[networks[0].name]["quality"],
        "feature_spaces": {name: space for name, space in spaces.items() if name != "pixels"},
    }
    ratios, distances = distance_ratio(pixels.distances), pixels.distances[:, 0]
    mirrored = torch.zeros(len(samples), dtype=torch.bool)
    if flips:
        mirrored = _is_mirrored(samples.images, train.images, closest, distances)
    held_ratios = None if pixels.held_out is None else distance_ratio(pixels.held_out)
    return AuditResult(
        numbers, ratios, closest, distances, mirrored, held_ratios, samples, train, first, place, seeds, record
    )


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


def calibrate(train: ImageSet, held_out: ImageSet, flips: bool = False, work: Work | None = None) -> float | None:
    """The cut that an audit of samples against these sets would use; None where held-out images are too few.

    Args:
        train, held_out, flips, work: see `audit`.

    Raises:
        ValueError: empty or mismatched sets.
    """
    _check_sets(train, None, held_out)
    references = train.images[unique_images(train.images)[0]]
    found = _search(work or Work(), "calibration", held_out.images, references, flips)
    return calibrated_cut(distance_ratio(found.distances[found.distances[:, 0] > 0]))


# Checks and descriptions ------------------------------------------------------------------------------------


def _check_sets(train: ImageSet, samples: ImageSet | None, held_out: ImageSet | None) -> None:
    for what, images in (("training set", train), ("sample set", samples), ("held-out set", held_out)):
        if images is None:
            continue
        if len(images) < 2:
            raise ValueError(f"the {what} {images.name} has {len(images)} images: an audit needs at least 2")
        if images.shape != train.shape:
            sizes = f"{_size(images)}, the training set {train.name} is {_size(train)}"
            mend = f"bring all to one size, as with --convert-to {'x'.join(map(str, train.shape))}"
            raise ValueError(f"the {what} {images.name} is {sizes}: sizes must agree; {mend}")
    if (train.images == train.images[:1]).all():
        raise ValueError(f"the training set {train.name} holds one image only, repeated: an audit needs 2 that differ")


def _size(images: ImageSet) -> str:
    return " x ".join(str(extent) for extent in images.shape)


def _sizes(train: ImageSet, sets: "_Sets", given: ImageSet | None) -> dict[str, Any]:
    """What was audited: how many images, and which, by their fingerprints."""
    num_held_out = len(sets.held_out) if sets.held_out else 0
    return {
        "version": 1,
        "num_samples": len(sets.samples),
        "num_train": len(train),
        "num_train_unique": len(sets.unique),
        "num_held_out": num_held_out,
        "num_held_out_in_train": (len(given) if given else 0) - num_held_out,
        "sha256": {
            "train": train.fingerprint,
            "samples": sets.samples.fingerprint,
            "held_out": sets.held_out.fingerprint if sets.held_out else None,
        },
    }


def _conventions(k: int, flips: bool) -> dict[str, Any]:
    return {
        "distance": "squared L2 on [0, 1] pixels, exact; in feature spaces squared L2 between features",
        "ratio": "nearest distance / mean of the k nearest, the nearest included",
        "k": k,
        "references": "unique training images",
        "flips": flips,
        "below": "ratio < cut",
        "interval": "Wilson, 95 %",
        "direction": "a lower share is less copied; a lower Fréchet distance is better",
        "mq": "memorization quantity at the paper's nine cuts, Liu et al., ECCV 2024, arXiv 2407.15328",
        "calibrated": "the floor((H + 1) / 100)-th smallest ratio of H held-out images",
    }


# Search -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sets:
    """What is compared: unique training images, samples, and held-out images if there are any."""

    unique: ImageSet
    samples: ImageSet
    held_out: ImageSet | None
    flips: bool

    @property
    def real(self) -> Tensor | None:
        """The held-out images, uint8 (H, C, H, W)."""
        return self.held_out.images if self.held_out else None


@dataclass(frozen=True)
class _Neighbors:
    """Squared distances and indices of the nearest unique training images.

    Attributes:
        distances, indices: of the samples, (N, k).
        own: of each sample's nearest training image, the distance to its nearest other one, (N,).
        held_out, held_own: of the held-out images, (H, k) and (H,); None where there are none.
    """

    distances: Tensor
    indices: Tensor
    own: Tensor
    held_out: Tensor | None = None
    held_own: Tensor | None = None


@dataclass(frozen=True)
class _Found:
    distances: Tensor
    indices: Tensor


def _shared_out(work: Work, sets: _Sets, networks: Sequence[Extractor]) -> Work:
    """The same work, whose progress counts images and comes to 1 in the end."""
    looked_at = len(sets.samples) + (len(sets.held_out) if sets.held_out else 0)
    extracted = looked_at + len(sets.unique) * (2 if sets.flips else 1)
    total = 2 * looked_at + sum(looked_at if one.name == "pixels" else 3 * looked_at + extracted for one in networks)
    return Work(work.compute, work.memory, work.device, lambda images: work.on_done(images / total))


def _search(
    work: Work, name: str, images: Tensor, references: Tensor, flips: bool, k: int = NEIGHBORS, weight: float = 1
) -> _Found:
    """The nearest of the references, in pixels; each image counts as `weight` images of progress."""

    def done(count: int) -> None:
        work.on_done(weight * count)

    def search(items: slice) -> Arrays:
        most = min(k, len(references))
        distances, indices = nearest(images[items], references, most, flips, work.memory, done, work.device)
        return {"distances": distances, "indices": indices}

    return _Found(**work.compute(name, len(images), search, done))


def _search_pixels(sets: _Sets, work: Work) -> _Neighbors:
    def search(name: str, rows: Tensor, k: int, weight: float = 1) -> _Found:
        return _search(work, f"pixels-{name}", rows, sets.unique.images, sets.flips, k, weight)

    return _neighbors(search, sets.samples.images, sets.real, sets.unique.images)


def _neighbors(search: Callable[..., _Found], samples: Tensor, held_out: Tensor | None, unique: Tensor) -> _Neighbors:
    """Search for samples, for held-out images, and for the training images that are nearest to any of them."""
    mine = search("samples", samples, NEIGHBORS)
    held = None if held_out is None else search("held-out", held_out, NEIGHBORS)
    nearest_ones = torch.cat([found.indices[:, 0] for found in (mine, held) if found])
    chosen, which = nearest_ones.unique(return_inverse=True)
    found = search("own", unique[chosen], 2, weight=len(nearest_ones) / len(chosen))
    # The image itself is there at distance 0, and comes second where its mirrored twin has a lower index.
    other = torch.where(found.indices[:, 0] == chosen, found.distances[:, 1], found.distances[:, 0])
    own, held_own = other[which].split([len(samples), len(which) - len(samples)])
    if held is None:
        return _Neighbors(mine.distances, mine.indices, own)
    return _Neighbors(mine.distances, mine.indices, own, held.distances, held_own)


def _without_leaks(sets: _Sets, found: _Neighbors) -> tuple[_Sets, _Neighbors]:
    """Leave out the held-out images that stand in the training set."""
    if sets.held_out is None or found.held_out is None or found.held_own is None:
        return sets, found
    fresh = (found.held_out[:, 0] > 0).nonzero()[:, 0]
    if len(fresh) == 0:
        name = sets.held_out.name
        raise ValueError(f"every held-out image of {name} stands in the training set: give other images")
    kept = _Neighbors(found.distances, found.indices, found.own, found.held_out[fresh], found.held_own[fresh])
    return _Sets(sets.unique, sets.samples, sets.held_out.take(fresh), sets.flips), kept


def _is_mirrored(samples: Tensor, train: Tensor, closest: Tensor, distances: Tensor) -> Tensor:
    """Where the plain difference is larger than the distance found, the mirror image was the nearer one."""
    parts = zip(samples.split(1024), closest.split(1024), strict=True)
    plain = [(part.double() - train[own].double()).flatten(1).square().sum(1) / 255.0**2 for part, own in parts]
    return torch.cat(plain) > distances


# Feature spaces ---------------------------------------------------------------------------------------------


def _in_features(extractor: Extractor, sets: _Sets, work: Work) -> dict[str, Any]:
    """Quality in the features of a network and, where these are not the pixels themselves, copies."""
    samples = _extracted(extractor, "samples", sets.samples.images, work)
    train = _extracted(extractor, "train", sets.unique.images, work)
    held_out = None if sets.real is None else _extracted(extractor, "held-out", sets.real, work)
    entry = {"quality": quality(samples, train, held_out, extractor, work.memory)}
    work.on_done(len(sets.samples) + (0 if sets.real is None else len(sets.real)))
    if extractor.name == "pixels":
        return entry
    references = [train.features]
    if sets.flips:
        references += [_extracted(extractor, "mirrored", mirror(sets.unique.images), work).features]

    def search(name: str, rows: Tensor, k: int, weight: float = 1) -> _Found:
        return _search_features(work, f"{extractor.name}-near-{name}", rows, references, k, weight)

    held = held_out.features if held_out else None
    found = _neighbors(search, samples.features, held, train.features)
    about = {"sha256": extractor.sha256, "dimensions": train.features.shape[1]}
    return {**about, **_copies(found, train.features, samples.features, held), **entry}


def _extracted(extractor: Extractor, name: str, images: Tensor, work: Work) -> Features:
    def extract(items: slice) -> Arrays:
        found = extractor.extract(images[items], on_images=work.on_done)
        return {"features": found.features} | ({} if found.logits is None else {"logits": found.logits})

    if extractor.name == "pixels":  # nothing to wait for, and nothing that counts as progress
        return extractor.extract(images)
    rows = work.compute(f"{extractor.name}-{name}", len(images), extract, work.on_done)
    return Features(rows["features"], rows.get("logits"))


def _search_features(
    work: Work, name: str, queries: Tensor, references: Sequence[Tensor], k: int, weight: float
) -> _Found:
    """The k nearest references; one that is given twice, as it is and mirrored, counts at the smaller distance."""

    most = min(k, len(references[0]))

    def done(count: float) -> None:
        work.on_done(weight * count)

    def search(items: slice) -> Arrays:
        found = [
            nearest_features(queries[items], one, most, work.memory, lambda count: done(count / len(references)))
            for one in references
        ]
        distances, indices = found[0] if len(found) == 1 else _smaller(found, most)
        return {"distances": distances, "indices": indices}

    return _Found(**work.compute(name, len(queries), search, done))


def _smaller(found: Sequence[tuple[Tensor, Tensor]], k: int) -> tuple[Tensor, Tensor]:
    """Merge lists of neighbours of the same references, each of which counts once; ties go to the lowest index."""
    both = [torch.cat(parts, dim=1) for parts in zip(*found, strict=True)]
    for key in (0, 1):  # by distance, then by index: as sorting is stable, of equal indices the nearer comes first
        order = both[key].argsort(dim=1, stable=True)
        both = [part.gather(1, order) for part in both]
    distances, indices = both
    again = torch.zeros_like(indices, dtype=torch.bool)
    again[:, 1:] = indices[:, 1:] == indices[:, :-1]
    order = distances.masked_fill(again, torch.inf).argsort(dim=1, stable=True)[:, :k]
    return distances.gather(1, order), indices.gather(1, order)


# Numbers ----------------------------------------------------------------------------------------------------


def _copies(found: _Neighbors, train: Tensor, samples: Tensor, held_out: Tensor | None) -> dict[str, Any]:
    """The entries on copies, in pixels or in features: MQ, the same of held-out images, the calibrated share."""
    ratios = distance_ratio(found.distances)
    numbers: dict[str, Any] = {"mq": _quantities(ratios), "held_out": None, "calibrated": None}
    cell_numbers = None
    if held_out is not None and found.held_out is not None and found.held_own is not None:
        held_ratios = distance_ratio(found.held_out)
        held_statistics = held_out_statistics(found.held_out, found.held_own)
        numbers["held_out"] = {"mq": _quantities(held_ratios), "statistics": held_statistics}
        numbers["calibrated"] = _calibrated(ratios, held_ratios)
        cell_numbers = cells(train, samples, held_out)
    return numbers | {"statistics": statistics(found.distances, found.own, found.held_out, cell_numbers)}


def _quantities(ratios: Tensor) -> dict[str, Any]:
    return {f"{cut:.2f}": share_below(ratios, cut) for cut in CUTS}


def _calibrated(ratios: Tensor, held_out: Tensor) -> dict[str, Any] | None:
    cut = calibrated_cut(held_out, FALSE_ALARM)
    return None if cut is None else {"false_alarm": FALSE_ALARM, "cut": cut, **share_below(ratios, cut)}
