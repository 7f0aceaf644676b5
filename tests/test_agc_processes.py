"""One batch over several gloo processes: the bank of one process on the whole batch, and its gradients behind DDP."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from iet_agc import AntiGradientControl
from iet_agc.runtime import distributed
from tests.processes import in_processes

import_module("torch._dynamo")  # DDP loads it: once here, in place of once in each process

NUM_TIMESTEPS, STEPS = 7, 4

#: Rows of each rank in every step, and what is skipped.
CASES: list[tuple[tuple[int, ...], float | Literal["auto"]]] = [((6, 6), 0.9), ((5, 0), 0.9), ((4, 1, 6), "auto")]


class _Model(nn.Module):
    """A loss per sample, some of them far below the others."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 3, dtype=torch.float64))

    def forward(self, features: Tensor) -> Tensor:
        return (features @ self.weight).square()


def _batch(step: int, size: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(step)
    features = torch.rand(size, 3, generator=rng, dtype=torch.float64)
    features[::3] *= 0.3
    return features, torch.randint(NUM_TIMESTEPS, (size,), generator=rng)


def _trained(
    model: nn.Module, agc: AntiGradientControl, sizes: Sequence[int], mine: slice, parts: int
) -> dict[str, Tensor]:
    """A few steps of plain SGD on some rows of every batch, in some micro-batches; what comes of it."""
    losses: list[Tensor] = []
    for step in range(STEPS):
        features, timesteps = (each[mine] for each in _batch(step, sum(sizes)))
        model.zero_grad()
        if parts == 1:
            loss = agc(model(features), timesteps)
            loss.backward()
            losses.append(loss.detach())
        else:
            for rows in torch.arange(len(features)).tensor_split(parts):
                agc.accumulate(model(features[rows]), timesteps[rows]).backward()
            agc.finish(model.parameters())
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.data -= 0.05 * parameter.grad
    weight = next(iter(model.parameters())).detach()
    return {"weight": weight, "bank": agc.mean_loss, "losses": torch.stack(losses or [torch.zeros(())])}


def _control(skip_below: float | Literal["auto"], rows_per_rank: int | None = None) -> AntiGradientControl:
    """With a bank that has seen something, so that samples are skipped from the first step on."""
    agc = AntiGradientControl(NUM_TIMESTEPS, skip_below, rows_per_rank=rows_per_rank)
    agc.mean_loss.fill_(1.0)
    if agc.spread is not None:
        agc.spread.fill_(0.01)
    return agc


def _of_one_rank(sizes: Sequence[int], out: Path, parts: int, skip_below: float | Literal["auto"]) -> None:
    rank = distributed.rank()
    mine = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    agc = _control(skip_below, max(sizes))
    model = DistributedDataParallel(_Model())
    torch.save(_trained(model, agc, sizes, mine, parts), out / f"{rank}.pt")


@pytest.mark.parametrize(("sizes", "skip_below"), CASES)
def test_it_is_the_whole_batch_of_one_process(
    sizes: tuple[int, ...], skip_below: float | Literal["auto"], tmp_path: Path
) -> None:
    in_processes(len(sizes), lambda: _of_one_rank(sizes, tmp_path, 1, skip_below))
    features, timesteps = _batch(0, sum(sizes))
    assert 0 < _control(skip_below).keep(_Model()(features), timesteps).sum() < sum(sizes)  # the condition under test
    expected = _trained(_Model(), _control(skip_below), sizes, slice(None), 1)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(sizes))]
    for found in ranks:
        assert torch.equal(found["bank"], ranks[0]["bank"])
        torch.testing.assert_close(found["weight"], expected["weight"], rtol=1e-12, atol=0)
        torch.testing.assert_close(found["bank"], expected["bank"], rtol=1e-6, atol=0)
    mean = torch.stack([found["losses"] for found in ranks]).mean(0)  # as DDP takes it of gradients
    torch.testing.assert_close(mean, expected["losses"], rtol=1e-12, atol=0)


