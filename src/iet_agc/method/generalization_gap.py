"""By how much held-out images have a larger loss than training images, by noise level.

A model that generalizes predicts the noise of images that it has not seen as well as that of its training images; one
that memorizes does not, first at middle noise levels. The gap is measured in pairs, so that it depends on the images
alone: a held-out image has the timestep and the noise of a training image of the same step.

    gap[band] = decay * gap[band] + (1 - decay) * log(l_held_out / l_train)        (each pair, in batch order)

Anti-Gradient Control takes it as the factor exp(max(gap, 0)) on its loss bank. Its line then stands where the loss of
held-out images is, and does not sink with the losses of a training set that is memorized as a whole, in which no image
is far below the mean of the others. Source: this project; the gap as a sign of memorization is that of Kadkhodaie et
al. (ICLR 2024, arXiv 2310.02557), who compare the errors of training and of test images.
"""

import torch
from torch import Tensor, nn

from iet_agc.method.agc import folded

__all__ = ["GeneralizationGap"]

#: Bands of timesteps: of 1000, the losses of 50 neighbours have about one gap.
_BANDS = 20

#: How much of a gap stays when a pair comes in: it is a mean of the last 50 or so of its band.
_DECAY = 0.98


class GeneralizationGap(nn.Module):
    """Running means of log(held-out loss / training loss), one for each band of timesteps.

        >>> gap = GeneralizationGap(num_timesteps=1000)
        >>> timesteps = torch.tensor([130, 140, 900])
        >>> for _ in range(500):
        ...     gap.update(torch.tensor([0.4, 0.4, 0.1]), torch.tensor([0.1, 0.1, 0.2]), timesteps)
        >>> [round(factor, 2) for factor in gap.factor(timesteps).tolist()]  # 4 times the loss; and half of it: none
        [4.0, 4.0, 1.0]

    Args:
        num_timesteps: how many timesteps the noise schedule has.

    Attributes:
        log_ratios: the gaps, float32 (20,), of timesteps from small to large; a buffer. They start at 0: no gap.
    """

    log_ratios: Tensor

    def __init__(self, num_timesteps: int = 1000) -> None:
        super().__init__()
        self.num_timesteps = num_timesteps
        self.register_buffer("log_ratios", torch.zeros(_BANDS))

    @torch.no_grad()
    def factor(self, timesteps: Tensor) -> Tensor:
        """How many times as large the loss of held-out images is, at least 1; float32 (B,).

        Args:
            timesteps: int64 (B,), in [0, num_timesteps).
        """
        return self.log_ratios.clamp(min=0).exp()[self._bands(timesteps)]

    @torch.no_grad()
    def update(self, held_out: Tensor, trained: Tensor, timesteps: Tensor) -> None:
        """Take in pairs; those of which a loss is zero or not finite count as if they were not there.

        Args:
            held_out, trained: losses at the same timesteps and noise, float (B,).
            timesteps: int64 (B,).
        """
        ratios = held_out.float().log() - trained.float().log()
        self.log_ratios.copy_(folded(self.log_ratios, ratios, self._bands(timesteps), ratios.isfinite(), _DECAY))

    def _bands(self, timesteps: Tensor) -> Tensor:
        return timesteps * _BANDS // self.num_timesteps
