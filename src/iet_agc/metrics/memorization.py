"""How much of a sample set is copied, by the distances from each sample to its nearest training images.

    ratio_i = d_1 / mean(d_1, ..., d_50)          d_j: squared L2 to the j-th nearest training image
    MQ(cut) = number of samples with ratio_i < cut

Source of these two: Liu et al., ECCV 2024 (arXiv 2407.15328), section 4.1, after Carlini et al., 2023. The field's
other statistics stand beside them: d1/d2, AuthPct and C_T, each with its own source below. All are pure functions
of distances; none of them knows where the images come from, or whether a distance is one of pixels or of features.
"""

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from iet_agc.metrics.intervals import Proportion, calibration_rank, clustered_share
from iet_agc.metrics.records import Authentic, Calibrated, CopyingZ, NearCopies, Nearness, Statistics, StatisticsOfReal

if TYPE_CHECKING:
    from sklearn.cluster import KMeans

__all__ = [
    "CUTS",
    "FALSE_ALARM",
    "auth_pct",
    "calibrated_cut",
    "calibrated_share",
    "cells",
    "copying_z",
    "d1_d2",
    "distance_ratio",
    "held_out_statistics",
    "is_near_copy",
    "memorization_quantity",
    "share_below",
    "statistics",
]

#: Of real images, at most this share may be called copies by a calibrated cut.
FALSE_ALARM = 0.01

#: The cuts of the paper's tables.
CUTS = (0.15, 0.20, 0.30, 0.40, 0.50, 0.60, 0.70, 0.80, 0.90)

#: A cell of C_T needs so many samples; the normal approximation of Mann-Whitney's U is good from there on.
_LEAST_IN_CELL = 20

#: By default C_T has at most so many cells, and so many samples and held-out images in each on average.
_MOST_CELLS, _PER_CELL = 10, 100

#: k-means looks at no more training images than this, drawn at random; more would move its centres little.
_CLUSTERED = 10_000

#: Whole numbers a, b below 10^12 that differ do so by more than this, relatively; rounding does by less.
_ROUNDING = 1e-12


# The distance ratio ---------------------------------------------------------------------------------------


def distance_ratio(distances: Tensor) -> Tensor:
    """Smallest distance over the mean of all given ones, the smallest included.

    Args:
        distances: squared L2 to the nearest references, float (N, k), ascending.

    Returns:
        (N,), in [0, 1]. 0 where every distance is 0: such a sample is a copy of k images at once.

    Examples:
        >>> distance_ratio(torch.tensor([[1.0, 9.0, 20.0], [5.0, 5.0, 5.0]])).tolist()
        [0.10000000149011612, 1.0]
    """
    _check_distances(distances, 1)
    mean = distances.mean(dim=1)
    return torch.where(mean > 0, distances[:, 0] / mean, torch.zeros_like(mean))


def memorization_quantity(ratios: Tensor, cuts: Sequence[float] = CUTS) -> dict[float, int]:
    """How many ratios lie strictly below each cut.

    Args:
        ratios: (N,).
        cuts: by default the paper's nine.

    Examples:
        >>> memorization_quantity(torch.tensor([0.1, 0.15, 0.5]), cuts=[0.15, 0.2])
        {0.15: 1, 0.2: 2}
    """
    return {cut: int((ratios < cut).sum()) for cut in cuts}


def share_below(ratios: Tensor, cut: float, prompts: Sequence[Hashable] | None = None) -> Proportion:
    """Count and share of ratios strictly below a cut.

    Args:
        ratios: (N,).
        cut: the cut.
        prompts: of each sample, if they have any; see `iet_agc.metrics.intervals.clustered_share`.
    """
    return clustered_share((ratios < cut).tolist(), prompts)


def calibrated_cut(held_out: Tensor, false_alarm: float = FALSE_ALARM) -> float | None:
    """The cut under which a further real image falls with a probability of at most `false_alarm`.

    Args:
        held_out: distance ratios, or distances, of real images that were not trained on, (H,).
        false_alarm: in (0, 1).

    Returns:
        The `iet_agc.metrics.intervals.calibration_rank`-th smallest; None where held-out images are too few.
    """
    rank = calibration_rank(false_alarm, len(held_out))
    return float(held_out.sort().values[rank - 1]) if rank else None


