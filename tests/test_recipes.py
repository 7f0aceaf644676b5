"""The README's recipe for micro-batches, run as it stands: AGC on the whole batch; and what happens without."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from iet_agc import AntiGradientControl
from tests.processes import in_processes

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BATCH, STEPS = 24, 8


def recipe(mark):
    """The one block of Python in the README that holds these words."""
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if mark in block]
    return block


class Noted(AntiGradientControl):
    """Writes down what it decided."""

    def __init__(self):
        super().__init__(num_timesteps=4, skip_below=1.0)
        self.decisions = []

    def keep(self, losses, timesteps):
        keep = super().keep(losses, timesteps)
        self.decisions.append(keep)
        return keep


def batches():
    rng = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        inputs = torch.randn(BATCH, 5, generator=rng) * torch.rand(BATCH, 1, generator=rng)
        yield inputs, torch.randint(4, (BATCH,), generator=rng)


def losses_of(model, rows):
    return (model(rows) - 0.3).square().mean(1)


def fresh():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 5))
    return model, torch.optim.SGD(model.parameters(), lr=0.05), Noted()


def gradients(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.fixture(scope="module")
def whole():
    """One process, the whole batch at once: decisions (steps, B), gradients of every step, the bank."""
    model, optimizer, agc = fresh()
    found = []
    for inputs, timesteps in batches():
        optimizer.zero_grad()
        agc(losses_of(model, inputs), timesteps).backward()
        found.append(gradients(model))
        optimizer.step()
    decisions = torch.stack(agc.decisions)
    assert 0.1 < (~decisions).float().mean() < 0.8  # the condition under test: much is skipped, and much is not
    return decisions, torch.stack(found), agc.mean_loss


def assert_like(whole, decisions, found, bank):
    assert torch.equal(decisions, whole[0])
    torch.testing.assert_close(found, whole[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(bank, whole[2], rtol=1e-5, atol=1e-7)


def on_ranks(count, call, out):
    """Train in so many processes by DDP, each on its rows; leave what each decided, its gradients and its bank."""

    def action():
        model, optimizer, agc = fresh()
        replica, found, rank = DistributedDataParallel(model), [], torch.distributed.get_rank()
        for inputs, timesteps in batches():
            optimizer.zero_grad()
            losses = losses_of(replica, inputs.chunk(count)[rank])
            call(agc, losses, timesteps.chunk(count)[rank]).backward()
            found.append(gradients(model))
            optimizer.step()
        torch.save((torch.stack(agc.decisions), torch.stack(found), agc.mean_loss), out / f"{rank}.pt")

    in_processes(count, action)
    return [torch.load(out / f"{rank}.pt") for rank in range(count)]


def test_every_rank_decides_by_a_bank_of_its_own_unless_they_are_one_batch(tmp_path, whole):
    """What the README says; where they are one batch is in test_agc_processes.py."""
    ends = on_ranks(2, lambda agc, losses, timesteps: agc(losses, timesteps), tmp_path)
    assert not torch.equal(ends[0][2], ends[1][2])
    assert not torch.equal(torch.cat([decisions for decisions, _, _ in ends], dim=1), whole[0])


@pytest.mark.parametrize("sizes", [[8, 8, 8], [5, 19], [24]])
def test_accumulation_decides_and_descends_as_the_whole_batch(whole, sizes):
    model, optimizer, agc = fresh()
    found = []
    for inputs, timesteps in batches():
        parts = list(zip(inputs.split(sizes), timesteps.split(sizes), strict=True))
        optimizer.zero_grad()
        micro_batches = [(losses_of(model, rows), when) for rows, when in parts]
        names = {"agc": agc, "model": model, "optimizer": optimizer, "micro_batches": micro_batches}
        exec(recipe("accumulate"), names)
        found.append(gradients(model))
    decided = torch.cat(agc.decisions).reshape(STEPS, BATCH)
    assert_like(whole, decided, torch.stack(found), agc.mean_loss)


def test_micro_batches_by_themselves_are_another_gradient(whole):
    model, _, agc = fresh()
    inputs, timesteps = next(batches())
    parts = zip(inputs.split([5, 19]), timesteps.split([5, 19]), strict=True)
    for rows, when in parts:
        (agc(losses_of(model, rows), when) / 2).backward()
    assert not torch.allclose(gradients(model), whole[1][0], rtol=0.01)
