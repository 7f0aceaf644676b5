"""Ways to look for copies in any model: plain sampling, and targets noised and redrawn; and what every way needs.

An adversary who has candidates redraws each of them. The draws are the same for training and held-out images, and all
targets are given the same noise, so a difference is one of images.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iet_agc.auditing.pixel_models import Apart, some_places
from iet_agc.data.image_set import ImageSet
from iet_agc.diffusion.redrawing import REDRAW_STEPS
from iet_agc.metrics.attacks import LEAST_HELD_OUT, Drawn, Way
from iet_agc.metrics.calibration import NEIGHBORS
from iet_agc.metrics.neighbors import References
from iet_agc.metrics.target_ratios import nearest_of, target_ratios
from iet_agc.runtime.parts import compute_parts, read_parts

__all__ = [
    "Attacked",
    "Found",
    "Kind",
    "Model",
    "OnImages",
    "Plan",
    "Rows",
    "Targets",
    "all_targets",
    "as_drawn",
    "in_parts",
    "nearest_rows",
    "redrawing",
    "sampling",
    "some_targets",
    "timed",
]

#: A part on disk holds so many batches.
_PART = 8

#: Of each target at most so many drawings: further ones find little.
_MOST_DRAWS = 8

#: Working memory of a search, bytes.
_MEMORY = 2 * 1024**3

#: Of which images something is.
Kind = Literal["train", "held_out"]

#: Called with finished fractions of images, for progress.
OnImages = Callable[[float], object]

#: Called with evaluations of the model, for progress; see `weighed`.
OnEvaluations = Callable[[float], object]

#: Numbers of each drawn image, in their order.
Rows = Mapping[str, Tensor]


class Model(Protocol):
    """What ways need of a model."""

    @property
    def device(self) -> torch.device:
        """Where it is."""
        ...

    @property
    def rows(self) -> int:
        """How many images it sees at once."""
        ...

    @property
    def per_sample(self) -> int:
        """Evaluations for one plain sample."""
        ...

    @property
    def scheduler(self) -> object:
        """Its noise schedule."""
        ...

    @property
    def files(self) -> Mapping[str, Path]:
        """The files that it is made of, by name."""
        ...

    def fitted(self, apart: Apart) -> Self:
        """Itself, to be tried on these images.

        Raises:
            UserError: they do not fit it.
        """
        ...

    def sampled(self, seeds: Sequence[int], on_images: OnImages = lambda count: None) -> Tensor:
        """Plain samples, uint8 (N, C, H, W)."""
        ...

    def redrawn(self, images: ImageSet, draws: Sequence[int], on_images: OnImages = lambda count: None) -> Tensor:
        """Images drawn again, each from the noise of a draw, uint8 (N, C, H, W)."""
        ...


@dataclass(frozen=True)
class Targets:
    """Images of one kind that are looked for.

    Attributes:
        kind: of them.
        images: these.
        places: which of all unique images of the kind each is, int64 (N,), ascending.
    """

    kind: Kind
    images: ImageSet
    places: Tensor

    @property
    def own(self) -> Tensor:
        """Which unique training image each is, int64 (N,); -1 of held-out images."""
        return self.places if self.kind == "train" else torch.full_like(self.places, -1)


@dataclass(frozen=True)
class Attacked:
    """A model, and the images that are looked for in it.

    Attributes:
        model: it.
        apart: all images; the held-out ones are no near copies of training images.
        budget: plain samples.
        flips: whether mirrored copies count.
        audit_cut: the distance ratio below which an audit calls an image a copy.
    """

    model: Model
    apart: Apart
    budget: int
    flips: bool
    audit_cut: float

    @property
    def evaluations(self) -> int:
        """Of the model, that each way may use for training images."""
        return self.budget * self.model.per_sample

    @property
    def draws(self) -> int:
        """How often each target is redrawn: what the budget allows, once at least."""
        return min(_MOST_DRAWS, max(1, self.evaluations // (REDRAW_STEPS * len(self.apart.train))))

    @cached_property
    def redrawn(self) -> tuple[Targets, Targets]:
        """The images that are redrawn, of both kinds."""
        return some_targets(self.apart, self.evaluations // (REDRAW_STEPS * self.draws))

    @cached_property
    def references(self) -> References:
        """The unique training images, laid out for searches."""
        images = self.apart.train.images
        return References(images, min(NEIGHBORS, len(images)), _MEMORY, torch.device("cpu"))

    @cached_property
    def others(self) -> References:
        """The held-out images, laid out to find the nearest."""
        return References(self.apart.held_out.images, 1, _MEMORY, torch.device("cpu"))


@dataclass(frozen=True)
class Found:
    """What a way drew.

    Attributes:
        way: it.
        targets: the images that it looked for, of both kinds.
        drawn: what was drawn of each kind.
        evaluations: of the model, for training images.
        seconds: of drawing for training images.
        again: drawings for training images by their numbers, drawn again, uint8 (N, C, H, W).
        before: evaluations before the first drawing.
    """

    way: Way
    targets: tuple[Targets, Targets]
    drawn: tuple[Drawn, Drawn]
    evaluations: int
    seconds: float
    again: Callable[[Sequence[int]], Tensor]
    before: int = 0

    def scores(self, side: int, count: int) -> NDArray[np.float64]:
        """Of so many images of a kind, infinite where none was drawn of it, and NaN where it was not looked for."""
        found = np.full(count, np.nan)
        found[self.targets[side].places.numpy()] = self.drawn[side].scores
        return found


@dataclass(frozen=True)
class Plan:
    """A way that is still to go.

    Attributes:
        total: evaluations of the model, those of the control included, for progress.
        find: takes where parts are, and whom to tell of evaluations.
    """

    total: int
    find: Callable[[Path, OnEvaluations], Found]


def weighed(on_evaluations: OnEvaluations, each: int) -> OnImages:
    """Whom to tell of images, each of which takes so many evaluations."""
    return lambda images: on_evaluations(each * images)


def all_targets(apart: Apart) -> tuple[Targets, Targets]:
    """All unique images of both kinds."""
    own, real = torch.arange(len(apart.train)), torch.arange(len(apart.held_out))
    return Targets("train", apart.train, own), Targets("held_out", apart.held_out, real)


def some_targets(apart: Apart, most: int) -> tuple[Targets, Targets]:
    """At most so many of either kind, and one at least, drawn at random; of held-out images as many as needed.

    The same images are drawn for another number, first those of a lower one.
    """
    own = some_places(len(apart.train), max(1, most), "attack", "train")
    real = some_places(len(apart.held_out), max(most, LEAST_HELD_OUT), "attack", "held-out")
    return Targets("train", apart.train.take(own), own), Targets("held_out", apart.held_out.take(real), real)


def timed(model: Model, draw: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """What is drawn, one row for each image, and the seconds of each, float64 (N,)."""
    clock = time.perf_counter if model.device.type == "cuda" else time.process_time  # that is of all threads
    began = clock()
    drawn = draw()
    return drawn, torch.full((len(drawn),), (clock() - began) / len(drawn), dtype=torch.float64)


def nearest_rows(attacked: Attacked, drawn: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Of each drawn image the nearest one of a kind, int64 (N,), and its ratio, float64 (N,)."""
    if kind == "train":
        images, near = attacked.apart.train.images, nearest_of(drawn, attacked.references, attacked.flips)
        return near, target_ratios(drawn, images[near], near, attacked.references, attacked.flips)
    images, near = attacked.apart.held_out.images, nearest_of(drawn, attacked.others, attacked.flips)
    none = torch.full_like(near, -1)
    return near, target_ratios(drawn, images[near], none, attacked.references, attacked.flips)


