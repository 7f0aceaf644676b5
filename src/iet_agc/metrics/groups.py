"""Groups of copies as neighbours: of a training image and its near copies only the nearest one counts.

    d_j = min over the images of the j-th nearest group            ratio = d_1 / mean(d_1, ..., d_50)

Among single images, a copy of an image that has 49 near copies has 50 neighbours that are all as near as the first, so
no ratio is small there. Among groups the second neighbour is another image. A group is called by the place of its first
image; an image without copies is a group of its own.

A neighbourhood is crowded where many different images are alike, as those with one background are (arXiv 2609.33210
reports that models give these away, too). It is no matter of near copies, so it is asked of groups:

    crowded <=> d_10 < cut * median over training images of mean(d_1, ..., d_50)

cut is the distance ratio below which a sample counts as copied. So ten other groups are as near to the image as a copy
is to its one original, against what is usual for the set.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from iet_agc.metrics.duplicates import group_links
from iet_agc.metrics.intervals import share
from iet_agc.metrics.records import CROWD, Crowded

__all__ = ["crowded", "first_of_groups", "group_sizes", "labels_of", "nearest_groups", "representatives_of"]


def labels_of(total: int, links: Sequence[tuple[int, int]]) -> Tensor:
    """The group of each image, by which images are copies of which.

    Args:
        total: how many images.
        links: pairs of places. Groups are stars, as those of `duplicates`: every member is linked to one centre.

    Returns:
        int64 (N,), the place of the first image of the group.
    """
    labels = torch.arange(total)
    for members in group_links(total, links):
        labels[members] = min(members)
    return labels


def representatives_of(labels: Tensor) -> Tensor:
    """The first image of each group, int64 (G,), ascending."""
    return (labels == torch.arange(len(labels))).nonzero()[:, 0]


def group_sizes(labels: Tensor, multiplicities: Tensor) -> Tensor:
    """How many images are in the group of each image, int64 (N,).

    Args:
        labels: see `labels_of`.
        multiplicities: how many images each of them stands for, int64 (N,).
    """
    return torch.zeros_like(labels).index_add(0, labels, multiplicities)[labels]


def nearest_groups(
    search: Callable[[Tensor, int], tuple[Tensor, Tensor]], total: int, labels: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The nearest image of each of the k nearest groups, exactly.

    Twice k images are searched for; of queries whose images are of fewer groups four times as many, and so on.

    Args:
        search: takes queries, int64 (n,), and how many neighbours; returns distances, ascending, and indices, (n, k).
        total: how many queries there are.
        labels: the group of each reference, see `labels_of`.
        k: how many groups, at most all.

    Returns:
        distances: (N, k), ascending.
        indices: the image, int64 (N, k).
    """
    enough = min(len(labels), k + len(labels) - len(representatives_of(labels)))
    most, waiting = min(2 * k, enough), torch.arange(total)
    distances, indices = _of_groups(search(waiting, most), labels, k)
    while most < enough and len(waiting := distances[:, -1].isinf().nonzero()[:, 0]):
        most = min(4 * most, enough)
        distances[waiting], indices[waiting] = _of_groups(search(waiting, most), labels, k)
    return distances, indices


def _of_groups(found: tuple[Tensor, Tensor], labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    distances, indices = found
    return first_of_groups(distances, indices, labels[indices], k)


def first_of_groups(distances: Tensor, indices: Tensor, groups: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Of the neighbours of one group the first only.

    Args:
        distances: of neighbours, ascending, (N, m).
        indices: which they are, int64 (N, m).
        groups: the group of each, int64 (N, m).
        k: how many are kept, at most m; infinitely far where there are fewer groups.

    Returns:
        distances and indices, (N, k), in the order in which they were given.
    """
    order = groups.argsort(dim=1, stable=True)
    in_order = groups.gather(1, order)
    again = torch.zeros_like(order, dtype=torch.bool)
    again[:, 1:] = in_order[:, 1:] == in_order[:, :-1]
    far = distances.masked_fill(torch.zeros_like(again).scatter(1, order, again), torch.inf)
    nearest = far.argsort(dim=1, stable=True)[:, :k]
    return far.gather(1, nearest), indices.gather(1, nearest)


def crowded(others: Tensor, held_out: Tensor, cut: float) -> Crowded | None:
    """The share of crowded neighbourhoods.

    Args:
        others: squared distances from training images to the nearest other groups, (L, k), ascending.
        held_out: from held-out images to the nearest groups, (H, k).
        cut: of distance ratios, the one below which a sample counts as copied.

    Returns:
        None where there are fewer than `CROWD` other groups.

    Examples:
        >>> far, near = torch.linspace(1, 2, 20).repeat(9, 1), torch.full((1, 20), 0.01)
        >>> crowded(torch.cat([far, near]), far, cut=0.1).train.count
        1
    """
    if others.shape[1] < CROWD:
        return None
    within = cut * float(others.mean(dim=1).median())
    found = [share(int((each[:, CROWD - 1] < within).sum()), len(each)) for each in (others, held_out)]
    return Crowded(within=within, train=found[0], held_out=found[1])
