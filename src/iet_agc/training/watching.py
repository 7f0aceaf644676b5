"""A run watches itself: points of its curve while it trains, by `iet_agc.metrics.watch`.

One member is watched every `run.watch_every` steps; of several, their average, at the ends of rounds, and how far they
agree just before. Seeds, noise and the images whose losses are compared are the same at each point. Nothing that
training reads is changed, so weights are those of a run that is not watched. What a point says follows from the weights
alone and the point before, so that a run which was killed has the same points.
"""

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from iet_agc.config.fingerprint import fingerprint
from iet_agc.config.settings import Settings
from iet_agc.data.grids import pair_grid
from iet_agc.data.image_set import ImageSet
from iet_agc.diffusion.process import NUM_TIMESTEPS
from iet_agc.metrics.curve import Agreement, Losses, Point, Recommendation, figures, point_of, recommend
from iet_agc.runtime import distributed
from iet_agc.runtime.errors import CheckFailed
from iet_agc.runtime.precision import autocast, resolved
from iet_agc.runtime.progress import say
from iet_agc.runtime.seeds import generator, kept_generators
from iet_agc.training import watched
from iet_agc.training.batches import Batch, Examples
from iet_agc.training.member import Member
from iet_agc.training.tasks import Task

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from iet_agc.metrics.watch import Watch

__all__ = ["Watching"]

#: Losses are computed for so many images at a time.
_ROWS = 64

#: Pairs of a sample and its nearest training image in the grid of TensorBoard.
_PAIRS = 8