def in_parts(
    parts: Path, name: str, total: int, rows: int, make: Callable[[slice], dict[str, Tensor]], on_images: OnImages
) -> Rows:
    """Make what is not there yet, over all processes, and read all of it; `rows` are in a batch of it."""
    compute_parts(parts, name, total, _PART * rows, make, on_images)
    return read_parts(parts, name, total, _PART * rows)


def as_drawn(targets: Tensor, ratios: Tensor, count: int) -> Drawn:
    """Drawings of so many images; see `Drawn`."""
    return Drawn(targets.numpy(), ratios.numpy(), count)


# Plain sampling ---------------------------------------------------------------------------------------------


def sampling(attacked: Attacked) -> Plan:
    """Plain samples, each of the nearest image of either kind."""
    each = attacked.model.per_sample
    return Plan(each * attacked.budget, lambda parts, tell: _sampling(attacked, parts, weighed(tell, each)))


def _sampling(attacked: Attacked, parts: Path, on_images: OnImages) -> Found:
    model = attacked.model

    def make(items: slice) -> dict[str, Tensor]:
        drawn, seconds = timed(model, lambda: model.sampled(range(items.start, items.stop), on_images))
        near, ratios = nearest_rows(attacked, drawn, "train")
        other, other_ratios = nearest_rows(attacked, drawn, "held_out")
        found = {"train": near, "train_ratio": ratios, "held_out": other, "held_out_ratio": other_ratios}
        return found | {"seconds": seconds}

    rows, targets = (
        in_parts(parts, "sampled", attacked.budget, model.rows, make, on_images),
        all_targets(attacked.apart),
    )
    own, real = (as_drawn(rows[each.kind], rows[f"{each.kind}_ratio"], len(each.places)) for each in targets)
    seconds = float(rows["seconds"].sum())
    return Found("sampling", targets, (own, real), attacked.evaluations, seconds, model.sampled)