def calibrated_share(
    values: Tensor,
    held_out: Tensor,
    false_alarm: float = FALSE_ALARM,
    prompts: Sequence[Hashable] | None = None,
) -> Calibrated | None:
    """Share of samples below the cut that held-out images set. Low: less copied.

    Of distance ratios, it is the calibrated share. Of distances, it sees what every ratio is blind to: a copy of an
    image that has many near copies in the training set, whose other neighbours are as near as the first; and
    it is blind where a ratio is not, to a noised copy of an image that is far from all others.

    Args:
        values: of the samples, (N,).
        held_out: the same of real images, (H,).
        false_alarm: see `calibrated_cut`.
        prompts: see `share_below`.

    Returns:
        `share_below` that cut; None where held-out images are too few.
    """
    cut = calibrated_cut(held_out, false_alarm)
    if cut is None:
        return None
    found = share_below(values, cut, prompts)
    return Calibrated(**dict(found), false_alarm=false_alarm, cut=cut, num_held_out=len(held_out))


# The field's other statistics -------------------------------------------------------------------------------


def is_near_copy(distances: Tensor) -> Tensor:
    """Whether L2 to the nearest / L2 to the second nearest training image < 1/3.

    Source: Yoon et al., "Diffusion Probabilistic Models Generalize when They Fail to Memorize", 2023; Gu et al.,
    "On Memorization in Diffusion Models", 2023. Their distances are not squared; on squared ones the cut is 1/9.

    Args:
        distances: squared L2 to the nearest unique training images, float (N, k), k >= 2, ascending.

    Returns:
        bool (N,). 0 / 0 counts as a copy; it happens with flips, where an image and its mirror image can both
        stand in the training set. Just 1/3 does not count, whatever rounding says.
    """
    _check_distances(distances, 2)
    first, second = distances[:, 0], distances[:, 1]
    return (9 * first < second * (1 - _ROUNDING)) | (first == 0)


def d1_d2(distances: Tensor, prompts: Sequence[Hashable] | None = None) -> Proportion:
    """Share of samples that are near copies by `is_near_copy`. Low: less copied.

    Args:
        distances: see `is_near_copy`.
        prompts: see `share_below`.

    Returns:
        The share of the samples, see `iet_agc.metrics.intervals.clustered_share`.
    """
    return clustered_share(is_near_copy(distances).tolist(), prompts)


def auth_pct(distances: Tensor, own_distances: Tensor, prompts: Sequence[Hashable] | None = None) -> Proportion:
    """Share of authentic samples. High: less copied.

    A sample is authentic if it is farther from its nearest training image than that image is from its nearest
    other training image. Strictly: at equal distances it is not, so a copy is not authentic even where the
    image has a twin. New real images score far below 1 (55 % on digits, 72 % on Fashion-MNIST): read it beside theirs.

    Source: Alaa et al., ICML 2022 (arXiv 2102.08921); the name, and the comparison in the direction from sample to
    training image, from Stein et al., NeurIPS 2023 (dgm-eval).

    Args:
        distances: from each sample to its nearest training image, (N,).
        own_distances: from that training image to its nearest other one, (N,), on the same scale.
        prompts: see `share_below`.

    Returns:
        The share of the samples, see `iet_agc.metrics.intervals.clustered_share`.
    """
    if distances.ndim != 1 or distances.shape != own_distances.shape:
        shapes = f"{tuple(distances.shape)} and {tuple(own_distances.shape)}"
        raise ValueError(f"distances and own_distances must both be (N,), not {shapes}")
    return clustered_share((distances > own_distances).tolist(), prompts)


