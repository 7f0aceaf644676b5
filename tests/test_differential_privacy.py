"""DP-SGD against a loop over single images, its accounting against closed forms, and what it refuses."""

import json
import math
import re
import signal
import sys
from typing import Any

import pytest
import torch

from iet_agc.config.overrides import override
from iet_agc.config.presets import load_preset
from iet_agc.config.settings import Settings
from iet_agc.diffusion.process import make_scheduler, min_snr_weights, per_sample_loss, to_float
from iet_agc.diffusion.unet import build_unet
from iet_agc.method.differential_privacy import epsilon_of, private_gradients
from iet_agc.runtime.curves import Meter
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.seeds import generator, key_of
from iet_agc.runtime.stop import Stopped, StopRequest
from iet_agc.training.batches import draw_poisson_batch
from iet_agc.training.checkpoint import read_bundle
from iet_agc.training.loop import start, train
from iet_agc.training.private import privacy_of
from tests.commands import call
from tests.tiny_runs import CPU, assert_same, images, settings, weights

DP = {
    "method__members": 1,
    "method__rounds": 1,
    "method__skip_below": 0.0,
    "train__dp_noise": 0.7,
    "train__dp_clip": 0.4,
    "train__dp_multiplicity": 3,
    "train__dp_delta": 1e-3,
}


def literal(initial, data, labels, chosen, steps=6):
    """DP-SGD one image at a time; also whether any gradient was clipped, and any was not."""
    train_, scheduler = chosen.train, make_scheduler()
    parameters = dict(initial.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=train_.learning_rate, weight_decay=0.0)
    snr = min_snr_weights(scheduler, train_.min_snr) if train_.min_snr else torch.ones(1000)
    clipped = set()
    for step in range(steps):
        batch = draw_poisson_batch(0, 0, step, len(data), 8, data.shape[1:], CPU, None, 3)
        total = [torch.zeros_like(each) for each in parameters.values()]
        for first in range(0, len(batch.positions), 3):
            rows = slice(first, first + 3)
            same = batch.positions[rows]
            assert len(set(same.tolist())) == 1
            pixels = to_float(data[same])
            classes = None if labels is None else labels[same]
            losses = per_sample_loss(initial, scheduler, pixels, batch.timesteps[rows], batch.noise[rows], classes)
            gradient = torch.autograd.grad((losses * snr[batch.timesteps[rows]]).sum() / 3, [*parameters.values()])
            norm = math.sqrt(sum(float(each.double().square().sum()) for each in gradient))
            clipped.add(norm > 0.4)
            for sum_, each in zip(total, gradient, strict=True):
                sum_ += each * min(1, 0.4 / norm)
        rng = generator("dp noise", 0, 0, step)
        for parameter, sum_ in zip(parameters.values(), total, strict=True):
            parameter.grad = (sum_ + 0.7 * 0.4 * torch.randn(sum_.shape, generator=rng)) / 8
        optimizer.param_groups[0]["lr"] = train_.learning_rate * min(step / 3, 1)
        optimizer.step()
    return initial.state_dict(), clipped


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({}, {}),
        ({"model__attention": [4], "train__min_snr": 2.0, "train__dp_clip": 0.4}, {"attention": (4,)}),
        ({"model__classes": 4}, {"classes": 4}),
    ],
)
def test_a_run_is_a_loop_over_single_images(tmp_path, changes, shape):
    chosen = settings(**{**DP, "train__steps": 3, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(key_of("weights", 0))
        initial = build_unet(8, 1, 8, (1, 2), 1, shape.get("attention", ()), 0.0, 4, shape.get("classes"))
    train(chosen, images(), tmp_path / "run", CPU)
    labels = images().labels if shape.get("classes") else None
    expected, clipped = literal(initial, images().images, labels, chosen, steps=3)
    assert clipped == {True, False} or clipped == {True}
    found = weights(tmp_path / "run")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=2e-4, atol=2e-6)


def test_gradients_are_clipped_one_by_one_and_noise_is_of_the_sum():
    parameters = {"w": torch.zeros(2), "b": torch.zeros(1)}
    points = torch.tensor([[3.0, 0.0], [0.0, 0.3], [0.0, 0.0]])

    def loss(given, point):
        return (given["w"] * point).sum() + 0 * given["b"].sum(), point[0]

    found, others = private_gradients(
        loss, parameters, (points,), clip=1.0, noise=0.0, expected=2, rng=torch.Generator()
    )
    assert found["w"].tolist() == pytest.approx([0.5, 0.15])
    assert others.tolist() == [3, 0, 0]
    many = {"w": torch.zeros(200_000)}

    def flat(given, point):
        return 0 * given["w"].sum(), point

    noisy, none = private_gradients(
        flat, many, (torch.zeros(0),), clip=0.5, noise=3.0, expected=4, rng=torch.Generator().manual_seed(0)
    )
    assert float(noisy["w"].std()) == pytest.approx(3 * 0.5 / 4, rel=0.01)
    assert none.shape == (0,)


def test_a_gradient_that_is_not_finite_shows():
    def loss(given, point):
        return (given["w"] * point).sum(), point

    found, _ = private_gradients(
        loss, {"w": torch.ones(1)}, (torch.tensor([1.0, math.inf]),), clip=1, noise=0, expected=1, rng=torch.Generator()
    )
    assert not found["w"].isfinite().all()


def test_more_than_are_held_at_a_time_are_one_sum():
    points = torch.arange(70.0)

    def loss(given, point):
        return given["w"].sum() * point, point

    found, others = private_gradients(
        loss, {"w": torch.ones(1)}, (points,), clip=50.0, noise=0, expected=1, rng=torch.Generator()
    )
    assert float(found["w"]) == sum(min(number, 50) for number in range(70))
    assert torch.equal(others, points)


# Poisson samples --------------------------------------------------------------------------------------------


def test_every_image_is_drawn_by_itself():
    sizes, counts = [], torch.zeros(40)
    for step in range(2000):
        batch = draw_poisson_batch(0, 0, step, 40, 8, (1, 2, 2), CPU)
        assert len(batch.positions.unique()) == len(batch.positions)
        sizes.append(len(batch.positions))
        counts[batch.positions] += 1
    deviation = torch.tensor(sizes, dtype=torch.float64).std()
    assert sum(sizes) / 2000 == pytest.approx(8, abs=5 * math.sqrt(40 * 0.2 * 0.8 / 2000))
    assert float(deviation) == pytest.approx(math.sqrt(40 * 0.2 * 0.8), rel=0.1)  # binomial, not a fixed batch
    assert (counts / 2000 - 0.2).abs().max() < 5 * math.sqrt(0.2 * 0.8 / 2000)


def test_no_image_at_all_is_a_step_as_well(tmp_path):
    assert 0 in {len(draw_poisson_batch(0, 0, step, 40, 1, (1, 8, 8), CPU).positions) for step in range(6)}
    run = tmp_path / "run"
    train(settings(**{**DP, "train__batch_size": 1, "run__log_every": 1}), images(), run, CPU)
    points = [json.loads(line) for line in (run / "curves" / "member-0000.jsonl").read_text().splitlines()]
    assert len(points) == 6
    assert any(point["loss"] == 0 for point in points)
    meter = Meter(1000, CPU)
    meter.add(torch.zeros(0), torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.int64))
    assert meter.point()["skip_rate"] == 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    train(settings(**DP), images(), out, CPU)
    return out


