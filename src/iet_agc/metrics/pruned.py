"""Exact nearest neighbours of images without looking at every pair: bounds first, distances for what they leave.

An orthonormal projection P shortens every difference, and what it leaves out differs at least in length:
|x - y|^2 >= |Px - Py|^2 + (|x - Px| - |y - Py|)^2. So the distance of *coordinates* (Px, |x - Px|) is at most that
of images. P are principal components of a sample of the references; large images are averaged over squares of pixels
first, which is orthonormal, too. The first 15, 63 and 190 components give three bounds, each on what the one before
left. References that are alike stand together in tiles. A query looks at the nearest tiles first, for a small radius
from the start, and passes over tiles that lie farther away than it as a whole. More references than fit into memory
are laid out some at a time, and what was found among the ones before is the radius among the next.

**Rounding.** A reference is dropped only where a bound exceeds the distance of the k-th nearest found so far, plus what
the coordinates may be off. With u = 2^-24 and y, pixels minus a whole-numbered mean:

- y, its averages times the square's side, |y|^2 and distances are exact in float32, int32 or int64;
- a float32 sum of m products is off by at most g = m u / (1 - m u) times |v| |y|, in whatever order it is added up. Px
  is added up in float64 from pieces of 128 products, so a vector of n components is off by at most sqrt(n) g |y|, and
  by e |y| more, where e = |V'V - 1| is what the components V lack of being orthonormal, computed in float64;
- the length of the rest, r = sqrt(|y|^2 - |Py|^2), is then off by at most d / r and by at most sqrt(d), where
  d = 2 |y| off + off^2; where r is short, Px is computed in float64 altogether;
- further lengths of rests are lengths of vectors, which differ by no more than the vectors do.

The sum of all that for the largest |y|, once for the query and once for the reference, is the slack.
"""

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from iet_agc.runtime.threads import in_blocks

if TYPE_CHECKING:
    from iet_agc.metrics.pruned_kernel import LaidOut

__all__ = ["LEAST_QUERIES", "Projection", "Pruned", "is_enough", "most_at_once"]

#: References of a tile, and coordinates of the first two bounds; the compiled loops are written out for these.
_WIDTH, _COARSE, _FINE = 128, 16, 64

#: Principal components of all three bounds, and the places of both lengths of rests among the coordinates.
_COMPONENTS = 190

#: References in the sample for components, and pairs of it that say what the bounds leave.
_SAMPLE, _TRIED = 1536, 64

#: Images are averaged until they have so many features; with fewer than the least, nothing is gained.
_MOST_FEATURES, _LEAST_FEATURES = 1024, 256

#: Products of float32 that are added up before float64 takes over.
_PIECE = 128

#: Where what is left of an image is shorter than this share of it, its coordinates are computed in float64.
_SHORT = 0.15

#: Images at a time that are projected, at most, and pixels of them; and queries that are searched for: their
#: coordinates fit a core's cache.
_ROWS, _PIXELS, _BLOCK = 512, 2**23, 128

#: Tiles that each query looks at first.
_FIRST = 4

_UNIT = 2.0**-24


#: Nanoseconds of one core for a pair: by brute force for each feature, without and with int8 instructions; by the
#: three bounds; by a distance and for each feature of it. Measured on Zen 3; they decide the way, no result.
_BRUTE, _BRUTE_INT8 = 0.044, 0.009
_FIRST_BOUND, _SECOND_BOUND, _THIRD_BOUND, _DISTANCE, _OF_FEATURE = 1.8, 10.0, 20.0, 50.0, 0.1

#: Layout takes as long as brute force for about 200 queries, and loading numba about a second: less is not worth it.
LEAST_QUERIES, _LEAST_NANOSECONDS = 512, 4e9


