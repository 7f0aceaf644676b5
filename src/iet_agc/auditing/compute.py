"""Audit: how much of a sample set is copied from a training set, with its uncertainty.

Every share has a 95 % Wilson interval, in which samples of one prompt are not independent. The same statistic
on held-out real images stands beside it, since a cut alone says nothing: real images, too, have near neighbours.
Copies are looked for in pixels, exactly, and in the features of every network that is asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import Tensor

from iet_agc.auditing.copies import (
    ALTERATIONS,
    Scores,
    check_similarity,
    copies_of,
    copy_groups,
    crowding,
    group_counts,
    joined,
    judged_far,
    no_cut,
    samples_to_confirm,
    transformed_of,
)
from iet_agc.auditing.prompt_following import Told, aligned, check_prompts, coverage, read_told, score_prompts
from iet_agc.auditing.schema import (
    BY_GROUPS,
    AuditRecord,
    Conventions,
    CopyGroups,
    Fingerprints,
    Groups,
    Space,
    TrainingCopies,
)
from iet_agc.auditing.verdict import check_share, verdict
from iet_agc.auditing.work import Arrays, Work
from iet_agc.data.image_set import ImageSet, Rows, digests, in_memory, unique_images
from iet_agc.metrics import calibration
from iet_agc.metrics.calibration import (
    NEIGHBORS,
    Nearest,
    Neighbors,
    Probe,
    draw_probe,
    probed,
    without_copies,
)
from iet_agc.metrics.clip import Clip, load_clip
from iet_agc.metrics.duplicates import MOST_UNASKED, duplicate_groups
from iet_agc.metrics.features import Extractor, Features, load_default_extractor, load_extractor, nearest_features
from iet_agc.metrics.groups import first_of_groups, labels_of, nearest_groups, representatives_of
from iet_agc.metrics.intervals import Count, Record, calibration_rank
from iet_agc.metrics.memorization import FALSE_ALARM, cells, is_near_copy
from iet_agc.metrics.near_copies import CANDIDATES, same_pictures
from iet_agc.metrics.neighbors import References, mirror, most_quickly
from iet_agc.metrics.quality import no_quality, quality
from iet_agc.metrics.records import Alignment, Quality, Similarity
from iet_agc.metrics.similarity import Similar, directions, most_similar, similarities
from iet_agc.metrics.soundness import Unsound
from iet_agc.metrics.transformed import Compared, TrainingIndex
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.exposure import TrainingRecord
from iet_agc.runtime.files import shown

__all__ = ["Altered", "AuditResult", "audit", "calibrate", "choose_networks", "check_sets", "too_few"]

#: Images that are compared at a time, and values of these.
_SLICE, _MOST_VALUES = 1024, 2**24


@dataclass(frozen=True)
class Altered:
    """By what each sample is most likely a copy, as it is or transformed.

    Attributes:
        scores: joint ones, float64 (N,), see `metrics.records.Transformed`.
        by: index into `ALTERATIONS`, int64 (N,).
        nearest: the training image, an index into the training set, int64 (N,).
        compared: how images were laid over each other; `second` is an index into the training set, too.
        how: how that image has to be transformed, in words.
    """

    scores: Tensor
    by: Tensor
    nearest: Tensor
    compared: Compared
    how: Sequence[str]


@dataclass(frozen=True, kw_only=True)
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
        similar: by the name of each network, the similarities in its features.
        scores: what the numbers were counted from, in pixels and in each of `numbers.feature_spaces`, in this order.
        groups: where neighbours are groups of training images, the group of each unique one, int64 (U,): the place of
            its first image among the unique ones.
        altered: by what each sample is most likely a copy, where transformed copies were looked for and told.
    """

    numbers: AuditRecord
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
    similar: Mapping[str, Similar] = field(default_factory=dict)
    scores: Sequence[Scores] = ()
    groups: Tensor | None = None
    altered: Altered | None = None


#: Pairs of training images that are copies, by their places in the set.
Links = Sequence[tuple[int, int]]