def test_a_stopped_run_goes_on_bitwise(whole, tmp_path):
    out, stop, done = tmp_path / "out", StopRequest(), []

    def ask(steps):
        done.append(steps)
        stop.signal = signal.SIGTERM if sum(done) >= 3 else 0

    with pytest.raises(Stopped):
        train(settings(**DP), images(), out, CPU, ask, stop)
    assert [*out.glob("bundles/*member*")]
    train(settings(**DP), images(), out, CPU)
    for kind in ("raw", "ema"):
        assert_same(weights(out, kind), weights(whole, kind))
    assert (out / "telemetry.csv").read_bytes() == (whole / "telemetry.csv").read_bytes()


def test_the_loss_bank_does_not_tell_of_single_images(whole):
    bundle = read_bundle(whole / "bundles" / "round-0001")
    assert not bundle.tensors("member-0000")["agc.mean_loss"].any()


@pytest.mark.parametrize("change", [{"dp_noise": 0.8}, {"dp_clip": 0.1}, {"dp_multiplicity": 2}])
def test_settings_of_dp_sgd_have_an_effect(whole, tmp_path, change):
    changed = {f"train__{name}": value for name, value in change.items()}
    train(settings(**{**DP, "train__steps": 6, **changed}), images(), tmp_path / "run", CPU)
    first, second = weights(whole), weights(tmp_path / "run")
    assert not torch.equal(first["conv_in.weight"], second["conv_in.weight"])


def test_delta_has_an_effect():
    chosen = [privacy_of(settings(**{**DP, "train__dp_delta": delta}), 40) for delta in (1e-3, 1e-4)]
    assert chosen[0]["epsilon"] < chosen[1]["epsilon"]


# The accounting ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("noise", "steps", "delta"), [(2.0, 1, 1e-5), (8.0, 40, 1e-6)])
def test_epsilon_of_whole_batches_is_that_of_the_gaussian_mechanism(noise, steps, delta):
    """Renyi divergence of order a: T a / 2 sigma^2 (Mironov, 2017); to (epsilon, delta): Balle et al., 2020, thm 21."""
    orders = [1 + number / 1000 for number in range(1, 200_000)]
    least = min(
        steps * a / (2 * noise**2) + math.log((a - 1) / a) - (math.log(delta) + math.log(a)) / (a - 1) for a in orders
    )
    assert least <= epsilon_of(noise, 1.0, steps, delta) <= least * 1.005


