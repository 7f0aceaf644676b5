"""Sharpness, coverage and the danger zone against loops that say the formulas again; densities of timesteps."""

import math

import pytest
import torch
from torch import Tensor

from iet_agc.diffusion.noise_levels import (
    coverage,
    danger_zone,
    drawn_timesteps,
    gap_density,
    noised,
    sharpness,
    sigma_of,
    u_shaped_density,
)
from iet_agc.diffusion.process import make_scheduler, to_float
from iet_agc.runtime.errors import UserError
from tests.image_sets import load_named


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def literal_sharpness(x: Tensor, noise: Tensor, sigma: float) -> float:
    most = []
    for image, z in zip(x, noise, strict=True):
        exponents = [-float((image + sigma * z - other).square().sum()) / (2 * sigma**2) for other in x]
        total = sum(math.exp(exponent - max(exponents)) for exponent in exponents)
        most.append(1 / total)
    return sum(most) / len(most)


def literal_coverage(x: Tensor, held_out: Tensor, noise: Tensor, sigma: float) -> float:
    d, c, found = x[0].numel(), 5, 0
    low, high = sigma * math.sqrt(d - 2 * math.sqrt(c * d)), sigma * math.sqrt(d + 2 * math.sqrt(c * d) + 2 * c)
    for image, z in zip(held_out, noise, strict=True):
        found += any(low <= float((image + sigma * z - other).norm()) <= high for other in x)
    return found / len(held_out)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0])
def test_both_are_what_the_formulas_say(sigma: float) -> None:
    x, held_out, noise = normal(9, 1, 5, 5), normal(7, 1, 5, 5, seed=1), normal(9, 1, 5, 5, seed=2)
    assert sharpness(noised(x, x, noise), sigma) == pytest.approx(literal_sharpness(x.double(), noise.double(), sigma))
    found = coverage(noised(held_out, x, noise[:7]), sigma)
    assert found == literal_coverage(x.double(), held_out.double(), noise[:7].double(), sigma)


def test_the_condition_under_test_is_not_trivial() -> None:
    x, held_out, noise = normal(9, 1, 5, 5), normal(7, 1, 5, 5, seed=1), normal(7, 1, 5, 5, seed=2)
    shares = {coverage(noised(held_out, x, noise), sigma) for sigma in (0.3, 1.0, 2.0, 4.0)}
    assert min(shares) == 0
    assert max(shares) == 1
    assert len(shares) > 2


def test_one_image_outweighs_all_without_noise_and_none_does_with_much() -> None:
    x = normal(8, 1, 4, 4)
    probe = noised(x, x, normal(8, 1, 4, 4, seed=1))
    assert sharpness(probe, 1e-4) == pytest.approx(1)
    assert sharpness(probe, 1e4) == pytest.approx(1 / 8, rel=1e-2)


def test_a_copy_shares_the_weight() -> None:
    """So that unique images are to be given."""
    x = normal(1, 1, 4, 4).repeat(4, 1, 1, 1)
    assert sharpness(noised(x, x, normal(4, 1, 4, 4, seed=1)), 0.1) == pytest.approx(1 / 4)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    train, held_out = load_named("digits", num_train=1300)
    return to_float(train.images), to_float(held_out.images)


@pytest.mark.parametrize(
    ("timestep", "sharp", "covered"),
    [(80, 0.998, 0.39), (100, 0.99, 0.71), (150, 0.91, 0.97), (200, 0.70, 1), (250, 0.47, 1)],
)
def test_on_digits(digits: tuple[Tensor, Tensor], timestep: int, sharp: float, covered: float) -> None:
    """Figures of an earlier implementation on other noise: of 1,024 and 497 images, one draw of noise each."""
    train, held_out = digits
    sigma = float(sigma_of(make_scheduler().alphas_cumprod[timestep]))
    assert sharpness(noised(train, train, normal(*train.shape)), sigma) == pytest.approx(sharp, abs=0.025)
    found = coverage(noised(held_out, train, normal(*held_out.shape)), sigma)
    assert found == pytest.approx(covered, abs=3 * 0.5 / math.sqrt(497))


def test_the_danger_zone_is_where_both_exceed_the_threshold(digits: tuple[Tensor, Tensor]) -> None:
    train, held_out = digits
    abar = make_scheduler().alphas_cumprod
    first, last = danger_zone(train, held_out, abar)
    assert 100 < first < 120
    assert 165 < last < 190
    assert danger_zone(train, held_out, abar) == (first, last)
    wider = danger_zone(train, held_out, abar, 0.7)
    assert wider[0] < first
    assert wider[1] > last
    with pytest.raises(UserError, match=r"no timestep has a sharpness and a coverage above 0\.999"):
        danger_zone(train, held_out, abar, 0.999)


# -- densities


def test_a_gap_takes_its_share_and_the_rest_is_renormalized() -> None:
    density = gap_density(1000, 80, 259, 0.05)
    assert float(density.sum()) == pytest.approx(1)
    assert density[80:260].tolist() == pytest.approx([0.05 / 1000] * 180)
    outside = torch.cat([density[:80], density[260:]])
    assert outside.tolist() == pytest.approx([(1 - 0.009) / 820] * 820)
    with pytest.raises(ValueError, match="leaves nothing"):
        gap_density(10, 0, 9, 0.5)


def test_u_is_symmetric_and_lowest_in_the_middle() -> None:
    density = u_shaped_density(1000, 4.0)
    assert float(density.sum()) == pytest.approx(1)
    torch.testing.assert_close(density, density.flip(0))
    assert (density[1:500] < density[:499]).all()
    assert float(density[0] / density[499]) == pytest.approx(math.cosh(2), rel=0.01)


def test_timesteps_are_drawn_by_the_inverse_of_the_distribution() -> None:
    density = torch.tensor([0.25, 0.0, 0.5, 0.25, 0.0], dtype=torch.float64)
    lots = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53], dtype=torch.float64)
    assert drawn_timesteps(density, lots).tolist() == [0, 0, 2, 2, 3, 3]


@pytest.mark.parametrize("density", [gap_density(1000, 80, 259, 0.0), u_shaped_density(1000, 4.0)])
def test_drawn_as_often_as_the_density_says(density: Tensor) -> None:
    count = 200_000
    lots = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = drawn_timesteps(density, lots).bincount(minlength=1000).reshape(50, 20).sum(1)
    expected = density.reshape(50, 20).sum(1) * count
    assert ((found - expected).abs() <= 5 * expected.sqrt()).all()
    assert found[4:13].sum() == 0 or density[100] > 0