def most_at_once(references: Tensor, k: int, memory: int) -> int:
    """How many references, uint8 (M, C, H, W), are laid out together.

    They come in blocks of nearly the same size.

    Returns:
        M where all of them fit; 0 where they cannot be searched by `Pruned` at all. numba is an extra, `fast`.
    """
    count, features = len(references), references[0].numel()
    least = max(32 * k, 2 * _SAMPLE)
    if features < _LEAST_FEATURES or not references.is_cpu or importlib.util.find_spec("numba") is None:
        return 0
    for_each = 2 * 4 * (_COMPONENTS + 2 + _COARSE + 1) + 64 * torch.get_num_threads() + features + 32
    most = (memory // 2 - 2 * 4 * _PIXELS) // for_each
    if min(count, most) < least:
        return 0
    return -(-count // -(-count // most))


def is_enough(references: Tensor, num_queries: int, by_integers: bool) -> bool:
    """Whether so many queries are worth the layout, if the bounds then leave few pairs."""
    brute = _brute(references, by_integers) * num_queries * len(references)
    return num_queries >= LEAST_QUERIES and brute >= _LEAST_NANOSECONDS


def _brute(references: Tensor, by_integers: bool) -> float:
    return references[0].numel() * (_BRUTE_INT8 if by_integers else _BRUTE)


@dataclass(frozen=True)
class Projection:
    """Principal components of the references.

    Attributes:
        mean: whole numbers, float32 (C, H, W).
        components: float32 (features after averaging, 190), orthonormal but for `defect`.
        square: images are averaged over squares of this side.
        defect: how far from orthonormal, at most.
    """

    mean: Tensor
    components: Tensor
    square: int
    defect: float

    @staticmethod
    def of(references: Tensor) -> "Projection":
        """Of a sample of the references, evenly spaced; a range finder in three passes (Halko et al., 2011)."""
        sample = references[_evenly_spaced(len(references), _SAMPLE)]
        some = sample.split(_at_once(sample))
        sums = torch.stack([part.sum(0, dtype=torch.int64) for part in some])
        mean = (sums.sum(0) / len(sample)).round().float()
        square = _square(sample.shape[1:])
        rows = torch.cat([_averaged(part.float() - mean, square) for part in some])
        generator = torch.Generator().manual_seed(0)
        basis = torch.randn(rows.shape[1], _COMPONENTS + 10, generator=generator)
        for _ in range(2):
            basis = torch.linalg.qr(rows.T @ (rows @ basis)).Q
        small = (rows @ basis).double()
        axes = torch.linalg.eigh(small.T @ small).eigenvectors.flip(1)[:, :_COMPONENTS]
        components = torch.linalg.qr(basis.double() @ axes).Q.float()
        gram = components.double().T @ components.double()
        return Projection(mean, components, square, float((gram - torch.eye(_COMPONENTS)).norm()))

    def __call__(self, images: Tensor) -> tuple[Tensor, float]:
        """Coordinates of uint8 (N, C, H, W), float32 (N, 192), and how far off a row is at most."""
        parts = [self._some(part) for part in images.split(_at_once(images))]
        return torch.cat([part for part, _ in parts]), max(off for _, off in parts)

    def _some(self, images: Tensor) -> tuple[Tensor, float]:
        centred = images.float() - self.mean
        squares = centred.flatten(1).square().sum(1, dtype=torch.float64)
        rows = _averaged(centred, self.square)
        pieces = zip(rows.split(_PIECE, dim=1), self.components.split(_PIECE), strict=True)
        projected = torch.zeros(len(rows), _COMPONENTS, dtype=torch.float64)
        for some, components in pieces:
            projected += some @ components
        rest = (squares - projected.square().sum(1)).clamp_(min=0)
        short = rest < _SHORT**2 * squares  # such a rest would be far off: again, in float64
        projected[short] = rows[short].double() @ self.components.double()
        rest[short] = (squares[short] - projected[short].square().sum(1)).clamp_(min=0)
        coordinates = torch.empty(len(rows), _COMPONENTS + 2)
        coordinates[:, : _FINE - 1] = projected[:, : _FINE - 1]
        coordinates[:, _FINE - 1] = (rest + projected[:, _FINE - 1 :].square().sum(1)).sqrt()
        coordinates[:, _FINE:-1] = projected[:, _FINE - 1 :]
        coordinates[:, -1] = rest.sqrt()
        return coordinates, self._off(squares, rest, short)

    def _off(self, squares: Tensor, rest: Tensor, short: Tensor) -> float:
        """What a row of coordinates is off at most; see the module."""
        length = squares.sqrt()
        of_sums = torch.where(short, 1e-12, math.sqrt(_COMPONENTS) * _gamma(_PIECE))
        off = (of_sums + self.defect) * length
        of_square = (off * (2 * length + off) + 1e-12 * squares).clamp(min=1e-30)  # a rest of 0 is off by no nan
        of_rest = torch.minimum(of_square.sqrt(), of_square / rest.sqrt())
        return float((off.square() + of_rest.square()).sqrt().add(4 * _UNIT * length).max()) * (1 + 1e-6)

    def pays(self, references: Tensor, queries: Tensor, k: int, by_integers: bool) -> bool:
        """Whether the bounds leave few enough pairs, by some queries and the sample of the references."""
        sample = references[_evenly_spaced(len(references), _SAMPLE)]
        asked = queries[_evenly_spaced(len(queries), _TRIED)]
        own, others = self(asked)[0], self(sample)[0]
        mine = (asked.float() - self.mean).flatten(1)
        theirs = ((part.float() - self.mean).flatten(1) for part in sample.split(_at_once(sample)))
        distances = torch.cat([torch.cdist(mine, part) for part in theirs], dim=1)
        near = math.ceil(k * len(sample) / len(references))
        radius = distances.kthvalue(near, dim=1, keepdim=True).values
        bounds = [(_coarse(own), _coarse(others)), (own[:, :_FINE], others[:, :_FINE]), (_last(own), _last(others))]
        left = [float((torch.cdist(mine, theirs) <= radius).float().mean()) for mine, theirs in bounds]
        costs = (_SECOND_BOUND, _THIRD_BOUND, _DISTANCE + _OF_FEATURE * references[0].numel())
        pruned = _FIRST_BOUND + sum(share * cost for share, cost in zip(left, costs, strict=True))
        return pruned < _brute(references, by_integers) / 2


class Pruned:
    """References that are laid out to be searched by bounds.

    Args:
        references: uint8 (m, C, H, W), no more than `most_at_once` of all M.
        k: how many neighbours.
        project: the projection of all references.
        first: which of all they begin with.
        total: M; by default m.
    """

    def __init__(
        self, references: Tensor, k: int, project: Projection, first: int = 0, total: int | None = None
    ) -> None:
        self.k, self._project, self._total = k, project, len(references) if total is None else total
        coordinates, self._off = project(references)
        order = _cells(coordinates).argsort(stable=True)
        missing = -len(order) % _WIDTH
        order = torch.cat([order, order[-1:].expand(missing)])
        ordered = coordinates[order].view(-1, _WIDTH, coordinates.shape[1])
        del coordinates
        images = references.flatten(1)[order].numpy()  # a tile's lie together, which is what memory is quick at
        order += first
        order[len(order) - missing :] = -1
        coarse = _coarse(ordered)
        halves = coarse.square().sum(2, keepdim=True) / -2
        tiles = torch.cat([coarse, halves], dim=2).transpose(1, 2).contiguous()
        fine = ordered[..., :_FINE].double()
        self._centres = fine.mean(1)
        self._extents = (fine - self._centres[:, None]).norm(dim=2).amax(1)
        self._longest = float(_last(ordered).norm(dim=2).max())
        self._laid_out: LaidOut = (tiles.numpy(), ordered.flatten(0, 1).numpy(), order.numpy(), images)

    def update(self, keys: Tensor, turns: Sequence[Tensor], on_queries: Callable[[float], object]) -> None:
        """Put into `keys` what is nearer among these references than what was found among others.

        Args:
            keys: the k smallest distance * M + index of every query so far, int64 (N, k), changed in place; of a query
                they are either all the largest number, or as this function left them.
            turns: the queries, uint8 (N, C, H, W), and, for flips, the same mirrored.
            on_queries: called with a number of finished queries.
        """
        total = len(turns[0])
        length = min(_BLOCK, -(-total // torch.get_num_threads()))

        def search(rows: slice) -> None:
            self._search([images[rows] for images in turns], keys[rows])

        in_blocks(search, total, length, lambda share: on_queries(share * total))

    def _search(self, turns: Sequence[Tensor], keys: Tensor) -> None:
        from iet_agc.metrics.pruned_kernel import search

        found = [self._project(images) for images in turns]
        coordinates = torch.stack([rows for rows, _ in found])
        longest = self._longest + float(_last(coordinates).norm(dim=2).max())
        distances = self._to_centres(coordinates[..., :_FINE].double())
        bounds = distances - self._extents - 1e-6 * longest
        first = distances[0].topk(min(_FIRST, distances.shape[2]), largest=False).indices
        images = torch.stack([images.flatten(1) for images in turns])
        asked = (images.numpy(), coordinates.numpy(), _coarse(coordinates).numpy(), bounds.numpy())
        slack = self._off + max(off for _, off in found) + 1e-6 * longest
        search(self._laid_out, asked, first.numpy(), slack, 32 * _UNIT * longest**2, self._total, keys.numpy())

    def _to_centres(self, coordinates: Tensor) -> Tensor:
        """Distances of float64 (turns, N, 64) to the centres of tiles, (turns, N, T)."""
        products = coordinates @ self._centres.T
        squares = coordinates.square().sum(2, keepdim=True) + self._centres.square().sum(1)
        return products.mul_(-2).add_(squares).clamp_(min=0).sqrt_()


def _coarse(coordinates: Tensor) -> Tensor:
    """Coordinates of the first bound: 15 components, and the length of the rest; float32 (..., 16)."""
    rest = coordinates[..., _COARSE - 1 : _FINE].double().norm(dim=-1, keepdim=True).float()
    return torch.cat([coordinates[..., : _COARSE - 1], rest], dim=-1)


def _last(coordinates: Tensor) -> Tensor:
    """Coordinates of the third bound: all components, and the length of the last rest."""
    return torch.cat([coordinates[..., : _FINE - 1], coordinates[..., _FINE:]], dim=-1)


def _cells(coordinates: Tensor) -> Tensor:
    """Which of some evenly spaced rows is the nearest of each row, in the first bound's coordinates; int64 (M,)."""
    rows = _coarse(coordinates)
    centres = rows[_evenly_spaced(len(rows), max(1, len(rows) // (2 * _WIDTH)))]
    halves = centres.square().sum(1) / 2
    return torch.cat([(halves - part @ centres.T).argmin(1) for part in rows.split(4 * _ROWS)])


def _at_once(images: Tensor) -> int:
    """How many images (N, C, H, W) are float32 at a time."""
    return max(1, min(_ROWS, _PIXELS // images[0].numel())) if len(images) else 1


def _evenly_spaced(total: int, count: int) -> Tensor:
    count = min(count, total)
    return torch.arange(count) * total // count


def _square(shape: Sequence[int]) -> int:
    """Side, a power of 2, of the squares over which images (C, H, W) are averaged."""
    channels, height, width = shape
    side = 1
    while channels * height * width > _MOST_FEATURES * side**2 and height % (2 * side) == width % (2 * side) == 0:
        side *= 2
    return min(side, 16)  # sums of 256 pixels are exact in float32 by far


def _averaged(images: Tensor, square: int) -> Tensor:
    """Averages over squares, times their side: an orthonormal projection; float32 (N, features)."""
    return (avg_pool2d(images, square) * square).flatten(1) if square > 1 else images.flatten(1)


def _gamma(terms: int) -> float:
    return terms * _UNIT / (1 - terms * _UNIT)