def audit(
    train: ImageSet,
    samples: ImageSet,
    held_out: ImageSet | None = None,
    *,
    flips: bool = False,
    extractors: Sequence[str | Extractor] = (),
    seeds: Sequence[int] | None = None,
    record: TrainingRecord | None = None,
    fail_above: float | None = None,
    clip: str | Clip | None = None,
    measure_quality: bool = True,
    groups: bool | Links = False,
    transformed: bool = False,
    work: Work | None = None,
) -> AuditResult:
    """Measure copies and quality, and where samples have prompts, how closely they follow them.

    Args:
        train: the training set, duplicates included. They count once as neighbours, and their number is kept.
        samples: the generated images.
        held_out: real images of the same kind that were not trained on; calibrates the cut. Those that stand in the
            training set are left out, and repeated ones count once.
        flips: also look for mirrored copies.
        extractors: by name, see `load_extractor`. Quality is measured in the features of the first, by default
            in those of `default_extractor`, if there is one; copies are looked for in those of every one that is not
            "pixels".
        seeds: of the samples.
        record: what the training run can tell.
        fail_above: the share that may be below a calibrated cut; then numbers has a gate, see `iet_agc.metrics.gate`,
            and held-out images that are too few to set the cuts are refused before any work.
        clip: see `load_clip`; measures the CLIP score of samples and their prompts.
        measure_quality: False: copies only; then no extractor is taken by default.
        groups: neighbours are groups of training images that are exact or near copies of one another: True, those that
            are found here; or pairs that were found before. See `iet_agc.metrics.groups`.
        transformed: also look for copies that were moved, mirrored, cropped, made brighter or flatter, for halves and
            for blends; see `iet_agc.metrics.transformed`. Held-out images that are too few are refused.
        work: how long work is done.

    Raises:
        UserError: empty or mismatched sets, too few held-out images; an unknown extractor, one without its weights, one
            that cannot take such images, or "pixels" where no quality is measured; a CLIP model and samples without
            prompts.
    """
    check_sets(train, samples, held_out)
    if clip:
        check_prompts(samples)
    work = work or Work()
    clip = load_clip(clip, work.device) if isinstance(clip, str) else clip
    networks = _networks(extractors, train.shape, measure_quality, work.device)
    sets = _sets(train, samples, held_out, flips, measure_quality, groups, work)
    if fail_above is not None or transformed:
        _check_calibration(sets.counts)
    work = _shared_out(work, sets, networks, clip, transformed)
    pixels = _search_pixels(sets, work)
    found = [_in_features(one, sets, pixels, work) for one in networks]
    where = _cells(pixels, sets.unique.images, samples.images, sets.real)
    scores = Scores(found=pixels, cells=where, probe=sets.probe)
    compared, scores = _compared(sets, scores, work) if transformed else (None, scores)
    copies = copies_of(scores, sets.prompts)
    scores = replace(scores, confirmed=_confirmed(samples_to_confirm(copies, pixels), pixels, sets, work))
    copies = judged_far(copies, scores.confirmed)
    spaces = {shown(one.name): each.space for one, each in zip(networks, found, strict=True) if each.space}
    numbers = AuditRecord(
        num_samples=len(samples),
        num_train=len(train),
        num_train_unique=len(sets.unique),
        sha256=_fingerprints(train, sets),
        **sets.counts,
        conventions=_conventions(pixels.distances.shape[1], sets),
        **dict(copies),
        quality=found[0].quality if found else no_quality(not measure_quality, train.shape),
        feature_spaces=spaces,
        prompts=coverage(sets.told),
        clip=score_prompts(clip, samples, sets.told.prompts, work) if clip else None,
        train_copies=_training_copies(sets, work),
        groups=sets.groups if sets.groups is None else _told_groups(sets, pixels, copies.cut, groups is True),
        transformed=transformed_of(scores, copies.calibrated, sets.prompts),
    )
    judged = None if fail_above is None else check_share(numbers, fail_above)
    numbers = numbers.model_copy(update={"verdict": verdict(numbers), "gate": judged})
    similar = {one.name: each.similar for one, each in zip(networks, found, strict=True) if each.similar}
    closest = sets.first[pixels.indices[:, 0]]
    return AuditResult(
        numbers=numbers,
        ratios=pixels.ratios,
        nearest=closest,
        distances=pixels.distances[:, 0],
        mirrored=_is_mirrored(samples.images, train.images, closest, pixels.distances[:, 0], flips),
        held_out_ratios=pixels.held_out_ratios,
        samples=samples,
        train=train,
        seeds=seeds,
        unique=sets.first,
        place=sets.place,
        record=record,
        similar={name: replace(one, nearest=sets.first[one.nearest]) for name, one in similar.items()},
        scores=(scores, *(each.scores for each in found if each.scores)),
        groups=sets.groups,
        altered=compared and _altered(compared, scores, sets),
    )


