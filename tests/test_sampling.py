"""DDIM against its formula and an analytic denoiser; an image depends on its seed only."""

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor

from iet_agc.config.settings import validate
from iet_agc.diffusion import samplers
from iet_agc.diffusion.process import make_scheduler
from iet_agc.diffusion.samplers import initial_noise, rows_at_a_time, sample
from iet_agc.diffusion.unet import build_unet

#: abar_t in float64, from the betas and nothing else.
ABAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def unet() -> UNet2DModel:
    torch.manual_seed(0)
    return build_unet(8, 1, channels=8, multipliers=(1, 2), blocks=1, attention=(4,), groups=4).eval()


def _unclipped() -> DDIMScheduler:
    return DDIMScheduler.from_config(make_scheduler().config, clip_sample=False)  # pyright: ignore[reportReturnType]


# -- an analytic denoiser: for data ~ N(0, S), E[noise | x_t] = sqrt(1 - abar) (abar S + (1 - abar) I)^-1 x_t


def _gaussian_denoiser(covariance: Tensor):
    identity = torch.eye(len(covariance), dtype=torch.float64)

    def denoise(x: Tensor, t: Tensor) -> SimpleNamespace:
        abar = ABAR[int(t[0])]
        matrix = (1 - abar).sqrt() * torch.linalg.inv(abar * covariance + (1 - abar) * identity)
        return SimpleNamespace(sample=(x.flatten(1).double() @ matrix.T).view_as(x).to(x.dtype))

    return denoise


def _discretised_deviation(deviation: float, steps: int) -> float:
    """For a scalar Gaussian every DDIM step is a factor; their product is the deviation of the samples."""
    ratio = 1000 // steps
    product = 1.0
    for t in range(1 + ratio * (steps - 1), 0, -ratio):
        now, then = float(ABAR[t]), float(ABAR[max(t - ratio, 0)])
        noise = math.sqrt(1 - now) / (now * deviation**2 + 1 - now)
        image = (1 - math.sqrt(1 - now) * noise) / math.sqrt(now)
        product *= math.sqrt(then) * image + math.sqrt(1 - then) * noise
    return product


@pytest.mark.parametrize("steps", [10, 50])
def test_a_gaussian_has_the_deviation_of_the_formula(steps: int) -> None:
    deviation = 0.25
    images = sample(
        _gaussian_denoiser(deviation**2 * torch.eye(64, dtype=torch.float64)), _unclipped(), range(400), SHAPE, steps
    )
    assert (images.float() % 255 != 0).float().mean() > 0.99  # the condition under test: hardly a pixel is clipped
    values = images.double() / 127.5 - 1
    assert values.std().item() == pytest.approx(_discretised_deviation(deviation, steps), rel=0.02)
    assert values.mean().item() == pytest.approx(0, abs=0.01)


def test_more_steps_come_nearer_to_the_data() -> None:
    """50 steps lose a tenth of the deviation of such data: that is DDIM's, not an error of the code."""
    errors = [0.25 - _discretised_deviation(0.25, steps) for steps in (10, 50, 100, 500)]
    assert errors == sorted(errors, reverse=True)
    assert 0 < errors[-1] < 0.01 * 0.25


def test_a_gaussian_has_the_right_covariance() -> None:
    factor = torch.tensor(
        [[0.3, 0, 0, 0], [0.2, 0.15, 0, 0], [-0.1, 0.1, 0.2, 0], [0, 0, 0.1, 0.1]], dtype=torch.float64
    )
    covariance = factor @ factor.T
    variances, axes = torch.linalg.eigh(covariance)
    shrunk = [_discretised_deviation(float(variance) ** 0.5, 50) ** 2 for variance in variances]
    expected = axes @ torch.diag(torch.tensor(shrunk, dtype=torch.float64)) @ axes.T
    images = sample(_gaussian_denoiser(covariance), _unclipped(), range(3000), (1, 2, 2), steps=50)
    found = torch.cov((images.flatten(1).double() / 127.5 - 1).T)
    assert (found - expected).abs().max() < 0.005  # 2.5 standard errors of the largest; to the covariance it is 0.0124
    assert (found - covariance).abs().max() < 0.02


