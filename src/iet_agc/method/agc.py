"""Anti-Gradient Control: leave out of the gradient what the model already knows too well.

A very low training loss is the mark of a memorized image. Each learner keeps a *loss bank*, the
running mean of its loss at each timestep, and skips the samples that fall far under it:

    keep_i  = l_i >= skip_below * bank[t_i]                       (bank as before this batch)
    loss    = mean of the kept l_i
    bank[t] = decay * bank[t] + (1 - decay) * l_i                 (every i, in batch order)

Source: Liu et al., ECCV 2024 (arXiv 2407.15328), section 3.3; `skip_below` is 1 / `mem_ratio` of
the authors' code.

A loss that is infinite or not a number says nothing of memorization. It stays out of the bank, which would
otherwise never recover, and is kept, so that the mean shows it as `losses.mean()` would.
"""

import torch
from torch import Tensor, nn

__all__ = ["AntiGradientControl", "mean_of_kept"]


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
    wide = torch.promote_types(losses.dtype, torch.float32)
    return (torch.where(keep, losses, 0).sum(dtype=wide) / total.clamp(min=1)).to(losses.dtype)


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

    - Every call of `forward` or `update` changes the bank, in `eval()` and under `torch.no_grad()` as well. To validate
      without that, call `keep` and `mean_of_kept` only.
    - Of several processes (DDP) each has a bank of its own, and of several micro-batches (gradient accumulation) each
      divides by the number that it keeps itself: neither is AGC on the whole batch. Processes gather detached losses
      and timesteps and pass them as `whole`; micro-batches decide once, divide by the number kept in all, and update
      once: both are written out in README.md.
    - Where all of a batch is skipped, loss and gradient are zero; an optimizer with momentum or weight decay moves
      all the same.
    - The state dict holds the bank only. `skip_below` and `decay` are those of the constructor.
    - Timesteps are integers. Continuous times are put into bins, of t in [0, 1]:
      `(t * num_timesteps).long().clamp(max=num_timesteps - 1)`.

    Args:
        num_timesteps: how many timesteps the noise schedule has.
        skip_below: a sample is skipped when its loss is under this share of the bank. 0 skips
            nothing; 0.5 is the paper's setting for CIFAR and AFHQ, 0.8 the one for Stable Diffusion.
        decay: how much of the bank stays when one loss comes in; 0.8 in the paper.

    Attributes:
        mean_loss: the bank, float32 (num_timesteps,), a buffer. It starts at zero and is not
            corrected for that, so the first visit of a timestep skips nothing.
    """

    mean_loss: Tensor

    def __init__(self, num_timesteps: int = 1000, skip_below: float = 0.5, decay: float = 0.8) -> None:
        super().__init__()
        if num_timesteps < 1:
            raise ValueError(f"num_timesteps must be at least 1, not {num_timesteps}")
        if not 0 <= skip_below < float("inf"):
            raise ValueError(f"skip_below must be a finite number of at least 0, not {skip_below}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), not {decay}")
        self.skip_below = skip_below
        self.decay = decay
        self.register_buffer("mean_loss", torch.zeros(num_timesteps))

    def extra_repr(self) -> str:
        """What `print(agc)` shows."""
        return f"num_timesteps={len(self.mean_loss)}, skip_below={self.skip_below}, decay={self.decay}"

    @torch.no_grad()
    def keep(self, losses: Tensor, timesteps: Tensor) -> Tensor:
        """Which samples stay in the gradient. Changes nothing.

        Args:
            losses: per-sample losses, float (B,).
            timesteps: their timesteps, int64 (B,), in [0, num_timesteps).

        Returns:
            bool (B,). Losses that are not finite in float32 are kept.
        """
        _check_batch(losses, timesteps)
        losses = losses.float()
        return (losses >= self.skip_below * self.mean_loss[timesteps]) | ~losses.isfinite()

    @torch.no_grad()
    def update(self, losses: Tensor, timesteps: Tensor) -> None:
        """Fold a batch into the bank as if its samples came one after another.

        A timestep that occurs n times in the batch, with losses l_1 .. l_n, goes to

            decay^n * bank + (1 - decay) * sum_j decay^(n - j) * l_j

        in float64, by a comparison of all pairs: no loop, no host copy, and the same bits whatever
        the order in which a device adds. Losses that are not finite in float32 count as if they were not there.
        """
        _check_batch(losses, timesteps)
        counted = losses.float().isfinite()
        same = (timesteps[:, None] == timesteps[None, :]) & counted  # [i, j]: j counts for the timestep of i
        later = same.triu(1).sum(1)
        weights = (1 - self.decay) * self.decay ** later.double()
        fresh = torch.where(same, weights * losses.double(), 0).sum(1)
        folded = self.decay ** same.sum(1).double() * self.mean_loss[timesteps] + fresh
        # One sample per timestep, the last one that counts, carries the result: nothing is added twice.
        last = counted & (later == 0)
        bank = self.mean_loss.double()
        result = torch.zeros_like(bank).index_add(0, timesteps, torch.where(last, folded, 0))
        visited = torch.zeros_like(bank).index_add(0, timesteps, last.double()) > 0
        self.mean_loss.copy_(torch.where(visited, result, bank))

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

        A replica that has some rows of a batch passes its own losses, with their graph, and what is known of the whole
        batch; what replicas get back then adds up to the loss of the batch, and so do their gradients.

        Args:
            losses: per-sample losses, float (B,), with their graph.
            timesteps: int64 (B,).
            keep: which losses count, bool (B,), where more decides than `self.keep(losses, timesteps)`, such as chance.
            whole: of a replica, the losses of the whole batch, float (B,); `losses` then holds some of them.
            rows: of a replica, which of them.

        Returns:
            0-dim tensor of the dtype of `losses`, to call `backward` on; see `mean_of_kept`. Not finite where a loss is
            not.

        Raises:
            ValueError: not one loss per sample, timesteps that are not integers, or `losses` of other rows.
        """
        batch = losses.detach() if whole is None else whole.detach()
        _check_batch(batch, timesteps)
        if losses.shape != batch[rows].shape:
            raise ValueError(f"losses are {tuple(losses.shape)}, but rows of the batch {tuple(batch[rows].shape)}")
        keep = self.keep(batch, timesteps) if keep is None else keep
        loss = mean_of_kept(losses, keep[rows], keep.sum())
        self.update(batch, timesteps)
        return loss


def _check_batch(losses: Tensor, timesteps: Tensor) -> None:
    if losses.ndim != 1 or losses.shape != timesteps.shape:
        raise ValueError(
            f"losses and timesteps must both be (B,), not {tuple(losses.shape)} and {tuple(timesteps.shape)}: "
            "give one loss per sample (reduce over channels and pixels only)"
        )
    if timesteps.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"timesteps must be integers, not {timesteps.dtype}: put continuous times into bins, such as "
            "(t * num_timesteps).long().clamp(max=num_timesteps - 1) for t in [0, 1]"
        )
