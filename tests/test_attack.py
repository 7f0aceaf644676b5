"""Attacks: counts against literal ones, models that hold everything and nothing, and what is written."""

import csv
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from iet_agc.auditing import attack as attacking
from iet_agc.auditing import attacked_pixels
from iet_agc.auditing.attack import attack_model, read_attacks
from iet_agc.cli import summary
from iet_agc.data.image_set import ImageSet
from iet_agc.diffusion.process import Scheduler, add_noise, make_flow_scheduler, make_scheduler, to_float, to_uint8
from iet_agc.diffusion.redrawing import REDRAW_STEPS, redraw
from iet_agc.diffusion.unet import build_unet
from iet_agc.metrics.attacks import Attack, Drawn, against_sampling, attack, halves
from iet_agc.metrics.neighbors import References
from iet_agc.metrics.target_ratios import target_ratios
from iet_agc.training import loop
from tests.attack_folders import stopped_after, untimed
from tests.commands import call
from tests.faulty import contents
from tests.tiny_runs import images, settings

# The numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flips", [False, True])
def test_a_ratio_is_that_of_an_audit_if_the_target_were_trained_on(flips: bool) -> None:
    train, drawn, others = (images(count, seed=seed).images for count, seed in ((7, 0), (5, 1), (5, 2)))
    references = References(train, 4, 2**30, torch.device("cpu"))
    own = torch.tensor([3, 0, 6, 1, 1])
    drawn[2] = train[6].flip(-1)
    cases = (train[own], own), (others, torch.full((5,), -1))
    for targets, known in cases:
        found = target_ratios(drawn, targets, known, references, flips)
        for row in range(5):

            def distance(image: torch.Tensor, row: int = row) -> float:
                turns = [image, image.flip(-1)] if flips else [image]
                return min(float(((turn.double() - drawn[row].double()) / 255).square().sum()) for turn in turns)

            rest = sorted(distance(each) for place, each in enumerate(train) if place != known[row])[:3]
            mine = distance(targets[row])
            assert float(found[row]) == pytest.approx(mine / ((mine + sum(rest)) / 4))
    assert (float(target_ratios(drawn, train[own], own, references, flips)[2]) == 0) is flips