def calibrate(
    train: ImageSet, held_out: ImageSet, flips: bool = False
) -> tuple[Tensor, float | None, tuple[Unsound, ...]]:
    """What an audit against these sets would search, and the cut that it would use.

    Args:
        train, held_out, flips: see `audit`.

    Returns:
        The unique training images, uint8 (U, C, H, W); the cut, or None where held-out images are too few; why it
        cannot tell, if it cannot.

    Raises:
        UserError: empty or mismatched sets.
    """
    check_sets(train, None, held_out)
    first, place = unique_images(train.images)
    unique = _unique(train, first)
    real, in_train = _fresh(held_out, unique, flips)

    found = calibration.calibrate(unique.images, place, real.images, in_train, flips)
    return unique.images, found.cut, found.reasons


# Checks and descriptions ------------------------------------------------------------------------------------


def check_sets(train: ImageSet, samples: ImageSet | None, held_out: ImageSet | None) -> None:
    """Refuse sets that cannot be audited together.

    Raises:
        UserError: fewer than 2 images, or sizes that differ.
    """
    for what, images in (("training set", train), ("sample set", samples), ("held-out set", held_out)):
        if images is None:
            continue
        if len(images) < 2:
            raise UserError(f"the {what} {images.name} has {len(images)} images: an audit needs at least 2")
        if images.shape != train.shape:
            sizes = f"{images.size}, the training set {train.name} is {train.size}"
            mend = f"bring all to one size, as with convert_to {'x'.join(map(str, train.shape))}"
            raise UserError(f"the {what} {images.name} is {sizes}: sizes must agree; {mend}", "convert_to")


def _check_calibration(counts: Mapping[str, int]) -> None:
    """Refuse held-out images that are too few to set a cut, whatever may be found of them.

    Args:
        counts: what `_held_out_counts` counted.
    """
    count = counts["num_held_out"]
    if calibration_rank(FALSE_ALARM, count) > 0:
        return
    left_out = {
        "in the training set": counts["num_held_out_in_train"],
        "repeated": counts["num_held_out_repeated"],
    }
    told = ", ".join(f"{number:,} {reason}" for reason, number in left_out.items() if number)
    raise UserError(f"{too_few(count)}{f' (left out: {told})' if told else ''}: give more held-out images", "held_out")


def too_few(count: int) -> str:
    """Why there is no calibrated cut, in words."""
    return no_cut(count).reason


def _networks(
    extractors: Sequence[str | Extractor], shape: tuple[int, int, int], measure_quality: bool, device: torch.device
) -> list[Extractor]:
    given = [load_extractor(one, device) if isinstance(one, str) else one for one in extractors]
    return choose_networks(given, shape, measure_quality, device)


def choose_networks(
    given: Sequence[Extractor],
    shape: tuple[int, int, int],
    measure_quality: bool,
    device: torch.device,
    download: bool = False,
) -> list[Extractor]:
    """The networks in whose features an audit measures: those given or, for quality, the default, if there is one.

    Args:
        given: by who asks for the audit.
        shape: of the images, (C, H, W).
        measure_quality: see `audit`.
        device: where the default runs.
        download: see `load_extractor`.

    Raises:
        UserError: one that is given twice, that cannot take such images, or that is for quality only where none is
            measured.
    """
    default = None if given or not measure_quality else load_default_extractor(shape, device, download)
    networks = [default] if default else [*given]
    _check_networks(networks, shape, measure_quality)
    return networks


def _check_networks(networks: Sequence[Extractor], shape: tuple[int, int, int], measure_quality: bool) -> None:
    names = [one.name for one in networks]
    if again := [name for at, name in enumerate(names) if name in names[:at]]:
        raise UserError(f"extractor {again[0]!r} is given twice: give it once")
    if "pixels" in names and not measure_quality:
        raise UserError("extractor 'pixels' is for quality, which is not to be measured: leave one of the two out")
    for one in networks:
        one.check_shape(shape)