def copying_z(
    distances: Tensor,
    held_out_distances: Tensor,
    cell_numbers: tuple[Tensor, Tensor] | None = None,
    tau: float | None = None,
    near_copies: int = 0,
) -> CopyingZ | None:
    """C_T: are samples nearer to the training set than held-out real images are? Far below 0: they are copied.

    In each cell of space, z = (U - n m / 2) / sd, where Mann-Whitney's U is the number of pairs of a sample and a
    held-out image of which the sample is the farther one from the training set. C_T is the mean of z over the cells
    with a share of at least tau of the samples, weighted by the share of the held-out images there. Near 0 is ideal,
    far above 0 underfit.

    Source: Meehan, Chaudhuri, Dasgupta, "A Three Sample Hypothesis Test for Evaluating Generative Models", AISTATS
    2020 (arXiv 2004.05675). Their d(x, T) is the distance to the whole training set, and so is ours; their code looks
    at the part of it that lies in the cell. Pairs at equal distances count one half and sd is corrected for ties, as
    copies all have distance 0; without ties it is theirs, sd^2 = n m (n + m + 1) / 12. There is no continuity
    correction (their code adds 0.5 to U). Squaring changes no order, so squared distances give the same.

    Args:
        distances: from each sample to its nearest training image, (N,).
        held_out_distances: from each held-out image to its nearest training image, (H,).
        cell_numbers: the cell of each sample and of each held-out image, int64 (N,) and (H,), as `cells` returns
            them; None puts all into one cell.
        tau: by default 20 / N, so that a cell needs 20 samples.
        near_copies: how many held-out images were left out; kept in the record.

    Returns:
        C_T, its standard deviation where samples are like held-out images (that of one z is 1, that of their mean is
        smaller), and how many cells it is a mean of. It grows with the square root of the number of images: compare at
        equal sizes. None where no cell has enough samples and a held-out image.
    """
    for name, each in (("samples", distances), ("held-out images", held_out_distances)):
        if each.ndim != 1 or len(each) == 0:
            raise ValueError(f"distances of {name} must be (N,), N >= 1, not {tuple(each.shape)}")
    mine, real = cell_numbers or (torch.zeros_like(distances), torch.zeros_like(held_out_distances))
    if (len(mine), len(real)) != (len(distances), len(held_out_distances)):
        numbers = f"{len(mine)} and {len(real)} cell numbers, {len(distances)} and {len(held_out_distances)} distances"
        raise ValueError(f"{numbers} of samples and held-out images: give one cell number for each distance")
    least = _LEAST_IN_CELL if tau is None else tau * len(distances)
    scores, weights = [], []
    for cell in mine.unique():
        here, held_out_here = distances[mine == cell], held_out_distances[real == cell]
        if len(here) >= least and len(held_out_here):
            scores.append(_mann_whitney_z(here.cpu().numpy(), held_out_here.cpu().numpy()))
            weights.append(len(held_out_here))
    if not weights:
        return None
    share_of = np.array(weights) / sum(weights)
    return CopyingZ(
        value=float(share_of @ scores),
        null_sd=float(np.linalg.norm(share_of)),
        cells=len(weights),
        num_held_out=len(held_out_distances),
        num_near_copies=near_copies,
    )


def _mann_whitney_z(first: np.ndarray, second: np.ndarray) -> float:
    """Standardised U, corrected for ties: above 0 where the first numbers tend to be the larger ones."""
    from scipy.stats import rankdata

    n, m = len(first), len(second)
    both = np.concatenate([first, second])
    u = rankdata(both)[:n].sum() - n * (n + 1) / 2
    ties = np.unique(both, return_counts=True)[1].astype(float)
    if len(ties) == 1:
        return 0.0  # all are equal: no side is larger
    variance = n * m / 12 * (n + m + 1 - (ties**3 - ties).sum() / ((n + m) * (n + m - 1)))
    return float((u - n * m / 2) / math.sqrt(variance))