def drawn_of(scores: Any, num_targets: int, draws: int = 1) -> Drawn:
    ratios = np.asarray(scores, dtype=np.float64)
    return Drawn(np.arange(len(ratios)) % (len(ratios) // draws), ratios, num_targets)


def counted(train: Any, held_out: Any, audit_cut: float = 1.0, **changes: Any) -> Attack:
    effort: Any = {"evaluations": 400, "seconds": 36.0, "steps": 10} | changes
    of_train, of_others = (drawn_of(each, len(each)) for each in (train, held_out))
    return attack("redrawing", of_train, of_others, audit_cut, **effort)


def test_each_half_of_the_held_out_images_is_counted_by_the_cut_of_the_other() -> None:
    rng = np.random.default_rng(0)
    mine, real = rng.random(100), rng.random(400)
    found = counted(mine, real)
    first = halves(400)
    assert first.sum() == 200
    cuts = [np.sort(real[half])[1] for half in (first, ~first)]  # floor(0.01 x 201) = 2
    cut = min(cuts)
    assert found.own_cut == found.cut == cut
    assert (found.train.count, found.train.total) == ((mine < cut).sum(), 100)
    counts = [(real[~first] < cuts[0]).sum(), (real[first] < cuts[1]).sum()]
    assert (found.held_out.count, found.held_out.total) == (sum(counts), 400)
    assert found.beyond_chance.value == pytest.approx(found.train.share - found.held_out.share)
    strict = counted(mine, real, audit_cut=cut / 2)
    assert (strict.cut, strict.own_cut) == (cut / 2, cut)
    assert strict.train.count == (mine < cut / 2).sum()
    assert strict.held_out.count == (real < cut / 2).sum()


def test_where_there_is_nothing_to_find_the_control_is_at_its_rate() -> None:
    shares, others, shown = [], [], 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        found = counted(rng.random(150), rng.random(398))
        shares.append(found.train.share)
        others.append(found.held_out.share)
        shown += found.is_beyond_chance
    assert np.mean(shares) <= 0.013
    assert np.mean(others) <= 0.013
    assert shown <= 12  # by a one-sided interval of 2.5 %, 5 are expected


def test_the_score_of_a_target_is_the_smallest_of_its_drawings() -> None:
    drawn = Drawn(np.array([2, 0, 2, 2, 1]), np.array([0.5, 0.2, 0.1, 0.05, 0.9]), 4)
    assert drawn.scores.tolist() == [0.2, 0.9, 0.05, math.inf]
    assert drawn.recovered(0.3) == {0: 1, 2: 2}
    assert [*drawn.recovered(0.3)] == [0, 2]  # in the order in which they were found
    assert drawn.closest(2) == [(2, 3), (0, 1)]


def test_rates_are_those_of_effort() -> None:
    mine, real = np.full(50, 0.9), np.linspace(0.5, 1, 300)
    mine[[4, 9]] = 0.1
    found = counted(mine, real, evaluations=200)
    assert found.per_1000_samples.value == pytest.approx(2 / (200 / 10 / 1000))
    assert found.per_hour.value == pytest.approx(2 / (36 / 3600))
    low, high = found.train.ci95
    assert found.per_hour.ci95 == pytest.approx((low * 50 * 100, high * 50 * 100))
    assert found.found_after == (20, 40)  # the fifth and the tenth of 50 drawings of 4 evaluations
    plain = found.model_copy(update={"way": "sampling", "evaluations": 400, "found_after": (30, 350), "seconds": 80.0})
    against = against_sampling(found, plain)
    assert against.sampling_by_then == 1
    assert against.times_sampling is not None
    assert against.times_sampling.value == pytest.approx((2 / 36) / (1 / 40))
    none = against_sampling(found, plain.model_copy(update={"found_after": (350, 360)}))
    assert (none.sampling_by_then, none.times_sampling) == (0, None)


def test_too_few_held_out_images_set_no_cut() -> None:
    with pytest.raises(ValueError, match="197 held-out images set no cut: give 198 or more"):
        counted(np.ones(5), np.ones(197))


# Redrawing --------------------------------------------------------------------------------------------------


class Oracle(nn.Module):
    """The denoiser whose image is a function of what it sees.

    Args:
        known: what it was trained on: it takes the nearest for the image; None: it has learned noise of all pixels'
            mean and variance, and nothing of any image.
        scheduler: whose noise it predicts.
    """

    def __init__(self, known: torch.Tensor | None, scheduler: Scheduler) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.known = None if known is None else to_float(known)
        self.scheduler: Any = scheduler
        self.config = SimpleNamespace(in_channels=1, sample_size=8, num_class_embeds=None)

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor) -> SimpleNamespace:
        abar = self.scheduler.alphas_cumprod[timesteps.long()].view(-1, 1, 1, 1)
        if self.known is None:
            variance = 1 / 3
            clean = abar.sqrt() * variance / (abar * variance + 1 - abar) * noisy
        else:
            distances = torch.cdist(noisy.flatten(1), (abar.sqrt()[:1] * self.known).flatten(1))
            clean = self.known[distances.argmin(1)]
        return SimpleNamespace(sample=(noisy - abar.sqrt() * clean) / (1 - abar).sqrt())


def test_a_redrawn_image_is_the_literal_one_whatever_its_company() -> None:
    model = build_unet(8, 1, channels=8, multipliers=[1, 2], blocks=1, attention=[], dropout=0.0, groups=4).eval()
    scheduler, pixels = make_scheduler(), images(40).images
    noise = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = redraw(model, scheduler, pixels, noise)
    assert torch.equal(found[3:5], redraw(model, scheduler, pixels[3:5], noise[3:5]))
    abar = scheduler.alphas_cumprod
    assert abs(float(abar[250]) - 0.5) < 0.03  # nearer than with 11 or 13 steps in all
    x, stride = abar[250].sqrt() * to_float(pixels) + (1 - abar[250]).sqrt() * noise, 83
    with torch.no_grad():
        for at in (250, 167, 84, 1):
            e = model(x, torch.full((40,), at)).sample
            clean = ((x - (1 - abar[at]).sqrt() * e) / abar[at].sqrt()).clamp(-1, 1)
            before = abar[at - stride] if at > stride else abar[0]
            x = before.sqrt() * clean + (1 - before).sqrt() * e
    assert (found.int() - to_uint8(x).int()).abs().max() <= 1


def test_a_flow_is_redrawn_from_half_noise() -> None:
    pixels = images(3).images
    noise = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler, seen = make_flow_scheduler(), []

    class Straight(nn.Module):
        """Knows the way from the images to this noise."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor) -> SimpleNamespace:
            seen.append((float(timesteps[0]), noisy[:3]))
            direction = noise - to_float(pixels)
            return SimpleNamespace(sample=torch.cat([direction, direction[:1].expand(len(noisy) - 3, 1, 8, 8)]))

    assert torch.equal(redraw(Straight(), scheduler, pixels, noise), pixels)
    assert [level for level, _ in seen] == [500, 375, 250, 125]
    half = add_noise(scheduler, to_float(pixels), torch.full((3,), 499), noise)[0]
    assert torch.allclose(seen[0][1], half, atol=1e-6)


# Of a model -------------------------------------------------------------------------------------------------

TRAIN, HELD_OUT = images(60).images, images(300, seed=1).images


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on 60 digits for a moment."""
    out = tmp_path_factory.mktemp("attack") / "run"
    loop.start(settings(method__members=1, method__rounds=1, data__name="digits", data__num_train=60), out)
    return out


@pytest.fixture
def oracle(run: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Attacks a model that is made of these images."""

    def attacked(known: torch.Tensor | None, out: Path) -> Any:
        scheduler = make_scheduler()
        model = Oracle(known, scheduler).eval()
        monkeypatch.setattr(attacked_pixels, "load_pipeline", lambda folder, device: (model, scheduler))
        given: Any = {"train": ImageSet(TRAIN, "own"), "held-out": ImageSet(HELD_OUT, "others")}
        return attack_model(run / "ema", out, "own", "others", budget=80, steps=10, given=given)

    return attacked


def test_what_a_model_holds_is_recovered_and_the_control_is_not(oracle: Any, tmp_path: Path) -> None:
    found = oracle(TRAIN, tmp_path / "a")
    sampling, redrawing = found["attacks"]
    assert redrawing["train"]["count"] == 60
    assert redrawing["held_out"]["share"] <= 0.03
    assert redrawing["beyond_chance"]["ci95"][0] > 0.9
    assert 20 < sampling["train"]["count"] < 60  # 80 samples of 60 images
    assert sampling["held_out"]["count"] <= 4
    assert redrawing["evaluations"] == 3 * 60 * REDRAW_STEPS  # 800 evaluations are three drawings of each
    assert redrawing["sampling_by_then"] == sum(
        each <= 720 for each in read_attacks(tmp_path / "a").attacks[0].found_after
    )


def test_half_of_the_images_held_is_half_recovered(oracle: Any, tmp_path: Path) -> None:
    redrawing = oracle(TRAIN[:30], tmp_path / "a")["attacks"][1]
    assert 30 <= redrawing["train"]["count"] <= 32  # of the others 1 % are, by chance
    with (tmp_path / "a" / "images.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    recovered = [row for row in rows if row["redrawing_recovered"] == "True"]
    assert {int(row["image"]) for row in recovered if row["set"] == "train"} >= {*range(30)}
    page = (tmp_path / "a" / "attack.html").read_text(encoding="utf-8")
    assert page.count('alt="drawn of training image') >= 12


@pytest.mark.parametrize("held", [None, "others"])
def test_what_a_model_never_saw_is_not_recovered(oracle: Any, tmp_path: Path, held: str | None) -> None:
    """A model that learned no image, and one that learned other images."""
    known = None if held is None else images(60, seed=2).images
    for each in oracle(known, tmp_path / "a")["attacks"]:
        assert each["train"]["share"] <= 0.05
        assert each["held_out"]["share"] <= 0.04
        assert each["beyond_chance"]["ci95"][0] <= 0
    page = (tmp_path / "a" / "attack.html").read_text(encoding="utf-8")
    assert "Training images are not shown to be recovered" in page


#: Two parts of plain samples, one of redrawn training images, two of redrawn held-out images.
IN_PARTS: Any = {"budget": 300, "steps": 2}


@pytest.fixture(scope="module")
def whole(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An attack that nothing stopped."""
    out = tmp_path_factory.mktemp("attack") / "whole"
    attack_model(run, out, **IN_PARTS)
    return out


@pytest.mark.parametrize("kept", [1, 2, 4])
def test_killed_and_given_again_it_is_the_same(run: Path, whole: Path, tmp_path: Path, kept: int) -> None:
    with stopped_after(kept):
        attack_model(run, tmp_path / "killed", **IN_PARTS)
    assert len(list((tmp_path / "killed" / ".parts").glob("*.npz"))) == kept
    attack_model(run, tmp_path / "killed", **IN_PARTS)
    assert untimed(tmp_path / "killed") == untimed(whole)


def test_what_is_found_is_written_once(run: Path, tmp_path: Path) -> None:
    how: Any = {"budget": 20, "steps": 3}
    found: Any = attack_model(run, tmp_path / "a", **how)
    before = contents(tmp_path / "a")
    assert {*before} - {".lock"} == {"attack.json", "attack.html", "drawings.npz", "images.csv"}
    assert [each["way"] for each in found["attacks"]] == ["sampling", "redrawing"]
    assert found["attacks"][1]["train"]["total"] == 15  # 60 evaluations are of 15 targets
    attack_model(run, tmp_path / "a", **how)
    assert contents(tmp_path / "a") == before
    with (tmp_path / "a" / "images.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["set"] for row in rows].count("train") == 15
    assert [row["half"] for row in rows].count("1") == [row["half"] for row in rows].count("2") == 99
    scores = [float(row["redrawing_score"]) for row in rows]
    assert scores == sorted(scores)


def test_classes_are_those_of_the_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    changes: Any = {
        "model__classes": 10,
        "method__members": 1,
        "method__rounds": 1,
        "train__steps": 1,
        "sample__num": 1,
    }
    loop.start(settings(data__name="digits", data__num_train=300, **changes), out)
    seen, plain = [], attacked_pixels.redraw

    def told(model: Any, scheduler: Any, pixels: Any, noise: Any, labels: Any, *rest: Any) -> Any:
        seen.append((pixels, labels))
        return plain(model, scheduler, pixels, noise, labels, *rest)

    monkeypatch.setattr(attacked_pixels, "redraw", told)
    attack_model(out, tmp_path / "a", budget=20, steps=1)
    own = attacking.load_apart(str(out), str(out), 1, {}).train
    assert own.labels is not None
    pixels, labels = seen[0]
    for image, label in zip(pixels, labels, strict=True):
        (place,) = (own.images == image).flatten(1).all(1).nonzero()[0].tolist()
        assert label == own.labels[place]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "nowhere is "),
        (["RUN", "--train", "nowhere"], "nowhere is not a folder of images"),
        (["RUN", "--budget", "19"], "budget is 20 or more, not 19 (--budget)"),
        (["RUN", "--steps", "0"], "steps is 1 to 500, not 0 (--steps)"),
        (["RUN", "--steps", "501"], "steps is 1 to 500, not 501 (--steps)"),
        (["RUN/ema"], "does not say what it was trained on: give the training images"),
        (["RUN/ema", "--train", "digits", "--weights", "raw"], "is no run, and has one kind of weights"),
        (
            ["RUN", "--held-out", "FEW"],
            "are too few: each half sets the cut by which the other is counted; give 198",
        ),
        (["RUN", "--held-out", "LARGE"], "held-out images are 1 x 12 x 12, training images 1 x 8 x 8: sizes must"),
    ],
)
def test_bad_input_is_told_in_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    np.save(tmp_path / "FEW.npy", images(150).images.numpy())
    np.save(tmp_path / "LARGE.npy", images(30, size=12).images.numpy())
    given = [word.replace("RUN", str(run)) for word in words]
    given = [str(tmp_path / f"{word}.npy") if word in ("FEW", "LARGE") else word for word in given]
    status, out, line = call(capsys, "attack", *given, "--out", tmp_path / "m")
    assert (status, out) == (2, "")
    assert told in line
    assert line.count("\n") == 1
    assert not (tmp_path / "m").exists()


