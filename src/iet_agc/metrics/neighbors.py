"""Exact nearest neighbours of images in pixel space, by products of whole numbers.

Shifted by 128, uint8 pixels are int8, and every squared distance |a|^2 + |b|^2 - 2 ab is an integer:
nothing is rounded and nothing cancels. A copy has distance 0, near copies are told apart to the last
bit. Products come from the processor's int8 instructions (AVX512-VNNI, tensor cores). Where there are
none, float32 does the same: any sum of 1,024 such products is at most 2^24, which float32 holds exactly
in whatever order it is added up.

The k smallest of a row are found without sorting it. References stand in groups of consecutive
indices, the smallest of each group is kept while the products come in, and the k smallest lie within the k
groups whose smallest come first: any element of another group has k that precede it, one in each.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from iet_agc.metrics.pruned import LEAST_QUERIES, Projection, Pruned, is_enough, most_at_once
from iet_agc.runtime.torch_internals import cpu_has, has_integer_product, integer_product

__all__ = ["References", "check_images", "mirror", "most_quickly", "nearest"]

#: Pixels are 0 .. 255; distances are on the [0, 1] scale.
_UNIT = 255.0**2

#: Grey and RGB.
_CHANNELS = (1, 3)

#: So many products of int8 numbers, each at most 2^14 in size, add up to what the type holds exactly.
_EXACT_IN_FLOAT32, _EXACT_IN_INT32 = 2**10, 2**16

#: |b|^2 - 2 ab is at most this for each feature; up to so many features it fits int32.
_MOST = 3 * 2**14
_SHORT = (2**31 - 2) // _MOST

#: int8 products want sizes that are multiples of this, and more rows than this.
_STEP = 16

#: Rows of queries at a time: enough to use each reference often, few enough for the cache of a CPU.
_ROWS = {"cpu": 512, "cuda": 8192}

#: Queries that are searched for together where references are laid out anew for each search. By bounds, that takes as
#: long as the search for about a thousand.
_TOGETHER = 4096

#: Bytes of a reference that is laid out for the search by bounds, beyond its pixels: coordinates.
_BESIDE = 2048


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
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """The k nearest references of every query, exactly.

    Args:
        queries: uint8 (N, C, H, W), grey or RGB: C is 1 or 3.
        references: uint8 (M, C, H, W) with M >= k.
        k: how many neighbours.
        flips: also look at the references mirrored left to right; a reference then counts once, at
            the smaller of its two distances.
        memory: bytes of working memory on `device`, beyond images and result. Changes no result.
        on_queries: called with a number of finished queries, for progress.
        device: where to compute; by default where the queries are. Changes no result.

    Returns:
        distances: squared L2 on [0, 1] pixels, float64 (N, k), ascending; on the queries' device.
        indices: which reference, int64 (N, k). Equal distances go to the lowest index.

    Raises:
        ValueError: not uint8, not of 1 or 3 channels, shapes that differ, or fewer references than k.

    Examples:
        >>> references = torch.tensor([[0, 0], [255, 0]], dtype=torch.uint8).view(2, 1, 1, 2)
        >>> query = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2)
        >>> [found.tolist() for found in nearest(query, references, k=2)]
        [[[1.0, 2.0]], [[0, 1]]]
        >>> [found.tolist() for found in nearest(query, references, k=1, flips=True)]  # a mirrored copy
        [[[0.0]], [[1]]]
    """
    device = torch.device(device or queries.device)
    return References(references, k, memory, device).nearest(queries, flips, on_queries)


def most_quickly(references: Tensor, memory: int) -> int:
    """How many queries, or more, should be searched for together: fewer take more time each, with the same result.

    It depends on sizes alone, not on the machine: all processes that share a search find the same.

    Args:
        references, memory: see `nearest`.

    Returns:
        1 where the references fit into memory; or else they are laid out anew for each search.
    """
    fits = len(references) * (references[0].numel() + _BESIDE) <= memory // 2
    return 1 if fits else _TOGETHER


class References:
    """References that are laid out once for several searches; see `nearest`.

    Args:
        images: uint8 (M, C, H, W) with M >= k.
        k, memory, device: see `nearest`.

    Raises:
        ValueError: not uint8 (M, C, H, W) of 1 or 3 channels, or fewer than k.
    """

    def __init__(self, images: Tensor, k: int, memory: int, device: torch.device) -> None:
        _check_pixels("references", images)
        if not 1 <= k <= len(images):
            raise ValueError(f"cannot take the {k} nearest of {len(images)} references")
        self.images, self.k, self.device = images, k, device
        self._plan = _plan(len(images), images[0].numel(), k, memory, self.device)
        self._all: _Columns | None = None
        self._asked, self._memory = 0, memory
        self._bounds: _Bounds | None = None
        self._is_decided = False

    def nearest(
        self, queries: Tensor, flips: bool = False, on_queries: Callable[[int], object] = lambda count: None
    ) -> tuple[Tensor, Tensor]:
        """The k nearest of every query; see `nearest`."""
        _check_pixels("queries", queries)
        if queries.shape[1:] != self.images.shape[1:]:
            shapes = f"queries are {tuple(queries.shape[1:])}, references {tuple(self.images.shape[1:])}"
            raise ValueError(f"{shapes}: sizes must agree")
        total = len(self.images)
        bounds = self._decided(queries)
        if bounds and bounds.are_worth(len(queries)):
            keys = bounds.keys([queries, mirror(queries)] if flips else [queries], on_queries)
        else:
            keys = self._by_brute_force(queries, flips, on_queries)
        keys = keys.sort(dim=1).values
        return (keys // total).double() / _UNIT, keys % total

    def _decided(self, queries: Tensor) -> "_Bounds | None":
        """What searches by bounds, once enough was asked and where that pays: decided once, for all."""
        self._asked += len(queries)
        by_integers = _has_integer_products(self.device)
        on_cpu = self.device.type == queries.device.type == "cpu"
        if on_cpu and len(queries) and not self._is_decided and is_enough(self.images, self._asked, by_integers):
            self._is_decided = True
            if at_once := most_at_once(self.images, self.k, self._memory):
                project = Projection.of(self.images)
                if project.pays(self.images, queries, self.k, by_integers):
                    self._all, self._bounds = None, _Bounds(self.images, self.k, project, at_once)
        return self._bounds if queries.is_cpu else None

    def _by_brute_force(self, queries: Tensor, flips: bool, on_queries: Callable[[int], object]) -> Tensor:
        """The k smallest distance * M + index of every query, in no order, by every pair."""
        total = len(self.images)
        best = torch.full((len(queries), self.k), torch.iinfo(torch.int64).max, device=queries.device)
        done, work = 0, len(queries) * total
        for columns in self._columns():
            for rows in _slices(len(queries), self._plan.rows):
                keys = _nearest_keys(queries[rows].to(self.device), columns, self.k, flips, total).to(best.device)
                best[rows] = torch.cat([best[rows], keys], dim=1).topk(self.k, largest=False).values
                before, done = done, done + (rows.stop - rows.start) * columns.count
                if finished := len(queries) * done // work - len(queries) * before // work:
                    on_queries(finished)
            del columns  # before the next ones are laid out
        return best

    def _columns(self) -> "Iterator[_Columns]":
        """The references in blocks; a lone block stays in memory for the next search."""
        plan, total = self._plan, len(self.images)
        if self._all:
            yield self._all
            return
        for start in range(0, total, plan.columns):
            block = _Columns.of(self.images[start : start + plan.columns], start, plan.groups, self.device)
            self._all = block if block.count == total else None
            yield block
            del block


class _Bounds:
    """The references as `Pruned` searches them: laid out once where they fit into memory, else some for each search.

    Args:
        images, k, project: see `Pruned`.
        at_once: how many are laid out together.
    """

    def __init__(self, images: Tensor, k: int, project: Projection, at_once: int) -> None:
        self._images, self._k, self._project, self._at_once = images, k, project, at_once
        self._all = Pruned(images, k, project) if at_once >= len(images) else None

    def are_worth(self, num_queries: int) -> bool:
        """Whether so many queries are worth laying the references out, where that is done for each search."""
        return self._all is not None or num_queries >= LEAST_QUERIES

    def keys(self, turns: Sequence[Tensor], on_queries: Callable[[int], object]) -> Tensor:
        """The k smallest distance * M + index of every query, int64 (N, k), in no order; see `Pruned.update`."""
        keys = torch.full((len(turns[0]), self._k), torch.iinfo(torch.int64).max)
        done = 0.0

        def on_some(count: float) -> None:
            nonlocal done
            before, done = done, done + count / num_blocks
            if finished := round(done) - round(before):
                on_queries(finished)

        blocks = [slice(0, len(self._images))] if self._all else [*_slices(len(self._images), self._at_once)]
        num_blocks = len(blocks)
        for block in blocks:
            laid_out = self._all or self._lay_out(block)
            laid_out.update(keys, turns, on_some)
            del laid_out  # before the next ones are
        return keys

    def _lay_out(self, block: slice) -> Pruned:
        return Pruned(self._images[block], self._k, self._project, block.start, len(self._images))


def check_images(name: str, images: Tensor) -> None:
    """Refuse what is not images.

    Raises:
        ValueError: not uint8 (N, C, H, W), or the channels come last; the message says how to permute them.
    """
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(f"{name} must be uint8 (N, C, H, W), not {images.dtype} {tuple(images.shape)}")
    if images.shape[1] not in _CHANNELS and images.shape[3] in _CHANNELS:
        shape = f"{name} must be (N, C, H, W), not (N, H, W, C), which {tuple(images.shape)} looks like"
        raise ValueError(f"{shape}: give {name}.permute(0, 3, 1, 2)")


def _check_pixels(name: str, images: Tensor) -> None:
    check_images(name, images)
    if images.shape[1] not in _CHANNELS:
        raise ValueError(
            f"{name} must have 1 or 3 channels, not the {images.shape[1]} of (N, C, H, W) = {tuple(images.shape)}: "
            "leave others out, or permute(0, 3, 1, 2) if they come last"
        )


def _slices(total: int, length: int) -> Iterator[slice]:
    for start in range(0, total, length):
        yield slice(start, min(start + length, total))


@dataclass(frozen=True)
class _Plan:
    """How many queries and references are looked at together, and in how many groups these stand."""

    rows: int
    columns: int
    groups: int


def _plan(num_references: int, features: int, k: int, memory: int, device: torch.device) -> _Plan:
    """A tenth of the memory for references, four for their float32 copies, a quarter for scores; the rest is slack."""
    columns = max(1, min(num_references, memory // 10 // features))
    length = max(1, round(math.sqrt(columns / k)))  # makes groups + candidates, the cost of selection, smallest
    groups = -(-columns // length)
    candidates = length * min(k, groups)
    per_row = 8 * columns + 40 * groups + 40 * candidates + 8 * features
    rows = max(1, min(_ROWS.get(device.type, _ROWS["cpu"]), memory // 4 // per_row))
    return _Plan(rows, columns, groups)


@dataclass(frozen=True)
class _Columns:
    """References of which group G holds the indices first + G x length .. + length - 1.

    Attributes:
        pixels: int8 (length, groups, features); the references at one place of every group lie together.
        squares: |b|^2 (length, groups); where there is no reference, larger than any score.
        first: index of the first reference.
        count: how many references.
    """

    pixels: Tensor
    squares: Tensor
    first: int
    count: int

    @staticmethod
    def of(references: Tensor, first: int, groups: int, device: torch.device) -> "_Columns":
        """Lay references, uint8 (M, C, H, W), out in groups."""
        count, features = len(references), references[0].numel()
        length = -(-count // groups)
        groups = _rounded_up(groups)
        pixels = torch.full((length, groups, _rounded_up(features)), 128, dtype=torch.uint8, device=device)
        by_group = pixels.transpose(0, 1)
        whole, rest = divmod(count, length)
        by_group[:whole, :, :features] = references[: whole * length].reshape(whole, length, features).to(device)
        if rest:
            by_group[whole, :rest, :features] = references[whole * length :].flatten(1).to(device)
        signed = pixels.bitwise_xor_(128).view(torch.int8)
        there = _indices(length, groups, device) < count
        squares = torch.stack([_square_sums(place) for place in signed])
        kind = torch.int32 if features <= _SHORT else torch.int64
        return _Columns(signed, torch.where(there, squares, _MOST * features + 1).to(kind), first, count)


def _rounded_up(size: int) -> int:
    return -(-size // _STEP) * _STEP


def _indices(length: int, groups: int, device: torch.device) -> Tensor:
    """Index of the reference at each place of each group, int64 (length, groups)."""
    return torch.arange(length, device=device)[:, None] + length * torch.arange(groups, device=device)


def _square_sums(pixels: Tensor) -> Tensor:
    """Sum of squares of int8 (N, features), int64 (N,); a piece at a time, as the squares need more room."""
    parts = pixels.split(max(1, 2**22 // pixels.shape[1]))
    return torch.cat([part.to(torch.int16).square_().sum(1, dtype=torch.int64) for part in parts])


def _nearest_keys(queries: Tensor, columns: _Columns, k: int, flips: bool, num_references: int) -> Tensor:
    """One integer per neighbour, distance * M + index: its order is the order of the result.

    Returns:
        int64 (N, min(k, count)), in no order.
    """
    rows = _signed(queries, columns.pixels.shape[2])
    mirrored = _signed(mirror(queries), columns.pixels.shape[2]) if flips else None
    scores, smallest = _scores(rows, mirrored, columns)
    chosen = _first_groups(smallest, min(k, smallest.shape[1]))
    length = len(scores)
    candidates = scores.gather(2, chosen.expand(length, *chosen.shape)).long()
    indices = columns.first + chosen * length + torch.arange(length, device=chosen.device)[:, None, None]
    distances = candidates + _square_sums(rows)[:, None]
    keys = distances.mul_(num_references).add_(indices).transpose(0, 1).flatten(1)
    return keys.topk(min(k, columns.count), largest=False, sorted=False).values


def _signed(images: Tensor, features: int) -> Tensor:
    """Pixels shifted by 128, int8 (N, features), with zeros at the end."""
    flat = images.flatten(1)
    return pad(flat.bitwise_xor(128).view(torch.int8), (0, features - flat.shape[1]))


def _scores(rows: Tensor, mirrored: Tensor | None, columns: _Columns) -> tuple[Tensor, Tensor]:
    """What orders the references of a query: |b|^2 - 2 ab, and the smallest of each group.

    Returns:
        scores: (length, N, groups), int32 or int64.
        smallest: (N, groups).
    """
    length, groups = columns.squares.shape
    scores = torch.empty(length, len(rows), groups, dtype=columns.squares.dtype, device=rows.device)
    smallest = torch.full_like(scores[0], torch.iinfo(scores.dtype).max)
    for place, pixels in enumerate(columns.pixels):
        score = scores[place]
        _products(rows, pixels, score)
        if mirrored is not None:
            torch.maximum(score, _products(mirrored, pixels, torch.empty_like(score)), out=score)
        torch.sub(columns.squares[place], score, alpha=2, out=score)
        torch.minimum(smallest, score, out=smallest)
    return scores, smallest


def _first_groups(smallest: Tensor, count: int) -> Tensor:
    """The groups whose smallest scores come first, lower groups first among equals; int64 (N, count)."""
    groups = smallest.shape[1]
    keys = smallest.long().mul_(groups).add_(torch.arange(groups, device=smallest.device))
    return keys.topk(count, largest=False, sorted=False).values.remainder_(groups)


def _products(rows: Tensor, columns: Tensor, out: Tensor) -> Tensor:
    """Exact inner products of int8 (N, features) and (M, features), into `out`, int32 or int64 (N, M)."""
    by_integers = _has_integer_products(rows.device)
    longest = _EXACT_IN_INT32 if by_integers else _EXACT_IN_FLOAT32
    product = _integer_product if by_integers else _float_product
    if by_integers and rows.is_cpu and rows.shape[1] <= longest and out.dtype == torch.int32:
        return integer_product(rows, columns, out)  # spares a copy
    out.zero_()
    for piece in _slices(rows.shape[1], longest):
        out += product(rows[:, piece], columns[:, piece])
    return out


def _integer_product(rows: Tensor, columns: Tensor) -> Tensor:
    """int32 (N, M); CUDA refuses few rows."""
    return integer_product(pad(rows, (0, 0, 0, max(0, 2 * _STEP - len(rows)))), columns)[: len(rows)]


def _float_product(rows: Tensor, columns: Tensor) -> Tensor:
    return (rows.float() @ columns.float().T).to(torch.int32)


@cache
def _has_integer_products(device: torch.device) -> bool:
    """Whether int8 products are fast there, and right: older instructions saturate at the extremes tried here."""
    if device.type == "cpu":
        fast = cpu_has("avx512_vnni")
    else:
        fast = device.type == "cuda" and not torch.version.hip and torch.cuda.get_device_capability(device) >= (8, 0)
    if not fast or not has_integer_product():
        return False
    most, least = (torch.full((2 * _STEP, 256), end, dtype=torch.int8, device=device) for end in (127, -128))
    extremes = ((most, most), (most, least), (least, least))
    return all(bool((_integer_product(a, b) == _float_product(a, b)).all()) for a, b in extremes)
