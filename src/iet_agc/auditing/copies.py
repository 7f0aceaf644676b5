"""The numbers of one space, from what was measured of each image: all that is done once the search is over.

An audit counts by these functions when it is made, and whoever checks it later counts by the same ones again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
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
    TransformedLeftOut,
)
from iet_agc.auditing.verdict import outcome
from iet_agc.metrics.calibration import Neighbors, Probe, check_cut
from iet_agc.metrics.groups import crowded
from iet_agc.metrics.intervals import calibration_rank, share
from iet_agc.metrics.joint_cut import joint_scores
from iet_agc.metrics.memorization import (
    FALSE_ALARM,
    calibrated_cut,
    calibrated_share,
    held_out_statistics,
    is_near_copy,
    share_below,
    statistics,
)
from iet_agc.metrics.records import Alteration, Calibrated, Crowded, Similarity, Transformed
from iet_agc.metrics.similarity import Similar
from iet_agc.metrics.soundness import HeldOutCheck, check_held_out
from iet_agc.metrics.transformed import is_copy

__all__ = [
    "ALTERATIONS",
    "Joint",
    "Scores",
    "check_similarity",
    "copies_of",
    "copy_groups",
    "crowding",
    "group_counts",
    "joined",
    "judged_far",
    "no_cut",
    "samples_to_confirm",
    "transformed_of",
]

#: Ways of being a copy, in the order of their statistics, and of the false alarms that all may raise the part of each.
#: What is moved, or a half, stands out far more than what is noisy in its place.
_WEIGHTS: dict[Alteration, float] = {"as_it_is": 1, "in_place": 3, "moved": 1, "half": 1, "blend": 1}
ALTERATIONS = tuple(_WEIGHTS)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What was measured of each image in one space; every number of its copies follows from it.

    Attributes:
        found: distances, without the indices of the neighbours.
        cells: of C_T, those of the samples and of the held-out images that are no near copies; None without these.
        probe: which training images were drawn, and how near copies were made; None where held-out images are too few.
        confirmed: how many samples below the cut prove to be near copies, where that was looked at; in pixels only.
        transformed, transformed_held_out: statistics of transformed copies, see `metrics.transformed`, (N, 4) and
            (H, 4); None where these were not looked for.
        transformed_left: of held-out images, see `metrics.transformed.Compared.left`, (H,); None likewise, and of
            audits of before it was kept.
        similar: cosine similarities; None in pixels.
        similar_altered: squared L2 between directions of the near copies and their nearest, (n,), of descriptors that
            are made to find copies.
    """

    found: Neighbors
    cells: tuple[Tensor, Tensor] | None = None
    probe: Probe | None = None
    confirmed: int | None = None
    transformed: Tensor | None = None
    transformed_held_out: Tensor | None = None
    transformed_left: Tensor | None = None
    similar: Similar | None = None
    similar_altered: Tensor | None = None

    @property
    def held_out_copies(self) -> Tensor | None:
        """Which held-out images are transformed copies beyond doubt, bool (H,), if that is known; no near copies."""
        if self.transformed_held_out is None or self.transformed_left is None or self.found.fresh is None:
            return None
        return is_copy(self.transformed_held_out, self.transformed_left) & self.found.fresh


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
            *_told_of_transformed(scores),
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


@dataclass(frozen=True)
class Joint:
    """What all ways of being a copy say of each sample together.

    Attributes:
        held_out: of each held-out image that may set this cut the joint score, float64 (F,).
        samples: of each sample, (N,).
        cut: the joint score below which a sample is called a copy.
        by: the first of `ALTERATIONS` by which a sample is below the cut, or else the rarest, int64 (N,).
    """

    held_out: Tensor
    samples: Tensor
    cut: float
    by: Tensor


def joined(scores: Scores) -> Joint | None:
    """All ways of being a copy together; None where transformed ones were not looked for, or nothing sets a cut.

    Held-out images that are near copies, or transformed copies beyond doubt, set none.
    """
    found, fresh, others = scores.found, scores.found.fresh, scores.transformed_held_out
    if scores.transformed is None or others is None or fresh is None or found.held_out_ratios is None:
        return None
    if (copies := scores.held_out_copies) is not None:
        fresh = fresh & ~copies
    if calibration_rank(FALSE_ALARM, int(fresh.sum())) == 0:
        return None
    real = torch.column_stack([found.held_out_ratios, others.double()])[fresh]
    samples = torch.column_stack([found.ratios, scores.transformed.double()])
    held_out, ways = joint_scores(real, samples, [*_WEIGHTS.values()])
    cut = calibrated_cut(held_out.amin(dim=1))
    assert cut is not None
    below = ways < cut
    by = torch.where(below.any(1), below.to(torch.uint8).argmax(dim=1), ways.argmin(dim=1))
    return Joint(held_out.amin(dim=1), ways.amin(dim=1), cut, by)


def transformed_of(scores: Scores, plain: Calibrated | None, prompts: Sequence[str] | None) -> Transformed | None:
    """How much is copied, as it is and under transformations, by one cut.

    Args:
        scores: in pixels.
        plain: the share below the cut on distance ratios.
        prompts: of the samples, or None.
    """
    if scores.transformed is None:
        return None
    copies, joint = scores.held_out_copies, joined(scores)
    num_copies = None if copies is None else int(copies.sum())
    if joint is None:
        return Transformed(calibrated=None, others=None, by={}, num_held_out_copies=num_copies)
    below = joint.samples < joint.cut
    others = below if plain is None else below & (scores.found.ratios >= plain.cut)
    counts = joint.by[below].bincount(minlength=len(ALTERATIONS)).tolist()
    return Transformed(
        calibrated=calibrated_share(joint.samples, joint.held_out, prompts=prompts),
        others=share(int(others.sum()), len(others)),
        by=dict(zip(ALTERATIONS, counts, strict=True)),
        num_held_out_copies=num_copies,
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


def _told_of_transformed(scores: Scores) -> tuple[AuditWarning, ...]:
    """Which held-out images set no cut on transformed copies, and what it would have been with them."""
    copies = scores.held_out_copies
    if copies is None or not copies.any():
        return ()
    without, with_them = joined(scores), joined(replace(scores, transformed_left=None))
    return (
        TransformedLeftOut(
            held_out=tuple(copies.nonzero()[:, 0].tolist()),
            total=len(copies),
            cut=without and without.cut,
            cut_with_them=with_them and with_them.cut,
        ),
    )


def _quantities(ratios: Tensor, prompts: Sequence[str] | None = None) -> Quantities:
    return {cut: share_below(ratios, float(cut), prompts) for cut in CUTS}
