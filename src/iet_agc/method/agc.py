"""Anti-Gradient Control: leave out of the gradient what the model already knows too well.

A very low training loss is the mark of a memorized image. Each learner keeps a *loss bank*, the
running mean of its loss at each timestep, and skips the samples that fall far under it:

    keep_i  = l_i >= skip_below * bank[t_i]                       (bank as before this batch)
    loss    = mean of the kept l_i
    bank[t] = decay * bank[t] + (1 - decay) * l_i                 (every i, in batch order)

Source: Liu et al., ECCV 2024 (arXiv 2407.15328), section 3.3; `skip_below` is 1 / `mem_ratio` of
the authors' code. Bins of continuous times and `skip_below="auto"` are ours.

A loss that is infinite or not a number says nothing of memorization. It stays out of the bank, which would
otherwise never recover, and is kept, so that the mean shows it as `losses.mean()` would.
"""

from collections.abc import Iterable
from typing import Literal, Self

import torch
from torch import Tensor, nn

from iet_agc.runtime import distributed

__all__ = ["AntiGradientControl", "folded", "mean_of_kept"]

#: `skip_below="auto"` skips what is so many standard deviations of log loss under the bank: of ordinary samples 40 %,
#: where log losses are normal and the bank is their median. Of 0.25, 0.5, 1 and 2 it was the best on a board of digits.
_DEVIATIONS = 0.25

#: Where the squared standard deviation of log losses starts: wide, so that less is skipped until it is known.
_UNKNOWN_SPREAD = 1.0


def mean_of_kept(losses: Tensor, keep: Tensor, total: Tensor | None = None) -> Tensor:
    """Mean of the kept losses, without leaving the device.

    Args:
        losses: per-sample losses, float (B,).
        keep: which of them count, bool (B,).
        total: by how many to divide, integer (); by default as many as are kept here. A replica
            that holds a part of a batch passes the number kept in the whole batch.

    Returns:
        0-dim tensor, differentiable, of the dtype of `losses`; float16 and bfloat16 are added and divided in float32,
        so that only a mean that does not fit overflows. An exact zero with a zero gradient if nothing is kept.

    Examples:
        >>> losses, keep = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([True, True, False])
        >>> float(mean_of_kept(losses, keep))
        1.5
        >>> float(mean_of_kept(losses, ~keep, torch.tensor(2)))  # of two kept in the whole batch
        3.0
    """
    total = keep.sum() if total is None else total
    return (_sum_of_kept(losses, keep) / total.clamp(min=1)).to(losses.dtype)


