"""AGC against the loss of held-out images: its running mean, a plain loop, kills, processes, and what is refused."""

import math
import random
from pathlib import Path

import pytest
import torch
from torch import nn

from iet_agc.config.overrides import override
from iet_agc.config.presets import load_preset
from iet_agc.config.settings import Settings
from iet_agc.data.image_set import ImageSet
from iet_agc.diffusion.process import make_scheduler, per_sample_loss, to_float
from iet_agc.diffusion.unet import build_unet
from iet_agc.method.agc import AntiGradientControl
from iet_agc.method.generalization_gap import GeneralizationGap
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.seeds import generator, key_of
from iet_agc.training.batches import draw_batch
from iet_agc.training.loop import train
from iet_agc.training.timesteps import density_of
from tests.processes import killed_after
from tests.tiny_runs import CPU, assert_ends_like, assert_same, ends, images, settings, train_in, weights

HELD_OUT = images(20, seed=1)
AGAINST = {"method__skip_reference": "held-out", "method__skip_below": 0.98, "method__decay": 0.0}


#: Images that are soon learnt, at timesteps that come again: held-out ones, which are noise, have larger losses.
FLAT = ImageSet(torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8).contiguous(), "flat")
EARLY = {"train__timesteps": "gap", "train__gap_low": 20, "train__gap_high": 999, "train__gap_density": 0.0}


def alone(**changes: object) -> Settings:
    return settings(method__members=1, method__rounds=1, train__steps=30, **{**AGAINST, **changes})


def test_a_gap_is_the_mean_of_the_last_pairs_of_its_band() -> None:
    rng, gap, means = random.Random(0), GeneralizationGap(1000), [0.0] * 20
    for _ in range(30):
        pairs = [(rng.uniform(0.1, 1), rng.uniform(0.1, 1), rng.randrange(1000)) for _ in range(5)]
        held_out, trained = torch.tensor([pair[:2] for pair in pairs]).T
        gap.update(held_out, trained, torch.tensor([pair[2] for pair in pairs]))
        for mine, other, timestep in pairs:
            band = timestep // 50
            means[band] = 0.98 * means[band] + 0.02 * math.log(mine / other)
    assert torch.allclose(gap.log_ratios, torch.tensor(means), atol=1e-6)
    found = gap.factor(torch.arange(0, 1000, 50)).tolist()
    assert found == pytest.approx([math.exp(max(mean, 0)) for mean in means], rel=1e-5)
    assert min(means) < 0 < max(means)


@pytest.mark.parametrize("odd", [0.0, math.inf, math.nan])
def test_pairs_that_say_nothing_do_not_count(odd: float) -> None:
    gap = GeneralizationGap(1000)
    gap.update(torch.tensor([odd, 0.4]), torch.tensor([0.1, 0.2]), torch.tensor([3, 800]))
    assert gap.log_ratios[0] == 0
    assert gap.log_ratios[16] > 0


def test_a_run_is_a_plain_loop_that_looks_at_held_out_images(tmp_path: Path) -> None:
    """With its own running means and its own comparison, pair by pair; something is skipped by the gap alone."""
    scheduler, by_gap, density = make_scheduler(), 0, density_of(alone(**EARLY).train)
    train(alone(**EARLY), FLAT, tmp_path / "run", CPU, held_out=HELD_OUT)
    torch.manual_seed(key_of("weights", 0))
    model: nn.Module = build_unet(8, 1, 8, (1, 2), 1, (), 0.0, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    bank, means = AntiGradientControl(1000, 0.98, 0.0), [0.0] * 20
    for step in range(30):
        batch = draw_batch(0, 0, step, len(FLAT), 8, FLAT.shape, CPU, density)
        t, noise = batch.timesteps, batch.noise
        losses = per_sample_loss(model, scheduler, to_float(FLAT.images[batch.positions]), t, noise)
        factors = torch.tensor([math.exp(max(means[int(each) // 50], 0)) for each in t])
        keep = losses.detach() >= 0.98 * bank.mean_loss[t] * factors
        by_gap += int((bank.keep(losses, t) & ~keep).sum())
        rng = generator("held-out", 0, 0, step)
        chosen = torch.randint(len(HELD_OUT), (2,), generator=rng)
        with torch.no_grad():
            others = per_sample_loss(model, scheduler, to_float(HELD_OUT.images[chosen]), t[:2], noise[:2])
        (losses[keep].sum() / max(int(keep.sum()), 1)).backward()
        bank.update(losses.detach(), t)
        for mine, other, timestep in zip(others.tolist(), losses.tolist(), t.tolist(), strict=False):
            means[timestep // 50] = 0.98 * means[timestep // 50] + 0.02 * math.log(mine / other)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = 1e-3 * min(step / 3, 1)
        optimizer.step()
        optimizer.zero_grad()
    found = weights(tmp_path / "run")
    assert all(torch.allclose(found[name], each, atol=1e-6) for name, each in model.state_dict().items())
    assert by_gap > 0


def test_killed_it_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    chosen = settings(**AGAINST, model__dropout=0.1)
    killed_after(15, lambda counts: train(chosen, images(), tmp_path / "run", CPU, counts, held_out=HELD_OUT))
    for name in ("run", "whole"):
        train(chosen, images(), tmp_path / name, CPU, held_out=HELD_OUT)
    assert_ends_like(tmp_path / "whole", tmp_path / "run")


def test_replicas_have_the_same_gap(tmp_path: Path) -> None:
    """Two processes share the batches of one member: both look at all pairs, and so does one process alone."""
    chosen = alone(model__dropout=0.1, **EARLY)
    for count, name in ((1, "one"), (2, "two")):
        train_in(count, chosen, tmp_path / name / "run", FLAT, HELD_OUT)
    ((one,),), (replicas,) = (ends(tmp_path / name / "run", "gap.").values() for name in ("one", "two"))
    assert len(replicas) == 2
    assert_same(*replicas)
    assert one["gap.log_ratios"][0] > 0.05
    assert torch.allclose(one["gap.log_ratios"], replicas[0]["gap.log_ratios"], atol=1e-3)


def test_other_held_out_images_are_another_run(tmp_path: Path) -> None:
    killed_after(8, lambda counts: train(alone(), images(), tmp_path, CPU, counts, held_out=HELD_OUT))
    with pytest.raises(UserError, match="held_out"):
        train(alone(), images(), tmp_path, CPU, held_out=images(20, seed=2))


def test_without_held_out_images_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"skip_reference held-out compares with images that are held out, .* hold"):
        train(alone(), images(), tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()


def test_without_agc_it_has_no_effect_and_is_refused() -> None:
    with pytest.raises(UserError, match="skip_reference 'held-out' has no effect without skip_below"):
        override(load_preset("digits-default"), {"method.skip_reference": "held-out"})
