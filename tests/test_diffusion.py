"""The forward process from the betas, the loss of each image, and the scale of pixels."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from iet_agc.diffusion.process import NUM_TIMESTEPS, make_scheduler, per_sample_loss, to_float, to_uint8

#: abar_t in float64, from the betas and nothing else.
ABAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)


class _Pixelwise(nn.Module):
    """A denoiser that looks at one pixel at a time: weight * x + t / 1000."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, t: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=self.weight * x + t[:, None, None, None] / 1000)


def _batch(size: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(size, 3, 4, 4, generator=rng) * 2 - 1
    return images, torch.linspace(0, 999, size).long(), torch.randn(size, 3, 4, 4, generator=rng)


def _literal_loss(images: Tensor, timesteps: Tensor, noise: Tensor) -> list[float]:
    losses = []
    for x, t, e in zip(images.double(), timesteps.tolist(), noise.double(), strict=True):
        noisy = ABAR[t].sqrt() * x + (1 - ABAR[t]).sqrt() * e
        losses.append(float((e - (0.5 * noisy + t / 1000)).square().sum() / e.numel()))
    return losses


def test_add_noise_in_closed_form() -> None:
    images, timesteps, noise = _batch()
    noisy = make_scheduler().add_noise(images, noise, timesteps)  # pyright: ignore[reportArgumentType]
    abar = ABAR[timesteps][:, None, None, None]
    expected = abar.sqrt() * images.double() + (1 - abar).sqrt() * noise.double()
    assert (noisy.double() - expected).abs().max() < 2e-5


def test_schedule_is_the_papers() -> None:
    abar = make_scheduler().alphas_cumprod.double()
    assert len(abar) == NUM_TIMESTEPS == 1000
    torch.testing.assert_close(abar, ABAR, rtol=1e-5, atol=0)
    assert abar[0].item() == pytest.approx(1 - 1e-4, rel=1e-6)


def test_sampler_conventions_are_pinned() -> None:
    config = make_scheduler().config
    pinned = {
        "num_train_timesteps": 1000,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "clip_sample": True,
        "timestep_spacing": "leading",
        "steps_offset": 1,
        "set_alpha_to_one": False,
    }
    assert {name: config[name] for name in pinned} == pinned
    also = {
        "prediction_type": "epsilon",
        "clip_sample_range": 1.0,
        "thresholding": False,
        "rescale_betas_zero_snr": False,
        "trained_betas": None,
    }
    assert {name: config[name] for name in also} == also


def test_loss_of_each_image_by_hand() -> None:
    losses = per_sample_loss(_Pixelwise(), make_scheduler(), *_batch())
    assert losses.shape == (6,)
    assert losses.dtype == torch.float32
    assert losses.tolist() == pytest.approx(_literal_loss(*_batch()), rel=1e-5)


def test_a_perfect_denoiser_has_no_loss() -> None:
    images, timesteps, noise = _batch()
    losses = per_sample_loss(lambda x, t: SimpleNamespace(sample=noise), make_scheduler(), images, timesteps, noise)
    assert losses.tolist() == [0] * 6


def test_gradients_flow_to_the_model() -> None:
    model = _Pixelwise()
    per_sample_loss(model, make_scheduler(), *_batch()).mean().backward()
    assert model.weight.grad is not None
    step = 1e-3
    losses = []
    for sign in (1, -1):
        moved = _Pixelwise()
        with torch.no_grad():
            moved.weight.add_(sign * step)
            losses.append(float(per_sample_loss(moved, make_scheduler(), *_batch()).mean()))
    assert model.weight.grad.item() == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-3)


def test_a_row_does_not_know_the_others() -> None:
    images, timesteps, noise = _batch()
    whole = per_sample_loss(_Pixelwise(), make_scheduler(), images, timesteps, noise)
    for rows in ([0], [3, 1], [5, 4, 3, 2, 1, 0]):
        part = per_sample_loss(_Pixelwise(), make_scheduler(), images[rows], timesteps[rows], noise[rows])
        assert torch.equal(part, whole[rows])


def test_half_precision_predictions_are_compared_in_float32() -> None:
    images, timesteps, noise = _batch()
    model = lambda x, t: SimpleNamespace(sample=torch.zeros_like(x, dtype=torch.bfloat16))  # noqa: E731
    losses = per_sample_loss(model, make_scheduler(), images, timesteps, noise)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, noise.square().flatten(1).mean(1))


def test_it_draws_nothing() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    per_sample_loss(_Pixelwise(), make_scheduler(), *_batch())
    assert torch.equal(torch.rand(1), expected)


def test_all_pixel_values_come_back() -> None:
    values = torch.arange(256).to(torch.uint8)
    floats = to_float(values)
    assert floats.dtype == torch.float32
    assert floats[0] == -1
    assert floats[255] == 1
    assert (floats.diff() > 0).all()
    assert torch.equal(to_uint8(floats), values)
    assert torch.equal(to_uint8(floats + 0.4 / 127.5), values)  # the nearest, not the lower
    assert torch.equal(to_uint8(floats - 0.4 / 127.5), values)


def test_pixels_are_clipped() -> None:
    assert to_uint8(torch.tensor([-1.5, 1.5, -100, 100, -float("inf"), float("inf")])).tolist() == [
        0,
        255,
        0,
        255,
        0,
        255,
    ]