class AntiGradientControl(nn.Module):
    """The loss bank of one learner, and the decision that it leads to.

    Drop-in for any training loop that has one loss per sample:

        >>> agc = AntiGradientControl(num_timesteps=1000, skip_below=0.5, decay=0.8)
        >>> losses, timesteps = torch.tensor([0.9, 0.1]), torch.tensor([7, 7])
        >>> float(agc(losses, timesteps))  # an empty bank skips nothing
        0.5
        >>> agc.keep(torch.tensor([0.09, 0.01]), timesteps).tolist()
        [True, False]

    What to know of it:

    - Times that are continuous, t of flow matching or sigma of EDM, need bins: see `for_times`.
    - Every call of `forward` or `update` changes the bank, in `eval()` and under `torch.no_grad()` as well. To validate
      without that, call `keep` and `mean_of_kept` only.
    - Loss weights that depend on the timestep alone, such as min-SNR's or those between epsilon- and v-prediction,
      scale a loss and the bank at its timestep alike: they change no decision. Give `losses` with them, and the mean
      is weighted as it was; the bank is then in their unit, so that they must stay the same over the run.
    - Of several processes each has a bank of its own and divides by the number that it keeps itself, unless
      `rows_per_rank` says that they are one batch.
    - Micro-batches of one optimizer step (gradient accumulation) are one batch by `accumulate` and `finish`.
    - Where all of a batch is skipped, loss and gradient are zero; an optimizer with momentum or weight decay moves
      all the same.
    - The state dict holds what was learnt: the bank, the edges of bins, the spread of "auto". `skip_below`, `decay` and
      `rows_per_rank` are those of the constructor.

    Args:
        num_timesteps: how many timesteps the noise schedule has.
        skip_below: a sample is skipped when its loss is under this share of the bank. 0 skips
            nothing; 0.5 is the paper's setting for CIFAR and AFHQ, 0.8 the one for Stable Diffusion.
            "auto" finds it at each timestep from the spread of the losses there: exp(-s / 4), where s^2 is a running
            mean of log(l / bank)^2 over the losses above the bank, which memorized samples are not among. It keeps
            (1 + decay) / 2 of itself when one comes in, and starts at 1: that is 0.78 of the bank.
        decay: how much of the bank stays when one loss comes in; 0.8 in the paper.
        rows_per_rank: None, or the most rows that one process of the default process group has in a batch: then the
            batch is that of all processes, rank after rank. See `forward`.

    Attributes:
        mean_loss: the bank, float32 (num_timesteps,), a buffer. It starts at zero and is not
            corrected for that, so the first visit of a timestep skips nothing.
        spread: s^2 of "auto", float32 (num_timesteps,), a buffer; else None.
        edges: of the bins of `for_times`, float32 (num_timesteps + 1,), a buffer; else None.
    """

    skip_below: float | Literal["auto"]
    mean_loss: Tensor
    spread: Tensor | None
    edges: Tensor | None

    def __init__(
        self,
        num_timesteps: int = 1000,
        skip_below: float | Literal["auto"] = 0.5,
        decay: float = 0.8,
        *,
        rows_per_rank: int | None = None,
    ) -> None:
        super().__init__()
        if num_timesteps < 1:
            raise ValueError(f"num_timesteps must be at least 1, not {num_timesteps}")
        _check_skip_below(skip_below)
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), not {decay}")
        if rows_per_rank is not None and rows_per_rank < 1:
            raise ValueError(f"rows_per_rank must be at least 1, or None, not {rows_per_rank}")
        self.skip_below, self.decay, self.rows_per_rank = skip_below, decay, rows_per_rank
        self._accumulated: list[tuple[Tensor, Tensor, Tensor]] = []
        self.register_buffer("mean_loss", torch.zeros(num_timesteps))
        spread = torch.full((num_timesteps,), _UNKNOWN_SPREAD) if skip_below == "auto" else None
        self.register_buffer("spread", spread)
        self.register_buffer("edges", None)

    @classmethod
    def for_times(
        cls,
        edges: Tensor,
        skip_below: float | Literal["auto"] = 0.5,
        decay: float = 0.8,
        *,
        rows_per_rank: int | None = None,
    ) -> Self:
        """For continuous times: one entry of the bank per bin.

        Bin i holds the times from edges[i] on, edges[i] itself included, to below edges[i + 1]; the last bin holds its
        upper edge as well. Times below the first edge fall into the first bin, those above the last edge, and those
        that are not a number, into the last. Times are compared in float32, whatever their dtype is.

        A bin is useful when it has been visited about ten times (of its first value 0.8^10 = 0.1 is left): a hundred
        bins do for a fine-tune, where a thousand would stay empty. Bins of equal probability fill alike, whatever draws
        the times:

            >>> flow = AntiGradientControl.for_times(torch.linspace(0, 1, 101))  # t in [0, 1], uniform
            >>> edm = AntiGradientControl.for_times(torch.logspace(-2.7, 1.9, 101))  # sigma, evenly in log sigma
            >>> draws = torch.randn(100_000).sigmoid()  # logit-normal, or any other draw
            >>> even = AntiGradientControl.for_times(draws.quantile(torch.linspace(0, 1, 101)))
            >>> flow.bins(torch.tensor([0.0, 0.005, 0.5, 1.0, 1.5])).tolist()
            [0, 0, 50, 99, 99]

        Args:
            edges: of the bins, float (num_bins + 1,), finite and ascending. They are in the state dict, for a bank
                means nothing without them.
            skip_below, decay, rows_per_rank: as for the class.

        Raises:
            ValueError: edges that are none.
        """
        edges = edges.detach().float()
        if edges.ndim != 1 or len(edges) < 2 or not edges.isfinite().all() or not (edges.diff() > 0).all():
            raise ValueError(
                f"edges must be finite, ascending and at least two, (num_bins + 1,), not {tuple(edges.shape)} with "
                f"{edges.flatten()[:4].tolist()} at the start: of draws that repeat, take fewer quantiles"
            )
        agc = cls(len(edges) - 1, skip_below, decay, rows_per_rank=rows_per_rank)
        agc.edges = edges.clone()
        return agc

    def extra_repr(self) -> str:
        """What `print(agc)` shows."""
        told = f"num_timesteps={len(self.mean_loss)}, skip_below={self.skip_below}, decay={self.decay}"
        return told if self.rows_per_rank is None else f"{told}, rows_per_rank={self.rows_per_rank}"

    def bins(self, timesteps: Tensor) -> Tensor:
        """Which entry of the bank each timestep has.

        Args:
            timesteps: int64 or int32 (B,), in [0, num_timesteps); of `for_times`, any number type.

        Returns:
            integer (B,): the timesteps themselves, or the numbers of their bins.

        Raises:
            ValueError: where there are no bins, timesteps that are not integers or, on a CPU, out of range; of a GPU
                no value is waited for, and one out of range is an assertion of the device.
        """
        if self.edges is not None:
            return torch.bucketize(timesteps.to(self.edges.dtype), self.edges[1:-1], right=True)
        if timesteps.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                f"timesteps must be integers, not {timesteps.dtype}: for continuous times make the control by "
                "AntiGradientControl.for_times(edges), such as torch.linspace(0, 1, 101) for t in [0, 1]"
            )
        _check_range(timesteps, len(self.mean_loss))
        return timesteps

    @torch.no_grad()
    def keep(self, losses: Tensor, timesteps: Tensor) -> Tensor:
        """Which samples stay in the gradient. Changes nothing.

        Args:
            losses: per-sample losses, float (B,).
            timesteps: their timesteps, int64 (B,), in [0, num_timesteps); of `for_times`, times.

        Returns:
            bool (B,). Losses that are not finite in float32 are kept.
        """
        _check_batch(losses, timesteps)
        losses, bins = losses.float(), self.bins(timesteps)
        return (losses >= self._skip_below(bins) * self.mean_loss[bins]) | ~losses.isfinite()

    @torch.no_grad()
    def update(self, losses: Tensor, timesteps: Tensor) -> None:
        """Fold a batch into the bank as if its samples came one after another.

        A timestep that occurs n times in the batch, with losses l_1 .. l_n, goes to

            decay^n * bank + (1 - decay) * sum_j decay^(n - j) * l_j

        in float64, by a comparison of all pairs: no loop, no host copy, and the same bits whatever
        the order in which a device adds. Losses that are not finite in float32 count as if they were not there.
        With `rows_per_rank` the batch is that of all processes, which call this together.
        """
        _check_batch(losses, timesteps)
        losses, bins = losses.detach(), self.bins(timesteps)
        if self.rows_per_rank is not None:
            losses, bins, _ = self._of_all_ranks(losses, bins, torch.ones_like(bins, dtype=torch.bool))
        self._fold(losses, bins)

    def forward(
        self,
        losses: Tensor,
        timesteps: Tensor,
        *,
        keep: Tensor | None = None,
        whole: Tensor | None = None,
        rows: slice = slice(None),
    ) -> Tensor:
        """`keep`, mean of the kept losses, `update`.

        Of several processes, with `rows_per_rank`, each gives its own losses and timesteps, as in a loop of one. They
        call this equally often. One all-gather of detached values, of which no host waits, makes the bank the same on
        all; batches may differ in size, down to none. What comes back is the number of processes times this one's part
        of the loss: its mean over processes is the loss of the whole batch, and so are gradients that are averaged over
        processes, as DDP and FSDP do.

        A replica that knows the whole batch by itself passes it as `whole`; what replicas get back then adds up to the
        loss of the batch, and so do their gradients.

        Args:
            losses: per-sample losses, float (B,), with their graph.
            timesteps: int64 (B,); of `for_times`, times. Of a replica, those of the whole batch.
            keep: which losses count, bool (B,), where more decides than `self.keep(losses, timesteps)`, such as chance.
            whole: of a replica, the losses of the whole batch, float (B,); `losses` then holds some of them.
            rows: of a replica, which of them.

        Returns:
            0-dim tensor of the dtype of `losses`, to call `backward` on; see `mean_of_kept`. Not finite where a loss is
            not.

        Raises:
            ValueError: not one loss per sample, timesteps that are not integers, `losses` of other rows, more losses
                than `rows_per_rank`, or that and `whole`.
        """
        batch = losses.detach() if whole is None else whole.detach()
        _check_batch(batch, timesteps)
        if losses.shape != batch[rows].shape:
            raise ValueError(f"losses are {tuple(losses.shape)}, but rows of the batch {tuple(batch[rows].shape)}")
        keep, bins = self.keep(batch, timesteps) if keep is None else keep, self.bins(timesteps)
        if self.rows_per_rank is None:
            loss = mean_of_kept(losses, keep[rows], keep.sum())
            self._fold(batch, bins)
            return loss
        if whole is not None:
            raise ValueError("whole is what replicas know by themselves, rows_per_rank gathers it: give one of the two")
        batch, bins, kept = self._of_all_ranks(batch, bins, keep)
        loss = mean_of_kept(losses, keep, kept.sum())
        self._fold(batch, bins)
        return loss * distributed.size()

    def accumulate(self, losses: Tensor, timesteps: Tensor) -> Tensor:
        """Sum of the kept losses of one micro-batch. Call `backward` on it, and `finish` after the last one.

        All micro-batches are decided on by the bank as it was before the first: they are one batch. With
        `rows_per_rank` it is that of all processes. What `finish` has not ended is not in the state dict.

        Args:
            losses, timesteps: of the micro-batch; see `forward`.

        Returns:
            0-dim tensor, float32 or wider, times the number of processes. Where a framework divides losses by the
            number of micro-batches, multiply by it.

        Raises:
            ValueError: as `forward`; several processes without `rows_per_rank`, each of which would divide the same
                gradients by another number.

        Examples:
            >>> agc, weight = AntiGradientControl(10), torch.nn.Parameter(torch.ones(()))
            >>> for losses in (weight * torch.tensor([1.0, 2.0]), weight * torch.tensor([6.0])):
            ...     agc.accumulate(losses, torch.zeros(len(losses), dtype=torch.int64)).backward()
            >>> agc.finish([weight])
            >>> float(weight.grad)  # of the mean of all three
            3.0
        """
        processes = distributed.size()
        if processes > 1 and self.rows_per_rank is None:
            raise ValueError(f"accumulate on {processes} processes needs rows_per_rank, so that they divide alike")
        keep = self.keep(losses, timesteps)
        self._accumulated.append((losses.detach(), self.bins(timesteps), keep))
        return _sum_of_kept(losses, keep) * processes

    @torch.no_grad()
    def finish(self, parameters: Iterable[nn.Parameter]) -> None:
        """End an optimizer step of several micro-batches: divide gradients by the number kept, and update the bank.

        It goes before the gradient is clipped, and before or after a gradient scaler has divided it.

        Args:
            parameters: whose gradients `accumulate` led to; those without one are left alone.

        Raises:
            ValueError: nothing was accumulated; more losses than `rows_per_rank` per micro-batch.
        """
        if not self._accumulated:
            raise ValueError("nothing was accumulated: call accumulate for each micro-batch first")
        losses, bins, keep = map(torch.cat, zip(*self._accumulated, strict=True))
        if self.rows_per_rank is not None:
            losses, bins, keep = self._of_all_ranks(losses, bins, keep, len(self._accumulated))
        kept = keep.sum().clamp(min=1)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.div_(kept.to(parameter.grad.device, non_blocking=True))
        self._fold(losses, bins)
        self._accumulated = []

    def _skip_below(self, bins: Tensor) -> Tensor | float:
        """The share of the bank that a loss must have to be kept; of "auto" that of each bin."""
        if not isinstance(self.skip_below, str):
            return self.skip_below
        assert self.spread is not None
        return (-_DEVIATIONS * self.spread[bins].sqrt()).exp()

    def _of_all_ranks(
        self, losses: Tensor, bins: Tensor, keep: Tensor, batches: int = 1
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses, bins and decisions of all processes, rank after rank, each filled up to its most rows.

        A row that fills up is not kept and has a loss that is not a number, which changes no bank. All three travel as
        float64, which holds each exactly.
        """
        most = (self.rows_per_rank or 0) * batches
        if len(losses) > most:
            raise ValueError(
                f"{len(losses)} losses, but rows_per_rank {self.rows_per_rank} allows {most}: give the largest batch "
                "that a process has"
            )
        filler = losses.new_tensor([torch.nan, 0, 0], dtype=torch.float64).expand(most - len(losses), 3)
        mine = torch.cat([torch.stack([losses.double(), bins.double(), keep.double()], 1), filler])
        whole = distributed.all_rows(mine)
        return whole[:, 0], whole[:, 1].to(bins.dtype), whole[:, 2] > 0

    @torch.no_grad()
    def _fold(self, losses: Tensor, bins: Tensor) -> None:
        """Learn from a batch: the bank and, of "auto", the spread around the bank as it was before."""
        counted, bank = losses.float().isfinite(), self.mean_loss[bins]
        if self.spread is not None:
            above = counted & (bank > 0) & (losses > bank)
            deviations = torch.where(above, losses.double() / bank.double(), 1).log().square()
            self.spread.copy_(folded(self.spread, deviations, bins, above, (1 + self.decay) / 2))
        self.mean_loss.copy_(folded(self.mean_loss, losses, bins, counted, self.decay))


def folded(bank: Tensor, values: Tensor, bins: Tensor, counted: Tensor, decay: float) -> Tensor:
    """Running means after values came one after another; see `AntiGradientControl.update`.

    Args:
        bank: the means as they are, (num_bins,).
        values: float (B,), in their order; those that do not count may be anything.
        bins: which mean each belongs to, integer (B,).
        counted: which of them count, bool (B,).
        decay: how much of a mean stays when one value comes in.

    Returns:
        float64 (num_bins,); means that no value came for are as they were.
    """
    same = (bins[:, None] == bins[None, :]) & counted  # [i, j]: j counts for the timestep of i
    later = same.triu(1).sum(1)
    weights = (1 - decay) * decay ** later.double()
    fresh = torch.where(same, weights * values.double(), 0).sum(1)
    folded = decay ** same.sum(1).double() * bank[bins] + fresh
    # One sample per timestep, the last one that counts, carries the result: nothing is added twice.
    last = counted & (later == 0)
    bank = bank.double()
    result = torch.zeros_like(bank).index_add(0, bins, torch.where(last, folded, 0))
    visited = torch.zeros_like(bank).index_add(0, bins, last.double()) > 0
    return torch.where(visited, result, bank)


def _sum_of_kept(losses: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep, losses, 0).sum(dtype=torch.promote_types(losses.dtype, torch.float32))


def _check_skip_below(value: object) -> None:
    if value != "auto" and not (isinstance(value, (int, float)) and 0 <= value < float("inf")):
        raise ValueError(f"skip_below must be a finite number of at least 0, or 'auto', not {value!r}")


def _check_range(timesteps: Tensor, count: int) -> None:
    """Refuse timesteps that have no entry; a negative one would be taken for one from the end."""
    if timesteps.device.type != "cpu" or torch.compiler.is_compiling():
        return
    wrong = next((timestep for timestep in timesteps.tolist() if not 0 <= timestep < count), None)
    if wrong is not None:
        raise ValueError(f"timestep {wrong} is not in [0, {count}): give num_timesteps as the noise schedule has it")


def _check_batch(losses: Tensor, timesteps: Tensor) -> None:
    if losses.ndim != 1 or losses.shape != timesteps.shape:
        raise ValueError(
            f"losses and timesteps must both be (B,), not {tuple(losses.shape)} and {tuple(timesteps.shape)}: "
            "give one loss per sample (reduce over channels and pixels only)"
        )
