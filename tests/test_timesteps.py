"""Runs that draw some timesteps less often: against a plain loop, definite, resumed, and refused."""

import math
import random
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist

import pytest
import torch
from torch import nn

from iet_agc.config.fingerprint import fingerprint
from iet_agc.config.overrides import override
from iet_agc.config.presets import load_preset
from iet_agc.config.run_folder import read_settings
from iet_agc.config.settings import Settings, validate
from iet_agc.diffusion.process import make_scheduler, per_sample_loss, to_float
from iet_agc.diffusion.unet import build_unet
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.seeds import generator, key_of
from iet_agc.training.batches import draw_batch
from iet_agc.training.loop import start, train
from iet_agc.training.member import Member
from iet_agc.training.pixels import Pixels
from iet_agc.training.timesteps import density_of
from tests.processes import killed_after
from tests.tiny_runs import CPU, assert_ends_like, assert_same, images, settings, weights

GAP = {"train__timesteps": "gap", "train__gap_low": 100, "train__gap_high": 899, "train__gap_density": 0.1}
GAP_AS_OFTEN = GAP | {"train__gap_density": 1.0}
U_SHAPED = {"train__timesteps": "u-shaped", "train__u_sharpness": 9.0}
LOGIT_NORMAL = {"train__timesteps": "logit-normal", "train__logit_mean": 0.5, "train__logit_deviation": 2.0}


def literal_timesteps(chosen: Settings, member: int, step: int) -> list[int]:
    """By counting up probabilities until they pass a number in [0, 1)."""
    train = chosen.train
    if train.timesteps == "gap":
        assert train.gap_low is not None
        assert train.gap_high is not None
        shares = [train.gap_density if train.gap_low <= t <= train.gap_high else 1.0 for t in range(1000)]
        inside = sum(share for t, share in enumerate(shares) if train.gap_low <= t <= train.gap_high)
        rest = 1000 - (train.gap_high - train.gap_low + 1)
        shares = [
            share if train.gap_low <= t <= train.gap_high else (1000 - inside) / rest for t, share in enumerate(shares)
        ]
    elif train.timesteps == "logit-normal":
        normal = NormalDist(train.logit_mean, train.logit_deviation)
        edges = [0.0, *(normal.cdf(math.log(t / (1000 - t))) for t in range(1, 1000)), 1.0]
        shares = [high - low for low, high in pairwise(edges)]
    else:
        us = [(t + 0.5) / 1000 for t in range(1000)]
        shares = [2.718281828459045 ** (-9 * u) + 2.718281828459045 ** (-9 * (1 - u)) for u in us]
    lots = torch.rand(8, generator=generator("timesteps", train.seed, member, step), dtype=torch.float64).tolist()
    found = []
    for lot in lots:
        t, below = 0, shares[0]
        while below <= lot * sum(shares):
            t += 1
            below += shares[t]
        found.append(t)
    return found


