"""The learner that owns a shard."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from iet_agc.config.settings import MethodSettings, TrainSettings
from iet_agc.diffusion.dropout import use_rows
from iet_agc.diffusion.process import NUM_TIMESTEPS, Scheduler, min_snr_weights
from iet_agc.method.agc import AntiGradientControl
from iet_agc.method.differential_privacy import private_gradients
from iet_agc.method.ema import ExponentialMovingAverage
from iet_agc.method.generalization_gap import GeneralizationGap
from iet_agc.runtime import distributed
from iet_agc.runtime.errors import CheckFailed
from iet_agc.runtime.precision import autocast
from iet_agc.runtime.seeds import generator, seeded
from iet_agc.runtime.torch_internals import step_unless
from iet_agc.runtime.trainable import copy_trained, names_of_trained
from iet_agc.training.batches import Batch, Examples, draw_batch, draw_beside, draw_poisson_batch
from iet_agc.training.timesteps import density_of

__all__ = ["Member", "NonFiniteError", "learning_rate", "warmup"]


class NonFiniteError(CheckFailed):
    """A loss or gradient is infinite or not a number; the message names member, round and step."""


class Member:
    """The learner that owns a shard.

    Args:
        index: its number.
        model: the initialisation, the same for every member; it is copied, but for its frozen parameters, which all
            members share.
        examples: the shard.
        train: how it is trained; the precision is not "auto" any more, and a gap has both ends.
        method: what it skips.
        device: where it trains; it rests on the CPU.
        replicas: the processes that train it together.
        ema: where the average starts, if not at `model`; it is copied, too.
        held_out: images that are not trained on, for `method.skip_reference` held-out.

    Attributes:
        model, ema, optimizer, agc: what a member is made of.
        gap: by how much losses of held-out images are larger; None where nothing is compared with them.
        step: optimizer steps taken, over all rounds; the position in the learning-rate schedule.
        seen, skipped: how often each image of the shard was drawn, and left out; int64 (n,). An image that comes from
            another member brings along how often it was there.
        skipped_before: `skipped` as it was when shards were exchanged last.
    """

    def __init__(
        self,
        index: int,
        model: nn.Module,
        examples: Examples,
        train: TrainSettings,
        method: MethodSettings,
        device: torch.device,
        replicas: distributed.Replicas = distributed.Replicas(),  # noqa: B008 (frozen)
        ema: nn.Module | None = None,
        held_out: Examples | None = None,
    ) -> None:
        self.index, self.examples, self.device, self.replicas = index, examples, device, replicas
        self.held_out, self.gap = held_out, GeneralizationGap(NUM_TIMESTEPS) if held_out else None
        self.train_settings, self.method_settings = train, method
        self.model = copy_trained(model).train()
        self._density = density_of(train)
        self._trained = names_of_trained(self.model)
        self._parameters = {name: each for name, each in self.model.named_parameters() if each.requires_grad}
        self._predict = torch.compile(self.model) if train.compile else self.model
        self.ema = ExponentialMovingAverage(ema or model, train.ema_decay)
        self.agc = AntiGradientControl(NUM_TIMESTEPS, method.skip_below, method.decay)
        self.optimizer = torch.optim.AdamW(
            self._parameters.values(),
            lr=train.learning_rate,
            weight_decay=train.weight_decay,
            fused=True,
        )
        self.step, self._end = 0, method.rounds * train.steps
        self.seen, self.skipped, self.skipped_before = (torch.zeros(len(examples), dtype=torch.int64) for _ in range(3))
        rows = replicas.rows(train.batch_size)
        self._rows = None if replicas.count == 1 else (rows.start, train.batch_size)
        use_rows(self.model, self._rows)

    def to(self, device: torch.device) -> None:
        """Move everything that is needed for training."""
        modules: list[nn.Module] = [self.model, self.ema.module, self.agc, *([self.gap] if self.gap else [])]
        for module in modules:
            module.to(device)
        for state in self.optimizer.state.values():
            state.update({name: tensor.to(device) for name, tensor in state.items()})
        self.examples = self.examples.to(device)
        self.held_out = self.held_out and self.held_out.to(device)
        self.seen, self.skipped = self.seen.to(device), self.skipped.to(device)

    def train(
        self, until: int, scheduler: Scheduler, stops: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Take steps up to number `until`, yielding (losses, keep, timesteps) of each batch, all (B,).

        Args:
            until: number of steps that are taken then.
            scheduler: the noise schedule.
            stops: asked before each step; where it says so, no further step is taken.

        Raises:
            NonFiniteError: when the steps taken so far are looked at, at the end. A bad step and those
                after it change neither weights nor moments: the device holds them back by itself.
        """
        first = self.step
        bad = torch.zeros((), device=self.device)
        good_steps = torch.zeros((), dtype=torch.int64, device=self.device)
        one_step = self._private_step if self.train_settings.dp_noise else self._one_step
        while self.step < until and not stops():
            yield one_step(scheduler, bad)
            good_steps += bad == 0
        if bad.item():
            raise NonFiniteError(
                f"loss or gradient is not finite: member {self.index}, round {first // self.train_settings.steps}, "
                f"step {first + int(good_steps)}; the last bundle stays as it is. "
                "Lower train.learning_rate or train.grad_clip, or look at the images"
            )

    def _one_step(self, scheduler: Scheduler, bad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        train = self.train_settings
        size, shape = len(self.examples), self.examples.shape
        batch = draw_batch(train.seed, self.index, self.step, size, train.batch_size, shape, self.device, self._density)
        rows = self.replicas.rows(train.batch_size)
        dropout = seeded("dropout", train.seed, self.index, self.step, device=self.device)
        with dropout, autocast(train.precision, self.device):
            mine = self.examples.losses(self._predict, scheduler, batch, rows)
        losses = self.replicas.whole(mine.detach(), train.batch_size)
        keep = self._keep(losses, batch.timesteps) & (batch.lots >= self.method_settings.random_skip)
        self._look_at_held_out(scheduler, batch, losses)
        if train.min_snr:  # after AGC: its bank has one entry per timestep, which such a weight only scales
            weights = min_snr_weights(scheduler, train.min_snr).to(self.device, non_blocking=True)
            mine = mine * weights[batch.timesteps[rows]]
        self.agc(mine, batch.timesteps, keep=keep, whole=losses, rows=rows).backward()
        self._descend(losses, bad)
        self.seen.index_add_(0, batch.positions, torch.ones_like(batch.positions))
        self.skipped.index_add_(0, batch.positions, (~keep).long())
        return losses, keep, batch.timesteps

    @torch.no_grad()
    def _look_at_held_out(self, scheduler: Scheduler, batch: Batch, losses: Tensor) -> None:
        """Pairs of a held-out image and a training image of this step, for the gap; every replica makes all of them."""
        if self.held_out is None or self.gap is None:
            return
        beside, train = draw_beside(batch, len(self.held_out)), self.train_settings
        dropout = seeded("held-out dropout", *batch.identity, device=self.device)
        use_rows(self.model, None)
        with dropout, autocast(train.precision, self.device):
            others = self.held_out.losses(self._predict, scheduler, beside, slice(None))
        use_rows(self.model, self._rows)
        self.gap.update(others, losses[: len(others)], beside.timesteps)

    def _private_step(self, scheduler: Scheduler, bad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A step of DP-SGD. The loss bank stays empty: it would tell of single images."""
        train, size = self.train_settings, len(self.examples)
        batch = draw_poisson_batch(
            train.seed,
            self.index,
            self.step,
            size,
            train.batch_size,
            self.examples.shape,
            self.device,
            self._density,
            train.dp_multiplicity,
        )
        losses = self._private_gradients(scheduler, batch)
        self._descend(losses, bad)
        positions = batch.positions[:: train.dp_multiplicity]
        self.seen.index_add_(0, positions, torch.ones_like(positions))
        return losses, torch.ones_like(losses, dtype=torch.bool), batch.timesteps

    def _private_gradients(self, scheduler: Scheduler, batch: Batch) -> Tensor:
        """Leave the gradients of a step of DP-SGD in the parameters; the losses of all rows, (rows,)."""
        train = self.train_settings
        weights = min_snr_weights(scheduler, train.min_snr).to(self.device) if train.min_snr else None

        def loss(
            parameters: Mapping[str, Tensor], positions: Tensor, flips: Tensor, timesteps: Tensor, noise: Tensor
        ) -> tuple[Tensor, Tensor]:
            def predict(*inputs: object, **conditions: object) -> object:
                return functional_call(self.model, dict(parameters), inputs, conditions)  # pyright: ignore[reportArgumentType]

            rows = replace(batch, positions=positions, flips=flips, timesteps=timesteps, noise=noise)
            losses = self.examples.losses(predict, scheduler, rows, slice(None))
            return (losses if weights is None else losses * weights[timesteps]).mean(), losses.detach()

        rows = (batch.positions, batch.flips, batch.timesteps, batch.noise)
        gradients, losses = private_gradients(
            loss,
            self._parameters,
            tuple(each.unflatten(0, (-1, train.dp_multiplicity)) for each in rows) if len(rows[0]) else rows,
            clip=train.dp_clip,
            noise=train.dp_noise,
            expected=train.batch_size,
            rng=generator("dp noise", train.seed, self.index, self.step, device=self.device),
        )
        for name, parameter in self._parameters.items():
            parameter.grad = gradients[name]
        return losses.flatten().to(self.device)

    def _keep(self, losses: Tensor, timesteps: Tensor) -> Tensor:
        """What AGC keeps, and all of the timesteps at which it is not to skip."""
        compared = losses if self.gap is None else losses / self.gap.factor(timesteps)
        keep, low, high = self.agc.keep(compared, timesteps), self.train_settings.gap_low, self.train_settings.gap_high
        if self.method_settings.skip_within == "all" or low is None or high is None:
            return keep
        return keep | (timesteps < low) | (timesteps > high)

    def _descend(self, losses: Tensor, bad: Tensor) -> None:
        """Clip, step, EMA; or nothing, from the first step on whose loss or gradient is not finite."""
        train = self.train_settings
        self.replicas.sum_gradients([*self._parameters.values()])
        largest = math.inf if train.dp_noise else train.grad_clip
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), largest)
        bad.logical_or_(~(losses.isfinite().all() & norm.isfinite()))
        self.optimizer.param_groups[0]["lr"] = learning_rate(self.step, self._end, train)
        step_unless(self.optimizer, bad)
        self.optimizer.zero_grad()
        self.ema.update(self.model, self._share_kept())
        self.step += 1

    def _share_kept(self) -> float | None:
        """What an average keeps of itself in this step; None where it is the EMA.

        Of the last steps, the k-th (from 0) keeps k / (k + 1): a mean in which each counts alike. It is linear in the
        weights, so the mean over members at the end of a round leaves it the mean over steps of what they had.
        """
        place = self.step - (self._end - round(self.train_settings.average_last * self._end))
        return place / (place + 1) if place >= 0 else None

    def take_over(self, examples: Examples, seen: Tensor, skipped: Tensor) -> None:
        """Go on with another shard, and how often each of its images was drawn and left out so far; int64 (n,)."""
        self.examples, self.seen, self.skipped, self.skipped_before = examples, seen, skipped, skipped.clone()

    def shared(self) -> dict[str, Tensor]:
        """What an average replaces: weights and EMA weights that are trained, by name."""
        states = {"raw": self.model.state_dict(), "ema": self.ema.module.state_dict()}
        return {
            f"{kind}.{name}": tensor
            for kind, state in states.items()
            for name, tensor in state.items()
            if name in self._trained
        }

    def load_shared(self, state: dict[str, Tensor]) -> None:
        """Take over what `shared` gave, here or elsewhere."""
        for kind, module in (("raw", self.model), ("ema", self.ema.module)):
            frozen = {name: t for name, t in module.state_dict().items() if name not in self._trained}
            given = {name.removeprefix(f"{kind}."): t for name, t in state.items() if name.startswith(f"{kind}.")}
            module.load_state_dict(frozen | given)

    def own(self) -> dict[str, Tensor]:
        """What stays with the member: optimizer moments, loss bank, schedule position, counts."""
        moments = {
            f"optimizer.{kind}.{name}": value
            for name, parameter in self._parameters.items()
            for kind, value in self.optimizer.state[parameter].items()
        }
        counts = {"seen": self.seen, "skipped": self.skipped, "step": torch.tensor(self.step)}
        if self.method_settings.exchange:
            counts["skipped_before"] = self.skipped_before
        gap = {} if self.gap is None else {"gap.log_ratios": self.gap.log_ratios}
        bank = {f"agc.{name}": tensor for name, tensor in self.agc.state_dict().items()}
        return {**moments, **counts, **gap, **bank}

    def load_own(self, state: dict[str, Tensor]) -> None:
        """Take over what `own` gave."""
        for name, parameter in self._parameters.items():
            kinds = ("step", "exp_avg", "exp_avg_sq")
            moments = {kind: state[f"optimizer.{kind}.{name}"] for kind in kinds if f"optimizer.{kind}.{name}" in state}
            if moments:
                self.optimizer.state[parameter] = moments
        self.agc.load_state_dict({name: state[f"agc.{name}"] for name in self.agc.state_dict()})
        if self.gap:
            self.gap.log_ratios.copy_(state["gap.log_ratios"])
        self.seen, self.skipped, self.step = state["seen"], state["skipped"], int(state["step"])
        self.skipped_before = state.get("skipped_before", self.skipped_before)


def learning_rate(step: int, end: int, train: TrainSettings) -> float:
    """Learning rate of a step (counted from 0) of a member that takes `end` of them.

    It rises from 0 (`warmup`), stays, and over the last `train.learning_rate_fall` of the steps falls linearly. 0 would
    be that of step `end`, so every step learns. A linear fall, and not a cosine, since at equal compute it is at least
    as good (Defazio et al., 2023, arXiv 2310.07831; Hägele et al., 2024, arXiv 2405.18392) and has one number.
    """
    falling = train.learning_rate_fall * end
    fall = min((end - step) / falling, 1.0) if falling else 1.0
    return train.learning_rate * warmup(step, train.warmup_steps) * fall


def warmup(step: int, warmup_steps: int) -> float:
    """Learning rate of a step (counted from 0) over that after the warm-up: min(step / warmup, 1)."""
    return min(step / warmup_steps, 1.0) if warmup_steps else 1.0
