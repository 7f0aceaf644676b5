"""Anti-Memorization Guidance: the paper's formula, what it does to copies, and that nothing else changes."""

import json
from dataclasses import replace

import pytest
import torch

from iet_agc.auditing.guard import Guard, make_guard
from iet_agc.data.image_set import ImageSet
from iet_agc.diffusion.guidance import fit_thresholds, guided, predicted_images
from iet_agc.diffusion.process import make_scheduler, to_float, to_uint8
from iet_agc.diffusion.samplers import sample
from iet_agc.diffusion.unet import build_unet
from iet_agc.metrics.memorization import distance_ratio
from iet_agc.runtime.errors import UserError
from iet_agc.sampling.sample_set import load_samples, sample_run
from tests.drawing import draw_samples
from tests.processes import in_processes


def noise(count: int, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 1, 8, 8), generator=rng, dtype=torch.uint8)


TRAIN, HELD_OUT = ImageSet(noise(120, 1), "train"), ImageSet(noise(199, 2), "real")
EVERYTHING = dict.fromkeys(range(1000), 2.0)  # a ratio is at most 1: every image is too similar
NOTHING = dict.fromkeys(range(1000), 0.0)


class Memorizing:
    """Predicts the nearest training image, and a little of what it sees: every image becomes a copy.

    The best denoiser of the training images would have no gradient left where it has chosen one of them.
    """

    def __init__(self) -> None:
        self.images, self.abar = to_float(TRAIN.images), make_scheduler().alphas_cumprod

    def __call__(self, noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        abar = float(self.abar[int(timesteps[0])])
        off = (noisy[:, None] - abar**0.5 * self.images).square().flatten(2).sum(2)
        clean = 0.8 * self.images[off.argmin(1)] + 0.2 * (noisy / abar**0.5).clamp(-1, 1)
        return (noisy - abar**0.5 * clean) / (1 - abar) ** 0.5


@pytest.fixture(scope="module")
def guard() -> Guard:
    return make_guard(TRAIN, HELD_OUT)


@pytest.fixture(scope="module")
def wary(guard: Guard) -> Guard:
    """One for which every image is too similar to a training image."""
    return replace(guard, cut=2.0)


@pytest.fixture(scope="module")
def unet() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_unet(8, 1, 8, (1, 2), 1, (), 0.0, 4).eval()


@pytest.mark.parametrize("is_v", [False, True])
def test_the_predictions_are_those_of_the_formula(guard: Guard, unet: torch.nn.Module, is_v: bool) -> None:
    scheduler = make_scheduler()
    scheduler.register_to_config(prediction_type="v_prediction" if is_v else "epsilon")
    abar, strength, timestep = float(scheduler.alphas_cumprod[300]), 7.0, 300
    noisy = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    timesteps = torch.full((3,), timestep)

    def predict(images: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        return unet(images, at).sample

    def eps_of(output: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        return abar**0.5 * output + (1 - abar) ** 0.5 * images if is_v else output

    x = noisy.clone().requires_grad_()
    eps = eps_of(predict(x, timesteps), x)
    clean = ((x - (1 - abar) ** 0.5 * eps) / abar**0.5).clamp(-1, 1)
    sigma = torch.zeros(())
    for one in clean:
        rounded = to_uint8(one.detach()).float() / 127.5 - 1
        off = (rounded - to_float(TRAIN.images)).square().sum((1, 2, 3))
        nearest = to_float(TRAIN.images)[off.argmin()]
        sigma = sigma - (one - nearest).square().sum() / (0.5 * off.sort().values[:50].mean())
    expected = eps.detach() + strength * (1 - abar) ** 0.5 * torch.autograd.grad(sigma, x)[0]

    with torch.inference_mode():
        found = guided(predict, scheduler, guard, EVERYTHING, strength)(noisy, timesteps)
    torch.testing.assert_close(eps_of(found, noisy), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, eps.detach(), atol=1e-3)


def test_what_is_not_similar_is_drawn_as_ever(guard: Guard, unet: torch.nn.Module) -> None:
    scheduler = make_scheduler()
    plain = sample(unet, scheduler, range(4), (1, 8, 8), 4)
    untouched = sample(
        unet, scheduler, range(4), (1, 8, 8), 4, guide=lambda predict: guided(predict, scheduler, guard, NOTHING, 50.0)
    )
    assert torch.equal(plain, untouched)


def test_an_image_does_not_depend_on_its_company(guard: Guard, unet: torch.nn.Module) -> None:
    scheduler = make_scheduler()

    def draw(seeds: list[int]) -> torch.Tensor:
        return sample(
            unet, scheduler, seeds, (1, 8, 8), 4, guide=lambda predict: guided(predict, scheduler, guard, limits, 50.0)
        )

    limits = dict.fromkeys(range(1000), 0.85)  # some are too similar, and some are not
    together = draw(list(range(40)))
    assert torch.equal(together[[3, 17, 39]], draw([3, 17, 39]))
    plain = sample(unet, scheduler, list(range(40)), (1, 8, 8), 4)
    changed = (together != plain).flatten(1).any(1)
    assert changed.any()
    assert not changed.all()


def test_a_memorizing_model_copies_less() -> None:
    """The stronger AMG is, the farther what it draws is from the image that the model would hand back."""
    guard, scheduler, model = make_guard(TRAIN, HELD_OUT), make_scheduler(), Memorizing()

    def drawn(strength: float) -> torch.Tensor:
        guide = (lambda predict: guided(model, scheduler, guard, limits, strength)) if strength else lambda _: model
        images = sample(model, scheduler, range(32), (1, 8, 8), 20, guide=guide)
        return distance_ratio(guard.neighbors(images)[0])

    limits = dict.fromkeys(range(1000), guard.cut)
    copies, some, far = drawn(0), drawn(1_000), drawn(10_000)
    assert copies.max() < 0.01
    assert some.min() > 3 * copies.max()
    assert far.min() > some.max()


def test_thresholds_are_those_of_held_out_images() -> None:
    """Of a model that predicts no noise at all, the prediction is the noisy image, scaled and clipped."""
    guard, scheduler = make_guard(TRAIN, HELD_OUT), make_scheduler()
    seen: list[torch.Tensor] = []

    def predict(images: torch.Tensor, at: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        assert labels is None
        seen.append(images)
        return torch.zeros_like(images)

    found = fit_thresholds(guard, predict, scheduler, [1, 500], 64, torch.device("cpu"))
    assert {len(rows) for rows in seen} == {64}
    late = torch.cat(seen[len(seen) // 2 :])[:199]
    ratios = distance_ratio(
        guard.neighbors(to_uint8(predicted_images(scheduler, late, 500, torch.zeros_like(late))))[0]
    )
    assert found[500] == max(guard.cut, float(ratios.sort().values[1]))  # floor(200 / 100)-th
    assert found[1] >= guard.cut


def test_the_nearest_is_mirrored_where_that_is_nearer() -> None:
    images = torch.stack([TRAIN.images[5].flip(-1), TRAIN.images[7]])
    for flips in (False, True):
        distances, found = make_guard(TRAIN, HELD_OUT, flips).neighbors(images)
        assert torch.equal(found[1], images[1])
        assert (distances[0, 0] == 0) == flips == torch.equal(found[0], images[0])


def test_a_set_is_the_same_however_it_came_about(pipeline, tmp_path, small_parts, wary: Guard) -> None:
    one = load_samples(draw_samples(pipeline, range(10), tmp_path / "one", steps=3, amg=wary))
    in_processes(2, lambda: draw_samples(pipeline, range(10), tmp_path / "two", steps=3, amg=wary))
    two = load_samples(tmp_path / "two")
    assert torch.equal(one[0].images, two[0].images)
    plain = load_samples(draw_samples(pipeline, range(10), tmp_path / "plain", steps=3))
    assert not torch.equal(one[0].images, plain[0].images)
    about = json.loads((tmp_path / "one/samples.json").read_text())
    assert about["amg"] == wary.about | {"strength": 100.0}
    with pytest.raises(UserError, match="amg"):
        draw_samples(pipeline, range(10), tmp_path / "one", steps=3)


def test_the_strength_has_an_effect(pipeline, tmp_path, wary: Guard) -> None:
    drawn = []
    for strength in (0.001, 1_000.0):
        settings = {"amg_strength": strength}
        drawn.append(
            load_samples(draw_samples(pipeline, range(8), tmp_path / str(strength), 3, amg=wary, settings=settings))[0]
        )
    with pytest.raises(UserError, match="holds another sample set"):
        draw_samples(pipeline, range(8), tmp_path / "0.001", 3, amg=wary, settings={"amg_strength": 1.0})
    assert not torch.equal(drawn[0].images, drawn[1].images)


def test_amg_is_refused_where_it_cannot_be(pipeline, tmp_path, guard: Guard) -> None:
    large = make_guard(
        ImageSet(noise(120, 1).repeat(1, 3, 1, 1), "rgb"), ImageSet(noise(199, 2).repeat(1, 3, 1, 1), "r")
    )
    for amg, given, message in (
        (large, {}, "the training images of AMG are 3 x 8 x 8, the model draws 1 x 8 x 8"),
        (guard, {"precision": "bfloat16"}, "AMG differentiates the model, which needs precision float32"),
        (None, {"amg_strength": 3}, "amg_strength has no effect without AMG"),
        (guard, {"amg_strength": 0}, "amg_strength"),
    ):
        with pytest.raises(UserError, match=message):
            sample_run(pipeline, tmp_path / "s", {"num": 4, "steps": 2, **given}, amg=amg)
    assert not (tmp_path / "s").exists()
