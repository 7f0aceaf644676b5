"""The loops of `metrics.pruned`, compiled by numba; see there for what they compute and why it is exact.

Loading this module loads numba, and the first call compiles: some seconds, once for each machine, as the result is
kept beside the source or, where that cannot be written, in the user's cache. Python is let go meanwhile, so blocks of
queries run side by side. numba has no types: everything here is an array of the kind that `search` names.
"""

import importlib
import importlib.util
import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["Asked", "Keys", "LaidOut", "search"]

_Function = TypeVar("_Function", bound=Callable[..., object])

#: References of a tile; coordinates of the first, and of the second bound. The loops below are written out for these.
_WIDTH, _COARSE, _FINE = 128, 16, 64

#: What a limit is raised by, so that float32 sums of up to 200 squares of differences, less one of them, stay below.
_RELATIVE = 1 + 256 * 2.0**-23

Keys = NDArray[np.int64]
LaidOut = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], NDArray[np.uint8]]
Asked = tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]
_Scratch = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
_State = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], float, int]

_NOTHING = np.iinfo(np.int64).max

#: Squares of so many uint8 differences add up to what int32 holds.
_PIECE = 2**15


def _compiled(*fastmath: str) -> Callable[[_Function], _Function]:
    """Of fast arithmetic only what leaves the bounds of rounding errors valid: fused products, sums in any order.

    Without numba a function stays as it is: this module can be read and documented, and nothing calls it.
    """
    if importlib.util.find_spec("numba") is None:
        return lambda function: function
    return importlib.import_module("numba").njit(nogil=True, cache=True, fastmath=set(fastmath) or False)


@_compiled("contract")
def _scores(tile: NDArray[np.float32], w: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """w . v - |v|^2 / 2 of all v of a tile (_COARSE + 1, _WIDTH), of which the last row is -|v|^2 / 2."""
    w0, w1, w2, w3, w4, w5, w6, w7 = w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]
    w8, w9, w10, w11, w12, w13, w14, w15 = w[8], w[9], w[10], w[11], w[12], w[13], w[14], w[15]
    for j in range(_WIDTH):
        low = w0 * tile[0, j] + w1 * tile[1, j] + w2 * tile[2, j] + w3 * tile[3, j]
        high = w4 * tile[4, j] + w5 * tile[5, j] + w6 * tile[6, j] + w7 * tile[7, j]
        low = low + w8 * tile[8, j] + w9 * tile[9, j] + w10 * tile[10, j] + w11 * tile[11, j]
        high = high + w12 * tile[12, j] + w13 * tile[13, j] + w14 * tile[14, j] + w15 * tile[15, j]
        out[j] = (low + tile[16, j]) + high


@_compiled("contract", "reassoc")
def _squares(a: NDArray[np.float32], b: NDArray[np.float32]) -> np.float32:
    """Squared distance."""
    total = np.float32(0)
    for i in range(len(a)):
        difference = a[i] - b[i]
        total += difference * difference
    return total


