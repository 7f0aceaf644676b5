"""What a denoiser is conditioned on: texts as numbers, a row for each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Conditions"]

#: Anything that indexes the rows of a tensor.
Rows = slice | Tensor | Sequence[int]


@dataclass(frozen=True)
class Conditions:
    """N embedded texts.

    Attributes:
        embeds: of every token, float (N, L, D).
        pooled: of every text as a whole, float (N, P); None of a denoiser that does not take it.
    """

    embeds: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.embeds)

    def __getitem__(self, rows: Rows) -> "Conditions":
        return self._each(lambda tensor: tensor[rows])

    def to(self, device: torch.device | str) -> "Conditions":
        """The same on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def expand(self, count: int) -> "Conditions":
        """One row, `count` times."""
        return self._each(lambda tensor: tensor.expand(count, *tensor.shape[1:]))

    def zeros(self) -> "Conditions":
        """As many rows of zeros."""
        return self._each(torch.zeros_like)

    @staticmethod
    def cat(some: Sequence["Conditions"]) -> "Conditions":
        """The rows of one or more, one after another; all have pooled rows, or none has."""
        pooled = [each.pooled for each in some if each.pooled is not None]
        return Conditions(torch.cat([each.embeds for each in some]), torch.cat(pooled) if pooled else None)

    def _each(self, function: Callable[[Tensor], Tensor]) -> "Conditions":
        return Conditions(function(self.embeds), None if self.pooled is None else function(self.pooled))