def _fingerprints(train: ImageSet, sets: "_Sets") -> Fingerprints:
    real = sets.held_out.fingerprint if sets.held_out else None
    return Fingerprints(train=train.fingerprint, samples=sets.samples.fingerprint, held_out=real)


def _held_out_counts(given: ImageSet | None, real: ImageSet | None, in_train: int) -> dict[str, int]:
    """How many held-out images were used, and how many left out, by reason."""
    num_given, used = (len(images) if images else 0 for images in (given, real))
    return {
        "num_held_out": used,
        "num_held_out_in_train": in_train,
        "num_held_out_repeated": num_given - in_train - used,
    }


#: How intervals of shares were made; where samples have prompts of which some repeat.
_WILSON = "Wilson, 95 %"
_BY_PROMPT = (
    "Wilson, 95 %; of samples, whose prompts repeat, with prompts as clusters: at the number of independent samples "
    "that the design effect leaves, with Student's t"
)


def _conventions(k: int, sets: "_Sets") -> Conventions:
    prompts = sets.told.prompts
    interval = _BY_PROMPT if len(set(prompts)) < len(prompts) else _WILSON
    plain = Conventions(k=k, flips=sets.flips, interval=interval)
    return plain if sets.groups is None else plain.model_copy(update={"references": BY_GROUPS})


# Sets -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sets:
    """What is compared: unique training images, samples, held-out images if there are any; what is said of them.

    Attributes:
        first, place: see `AuditResult.unique` and `place`.
        counts: of held-out images, see `_held_out_counts`.
        groups: see `AuditResult.groups`.
    """

    unique: ImageSet
    first: Tensor
    place: Tensor
    samples: ImageSet
    held_out: ImageSet | None
    counts: Mapping[str, int]
    flips: bool
    told: Told
    probe: Probe | None
    measure_quality: bool
    groups: Tensor | None

    @property
    def real(self) -> Tensor | None:
        """The held-out images, uint8 (H, C, H, W)."""
        return self.held_out.images if self.held_out else None

    @property
    def prompts(self) -> Sequence[str] | None:
        """Of the samples, or None."""
        return self.told.prompts or None


def _sets(
    train: ImageSet,
    samples: ImageSet,
    held_out: ImageSet | None,
    flips: bool,
    measure_quality: bool,
    asked: bool | Links,
    work: Work,
) -> _Sets:
    first, place = unique_images(train.images)
    unique = _unique(train, first, work.rows)
    real, in_train = _fresh(held_out, unique, flips, work.rows) if held_out else (None, 0)
    groups = None if asked is False else _groups(asked, unique, place, flips, work)
    among = None if groups is None else representatives_of(groups)
    return _Sets(
        unique=unique,
        first=first,
        place=place,
        samples=samples,
        held_out=real,
        counts=_held_out_counts(held_out, real, in_train),
        flips=flips,
        told=read_told(samples, train, place, real),
        probe=draw_probe(unique.images, place, len(real) if real else 0, in_train, among),
        measure_quality=measure_quality,
        groups=groups,
    )


def _unique(train: ImageSet, first: Tensor, rows: Rows = in_memory) -> ImageSet:
    """The unique training images; the very set where all are."""
    if len(first) == 1:
        raise UserError(f"the training set {train.name} holds one image only, repeated: an audit needs 2 that differ")
    return train if len(first) == len(train) else train.take(first, rows)


class _Linked(Record):
    """Unique training images that are copies of one another, by their places; of each group, the first comes first."""

    groups: tuple[tuple[Count, ...], ...]


def _near_copies(unique: Tensor, flips: bool) -> _Linked:
    found = duplicate_groups(unique, flips=flips)
    return _Linked(groups=tuple(tuple(member.image for member in group.members) for group in found))


def _groups(asked: bool | Links, unique: ImageSet, place: Tensor, flips: bool, work: Work) -> Tensor:
    """The group of each unique training image, see `AuditResult.groups`."""
    if isinstance(asked, bool):
        found = work.once("groups", _Linked, lambda: _near_copies(unique.images, flips))
        links = [(group[0], other) for group in found.groups for other in group[1:]]
    else:
        places = place.tolist()
        links = [(places[one], places[other]) for one, other in asked]
    labels = labels_of(len(unique), links)
    if len(labels.unique()) < 2:
        raise UserError(f"all images of the training set {unique.name} are one group: an audit needs 2", "groups")
    return labels