@_compiled()
def _short_distance(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> np.int32:
    """Squared, in whole numbers; the casts make it two instructions for 16 pixels."""
    total = np.int32(0)
    for i in range(len(a)):
        difference = np.int16(np.int16(a[i]) - np.int16(b[i]))
        total = np.int32(total + np.int32(np.int32(difference) * np.int32(difference)))
    return total


@_compiled()
def _distance(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> np.int64:
    total = np.int64(0)
    for start in range(0, len(a), _PIECE):
        total += _short_distance(a[start : start + _PIECE], b[start : start + _PIECE])
    return total


@_compiled()
def _replace_largest(heap: NDArray[np.int64], key: np.int64) -> None:
    """Put a key in the place of the first, which is the largest."""
    i = 0
    while True:
        child = 2 * i + 1
        if child + 1 < len(heap) and heap[child + 1] > heap[child]:
            child += 1
        if child >= len(heap) or heap[child] <= key:
            break
        heap[i] = heap[child]
        i = child
    heap[i] = key


@_compiled()
def _near(
    tile: NDArray[np.float32],
    coordinates: NDArray[np.float32],
    row: int,
    query: NDArray[np.float32],
    coarse: NDArray[np.float32],
    threshold: np.float32,
    limit: float,
    bounds: NDArray[np.float32],
    places: NDArray[np.int64],
) -> int:
    """The places in a tile that no bound excludes, into `places`; returns how many.

    Branches only where few get: a processor that guesses wrong loses more time than a second bound takes.
    """
    _scores(tile, coarse, bounds)
    count = 0
    for j in range(_WIDTH):
        places[count] = j
        count += bounds[j] > threshold
    kept = 0
    for place in places[:count]:
        bounds[kept] = _squares(query[:_FINE], coordinates[row + place, :_FINE])
        places[kept] = place
        kept += bounds[kept] <= limit
    count, kept = kept, 0
    for i in range(count):
        other = coordinates[row + places[i]]
        rest = query[_FINE - 1] - other[_FINE - 1]
        if bounds[i] - rest * rest + _squares(query[_FINE:], other[_FINE:]) <= limit:
            places[kept] = places[i]
            kept += 1
    return kept


@_compiled()
def _visit(
    tile: int, query: int, laid_out: LaidOut, asked: Asked, scratch: _Scratch, state: _State, slack: float
) -> None:
    """Look for neighbours of one query in one tile: as it is and, for flips, mirrored; a reference counts once."""
    tiles, coordinates, order, references = laid_out
    images, places_of, coarse, bounds = asked
    scores, places, touched, distances = scratch
    keys, radius, lengths, rounding, total = state
    count = 0
    for turn in range(len(images)):
        if not bounds[turn, query, tile] <= radius[query]:  # NaN where it was looked at
            continue
        limit = radius[query] * radius[query] * _RELATIVE
        threshold = np.float32((lengths[turn, query] - limit) / 2 - rounding)
        own, first = places_of[turn, query], coarse[turn, query]
        kept = _near(tiles[tile], coordinates, tile * _WIDTH, own, first, threshold, limit, scores, places)
        for place in places[:kept]:
            row = tile * _WIDTH + place
            if order[row] >= 0:
                if distances[place] == _NOTHING:
                    touched[count] = place
                    count += 1
                distances[place] = min(distances[place], _distance(images[turn, query], references[row]))
    for place in touched[:count]:
        key = np.int64(distances[place] * total + order[tile * _WIDTH + place])
        distances[place] = _NOTHING
        if key < keys[query, 0]:
            _replace_largest(keys[query], key)
            if keys[query, 0] != _NOTHING:
                radius[query] = math.sqrt(keys[query, 0] // total) + slack


@_compiled()
def search(
    laid_out: LaidOut, asked: Asked, first: NDArray[np.int64], slack: float, rounding: float, total: int, keys: Keys
) -> None:
    """The k smallest keys, distance * M + index, of every query, in no order.

    Args:
        laid_out: of M references in T tiles: `tiles`, float32 (T, _COARSE + 1, _WIDTH), see `_scores`; their
            coordinates, float32 (T * _WIDTH, n), of which the second bound takes _FINE; which reference stands there,
            int64 (T * _WIDTH,), -1 for none; and the references themselves in that order, uint8 (T * _WIDTH, D).
        asked: of N queries, once or, for flips, twice: images, uint8 (turns, N, D); coordinates, float32 (turns, N, n)
            and (turns, N, _COARSE); and bounds, float64 (turns, N, T): the distance to anything in a tile is at least
            that. Bounds are written to.
        first: int64 (N, S): the tiles to look at first.
        slack: by how much a distance of coordinates may exceed that of images.
        rounding: by how much a score may be off.
        total: of all references, of which these may be some.
        keys: int64 (N, k), of each query all of them the largest number, or as an earlier search left them: a heap.
    """
    images, _, coarse, bounds = asked
    radius, lengths = np.full(len(keys), np.inf), np.zeros((len(images), len(keys)))
    for turn in range(len(images)):
        for query in range(len(keys)):
            for value in coarse[turn, query]:
                lengths[turn, query] += np.float64(value) ** 2
    for query in range(len(keys)):
        if keys[query, 0] != _NOTHING:
            radius[query] = math.sqrt(keys[query, 0] // total) + slack
    scratch = (
        np.empty(_WIDTH, np.float32),
        np.empty(_WIDTH, np.int64),
        np.empty(_WIDTH, np.int64),
        np.full(_WIDTH, _NOTHING),
    )
    state = (keys, radius, lengths, rounding, total)
    for query in range(len(keys)):
        for tile in first[query]:
            _visit(tile, query, laid_out, asked, scratch, state, slack)
            bounds[:, query, tile] = np.nan  # no radius reaches it again, not even an infinite one
    for tile in range(len(laid_out[0])):
        for query in range(len(keys)):
            _visit(tile, query, laid_out, asked, scratch, state, slack)
