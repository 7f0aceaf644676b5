"""Exponential moving average of what a module trains, buffers included; its decay is constant unless told otherwise."""

from typing import Generic, TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from iet_agc.runtime.trainable import copy_trained

M = TypeVar("M", bound=nn.Module)

__all__ = ["ExponentialMovingAverage"]


class ExponentialMovingAverage(Generic[M]):
    """Keeps `average <- decay * average + (1 - decay) * module`, with the same decay at every step.

    Floating-point buffers are averaged like weights; integer buffers are copied, since a mean of counts is no count
    (torch's `AveragedModel` takes it). diffusers' `EMAModel` ramps its decay, which is another average.

    Args:
        module: what to follow; the average starts as a copy of it, and shares its frozen parameters.
        decay: in [0, 1]; 0.9999 in the paper.

    Attributes:
        module: the average, a module of the same class that needs no gradient.
    """

    def __init__(self, module: M, decay: float) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"EMA decay must be in [0, 1], not {decay}")
        self.decay, self._step = decay, get_ema_multi_avg_fn(decay)
        self.module: M = copy_trained(module).requires_grad_(False)
        self.module.eval()

    @torch.no_grad()
    def update(self, module: M, decay: float | None = None) -> None:
        """Take one step toward `module`, all tensors at once.

        Args:
            module: what is followed.
            decay: of this step, in [0, 1], in place of the constant one.
        """
        step = self._step if decay is None else get_ema_multi_avg_fn(decay)
        pairs = self._pairs(module)
        floats = [(mine, theirs) for mine, theirs in pairs if mine.is_floating_point()]
        if floats:  # torch looks at the first
            mine_of_floats, theirs_of_floats = map(list, zip(*floats, strict=True))
            step(mine_of_floats, theirs_of_floats, 0)  # how many steps it is makes no difference
        for mine, theirs in pairs:
            if not mine.is_floating_point():
                mine.copy_(theirs)

    def _pairs(self, module: M) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Mine and theirs, without what is frozen in theirs."""
        parameters = zip(self.module.parameters(), module.parameters(), strict=True)
        trained = [(mine, theirs) for mine, theirs in parameters if theirs.requires_grad]
        return [*trained, *zip(self.module.buffers(), module.buffers(), strict=True)]
