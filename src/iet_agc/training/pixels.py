"""Images as training examples, with their classes where the model is class-conditional."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from iet_agc.config.settings import TrainSettings
from iet_agc.diffusion.process import Denoiser, Scheduler, abar_of, per_sample_loss, to_float
from iet_agc.diffusion.targets import ambient, nearest, smoothed
from iet_agc.runtime.seeds import generator
from iet_agc.training.batches import Batch

__all__ = ["Pixels", "with_target"]


@dataclass(frozen=True)
class Pixels:
    """Images as `Examples`.

    Attributes:
        images: uint8 (n, C, H, W).
        labels: class of each, int64 (n,), of a class-conditional model.
        flips: mirror those that the batch says.
        target_timestep: of a target that is not the noise of the step; see `diffusion.targets`.
        fixed: of the ambient target, the noise of each image, float32 (n, C, H, W).
        neighbors: of the smoothed target, the nearest images of each, int64 (n, K).
    """

    images: Tensor
    labels: Tensor | None = None
    flips: bool = False
    target_timestep: int = 0
    fixed: Tensor | None = None
    neighbors: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.images.shape[1:])

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> "Pixels":
        """The same on a device."""
        names = ("images", "labels", "fixed", "neighbors")
        tensors = {name: tensor for name in names if (tensor := getattr(self, name)) is not None}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})

    def losses(self, model: Denoiser, scheduler: Scheduler, batch: Batch, rows: slice) -> Tensor:
        """See `diffusion.per_sample_loss`."""
        labels = None if self.labels is None else self.labels[batch.positions[rows]]
        pixels, timesteps, noise = self._pixels(batch, rows), batch.timesteps[rows], batch.noise[rows]
        positions = batch.positions[rows]
        if self.fixed is not None:
            fixed = self._mirrored(self.fixed[positions], batch, rows)  # the noisy image is mirrored, with its noise
            noise, target = ambient(noise, fixed, timesteps, abar_of(scheduler), self.target_timestep)
            return per_sample_loss(model, scheduler, pixels, timesteps, noise, labels, target=target)
        if self.neighbors is not None:
            near = self._mirrored(to_float(self.images[self.neighbors[positions]]), batch, rows)
            target = smoothed(pixels, near, noise, timesteps, abar_of(scheduler), self.target_timestep)
            return per_sample_loss(model, scheduler, pixels, timesteps, noise, labels, target=target)
        return per_sample_loss(model, scheduler, pixels, timesteps, noise, labels)

    def _pixels(self, batch: Batch, rows: slice) -> Tensor:
        return self._mirrored(to_float(self.images[batch.positions[rows]]), batch, rows)

    def _mirrored(self, each: Tensor, batch: Batch, rows: slice) -> Tensor:
        """What belongs to the images of these rows, (rows, ..., W), mirrored as they are."""
        if not self.flips:
            return each
        return torch.where(batch.flips[rows].reshape(-1, *[1] * (each.ndim - 1)), each.flip(-1), each)


def with_target(examples: Pixels, shard: Tensor, train: TrainSettings) -> Pixels:
    """The examples with what the target of a run takes.

    Args:
        examples: of one member.
        shard: which images of the training set they are, int64 (n,). The noise of an image is a function of the seed
            and this number, so copies of an image have noises of their own.
        train: says which target it is.
    """
    if train.target == "ambient":
        rngs = [generator("fixed noise", train.seed, number) for number in shard.tolist()]
        fixed = torch.stack([torch.randn(examples.shape, generator=rng) for rng in rngs])
        return replace(examples, target_timestep=train.target_timestep, fixed=fixed)
    if train.target == "smoothed":
        near = nearest(to_float(examples.images))
        return replace(examples, target_timestep=train.target_timestep, neighbors=near)
    return examples
