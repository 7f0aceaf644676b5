"""Copies under transformations: shifted, cropped, mirrored, brighter, flatter, in part, or blended with another image.

Pixels compare images where they stand, and miss a copy that was moved by one pixel. Here every image is looked up in
the training set by small descriptors of many views of it, of its halves, and of what is left of it when another image
is taken away (`descriptors`, `views`). The candidates are then compared:

    in_place    laid over each other as they are, with gain and offset by least squares, in filtered principal
                components, where noise weighs less
    moved       in pixels, mirrored, shifted by up to 4 pixels along each axis, or zoomed to show 75 to 100 % of a side
    half        one half with a half of the candidate (left, right, upper or lower), at its place or the opposite one
    blend       the whole with two candidates at once, by least squares

What is left over is a share of the variance, and each statistic is relative: the smallest share over the ninth
smallest among the candidates of the image (in place, the fifth). Among digits all candidates are alike, and both are
small; only of a copy is one candidate much nearer than the others. So statistics say nothing by themselves: held-out
images pass through the same, and `joint_cut` makes one cut of all of them.

Held-out images that are transformed copies themselves do not show what real images look like. `is_copy` tells those
that are so beyond doubt, each by itself: by two fixed limits, whatever other held-out images there are.

Images are brought to at most 32 pixels a side first, so 4 pixels are an eighth of a larger image. Blocks have a fixed
number of rows, and each is computed by one thread: memory and threads change no bit of a result.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from iet_agc.metrics.descriptors import Denoising, Whitening, fourier, plain, pooled
from iet_agc.metrics.records import Alteration
from iet_agc.metrics.registration import register, resample
from iet_agc.metrics.views import CELLS, Halves, Views, cells, inverse, least_sides, shrunk, smooth, smooth_grey
from iet_agc.runtime.threads import in_blocks

__all__ = ["MOST_LEFT", "MOST_OF_OTHERS", "STATISTICS", "Compared", "TrainingIndex", "is_copy"]

#: The statistics, in the order of their columns.
STATISTICS = ("in_place", "moved", "half", "blend")

#: Components of windows that look for candidates, and of those that choose; of whole images, halves and magnitudes.
_COARSE, _FINE, _WHOLE, _HALF, _FOURIER = 16, 32, 64, 32, 48

#: Components in which images are compared as they are, and the noise that these are filtered against, in grey levels.
_FILTERED, _NOISE = 128, 40.0

#: Candidates by coarse views and by Fourier magnitudes, which all views look at again; candidates that are compared.
_BY_VIEWS, _BY_FOURIER, _CANDIDATES = 192, 128, 16

#: Which of the candidates stands for images that are merely alike; where images are compared as they are, a nearer one.
_BACKGROUND, _BACKGROUND_IN_PLACE = 8, 4

#: So many candidates are registered, in so many steps; so many images are taken away to look for a second one.
_REGISTERED, _STEPS, _TAKEN = 2, 3, 2

#: Two images of a blend are not the same one, by the cosine of their descriptors.
_SAME = 0.98

#: Variance of pixels, in squared grey levels, that is taken for rounding: flat images match everything.
_ROUNDING = 1.0

#: Images at a time, of samples and of training images; and references that stand in a group when the best are picked.
_ROWS, _IMAGES, _GROUP = 32, 1024, 32

#: Moves by fewer pixels are not told.
_MOVED = 0.05

#: A moved image is a copy beyond doubt where no larger share of the variance within its channels is left over, and no
#: larger part of what the ninth candidate leaves over. Chosen by `benchmarks/detection.py`, see docs/metrics.md.
MOST_LEFT, MOST_OF_OTHERS = 0.005, 0.02

#: So many pairs of halves, the most promising by their descriptors, are compared in pixels.
_HALVES = 2


@dataclass(frozen=True)
class Compared:
    """What came of comparing images with a training set, by the columns of `STATISTICS`.

    Attributes:
        statistics: float64 (N, 4), each in (0, 1]: small where an image is a copy.
        references: the training image that is nearest by each, int64 (N, 4).
        second: the other one of a blend, int64 (N,).
        placement: how the training image of `moved` lies over the image, float32 (N, 4), see `registration.resample`.
        mirrored: whether that image is mirrored, bool (N,).
        halves: along which axis halves are cut, 1 for upper and lower ones, 2 for left and right ones; where the half
            of the image begins, and where that of the training image; int64 (N, 3), in pixels of the compared size.
        left: what is left over by `moved`, as a share of the variance within the channels of the image, float64 (N,),
            in (0, 1]. A picture of one colour has none there, and looks like any other of that colour.
    """

    statistics: Tensor
    references: Tensor
    second: Tensor
    placement: Tensor
    mirrored: Tensor
    halves: Tensor
    left: Tensor

    def in_words(self, row: int, by: Alteration, shape: tuple[int, int, int]) -> str:
        """How a training image of this shape, (C, H, W), has to be transformed to be an image, by one statistic."""
        if by == "moved":
            return self._moved_in_words(row, shape)
        if by == "half":
            axis, here, there = self.halves[row].tolist()
            return f"half of the {('rows', 'columns')[axis - 1]}, from {there} on, stands from {here} on"
        if by == "blend":
            return f"blended with training image {int(self.second[row])}"
        return "as it is" if by == "as_it_is" else "in place, with other brightness, contrast or noise"

    def overlaid(self, row: int, by: Alteration, image: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """A training image, transformed to be an image by one statistic; white where it says nothing of it.

        Args:
            row: which image.
            by: the statistic.
            image: itself, uint8 (C, H, W), of any size.
            first, second: the training image, and the other one of a blend, uint8 (C, H, W).

        Returns:
            uint8 (C, H, W), with the gain and offset that fit best.
        """
        parts, counts = [first.double()], torch.ones(image.shape[1:], dtype=torch.bool)
        if by == "as_it_is":
            return first
        if by == "moved":
            moved, inside = resample(first.float()[None], self.placement[row : row + 1])
            parts, counts = [moved[0].double()], inside[0, 0] > 0
            if self.mirrored[row]:
                parts, counts = [parts[0].flip(-1)], counts.flip(-1)
        elif by == "half":
            parts[0], counts = self._half_in_place(row, parts[0])
        elif by == "blend":
            parts.append(second.double())
        fitted = _fitted(parts, image.double(), counts).round().clamp(0, 255)
        return torch.where(counts, fitted, 255.0).to(torch.uint8)

    def _half_in_place(self, row: int, first: Tensor) -> tuple[Tensor, Tensor]:
        """A half of a training image where it stands in an image, and which pixels it covers."""
        axis, here, there = self.halves[row].tolist()
        size = first.shape[axis]
        compared = least_sides(*first.shape[1:])[axis - 1]
        begin, source, length = (round(each * size / compared) for each in (here, there, compared // 2))
        length = min(length, size - begin, size - source)
        placed, counts = torch.zeros_like(first), torch.zeros(first.shape[1:], dtype=torch.bool)
        placed.narrow(axis, begin, length).copy_(first.narrow(axis, source, length))
        counts.narrow(axis - 1, begin, length).fill_(True)
        return placed, counts

    def _moved_in_words(self, row: int, shape: tuple[int, int, int]) -> str:
        height, width = least_sides(shape[1], shape[2])
        zoom_y, shift_y, zoom_x, shift_x = self.placement[row].tolist()
        down, right = -shift_y / zoom_y * height / 2, -shift_x / zoom_x * width / 2
        rows, columns = f"{100 * zoom_y:.0f}", f"{100 * zoom_x:.0f}"
        parts = ["mirrored"] if self.mirrored[row] else []
        if (rows, columns) != ("100", "100"):
            parts.append(f"{rows} % of its rows, {columns} % of its columns")
        if max(abs(down), abs(right)) >= _MOVED:
            parts.append(f"moved {round(down, 1) + 0.0:+.1f} down, {round(right, 1) + 0.0:+.1f} right")
        return "; ".join(parts) or "where it is"


def is_copy(statistics: Tensor, left: Tensor) -> Tensor:
    """Which images are transformed copies beyond doubt: moved, mirrored, zoomed, or of other brightness or contrast.

    Args:
        statistics: see `Compared`, (N, 4).
        left: see `Compared`, (N,).

    Returns:
        bool (N,). Halves and blends are none: real images may share a part.
    """
    return (left <= MOST_LEFT) & (statistics[:, STATISTICS.index("moved")] <= MOST_OF_OTHERS)


class TrainingIndex:
    """A training set, laid out so that altered copies of its images are found.

    Args:
        images: the unique training images, uint8 (M, C, H, W), M >= 2; kept as they are.

    Raises:
        ValueError: fewer than 2.
    """

    def __init__(self, images: Tensor) -> None:
        if len(images) < 2:
            raise ValueError(f"copies are looked for among 2 or more training images, not {len(images)}")
        self.images = images
        height, width = least_sides(*images.shape[-2:])
        self._views = Views.of(height, width)
        self._cuts = [Halves.of(1, height), Halves.of(2, width)]
        plainly = torch.cat(in_blocks(lambda some: cells(shrunk(images[some])), len(images), _IMAGES))
        self._filter = Denoising.of(plainly, _FILTERED, _NOISE)
        self._filtered = self._filter(plainly)
        features = in_blocks(lambda some: self._features(smooth_grey(shrunk(images[some]))), len(images), _IMAGES)
        window, whole, magnitudes, *halves = (torch.cat(parts) for parts in zip(*features, strict=True))
        self._coarse, self._fine = Whitening.of(window, _COARSE, 0.5), Whitening.of(window, _FINE)
        self._whole = Whitening.of(whole, _WHOLE)
        self._magnitudes = Whitening.of(magnitudes, _FOURIER)
        self._halves = [Whitening.of(torch.cat(halves[at : at + 2]), _HALF) for at in (0, 2)]
        self._windows, self._wholes = self._fine(window), self._whole(whole)
        self._by_window = _columns(self._coarse(window))
        self._by_whole = _columns(self._wholes)
        self._by_magnitude = _columns(self._magnitudes(magnitudes))
        self._by_half = [_columns(self._halves[at // 2](each)) for at, each in enumerate(halves)]

    def _features(self, grey: Tensor) -> tuple[Tensor, ...]:
        """Of the window, the whole image, its magnitudes, and its four halves."""
        halves = [half for cut in self._cuts for half in cut.features(grey, cut.ends)]
        return plain(self._views.window(grey)), pooled(grey, CELLS), fourier(grey), *halves

    def compare(self, images: Tensor, on_images: Callable[[int], object] = lambda count: None) -> Compared:
        """Compare images with the training set.

        Args:
            images: uint8 (N, C, H, W), N >= 1, of the size of the training images.
            on_images: called with a number of finished images, for progress.
        """
        total = len(images)
        blocks = in_blocks(
            lambda some: self._block(images[some]), total, _ROWS, lambda share: on_images(round(share * total))
        )
        return Compared(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))

    def _block(self, images: Tensor) -> tuple[Tensor, ...]:
        count = len(images)
        small = shrunk(images[torch.arange(_ROWS).clamp(max=count - 1)])  # as many rows always, which round alike
        grey = smooth_grey(small)
        described = self._whole(pooled(grey, CELLS))
        in_place, first = self._in_place(small, described)
        moved, placed, placement, mirrored, left = self._moved(small, grey)
        half, partly, halves = self._half(small, grey)
        blend, mixed, second = self._blend(small, described)
        statistics = torch.stack([in_place, moved, half, blend], dim=1).double()
        references = torch.stack([first, placed, partly, mixed], dim=1)
        return tuple(part[:count] for part in (statistics, references, second, placement, mirrored, halves, left))

    def _shown(self, places: Tensor) -> Tensor:
        """Training images, small; (P, C, H, W)."""
        return shrunk(self.images[places])

    # -- as they are

    def _in_place(self, small: Tensor, described: Tensor) -> tuple[Tensor, Tensor]:
        _, near = _best(described @ self._by_whole, _CANDIDATES)
        mine, other = self._filter(cells(small))[:, None], self._filtered[near]
        products = (mine * other).sum(2).clamp(min=0)
        left = _share(mine.square().sum(2), other.square().sum(2), products, _ROUNDING * mine.shape[2])
        ratio, at = _relative(left, _BACKGROUND_IN_PLACE)
        return ratio, near.gather(1, at[:, None])[:, 0]

    # -- moved

    def _moved(self, small: Tensor, grey: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        near, view = self._seen(self._views.features(grey), self._magnitudes(fourier(grey)))
        turned = view == len(self._views.placement) - 1
        target = _turned(_each(smooth(small), near), _each(smooth(small.flip(-1)), near), turned.flatten())
        placement = inverse(self._views.placement[view.flatten()])
        shown = self._shown(near.flatten())
        left = _left_over(shown, target, placement).view(near.shape)
        few = min(_REGISTERED, near.shape[1])
        closest = left.topk(few, largest=False, sorted=True).indices
        flat = (closest + near.shape[1] * torch.arange(len(near))[:, None]).flatten()
        first = shown[flat]
        grey = _turned(_each(grey, closest), _each(smooth_grey(small.flip(-1)), closest), turned.flatten()[flat])
        better = register(smooth_grey(first), grey, placement[flat], _STEPS)
        refined = _left_over(first, target[flat], better)
        before = left.flatten()[flat]
        placement[flat] = torch.where((refined < before)[:, None], better, placement[flat])
        left.view(-1)[flat] = torch.minimum(refined, before)
        ratio, at = _relative(left)
        own = at + near.shape[1] * torch.arange(len(near))
        _, inside = resample(shown[own], placement[own])
        within = _within_channels(left.flatten()[own], target[own], inside)
        return ratio, near.flatten()[own], placement[own], turned.flatten()[own], within.double()

    def _seen(self, views: Tensor, magnitudes: Tensor) -> tuple[Tensor, Tensor]:
        """Candidates by any view, and the view that sees each best, int64 (N, k)."""
        total = len(self.images)
        first, *others = self._coarse(views[:, self._views.coarse]).transpose(0, 1).contiguous()
        scores = first @ self._by_window
        for view in others:
            torch.maximum(scores, view @ self._by_window, out=scores)
        found = _best(scores, _BY_VIEWS), _best(magnitudes @ self._by_magnitude, _BY_FOURIER)
        near = torch.cat([places for _, places in found], dim=1)
        near = near.sort(dim=1).values
        seen, view = torch.bmm(self._fine(views), self._windows[near].transpose(1, 2)).max(dim=1)
        again = torch.zeros_like(near, dtype=torch.bool)
        again[:, 1:] = near[:, 1:] == near[:, :-1]
        best = seen.masked_fill(again, -torch.inf).topk(min(_CANDIDATES, total), dim=1).indices
        return near.gather(1, best), view.gather(1, best)

    # -- halves

    def _half(self, small: Tensor, grey: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """By descriptors the pairs of halves that are worth a closer look, then by pixels."""
        pairs, near, promise = [], [], []
        for at, cut in enumerate(self._cuts):
            for begin, features in zip(cut.begins, cut.features(grey, cut.begins), strict=True):
                described = self._halves[at](features)
                for end, where in enumerate(cut.ends):
                    scores, best = _best(described @ self._by_half[2 * at + end], _BACKGROUND + 2)
                    promise.append((1.001 - scores[:, 0]) / (1.001 - scores[:, -2]))
                    near.append(best)
                    pairs.append((cut.axis, begin, where))
        chosen = torch.stack(promise, dim=1).topk(_HALVES, dim=1, largest=False).indices
        places = torch.stack(near, dim=1)
        ratios, best = torch.ones(len(small), _HALVES), torch.zeros(len(small), _HALVES, dtype=torch.int64)
        for pair in chosen.unique().tolist():
            rows, column = (chosen == pair).nonzero(as_tuple=True)
            ratios[rows, column], best[rows, column] = self._halves_of(small[rows], places[rows, pair], pairs[pair])
        ratio, column = ratios.min(dim=1, keepdim=True)
        return ratio[:, 0], best.gather(1, column)[:, 0], torch.tensor(pairs)[chosen.gather(1, column)[:, 0]]

    def _halves_of(self, images: Tensor, near: Tensor, pair: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """One pair of halves: the statistic, and the training image."""
        axis, begin, where = pair
        cut = self._cuts[axis - 1]
        left = _left_over(cut.cut(self._shown(near.flatten()), where), _each(smooth(cut.cut(images, begin)), near))
        ratio, best = _relative(left.view(near.shape))
        return ratio, near.gather(1, best[:, None])[:, 0]

    # -- blends

    def _blend(self, small: Tensor, described: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The image that is nearest, with the second that explains what is left of the image without it."""
        _, firsts = _best(described @ self._by_whole, _TAKEN)
        found = [self._second(small, described, first) for first in firsts.T]
        ratios, seconds = (torch.stack(parts, dim=1) for parts in zip(*found, strict=True))
        ratio, at = ratios.min(dim=1, keepdim=True)
        pair = torch.cat([firsts.gather(1, at), seconds.gather(1, at)], dim=1)
        left = _left_over(self._shown(pair.flatten()), _each(smooth(small), pair)).view(pair.shape)
        pair = pair.gather(1, left.argsort(dim=1, stable=True))  # the one of which there is more comes first
        return ratio[:, 0], pair[:, 0], pair[:, 1]

    def _second(self, small: Tensor, described: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        taken = self._wholes[first]
        rest = described - (described * taken).sum(1, keepdim=True) * taken
        alike = taken @ self._by_whole
        gained = (rest @ self._by_whole) / (1 - alike.square()).clamp(min=1 - _SAME**2).sqrt()
        gained.masked_fill_(alike > _SAME, -2.0)
        _, near = _best(gained, _BACKGROUND + 1)
        left = _left_over_of_two(small, self._shown(first), self._shown(near.flatten()))
        ratio, best = _relative(left.view(near.shape))
        return ratio, near.gather(1, best[:, None])[:, 0]


# -- images


def _each(images: Tensor, near: Tensor) -> Tensor:
    """Every image beside each of its candidates, (N * k, C, H, W)."""
    return images.repeat_interleave(near.shape[1], dim=0)


def _turned(images: Tensor, mirrored: Tensor, which: Tensor) -> Tensor:
    """Images, (P, C, H, W), and in place of some, bool (P,), these as they are when mirrored."""
    return torch.where(which[:, None, None, None], mirrored, images)


# -- candidates


def _columns(described: Tensor) -> Tensor:
    """Descriptors of references, (M, d), as columns."""
    return described.T.contiguous()


def _best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest scores of each row, descending, and where they are; (N, count), or fewer where there are fewer.

    References stand in groups, and the largest lie within as many groups, those whose largest come first.
    """
    rows, total = scores.shape
    padded = pad(scores, (0, -total % _GROUP), value=-torch.inf).view(rows, -1, _GROUP)
    groups = padded.amax(2).topk(min(count, padded.shape[1]), dim=1, sorted=False).indices
    chosen = padded.gather(1, groups[:, :, None].expand(-1, -1, _GROUP)).flatten(1)
    best = chosen.topk(min(count, total), dim=1)
    return best.values, groups.gather(1, best.indices // _GROUP) * _GROUP + best.indices % _GROUP


# -- what is left over


def _left_over(first: Tensor, second: Tensor, placement: Tensor | None = None) -> Tensor:
    """The share of the variance of the second images, smooth ones, that the first ones do not explain; (P,).

    These are laid over them, and smoothed. Gain, which is not negative, and offset are those of least squares.
    """
    if placement is None:
        return _unexplained(smooth(first).flatten(1), second.flatten(1), None)
    moved, inside = resample(first, placement)
    first, second, counts = (each.flatten(1) for each in (smooth(moved), second, inside.expand_as(moved)))
    return _unexplained(first, second, counts)


def _fitted(parts: Sequence[Tensor], image: Tensor, counts: Tensor) -> Tensor:
    """The weighted sum of some images and a constant that is nearest to an image among the pixels that count."""
    columns = torch.stack([*(each[:, counts].flatten() for each in parts), torch.ones_like(image[:, counts].flatten())])
    weights = torch.linalg.lstsq(columns.T, image[:, counts].flatten()[:, None], driver="gelsd").solution[:, 0]
    fitted = torch.full_like(image, float(weights[-1]))
    for weight, each in zip(weights[:-1].tolist(), parts, strict=True):
        fitted += max(weight, 0.0) * each
    return fitted


def _unexplained(first: Tensor, second: Tensor, counts: Tensor | None) -> Tensor:
    if counts is None:
        first, second = (each - each.mean(1, keepdim=True) for each in (first, second))
        total = torch.full_like(first[:, 0], first.shape[1])
    else:
        total = counts.sum(1).clamp(min=1)
        first, second = (
            (each - (each * counts).sum(1, keepdim=True) / total[:, None]) * counts for each in (first, second)
        )
    products = (first * second).sum(1).clamp(min=0)
    mine, other = first.square().sum(1), second.square().sum(1)
    return _share(other, mine, products, _ROUNDING * total)


def _share(mine: Tensor, other: Tensor, products: Tensor, rounding: Tensor | float) -> Tensor:
    """What is left of `mine` over itself, from squared norms and products."""
    explained = products.square() / (other + rounding)
    return ((mine - explained).clamp(min=0) + rounding) / (mine + rounding)


def _within_channels(left: Tensor, images: Tensor, inside: Tensor) -> Tensor:
    """Shares of the variance, (P,), as shares of that around the mean of each channel, of pixels that count; (P,)."""
    counts = inside.expand_as(images)

    def squares(axes: tuple[int, ...]) -> Tensor:
        total = counts.sum(axes, keepdim=True).clamp(min=1)
        centred = images - (images * counts).sum(axes, keepdim=True) / total
        return (centred * counts).square().sum((1, 2, 3)) + _ROUNDING * counts.sum((1, 2, 3))

    return (left * squares((1, 2, 3)) / squares((2, 3))).clamp(max=1)


def _left_over_of_two(images: Tensor, first: Tensor, seconds: Tensor) -> Tensor:
    """The same for images, (N, C, H, W), by one image each, (N, ...), and each of several second ones, (N * k, ...)."""
    each = len(seconds) // len(images)

    def centred(some: Tensor) -> Tensor:
        flat = smooth(some).flatten(1)
        return flat - flat.mean(1, keepdim=True)

    target, taken, others = centred(images), centred(first), centred(seconds).view(len(images), each, -1)
    rounding = _ROUNDING * target.shape[1]
    norm = taken.square().sum(1) + rounding
    rest = target - ((target * taken).sum(1) / norm)[:, None] * taken
    others = others - ((others * taken[:, None]).sum(2) / norm[:, None])[:, :, None] * taken[:, None]
    products = torch.einsum("nkf,nf->nk", others, rest).clamp(min=0)
    explained = products.square() / (others.square().sum(2) + rounding)
    left = (rest.square().sum(1)[:, None] - explained).clamp(min=0) + rounding
    return left / (target.square().sum(1)[:, None] + rounding)


def _relative(left: Tensor, background: int = _BACKGROUND) -> tuple[Tensor, Tensor]:
    """The smallest share over the ninth smallest, or the largest of fewer, (N,), and where it is."""
    ordered, order = left.sort(dim=1, stable=True)
    return ordered[:, 0] / ordered[:, min(background, left.shape[1] - 1)], order[:, 0]