def _told_groups(sets: _Sets, pixels: Neighbors, cut: float, searched: bool) -> Groups:
    """What audit.json says of groups."""
    assert sets.groups is not None
    return Groups(
        origin="searched" if searched else "given",
        num_groups=len(representatives_of(sets.groups)),
        crowded=crowding(pixels, cut),
    )


def _training_copies(sets: _Sets, work: Work) -> TrainingCopies:
    """Which training images stand more than once in the set; near copies among the unique ones, if these are few."""

    def near() -> CopyGroups:
        return copy_groups([len(group) for group in _near_copies(sets.unique.images, sets.flips).groups])

    if sets.groups is None:
        few = len(sets.unique) <= MOST_UNASKED
        copies = work.once("training copies", CopyGroups, near) if few else None
    else:
        copies = group_counts(sets.groups)
    exact = copy_groups([count for count in torch.bincount(sets.place).tolist() if count > 1])
    return TrainingCopies(exact=exact, near=copies)


def _fresh(held_out: ImageSet, unique: ImageSet, flips: bool, rows: Rows = in_memory) -> tuple[ImageSet, int]:
    """The held-out images that do not stand in the training set, each once, and how many do stand there.

    With flips, mirrored ones stand there, too.
    """
    known = {*digests(unique.images), *(digests(unique.images, mirror) if flips else ())}
    first: dict[bytes, int] = {}
    in_train = 0
    for at, digest in enumerate(digests(held_out.images)):
        if digest in known:
            in_train += 1
        else:
            first.setdefault(digest, at)
    if not first:
        raise UserError(f"every held-out image of {held_out.name} stands in the training set: give other images")
    kept = torch.tensor([*first.values()])
    return held_out if len(kept) == len(held_out) else held_out.take(kept, rows), in_train


# Search -----------------------------------------------------------------------------------------------------


def _shared_out(work: Work, sets: _Sets, networks: Sequence[Extractor], clip: Clip | None, transformed: bool) -> Work:
    """The same work, whose progress counts images and comes to 1 in the end."""
    looked_at = len(sets.samples) + (len(sets.held_out) if sets.held_out else 0)
    probed, altered = (len(sets.probe.drawn), sets.probe.num_images) if sets.probe else (0, 0)
    trained = len(sets.unique) * (3 if sets.flips else 2)  # extracted as they are and mirrored, and searched for
    total = (3 if transformed else 2) * looked_at + probed + altered + (len(sets.samples) if clip else 0)
    for one in networks:
        if one.name == "pixels":
            total += looked_at
        else:
            searches = 5 if sets.measure_quality else 4
            total += searches * looked_at + trained + probed + (3 if one.copy_detection else 2) * altered
    return replace(work, on_done=lambda images: work.on_done(images / total))


#: Searches for the nearest references of some queries: these, how many, and whom to tell how many queries are done.
_Find = Callable[[Tensor, int, Callable[[float], object]], tuple[Tensor, Tensor]]


def _searched(
    work: Work,
    name: str,
    queries: Tensor,
    total: int,
    groups: Tensor | None,
    k: int,
    weight: float,
    find: _Find,
    together: int = 1,
) -> Nearest:
    """The nearest references, of `total`, or the nearest one of each group; a query counts as `weight` of progress.

    For `together` see `Compute`.
    """

    def done(count: float) -> None:
        work.on_done(weight * count)

    def search(items: slice) -> Arrays:
        rows = queries[items]
        if groups is None:
            distances, indices = find(rows, min(k, total), done)
        else:
            most = min(k, len(representatives_of(groups)))
            distances, indices = nearest_groups(lambda which, m: find(rows[which], m, _untold), len(rows), groups, most)
            done(len(rows))
        return {"distances": distances, "indices": indices}

    return Nearest(**work.compute(name, len(queries), search, done, together=together))


def _untold(count: float) -> None:
    """Of queries that are searched for several times."""
    del count