@pytest.mark.parametrize("kind", [GAP, U_SHAPED, LOGIT_NORMAL])
def test_a_run_is_a_plain_loop_with_timesteps_drawn_by_hand(tmp_path: Path, kind: dict[str, object]) -> None:
    chosen = settings(method__members=1, method__rounds=1, method__skip_below=0.0, **kind)
    data, scheduler = images(), make_scheduler()
    train(chosen, data, tmp_path / "run", CPU)
    torch.manual_seed(key_of("weights", 0))
    model: nn.Module = build_unet(8, 1, 8, (1, 2), 1, (), 0.0, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    for step in range(6):
        batch = draw_batch(0, 0, step, len(data), 8, data.shape, CPU)  # images and noise of the uniform density
        timesteps = torch.tensor(literal_timesteps(chosen, 0, step))
        assert not torch.equal(timesteps, batch.timesteps)
        per_sample_loss(
            model, scheduler, to_float(data.images[batch.positions]), timesteps, batch.noise
        ).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = 1e-3 * min(step / 3, 1)
        optimizer.step()
        optimizer.zero_grad()
    assert_same(weights(tmp_path / "run"), model.state_dict())


def test_all_else_of_a_batch_is_as_without_a_density() -> None:
    plain = draw_batch(0, 1, 7, 20, 8, (1, 2, 2), CPU)
    other = draw_batch(0, 1, 7, 20, 8, (1, 2, 2), CPU, density_of(settings(**GAP).train))
    for name in ("positions", "flips", "noise", "lots"):
        assert torch.equal(getattr(plain, name), getattr(other, name))
    assert density_of(settings().train) is None


def test_replicas_draw_what_one_process_draws() -> None:
    """The draw takes no rank: it is a function of seed, member and step."""
    density = density_of(settings(**U_SHAPED).train)
    drawn = [draw_batch(*key, 20, 8, (1, 2, 2), CPU, density).timesteps.tolist() for key in [(0, 1, 7), (0, 1, 7)]]
    others = [
        draw_batch(*key, 20, 8, (1, 2, 2), CPU, density).timesteps.tolist() for key in [(1, 1, 7), (0, 2, 7), (0, 1, 8)]
    ]
    assert drawn[0] == drawn[1]
    assert drawn[0] not in others


def test_killed_it_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    chosen = settings(**GAP)
    killed_after(15, lambda counts: train(chosen, images(), tmp_path / "run", CPU, counts))
    for name in ("run", "whole"):
        train(chosen, images(), tmp_path / name, CPU)
    assert_ends_like(tmp_path / "whole", tmp_path / "run")


# -- a gap that is computed

SMALL = {
    "model.channels": "8",
    "model.groups": "4",
    "train.steps": "2",
    "train.gap_low": "none",
    "train.gap_high": "none",
    "run.preview_images": "0",
}


def test_a_computed_gap_is_written_down_and_the_run_is_one_of_these_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = override(load_preset("digits-gap"), SMALL)
    start(asked, tmp_path / "run", lambda steps: None)
    told = read_settings(tmp_path / "run")
    low, high = told.train.gap_low, told.train.gap_high
    assert low is not None
    assert high is not None
    assert 100 < low < 120 < 165 < high < 190
    assert f"timesteps {low} to {high} are trained less: the danger zone of" in capsys.readouterr().err
    assert fingerprint(told) != fingerprint(asked)
    assert start(asked, tmp_path / "run", lambda steps: None)  # computed again, the same
    given = override(asked, {"train.gap_low": low, "train.gap_high": high})
    assert start(given, tmp_path / "run", lambda steps: None)  # and given
    with pytest.raises(UserError, match=rf"train.gap_low {low} is now {low + 1}"):
        start(override(given, {"train.gap_low": low + 1}), tmp_path / "run")


def test_one_end_can_be_given(tmp_path: Path) -> None:
    asked = override(load_preset("digits-gap"), SMALL | {"train.gap_low": "20"})
    start(asked, tmp_path / "run", lambda steps: None)
    found = read_settings(tmp_path / "run").train
    assert found.gap_low == 20
    assert 165 < (found.gap_high or 0) < 190
    with pytest.raises(UserError, match=r"the gap from 900 to 1\d\d is empty"):
        start(override(asked, {"train.gap_low": "900"}), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_without_held_out_images_a_gap_must_be_given(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"and there are none: set train.gap_low and train.gap_high, or hold some out"):
        train(settings(train__timesteps="gap"), images(), tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()


def test_images_without_a_zone_are_told_so(tmp_path: Path) -> None:
    """Two images: with noise that covers anything, neither stands out."""
    near = images(2)
    near.images[1] = near.images[0]
    near.images[1, 0, 0, 0] ^= 1
    with pytest.raises(UserError, match=r"no timestep has .* above 0\.8.* Set train.gap_low and train.gap_high"):
        train(settings(train__timesteps="gap", method__members=1), near, tmp_path, CPU, held_out=images(20, seed=1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"gap_density": 0.2}, "gap_density has no effect with timesteps 'uniform', it is of 'gap'"),
        ({"gap_low": 3, "timesteps": "u-shaped"}, "gap_low has no effect with timesteps 'u-shaped', it is of 'gap'"),
        ({"u_sharpness": 3, "timesteps": "gap"}, "u_sharpness has no effect with timesteps 'gap', it is of 'u-shaped'"),
        ({"logit_mean": 1.0}, "logit_mean has no effect with timesteps 'uniform', it is of 'logit-normal'"),
        ({"timesteps": "gap", "gap_low": 5, "gap_high": 4}, "the gap from gap_low 5 to gap_high 4 is empty"),
        ({"timesteps": "gap", "gap_low": 0, "gap_high": 999}, "a gap from 0 to 999 leaves no timestep to train at"),
    ],
)
def test_options_that_do_nothing_are_refused(content: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match="setting train: ") as error:
        validate({"train": content})
    assert message in str(error.value)


def test_the_dummy_of_a_preset_removes_as_much(tmp_path: Path) -> None:
    gap, dummy = (density_of(load_preset(name).train) for name in ("digits-gap", "digits-gap-dummy"))
    assert gap is not None
    assert dummy is not None
    assert sorted(gap.tolist()) == sorted(dummy.tolist())
    assert not torch.equal(gap, dummy)
    numbers = random.Random(0).sample(range(1000), 3)
    assert all(gap[t] > 0 for t in numbers)


def test_agc_may_skip_within_the_gap_only() -> None:
    """Every sample is skipped whose timestep was seen before, inside of the gap; none outside of it."""
    kept: dict[str, list[tuple[int, bool]]] = {}
    for within in ("all", "gap"):
        chosen = settings(method__members=1, method__skip_below=1e6, method__skip_within=within, **GAP_AS_OFTEN)
        examples = Pixels(images().images)
        torch.manual_seed(0)
        member = Member(0, build_unet(8, 1, 8, (1, 2), 1, (), 0.0, 4), examples, chosen.train, chosen.method, CPU)
        kept[within] = [
            (t, k)
            for _, keep, timesteps in member.train(60, make_scheduler())
            for t, k in zip(timesteps.tolist(), keep.tolist(), strict=True)
        ]
    assert [t for t, _ in kept["all"]] == [t for t, _ in kept["gap"]]
    skipped = {within: [t for t, keep in pairs if not keep] for within, pairs in kept.items()}
    assert any(not 100 <= t <= 899 for t in skipped["all"])
    assert skipped["gap"] == [t for t in skipped["all"] if 100 <= t <= 899]


def test_agc_within_a_gap_needs_one() -> None:
    with pytest.raises(UserError, match=r"needs train\.timesteps gap, not uniform"):
        override(load_preset("digits-iet-agc"), {"method.skip_within": "gap"})
    with pytest.raises(UserError, match="no effect without skip_below"):
        override(load_preset("digits-gap"), {"method.skip_within": "gap"})
