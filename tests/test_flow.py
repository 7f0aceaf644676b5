"""Flow matching: noise levels, the loss of each image and the sampler, against formulas and stock diffusers."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from iet_agc.diffusion.noise_levels import drawn_timesteps, logit_normal_density, sigma_of
from iet_agc.diffusion.process import (
    abar_of,
    add_noise,
    flow_sigmas,
    is_flow,
    make_flow_scheduler,
    make_scheduler,
    min_snr_weights,
    per_sample_loss,
    to_uint8,
)
from iet_agc.diffusion.samplers import initial_noise, sample, sampler_of, scheduler_of

SHAPE = (1, 4, 4)
CONFIGS: list[dict[str, Any]] = [{}, {"shift": 3.0}, {"shift": 3.0, "use_dynamic_shifting": True}]


def _stock(**config: Any) -> Any:
    return FlowMatchEulerDiscreteScheduler(**config)


def _toy(x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> SimpleNamespace:
    """A model that looks at an image and at its noise level, and at nothing else."""
    shifted = 0.0 if class_labels is None else class_labels[:, None, None, None] * 0.25
    return SimpleNamespace(sample=torch.tanh(0.5 * x) + t[:, None, None, None] / 2000 + shifted)


def _batch() -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    images, noise = (torch.randn(6, *SHAPE, generator=rng) for _ in range(2))
    return images, torch.tensor([0, 1, 499, 700, 998, 999]), noise


# -- noise levels


@pytest.mark.parametrize("config", CONFIGS)
def test_noise_levels_are_diffusers_table_from_its_end(config: dict[str, Any]) -> None:
    stock = _stock(**config)
    assert torch.equal(flow_sigmas(stock), stock.sigmas.flip(0))
    assert torch.equal(flow_sigmas(stock) * 1000, stock.timesteps.flip(0))
    before = flow_sigmas(stock)
    if not config.get("use_dynamic_shifting"):
        stock.set_timesteps(7)  # a sampler that is under way changes no noise level
        assert torch.equal(flow_sigmas(stock), before)


def test_ours_are_thousandths() -> None:
    assert flow_sigmas(make_flow_scheduler()).tolist() == pytest.approx([(t + 1) / 1000 for t in range(1000)])


def test_a_noisy_image_and_its_timestep_are_those_of_diffusers() -> None:
    images, timesteps, noise = _batch()
    stock = _stock(shift=3.0)
    noisy, at, target = add_noise(stock, images, timesteps, noise)
    assert torch.equal(at, stock.timesteps[999 - timesteps])
    assert torch.equal(noisy, stock.scale_noise(images, at, noise))  # pyright: ignore[reportArgumentType]
    assert torch.equal(target, noise - images)


def test_the_straight_path_leads_back_to_the_image() -> None:
    images, timesteps, noise = _batch()
    noisy, at, direction = add_noise(make_flow_scheduler(), images, timesteps, noise)
    torch.testing.assert_close(noisy - at[:, None, None, None] / 1000 * direction, images, atol=1e-5, rtol=0)


def test_the_loss_of_each_image_by_hand() -> None:
    images, timesteps, noise = _batch()
    losses = per_sample_loss(_toy, make_flow_scheduler(), images, timesteps, noise)
    for x, t, e, loss in zip(images.double(), timesteps.tolist(), noise.double(), losses.tolist(), strict=True):
        sigma = (t + 1) / 1000
        answer = torch.tanh(0.5 * ((1 - sigma) * x + sigma * e)) + sigma / 2
        assert loss == pytest.approx(float((e - x - answer).square().mean()), rel=1e-5)


def test_abar_is_that_of_as_much_noise_beside_the_image() -> None:
    sigmas = flow_sigmas(make_flow_scheduler()).double()
    torch.testing.assert_close(sigma_of(abar_of(make_flow_scheduler()))[:-1], (sigmas / (1 - sigmas))[:-1])
    assert abar_of(make_flow_scheduler())[-1] == 0
    scheduler = make_scheduler()
    assert abar_of(scheduler) is scheduler.alphas_cumprod


def test_what_is_for_noise_is_refused() -> None:
    images, timesteps, noise = _batch()
    with pytest.raises(ValueError, match="for models that predict noise, not v or a flow"):
        per_sample_loss(_toy, make_flow_scheduler(), images, timesteps, noise, target=noise)
    with pytest.raises(ValueError, match="min-SNR"):
        min_snr_weights(make_flow_scheduler(), 5.0)


# -- logit-normal timesteps


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (0.7, 0.5)])
def test_timesteps_are_logit_normal(mean: float, deviation: float) -> None:
    """Against the sigmoid of normal draws, as training scripts make them, and the normal distribution of scipy."""
    from scipy.stats import norm

    density = logit_normal_density(1000, mean, deviation)
    assert float(density.sum()) == pytest.approx(1)
    assert float(density[300]) == pytest.approx(
        float(norm.cdf(torch.logit(torch.tensor(0.301)), mean, deviation))
        - float(norm.cdf(torch.logit(torch.tensor(0.3)), mean, deviation)),
        rel=1e-3,
    )
    rng = torch.Generator().manual_seed(0)
    drawn = drawn_timesteps(density, torch.rand(40_000, generator=rng, dtype=torch.float64))
    literal = (torch.sigmoid(mean + deviation * torch.randn(40_000, generator=rng)) * 1000).long()
    for share in (0.1, 0.5, 0.9):
        assert float(drawn.double().quantile(share)) == pytest.approx(float(literal.double().quantile(share)), abs=12)


def test_without_a_mean_it_is_symmetric_and_highest_in_the_middle() -> None:
    density = logit_normal_density(1000, 0.0, 1.0)
    torch.testing.assert_close(density, density.flip(0), rtol=1e-6, atol=1e-15)
    assert int(density.argmax()) in (499, 500)


# -- the sampler


def _literal(seeds: range, steps: int, labels: list[int] | None = None, **config: Any) -> Tensor:
    """A loop with stock diffusers, one image at a time."""
    drawn = []
    for place, seed in enumerate(seeds):
        scheduler = _stock(**config)
        scheduler.set_timesteps(steps)
        image = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(seed))
        label = None if labels is None else torch.tensor([labels[place]])
        for t in scheduler.timesteps:
            image = scheduler.step(_toy(image, t[None], label).sample, t, image).prev_sample
        drawn.append(to_uint8(image))
    return torch.cat(drawn)


@pytest.mark.parametrize("config", CONFIGS[:2])
def test_images_are_those_of_a_loop_with_stock_diffusers(config: dict[str, Any]) -> None:
    scheduler = _stock(**config)
    assert torch.equal(sample(_toy, scheduler, range(5, 9), SHAPE, 6), _literal(range(5, 9), 6, **config))
    assert len(scheduler.timesteps) == 1000  # left as it is
    labels = [2, 0, 1, 2]
    ours = sample(_toy, scheduler, range(5, 9), SHAPE, 6, labels=labels)
    assert torch.equal(ours, _literal(range(5, 9), 6, labels, **config))
    assert not torch.equal(ours, sample(_toy, scheduler, range(5, 9), SHAPE, 6))


def test_an_image_depends_on_its_seed_alone() -> None:
    together = sample(_toy, make_flow_scheduler(), range(40), SHAPE, 3)
    assert torch.equal(together[33:34], sample(_toy, make_flow_scheduler(), [33], SHAPE, 3))
    assert not torch.equal(together[33], together[34])


def test_of_a_single_point_all_paths_end_there() -> None:
    """The flow of one image x is known, (x_t - x) / sigma: Euler steps follow it without an error."""
    x = torch.linspace(-0.9, 0.9, 16).reshape(1, *SHAPE)

    def exact(noisy: Tensor, t: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=(noisy - x) / (t[:, None, None, None] / 1000))

    assert torch.equal(sample(exact, make_flow_scheduler(), range(3), SHAPE, 5), to_uint8(x).expand(3, -1, -1, -1))
    assert not torch.equal(to_uint8(initial_noise([0], SHAPE)), to_uint8(x))


def test_a_sampler_is_that_of_its_schedule() -> None:
    assert (sampler_of(make_flow_scheduler()), sampler_of(make_scheduler())) == ("flow", "ddim")
    assert is_flow(scheduler_of(make_flow_scheduler(), "flow", 3))
    with pytest.raises(ValueError, match="sampler 'ddim' is not for a FlowMatch"):
        scheduler_of(make_flow_scheduler(), "ddim", 3)
    with pytest.raises(ValueError, match="sampler 'flow' is not for a DDIM"):
        scheduler_of(make_scheduler(), "flow", 3)