def _search(work: Work, name: str, images: Tensor, sets: _Sets, k: int, weight: float) -> Nearest:
    """The nearest unique training images, or groups of them, in pixels."""
    references = sets.unique.images

    @cache
    def laid_out(most: int) -> References:
        return References(references, most, work.memory, work.device)

    def find(rows: Tensor, most: int, done: Callable[[float], object]) -> tuple[Tensor, Tensor]:
        return laid_out(most).nearest(rows, sets.flips, done)

    together = most_quickly(references, work.memory)
    return _searched(work, name, images, len(references), sets.groups, k, weight, find, together)


def _search_pixels(sets: _Sets, work: Work) -> Neighbors:
    def search(name: str, rows: Tensor, k: int, weight: float = 1) -> Nearest:
        return _search(work, f"pixels-{name}", rows, sets, k, weight)

    held = None if sets.real is None else search("held-out", sets.real, NEIGHBORS)
    found = _neighbors(search, sets.samples.images, held, sets.unique.images, sets.groups)
    if sets.probe is None:
        return found
    found = probed(search, found, sets.probe, sets.unique.images, sets.probe.images, sets.groups)
    return without_copies(found, sets.unique.images, sets.real, sets.flips, sets.probe, work.once)


def _neighbors(
    search: Callable[..., Nearest], samples: Tensor, held: Nearest | None, unique: Tensor, groups: Tensor | None
) -> Neighbors:
    """Search for samples, and for the training images that are nearest to any of them, or to held-out images."""
    mine = search("samples", samples, NEIGHBORS)
    nearest_ones = torch.cat([found.indices[:, 0] for found in (mine, held) if found])
    chosen, which = nearest_ones.unique(return_inverse=True)
    found = search("own", unique[chosen], 2, weight=len(nearest_ones) / len(chosen))
    # The image itself is there at distance 0, and comes second where its mirrored twin has a lower index.
    itself = found.indices[:, 0] == chosen if groups is None else groups[found.indices[:, 0]] == groups[chosen]
    other = torch.where(itself, found.distances[:, 1], found.distances[:, 0])
    own, held_own = other[which].split([len(samples), len(which) - len(samples)])
    if held is None:
        return Neighbors(mine.distances, mine.indices, own)
    return Neighbors(mine.distances, mine.indices, own, held.distances, held_own, held.indices)