def test_epsilon_of_samples_is_an_upper_bound_that_grows_as_it_should():
    base = epsilon_of(1.0, 0.01, 1000, 1e-5)
    assert 1.5 < base < 3  # Abadi et al., 2016: moments accountant, q = 0.01, sigma 1, about 2
    assert epsilon_of(1.0, 0.01, 2000, 1e-5) > base
    assert epsilon_of(2.0, 0.01, 1000, 1e-5) < base
    assert epsilon_of(1.0, 0.02, 1000, 1e-5) > base
    assert epsilon_of(1.0, 0.01, 1000, 1e-6) > base


def test_epsilon_is_told_recorded_and_on_the_card(tmp_path, capsys):
    run = tmp_path / "run"
    changes = {"method.members": 1, "train.steps": 2, "train.batch_size": 8, "sample.steps": 2, "run.preview_images": 0}
    chosen = override(load_preset("digits-dp"), {**changes, "model.channels": 8, "run.device": "cpu"})
    summary: Any = start(chosen, run)
    count = summary["training_images"]
    expected = epsilon_of(1.0, 8 / count, 2, 1e-5)
    assert summary["privacy"]["epsilon"] == expected
    assert summary["privacy"] == json.loads((run / "identity.json").read_text())["privacy"]
    assert f"epsilon {expected:.3g} at delta 1e-05" in capsys.readouterr().err
    status, _, _ = call(capsys, "card", run)
    assert status == 0
    card = (run / "README.md").read_text()
    assert f"epsilon {expected:.3g} at delta 1e-05" in card
    assert "for research, not for release" in card
    assert (run / "telemetry.csv").is_file()


def test_other_runs_promise_nothing(tmp_path):
    assert privacy_of(settings(), 40) is None


def test_without_opacus_nothing_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(UserError, match=re.escape("pip install 'iet-agc[dp]'")):
        train(settings(**DP), images(), tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train__dp_clip": 2.0}, "dp_clip has no effect without DP-SGD: set dp_noise"),
        ({"train__dp_multiplicity": 2}, "dp_multiplicity has no effect without DP-SGD"),
        ({"train__dp_delta": 1e-3}, "dp_delta has no effect without DP-SGD"),
        ({**DP, "method__members": 2}, "method.members above 1: its accounting is of one model"),
        ({**DP, "method__skip_below": 0.5}, "method.skip_below: whether an image is skipped would depend on others"),
        ({**DP, "method__random_skip": 0.5}, "method.random_skip: each step draws its images at random already"),
        ({**DP, "model__dropout": 0.1}, "model.dropout: masks are drawn for a batch"),
        ({**DP, "model__kind": "text-to-image"}, "does not go with model.kind text-to-image"),
        ({**DP, "data__deduplicate": "exact"}, "data.deduplicate: whether an image stays would depend on others"),
        ({**DP, "run__watch_every": 2, "run__stop_when_copying": True}, "run.stop_when_copying: where it stops"),
        ({**DP, "train__timesteps": "gap"}, "gap_low None: a gap that is computed tells of the training images"),
        ({**DP, "train__grad_clip": 2.0}, "grad_clip 2.0: dp_clip takes its place"),
        ({**DP, "train__target": "smoothed"}, "target smoothed"),
        ({**DP, "train__precision": "bfloat16"}, "precision bfloat16"),
        ({**DP, "train__compile": True}, "compile True"),
        ({**DP, "train__dp_noise": -1.0}, "should be greater than or equal to 0"),
    ],
)
def test_what_would_break_the_guarantee_is_refused_in_one_line(changes, told):
    if changes.get("model__kind") == "text-to-image":
        with pytest.raises(UserError) as refused:
            override(Settings(), {"model.kind": "text-to-image", "train.dp_noise": 1.0, "init.model": "x"})
    else:
        with pytest.raises(UserError) as refused:
            settings(**changes)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_gap_that_is_given_goes_with_it():
    assert settings(**DP, train__timesteps="gap", train__gap_low=10, train__gap_high=20).train.dp_noise


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train__dp_delta": 0.5}, "train.dp_delta 0.5 allows that one of 40 images is given away"),
        ({"train__batch_size": 41}, "train.batch_size is 41: set it lower"),
    ],
)
def test_a_guarantee_of_nothing_is_refused(tmp_path, changes, told):
    with pytest.raises(UserError, match=re.escape(told)):
        train(settings(**{**DP, **changes}), images(), tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()
