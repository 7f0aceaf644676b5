"""One cut on several statistics, at one rate of false alarms for all of them together.

Each statistic is small where a sample is a copy, but each on its own scale. So it is turned into a tail probability:
the share of held-out images with a smaller value, and below the tenth part of them Hill's power law (Annals of
Statistics 3, 1975), which still orders what is smaller than all of them. The smallest over the statistics, each over
its weight, is the score. The cut on scores is set by held-out images once more, by rank, as in split conformal
prediction.

A held-out image is ranked among the *other* ones (leave one out), as a sample is among all of them: nothing is ranked
against itself. That uses every held-out image for both purposes. Cut in two halves, 399 of them would leave 200 to
set the cut, the second smallest of which is one draw more or less. The tail probabilities need not be right for the
promise to hold, only for power: whatever they are, held-out images pass through the same as samples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Tails", "joint_scores"]

#: The lower tail of a statistic: this part of the held-out images, and no fewer than so many.
_TAIL, _FEWEST = 0.1, 5

#: Statistics are taken for no smaller than this, so that logarithms are finite.
_LEAST = 1e-12


@dataclass(frozen=True)
class Tails:
    """The lower tails of several statistics among held-out images.

    Attributes:
        ordered: logarithms of the statistics, ascending by column, float64 (H, S).
    """

    ordered: Tensor

    @staticmethod
    def of(held_out: Tensor) -> "Tails":
        """Of statistics of held-out images, (H, S), each at least 0."""
        return Tails(held_out.double().clamp(min=_LEAST).log().sort(dim=0).values)

    def scores(self, statistics: Tensor) -> Tensor:
        """Logarithm of the tail probability of each statistic, float64 (N, S); lower is rarer."""
        logs = statistics.double().clamp(min=_LEAST).log()
        columns = zip(self.ordered.T, logs.T, strict=True)
        return torch.stack([_tail(ordered, column) for ordered, column in columns], dim=1)


def _tail(ordered: Tensor, values: Tensor) -> Tensor:
    """Log tail probability of values, (N,), by one statistic of held-out images, (H,)."""
    most = _tail_length(len(ordered))
    edge = ordered[most - 1]
    slope = (edge - ordered[:most]).mean().clamp(min=1e-6)
    share = (torch.searchsorted(ordered.contiguous(), values.contiguous(), right=True) + 1) / (len(ordered) + 1)
    beyond = torch.log(torch.tensor((most + 1) / (len(ordered) + 1), dtype=torch.float64)) + (values - edge) / slope
    return torch.where(values < edge, beyond, share.double().log())


def _tail_length(total: int) -> int:
    return min(total, max(_FEWEST, round(_TAIL * total)))


def joint_scores(held_out: Tensor, samples: Tensor, weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """How rare each image is by the rarest of its statistics.

    Args:
        held_out: statistics of real images that may set the cut, (H, S), H >= 2; small where an image is a copy.
        samples: of samples, (N, S).
        weights: of the statistics, above 0: of images that are below the cut by chance, how many may be so by each,
            relatively. Any weights keep the promise.

    Returns:
        Of held-out images, each among the other ones, (H, S), and of samples, (N, S), float64: decadic logarithms of
        tail probabilities over weights. The smallest of a row is the score of an image.
    """
    tails, offset = Tails.of(held_out), torch.tensor(weights, dtype=torch.float64).log()
    among_others = _without_itself(tails.ordered, held_out.double().clamp(min=_LEAST).log())
    return (among_others - offset) / math.log(10), (tails.scores(samples) - offset) / math.log(10)


def _without_itself(ordered: Tensor, logs: Tensor) -> Tensor:
    """Each held-out image by the tails of the other ones, in closed form; (H, S)."""
    total = len(ordered)
    most = _tail_length(total - 1)
    sums = ordered[: most + 1].cumsum(0)
    columns = []
    for column, values, summed in zip(ordered.T, logs.T, sums.T, strict=True):
        rank = torch.searchsorted(column.contiguous(), values.contiguous())
        inside = rank < most  # without it, the tail ends one place later
        edge = torch.where(inside, column[most], column[most - 1])
        mean = torch.where(inside, summed[most] - values, summed[most - 1]) / most
        slope = (edge - mean).clamp(min=1e-6)
        equal_or_less = torch.searchsorted(column.contiguous(), values.contiguous(), right=True) - 1
        share = ((equal_or_less + 1) / total).double().log()
        beyond = torch.log(torch.tensor((most + 1) / total, dtype=torch.float64)) + (values - edge) / slope
        columns.append(torch.where(values < edge, beyond, share))
    return torch.stack(columns, dim=1)