# -- an image and its seed


def test_equal_seeds_equal_images_and_others_others(unet: UNet2DModel) -> None:
    images = sample(unet, make_scheduler(), [5, 5, 6], SHAPE, steps=5)
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])
    assert images.dtype == torch.uint8
    assert images.shape == (3, *SHAPE)


def test_noise_depends_on_its_seed_only() -> None:
    noise = initial_noise([3, 1, 3, 2**32 - 1], SHAPE)
    assert noise.dtype == torch.float32
    assert torch.equal(noise[0], noise[2])
    assert torch.equal(noise[1:2], initial_noise([1], SHAPE))
    assert torch.equal(noise[3], torch.randn(SHAPE, generator=torch.Generator().manual_seed(2**32 - 1)))
    assert not torch.equal(noise[0], noise[1])


@pytest.fixture(scope="module")
def sixteen(unet: UNet2DModel) -> Tensor:
    return sample(unet, make_scheduler(), range(16), SHAPE)


def test_an_image_does_not_depend_on_order_or_company(unet: UNet2DModel, sixteen: Tensor) -> None:
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample(unet, make_scheduler(), order.tolist(), SHAPE), sixteen[order])
    company = sample(unet, make_scheduler(), [0, 100, 101, 3, 102, 103, 104, 7], SHAPE)
    assert torch.equal(company[[0, 3, 7]], sixteen[[0, 3, 7]])


@pytest.mark.parametrize("count", [1, 3, 9])
def test_an_image_does_not_depend_on_how_many_there_are(unet: UNet2DModel, sixteen: Tensor, count: int) -> None:
    """The last rows are filled up: float32 kernels round otherwise for fewer."""
    assert torch.equal(sample(unet, make_scheduler(), range(count), SHAPE), sixteen[:count])


def test_rows_depend_on_image_size_and_device_only() -> None:
    assert rows_at_a_time((3, 32, 32), "cpu") == rows_at_a_time((1, 32, 32), "cpu") == 32
    assert rows_at_a_time((3, 64, 64), "cpu") == 8
    assert rows_at_a_time((3, 32, 32), "cuda") == 512
    assert rows_at_a_time((3, 4096, 4096), "cuda") == 1


def test_the_model_always_sees_as_many_rows(unet: UNet2DModel) -> None:
    recorder = _Recorder(unet)
    sample(recorder, make_scheduler(), range(33), SHAPE, steps=1)
    assert recorder.rows == [32, 32]


def test_global_randomness_and_earlier_calls_do_not_matter(unet: UNet2DModel) -> None:
    scheduler = make_scheduler()
    first = sample(unet, scheduler, range(4), SHAPE, steps=5)
    sample(unet, scheduler, range(4), SHAPE, steps=7)
    torch.manual_seed(123)
    assert torch.equal(sample(unet, scheduler, range(4), SHAPE, steps=5), first)


def test_no_seeds_no_images(unet: UNet2DModel) -> None:
    images = sample(unet, make_scheduler(), [], SHAPE)
    assert images.shape == (0, *SHAPE)
    assert images.dtype == torch.uint8


@pytest.mark.parametrize("steps", [1, 3, 7, 500, 999, 1000])
def test_any_number_of_steps_that_the_settings_allow(steps: int) -> None:
    """With a first timestep of 1, a thousand steps would end at timestep 1000, which is not there."""
    try:
        validate({"sample": {"steps": steps}})
    except ValueError:
        return
    denoiser = lambda x, t: SimpleNamespace(sample=torch.zeros_like(x))  # noqa: E731
    assert sample(denoiser, make_scheduler(), [0], SHAPE, steps=steps).shape == (1, *SHAPE)