def test_the_bank_is_bitwise_that_of_one_process(tmp_path: Path) -> None:
    """Of the same losses: float32, two batches a rank of which one is not full."""

    def of_one_rank() -> None:
        agc, rank = AntiGradientControl(NUM_TIMESTEPS, rows_per_rank=5), distributed.rank()
        for step, rows in enumerate((slice(0, 5), slice(5, 8)) if rank == 0 else (slice(8, 13), slice(13, 18))):
            agc(losses[rows], timesteps[rows]) if step else agc.update(losses[rows], timesteps[rows])
        torch.save(agc.mean_loss, tmp_path / f"{rank}.pt")

    rng = torch.Generator().manual_seed(3)
    losses, timesteps = torch.rand(18, generator=rng), torch.randint(NUM_TIMESTEPS, (18,), generator=rng)
    losses[2] = torch.nan
    in_processes(2, of_one_rank)
    alone = AntiGradientControl(NUM_TIMESTEPS)
    for rows in ([0, 1, 2, 3, 4, 8, 9, 10, 11, 12], [5, 6, 7, 13, 14, 15, 16, 17]):
        alone.update(losses[rows], timesteps[rows])
    for rank in range(2):
        assert torch.equal(torch.load(tmp_path / f"{rank}.pt"), alone.mean_loss)


def test_micro_batches_of_several_processes_are_one_batch(tmp_path: Path) -> None:
    sizes = (3, 7)
    in_processes(len(sizes), lambda: _of_one_rank(sizes, tmp_path, 3, 0.9))
    expected = _trained(_Model(), _control(0.9), sizes, slice(None), 1)
    for rank in range(len(sizes)):
        found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found["weight"], expected["weight"], rtol=1e-12, atol=0)
        torch.testing.assert_close(found["bank"], expected["bank"], rtol=1e-6, atol=0)


def test_without_rows_per_rank_each_has_a_bank_of_its_own() -> None:
    def of_one_rank() -> None:
        agc, rank = AntiGradientControl(2), distributed.rank()
        agc(torch.ones(1 + rank), torch.full((1 + rank,), rank))  # of unlike sizes: nothing is gathered
        assert (agc.mean_loss > 0).tolist() == [rank == 0, rank == 1]
        with pytest.raises(ValueError, match="accumulate on 2 processes needs rows_per_rank"):
            agc.accumulate(torch.ones(1), torch.zeros(1, dtype=torch.int64))

    in_processes(2, of_one_rank)


def test_chance_that_each_rank_draws_itself_counts() -> None:
    def of_one_rank() -> None:
        agc, rank = AntiGradientControl(1, rows_per_rank=2), distributed.rank()
        losses, chosen = torch.tensor([1.0, 3.0]) + 10 * rank, torch.tensor([rank == 0, True])
        part = agc(losses, torch.zeros(2, dtype=torch.int64), keep=chosen)
        assert part.item() == pytest.approx(2 * ([4.0, 13.0][rank] / 3))

    in_processes(2, of_one_rank)


def test_one_process_needs_nothing_of_this() -> None:
    """The same settings in a run that was not started by torchrun."""
    agc, plain = AntiGradientControl(3, rows_per_rank=4), AntiGradientControl(3)
    losses, timesteps = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 0, 2])
    assert torch.equal(agc(losses, timesteps), plain(losses, timesteps))
    assert torch.equal(agc.mean_loss, plain.mean_loss)


def test_more_rows_than_were_told_are_refused_and_change_nothing() -> None:
    agc, losses, timesteps = AntiGradientControl(3, rows_per_rank=2), torch.ones(3), torch.zeros(3, dtype=torch.int64)
    for call in (agc, agc.update):
        with pytest.raises(ValueError, match="3 losses, but rows_per_rank 2 allows 2: give the largest batch"):
            call(losses, timesteps)
    agc.accumulate(losses, timesteps)
    with pytest.raises(ValueError, match="3 losses, but rows_per_rank 2 allows 2"):
        agc.finish([])
    with pytest.raises(ValueError, match="give one of the two"):
        agc(losses[:2], timesteps[:2], whole=losses[:2])
    assert agc.mean_loss.tolist() == [0, 0, 0]
