"""Ambient and smoothed targets, against the papers' formulas of predicted images, one image after another."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from iet_agc.config.settings import validate
from iet_agc.diffusion.process import make_scheduler, per_sample_loss, to_float
from iet_agc.diffusion.targets import ambient, nearest, smoothed
from iet_agc.diffusion.unet import build_unet
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.seeds import generator, key_of
from iet_agc.training.batches import draw_batch
from iet_agc.training.loop import train
from tests.processes import killed_after
from tests.tiny_runs import CPU, assert_ends_like, images, settings, weights

ABAR = make_scheduler().alphas_cumprod
LEVEL = 300
TIMESTEPS = [0, 120, 300, 301, 450, 700, 999]


def sigma(t: int) -> float:
    abar = float(ABAR[t].double())
    return math.sqrt((1 - abar) / abar)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Guess:
    """A model of predicted images, as one of predicted noise: 0.3 of what it sees, unscaled, and a constant."""

    def image(self, y: Tensor) -> Tensor:
        return 0.3 * y + 0.1

    def __call__(self, images: Tensor, timesteps: Tensor) -> SimpleNamespace:
        scale = ABAR.double()[timesteps].sqrt()[:, None, None, None]
        levels = torch.tensor([sigma(t) for t in timesteps.tolist()], dtype=torch.float64)[:, None, None, None]
        y = images.double() / scale
        return SimpleNamespace(sample=(y - self.image(y)) / levels)


def literal_ambient(x: Tensor, e: Tensor, n: Tensor, t: int) -> float:
    """Their loss of predicted images, over sigma^2, as the loss of predicted noise weighs it."""
    guess, s, s_n = Guess(), sigma(t), sigma(LEVEL)
    if t <= LEVEL:
        return float((guess.image(x + s * e) - x).square().mean()) / s**2
    x_n = x + s_n * n
    x_t = x_n + math.sqrt(s**2 - s_n**2) * e
    of_x_n = (s_n**2 / s**2) * x_t + (1 - s_n**2 / s**2) * guess.image(x_t)
    weight = (s**2 / (s**2 - s_n**2)) ** 2
    return weight * float((of_x_n - x_n).square().mean()) / s**2


def test_the_ambient_loss_is_that_of_the_paper() -> None:
    count = len(TIMESTEPS)
    x, e, n = (normal(count, 1, 4, 4, seed=seed) for seed in (0, 1, 2))
    timesteps = torch.tensor(TIMESTEPS)
    noise, target = ambient(e, n, timesteps, ABAR, LEVEL)
    found = per_sample_loss(Guess(), make_scheduler(), x, timesteps, noise, target=target)
    expected = [literal_ambient(x[i], e[i], n[i], t) for i, t in enumerate(TIMESTEPS)]
    assert found.tolist() == pytest.approx(expected, rel=2e-3)
    plain = per_sample_loss(Guess(), make_scheduler(), x, timesteps, e)
    assert [i for i in range(count) if float(found[i]) != float(plain[i])] == [3, 4, 5, 6]


def test_the_mean_of_the_ambient_target_is_the_noise_that_was_put_on() -> None:
    """By regression: target on noise has slope 1, whatever part of the noise is fixed."""
    e, n = normal(200_000, 1, 1, 1, seed=1), normal(200_000, 1, 1, 1, seed=2)
    for t in (400, 999):
        noise, target = ambient(e, n, torch.full((200_000,), t), ABAR, LEVEL)
        assert float(noise.square().mean()) == pytest.approx(1, abs=0.02)
        assert float((noise * target).mean() / noise.square().mean()) == pytest.approx(1, abs=0.02)


def literal_smoothed(x: list[Tensor], i: int, near: list[int], e: Tensor, t: int) -> Tensor:
    """The predicted noise of the mean of the neighbours."""
    s, s_collapse = sigma(t), sigma(LEVEL)
    if s > s_collapse:
        return e
    y = x[i] + s * e
    temperature = max(s_collapse / s, 1)
    f = [-float((y - x[j]).square().sum()) / (2 * s**2) / temperature for j in near]
    parts = [math.exp(each - max(f)) for each in f]
    mean = torch.stack([part / sum(parts) * x[j] for part, j in zip(parts, near, strict=True)]).sum(0)
    return (y - mean) / s


def test_the_smoothed_target_is_the_mean_of_the_neighbours() -> None:
    x, e = 0.3 * normal(40, 1, 2, 2, seed=0), normal(len(TIMESTEPS), 1, 2, 2, seed=1)
    places, timesteps = torch.arange(len(TIMESTEPS)), torch.tensor(TIMESTEPS)
    near = nearest(x, 7)[places]
    found = smoothed(x[places], x[near], e, timesteps, ABAR, LEVEL)
    for i, t in enumerate(TIMESTEPS):
        expected = literal_smoothed([*x], i, near[i].tolist(), e[i], t)
        torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-4)
    moved = (found - e).abs().flatten(1).amax(1) > 1e-3
    assert moved.tolist() == [False, True, True, False, False, False, False]  # at t = 0 the image is its own mean


def test_neighbours_are_the_nearest_by_pixels() -> None:
    x = normal(300, 1, 2, 2, seed=0)
    found = nearest(x, 5)
    for i in (0, 7, 255, 256, 299):
        order = sorted(range(300), key=lambda j, i=i: float((x[i] - x[j]).square().sum()))
        assert found[i].tolist() == order[:5]
    assert nearest(x[:3], 100).shape == (3, 3)


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("kind", ["ambient", "smoothed"])
def test_a_run_is_a_plain_loop_with_that_target(tmp_path: Path, kind: str, flips: bool) -> None:
    one = {"method__members": 1, "method__rounds": 1, "method__skip_below": 0.0, "data__flips": flips}
    data = replace(images(), images=images().images // 4 + 96)  # close enough for several to weigh
    train(settings(**one, train__target=kind, train__target_timestep=LEVEL), data, tmp_path, CPU)
    torch.manual_seed(key_of("weights", 0))
    model: nn.Module = build_unet(8, 1, 8, (1, 2), 1, (), 0.0, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    every, differ = to_float(data.images), 0
    for step in range(6):
        batch = draw_batch(0, 0, step, len(data), 8, data.shape, CPU)
        losses = []
        for row, i in enumerate(batch.positions.tolist()):
            t, e, mirror = int(batch.timesteps[row]), batch.noise[row], flips and bool(batch.flips[row])
            own = [image.flip(-1) if mirror else image for image in every]
            noise, target = e, e
            if kind == "smoothed":
                near = sorted(range(len(data)), key=lambda j, i=i: float((every[i] - every[j]).square().sum()))[:100]
                target = literal_smoothed(own, i, near, e, t)
            elif t > LEVEL:
                n = torch.randn(1, 8, 8, generator=generator("fixed noise", 0, i))
                r = sigma(LEVEL) ** 2 / sigma(t) ** 2
                noise = math.sqrt(r) * (n.flip(-1) if mirror else n) + math.sqrt(1 - r) * e
                target = e / math.sqrt(1 - r)
            differ += float((target - e).abs().max()) > 0.01
            noisy = float(ABAR[t].sqrt()) * own[i] + float((1 - ABAR[t]).sqrt()) * noise
            predicted = model(noisy[None], torch.tensor([t])).sample[0]
            losses.append((predicted - target.float()).square().mean())
        torch.stack(losses).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = 1e-3 * min(step / 3, 1)
        optimizer.step()
        optimizer.zero_grad()
    for name, value in weights(tmp_path).items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-3, atol=2e-5)
    assert differ > 8  # of 48: the condition under test


@pytest.mark.parametrize("kind", ["ambient", "smoothed"])
def test_the_timestep_has_an_effect(tmp_path: Path, kind: str) -> None:
    found = []
    for timestep in (100, 500):
        chosen = settings(train__target=kind, train__target_timestep=timestep, train__steps=2, method__members=1)
        train(chosen, images(), tmp_path / str(timestep), CPU)
        found.append(weights(tmp_path / str(timestep))["conv_in.weight"])
    assert not torch.equal(*found)


@pytest.mark.parametrize("kind", ["ambient", "smoothed"])
def test_killed_it_ends_as_if_it_had_not_been(tmp_path: Path, kind: str) -> None:
    chosen = settings(train__target=kind, data__flips=True)
    killed_after(15, lambda counts: train(chosen, images(), tmp_path / "run", CPU, counts))
    for name in ("run", "whole"):
        train(chosen, images(), tmp_path / name, CPU)
    assert_ends_like(tmp_path / "whole", tmp_path / "run")


def test_a_target_that_does_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="target_timestep has no effect with target 'noise'"):
        validate({"train": {"target_timestep": 3}})


def test_a_model_that_predicts_v_takes_no_other_target() -> None:
    scheduler = make_scheduler()
    scheduler.register_to_config(prediction_type="v_prediction")
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="for models that predict noise, not v"):
        per_sample_loss(Guess(), scheduler, x, torch.tensor([5]), x, target=x)
