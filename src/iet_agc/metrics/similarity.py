"""Similarity of descriptors: how alike the most alike training image is, by the conventions of the field.

    s_i = max over training images j of <f(x_i), f(y_j)> / (|f(x_i)| |f(y_j)|)          in [-1, 1]

f is a network. With that of SSCD (Pizzi et al., CVPR 2022), s > 0.5 is what Somepalli et al. (CVPR 2023,
arXiv 2212.03860) call a replication, and the 95th percentile of s is the score of a set in their second paper
(NeurIPS 2023, arXiv 2305.20086). The same number of every training image against the other ones is the
background of both. None of these functions knows where features come from.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from iet_agc.metrics.intervals import clustered_share, mean, percentile
from iet_agc.metrics.memorization import calibrated_share
from iet_agc.metrics.records import Likeness, Similarity

__all__ = ["THRESHOLD", "Similar", "directions", "most_similar", "similarities"]

#: Above it, two images are a replication by SSCD; in the features of other networks it means nothing by itself.
THRESHOLD = 0.5

#: The percentile that scores a set.
_PERCENTILE = 0.95

#: Finds neighbours of unit vectors: name of the search, vectors (N, D), k -> squared L2 and indices, (N, k).
Search = Callable[[str, Tensor, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Similar:
    """Largest cosine similarities, float64 in [-1, 1], and where they were found.

    Attributes:
        samples: of each sample with the training images, (N,).
        nearest: which unique training image that is, int64 (N,).
        train: of each unique training image with the other ones, (U,).
        held_out: of each held-out image with the training images, (H,); None where there are none.
    """

    samples: Tensor
    nearest: Tensor
    train: Tensor
    held_out: Tensor | None = None


def directions(features: Tensor) -> Tensor:
    """Features scaled to length 1, with one more dimension in which those of length 0 point.

    So the cosine of two rows is 1 - d / 2, d their squared L2, for any two rows: it is 1 for two of length 0, and 0
    for such a one and another.

    Args:
        features: float (N, D).

    Returns:
        float32 (N, D + 1), by arithmetic in float64.
    """
    norms = torch.linalg.vector_norm(features.double(), dim=1, keepdim=True)
    scaled = features / norms.clamp(min=torch.finfo(torch.float64).tiny)
    return torch.cat([scaled, (norms == 0).double()], dim=1).float()


def most_similar(
    search: Search, samples: Tensor, train: Tensor, held_out: Tensor | None = None, groups: Tensor | None = None
) -> Similar:
    """Similarity of every image with the training image that is most alike.

    Args:
        search: the nearest training images by squared L2, in `directions`; with groups, the nearest of each.
        samples, train, held_out: `directions` of features, (N, D), (U, D) and (H, D); the training images, unique ones.
        groups: that of each training image, int64 (U,), so that one's own copies are not the most alike; by default
            each is one of its own.
    """
    groups = torch.arange(len(train)) if groups is None else groups
    distances, nearest = search("samples", samples, 1)
    background, which = search("train", train, 2)
    # The image itself is there at distance 0, and comes second where one of equal features has a lower index.
    other = torch.where(groups[which[:, 0]] == groups, background[:, 1], background[:, 0])
    real = None if held_out is None else _cosine(search("held-out", held_out, 1)[0][:, 0])
    return Similar(_cosine(distances[:, 0]), nearest[:, 0], _cosine(other), real)


def _cosine(distances: Tensor) -> Tensor:
    return 1 - distances / 2


# Entries of audit.json --------------------------------------------------------------------------------------


def similarities(
    found: Similar,
    fresh: Tensor | None = None,
    copy_detection: bool = False,
    prompts: Sequence[Hashable] | None = None,
) -> Similarity:
    """The entry "similarity" of a feature space.

    Args:
        found: the similarities.
        fresh: which held-out images set the calibrated cut, bool (H,); None for all.
        copy_detection: whether the features are descriptors made to find copies.
        prompts: of the samples, if they have any; see `iet_agc.metrics.intervals.clustered_share`.
    """
    calibrated, real, setting = None, found.held_out, torch.empty(0)
    if real is not None:
        setting = real if fresh is None else real[fresh]
        calibrated = calibrated_share(-found.samples, -setting, prompts=prompts)
    return Similarity(
        copy_detection=copy_detection,
        num_calibrating=len(setting),
        threshold=THRESHOLD,
        samples=_likeness(found.samples, prompts),
        train=_likeness(found.train),
        held_out=None if real is None else _likeness(real),
        calibrated=calibrated and calibrated.model_copy(update={"cut": -calibrated.cut}),
    )


def _likeness(values: Tensor, prompts: Sequence[Hashable] | None = None) -> Likeness:
    numbers = values.tolist()
    return Likeness(
        above=clustered_share((values > THRESHOLD).tolist(), prompts),
        p95=percentile(numbers, _PERCENTILE, (-1.0, 1.0)),
        mean=mean(numbers, prompts),
    )
