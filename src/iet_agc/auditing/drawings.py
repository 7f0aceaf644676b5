"""drawings.npz of an attack: what its numbers are counted from, and what its page shows. No torch.

totals                         how many unique training and held-out images there are, two numbers
train_images, held_out_images  of each row of images.csv, in the order of what was redrawn, the number that it has there

Of each way, as WAY_NAME:

train_places, held_out_places      which of all unique images of its kind each image is that was looked for, ascending
train_targets, held_out_targets    which of these each drawn image is of, in the order of drawing
train_ratios, held_out_ratios      see `iet_agc.metrics.attacks.Drawn`, float64
before                             evaluations of the model before the first drawing, where there were some
shown, shown_scores                of the pictures: which training image each is, and how often it stands in the set;
                                   its score
shown_trained, shown_drawn         the pictures, uint8 (n, C, H, W)

What counts or names images is int64.
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
from iet_agc.runtime.errors import UserError, in_words
from iet_agc.runtime.files import replacing, shown

__all__ = ["DRAWINGS", "KINDS", "Drawings", "WayDrawings", "read_drawings", "write_drawings"]

DRAWINGS = "drawings.npz"

#: The kinds of images that are attacked.
KINDS = ("train", "held_out")

#: Bytes of all arrays, a thousand times those of the default budget; and images of one kind.
_MOST, _MOST_IMAGES = 2**29, 2**26


@dataclass(frozen=True)
class WayDrawings:
    """What one way drew.

    Attributes:
        places: of training and held-out images, which of all unique ones each is that was looked for.
        drawn: what was drawn of these.
        pictures: those on the page.
        before: evaluations of the model before the first drawing.
    """

    places: tuple[NDArray[np.int64], NDArray[np.int64]]
    drawn: tuple[Drawn, Drawn]
    pictures: list[Shown]
    before: int = 0


@dataclass(frozen=True)
class Drawings:
    """All that an attack keeps of what it drew.

    Attributes:
        totals: how many unique images of each kind there are.
        images: of each kind, see this module.
        ways: by name.
    """

    totals: tuple[int, int]
    images: tuple[NDArray[np.int64], NDArray[np.int64]]
    ways: Mapping[Way, WayDrawings]

    def scores(self, way: Way, side: int) -> NDArray[np.float64]:
        """The score of each row of images.csv of one kind: infinite where nothing was drawn of it, else NaN."""
        found = np.full(self.totals[side], np.nan)
        found[self.ways[way].places[side]] = self.ways[way].drawn[side].scores
        return found[self.ways["redrawing"].places[side]]


def write_drawings(folder: Path, drawings: Drawings) -> None:
    """Write drawings.npz."""
    arrays: dict[str, Any] = dict(_arrays(drawings))
    with replacing(folder / DRAWINGS) as unfinished, unfinished.open("wb") as stream:
        np.savez(stream, **arrays)  # before numpy 2.1 any option would be one more array


def _arrays(drawings: Drawings) -> Iterator[tuple[str, NDArray[Any]]]:
    yield "totals", np.array(drawings.totals)
    for kind, images in zip(KINDS, drawings.images, strict=True):
        yield f"{kind}_images", images
    for way, each in drawings.ways.items():
        for kind, places, drawn in zip(KINDS, each.places, each.drawn, strict=True):
            yield f"{way}_{kind}_places", places
            yield f"{way}_{kind}_targets", drawn.targets
            yield f"{way}_{kind}_ratios", drawn.ratios
        if each.before:
            yield f"{way}_before", np.array([each.before])
        if pictures := each.pictures:
            yield f"{way}_shown", np.array([(one.image, one.multiplicity) for one in pictures])
            yield f"{way}_shown_scores", np.array([one.score for one in pictures])
            yield f"{way}_shown_trained", np.stack([one.trained for one in pictures])
            yield f"{way}_shown_drawn", np.stack([one.drawn for one in pictures])


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
    except (LookupError, ValueError) as error:
        raise UserError(f"{shown(file)} does not hold what an attack's does: {in_words(error)}") from None
    train, held_out = arrays["totals"].tolist()
    images = arrays["train_images"], arrays["held_out_images"]
    return Drawings((train, held_out), images, {way: _way(arrays, way) for way in ways})


def _way(arrays: Mapping[str, NDArray[Any]], way: Way) -> WayDrawings:
    own, real = (
        Drawn(arrays[f"{way}_{kind}_targets"], arrays[f"{way}_{kind}_ratios"], len(arrays[f"{way}_{kind}_places"]))
        for kind in KINDS
    )
    places = arrays[f"{way}_train_places"], arrays[f"{way}_held_out_places"]
    before = int(arrays[f"{way}_before"][0]) if f"{way}_before" in arrays else 0
    return WayDrawings(places, (own, real), _pictures(arrays, way), before)


def _pictures(arrays: Mapping[str, NDArray[Any]], way: Way) -> list[Shown]:
    if f"{way}_shown" not in arrays:
        return []
    names = ("", "_scores", "_trained", "_drawn")
    rows = zip(*(arrays[f"{way}_shown{name}"] for name in names), strict=True)
    return [Shown(int(image), int(times), float(score), first, second) for (image, times), score, first, second in rows]


# What may stand there ---------------------------------------------------------------------------------------


def _check(arrays: Mapping[str, NDArray[Any]], ways: tuple[Way, ...]) -> None:
    """Refuse arrays that do not fit together, before anything is counted."""
    known = {"totals", *(f"{kind}_images" for kind in KINDS)}
    for way in ways:
        known |= {f"{way}_{kind}_{name}" for kind in KINDS for name in ("places", "targets", "ratios")}
        known |= {f"{way}_{name}" for name in ("before", "shown", "shown_scores", "shown_trained", "shown_drawn")}
    if further := {*arrays} - known:
        raise ValueError(f"there is no array {min(further)!r:.60}")
    _check_integers(arrays, "totals", 2, _MOST_IMAGES)
    for way in ways:
        _check_way(arrays, way)
    for kind in KINDS:
        _check_integers(arrays, f"{kind}_images", len(arrays[f"redrawing_{kind}_places"]), None)


def _check_way(arrays: Mapping[str, NDArray[Any]], way: Way) -> None:
    for kind, total in zip(KINDS, arrays["totals"].tolist(), strict=True):
        places, ratios = arrays[f"{way}_{kind}_places"], arrays[f"{way}_{kind}_ratios"]
        _check_integers(arrays, f"{way}_{kind}_places", places.size, total)
        if (np.diff(places) <= 0).any():
            raise ValueError(f"{way}_{kind}_places are not ascending")
        if ratios.ndim != 1 or ratios.dtype.kind != "f" or not len(ratios) or not (ratios >= 0).all():
            raise ValueError(f"{way}_{kind}_ratios are not ratios of drawn images")
        _check_integers(arrays, f"{way}_{kind}_targets", len(ratios), len(places))
    if f"{way}_before" in arrays:
        _check_integers(arrays, f"{way}_before", 1, None)
    if (about := arrays.get(f"{way}_shown")) is not None:
        trained, drawn = (arrays[f"{way}_shown_{name}"] for name in ("trained", "drawn"))
        usable = (
            about.shape == (len(trained), 2) and about.dtype.kind == "i" and trained.dtype == drawn.dtype == np.uint8
        )
        usable = usable and trained.shape == drawn.shape and trained.ndim == 4 and trained.shape[1] in (1, 3)
        if not usable or arrays[f"{way}_shown_scores"].shape != (len(trained),):
            raise ValueError(f"{way}_shown are no pictures")


def _check_integers(arrays: Mapping[str, NDArray[Any]], name: str, count: int, below: int | None) -> None:
    array = arrays[name]
    if array.shape != (count,) or array.dtype != np.int64 or (array < 0).any():
        raise ValueError(f"{name} are not {count:,} whole numbers")
    if below is not None and (array >= below).any():
        raise ValueError(f"{name} are not all below {below:,}")
