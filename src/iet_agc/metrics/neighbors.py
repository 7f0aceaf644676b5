"""Exact nearest neighbours of images in pixel space.

On uint8 pixels every squared distance is an integer, |a|^2 + |b|^2 - 2 ab. Products of float64
matrices hold such integers exactly (up to 2^53, images of 138 gigapixels), so nothing is rounded and
nothing cancels: a copy has distance 0, near copies are told apart to the last bit.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["mirror", "nearest"]

#: Pixels are 0 .. 255; distances are on the [0, 1] scale.
_UNIT = 255.0**2


def mirror(images: Tensor) -> Tensor:
    """Images (N, C, H, W) flipped left to right."""
    return images.flip(-1)


def nearest(
    queries: Tensor,
    references: Tensor,
    k: int = 50,
    flips: bool = False,
    memory: int = 2 * 1024**3,
    on_queries: Callable[[int], object] = lambda count: None,
) -> tuple[Tensor, Tensor]:
    """The k nearest references of every query, exactly.

    Args:
        queries: uint8 (N, C, H, W).
        references: uint8 (M, C, H, W) with M >= k.
        k: how many neighbours.
        flips: also look at the references mirrored left to right; a reference then counts once, at
            the smaller of its two distances.
        memory: bytes of working memory, beyond the images themselves. Changes no result.
        on_queries: called with a number of finished queries, for progress.

    Returns:
        distances: squared L2 on [0, 1] pixels, float64 (N, k), ascending.
        indices: which reference, int64 (N, k). Equal distances go to the lowest index.

    Raises:
        ValueError: not uint8, shapes that differ, or fewer references than k.
    """
    _check_images(queries, references, k)
    features = references[0].numel()
    # Per pair of a block: product and mirrored product in float64, a key, and the sort's copy of it.
    block_rows, block_columns = _block_shape(len(queries), len(references), features, memory)
    distances, indices = [], []
    for rows in queries.split(block_rows):
        keys = _nearest_keys(rows, references, k, flips, block_columns)
        distances.append((keys // len(references)).double() / _UNIT)
        indices.append(keys % len(references))
        on_queries(len(rows))
    if not distances:
        return torch.empty(0, k, dtype=torch.float64), torch.empty(0, k, dtype=torch.int64)
    return torch.cat(distances), torch.cat(indices)


def _check_images(queries: Tensor, references: Tensor, k: int) -> None:
    for name, images in (("queries", queries), ("references", references)):
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(f"{name} must be uint8 (N, C, H, W), not {images.dtype} {tuple(images.shape)}")
    if queries.shape[1:] != references.shape[1:]:
        raise ValueError(
            f"queries are {tuple(queries.shape[1:])}, references {tuple(references.shape[1:])}: sizes must agree"
        )
    if not 1 <= k <= len(references):
        raise ValueError(f"cannot take the {k} nearest of {len(references)} references")


def _block_shape(rows: int, columns: int, features: int, memory: int) -> tuple[int, int]:
    per_pair, per_image = 40, 24 * features
    block_columns = max(1, min(columns, memory // 4 // per_image))
    block_rows = max(1, min(rows, memory // 2 // (per_pair * block_columns + per_image)))
    return block_rows, block_columns


def _nearest_keys(rows: Tensor, references: Tensor, k: int, flips: bool, block_columns: int) -> Tensor:
    """One integer per neighbour, distance * M + index: its order is the order of the result."""
    best = torch.empty(len(rows), 0, dtype=torch.int64, device=rows.device)
    for start in range(0, len(references), block_columns):
        block = references[start : start + block_columns]
        distances = _squared_distances(rows, block)
        if flips:
            distances = torch.minimum(distances, _squared_distances(rows, mirror(block)))
        index = torch.arange(start, start + len(block), device=rows.device)
        keys = torch.cat([best, distances * len(references) + index], dim=1)
        best = keys.topk(min(k, keys.shape[1]), largest=False).values
    return best.sort(dim=1).values


def _squared_distances(rows: Tensor, columns: Tensor) -> Tensor:
    a, b = rows.flatten(1).double(), columns.flatten(1).double()
    distances = (a.square().sum(1)[:, None] + b.square().sum(1)[None, :]).addmm_(a, b.T, alpha=-2)
    return distances.long()
