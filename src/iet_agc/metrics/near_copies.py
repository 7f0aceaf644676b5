"""Pairs of images that are near copies: re-encoded, resized, a little brighter, mirrored, cropped or shifted.

Two stages. Candidates are the most similar images by a descriptor of 65 (grey) or 97 (colour) numbers: the image
smoothed to 8 x 8, less its mean brightness, at unit length. Cropped and mirrored images are looked up as well. Then the
two thumbnails of a pair, at most 16 pixels a side, are laid over each other (`registration`), and d is the share of the
variance that is left over. The pair is a near copy if

    d <= 0.04, at most 0.08 in its worst cell (of 4 x 4), at most 0.1 at twice the size, and
    d <= max(0.08 b, 0.001)           b: the ninth smallest d of either image to its candidates, the smaller of the two

The last line tells copies from images that are merely alike, as d1/d2 and the distance ratio do: among digits,
photographs of one kind of thing, or the clock faces of a font, b is small as well. The ninth, so that eight more copies
of an image do not hide each other. Of fewer candidates b is 0.125.

Images come in an order that depends on their pixels alone, and nothing is random, so the pairs do not depend on the
order in which images were given.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from iet_agc.metrics.registration import IDENTITY, blur, difference, luma, register, resample
from iet_agc.runtime.threads import in_blocks

__all__ = ["CANDIDATES", "RULE", "Pairs", "near_copies", "same_pictures"]

#: Sides of images when they are looked at closely, and of the thumbnails that decide; smaller images stay as they are.
_CLOSE, _THUMBNAIL = 32, 16

#: Sides of the descriptor, of luma and of colour.
_GRID, _COLOUR_GRID = 8, 4

#: Lengths, in grey levels times the root of the number of cells, below which a descriptor is that of a flat image.
_FLAT = 2.0

#: The middle of an image is looked up as well as the whole: a crop is nearer to one of the two.
_CROP = 0.9

#: The candidates of an image, and which of them, by d, stands for images that are merely alike.
CANDIDATES, _BACKGROUND = 16, 8

#: Candidates are looked at where 1 - cosine of descriptors is at most this, and this part of that to the last one;
#: and in any case where it is below the third number.
_SIMILAR, _OF_LAST, _CERTAIN = 0.2, 0.9, 0.01

#: What is decided by, see the module's docstring.
RULE = {"most": 0.04, "worst_cell": 0.08, "close": 0.1, "of_background": 0.08, "least": 0.001, "no_background": 0.125}

#: After this many steps pairs are dropped that are farther apart than this, and the others are laid over exactly.
_FIRST_STEPS, _FURTHER_STEPS, _HOPELESS = 3, 3, 0.2

#: Images and pairs at a time, and of large images so many values. They change no result.
_ROWS, _PAIRS, _IMAGES, _VALUES = 128, 512, 2048, 2**23


@dataclass(frozen=True)
class Pairs:
    """Pairs of images.

    Attributes:
        first, second: which images, int64 (P,), first < second.
        mirrored: whether the first is mirrored before it is laid over the second, bool (P,).
        placement: how it is then, (P, 4), see `registration.resample`.
        distance: the share of the variance that is left over, float32 (P,).
    """

    first: Tensor
    second: Tensor
    mirrored: Tensor
    placement: Tensor
    distance: Tensor

    def take(self, which: Tensor | slice) -> "Pairs":
        """Some of them, by index, mask or slice."""
        return Pairs(
            self.first[which], self.second[which], self.mirrored[which], self.placement[which], self.distance[which]
        )


def near_copies(
    images: Tensor, order: Tensor, flips: bool = True, on_done: Callable[[float], object] = lambda share: None
) -> Pairs:
    """Find the pairs of near copies. Beyond 3 KB for each image, memory does not grow with their size and number.

    Args:
        images: uint8 (N, C, H, W); they may be mapped from a file.
        order: which to compare, int64 (U,): each picture once, in an order that depends on their pixels alone.
        flips: whether mirrored copies count.
        on_done: called with a share of all the work, in [0, 1], for progress.

    Returns:
        The pairs, by places in `order`, ordered by first and second.
    """
    thumbnails = _thumbnails_of(images, order)
    near = _candidates(thumbnails, flips, lambda share: on_done(0.5 * share))
    promising = _unordered(near, _promising(near))
    pairs = _laid_over(thumbnails, promising, lambda share: on_done(0.3 * share))
    pairs = pairs.take((pairs.distance <= RULE["most"]) & _alike_everywhere(thumbnails, pairs))
    allowed = _allowed(thumbnails, near, pairs, lambda share: on_done(0.2 * share))
    pairs = pairs.take(pairs.distance <= allowed)
    return pairs.take(_alike_closely(images, order, pairs))


def same_pictures(images: Tensor, references: Tensor, candidates: Tensor, flips: bool = False) -> Tensor:
    """Which images are near copies of one of their candidates, by the same rule.

    Args:
        images: uint8 (N, C, H, W).
        references: uint8 (M, C, H, W).
        candidates: references that each image may be a copy of, the nearest ones in pixels or in features, int64
            (N, k); b is taken among them.
        flips: whether mirrored copies count.

    Returns:
        bool (N,).
    """
    total, k = candidates.shape
    chosen, place = candidates.unique(return_inverse=True)
    both = torch.cat([images, references[chosen]])
    order = torch.arange(len(both))
    thumbnails = _thumbnails_of(both, order)
    first, second = torch.arange(total).repeat_interleave(k), total + place.flatten()
    found = torch.zeros(total, dtype=torch.bool)
    for mirrored in (False, True) if flips else (False,):
        still = torch.tensor(IDENTITY).expand(len(first), 4)
        turned = torch.full_like(first, mirrored, dtype=torch.bool)
        pairs = _laid_over(thumbnails, Pairs(first, second, turned, still, still[:, 0]), lambda share: None)
        usual = torch.full((total,), RULE["no_background"])
        if k > _BACKGROUND:
            usual = pairs.distance.view(total, k).sort(dim=1).values[:, _BACKGROUND]
        allowed = (RULE["of_background"] * usual).clamp(min=RULE["least"], max=RULE["most"])
        pairs = pairs.take(pairs.distance <= allowed[first])
        pairs = pairs.take(_alike_everywhere(thumbnails, pairs))
        found[pairs.take(_alike_closely(both, order, pairs)).first] = True
    return found


# -- images


def _thumbnails_of(images: Tensor, which: Tensor) -> Tensor:
    """Thumbnails of some of the images, uint8 (N, C, H, W); see `_thumbnails`."""
    made = in_blocks(lambda some: _thumbnails(_close(images, which[some])), len(which), _IMAGES)
    return torch.cat(made) if made else _thumbnails(_close(images, which))


def _close(images: Tensor, which: Tensor, mirrored: Tensor | None = None) -> Tensor:
    """Some images, uint8 (N, C, H, W), mirrored where they are to be, as float32 of at most 32 pixels a side, smoothed,
    so that resampling makes no difference."""
    height, width = (min(size, _CLOSE) for size in images.shape[-2:])
    small = torch.empty(len(which), images.shape[1], height, width)  # at once: pieces would keep freed memory apart
    for rows in torch.arange(len(which)).split(max(1, _VALUES // prod(images.shape[1:]))):
        pixels = _turned(images[which[rows]], None if mirrored is None else mirrored[rows]).float()
        small[rows] = pixels if pixels.shape[-2:] == (height, width) else adaptive_avg_pool2d(pixels, (height, width))
    return blur(small)


def _turned(images: Tensor, mirrored: Tensor | None) -> Tensor:
    """Images, mirrored where they are to be, bool (N,)."""
    return images if mirrored is None else torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def _thumbnails(close: Tensor) -> Tensor:
    """At most 16 pixels a side; smoothed again, or resampling by linear interpolation would be what differs most."""
    height, width = ((size + 1) // 2 if size >= _THUMBNAIL else size for size in close.shape[-2:])
    return close if close.shape[-2:] == (height, width) else blur(adaptive_avg_pool2d(close, (height, width)))


def _descriptors(thumbnails: Tensor) -> Tensor:
    """float32 (N, 65) of grey thumbnails, (N, 97) of colours, of unit length by the last number where flat."""
    smooth = blur(thumbnails)
    grey = adaptive_avg_pool2d(luma(smooth), _GRID)
    parts = [(grey - grey.mean((1, 2, 3), keepdim=True)).flatten(1)]
    if thumbnails.shape[1] == 3:
        colour = smooth[:, 0::2] - luma(smooth)
        parts.append(adaptive_avg_pool2d(colour, _COLOUR_GRID).flatten(1) * (_GRID / _COLOUR_GRID))
    squares = torch.cat(parts, dim=1).square().sum(1, keepdim=True)
    parts.append(((_FLAT * _GRID) ** 2 - squares).clamp(min=0).sqrt())
    return torch.cat(parts, dim=1) / squares.sqrt().clamp(min=_FLAT * _GRID)


# -- candidates


@dataclass(frozen=True)
class _Candidates:
    """The most similar images of each.

    Attributes:
        other: which, int64 (N, k), the most similar first.
        view: under which view of the image it is so, an index into `_views`, int64 (N, k).
        gap: 1 - cosine of the descriptors, float32 (N, k).
    """

    other: Tensor
    view: Tensor
    gap: Tensor


def _views(flips: bool) -> list[tuple[float, bool]]:
    """What part of an image is looked up, and whether it is mirrored."""
    return [(part, mirrored) for mirrored in ((False, True) if flips else (False,)) for part in (1.0, _CROP)]


def _candidates(thumbnails: Tensor, flips: bool, on_done: Callable[[float], object]) -> _Candidates:
    total, views = len(thumbnails), _views(flips)
    described = in_blocks(lambda some: _descriptors(thumbnails[some]), total, _IMAGES)
    columns = torch.cat(described).T.contiguous()
    found = in_blocks(lambda some: _most_similar(thumbnails[some], some.start, columns, views), total, _ROWS, on_done)
    return _Candidates(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _most_similar(
    rows: Tensor, start: int, columns: Tensor, views: list[tuple[float, bool]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Other images, views and gaps of some rows, see `_Candidates`; of an image seen in several views, the best."""
    k = min(CANDIDATES, columns.shape[1] - 1)
    own = torch.arange(start, start + len(rows))[:, None]
    others, gaps = [], []
    for part, mirrored in views:
        placement = torch.tensor([part, 0.0, part, 0.0]).expand(len(rows), 4)
        seen = resample(rows.flip(-1) if mirrored else rows, placement)[0] if (part, mirrored) != (1.0, False) else rows
        similar = (_descriptors(seen) @ columns).scatter_(1, own, -torch.inf)
        best = similar.topk(k, dim=1)
        others.append(best.indices)
        gaps.append(1 - best.values)
    view = torch.arange(len(views)).repeat_interleave(k).expand(len(rows), -1)
    return _once(torch.cat(others, dim=1), view, torch.cat(gaps, dim=1), k)