# Redrawing --------------------------------------------------------------------------------------------------


def redrawing(attacked: Attacked) -> Plan:
    """Targets noised and denoised, see `iet_agc.diffusion.redrawing`."""
    total = REDRAW_STEPS * attacked.draws * sum(len(each.places) for each in attacked.redrawn)
    return Plan(total, lambda parts, tell: _redrawing(attacked, parts, weighed(tell, REDRAW_STEPS)))


def _redrawing(attacked: Attacked, parts: Path, on_images: OnImages) -> Found:
    targets = attacked.redrawn
    own, real = (_redrawn(attacked, each, parts, on_images) for each in targets)
    count = len(targets[0].places)

    def again(drawings: Sequence[int]) -> Tensor:
        images = targets[0].images.take(torch.tensor(drawings) % count)
        return attacked.model.redrawn(images, [drawing // count for drawing in drawings])

    drawn = tuple(_of_each(rows, each) for rows, each in zip((own, real), targets, strict=True))
    evaluations, seconds = REDRAW_STEPS * len(own["ratio"]), float(own["seconds"].sum())
    return Found("redrawing", targets, (drawn[0], drawn[1]), evaluations, seconds, again)


def _redrawn(attacked: Attacked, targets: Targets, parts: Path, on_images: OnImages) -> Rows:
    """Every target at the first draw, then at the second, and so on: its ratio, and the seconds."""
    model, count, own = attacked.model, len(targets.places), targets.own

    def make(items: slice) -> dict[str, Tensor]:
        places = torch.arange(items.start, items.stop)
        which, draws = places % count, (places // count).tolist()
        images = targets.images.take(which)
        drawn, seconds = timed(model, lambda: model.redrawn(images, draws, on_images))
        ratios = target_ratios(drawn, images.images, own[which], attacked.references, attacked.flips)
        return {"ratio": ratios, "seconds": seconds}

    name = "redrawn-" + targets.kind.replace("_", "-")
    return in_parts(parts, name, attacked.draws * count, model.rows, make, on_images)


def _of_each(rows: Rows, targets: Targets) -> Drawn:
    """Of redrawn targets, in the order of `_redrawn`."""
    ratios, count = rows["ratio"], len(targets.places)
    return as_drawn(torch.arange(len(ratios)) % count, ratios, count)
