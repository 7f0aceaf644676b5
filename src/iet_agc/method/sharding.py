"""Partition a training set into shards: disjoint, covering, balanced to one image, or as far as groups allow."""

import heapq
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import LongTensor, Tensor

from iet_agc.runtime.errors import UserError
from iet_agc.runtime.seeds import generator

__all__ = ["STRATEGIES", "partition"]

STRATEGIES = ("stratified", "random", "contiguous")


def partition(
    labels_or_n: Tensor | Sequence[int] | int,
    num_shards: int,
    strategy: str = "stratified",
    seed: int = 0,
    *,
    groups: Tensor | Sequence[int] | None = None,
) -> list[LongTensor]:
    """Split the indices 0 .. N-1 into disjoint shards that leave nothing out.

    Args:
        labels_or_n: one class per image, int (N,), or just the number of images N.
        num_shards: how many shards.
        strategy: "stratified" gives every shard the same share of each class, to one image (without
            labels, of one class); "random" shuffles all; "contiguous" cuts the order as it is.
        seed: what shuffles; another seed, another split.
        groups: one number per image, int (N,); images of one number go to one shard. For "stratified" a group has
            the class of its first image. None: every image is a group of its own.

    Returns:
        num_shards index tensors, int64, each ascending, none empty. Sizes differ by at most one; with
        "stratified", so do the counts of every class. With groups, sizes differ by at most the largest group; with
        "stratified", the counts of every class by at most the largest group of that class, each image counted in
        the class of its group.

    Raises:
        ValueError: more shards than images or groups, no shard, an unknown strategy, groups of another number than
            images, or groups with "contiguous", which leaves the order as it is.

    Examples:
        >>> [shard.tolist() for shard in partition(5, 2, "contiguous")]
        [[0, 1, 2], [3, 4]]
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> [labels[shard].tolist() for shard in partition(labels, 2)]  # a share of each class
        [[0, 1], [0, 1]]
    """
    labels = (
        torch.zeros(labels_or_n, dtype=torch.int64) if isinstance(labels_or_n, int) else torch.as_tensor(labels_or_n)
    )
    if labels.ndim != 1:
        raise ValueError(f"labels must be (N,), not {tuple(labels.shape)}")
    if not 1 <= num_shards <= len(labels):
        raise UserError(f"cannot cut {len(labels)} images into {num_shards} shards: use 1 to {len(labels)}")
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown sharding strategy {strategy!r}: use one of {', '.join(STRATEGIES)}")
    if groups is not None:
        return _of_groups(labels, torch.as_tensor(groups), num_shards, strategy, seed)
    if strategy == "contiguous":
        return [LongTensor(part) for part in torch.arange(len(labels)).tensor_split(num_shards)]
    order = torch.randperm(len(labels), generator=generator("shards", seed))
    if strategy == "stratified":
        order = order[labels[order].argsort(stable=True)]
    # Dealing the order out like cards balances the shards, and each class within them.
    return [LongTensor(order[shard::num_shards].sort().values) for shard in range(num_shards)]


def _of_groups(labels: Tensor, groups: Tensor, num_shards: int, strategy: str, seed: int) -> list[LongTensor]:
    """`partition` of whole groups: the largest first, each to the shard that has the fewest images."""
    if groups.shape != labels.shape:
        raise ValueError(f"groups must be one number per image, ({len(labels)},), not {tuple(groups.shape)}")
    if strategy == "contiguous":
        raise ValueError("contiguous shards leave the order as it is and cannot keep groups together: use another")
    _, groups = groups.unique(return_inverse=True)
    sizes = groups.bincount()
    if num_shards > len(sizes):
        raise UserError(f"cannot cut {len(sizes)} groups into {num_shards} shards: use 1 to {len(sizes)}")
    places = torch.arange(len(labels))
    first = torch.full_like(sizes, len(labels)).scatter_reduce(0, groups, places, "amin")
    kinds = labels[first] if strategy == "stratified" else torch.zeros_like(first)
    order = torch.randperm(len(sizes), generator=generator("shards", seed))
    order = order[sizes[order].argsort(descending=True, stable=True)]
    order = order[kinds[order].argsort(stable=True)]
    shard_of = _dealt(order.tolist(), sizes.tolist(), kinds.tolist(), num_shards)[groups]
    return [LongTensor(places[shard_of == shard]) for shard in range(num_shards)]


def _dealt(order: list[int], sizes: list[int], kinds: list[int], num_shards: int) -> Tensor:
    """The shard of each group, int64 (G,): the one with the fewest images of its kind, among these of all kinds."""
    shard_of, totals = torch.empty(len(order), dtype=torch.int64), [0] * num_shards
    for _, some in groupby(order, key=kinds.__getitem__):
        fewest = [(0, total, shard) for shard, total in enumerate(totals)]
        heapq.heapify(fewest)
        for group in some:
            of_kind, total, shard = fewest[0]
            heapq.heapreplace(fewest, (of_kind + sizes[group], total + sizes[group], shard))
            shard_of[group], totals[shard] = shard, total + sizes[group]
    return shard_of
