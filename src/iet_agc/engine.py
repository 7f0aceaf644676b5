"""The member and the round loop: the only loop there is.

    for each round:
        for each member:  train it on its shard for `train.steps` steps
        average weights and EMA weights over the members, weighted by shard size
        every member loads the average

Default training is one member whose skip_below is 0; IET, AGC and IET-AGC are settings.

Members go to processes (member m to the rank m % processes) and only the member being trained is on
the device. Between averages members do not depend on each other, so within a round each saves a bundle
of its own whenever it likes, and the whole resumes from any mixture of them.
"""

import copy
import csv
import functools
import io
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor, nn

from iet_agc import checkpoint, dist
from iet_agc.agc import AntiGradientControl, mean_of_kept
from iet_agc.average import average_states
from iet_agc.config import Settings, claim_folder, fingerprint
from iet_agc.data import ImageSet, image_grid, load_dataset, save_image
from iet_agc.diffusion import NUM_TIMESTEPS, make_scheduler, per_sample_loss, to_float
from iet_agc.ema import ExponentialMovingAverage
from iet_agc.log import Curves, Meter, progress_bar, say
from iet_agc.models import build_unet, save_pipeline, use_rows
from iet_agc.sampling import sample
from iet_agc.seeds import generator, key_of
from iet_agc.shards import partition

__all__ = ["Batch", "Member", "NonFiniteError", "draw_batch", "start", "train"]


class NonFiniteError(ArithmeticError):
    """A loss or gradient is infinite or not a number; the message names member, round and step."""


@dataclass(frozen=True)
class Batch:
    """Everything that is random about one training step, for the whole batch.

    Attributes:
        positions: which images of the shard, int64 (B,).
        flips: which of them are mirrored, bool (B,).
        timesteps: int64 (B,), in [0, 1000).
        noise: standard normal, float32 (B, C, H, W).
        lots: uniform in [0, 1), float32 (B,); what random skipping compares with its rate.
    """

    positions: Tensor
    flips: Tensor
    timesteps: Tensor
    noise: Tensor
    lots: Tensor


