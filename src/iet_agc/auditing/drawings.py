"""drawings.npz of an attack: what its numbers are counted from, and what its page shows. No torch.

Of each way, as WAY_NAME:

train_targets, held_out_targets    which image each drawn one is of, int64, in the order of drawing
train_ratios, held_out_ratios      see `iet_agc.metrics.attacks.Drawn`, float64
totals                             how many training and held-out images were attacked, two numbers
shown, shown_scores                of the pictures: which training image each is, and how often it stands in the set;
                                   its score
shown_trained, shown_drawn         the pictures, uint8 (n, C, H, W)

Of the rows of images.csv, first training images, then held-out ones:

train_images, held_out_images      the number that a row has there
train_places, held_out_places      which of all images that plain sampling is counted by each is
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iet_agc.metrics.attacks import Drawn, Way
from iet_agc.reporting.attack_page import Shown
from iet_agc.runtime.array_files import read_arrays
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import replacing, shown

__all__ = ["DRAWINGS", "KINDS", "Drawings", "read_drawings", "write_drawings"]

DRAWINGS = "drawings.npz"

#: The kinds of images that are attacked.
KINDS = ("train", "held_out")

#: Bytes of all arrays, a thousand times those of the default budget; and images of one kind.
_MOST, _MOST_IMAGES = 2**29, 2**26


@dataclass(frozen=True)
class Drawings:
    """All that an attack keeps of what it drew.

    Attributes:
        by_way: of each way, what was drawn of training images and of held-out images.
        images, places: of each kind in `KINDS`, see this module.
        pictures: of each way, those on the page.
    """

    by_way: Mapping[Way, tuple[Drawn, Drawn]]
    images: tuple[NDArray[np.int64], NDArray[np.int64]]
    places: tuple[NDArray[np.int64], NDArray[np.int64]]
    pictures: Mapping[Way, list[Shown]]

    def scores(self, way: Way, side: int) -> NDArray[np.float64]:
        """The score of each row of images.csv of one kind, infinite where nothing was drawn of it."""
        found = self.by_way[way][side].scores
        return found[self.places[side]] if way == "sampling" else found


def write_drawings(folder: Path, drawings: Drawings) -> None:
    """Write drawings.npz."""
    arrays: dict[str, Any] = dict(_arrays(drawings))
    with replacing(folder / DRAWINGS) as unfinished, unfinished.open("wb") as stream:
        np.savez(stream, **arrays)  # before numpy 2.1 any option would be one more array


def _arrays(drawings: Drawings) -> Iterator[tuple[str, NDArray[Any]]]:
    for side, kind in enumerate(KINDS):
        yield f"{kind}_images", drawings.images[side]
        yield f"{kind}_places", drawings.places[side]
    for way, drawn in drawings.by_way.items():
        for kind, each in zip(KINDS, drawn, strict=True):
            yield f"{way}_{kind}_targets", each.targets
            yield f"{way}_{kind}_ratios", each.ratios
        yield f"{way}_totals", np.array([each.num_targets for each in drawn])
        if pictures := drawings.pictures[way]:
            yield f"{way}_shown", np.array([(each.image, each.multiplicity) for each in pictures])
            yield f"{way}_shown_scores", np.array([each.score for each in pictures])
            yield f"{way}_shown_trained", np.stack([each.trained for each in pictures])
            yield f"{way}_shown_drawn", np.stack([each.drawn for each in pictures])


def read_drawings(folder: Path, ways: tuple[Way, ...]) -> Drawings:
    """Read drawings.npz, from anyone.

    Args:
        folder: of an attack.
        ways: that it tried.

    Raises:
        UserError: it is not there, damaged, or does not fit together.
    """
    file = folder / DRAWINGS
    arrays = read_arrays(file, _MOST)
    try:
        _check(arrays, ways)
        return Drawings(
            by_way={way: _drawn(arrays, way) for way in ways},
            images=(arrays["train_images"], arrays["held_out_images"]),
            places=(arrays["train_places"], arrays["held_out_places"]),
            pictures={way: _pictures(arrays, way) for way in ways},
        )
    except (LookupError, ValueError) as error:
        raise UserError(f"{shown(file)} does not hold what an attack's does: {error}") from None


def _drawn(arrays: Mapping[str, NDArray[Any]], way: Way) -> tuple[Drawn, Drawn]:
    train, held_out = (
        Drawn(arrays[f"{way}_{kind}_targets"], arrays[f"{way}_{kind}_ratios"], int(total))
        for kind, total in zip(KINDS, arrays[f"{way}_totals"].tolist(), strict=True)
    )
    return train, held_out


def _pictures(arrays: Mapping[str, NDArray[Any]], way: Way) -> list[Shown]:
    if f"{way}_shown" not in arrays:
        return []
    names = ("", "_scores", "_trained", "_drawn")
    rows = zip(*(arrays[f"{way}_shown{name}"] for name in names), strict=True)
    return [Shown(int(image), int(times), float(score), first, second) for (image, times), score, first, second in rows]


# What may stand there ---------------------------------------------------------------------------------------


def _check(arrays: Mapping[str, NDArray[Any]], ways: tuple[Way, ...]) -> None:
    """Refuse arrays that do not fit together, before anything is counted."""
    known = {f"{kind}_{name}" for kind in KINDS for name in ("images", "places")}
    for way in ways:
        known |= {f"{way}_{kind}_{name}" for kind in KINDS for name in ("targets", "ratios")}
        known |= {f"{way}_{name}" for name in ("totals", "shown", "shown_scores", "shown_trained", "shown_drawn")}
    if further := {*arrays} - known:
        raise ValueError(f"there is no array {min(further)!r:.60}")
    for way in ways:
        _check_way(arrays, way)
    for side, kind in enumerate(KINDS):
        _check_integers(arrays, f"{kind}_images", len(arrays[f"{kind}_places"]), None)
        total = int(arrays["sampling_totals"][side])
        _check_integers(arrays, f"{kind}_places", len(arrays[f"{kind}_images"]), total)


def _check_way(arrays: Mapping[str, NDArray[Any]], way: Way) -> None:
    _check_integers(arrays, f"{way}_totals", 2, _MOST_IMAGES)
    for side, kind in enumerate(KINDS):
        ratios, total = arrays[f"{way}_{kind}_ratios"], int(arrays[f"{way}_totals"][side])
        if ratios.ndim != 1 or ratios.dtype.kind != "f" or not len(ratios) or not (ratios >= 0).all():
            raise ValueError(f"{way}_{kind}_ratios are not ratios of drawn images")
        _check_integers(arrays, f"{way}_{kind}_targets", len(ratios), total)
        if way != "sampling" and total != len(arrays[f"{kind}_images"]):
            raise ValueError(f"{way}_totals are not the numbers of images that were attacked")
    if (about := arrays.get(f"{way}_shown")) is not None:
        trained, drawn = (arrays[f"{way}_shown_{name}"] for name in ("trained", "drawn"))
        usable = about.shape == (len(trained), 2) and about.dtype.kind == "i" and trained.shape == drawn.shape
        usable = (
            usable and trained.ndim == 4 and trained.shape[1] in (1, 3) and trained.dtype == drawn.dtype == np.uint8
        )
        if not usable or arrays[f"{way}_shown_scores"].shape != (len(trained),):
            raise ValueError(f"{way}_shown are no pictures")


def _check_integers(arrays: Mapping[str, NDArray[Any]], name: str, count: int, below: int | None) -> None:
    array = arrays[name]
    if array.shape != (count,) or array.dtype != np.int64 or (array < 0).any():
        raise ValueError(f"{name} are not {count:,} whole numbers")
    if below is not None and (array >= below).any():
        raise ValueError(f"{name} are not all below {below:,}")