def cells(
    train_vectors: Tensor,
    sample_vectors: Tensor,
    held_out_vectors: Tensor,
    count: int | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Cells of space for C_T: k-means of the training set, and the cell of each sample and each held-out image.

    The test holds for any cells that were made without samples and held-out images, so k-means sees 10,000 of the
    training images at most, drawn at random. It runs in one thread: sums in another order would be other sums.

    Args:
        train_vectors, sample_vectors, held_out_vectors: pixels or features, any number type, (M, ...), (N, ...) and
            (H, ...), flattened.
        count: how many; by default such that 100 samples and 100 held-out images come on each, 10 at most.
        seed: of the draw and of k-means' start.

    Returns:
        Cell numbers, 0 .. count - 1: int64 (N,) and (H,).
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    if count is None:
        count = min(_MOST_CELLS, len(sample_vectors) // _PER_CELL, len(held_out_vectors) // _PER_CELL)
    count = max(1, min(count, len(train_vectors)))
    chosen = np.random.default_rng(seed).permutation(len(train_vectors))[:_CLUSTERED]
    with threadpool_limits(1):
        clusters = KMeans(count, n_init="auto", random_state=seed).fit(_rows(train_vectors[torch.from_numpy(chosen)]))
        return _cells_of(sample_vectors, clusters), _cells_of(held_out_vectors, clusters)


def _cells_of(vectors: Tensor, clusters: "KMeans") -> Tensor:
    parts = [clusters.predict(_rows(part)) for part in vectors.split(4096)]
    return torch.from_numpy(np.concatenate(parts)).long()


def _rows(vectors: Tensor) -> np.ndarray:
    return vectors.flatten(1).float().cpu().numpy()


# Entries of audit.json --------------------------------------------------------------------------------------


def statistics(
    distances: Tensor,
    own_distances: Tensor,
    held_out_distances: Tensor | None = None,
    cell_numbers: tuple[Tensor, Tensor] | None = None,
    fresh: Tensor | None = None,
    prompts: Sequence[Hashable] | None = None,
) -> Statistics:
    """The entry "statistics" of an audit, each number with its unit, direction, convention and source.

    Args:
        distances: squared L2 from each sample to its nearest unique training images, (N, k), k >= 2, ascending.
        own_distances: from its nearest training image to that one's nearest other, (N,).
        held_out_distances: as `distances`, of held-out images, (H, k); None where there are none: then
            nearness and C_T are null.
        fresh: which held-out images are no near copies of training images, bool (H,); None for all. The others set
            no cut of nearness and do not count for C_T: they would make any copies look far from the training set.
        cell_numbers: what `cells` returned of the samples and the fresh held-out images; None for one cell.
        prompts: of the samples; see `share_below`.
    """
    near, c_t = None, None
    if held_out_distances is not None:
        real = held_out_distances[:, 0] if fresh is None else held_out_distances[fresh, 0]
        left_out = len(held_out_distances) - len(real)
        c_t = copying_z(distances[:, 0], real, cell_numbers, near_copies=left_out) if len(real) else None
        near = calibrated_share(distances[:, 0], real, prompts=prompts)
    shares = _shares(distances, own_distances, "samples", prompts)
    return Statistics(**dict(shares), near=near and Nearness(**dict(near)), c_t=c_t)


def held_out_statistics(distances: Tensor, own_distances: Tensor) -> StatisticsOfReal:
    """The same of held-out images, without C_T: what d1/d2 and AuthPct say of real images. See `statistics`."""
    return _shares(distances, own_distances, "held-out images")


def _shares(
    distances: Tensor, own_distances: Tensor, what: str, prompts: Sequence[Hashable] | None = None
) -> StatisticsOfReal:
    near, authentic = d1_d2(distances, prompts), auth_pct(distances[:, 0], own_distances, prompts)
    percent = 100 * authentic.share
    return StatisticsOfReal(
        d1_d2=NearCopies(**dict(near), unit=f"share of {what}"),
        auth_pct=Authentic(**dict(authentic), percent=percent, unit=f"percent of {what}"),
    )


def _check_distances(distances: Tensor, least: int) -> None:
    if distances.ndim != 2 or distances.shape[1] < least:
        needed = "" if least == 1 else f" with k >= {least}"
        raise ValueError(f"distances must be (N, k){needed}, not {tuple(distances.shape)}")
