"""Stopped and started again by other people's checkpoints, a loop ends with the same weights and bank, bit by bit."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from iet_agc import AntiGradientControl

STEPS, HALF = 8, 4


def _control() -> AntiGradientControl:
    """With everything that one can learn: a bank, the edges of bins, a spread."""
    agc = AntiGradientControl.for_times(torch.linspace(0, 1, 5), "auto", 0.5)
    assert agc.spread is not None
    agc.spread.fill_(1e-3)  # so that samples are skipped from the second step on
    return agc


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 3))

    def forward(self, features: Tensor) -> Tensor:
        return (features @ self.weight).square()


def _batch(step: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(step)
    return torch.rand(16, 3, generator=rng), torch.rand(16, generator=rng)


class _Loop:
    """A loop of plain PyTorch."""

    def __init__(self) -> None:
        self.model, self.agc = _Model(), _control()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)

    def run(self, steps: range) -> None:
        for step in steps:
            features, times = _batch(step)
            self.optimizer.zero_grad()
            self.agc(self.model(features), times).backward()
            self.optimizer.step()

    def state(self) -> dict[str, Tensor]:
        return {**self.model.state_dict(), **self.agc.state_dict()}


def _check(resumed: Callable[[_Loop, _Loop], None]) -> None:
    """Whether a loop that `resumed` has moved into a fresh one goes on as one that never stopped."""
    whole, first, second = _Loop(), _Loop(), _Loop()
    whole.run(range(STEPS))
    features, times = _batch(STEPS)
    assert not whole.agc.keep(whole.model(features), times).all()  # the condition under test
    first.run(range(HALF))
    resumed(first, second)
    second.run(range(HALF, STEPS))
    assert {*whole.state()} == {"weight", "mean_loss", "spread", "edges"}
    assert all(torch.equal(second.state()[name], tensor) for name, tensor in whole.state().items())


def test_that_check_can_fail() -> None:
    def without_the_bank(first: _Loop, second: _Loop) -> None:
        second.model.load_state_dict(first.model.state_dict())

    with pytest.raises(AssertionError):
        _check(without_the_bank)


def test_a_plain_state_dict(tmp_path: Path) -> None:
    def resumed(first: _Loop, second: _Loop) -> None:
        torch.save({"model": first.model.state_dict(), "agc": first.agc.state_dict()}, tmp_path / "checkpoint.pt")
        state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        second.model.load_state_dict(state["model"])
        second.agc.load_state_dict(state["agc"])

    _check(resumed)


def test_distributed_checkpoint(tmp_path: Path) -> None:
    """A control is `Stateful` as it is."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.stateful import Stateful

    def resumed(first: _Loop, second: _Loop) -> None:
        assert isinstance(first.agc, Stateful)
        checkpoint.save({"model": first.model, "agc": first.agc}, checkpoint_id=tmp_path / "checkpoint")
        checkpoint.load({"model": second.model, "agc": second.agc}, checkpoint_id=tmp_path / "checkpoint")

    _check(resumed)


def test_accelerate(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")

    def resumed(first: _Loop, second: _Loop) -> None:
        for loop, action in ((first, "save_state"), (second, "load_state")):
            accelerator = accelerate.Accelerator(cpu=True)
            model, loop.optimizer = accelerator.prepare(loop.model, loop.optimizer)
            assert model is loop.model
            accelerator.register_for_checkpointing(loop.agc)
            getattr(accelerator, action)(str(tmp_path / "checkpoint"))
        assert (tmp_path / "checkpoint" / "custom_checkpoint_0.pkl").exists()

    _check(resumed)


def test_lightning(tmp_path: Path) -> None:
    """As an attribute of the module it is in the module's checkpoint."""
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.agc = _Model(), _control()

        def training_step(self, batch: Tensor, number: int) -> Tensor:
            features, times = _batch(self.global_step)
            return self.agc(self.model(features), times)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.model.parameters(), lr=0.05)

    def fitted(steps: int, resume: Path | None = None) -> nn.Module:
        trainer = lightning.Trainer(
            max_steps=steps,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = Module()
        one_epoch = torch.utils.data.DataLoader(range(HALF), batch_size=None)  # pyright: ignore[reportArgumentType]
        trainer.fit(module, one_epoch, ckpt_path=resume)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return module

    plain = _Loop()
    plain.run(range(STEPS))
    fitted(HALF)
    resumed = fitted(STEPS, tmp_path / f"{HALF}.ckpt")
    expected = {"model.weight": plain.model.weight} | {f"agc.{n}": t for n, t in plain.agc.state_dict().items()}
    assert {*resumed.state_dict()} == {*expected}
    assert all(torch.equal(resumed.state_dict()[name], tensor) for name, tensor in expected.items())
