"""A watch on copying for any training loop: `MemorizationWatch`.

    watch = MemorizationWatch(training_images, held_out_images, out="watch")
    for step in range(1, 10_001):
        ...                                          # a step of training
        watch(step, draw, losses)                    # measures when that is affordable
        if watch.should_stop:
            break
    print(watch.recommendation.sentence)

    def draw(seeds): ...         # an image for each seed, uint8 (N, C, H, W) or a list of PIL images
    def losses(batch): ...       # the loss of each of batch.images, (N,), as in training

At a point it draws images of the same seeds as ever, searches the training images nearest to them, and compares losses
of training images with losses of held-out images at the same noise; the numbers are those of `iet_agc.metrics.watch`,
as of our own runs. Among the points whose copied share is not above chance the best is that with the lowest held-out
loss, or, without losses, with the lowest Fréchet distance.

**When.** By default a point is taken as soon as all of watching takes at most a twentieth of the training's time: what
a point costs depends on the model, the sampler and the machine, and no number of steps is right for all. The seconds
are measured, so another run of the same training may be measured at other steps. Where the loop says how many `steps`
there will be, the same time is spent on points that lie closer together early on: small sets are learnt, and copied, in
the first tenth of many trainings. `every` sets the steps instead; the points of two runs are then the same. Training is
left alone by any of these: torch's generators stand where they stood.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from iet_agc.api.images import Images, Place, named
from iet_agc.auditing.sources import Part, load_part
from iet_agc.data.conversion import convert
from iet_agc.data.datasets.in_memory import load_in_memory
from iet_agc.data.grids import pair_grid, save_image
from iet_agc.data.image_set import ImageSet
from iet_agc.metrics.curve import Agreement, Losses, Point, Recommendation, figures, point_of, recommend
from iet_agc.metrics.watch import Watch, agreement, losses_by_band
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import check_ours, digest, shown, writing
from iet_agc.runtime.pace import Pace, next_of
from iet_agc.runtime.paths import WATCH
from iet_agc.runtime.progress import say
from iet_agc.runtime.seeds import generator, seeded
from iet_agc.training import watched
from iet_agc.training.watched import WatchedImages, WatchRecord

__all__ = ["Draw", "LossBatch", "LossesOf", "MemorizationWatch"]

#: Images for some seeds, or for seeds and prompts: what `load_in_memory` takes.
Draw: TypeAlias = Callable[..., Any]

#: Of larger images fewer are handed over at a time: at most so many, and so many pixels of all together.
_MOST_ROWS, _MOST_PIXELS = 64, 64 * 64 * 64

#: Images and losses that are timed, once, to know what a point will cost.
_TRIED = 8

#: So many points above chance, one after the other, end a run; one alone may be chance.
_ENOUGH = 2

#: Share of all steps before the first point, where their number is known: what is drawn before is noise.
_FIRST = 0.02

#: Pictures of the closest pairs.
_TILE = 96


@dataclass(frozen=True)
class LossBatch:
    """Images whose losses are asked for.

    Attributes:
        images: float32 (N, C, H, W) in [-1, 1], on the CPU.
        places: which of the training images, or of the held-out images, each is, int64 (N,): for their captions,
            classes or latents.
        held_out: whether they are held-out images.
    """

    images: Tensor
    places: Tensor
    held_out: bool


#: The loss of each image of a batch, (N,): a tensor, an array or a list of numbers.
LossesOf: TypeAlias = Callable[[LossBatch], Any]


class MemorizationWatch:
    """Tells when a model starts to copy its training images, and which checkpoint to keep; see this module.

    Args:
        reference: the training images, see `iet_agc.api.images`: a folder, an array file, uint8 tensors or arrays, a
            list of PIL images, a dataset, an `iet_agc` run.
        held_out: real images of the same kind that are not trained on. 99 or more set the cut below which an image is a
            copy; without them, or with fewer, the training images set it, each against the others. Without any, there
            are no losses to compare with.
        out: folder of watch.jsonl, recommendation.json, pictures of the closest pairs, and what `save` saves; `iet-agc
            curve OUT` and `iet-agc report OUT` make a page of it. A loop that goes on with the same folder goes on with
            its points. None: nothing is written.
        save: called with a path below `out` whenever a point is the best so far; it saves the checkpoint there, as a
            file or a folder. The one before is removed afterwards.
        steps: of the whole training. Points are then spread over it geometrically, as many as `most_time` of all of it
            allows, the last at its end.
        every: steps between two points; by default as often as `most_time` allows.
        images: how many are drawn at each point. 64 tell a share of about 6 % from chance, where 99 held-out images or
            more set the cut.
        losses: how many losses of either kind are compared; images are given several noises where they are fewer.
        prompts: of text-to-image; the image of seed s is drawn for prompts[s % len(prompts)].
        flips: mirrored copies count.
        shape: (C, H, W) that all images are brought to before they are compared, see `data.conversion.convert`; by
            default reference images and drawn images must agree.
        rows: so many images at most are drawn, or their losses asked for, at a time; by default 64 of up to 64 x 64
            pixels, and fewer of larger ones.
        most_time: share of the training's time that watching may take, where `every` is not given.
        quiet: say nothing on stderr.

    On several processes, let the first one alone have a watch.

    Attributes:
        points: all points, in the order of steps.
        improved: whether the last one that was taken is the best so far.
        should_stop: whether the last two points are above chance.

    Raises:
        UserError: images that cannot be used, or numbers that cannot be; `out` holds something else, or the watch of
            other images.
    """

    def __init__(
        self,
        reference: "Images",
        held_out: "Images | None" = None,
        *,
        out: Place | None = None,
        save: Callable[[Path], object] | None = None,
        steps: int | None = None,
        every: int | None = None,
        images: int = 64,
        losses: int = 128,
        prompts: Sequence[str] = (),
        flips: bool = False,
        shape: tuple[int, int, int] | None = None,
        rows: int | None = None,
        most_time: float = 0.05,
        quiet: bool = False,
    ) -> None:
        _check_numbers(steps=steps, every=every, images=images, losses=losses, rows=rows)
        if steps is not None and every is not None:
            raise UserError("steps has no effect beside every: give one of the two", "steps")
        if not most_time > 0:
            raise UserError(f"most_time is a share of the training's time above 0, not {most_time}", "most_time")
        if save is not None and out is None:
            raise UserError("a checkpoint is saved below out: give a folder as well", "out")
        self.points: list[Point] = []
        self.improved = False
        self._out, self._save, self._every, self._quiet = None if out is None else Path(out), save, every, quiet
        self._images, self._num_losses, self._prompts = images, losses, tuple(prompts)
        self._steps, self._pace, self._called = steps, Pace(most_time), None
        self._base: Tensor | None = None
        with self._pace.working():
            self._train = _load(reference, "train", shape)
            self._held_out = None if held_out is None else _load(held_out, "held-out", shape)
            self._compared = {False: _in_turn(self._train, losses)}
            if self._held_out is not None:
                self._compared[True] = _in_turn(self._held_out, losses)
            self._converted = shape is not None
            self._check_shapes()
            self._rows = rows or _rows(self._train.shape)
            held_out_images = None if self._held_out is None else self._held_out.images
            self._watch = Watch(self._train.images, held_out_images, flips)
        for reason in self._watch.reasons:
            self._say(f"warning: the watch may be wrong: {reason.sentence}")
        if self._out is not None:
            self._go_on(self._out, flips)

    _called: int | None  # the first step that this session was called at

    def _check_shapes(self) -> None:
        if self._held_out is not None and self._held_out.shape != self._train.shape:
            raise UserError(f"held-out images are {self._held_out.size}, {self._mend_sizes()}", "shape")

    def _mend_sizes(self) -> str:
        return f"reference images {self._train.size}: give shape=(C, H, W), to which all are brought"

    # Which folder ----------------------------------------------------------------------------------

    def _go_on(self, out: Path, flips: bool) -> None:
        """Take up a watch where an earlier session left it, or begin one."""
        check_ours(out, WATCH, (), "watch")
        known = [None if each is None else _about(each) for each in (self._train, self._held_out)]
        record = WatchRecord(
            reference=cast("WatchedImages", known[0]),
            held_out=known[1],
            images=self._images,
            losses=self._num_losses,
            rows=self._rows,
            flips=flips,
            prompts=digest(list(self._prompts)) if self._prompts else None,
        )
        before = watched.read_watch(out)
        if before is not None and (other := _differing(before, record)):
            raise UserError(
                f"{shown(out)} holds a watch with other {other}: choose another folder, or remove it", "out"
            )
        self._record = before or record
        if before is None:
            with writing(out):
                out.mkdir(parents=True, exist_ok=True)
            watched.write_watch(out, record)
        else:
            self._pace = Pace(
                self._pace.most, self._record.seconds_training, self._record.seconds_watching + self._pace.work
            )
        self.points = watched.read_points(out)

    # When ------------------------------------------------------------------------------------------

    def __call__(
        self,
        step: int,
        draw: Draw,
        losses: LossesOf | None = None,
        without_adapter: Draw | None = None,
        images_seen: int | None = None,
    ) -> Point | None:
        """Take a point if one is due: call this after every step, or every few steps; see `measure`."""
        self._pace.begin()
        self._called = step if self._called is None else self._called
        if self._every is None and self._pace.expected is None:
            self._try(draw, losses)
        due = self._is_due(step, self._called)
        return self.measure(step, draw, losses, without_adapter, images_seen) if due else None

    def _is_due(self, step: int, called: int) -> bool:
        if self._every is not None:
            return step % self._every == 0
        if self._steps is None or step > self._steps:
            return self._pace.is_affordable
        if step == called:  # nothing is known of how long a step takes
            return False
        left = self._pace.left_of(self._steps - step, step - called)
        before = max((point.step for point in self.points), default=max(1, round(_FIRST * self._steps)))
        return left > 0 and step >= next_of(before, self._steps, left)

    def _try(self, draw: Draw, losses: LossesOf | None) -> None:
        """Draw a few images to learn what a point costs."""
        before, some = self._pace.work, min(_TRIED, self._images, self._rows)
        with self._pace.working():
            self._drawn(draw, range(some))
        seconds = (self._pace.work - before) * self._images / some
        if losses is not None:
            before, few = self._pace.work, min(_TRIED, self._num_losses, self._rows)
            with self._pace.working():
                self._losses_of(losses, torch.arange(few) % len(self._train), held_out=False)
            seconds += 2 * (self._pace.work - before) * self._num_losses / few
        self._pace.expected = seconds
        most = f"{100 * self._pace.most:g} %"
        often = f"is one about every {seconds / self._pace.most:.0f} s of training, which is {most} of it"
        if self._steps is not None:
            often = f"are as many as take {most} of the whole training, closer together early on"
        self._say(f"watch: a point takes about {seconds:.2g} s, so there {often}")

    # What ------------------------------------------------------------------------------------------

    def measure(
        self,
        step: int,
        draw: Draw,
        losses: LossesOf | None = None,
        without_adapter: Draw | None = None,
        images_seen: int | None = None,
    ) -> Point:
        """Take a point now. One that was taken at the same step before is replaced.

        Args:
            step: of the training, from 0.
            draw: called with some seeds, and, if the watch has prompts, the prompt of each; returns an image for each,
                as uint8 (N, C, H, W), (N, H, W, C) or a list of PIL images. The same seeds and weights must give the
                same images: draw the noise of each from a generator with its seed.
            losses: called with a `LossBatch`; returns the loss of each image, (N,), as in training, but for dropout. It
                draws noise and timesteps from torch's generators, which are seeded so that training images and held-out
                images are given the same.
            without_adapter: as `draw`, at strength 0 of a LoRA: how far its images are those of the model that it
                adapts. They are drawn once for all points.
            images_seen: in training so far, repetitions counted, if it is known.

        Raises:
            UserError: one of these returns something else; losses without held-out images.
        """
        self._pace.begin()
        if step < 0:
            raise UserError(f"step is 0 or more, not {step}", "step")
        if losses is not None and self._held_out is None:
            raise UserError("losses are compared with those of held-out images: give held_out as well", "held_out")
        before = self._pace.work
        with self._pace.working():
            images = self._drawn(draw, range(self._images))
            point = point_of(
                self._watch.measure(images),
                step=step,
                images_seen=images_seen,
                seen=0,
                skipped=0,
                skip_rate=0.0,
                losses=None if losses is None else self._losses(losses),
                agreement=None,
                adapter=None if without_adapter is None else self._adapter(images, without_adapter),
            )
            first = point.above_chance and not any(each.above_chance for each in self.points)
            self._keep(point, images)
        self._pace.expected = self._pace.work - before
        if self._out is not None:
            self._leave(self._out)
        self._tell(point, first)
        return point

    def _drawn(self, draw: Draw, seeds: Sequence[int]) -> Tensor:
        """uint8 (N, C, H, W) of the shape that is compared."""
        parts = [self._some(draw, seeds[start : start + self._rows]) for start in range(0, len(seeds), self._rows)]
        return torch.cat(parts)

    def _some(self, draw: Draw, seeds: Sequence[int]) -> Tensor:
        given: list[object] = [[*seeds]]
        if self._prompts:
            given.append([self._prompts[seed % len(self._prompts)] for seed in seeds])
        with torch.no_grad(), seeded("watch", "draw", seeds[0], device=_device()):
            found = load_in_memory(draw(*given), "draw")
        if len(found) != len(seeds):
            raise UserError(f"draw returned {len(found)} images for {len(seeds)} seeds: return one for each", "draw")
        if found.shape != self._train.shape and not self._converted:
            raise UserError(f"images that are drawn are {found.size}, {self._mend_sizes()}", "shape")
        return convert(found, self._train.shape).images

    def _losses(self, losses: LossesOf) -> Losses | None:
        own, held = (self._losses_of(losses, places, held_out) for held_out, places in self._compared.items())
        if not (own.isfinite().all() and held.isfinite().all()):
            self._say("watch: losses are not finite, so they are not compared")
            return None
        return losses_by_band(own, held)

    def _losses_of(self, losses: LossesOf, places: Tensor, held_out: bool) -> Tensor:
        """Loss of each, float32 (N,)."""
        images = (self._held_out if held_out and self._held_out is not None else self._train).images
        parts: list[Tensor] = []
        for number, some in enumerate(places.split(self._rows)):
            batch = LossBatch(images[some].float() / 127.5 - 1, some, held_out)
            with torch.no_grad(), seeded("watch", "losses", number, device=_device()):
                parts.append(_numbers(losses(batch), len(some)))
        return torch.cat(parts)

    def _adapter(self, images: Tensor, without: Draw) -> Agreement:
        if self._base is None:
            self._base = self._drawn(without, range(self._images))
        return agreement(torch.stack([self._base, images]))

    # What is left of it ----------------------------------------------------------------------------

    @property
    def recommendation(self) -> Recommendation | None:
        """Which point to keep, and how sure that is; None where there are none."""
        return recommend(self.points, by_quality=True) if self.points else None

    @property
    def best(self) -> Point | None:
        """The point to keep; None where there are none, or all are above chance."""
        found = self.recommendation
        return next((point for point in self.points if found is not None and point.step == found.step), None)

    @property
    def best_path(self) -> Path | None:
        """What `save` saved of the best point; None where that is nothing."""
        if self._out is None or self.best is None:
            return None
        place = _saved(self._out, self.best.step)
        return place if place.exists() else None

    @property
    def should_stop(self) -> bool:
        """Whether the last two points are above chance."""
        last = self.points[-_ENOUGH:]
        return len(last) == _ENOUGH and all(point.above_chance for point in last)

    @property
    def cost(self) -> float:
        """Seconds of watching over seconds of training, all sessions together."""
        return self._pace.share

    @property
    def figures(self) -> dict[str, float]:
        """The numbers of the last point, for whatever logs curves; nothing without points."""
        return figures(self.points[-1]) if self.points else {}

    def _keep(self, point: Point, images: Tensor) -> None:
        """Put a point in its place, with its picture and its checkpoint."""
        points = [each for each in self.points if each.step != point.step] + [point]
        points.sort(key=lambda each: each.step)
        self.improved = recommend(points, by_quality=True).step == point.step
        if self._out is not None:
            with writing(self._out):
                self._picture(self._out, point, images)
                if self.improved and self._save is not None:
                    self._save_best(self._out, self._save, point.step)
            points = watched.put_point(self._out, point)
        self.points = points

    def _picture(self, out: Path, point: Point, images: Tensor) -> None:
        """The closest pairs: drawn images above, training images below."""
        drawn, nearest = [pair.sample for pair in point.pairs], [pair.image for pair in point.pairs]
        (out / "pairs").mkdir(exist_ok=True)
        grid = pair_grid(images[drawn], self._train.images[nearest], _TILE)
        save_image(grid, out / "pairs" / f"step-{point.step:09d}.png")

    def _save_best(self, out: Path, save: Callable[[Path], object], step: int) -> None:
        """Save a checkpoint, then remove the others."""
        place = _saved(out, step)
        place.parent.mkdir(exist_ok=True)
        _remove(place)
        save(place)
        for other in place.parent.iterdir():
            if other != place:
                _remove(other)

    def _leave(self, out: Path) -> None:
        if (found := self.recommendation) is not None:
            watched.write_recommendation(out, found)
        seconds = {"seconds_training": self._pace.around, "seconds_watching": self._pace.work}
        self._record = self._record.model_copy(update=seconds)
        watched.write_watch(out, self._record)

    # What is said ----------------------------------------------------------------------------------

    def _say(self, line: str) -> None:
        if not self._quiet:
            say(line)

    def _tell(self, point: Point, first: bool) -> None:
        copied, found = point.copied, [f"{point.copied.count} of {point.copied.total} images copied"]
        found += [f"held-out loss {point.losses.held_out:.4g}"] if point.losses else []
        found += ["the best so far"] if self.improved else []
        cost = f"watching took {100 * self.cost:.1f} % of the time so far"
        self._say(f"watch: step {point.step:,}: {', '.join(found)}; {cost}")
        if first:
            share = f"{100 * copied.share:.2g} % of the images are copies, at least {100 * point.least:.2g} %"
            best = f"step {self.best.step:,} is the best so far" if self.best else "no point is below that"
            chance = f"where {100 * copied.false_alarm:.2g} % are chance"
            self._say(f"watch: copying begins at step {point.step:,}: {share}, {chance}; {best}")


def _check_numbers(**given: int | None) -> None:
    for name, value in given.items():
        if value is not None and (type(value) is not int or value < 1):
            raise UserError(f"{name} is a whole number of 1 or more, not {value!r}", name)


def _load(images: "Images", part: Part, shape: tuple[int, int, int] | None) -> ImageSet:
    argument = "reference" if part == "train" else "held_out"
    name, given = named(images, argument)
    found = load_part(os.fspath(name), part, shape, given=given)[0]
    if not len(found):
        raise UserError(f"{found.name} holds no images: give some, or leave them out", argument)
    return found


def _in_turn(images: ImageSet, count: int) -> Tensor:
    """Which images have their losses compared, int64 (count,): all in turn, in an order that is drawn once."""
    order = torch.randperm(len(images), generator=generator("watch", "compared"))
    return order.repeat(-(-count // max(1, len(images))))[:count]


def _about(images: ImageSet) -> WatchedImages:
    return WatchedImages(name=images.name, num=len(images), sha256=images.fingerprint)


def _differing(before: WatchRecord, now: WatchRecord) -> str | None:
    """What is another in a watch that was begun, in words; the names of image sets may change."""
    words = {"reference": "reference images", "held_out": "held-out images"}
    for name, value in now.asked.items():
        old = before.asked[name]
        if isinstance(value, dict) and isinstance(old, dict):
            value, old = value["sha256"], old["sha256"]
        if value != old:
            return words.get(name, name)
    return None


def _rows(shape: tuple[int, int, int]) -> int:
    return max(1, min(_MOST_ROWS, _MOST_PIXELS // (shape[1] * shape[2])))


def _device() -> torch.device:
    """The device whose generators a model may draw from."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_initialized() else torch.device("cpu")


def _numbers(given: object, count: int) -> Tensor:
    """float32 (N,) on the CPU."""
    try:
        found = torch.as_tensor(cast("Any", given)).detach().float().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"losses returned {type(given).__name__}: return a number for each image", "losses") from None
    if found.shape != (count,):
        shape = tuple(found.shape)
        raise UserError(f"losses returned {shape} for {count} images: return the loss of each, (N,), no mean", "losses")
    return found


def _saved(out: Path, step: int) -> Path:
    return out / "best" / f"step-{step:09d}"


def _remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
