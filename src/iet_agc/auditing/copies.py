"""The numbers of one space, from what was measured of each image: all that is done once the search is over.

An audit counts by these functions when it is made, and whoever checks it later counts by the same ones again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from iet_agc.auditing.schema import (
    CUTS,
    AuditWarning,
    Copies,
    CopiesLeftOut,
    CopyGroups,
    HeldOut,
    ManyNearCopies,
    NoCut,
    Quantities,
)
from iet_agc.auditing.verdict import outcome
from iet_agc.metrics.calibration import Neighbors, Probe, check_cut
from iet_agc.metrics.groups import crowded
from iet_agc.metrics.intervals import calibration_rank
from iet_agc.metrics.memorization import (
    FALSE_ALARM,
    calibrated_cut,
    calibrated_share,
    held_out_statistics,
    is_near_copy,
    share_below,
    statistics,
)
from iet_agc.metrics.records import Calibrated, Crowded, Similarity
from iet_agc.metrics.similarity import Similar
from iet_agc.metrics.soundness import HeldOutCheck, check_held_out

__all__ = [
    "Scores",
    "check_similarity",
    "copies_of",
    "copy_groups",
    "crowding",
    "group_counts",
    "judged_far",
    "no_cut",
    "samples_to_confirm",
]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What was measured of each image in one space; every number of its copies follows from it.

    Attributes:
        found: distances, without the indices of the neighbours.
        cells: of C_T, those of the samples and of the held-out images that are no near copies; None without these.
        probe: which training images were drawn, and how near copies were made; None where held-out images are too few.
        confirmed: how many samples below the cut prove to be near copies, where that was looked at; in pixels only.
        similar: cosine similarities; None in pixels.
        similar_altered: squared L2 between directions of the near copies and their nearest, (n,), of descriptors that
            are made to find copies.
    """

    found: Neighbors
    cells: tuple[Tensor, Tensor] | None = None
    probe: Probe | None = None
    confirmed: int | None = None
    similar: Similar | None = None
    similar_altered: Tensor | None = None


def copies_of(scores: Scores, prompts: Sequence[str] | None, in_features: bool = False) -> Copies:
    """How much is copied, in pixels or in features.

    Args:
        scores: of the space.
        prompts: of the samples, or None.
        in_features: whether the space is that of a network.
    """
    found, probe = scores.found, scores.probe
    real, fresh, mq = found.held_out, found.fresh, _quantities(found.ratios, prompts)
    if real is None or fresh is None or found.held_own is None or found.held_out_ratios is None:
        own = statistics(found.distances, found.own, prompts=prompts)
        return Copies(mq=mq, held_out=None, calibrated=None, warnings=(), statistics=own)
    calibrated = calibrated_share(found.ratios, found.held_out_ratios[fresh], prompts=prompts)
    check = check_cut(found, probe, calibrated and calibrated.cut, in_features) if probe else None
    return Copies(
        mq=mq,
        held_out=HeldOut(mq=_quantities(found.held_out_ratios), statistics=held_out_statistics(real, found.held_own)),
        calibrated=calibrated,
        warnings=(
            *_warnings(is_near_copy(real), fresh),
            *_told_of_left_out(found, calibrated),
            *(far for far in [check and check.farther] if far),
        ),
        statistics=statistics(found.distances, found.own, real, scores.cells, fresh, prompts),
        held_out_check=check,
    )


def samples_to_confirm(copies: Copies, found: Neighbors) -> Tensor | None:
    """The samples below the cut, int64, that have to prove to be near copies, as held-out images are far; else None."""
    calibrated, check = copies.calibrated, copies.held_out_check
    if calibrated is None or check is None or check.farther is None or outcome(calibrated) != "copies":
        return None
    return (found.ratios < calibrated.cut).nonzero()[:, 0]


def judged_far(copies: Copies, confirmed: int | None) -> Copies:
    """The same, with the reason that held-out images are too far, if few samples proved to be near copies.

    Args:
        copies: in pixels.
        confirmed: how many of `samples_to_confirm` did; None where none had to.
    """
    calibrated, check = copies.calibrated, copies.held_out_check
    if calibrated is None or check is None or confirmed is None:
        return copies
    told = check.judged_too_far(calibrated.count, calibrated.total, confirmed, calibrated.most_false_alarms)
    return copies.model_copy(update={"held_out_check": told})


def check_similarity(scores: Scores, similarity: Similarity) -> HeldOutCheck | None:
    """Whether held-out images may set the cut on similarity, of a descriptor that is made to find copies.

    Args:
        scores: of its space.
        similarity: what was counted there.
    """
    found, probe, similar, altered = scores.found, scores.probe, scores.similar, scores.similar_altered
    if probe is None or similar is None or altered is None or similar.held_out is None:
        return None
    if found.held_out is None or found.others is None:
        return None
    above = {}
    if similarity.calibrated:
        above = probe.by_kind(1 - altered / 2 > similarity.calibrated.cut)
    return check_held_out(
        {"similarity": (-similar.held_out, -similar.train[probe.drawn])},
        (is_near_copy(found.held_out).tolist(), is_near_copy(found.others).tolist()),
        above,
        in_features=True,
        left_out=None if found.left_out is None else found.left_out.tolist(),
    )


def crowding(found: Neighbors, cut: float) -> Crowded | None:
    """How many neighbourhoods of training images are crowded; None without held-out images."""
    if found.others is None or found.held_out is None:
        return None
    return crowded(found.others, found.held_out, cut)


def copy_groups(sizes: Sequence[int]) -> CopyGroups:
    """What is said of groups of so many images each."""
    return CopyGroups(groups=len(sizes), images=sum(sizes), largest=max(sizes, default=0))


def group_counts(labels: Tensor) -> CopyGroups:
    """The groups of two or more, of unique training images; `labels` as of `metrics.groups.labels_of`."""
    return copy_groups([size for size in labels.bincount().tolist() if size > 1])


def no_cut(count: int) -> NoCut:
    """The warning that so many held-out images set no cut."""
    return NoCut(num_held_out=count, num_needed=round(1 / FALSE_ALARM) - 1)


def _warnings(near_copies: Tensor, fresh: Tensor) -> tuple[AuditWarning, ...]:
    """What makes a cut unsure: near copies among held-out images, or too few others."""
    warnings: list[AuditWarning] = []
    near = int(near_copies.sum())
    if near > FALSE_ALARM * len(fresh):
        warnings.append(ManyNearCopies(num_near_copies=near, num_held_out=len(fresh)))
    if calibration_rank(FALSE_ALARM, int(fresh.sum())) == 0:
        warnings.append(no_cut(int(fresh.sum())))
    return tuple(warnings)


def _told_of_left_out(found: Neighbors, calibrated: Calibrated | None) -> tuple[AuditWarning, ...]:
    """Which held-out images were left out besides, and what the cut would have been with them."""
    if found.left_out is None or found.held_out_ratios is None or found.held_out is None:
        return ()
    with_them = calibrated_cut(found.held_out_ratios[~is_near_copy(found.held_out)])
    which = tuple(found.left_out.nonzero()[:, 0].tolist())
    cut = calibrated.cut if calibrated else None
    return (CopiesLeftOut(held_out=which, total=len(found.held_out), cut=cut, cut_with_them=with_them),)


def _quantities(ratios: Tensor, prompts: Sequence[str] | None = None) -> Quantities:
    return {cut: share_below(ratios, float(cut), prompts) for cut in CUTS}
