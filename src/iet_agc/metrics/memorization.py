"""Memorization quantity: how many samples lie suspiciously close to one training image.

    ratio_i = d_1 / mean(d_1, ..., d_50)          d_j: squared L2 to the j-th nearest training image
    MQ(cut) = number of samples with ratio_i < cut

Source: Liu et al., ECCV 2024 (arXiv 2407.15328), section 4.1, after Carlini et al., 2023.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["CUTS", "distance_ratio", "memorization_quantity"]

#: The cuts of the paper's tables.
CUTS = (0.15, 0.20, 0.30, 0.40, 0.50, 0.60, 0.70, 0.80, 0.90)


def distance_ratio(distances: Tensor) -> Tensor:
    """Smallest distance over the mean of all given ones, the smallest included.

    Args:
        distances: squared L2 to the nearest references, float (N, k), ascending.

    Returns:
        (N,), in [0, 1]. 0 where every distance is 0: such a sample is a copy of k images at once.
    """
    if distances.ndim != 2 or distances.shape[1] == 0:
        raise ValueError(f"distances must be (N, k), not {tuple(distances.shape)}")
    mean = distances.mean(dim=1)
    return torch.where(mean > 0, distances[:, 0] / mean, torch.zeros_like(mean))


def memorization_quantity(ratios: Tensor, cuts: Sequence[float] = CUTS) -> dict[float, int]:
    """How many ratios lie strictly below each cut.

    Args:
        ratios: (N,).
        cuts: by default the paper's nine.
    """
    return {cut: int((ratios < cut).sum()) for cut in cuts}