def test_what_a_terminal_shows() -> None:
    def way(name: str, count: int, by_then: int | None) -> Any:
        share = {"count": count, "total": 200, "share": count / 200, "ci95": [0.02, 0.1]}
        others = {"count": 1, "total": 100, "share": 0.01, "ci95": [0.0, 0.05]}
        rates = {"per_1000_samples": {"value": 12.34}, "per_hour": {"value": 1234.5}}
        own = {"way": name, "train": share, "held_out": others, "beyond_chance": {"ci95": [0.01, 0.1]}}
        return own | rates | {"sampling_by_then": by_then}

    told: Any = {
        "num_train": 200,
        "num_held_out": 198,
        "unit": "CPU",
        "attacks": [way("sampling", 8, None), way("redrawing", 11, 7)],
        "page": "a/attack.html",
    }
    assert summary.attack(told) == [
        "Training images are recovered",
        "  sampling          8 of 200 training images, 4 % (2 % to 10 %); 1 of 100 held-out",
        "                    12.3 for 1,000 samples, 1,234 per CPU hour",
        "  redrawing         11 of 200 training images, 5.5 % (2 % to 10 %); 1 of 100 held-out",
        "                    12.3 for 1,000 samples, 1,234 per CPU hour",
        "                    plain sampling with as many evaluations: 7",
        "  images            200 training, 198 held-out",
        "  page              a/attack.html",
        "next: open the page in a browser",
    ]
