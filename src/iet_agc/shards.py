"""Partition a training set into shards: disjoint, covering, balanced to one image."""

from collections.abc import Sequence

import torch
from torch import LongTensor, Tensor

from iet_agc.seeds import generator

__all__ = ["STRATEGIES", "partition"]

STRATEGIES = ("stratified", "random", "contiguous")


def partition(
    labels_or_n: Tensor | Sequence[int] | int,
    num_shards: int,
    strategy: str = "stratified",
    seed: int = 0,
) -> list[LongTensor]:
    """Split the indices 0 .. N-1 into disjoint shards that leave nothing out.

    Args:
        labels_or_n: one class per image, int (N,), or just the number of images N.
        num_shards: how many shards.
        strategy: "stratified" gives every shard the same share of each class, to one image (without
            labels, of one class); "random" shuffles all; "contiguous" cuts the order as it is.
        seed: what shuffles; another seed, another split.

    Returns:
        num_shards index tensors, int64, each ascending. Sizes differ by at most one; with
        "stratified", so do the counts of every class.

    Raises:
        ValueError: more shards than images, no shard, or an unknown strategy.
    """
    labels = (
        torch.zeros(labels_or_n, dtype=torch.int64) if isinstance(labels_or_n, int) else torch.as_tensor(labels_or_n)
    )
    if labels.ndim != 1:
        raise ValueError(f"labels must be (N,), not {tuple(labels.shape)}")
    if not 1 <= num_shards <= len(labels):
        raise ValueError(f"cannot cut {len(labels)} images into {num_shards} shards: use 1 to {len(labels)}")
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown sharding strategy {strategy!r}: use one of {', '.join(STRATEGIES)}")
    if strategy == "contiguous":
        return [LongTensor(part) for part in torch.arange(len(labels)).tensor_split(num_shards)]
    order = torch.randperm(len(labels), generator=generator("shards", seed))
    if strategy == "stratified":
        order = order[labels[order].argsort(stable=True)]
    # Dealing the order out like cards balances the shards, and each class within them.
    return [LongTensor(order[shard::num_shards].sort().values) for shard in range(num_shards)]