def draw_batch(
    seed: int, member: int, step: int, shard_size: int, batch_size: int, shape: tuple[int, ...], device: torch.device
) -> Batch:
    """The batch of one step of one member, a function of its arguments alone.

    The shard is read in one random order after another, end to end: every image comes once per
    epoch, none is dropped, and a batch may straddle two epochs.
    """
    first = step * batch_size
    epochs = range(first // shard_size, (first + batch_size - 1) // shard_size + 1)
    orders = [_epoch_order(seed, member, epoch, shard_size) for epoch in epochs]
    start = first - epochs[0] * shard_size
    rng = generator("step", seed, member, step, device=device)
    return Batch(
        positions=torch.cat(orders)[start : start + batch_size].to(device),
        flips=torch.rand(batch_size, generator=rng, device=device) < 0.5,
        timesteps=torch.randint(NUM_TIMESTEPS, (batch_size,), generator=rng, device=device),
        noise=torch.randn((batch_size, *shape), generator=rng, device=device),
        lots=torch.rand(batch_size, generator=rng, device=device),
    )


@functools.lru_cache(maxsize=4)  # drawn once per epoch, not once per step
def _epoch_order(seed: int, member: int, epoch: int, shard_size: int) -> Tensor:
    return torch.randperm(shard_size, generator=generator("epoch", seed, member, epoch))


class Member:
    """The learner that owns a shard.

    Args:
        index: its number.
        model: the initialisation, the same for every member; it is copied.
        images: the shard's images, uint8 (n, C, H, W).
        settings: of the run.
        device: where it trains; it rests on the CPU.
        replicas: the processes that train it together.

    Attributes:
        model, ema, optimizer, agc: what a member is made of.
        step: optimizer steps taken, over all rounds; the position in the learning-rate schedule.
        seen, skipped: how often each image of the shard was drawn, and left out; int64 (n,).
    """

    def __init__(
        self,
        index: int,
        model: UNet2DModel,
        images: Tensor,
        settings: Settings,
        device: torch.device,
        replicas: dist.Replicas = dist.Replicas(),  # noqa: B008 (frozen)
    ) -> None:
        self.index, self.settings, self.device, self.replicas = index, settings, device, replicas
        self.images = images
        self.model = copy.deepcopy(model).train()
        self.ema = ExponentialMovingAverage(model, settings.train.ema_decay)
        self.agc = AntiGradientControl(NUM_TIMESTEPS, settings.method.skip_below, settings.method.decay)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=settings.train.learning_rate,
            weight_decay=settings.train.weight_decay,
            fused=True,
        )
        self.step = 0
        self.seen, self.skipped = (torch.zeros(len(images), dtype=torch.int64) for _ in range(2))
        rows = replicas.rows(settings.train.batch_size)
        use_rows(self.model, None if replicas.count == 1 else (rows.start, settings.train.batch_size))

    def to(self, device: torch.device) -> None:
        """Move everything that is needed for training."""
        modules: list[nn.Module] = [self.model, self.ema.module, self.agc]
        for module in modules:
            module.to(device)
        for state in self.optimizer.state.values():
            state.update({name: tensor.to(device) for name, tensor in state.items()})
        self.images, self.seen, self.skipped = (t.to(device) for t in (self.images, self.seen, self.skipped))

    def train(self, until: int, scheduler: DDIMScheduler) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Take steps up to number `until`, yielding (losses, keep, timesteps) of each batch, all (B,).

        Raises:
            NonFiniteError: when the steps taken so far are looked at, at the end. A bad step and those
                after it change neither weights nor moments: the device holds them back by itself.
        """
        first = self.step
        bad = torch.zeros((), device=self.device)
        good_steps = torch.zeros((), dtype=torch.int64, device=self.device)
        while self.step < until:
            yield self._one_step(scheduler, bad)
            good_steps += bad == 0
        if bad.item():
            raise NonFiniteError(
                f"loss or gradient is not finite: member {self.index}, round {first // self.settings.train.steps}, "
                f"step {first + int(good_steps)}; the last bundle stays as it is. "
                "Lower train.learning_rate or train.grad_clip, or look at the images"
            )

    def _one_step(self, scheduler: DDIMScheduler, bad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        train, method = self.settings.train, self.settings.method
        batch = draw_batch(
            train.seed, self.index, self.step, len(self.images), train.batch_size, self.images.shape[1:], self.device
        )
        rows = self.replicas.rows(train.batch_size)
        if self.settings.model.dropout > 0:
            torch.manual_seed(key_of("dropout", train.seed, self.index, self.step))
        mine = per_sample_loss(
            self.model, scheduler, self._pixels(batch, rows), batch.timesteps[rows], batch.noise[rows]
        )
        losses = self.replicas.whole(mine.detach(), train.batch_size)
        keep = self.agc.keep(losses, batch.timesteps) & (batch.lots >= method.random_skip)
        mean_of_kept(mine, keep[rows], keep.sum()).backward()
        self.agc.update(losses, batch.timesteps)
        self._descend(losses, bad)
        self.seen.index_add_(0, batch.positions, torch.ones_like(batch.positions))
        self.skipped.index_add_(0, batch.positions, (~keep).long())
        return losses, keep, batch.timesteps

    def _pixels(self, batch: Batch, rows: slice) -> Tensor:
        images = to_float(self.images[batch.positions[rows]])
        if not self.settings.data.flips:
            return images
        return torch.where(batch.flips[rows, None, None, None], images.flip(-1), images)

    def _descend(self, losses: Tensor, bad: Tensor) -> None:
        """Clip, step, EMA; or nothing, from the first step on whose loss or gradient is not finite."""
        train = self.settings.train
        self.replicas.sum_gradients(list(self.model.parameters()))
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), train.grad_clip)
        bad.logical_or_(~(losses.isfinite().all() & norm.isfinite()))
        self.optimizer.param_groups[0]["lr"] = train.learning_rate * warmup(self.step, train.warmup_steps)
        self.optimizer.found_inf = bad  # pyright: ignore[reportAttributeAccessIssue]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.model)
        self.step += 1

    def shared(self) -> dict[str, Tensor]:
        """What an average replaces: weights and EMA weights, by name."""
        states = {"raw": self.model.state_dict(), "ema": self.ema.module.state_dict()}
        return {f"{kind}.{name}": tensor for kind, state in states.items() for name, tensor in state.items()}

    def load_shared(self, state: dict[str, Tensor]) -> None:
        """Take over what `shared` gave, here or elsewhere."""
        for kind, module in (("raw", self.model), ("ema", self.ema.module)):
            module.load_state_dict(
                {name.removeprefix(f"{kind}."): t for name, t in state.items() if name.startswith(f"{kind}.")}
            )

    def own(self) -> dict[str, Tensor]:
        """What stays with the member: optimizer moments, loss bank, schedule position, counts."""
        moments = {
            f"optimizer.{kind}.{name}": value
            for name, parameter in self.model.named_parameters()
            for kind, value in self.optimizer.state[parameter].items()
        }
        counts = {"seen": self.seen, "skipped": self.skipped, "step": torch.tensor(self.step)}
        return {**moments, **counts, "agc.mean_loss": self.agc.mean_loss}

    def load_own(self, state: dict[str, Tensor]) -> None:
        """Take over what `own` gave."""
        for name, parameter in self.model.named_parameters():
            kinds = ("step", "exp_avg", "exp_avg_sq")
            moments = {kind: state[f"optimizer.{kind}.{name}"] for kind in kinds if f"optimizer.{kind}.{name}" in state}
            if moments:
                self.optimizer.state[parameter] = moments
        self.agc.mean_loss.copy_(state["agc.mean_loss"])
        self.seen, self.skipped, self.step = state["seen"], state["skipped"], int(state["step"])


def warmup(step: int, warmup_steps: int) -> float:
    """Learning rate of a step (counted from 0) over that after the warm-up: min(step / warmup, 1)."""
    return min(step / warmup_steps, 1.0) if warmup_steps else 1.0


def start(settings: Settings, out: Path, on_step: Callable[[int], object] | None = None) -> dict[str, object]:
    """Load the data, join the other processes, and train: what `iet-agc train` does.

    Args:
        settings: of the run.
        out: the run's folder.
        on_step: see `train`.

    Returns:
        A summary of the finished run, JSON values only.

    Raises:
        ValueError, NonFiniteError: see `train`.
    """
    began, data = time.perf_counter(), settings.data
    if settings.run.threads:
        torch.set_num_threads(settings.run.threads)
    root = Path(data.root) if data.root else None
    images, held_out = load_dataset(
        data.name, root, data.num_train, data.planted_images, data.planted_copies, data.seed
    )
    device = dist.choose_device(settings.run.device)
    with dist.processes(device):
        train(settings, images, out, device, on_step)
    steps = settings.method.members * settings.method.rounds * settings.train.steps
    return {
        "run": str(out),
        "preset": settings.name,
        "training_images": len(images),
        "held_out_images": len(held_out),
        "steps": steps,
        "images_seen": steps * settings.train.batch_size,
        "skip_rate": _skip_rate(out),
        "seconds": round(time.perf_counter() - began, 1),
    }


def _skip_rate(out: Path) -> float:
    with (out / "telemetry.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    return sum(int(row["skipped"]) for row in rows) / sum(int(row["seen"]) for row in rows)


def train(
    settings: Settings,
    images: ImageSet,
    out: Path,
    device: torch.device,
    on_step: Callable[[int], object] | None = None,
) -> None:
    """Train to the end, from wherever the folder stands, and leave two diffusers pipelines in it.

    Args:
        settings: of the run.
        images: the training set.
        out: the run's folder; it may hold bundles of the same run, which are gone on from.
        device: where to train.
        on_step: called with a number of steps that are done, in place of the progress bar.

    Raises:
        NonFiniteError: see `Member.train`.
        ValueError: more members than images, a model that does not fit the images, or a folder that
            holds another run; nothing is written then.
    """
    if dist.rank() == 0:
        claim_folder(settings, out)
    dist.barrier()
    run = _Run(settings, images, out, device, on_step)
    run.resume()
    run.to_the_end()


class _Run:
    """One process's part of a run: its members, and where the run stands."""

    def __init__(
        self,
        settings: Settings,
        images: ImageSet,
        out: Path,
        device: torch.device,
        on_step: Callable[[int], object] | None,
    ) -> None:
        self.settings, self.images, self.out, self.device, self.on_step = settings, images, out, device, on_step
        self.bundles = out / "bundles"
        self.identity = {"settings": fingerprint(settings), "images": images.fingerprint}
        self.scheduler = make_scheduler()
        self.curves: dict[int, Curves] = {}
        self.round = 0
        method, model = settings.method, settings.model
        self.shards = partition(
            len(images) if images.labels is None else images.labels,
            method.members,
            method.sharding,
            settings.train.seed,
        )
        torch.manual_seed(key_of("weights", settings.train.seed))
        initial = build_unet(
            images.shape[1],
            images.shape[0],
            model.channels,
            model.multipliers,
            model.blocks,
            model.attention,
            model.dropout,
            model.groups,
        )
        self.replicas = dist.replicas_of(method.members)
        mine = range(dist.rank() % method.members, method.members, dist.size())
        self.members = [
            Member(m, initial, images.images[self.shards[m]], settings, device, self.replicas) for m in mine
        ]

    # Where a run stands on disk -------------------------------------------------------------------

    def resume(self) -> None:
        """Load the newest bundle that is whole, then what members saved after it."""
        whole = self._newest("round-????")
        if whole:
            self.round = whole.about["round"]
            for member in self.members:
                member.load_shared(whole.tensors("shared"))
                member.load_own(whole.tensors(f"member-{member.index:04d}"))
        for member in self.members:
            partial = self._newest(f"round-{self.round:04d}-member-{member.index:04d}-step-*")
            if partial:
                member.load_shared(partial.tensors("shared"))
                member.load_own(partial.tensors(f"member-{member.index:04d}"))
            if self.replicas.index == 0:
                self.curves[member.index] = Curves(self.out, member.index, member.step)
        dist.barrier()

    def _newest(self, pattern: str) -> checkpoint.Bundle | None:
        """The newest bundle of a pattern that can be used."""
        for folder in sorted(self.bundles.glob(pattern), reverse=True):
            try:
                bundle = checkpoint.read_bundle(folder)
            except checkpoint.BundleError as error:
                say(f"{error}; going on from the one before it")
                continue
            if any(bundle.about.get(key) != value for key, value in self.identity.items()):
                raise checkpoint.BundleError(
                    f"{folder} belongs to a run with other settings or images: choose another --out"
                )
            return bundle
        return None

    def save_member(self, member: Member) -> None:
        """Save a member in the middle of a round, then drop what it saved before."""
        if self.replicas.index > 0:
            return
        prefix = f"round-{self.round:04d}-member-{member.index:04d}-step-"
        older = sorted(self.bundles.glob(f"{prefix}*"))
        folder = self.bundles / f"{prefix}{member.step:09d}"
        staging = self.bundles / f".{folder.name}"
        files = checkpoint.stage(staging, "shared", member.shared()) | checkpoint.stage(
            staging, f"member-{member.index:04d}", member.own()
        )
        checkpoint.seal(staging, folder, files, {**self.identity, "round": self.round, "step": member.step})
        for old in older[:-1]:  # the one before stays, in case this one gets damaged
            shutil.rmtree(old)

    def save_round(self) -> None:
        """Save all members after an average, then drop what is no longer needed."""
        folder = self.bundles / f"round-{self.round:04d}"
        staging = self.bundles / f".{folder.name}"
        files: dict[str, str] = {}
        if self.replicas.index == 0:
            for member in self.members:
                files |= checkpoint.stage(staging, f"member-{member.index:04d}", member.own())
        if dist.rank() == 0:
            files |= checkpoint.stage(staging, "shared", self.members[0].shared())
        everyone = dist.gather(files)
        if dist.rank() == 0:
            step = self.members[0].step
            checkpoint.seal(
                staging,
                folder,
                {k: v for f in everyone for k, v in f.items()},
                {**self.identity, "round": self.round, "step": step},
            )
            for old in self.bundles.iterdir():
                number = old.name.lstrip(".").split("-")[1]
                if int(number) < self.round - 1 or (int(number) < self.round and "member" in old.name):
                    shutil.rmtree(old)
        dist.barrier()

    # The loop -------------------------------------------------------------------------------------

    def to_the_end(self) -> None:
        """Train, average and save until all rounds are done; then export."""
        rounds, steps = self.settings.method.rounds, self.settings.train.steps
        total = rounds * steps * len(self.members)
        done = sum(member.step for member in self.members)
        with progress_bar("train", total, done, shown=self.on_step is None and dist.rank() == 0) as bar:
            on_step = self.on_step or bar.update
            if self.on_step:
                self.on_step(done)
            while self.round < rounds:
                for member in self.members:
                    self._train_round(member, on_step)
                self._average()
                self.round += 1
                self.save_round()
                self._preview()
        for curves in self.curves.values():
            curves.close()
        if dist.rank() == 0:
            self._export()
        dist.barrier()

    def _train_round(self, member: Member, on_step: Callable[[int], object]) -> None:
        """Train one member to the end of the round, with its curve and its bundles."""
        run, end = self.settings.run, (self.round + 1) * self.settings.train.steps
        meter = Meter(NUM_TIMESTEPS, self.device)
        member.to(self.device)
        while member.step < end:
            until = min(
                end,
                member.step - member.step % run.log_every + run.log_every,
                member.step - member.step % run.save_every + run.save_every,
            )
            began, first = time.perf_counter(), member.step
            for losses, keep, timesteps in member.train(until, self.scheduler):
                meter.add(losses, keep, timesteps)
                on_step(1)
            speed = (until - first) * self.settings.train.batch_size / (time.perf_counter() - began)
            if member.index in self.curves and (until % run.log_every == 0 or until == end):
                self.curves[member.index].add(self._point(member, meter, speed))
                meter.reset()
            if until % run.save_every == 0 and until < end:
                self.save_member(member)
        member.to(torch.device("cpu"))

    def _point(self, member: Member, meter: Meter, speed: float) -> dict[str, object]:
        train = self.settings.train
        return {
            "step": member.step,
            "round": self.round,
            "images_seen": member.step * train.batch_size,
            "learning_rate": train.learning_rate * warmup(member.step - 1, train.warmup_steps),
            "images_per_second": speed,
            **meter.point(),
        }

    def _average(self) -> None:
        """Replace every member's weights and EMA weights by the mean over all members, in their order."""
        count = self.settings.method.members
        mine = {member.index: member for member in self.members}

        def states() -> Iterator[dict[str, Tensor]]:
            for index in range(count):
                yield dist.broadcast_state(mine.get(index, self.members[0]).shared(), source=index % dist.size())

        mean = average_states(states(), [len(shard) for shard in self.shards])
        for member in self.members:
            member.load_shared(mean)

    def _preview(self) -> None:
        """Draw the same seeds with the averaged weights, as PNG and in TensorBoard."""
        count, settings = self.settings.run.preview_images, self.settings.sample
        if count == 0 or dist.rank() != 0:
            return
        member = self.members[0]
        model = copy.deepcopy(member.ema.module if settings.weights == "ema" else member.model).eval()
        model.to(self.device)  # pyright: ignore[reportArgumentType]
        images = sample(model, self.scheduler, range(count), self.images.shape, settings.steps, device=self.device)
        grid = image_grid(images, count)
        (self.out / "previews").mkdir(exist_ok=True)
        save_image(grid, self.out / "previews" / f"round-{self.round:04d}.png")
        self.curves[member.index].add_grid(grid, member.step)

    def _export(self) -> None:
        """Leave the diffusers pipelines and the counts per training image."""
        bundle = checkpoint.read_bundle(self.bundles / f"round-{self.round:04d}")
        save_pipeline(self.members[0].model, self.scheduler, self.out / "raw")
        save_pipeline(self.members[0].ema.module, self.scheduler, self.out / "ema")
        rows = io.StringIO()
        table = csv.writer(rows, lineterminator="\n")
        table.writerow(["image", "member", "seen", "skipped"])
        counts: dict[int, tuple[int, int, int]] = {}
        for number, shard in enumerate(self.shards):
            own = bundle.tensors(f"member-{number:04d}")
            counts |= {
                i: (number, s, k)
                for i, s, k in zip(shard.tolist(), own["seen"].tolist(), own["skipped"].tolist(), strict=True)
            }
        table.writerows([image, *counts[image]] for image in range(len(self.images)))
        checkpoint.write_text(self.out / "telemetry.csv", rows.getvalue())
