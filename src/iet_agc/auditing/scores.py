"""scores.npz of an audit: what was measured of each image, so that every number can be counted again without images.

Of each space, pixels first and then each network by its place, as pixels_NAME or features_0_NAME:

distances, own              of samples: squared L2 to the k nearest training images (N, k); see `Neighbors.own`
held_out, held_own          the same of held-out images, (H, k) and (H,)
others, altered             of training images that were drawn, among the other ones; of near copies made of some
drawn, kinds                which unique training images were drawn; how near copies were made, in order
left_out, same              see `Neighbors`; `same` as two counts
cells, held_cells           of C_T
confirmed                   see `Scores`; one number
transformed, transformed_held_out, transformed_left
                            see `Scores`; float64
similar, similar_train, similar_held_out, similar_altered
                            cosine similarities with the most similar training image; see `Scores.similar_altered`

Distances in pixels are exact, whole numbers over 255 squared. An array that is not there is None.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iet_agc.auditing.copies import Scores
from iet_agc.metrics.calibration import Neighbors, Probe, num_laid_over
from iet_agc.metrics.intervals import Proportion, share
from iet_agc.metrics.similarity import Similar
from iet_agc.metrics.soundness import Kind

__all__ = ["SpaceArrays", "as_arrays", "from_arrays", "prefix"]

#: The arrays of one space, by name.
SpaceArrays = Mapping[str, NDArray[Any]]

#: Every array of a space, with its axes and the kind of its numbers; N samples, H held-out, L drawn, n altered, U
#: unique training images, F held-out images that set the cut.
_LAYOUT = {
    "distances": ("Nk", "f"),
    "own": ("N", "f"),
    "held_out": ("Hk", "f"),
    "held_own": ("H", "f"),
    "others": ("Lj", "f"),
    "altered": ("nk", "f"),
    "drawn": ("L", "i"),
    "kinds": ("K", "U"),
    "left_out": ("H", "b"),
    "same": ("2", "i"),
    "cells": ("N", "i"),
    "held_cells": ("F", "i"),
    "confirmed": ("1", "i"),
    "transformed": ("Nw", "f"),
    "transformed_held_out": ("Hw", "f"),
    "transformed_left": ("H", "f"),
    "similar": ("N", "f"),
    "similar_train": ("U", "f"),
    "similar_held_out": ("H", "f"),
    "similar_altered": ("n", "f"),
}


def prefix(space: int) -> str:
    """What the names of a space's arrays begin with; 0 is pixels, 1 the first network."""
    return f"features_{space - 1}_" if space else "pixels_"


def as_arrays(scores: Sequence[Scores]) -> dict[str, NDArray[Any]]:
    """The content of scores.npz.

    Args:
        scores: of each space, pixels first.
    """
    return {f"{prefix(space)}{name}": value for space, one in enumerate(scores) for name, value in _arrays(one).items()}


def _arrays(scores: Scores) -> dict[str, NDArray[Any]]:
    found, similar, probe = scores.found, scores.similar, scores.probe
    cells, held_cells = scores.cells or (None, None)
    tensors = {
        "distances": found.distances,
        "own": found.own,
        "held_out": found.held_out,
        "held_own": found.held_own,
        "others": found.others,
        "altered": found.altered,
        "left_out": found.left_out,
        "same": found.same and torch.tensor([each.count for each in found.same]),
        "drawn": probe and probe.drawn,
        "cells": cells,
        "held_cells": held_cells,
        "confirmed": None if scores.confirmed is None else torch.tensor([scores.confirmed]),
        "transformed": scores.transformed,
        "transformed_held_out": scores.transformed_held_out,
        "transformed_left": scores.transformed_left,
        "similar": similar and similar.samples,
        "similar_train": similar and similar.train,
        "similar_held_out": similar and similar.held_out,
        "similar_altered": scores.similar_altered,
    }
    kinds = {"kinds": np.array([*probe.altered])} if probe else {}
    return {name: tensor.numpy() for name, tensor in tensors.items() if isinstance(tensor, Tensor)} | kinds


