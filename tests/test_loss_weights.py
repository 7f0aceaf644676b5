"""Weights of the loss by timestep, and losses masked at random, against the formulas written out."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from iet_agc.diffusion.process import make_scheduler, min_snr_weights, per_sample_loss, to_float
from iet_agc.diffusion.unet import build_unet
from iet_agc.runtime.seeds import key_of
from iet_agc.training.batches import Batch, draw_batch
from iet_agc.training.loop import train
from iet_agc.training.member import Member
from iet_agc.training.pixels import Pixels
from tests.tiny_runs import CPU, assert_same, images, settings, weights

ONE = {"method__members": 1, "method__rounds": 1}


Kind = Literal["epsilon", "v_prediction"]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_weight_is_the_smaller_of_snr_and_gamma_over_what_the_error_weighs(kind: Kind) -> None:
    scheduler = DDIMScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, prediction_type=kind)
    found = min_snr_weights(scheduler, 5.0)
    for t in (0, 1, 100, 300, 999):
        abar = float(scheduler.alphas_cumprod[t].double())
        snr = abar / (1 - abar)
        assert float(found[t]) == pytest.approx(min(snr, 5) / (snr if kind == "epsilon" else snr + 1))
    assert found.max() <= 1


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_an_error_of_the_image_weighs_as_the_paper_says(kind: Kind) -> None:
    """A model that takes x + e for the image has a weighted loss of min(SNR, gamma) |e|^2."""
    scheduler = DDIMScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, prediction_type=kind)
    rng = torch.Generator().manual_seed(0)
    x, noise, error = (torch.randn(5, 1, 4, 4, generator=rng, dtype=torch.float64) for _ in range(3))
    timesteps = torch.tensor([10, 100, 200, 500, 900])
    abar = scheduler.alphas_cumprod[timesteps].double()[:, None, None, None]
    noisy, wrong = abar.sqrt() * x + (1 - abar).sqrt() * noise, x + error
    as_noise = (noisy - abar.sqrt() * wrong) / (1 - abar).sqrt()
    as_v = abar.sqrt() * as_noise - (1 - abar).sqrt() * wrong

    def model(images: Tensor, timesteps: Tensor) -> object:
        return type("Output", (), {"sample": as_noise if kind == "epsilon" else as_v})

    losses = per_sample_loss(model, scheduler, x, timesteps, noise).double()
    found = losses * min_snr_weights(scheduler, 5.0)[timesteps]
    snr = (abar / (1 - abar)).flatten()
    torch.testing.assert_close(found, snr.clamp(max=5) * error.square().flatten(1).mean(1), rtol=1e-4, atol=1e-7)


def literal(data: Tensor, of_batch: Callable[[Tensor, Batch], Tensor]) -> dict[str, Tensor]:
    """Six steps of a plain loop whose loss is that of a batch."""
    torch.manual_seed(key_of("weights", 0))
    model: nn.Module = build_unet(8, 1, 8, (1, 2), 1, (), 0.0, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    for step in range(6):
        batch = draw_batch(0, 0, step, len(data), 8, (1, 8, 8), CPU)
        losses = per_sample_loss(model, make_scheduler(), to_float(data[batch.positions]), batch.timesteps, batch.noise)
        of_batch(losses, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = 1e-3 * min(step / 3, 1)
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


def test_a_weighted_run_is_a_plain_loop_with_weights(tmp_path: Path) -> None:
    def weighted(losses: Tensor, batch: Batch) -> Tensor:
        abar = make_scheduler().alphas_cumprod.double()[batch.timesteps]
        return (losses * torch.minimum((1 - abar) / abar * 2.5, torch.ones(8)).float()).mean()

    train(settings(**ONE, method__skip_below=0.0, train__min_snr=2.5), images(), tmp_path / "run", CPU)
    found = weights(tmp_path / "run")
    for name, value in literal(images().images, weighted).items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)
    assert not torch.equal(
        weights(tmp_path / "run")["conv_in.weight"],
        literal(images().images, lambda losses, batch: losses.mean())["conv_in.weight"],
    )


def test_agc_sees_the_loss_before_its_weight() -> None:
    """With a weight of one hundredth at every timestep the bank and the decisions are those without it."""
    torch.manual_seed(0)
    initial = build_unet(8, 1, 8, (1, 2), 1, (), 0.0, 4)
    ends: list[tuple[list[float], list[bool]]] = []
    for gamma in (0.0, 1e-9):  # so small that nothing is learnt
        chosen = settings(train__min_snr=gamma, train__learning_rate=1e-12, method__skip_below=0.99)
        member = Member(0, initial, Pixels(images().images), chosen.train, chosen.method, CPU)
        member.agc.mean_loss.fill_(1.0)
        kept = [keep.tolist() for _, keep, _ in member.train(3, make_scheduler())]
        ends.append((member.agc.mean_loss.tolist(), [flag for some in kept for flag in some]))
    assert ends[0][1] == ends[1][1]
    assert set(ends[0][1]) == {True, False}
    assert ends[0][0] == pytest.approx(ends[1][0])


def test_random_skipping_is_a_bernoulli_mask_on_the_losses(tmp_path: Path) -> None:
    """sum(m l) / sum(m), with m = 1 at a rate of 1 - eta (arXiv 2602.02699)."""
    eta = 0.4

    def masked(losses: Tensor, batch: Batch) -> Tensor:
        mask = (batch.lots >= eta).float()
        assert 0 < mask.sum() < 8
        return (losses * mask).sum() / mask.sum()

    train(settings(**ONE, method__skip_below=0.0, method__random_skip=eta), images(), tmp_path / "run", CPU)
    assert_same(weights(tmp_path / "run"), literal(images().images, masked))


def test_a_mask_is_as_often_one_as_it_should_be() -> None:
    lots = torch.cat([draw_batch(0, 0, step, 40, 64, (1, 1, 1), CPU).lots for step in range(100)])
    assert float((lots >= 0.4).float().mean()) == pytest.approx(0.6, abs=0.02)
