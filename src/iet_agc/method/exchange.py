"""Exchange of images between shards, as in IET-AGC+: what a member knows too well goes to the next one."""

from collections.abc import Sequence

import torch
from torch import LongTensor, Tensor

__all__ = ["exchanged"]


def exchanged(shards: Sequence[Tensor], skipped: Sequence[Tensor], fraction: float) -> list[LongTensor]:
    """Every member hands the images that it skipped most to the next one, the last to the first (arXiv 2502.09434).

    Of images that were skipped equally often, the first of the shard go.

    Args:
        shards: per member, the training images of its shard, int64 (n,).
        skipped: per member, how often it left each of them out of the gradient, int64 (n,).
        fraction: of each shard, which is handed on, rounded down.

    Returns:
        The new shards, each ascending. They hold what the old ones held, each image once.

    Examples:
        >>> shards, skipped = [torch.tensor([0, 2, 4, 6]), torch.tensor([1, 3, 5])], [[0, 9, 1, 9], [2, 5, 4]]
        >>> [shard.tolist() for shard in exchanged(shards, [torch.tensor(s) for s in skipped], 0.5)]
        [[0, 3, 4], [1, 2, 5, 6]]
    """
    kept: list[Tensor] = []
    handed: list[Tensor] = []
    for shard, counts in zip(shards, skipped, strict=True):
        order = counts.argsort(descending=True, stable=True)
        number = int(fraction * len(shard))
        handed.append(shard[order[:number]])
        kept.append(shard[order[number:]])
    return [LongTensor(torch.cat([own, handed[place - 1]]).sort().values) for place, own in enumerate(kept)]
