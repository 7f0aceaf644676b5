"""Membership inference: the score against a literal one, chance where there is nothing to tell, and what is written."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iet_agc.auditing.membership import infer_members, losses_of, timesteps_of
from iet_agc.cli import summary
from iet_agc.data.image_set import ImageSet
from iet_agc.diffusion.process import make_scheduler, per_sample_loss, to_float
from iet_agc.diffusion.unet import build_unet
from iet_agc.metrics.membership import Found, TooFew, attacked, correlation, membership, scores
from iet_agc.runtime.seeds import generator
from iet_agc.training import loop
from tests.commands import call
from tests.faulty import contents
from tests.tiny_runs import images, settings

TIMESTEPS = [50, 150, 250, 550, 950]


def losses(count: int, seed: int, lower: float = 0.0) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Losses that differ by image and by draw; those of the first three draws are lower by an amount."""
    rng = np.random.default_rng(seed)
    found = rng.normal(1, 0.1, (count, 1)) + rng.normal(0, 0.3, (count, 5))
    found[:, :3] -= lower
    return found


# The numbers ------------------------------------------------------------------------------------------------


def test_a_score_is_the_share_of_other_images_with_a_higher_loss() -> None:
    mine, others = losses(7, 0), losses(9, 1)
    mine[2, 1] = others[3, 1]  # a tie counts half
    found = np.concatenate(scores(mine, others))
    both = np.concatenate([mine, others])
    for image, score in enumerate(found):
        shares = []
        for draw in range(5):
            rest = np.delete(both[:, draw], image)
            shares.append((np.sum(rest > both[image, draw]) + np.sum(rest == both[image, draw]) / 2) / 15)
        assert score == pytest.approx(np.mean(shares))


def test_members_are_counted_above_the_highest_of_other_images() -> None:
    mine, others = losses(50, 0, lower=0.5), losses(199, 1)
    found = membership(mine, others, TIMESTEPS, 1000)
    own, rest = scores(mine[:, :3], others[:, :3])
    assert found.auc.value == pytest.approx(np.mean(own[:, None] > rest) + np.mean(own[:, None] == rest) / 2)
    first, second = found.found
    assert isinstance(first, Found)
    assert (first.cut, first.count) == (np.sort(rest)[-2], np.sum(own > np.sort(rest)[-2]))  # floor(0.01 x 200) = 2
    assert second == TooFew(false_alarm=0.001, num_held_out=199, num_needed=999)


def test_draws_with_much_noise_are_shown_and_not_counted() -> None:
    mine, others = losses(60, 0, lower=0.5), losses(60, 1)
    low, high = membership(mine, others, TIMESTEPS, 1000), membership(mine[:, :3], others[:, :3], TIMESTEPS[:3], 1000)
    assert low.auc == high.auc
    assert [(band.low, band.high) for band in low.bands] == [(0, 100), (100, 200), (200, 300), (500, 600), (900, 1000)]
    assert all(band.auc.value > 0.8 for band in low.bands[:3])
    assert all(band.auc.ci95[0] < 0.5 < band.auc.ci95[1] for band in low.bands[3:])
    assert low.bands[0].loss_held_out - low.bands[0].loss_train == pytest.approx(0.5, abs=0.2)
    assert attacked([700, 900], 1000).all()  # where none has little noise


def test_where_there_is_nothing_to_tell_it_is_chance() -> None:
    """Over 200 draws of both sets, the interval misses 0.5, and the cut is passed, as often as they should."""
    missed, called = 0, []
    for seed in range(200):
        found = membership(losses(40, 2 * seed), losses(120, 2 * seed + 1), TIMESTEPS, 1000)
        missed += not found.auc.ci95[0] <= 0.5 <= found.auc.ci95[1]
        assert isinstance(found.found[0], Found)
        called.append(found.found[0].share)
    assert missed <= 18  # of 200 at 5 %: 10 are expected, more than 18 with a probability of 0.7 %
    assert np.mean(called) <= 0.012


def test_a_correlation_of_ranks() -> None:
    found = correlation([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 6, 5])
    assert found is not None
    assert found.value == pytest.approx(1 - 6 * 2 / (6 * 35))
    assert found.ci95[0] < found.value < found.ci95[1] <= 1
    assert correlation([1, 2, 3], [1, 2, 3]) is None
    assert correlation([1, 1, 1, 1], [1, 2, 3, 4]) is None


@pytest.mark.parametrize("wrong", [np.ones((3, 4)), np.ones((0, 5)), np.ones(5), np.full((3, 5), np.nan)])
def test_losses_that_are_none(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"losses are \(N, T\)|not finite"):
        scores(wrong, losses(4, 0))


# Of a model -------------------------------------------------------------------------------------------------