@dataclass(kw_only=True, eq=False)
class Watching:
    """One process's part of the watch of a run; without `run.watch_every`, it does nothing.

    Attributes:
        settings: of the run.
        task: what is trained.
        images, held_out: the training set, and what the settings hold out, if they do.
        out: the run's folder.
        device: where models draw.
        points: those that were taken, on the first process.
        stopped: whether the run ends here, as it copies; the same on all processes.
    """

    settings: Settings
    task: Task
    images: ImageSet
    held_out: ImageSet | None
    out: Path
    device: torch.device
    points: list[Point] = field(default_factory=list)
    stopped: bool = False
    _agreement: Agreement | None = None
    _step: int = 0

    # When ----------------------------------------------------------------------------------------

    def begin(self, step: int, stopped: bool) -> None:
        """Go on from the points that were taken up to a step, at which the members stand.

        Args:
            step: of a member.
            stopped: whether the run has ended early before; it stays so.
        """
        run = self.settings.run
        if not run.watch_every:
            return
        self._step = step
        if distributed.rank() == 0:
            self.points = watched.keep_points(self.out, step)
        copies = any(point.above_chance for point in self.points)
        self._agree_on(run.stop_when_copying and (stopped or copies))

    def is_due(self, step: int) -> bool:
        """Whether the only member is watched after this step."""
        method, every = self.settings.method, self.settings.run.watch_every
        end = method.rounds * self.settings.train.steps
        return bool(every) and method.members == 1 and (step % every == 0 or step == end)

    def is_due_after(self, rounds: int) -> bool:
        """Whether the average of several members is watched after so many rounds."""
        method, every = self.settings.method, self.settings.run.watch_every
        if not every or method.members == 1:
            return False
        return rounds % math.ceil(every / self.settings.train.steps) == 0 or rounds == method.rounds

    # What ----------------------------------------------------------------------------------------

    def compare(self, members: Sequence[Member], replicas: distributed.Replicas) -> None:
        """Have members draw from the same seeds, before they are averaged; every process calls this with its own."""
        run, count = self.settings.run, self.settings.method.members
        seeds = range(max(2, math.ceil(run.watch_images / count)))
        mine = {each.index: self._drawn(self._model(each), seeds) for each in members if replicas.index == 0}
        drawn = {index: images for some in distributed.gather(mine) for index, images in some.items()}
        if distributed.rank() == 0:
            from iet_agc.metrics.watch import agreement

            images = [drawn[index] for index in range(count)]
            known = all(each is not None for each in images)
            self._agreement = agreement(torch.stack([each for each in images if each is not None])) if known else None

    def take(self, members: Sequence[Member], replicas: distributed.Replicas) -> None:
        """Take a point of the first member, which is the only one or the average; every process calls this.

        A model whose images are not finite gives no point.
        """
        counted = members if replicas.index == 0 else ()
        counts = [sum(int(getattr(each, name).sum()) for each in counted) for name in ("seen", "skipped")]
        seen, skipped = (sum(column) for column in zip(*distributed.gather(counts), strict=True))
        above = False
        if distributed.rank() == 0 and (point := self._point(members[0], seen, skipped)):
            watched.add_point(self.out, point)
            self.points.append(point)
            self._keep(members[0], point)
            above = point.above_chance
        self._agree_on(above and self.settings.run.stop_when_copying)

    def _agree_on(self, stopped: bool) -> None:
        """Stop on all processes where the first one does."""
        self.stopped = distributed.gather(stopped)[0]

    def _point(self, member: Member, seen: int, skipped: int) -> Point | None:
        run, model = self.settings.run, self._model(member)
        images = self._drawn(model, range(run.watch_images))
        if images is None:
            return None
        found = self._watch.measure(images)
        before = self.points[-1] if self.points else None
        seen_before, skipped_before = (before.seen, before.skipped) if before else (0, 0)
        point = point_of(
            found,
            step=member.step,
            images_seen=member.step * self.settings.train.batch_size * self.settings.method.members,
            seen=seen,
            skipped=skipped,
            skip_rate=(skipped - skipped_before) / max(1, seen - seen_before),
            losses=self._losses(model),
            agreement=self._agreement,
        )
        self._agreement = None
        self._show(point, images)
        return point

    def _model(self, member: Member) -> nn.Module:
        """A copy of the weights that samples are drawn with, on the device."""
        own = member.ema.module if self.settings.sample.weights == "ema" else member.model
        return copy.deepcopy(own).eval().to(self.device)

    def _drawn(self, model: nn.Module, seeds: Sequence[int]) -> Tensor | None:
        try:
            with kept_generators(self.device):
                return self.task.draw(model, self.device, seeds, self.settings.run.watch_denoising_steps)
        except CheckFailed as error:  # the losses tell whether the training is broken
            say(f"this point is not watched: {error}")
            return None

    @cached_property
    def _watch(self) -> "Watch":
        from iet_agc.metrics.watch import Watch

        held_out = None if self.held_out is None else self.held_out.images
        found = Watch(self.images.images, held_out, self.settings.data.flips, self.device)
        for reason in found.reasons:
            say(f"warning: the watch may be wrong: {reason.sentence}")
        return found

    # Losses --------------------------------------------------------------------------------------

    @cached_property
    def _compared(self) -> tuple[Examples, Examples] | None:
        """As many training images as held-out images, drawn once; None where there are none that can be compared."""
        if self.held_out is None:
            return None
        count = min(self.settings.run.watch_images, len(self.held_out), len(self.images))
        chosen = [
            torch.randperm(len(images), generator=generator("watch", name, self.settings.train.seed))[:count]
            for name, images in (("train", self.images), ("held-out", self.held_out))
        ]
        others = self.task.others(self.held_out.take(chosen[1]))
        return None if others is None else (self.task.examples(chosen[0]), others)

    def _losses(self, model: nn.Module) -> Losses | None:
        if self._compared is None:
            return None
        from iet_agc.metrics.watch import losses_by_band

        batch = self._batch(len(self._compared[0]), self._compared[0].shape)
        train, held_out = (self._losses_of(model, each, batch) for each in self._compared)
        if not (train.isfinite().all() and held_out.isfinite().all()):
            return None
        return losses_by_band(train, held_out, batch.timesteps, NUM_TIMESTEPS)

    def _batch(self, count: int, shape: tuple[int, ...]) -> Batch:
        """The same at each point; timesteps lie evenly, so that every band has its share."""
        seed = self.settings.train.seed
        rng = generator("watch", "noise", seed)
        return Batch(
            positions=torch.arange(count, device=self.device),
            flips=(torch.rand(count, generator=rng) < 0.5).to(self.device),
            timesteps=((torch.arange(count) * NUM_TIMESTEPS + NUM_TIMESTEPS // 2) // count).to(self.device),
            noise=torch.randn((count, *shape), generator=rng).to(self.device),
            lots=torch.rand(count, generator=rng).to(self.device),
            identity=(seed, 0, 0),
        )

    @torch.no_grad()
    def _losses_of(self, model: nn.Module, examples: Examples, batch: Batch) -> Tensor:
        """Loss of each, float32 (N,), on the CPU."""
        placed, parts = examples.to(self.device), []
        precision = resolved(self.settings.train.precision, self.device)
        with kept_generators(self.device), autocast(precision, self.device):
            for start in range(0, len(batch.positions), _ROWS):
                rows = slice(start, start + _ROWS)
                parts.append(placed.losses(model, self.task.scheduler, batch, rows).float().cpu())
        return torch.cat(parts)

    # What is left of it --------------------------------------------------------------------------

    def _keep(self, member: Member, point: Point) -> None:
        """Keep the model of a point: of each, if asked for, or of the last that did not copy, to stop at."""
        run = self.settings.run
        if not run.keep_watched and (point.above_chance or not run.stop_when_copying):
            return

        def export(folder: Path, own: Mapping[str, Collection[str]]) -> dict[str, dict[str, str]]:
            raw, ema = (copy.deepcopy(each).cpu() for each in (member.model, member.ema.module))
            return self.task.export(raw, ema, folder, own)

        about = {"settings": fingerprint(self.settings), "images_seen": point.images_seen}
        watched.save_snapshot(self.out, point.step, export, about)
        if not run.keep_watched:
            watched.drop_snapshots(self.out, [step for step in watched.snapshots(self.out) if step != point.step])

    def stop_at(self) -> dict[str, Any]:
        """What a run that ended early says of it: its step, and that of the model which it leaves, JSON values only."""
        chosen = self.recommendation.step if self.recommendation else None
        kept = chosen is not None and chosen in watched.snapshots(self.out)
        return {"step": self.points[-1].step, "weights_of_step": chosen if kept else self.points[-1].step}

    @property
    def recommendation(self) -> Recommendation | None:
        """Which point to keep; None where there are none."""
        return recommend(self.points) if self.points else None

    def end(self) -> None:
        """Write down the recommendation, on the first process."""
        if self.recommendation:
            watched.write_recommendation(self.out, self.recommendation)
        if "_board" in self.__dict__:
            self._board.close()

    @cached_property
    def _board(self) -> "SummaryWriter":
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.out / "tensorboard" / "watch"), purge_step=self._step + 1)

    def _show(self, point: Point, images: Tensor) -> None:
        """Show a point in TensorBoard, with the closest pairs: samples above, training images below."""
        for name, value in figures(point).items():
            self._board.add_scalar(f"watch/{name}", value, point.step)
        pairs = point.pairs[:_PAIRS]
        drawn, nearest = [pair.sample for pair in pairs], [pair.image for pair in pairs]
        grid = pair_grid(images[drawn], self.images.images[nearest])
        self._board.add_image("watch/closest pairs", grid, point.step)
        self._board.flush()
