"""Dropout whose masks are those of the whole batch, whatever rows a process has."""

from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = ["BatchDropout", "use_rows", "with_batch_dropout"]

M = TypeVar("M", bound=nn.Module)


class BatchDropout(nn.Dropout):
    """Dropout whose mask belongs to the whole batch.

    When `rows` is (start, total), the input is rows start, start + 1, ... of a batch of `total`: the
    mask of the batch is drawn and only those rows of it are used, so replicas that split a batch drop
    what one process would drop. The mask is drawn in the order of indices, since the layout in memory
    that a convolution leaves behind depends on the size of its batch. On a CPU the probability is
    rounded to a multiple of 2^-16, and what stays is scaled by the rounded one.
    """

    rows: tuple[int, int] | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Same shape as `input`."""
        if not self.training or self.p == 0:
            return input
        start, total = self.rows or (0, len(input))
        mask = _fill_mask(input.new_empty((total, *input.shape[1:])), self.p)
        return input * mask[start : start + len(input)]


def _fill_mask(empty: Tensor, probability: float) -> Tensor:
    """Zeros with a probability, elsewhere what keeps the mean; from torch's global generator of the device.

    On a CPU an element takes 16 random bits, four elements one draw: torch's own draws one element at a time there,
    which took 5 % of a training step.
    """
    if empty.device.type != "cpu":
        return nn.functional.dropout(empty.fill_(1.0), probability)
    dropped = min(max(round(probability * 2**16), 1), 2**16 - 1)
    draws = torch.empty((empty.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    bits = draws.view(torch.int16)[: empty.numel()].view(empty.shape)
    return torch.ge(bits, dropped - 2**15, out=empty).mul_(2**16 / (2**16 - dropped))


def with_batch_dropout(model: M) -> M:
    """The model itself, its plain dropout replaced by `BatchDropout`."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, BatchDropout(child.p))
    return model


def use_rows(model: nn.Module, rows: tuple[int, int] | None) -> None:
    """Tell every `BatchDropout` of a model which rows of the batch it sees, or that it sees all."""
    for module in model.modules():
        if isinstance(module, BatchDropout):
            module.rows = rows