def test_progress_adds_up(unet: UNet2DModel) -> None:
    counts: list[float] = []
    sample(unet, make_scheduler(), range(5), SHAPE, steps=4, on_images=counts.append)
    assert sum(counts) == pytest.approx(5)


# -- the authors' DDIM, written out in float64


def _literal_step(x: Tensor, noise: Tensor, t: int, ratio: int) -> Tensor:
    """Equation 12 of Song et al. with sigma = 0; the predicted image is clipped, the noise is not."""
    now, then = ABAR[t], ABAR[max(t - ratio, 0)]
    image = ((x - (1 - now).sqrt() * noise) / now.sqrt()).clamp(-1, 1)
    return then.sqrt() * image + (1 - then).sqrt() * noise


class _Recorder:
    def __init__(self, model: UNet2DModel) -> None:
        self.model, self.calls, self.rows = model, [], []

    def __call__(self, x: Tensor, t: Tensor) -> SimpleNamespace:
        out = self.model(x, t).sample
        self.rows.append(len(x))
        self.calls.append((x[:4], int(t[0]), out[:4]))  # a batch may be filled up
        return SimpleNamespace(sample=out)


def test_every_step_is_the_authors_ddim(unet: UNet2DModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "to_uint8", lambda images: images)  # look at the images before they are rounded
    recorder = _Recorder(unet)
    final = sample(recorder, make_scheduler(), range(4), SHAPE, steps=50)
    assert [t for _, t, _ in recorder.calls] == list(range(981, 0, -20))
    assert torch.equal(recorder.calls[0][0], initial_noise(range(4), SHAPE))
    after = [x for x, _, _ in recorder.calls[1:]] + [final]
    for (x, t, noise), found in zip(recorder.calls, after, strict=True):
        assert (_literal_step(x.double(), noise.double(), t, 20) - found.double()).abs().max() < 1e-5, t
    clipped = [
        (x.double() - (1 - ABAR[t]).sqrt() * e.double()).abs().max() > ABAR[t].sqrt() for x, t, e in recorder.calls
    ]
    assert any(clipped)  # the condition under test: clipping took part


def _smooth(x: Tensor, t: Tensor) -> SimpleNamespace:
    """A denoiser of no chaos, in float64: what it is given to 1e-7 it returns to 1e-7."""
    return SimpleNamespace(sample=(torch.tanh(x.double()) + 0.1 * x.double().roll(1, -1)).to(x.dtype))


def _literal_ddim(x: Tensor) -> Tensor:
    for t in range(981, 0, -20):
        x = _literal_step(x, _smooth(x, torch.tensor([t])).sample, t, 20)
    return x


def test_all_steps_together_are_the_authors_ddim_and_diffusers_defaults_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(samplers, "to_uint8", lambda images: images)
    expected = _literal_ddim(initial_noise(range(4), SHAPE).double())
    found = sample(_smooth, make_scheduler(), range(4), SHAPE, steps=50)
    assert (found.double() - expected).abs().max() < 1e-5
    default = sample(_smooth, DDIMScheduler(1000), range(4), SHAPE, steps=50)
    assert (default.double() - expected).abs().max() > 1e-3


def test_a_unet_draws_something_else_under_diffusers_defaults(unet: UNet2DModel) -> None:
    ours, default = (sample(unet, scheduler, range(4), SHAPE) for scheduler in (make_scheduler(), DDIMScheduler(1000)))
    assert (ours.int() - default.int()).abs().max() > 2


@pytest.mark.parametrize("scheduler", [make_scheduler(), _unclipped()])
def test_images_that_are_not_finite_are_refused(scheduler: DDIMScheduler) -> None:
    """In place of black ones; one of three is enough."""

    def broken(x: Tensor, t: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=torch.where(torch.arange(len(x))[:, None, None, None] == 1, torch.nan, x))

    with pytest.raises(ArithmeticError, match="the model draws images that are not finite, though its weights are"):
        sample(broken, scheduler, range(3), SHAPE, 2)