def _once(other: Tensor, view: Tensor, gap: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k best of each row in which no image stands twice."""
    order = gap.argsort(dim=1, stable=True)
    other, view, gap = (values.gather(1, order) for values in (other, view, gap))
    again = (other[:, :, None] == other[:, None, :]).tril(-1).any(2)
    order = gap.masked_fill(again, torch.inf).argsort(dim=1, stable=True)[:, :k]
    return other.gather(1, order), view.gather(1, order), gap.gather(1, order)


def _promising(near: _Candidates) -> Tensor:
    """Which candidates are worth a closer look, bool (N, k)."""
    limit = (_OF_LAST * near.gap[:, -1:]).clamp(max=_SIMILAR) if near.gap.shape[1] > _BACKGROUND else _SIMILAR
    return (near.gap <= limit) | (near.gap <= _CERTAIN)


def _unordered(near: _Candidates, which: Tensor) -> Pairs:
    """Candidates as pairs, each once: where both found each other, by the view with the smaller gap."""
    rows, places = which.nonzero(as_tuple=True)
    others, views, gaps = (values[rows, places] for values in (near.other, near.view, near.gap))
    low, high = torch.minimum(rows, others), torch.maximum(rows, others)
    order = gaps.argsort(stable=True)
    order = order[(low * len(near.other) + high)[order].argsort(stable=True)]
    low, high, rows, views, gaps = (values[order] for values in (low, high, rows, views, gaps))
    first = torch.ones(len(low), dtype=torch.bool)
    first[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    low, high, rows, views, gaps = (values[first] for values in (low, high, rows, views, gaps))
    # the row showed a part of itself: zoomed in, if it is the first; if it is the second, the first is zoomed out
    zoom = torch.where(views % 2 == 1, torch.where(rows == low, _CROP, 1 / _CROP), 1.0)
    still = torch.zeros_like(zoom)
    return Pairs(low, high, views >= 2, torch.stack([zoom, still, zoom, still], dim=1), gaps)


# -- the rule


def _laid_over(thumbnails: Tensor, pairs: Pairs, on_done: Callable[[float], object]) -> Pairs:
    """Pairs with their placement and distance; infinite for those that are given up early."""
    if not len(pairs.first):
        return pairs
    found = in_blocks(lambda some: _register(thumbnails, pairs.take(some)), len(pairs.first), _PAIRS, on_done)
    placement, distance = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Pairs(pairs.first, pairs.second, pairs.mirrored, placement, distance)


def _register(thumbnails: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    first, second = _both(thumbnails, pairs)
    grey, target = luma(first), luma(second)
    placement = register(grey, target, pairs.placement, _FIRST_STEPS)
    hopeful = (difference(grey, target, placement).whole <= _HOPELESS).nonzero()[:, 0]
    placement[hopeful] = register(grey[hopeful], target[hopeful], placement[hopeful], _FURTHER_STEPS)
    still = torch.tensor(IDENTITY).expand_as(placement)
    moved, unmoved = (difference(first, second, each).whole for each in (placement, still))
    return torch.where((moved < unmoved)[:, None], placement, still), torch.minimum(moved, unmoved)


def _both(images: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """The images of each pair, the first ones mirrored where they are to be."""
    return _turned(images[pairs.first], pairs.mirrored), images[pairs.second]


def _alike_everywhere(thumbnails: Tensor, pairs: Pairs) -> Tensor:
    """Pairs of which no cell differs much, bool (P,)."""

    def alike(some: slice) -> Tensor:
        part = pairs.take(some)
        return difference(*_both(thumbnails, part), part.placement).worst <= RULE["worst_cell"]

    return _joined(in_blocks(alike, len(pairs.first), _PAIRS))


def _alike_closely(images: Tensor, order: Tensor, pairs: Pairs) -> Tensor:
    """Pairs that are alike at twice the size of thumbnails, too, bool (P,)."""

    def alike(some: slice) -> Tensor:
        part = pairs.take(some)
        first, second = _close(images, order[part.first], part.mirrored), _close(images, order[part.second])
        return difference(first, second, part.placement).whole <= RULE["close"]

    return _joined(in_blocks(alike, len(pairs.first), _PAIRS))


def _joined(alike: list[Tensor]) -> Tensor:
    return torch.cat(alike) if alike else torch.zeros(0, dtype=torch.bool)


def _allowed(thumbnails: Tensor, near: _Candidates, pairs: Pairs, on_done: Callable[[float], object]) -> Tensor:
    """The largest distance at which each pair is a near copy, by what is usual for either image, float32 (P,)."""
    usual = torch.full((len(thumbnails),), RULE["no_background"])
    if near.other.shape[1] > _BACKGROUND and len(pairs.first):
        asked = torch.cat([pairs.first, pairs.second]).unique()
        usual[asked] = _background(thumbnails, near, asked, on_done)
    smaller = torch.minimum(usual[pairs.first], usual[pairs.second])
    return (RULE["of_background"] * smaller).clamp(min=RULE["least"])


def _background(thumbnails: Tensor, near: _Candidates, asked: Tensor, on_done: Callable[[float], object]) -> Tensor:
    """The ninth smallest distance of some images to their candidates, float32."""
    which = torch.zeros(near.other.shape, dtype=torch.bool)
    which[asked] = True
    pairs = _laid_over(thumbnails, _unordered(near, which), on_done)
    keys = pairs.first * len(thumbnails) + pairs.second
    mine, other = asked[:, None], near.other[asked]
    places = torch.searchsorted(keys, torch.minimum(mine, other) * len(thumbnails) + torch.maximum(mine, other))
    return pairs.distance[places].sort(dim=1).values[:, _BACKGROUND]
