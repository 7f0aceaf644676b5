"""What is random about a training step, and what a member trains on."""

import functools
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from iet_agc.diffusion.noise_levels import drawn_timesteps
from iet_agc.diffusion.process import NUM_TIMESTEPS, Scheduler
from iet_agc.runtime.seeds import generator

__all__ = ["Batch", "Examples", "draw_batch", "draw_beside", "draw_poisson_batch"]

#: Held-out images beside a batch: one for so many of it, and each costs about a third of what a trained one does.
_BESIDE = 4


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What is random about one training step, for the whole batch.

    Attributes:
        positions: which examples of the shard, int64 (B,).
        flips: which of them are mirrored, bool (B,).
        timesteps: int64 (B,), in [0, 1000).
        noise: standard normal, float32 (B, C, H, W).
        lots: uniform in [0, 1), float32 (B,); what random skipping compares with its rate.
        identity: (seed, member, step), for what only some kinds of examples draw beyond that.
    """

    positions: Tensor
    flips: Tensor
    timesteps: Tensor
    noise: Tensor
    lots: Tensor
    identity: tuple[int, int, int]


class Examples(Protocol):
    """The training examples of one member, and their loss; they rest on the CPU."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of what noise is added to."""
        ...

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        ...

    def losses(self, model: Any, scheduler: Scheduler, batch: Batch, rows: slice) -> Tensor:
        """The loss of each of these rows of a batch, float32 (rows,), differentiable. All randomness comes in."""
        ...


def draw_batch(
    seed: int,
    member: int,
    step: int,
    shard_size: int,
    batch_size: int,
    shape: tuple[int, ...],
    device: torch.device,
    density: Tensor | None = None,
) -> Batch:
    """The batch of one step of one member, a function of its arguments alone.

    The shard is read in one random order after another, end to end: every image comes once per
    epoch, none is dropped, and a batch may straddle two epochs.

    With a density of timesteps, float64 (1000,), these are drawn from it by a generator of their own. All else is drawn
    as without it: two runs that differ in their timesteps see the same images with the same noise.
    """
    first = step * batch_size
    epochs = range(first // shard_size, (first + batch_size - 1) // shard_size + 1)
    orders = [_epoch_order(seed, member, epoch, shard_size) for epoch in epochs]
    start = first - epochs[0] * shard_size
    rng = generator("step", seed, member, step, device=device)
    flips = torch.rand(batch_size, generator=rng, device=device) < 0.5
    timesteps = torch.randint(NUM_TIMESTEPS, (batch_size,), generator=rng, device=device)
    if density is not None:
        own = generator("timesteps", seed, member, step, device=device)
        lots = torch.rand(batch_size, generator=own, device=device, dtype=torch.float64)
        timesteps = drawn_timesteps(density.to(device, non_blocking=True), lots)
    return Batch(
        positions=torch.cat(orders)[start : start + batch_size].to(device, non_blocking=True),
        flips=flips,
        timesteps=timesteps,
        noise=torch.randn((batch_size, *shape), generator=rng, device=device),
        lots=torch.rand(batch_size, generator=rng, device=device),
        identity=(seed, member, step),
    )


def draw_beside(batch: Batch, num_images: int) -> Batch:
    """Held-out images for the first quarter of a batch, at least one, with its timesteps and its noise.

    Args:
        batch: of a step.
        num_images: how many images there are to draw from.
    """
    count, device = max(1, len(batch.positions) // _BESIDE), batch.noise.device
    rng = generator("held-out", *batch.identity, device=device)
    return Batch(
        positions=torch.randint(num_images, (count,), generator=rng, device=device),
        flips=torch.rand(count, generator=rng, device=device) < 0.5,
        timesteps=batch.timesteps[:count],
        noise=batch.noise[:count],
        lots=batch.lots[:count],
        identity=batch.identity,
    )


def draw_poisson_batch(
    seed: int,
    member: int,
    step: int,
    shard_size: int,
    batch_size: int,
    shape: tuple[int, ...],
    device: torch.device,
    density: Tensor | None = None,
    draws: int = 1,
) -> Batch:
    """A batch for which every example is drawn by itself, with probability batch_size / shard_size.

    A function of its arguments alone. It has as many examples as chance gives, none at times, and `draws` rows of each,
    one after another, with timesteps and noise of their own. Other arguments as in `draw_batch`.
    """
    chosen = torch.rand(shard_size, generator=generator("poisson", seed, member, step), dtype=torch.float64)
    positions = (chosen < batch_size / shard_size).nonzero().flatten()
    count = len(positions) * draws
    rng = generator("step", seed, member, step, device=device)
    flips = torch.rand(len(positions), generator=rng, device=device) < 0.5
    timesteps = torch.randint(NUM_TIMESTEPS, (count,), generator=rng, device=device)
    if density is not None:
        lots = torch.rand(count, generator=rng, device=device, dtype=torch.float64)
        timesteps = drawn_timesteps(density.to(device), lots)
    return Batch(
        positions=positions.repeat_interleave(draws).to(device),
        flips=flips.repeat_interleave(draws),
        timesteps=timesteps,
        noise=torch.randn((count, *shape), generator=rng, device=device),
        lots=torch.rand(count, generator=rng, device=device),
        identity=(seed, member, step),
    )


@functools.lru_cache(maxsize=4)  # drawn once per epoch, not once per step
def _epoch_order(seed: int, member: int, epoch: int, shard_size: int) -> Tensor:
    return torch.randperm(shard_size, generator=generator("epoch", seed, member, epoch))