def _is_mirrored(samples: Tensor, train: Tensor, closest: Tensor, distances: Tensor, flips: bool) -> Tensor:
    """Where the plain difference is larger than the distance found, the mirror image was the nearer one."""
    if not flips:
        return torch.zeros(len(samples), dtype=torch.bool)
    length = max(1, min(_SLICE, _MOST_VALUES // samples[0].numel()))
    parts = zip(samples.split(length), closest.split(length), strict=True)
    plain = [(part.double() - train[own].double()).flatten(1).square().sum(1) / 255.0**2 for part, own in parts]
    return torch.cat(plain) > distances


# Transformed copies -----------------------------------------------------------------------------------------


def _compared(sets: _Sets, scores: Scores, work: Work) -> tuple[Compared, Scores]:
    """Samples compared with transformed training images, of each group the first; the scores with what came of it."""
    assert sets.real is not None, "without held-out images this was refused"
    among = torch.arange(len(sets.unique)) if sets.groups is None else representatives_of(sets.groups)

    @cache
    def index() -> TrainingIndex:
        images = sets.unique.images
        return TrainingIndex(images if sets.groups is None else images[among])

    def compare(name: str, images: Tensor) -> Compared:
        def make(items: slice) -> Arrays:
            return vars(index().compare(images[items], work.on_done))

        return Compared(**work.compute(f"transformed-{name}", len(images), make, work.on_done))

    samples, real = compare("samples", sets.samples.images), compare("held-out", sets.real)
    scores = replace(
        scores,
        transformed=samples.statistics,
        transformed_held_out=real.statistics,
        transformed_left=real.left,
    )
    return replace(samples, references=among[samples.references], second=among[samples.second]), scores


def _altered(found: Compared, scores: Scores, sets: _Sets) -> Altered | None:
    """See `AuditResult.altered`."""
    joint = joined(scores)
    if joint is None:
        return None
    by = joint.by
    nearest = torch.column_stack([scores.found.indices[:, 0], found.references]).gather(1, by[:, None])[:, 0]
    partners = replace(found, second=sets.first[found.second])
    how = [partners.in_words(row, ALTERATIONS[at], sets.unique.shape) for row, at in enumerate(by.tolist())]
    return Altered(joint.samples, by, sets.first[nearest], partners, how)


# Feature spaces ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """What was found in one feature space: quality and, where it is that of a network, the rest."""

    quality: Quality
    space: Space | None = None
    similar: Similar | None = None
    scores: Scores | None = None


def _in_features(extractor: Extractor, sets: _Sets, pixels: Neighbors, work: Work) -> _Found:
    """Quality in the features of a network and, where these are not the pixels themselves, copies."""
    if extractor.name == "pixels":  # nothing to wait for, and only who measures needs them
        return _Found(_quality(extractor, sets, lambda images, name: extractor.extract(images), pixels.fresh, work))

    def extract(images: Tensor, name: str) -> Features:
        return _extracted(extractor, name, images, work)

    train = _extracted(extractor, "train", sets.unique.images, work, of=sets.unique)
    held_out = None if sets.real is None else _extracted(extractor, "held-out", sets.real, work, of=sets.held_out)
    references = [train.features]
    if sets.flips:
        mirrored = _extracted(extractor, "mirrored", sets.unique.images, work, mirror, of=sets.unique)
        references += [mirrored.features]

    def search(name: str, rows: Tensor, k: int, weight: float = 1) -> Nearest:
        return _search_features(work, f"{extractor.name}-near-{name}", rows, references, sets.groups, k, weight)

    real = held_out.features if held_out else None
    held = None if real is None else search("held-out", real, NEIGHBORS)
    samples = extract(sets.samples.images, "samples")
    found = _neighbors(search, samples.features, held, train.features, sets.groups)
    found = replace(found, left_out=pixels.left_out)
    altered = extract(sets.probe.images, "altered").features if sets.probe else None
    if sets.probe and altered is not None:
        found = probed(search, found, sets.probe, train.features, altered, sets.groups)
    made = {"samples": samples, "train": train} | ({} if held_out is None else {"held-out": held_out})
    quality = _quality(extractor, sets, lambda images, name: made[name], found.fresh, work)
    where = _cells(found, train.features, samples.features, real)
    similarity, alignment, similar = _in_directions(
        extractor, sets, samples.features, references, real, found.fresh, work
    )
    scores = Scores(found=found, cells=where, probe=sets.probe, similar=similar)
    if extractor.copy_detection and altered is not None:
        scores = replace(scores, similar_altered=_similar_altered(extractor, altered, references, work))
    copies = copies_of(scores, sets.prompts, in_features=True)
    space = Space(
        sha256=extractor.sha256,
        dimensions=train.features.shape[1],
        **dict(copies),
        quality=quality,
        similarity=similarity,
        similarity_check=check_similarity(scores, similarity),
        alignment=alignment,
    )
    return _Found(quality, space, similar, scores)


def _in_directions(
    extractor: Extractor,
    sets: _Sets,
    samples: Tensor,
    references: Sequence[Tensor],
    held_out: Tensor | None,
    fresh: Tensor | None,
    work: Work,
) -> tuple[Similarity, Alignment | None, Similar]:
    """What cosines between features say: similarities and, where samples have prompts, alignment."""
    mine, real = directions(samples), None if held_out is None else directions(held_out)
    trained = [directions(one) for one in references]

    def search(name: str, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
        found = _search_features(work, f"{extractor.name}-similar-{name}", rows, trained, sets.groups, k, 1)
        return found.distances, found.indices

    similar = most_similar(search, mine, trained[0], real, sets.groups)
    entry = similarities(similar, fresh, extractor.copy_detection, sets.prompts)
    return entry, aligned(extractor.name, sets.told, mine, trained[0], real, work), similar


def _similar_altered(extractor: Extractor, altered: Tensor, references: Sequence[Tensor], work: Work) -> Tensor:
    """See `Scores.similar_altered`."""
    trained = [directions(one) for one in references]
    name = f"{extractor.name}-similar-altered"
    return _search_features(work, name, directions(altered), trained, None, 1, 1).distances[:, 0]


def _quality(
    extractor: Extractor,
    sets: _Sets,
    features: Callable[[Tensor, str], Features],
    fresh: Tensor | None,
    work: Work,
) -> Quality:
    """Quality, against the held-out images that are no near copies of training images, if it is to be measured."""
    if not sets.measure_quality:
        return no_quality(True, sets.unique.shape)

    def measure() -> Quality:
        samples, train = features(sets.samples.images, "samples"), features(sets.unique.images, "train")
        held_out, near_copies = None, 0
        if sets.real is not None and fresh is not None:
            held_out = Features(features(sets.real, "held-out").features[fresh])
            near_copies = int((~fresh).sum())
        return quality(samples, train, held_out, extractor, work.memory, near_copies)

    entry = work.once(f"{extractor.name}-quality", Quality, measure)
    work.on_done(len(sets.samples) + (0 if sets.real is None else len(sets.real)))
    return entry


def _extracted(
    extractor: Extractor,
    name: str,
    images: Tensor,
    work: Work,
    turn: Callable[[Tensor], Tensor] | None = None,
    of: ImageSet | None = None,
) -> Features:
    """What an extractor makes of images, turned first if they are to be; `of` a set that other audits may meet."""

    def extract(items: slice) -> Arrays:
        some = images[items]
        found = extractor.extract(turn(some) if turn else some, on_images=work.on_done)
        return {"features": found.features} | ({} if found.logits is None else {"logits": found.logits})

    known = None if of is None else extractor.follows_from
    key = None if of is None or known is None else [of.fingerprint, turn is not None, *known]
    rows = work.compute(f"{extractor.name}-{name}", len(images), extract, work.on_done, key=key)
    return Features(rows["features"], rows.get("logits"))


def _search_features(
    work: Work,
    name: str,
    queries: Tensor,
    references: Sequence[Tensor],
    groups: Tensor | None,
    k: int,
    weight: float,
) -> Nearest:
    """The k nearest references; one that is given twice, as it is and mirrored, counts at the smaller distance."""

    def find(rows: Tensor, most: int, done: Callable[[float], object]) -> tuple[Tensor, Tensor]:
        def part(count: float) -> None:
            done(count / len(references))

        found = [nearest_features(rows, one, most, work.memory, part) for one in references]
        return found[0] if len(found) == 1 else _smaller(found, most)

    return _searched(work, name, queries, len(references[0]), groups, k, weight, find)


def _smaller(found: Sequence[tuple[Tensor, Tensor]], k: int) -> tuple[Tensor, Tensor]:
    """Merge lists of neighbours of the same references, each of which counts once; ties go to the lowest index."""
    both = [torch.cat(parts, dim=1) for parts in zip(*found, strict=True)]
    for key in (1, 0):  # by index, then by distance: as sorting is stable, of equal distances the lowest index is first
        order = both[key].argsort(dim=1, stable=True)
        both = [part.gather(1, order) for part in both]
    distances, indices = both
    return first_of_groups(distances, indices, indices, k)


# Numbers ----------------------------------------------------------------------------------------------------


def _cells(found: Neighbors, train: Tensor, samples: Tensor, held_out: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """See `Scores.cells`; images or features of each."""
    fresh = found.fresh
    return None if held_out is None or fresh is None or not fresh.any() else cells(train, samples, held_out[fresh])


class _Confirmed(Record):
    """How many samples below the cut prove to be near copies of training images."""

    samples: Count


def _confirmed(below: Tensor | None, found: Neighbors, sets: _Sets, work: Work) -> int | None:
    """How many of these samples prove to be near copies in pixels; None where none has to."""
    if below is None:
        return None

    def measure() -> _Confirmed:
        near = is_near_copy(found.distances[below])
        # the farthest of those that are known as well: the nearest may all show the same photograph
        indices, half = found.indices[below], CANDIDATES // 2
        candidates = torch.cat([indices[:, :half], indices[:, half:][:, -half:]], dim=1)
        near |= same_pictures(sets.samples.images[below], sets.unique.images, candidates, sets.flips)
        return _Confirmed(samples=int(near.sum()))

    return work.once("pixels-confirmed", _Confirmed, measure).samples