def from_arrays(arrays: SpaceArrays, space: int, in_train: int, repeated: float) -> Scores:
    """The scores of a space, read back.

    Args:
        arrays: all of scores.npz.
        space: see `prefix`.
        in_train: how many held-out images stood in the training set, see `Probe`.
        repeated: the share of training images that are repeated, see `Probe`.

    Raises:
        ValueError: an array is not there, or of another shape or kind than it has to be; in words.
    """
    start = prefix(space)
    own = {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}
    _check(own)
    kept = {name: torch.from_numpy(array) for name, array in own.items() if array.dtype.kind != "U"}
    found = Neighbors(kept["distances"], torch.empty(0), kept["own"], kept.get("held_out"), kept.get("held_own"))
    found = replace(found, **{name: kept.get(name) for name in ("others", "altered", "left_out")})
    if "same" in kept and found.held_out is not None and found.others is not None:
        laid_over = num_laid_over(len(found.held_out))
        found = replace(found, same=_same(kept["same"], found), laid_over=laid_over)
    similar = None
    if "similar" in kept:
        none = torch.empty(0, dtype=torch.int64)
        similar = Similar(kept["similar"], none, kept["similar_train"], kept.get("similar_held_out"))
    return Scores(
        found=found,
        cells=(kept["cells"], kept["held_cells"]) if "cells" in kept else None,
        probe=_probe(own, kept, in_train, repeated),
        confirmed=int(kept["confirmed"]) if "confirmed" in kept else None,
        transformed=kept.get("transformed"),
        transformed_held_out=kept.get("transformed_held_out"),
        transformed_left=kept.get("transformed_left"),
        similar=similar,
        similar_altered=kept.get("similar_altered"),
    )


def _same(counts: Tensor, found: Neighbors) -> tuple[Proportion, Proportion]:
    assert found.held_out is not None
    assert found.others is not None
    return share(int(counts[0]), len(found.held_out)), share(int(counts[1]), len(found.others))


def _probe(own: SpaceArrays, kept: Mapping[str, Tensor], in_train: int, repeated: float) -> Probe | None:
    if "drawn" not in kept:
        return None
    kinds: list[Kind] = [cast("Kind", kind) for kind in own["kinds"].tolist()]
    none = torch.empty(0, dtype=torch.uint8)
    held_out = len(kept["held_out"])
    altered: dict[Kind, Tensor] = dict.fromkeys(kinds, none)
    return Probe(kept["drawn"], altered, (share(in_train, in_train + held_out), repeated))


def _check(own: SpaceArrays) -> None:
    """Refuse arrays that do not fit together, before anything is counted."""
    sizes: dict[str, int] = {"2": 2, "1": 1}
    for name, array in own.items():
        if name not in _LAYOUT:
            raise ValueError(f"there is no array {name!r:.60}")
        axes, kind = _LAYOUT[name]
        if array.ndim != len(axes) or array.dtype.kind != kind:
            raise ValueError(f"{name} is {array.dtype} of {array.ndim} axes")
        for axis, size in zip(axes, array.shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                raise ValueError(f"{name} has {size} rows or columns, others have {sizes[axis]}")
        if kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} holds numbers that are not finite")
    _check_whole(own)


def _check_whole(own: SpaceArrays) -> None:
    """Refuse arrays of which some are missing, or whose numbers cannot be."""
    needed = {"distances", "own"}
    for first, further in (
        ("held_out", {"held_own"}),
        ("drawn", {"kinds", "others", "altered", "held_out"}),
        ("cells", {"held_cells"}),
        ("transformed", {"transformed_held_out", "held_out"}),
        ("transformed_left", {"transformed"}),
        ("similar", {"similar_train"}),
    ):
        needed |= further if first in own else set()
    if missing := needed - set(own):
        raise ValueError(f"there is no array {min(missing)}")
    for name in ("distances", "held_out", "others", "altered"):
        if name in own and (not own[name].size or (np.diff(own[name], axis=1) < 0).any() or own[name].min() < 0):
            raise ValueError(f"{name} are not ascending distances")
    if "kinds" in own and not {*own["kinds"].tolist()} <= {*get_args(Kind)}:
        raise ValueError("kinds are none of those that are known")
    if "drawn" in own and "similar_train" in own and not _within(own["drawn"], len(own["similar_train"])):
        raise ValueError("drawn are no training images")


def _within(numbers: NDArray[Any], total: int) -> bool:
    return bool(((numbers >= 0) & (numbers < total)).all())