def test_all_images_are_given_the_same_noise_whatever_their_company() -> None:
    model = build_unet(8, 1, channels=8, multipliers=[1, 2], blocks=1, attention=[], dropout=0.0, groups=4).eval()
    scheduler, pixels = make_scheduler(), images(5).images
    found = losses_of(model, scheduler, pixels, 3)
    assert timesteps_of(3).tolist() == [166, 500, 833]
    assert torch.equal(found[2:4], losses_of(model, scheduler, pixels[2:4], 3))
    noise = torch.randn(1, 8, 8, generator=generator("membership", 1)).expand(5, 1, 8, 8)
    with torch.no_grad():
        literal = per_sample_loss(model, scheduler, to_float(pixels), torch.full((5,), 500), noise)
    assert torch.allclose(found[:, 1], literal, atol=1e-6)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on 60 digits, of which some are skipped at random."""
    out = tmp_path_factory.mktemp("membership") / "run"
    loop.start(
        settings(
            method__members=1, method__skip_below=0, method__random_skip=0.3, data__name="digits", data__num_train=60
        ),
        out,
    )
    return out


def test_what_a_run_gives_away_is_written_and_written_once(run: Path, tmp_path: Path) -> None:
    found: Any = infer_members(run, tmp_path / "m", num_images=30, draws=10)
    assert (found["num_train"], found["num_held_out"], found["draws"]) == (30, 30, 10)
    assert [band["low"] for band in found["bands"]] == [*range(0, 1000, 100)]
    assert -1 <= found["skips"]["value"] <= 1
    before = contents(tmp_path / "m")
    assert {*before} - {".lock"} == {"membership.json", "membership.html", "images.csv"}
    with (tmp_path / "m" / "images.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["set"] for row in rows].count("train") == 30
    ranked = [float(row["score"]) for row in rows]
    assert ranked == sorted(ranked, reverse=True)
    telemetry = list(csv.DictReader((run / "telemetry.csv").open(encoding="utf-8")))
    trained = [row for row in rows if row["set"] == "train"]
    assert all(telemetry[int(row["image"])]["seen"] == row["seen"] for row in trained)
    assert any(int(row["skipped"]) for row in trained)
    assert json.loads(before["membership.json"])["membership"]["auc"] == found["auc"]
    infer_members(run, tmp_path / "m", num_images=30, draws=10)
    assert contents(tmp_path / "m") == before
    page = before["membership.html"].decode()
    assert "Read this beside an audit" in page
    assert "not measured: 30 held-out images, 99 are needed" in page


def test_copies_in_the_training_set_count_once_and_are_no_held_out_images(run: Path, tmp_path: Path) -> None:
    own, more = images(30).images, images(30, seed=1).images
    given: Any = {
        "train": ImageSet(torch.cat([own, own[:5]]), "own"),
        "held-out": ImageSet(torch.cat([own[:7], more, more[:3]]), "others"),
    }
    found: Any = infer_members(run / "ema", tmp_path / "m", "own", "others", draws=4, given=given)
    assert (found["num_train"], found["num_held_out"], found["skips"]) == (30, 30, None)
    with (tmp_path / "m" / "images.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["multiplicity"] for row in rows) == [*[""] * 30, *["1"] * 25, *["2"] * 5]
    assert min(int(row["image"]) for row in rows if row["set"] == "held_out") == 7


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "nowhere is "),
        (["RUN", "--train", "nowhere"], "nowhere is not a folder of images"),
        (["RUN", "--num-images", "19"], "num_images is 20 or more, not 19 (--num-images)"),
        (["RUN", "--draws", "0"], "draws is 1 or more, not 0 (--draws)"),
        (["RUN/ema"], "does not say what it was trained on: give the training images"),
        (["RUN/ema", "--train", "digits", "--weights", "raw"], "is no run, and has one kind of weights"),
        (
            ["RUN", "--held-out", "FEW"],
            "3 held-out images not trained on are too few to tell anything: give 20 or more",
        ),
        (
            ["RUN", "--held-out", "LARGE"],
            "held-out images are 1 x 12 x 12, training images 1 x 8 x 8: sizes must agree",
        ),
        (["RUN/ema", "--train", "LARGE", "--held-out", "LARGE2"], "1 x 12 x 12, the model draws 1 x 8 x 8"),
    ],
)
def test_bad_input_is_told_in_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    for name, pixels in (
        ("FEW", images(3).images),
        ("LARGE", images(30, size=12).images),
        ("LARGE2", images(30, size=12, seed=1).images),
    ):
        np.save(tmp_path / f"{name}.npy", pixels.numpy())
    given = [word.replace("RUN", str(run)) for word in words]
    given = [str(tmp_path / f"{word}.npy") if word in ("FEW", "LARGE", "LARGE2") else word for word in given]
    status, out, line = call(capsys, "membership", *given, "--out", tmp_path / "m")
    assert (status, out) == (2, "")
    assert told in line
    assert line.count("\n") == 1
    assert not (tmp_path / "m").exists()


def test_what_a_terminal_shows() -> None:
    told: Any = {
        "num_train": 64,
        "num_held_out": 500,
        "draws": 100,
        "auc": {"value": 0.85, "ci95": [0.79, 0.89]},
        "found": [
            {"false_alarm": 0.01, "share": 0.1875, "ci95": [0.11, 0.3]},
            {"false_alarm": 0.001, "num_held_out": 500, "num_needed": 999},
        ],
        "page": "m/membership.html",
    }
    assert summary.membership(told) == [
        "Training images can be told from others by their losses",
        "  AUC               0.850, 95 % interval 0.790 to 0.890; 0.5 is chance",
        "  at 1 % false      18.8 % of training images found, 95 % interval 11 % to 30 %",
        "  at 0.1 % false    not measured: 500 held-out images, 999 are needed",
        "  images            64 training, 500 held-out; losses of each: 100",
        "  page              m/membership.html",
        "next: open the page in a browser",
    ]
