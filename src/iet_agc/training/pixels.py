"""Images as training examples, with their classes where the model is class-conditional."""

from dataclasses import dataclass, replace

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from iet_agc.diffusion.process import Denoiser, per_sample_loss, to_float
from iet_agc.training.batches import Batch

__all__ = ["Pixels"]


@dataclass(frozen=True)
class Pixels:
    """Images as `Examples`.

    Attributes:
        images: uint8 (n, C, H, W).
        labels: class of each, int64 (n,), of a class-conditional model.
        flips: mirror those that the batch says.
    """

    images: Tensor
    labels: Tensor | None = None
    flips: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.images.shape[1:])

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> "Pixels":
        """The same on a device."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, images=self.images.to(device), labels=labels)

    def losses(self, model: Denoiser, scheduler: DDIMScheduler, batch: Batch, rows: slice) -> Tensor:
        """See `diffusion.per_sample_loss`."""
        labels = None if self.labels is None else self.labels[batch.positions[rows]]
        return per_sample_loss(
            model, scheduler, self._pixels(batch, rows), batch.timesteps[rows], batch.noise[rows], labels
        )

    def _pixels(self, batch: Batch, rows: slice) -> Tensor:
        images = to_float(self.images[batch.positions[rows]])
        if not self.flips:
            return images
        return torch.where(batch.flips[rows, None, None, None], images.flip(-1), images)
