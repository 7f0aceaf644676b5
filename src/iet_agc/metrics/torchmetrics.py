"""Copied share and AuthPct as metrics of torchmetrics, for loops that have others of that kind; needs its extra.

    metric = CopiedShare(training_images, held_out_images)
    for images in batches:
        metric.update(images)
    metric.compute()

What is summed are whole numbers, so no result depends on how images are cut into batches or shared out over processes.
The numbers are those of an audit against the same sets.
"""

import torch
from torch import Tensor
from torchmetrics import Metric

from iet_agc.metrics.memorization import auth_pct
from iet_agc.metrics.neighbors import References, check_images
from iet_agc.metrics.watch import Watch

__all__ = ["AuthPct", "CopiedShare"]

#: Bytes of working memory of a search.
_MEMORY = 2**30


class CopiedShare(Metric):
    """Share of images whose distance ratio is below a cut. Low: less copied.

    The cut is the audit's: the one that 1 % of held-out images stay below, see `iet_agc.metrics.watch.Watch`, which
    also sets it by the training images where there are no held-out ones, or fewer than 99; or the one that is given,
    such as the paper's 0.15.

    Args:
        train: the training set, duplicates included, uint8 (M, C, H, W), grey or RGB.
        held_out: real images of the same kind that are not trained on, uint8 (H, C, H, W).
        cut: in place of a calibrated one.
        flips: mirrored copies count.
        device: where to search. Changes no result.

    Attributes:
        cut: what counts as a copy has a distance ratio below it.
        copied, total: how many images did, and how many there were; int64 ().

    Raises:
        ValueError: not such images, or `held_out` and `cut`, of which one would be ignored.
        UserError: fewer than 3 training images that differ.

    Examples:
        >>> draw = torch.Generator().manual_seed(0)
        >>> train = torch.randint(256, (60, 1, 4, 4), generator=draw, dtype=torch.uint8)
        >>> metric = CopiedShare(train, cut=0.15)
        >>> metric.update(train[:3])
        >>> metric.update(torch.randint(256, (1, 1, 4, 4), generator=draw, dtype=torch.uint8))
        >>> float(metric.compute())
        0.75
    """

    is_differentiable, higher_is_better, full_state_update = False, False, False
    plot_lower_bound, plot_upper_bound = 0.0, 1.0

    copied: Tensor
    total: Tensor

    def __init__(
        self,
        train: Tensor,
        held_out: Tensor | None = None,
        *,
        cut: float | None = None,
        flips: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        if held_out is not None and cut is not None:
            raise ValueError("held-out images set a cut: give them or a cut, not both")
        self._watch = Watch(train, held_out, flips, device)
        self.cut = self._watch.cut if cut is None else cut
        for name in ("copied", "total"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, images: Tensor) -> None:
        """Count images, uint8 (N, C, H, W)."""
        check_images("images", images)
        self.copied += (self._watch.ratios(images) < self.cut).sum().to(self.copied.device)
        self.total += len(images)

    def compute(self) -> Tensor:
        """The share, float64 (), in [0, 1]; not a number where there were no images."""
        return self.copied.double() / self.total


class AuthPct(Metric):
    """Percentage of authentic images, see `iet_agc.metrics.memorization.auth_pct`. High: less copied.

    Args:
        train: the training set, duplicates included, which count once; uint8 (M, C, H, W), grey or RGB.
        flips: training images are also compared mirrored.
        device: where to search. Changes no result.

    Attributes:
        authentic, total: how many images were, and how many there were; int64 ().

    Raises:
        ValueError: not such images, or fewer than 2 that differ.

    Examples:
        >>> train = torch.tensor([0, 10, 200], dtype=torch.uint8).view(3, 1, 1, 1)
        >>> metric = AuthPct(train)
        >>> metric.update(torch.tensor([1, 25], dtype=torch.uint8).view(2, 1, 1, 1))  # 1 from 0, 15 from 10; these: 10
        >>> float(metric.compute())
        50.0
    """

    is_differentiable, higher_is_better, full_state_update = False, True, False
    plot_lower_bound, plot_upper_bound = 0.0, 100.0

    authentic: Tensor
    total: Tensor

    def __init__(self, train: Tensor, *, flips: bool = False, device: torch.device | str = "cpu") -> None:
        super().__init__()
        check_images("training images", train)
        self._flips = flips
        self._unique = train.unique(dim=0)
        if len(self._unique) < 2:
            raise ValueError("AuthPct needs 2 training images that differ")
        self._references = References(self._unique, 2, _MEMORY, torch.device(device))
        for name in ("authentic", "total"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, images: Tensor) -> None:
        """Count images, uint8 (N, C, H, W)."""
        check_images("images", images)
        distances, indices = self._references.nearest(images, self._flips)
        closest = indices[:, 0].to(self._unique.device)
        others, found = self._references.nearest(self._unique[closest], self._flips)
        # The image itself is there at distance 0, and comes second where its mirrored twin has a lower index.
        own = torch.where(found[:, 0] == closest, others[:, 1], others[:, 0])
        self.authentic += auth_pct(distances[:, 0].cpu(), own.cpu()).count
        self.total += len(images)

    def compute(self) -> Tensor:
        """The percentage, float64 (), in [0, 100]; not a number where there were no images."""
        return 100 * self.authentic.double() / self.total
