"""Held-out images that may not set a cut: found out, said in page, JSON, terminal and gate; sound ones are trusted."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from iet_agc.auditing.compute import AuditResult, audit
from iet_agc.auditing.run import save_audit
from iet_agc.auditing.schema import CopiesLeftOut, read_record
from iet_agc.auditing.verdict import check_audit, check_share, outcome, verdict
from iet_agc.config.settings import validate
from iet_agc.data.datasets.registry import load_dataset
from iet_agc.data.image_set import ImageSet
from iet_agc.metrics.altered import near_copies
from iet_agc.metrics.gate import PIXELS, Way, decisive, gate, sentence
from iet_agc.metrics.intervals import share
from iet_agc.metrics.records import Calibrated
from iet_agc.metrics.soundness import Blind, SameImages, TooClose, area, check_held_out
from iet_agc.reporting.audit_page import render
from iet_agc.runtime.errors import UserError
from tests.commands import call, run
from tests.pages import Page
from tests.photo_crops import crops, photographs, save_mixed, squeezed_copy

DRAWS = np.random.default_rng(0)


# Numbers ----------------------------------------------------------------------------------------------------


def test_the_area_is_the_share_of_pairs_ties_half() -> None:
    held_out, train = DRAWS.integers(0, 9, 40), DRAWS.integers(2, 9, 30)
    pairs = held_out[:, None] - train[None]
    found = area(held_out, train)
    assert found.value == pytest.approx((pairs < 0).mean() + (pairs == 0).mean() / 2)
    assert found.ci95[0] < found.value < found.ci95[1]


def checked(shift: float, held_out: int = 99, below: float = 1.0, near: int = 0, seed: int = 0):
    rng = np.random.default_rng(seed)
    real, train = rng.normal(shift, 1, held_out), rng.normal(0, 1, 2000)
    copies = (np.arange(held_out) < near).tolist(), [False] * 2000
    return check_held_out({"ratio": (real, train)}, copies, {"noise_5": (np.arange(200) < 200 * below).tolist()})


def test_a_random_split_is_trusted_even_with_the_fewest_held_out_images() -> None:
    """500 draws; each is wrongly refused with a probability below 0.002, by the area or by a tail."""
    assert sum(bool(checked(0, seed=seed).reasons) for seed in range(500)) <= 4


def test_what_is_too_close_is_found_out_and_what_is_farther_is_only_warned_of() -> None:
    (reason,) = checked(-1).reasons
    assert isinstance(reason, TooClose)
    assert reason.nearer == pytest.approx(0.76, abs=0.06)  # Phi(1 / sqrt(2))
    assert "too close" in reason.sentence
    assert "give held-out images of photographs that are not in the training set" in reason.sentence
    apart = checked(1)
    assert apart.reasons == ()
    assert apart.farther is not None
    assert "farther" in apart.farther.sentence
    assert checked(0).farther is None


@pytest.mark.parametrize(("below", "told"), [(0.795, True), (0.8, False)])
def test_a_cut_that_sees_less_than_80_percent_of_near_copies_is_blind(below: float, told: bool) -> None:
    reasons = checked(0, below=below).reasons
    assert [reason.code for reason in reasons] == ["blind"] * told
    assert not told or "only 159 of 200 training images that were given noise" in reasons[0].sentence


def test_near_copies_far_above_those_of_the_training_set_are_the_same_source() -> None:
    assert checked(0, held_out=300, near=12).reasons == ()
    (reason,) = checked(0, held_out=300, near=30).reasons
    assert isinstance(reason, SameImages)
    assert (reason.count, reason.total) == (30, 300)
    both = [True] * 30 + [False] * 270, [True] * 200 + [False] * 1800
    values = np.zeros(300), np.zeros(2000)
    assert check_held_out({"ratio": values}, both, {"noise_5": [True]}).reasons == ()


def test_near_copies_are_made_in_the_shape_of_the_images() -> None:
    for shape, kinds in (((2, 1, 8, 8), 2), ((2, 3, 16, 20), 3)):
        images = torch.randint(0, 256, shape, dtype=torch.uint8)
        made = near_copies(images)
        assert len(made) == kinds
        for each in made.values():
            assert (each.shape, each.dtype) == (images.shape, torch.uint8)
            assert not torch.equal(each, images)


# The gate ---------------------------------------------------------------------------------------------------


def of(count: int, total: int = 1000) -> Calibrated:
    return Calibrated(**dict(share(count, total)), false_alarm=0.01, cut=0.1, num_held_out=499)


BLIND, CLOSE, SOUND = checked(0, below=0.5), checked(-1), checked(0)
NET = Way("net")


@pytest.mark.parametrize(
    ("pixels", "net", "copied", "failed", "told"),
    [
        (SOUND, SOUND, 5, False, False),
        (SOUND, BLIND, 5, False, False),
        (BLIND, SOUND, 5, False, False),
        (BLIND, BLIND, 5, True, True),
        (SOUND, CLOSE, 5, True, True),
        (CLOSE, SOUND, 5, True, True),
        (CLOSE, SOUND, 300, True, False),
        (SOUND, BLIND, 300, True, False),
    ],
)
def test_a_gate_passes_only_by_what_can_tell(pixels, net, copied, failed, told) -> None:
    """Held-out images that are too close spoil every way; a blind cut only its own. Copies found stay found."""
    judged = gate({PIXELS: of(5), NET: of(copied)}, 0.05, {PIXELS: pixels, NET: net})
    assert (judged.failed, judged.cannot_tell) == (failed, told)
    said = sentence(judged)
    assert said.startswith("check failed" if failed else "check passed")
    assert ("cannot tell" in said) == any(each.reasons for each in (pixels, net))
    assert not failed or told or "in the features of net" in said


def test_decisive_names_who_can_tell() -> None:
    blind, close = BLIND.reasons, CLOSE.reasons
    assert isinstance(blind[0], Blind)
    assert decisive({PIXELS: blind, NET: ()}) == [NET]
    assert decisive({PIXELS: (), NET: close}) == []


def test_copies_beyond_chance_stay_found_by_a_cut_that_cannot_tell() -> None:
    assert outcome(of(300), CLOSE.reasons) == "copies"
    assert outcome(of(5), CLOSE.reasons) == "cannot_tell"
    assert outcome(of(5)) == "chance"
    assert outcome(None) == "cannot_tell"


# Audits -----------------------------------------------------------------------------------------------------


def digits() -> tuple[Tensor, Tensor, Tensor]:
    train, held_out = load_dataset(validate({"data": {"name": "digits"}}).data)
    images = torch.cat([train.images, held_out.images])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, real, rest = images[order].split([1200, 400, len(images) - 1600])
    return train, real, rest


TRAIN, REAL, REST = digits()
JPEG = near_copies(TRAIN)["jpeg_75"]
NOISE = torch.randn(TRAIN[:400].shape, generator=torch.Generator().manual_seed(0))
NOISED = (TRAIN[:400].float() + 20 * NOISE).round().clamp(0, 255).to(torch.uint8)

FAULTS = {
    "noised": NOISED,
    "half noised": torch.cat([NOISED[:200], REAL[:200]]),
    "a third stand in the training set": torch.cat([TRAIN[:133], REAL[:267]]),
}


def audited(held_out: Tensor | None, **options: Any) -> AuditResult:
    samples = torch.cat([REST, JPEG[:1]])
    real = None if held_out is None else ImageSet(held_out, "real")
    return audit(ImageSet(TRAIN, "train"), ImageSet(samples, "samples"), real, extractors=["pixels"], **options)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_held_out_set_cannot_tell_in_json_page_and_gate(fault: str, tmp_path: Path) -> None:
    result = audited(FAULTS[fault], fail_above=0.2)
    numbers = result.numbers
    assert numbers.verdict is not None
    assert numbers.verdict.outcome == "cannot_tell"
    assert numbers.gate is not None
    assert numbers.gate.failed
    assert numbers.gate.cannot_tell
    save_audit(result, tmp_path / "a", {"train": "t", "samples": "s", "held_out": "h"})
    assert json.loads((tmp_path / "a" / "audit.json").read_text())["verdict"]["outcome"] == "cannot_tell"
    text = Page(render({"it": tmp_path / "a"})).text
    assert "Check failed: cannot tell" in text
    assert "give held-out images of photographs that are not in the training set" in text
    assert "beyond chance shown" not in text
    assert check_audit(tmp_path / "a", 0.2) == numbers.gate


def test_without_a_gate_the_page_says_so_too(tmp_path: Path) -> None:
    save_audit(audited(NOISED), tmp_path / "a", {"train": "t", "samples": "s", "held_out": "h"})
    text = Page(render({"it": tmp_path / "a"})).text
    assert "Cannot tell Warning" in text
    assert "beyond chance shown" not in text


def test_a_sound_held_out_set_is_trusted() -> None:
    for held_out in (REAL, torch.cat([REAL[:388], JPEG[500:512]])):  # 3 % of near copies, as public test sets have
        numbers = audited(held_out, fail_above=0.2).numbers
        assert numbers.held_out_check is not None
        assert numbers.held_out_check.reasons == ()
        assert numbers.verdict == verdict(numbers)
        assert verdict(numbers).outcome != "cannot_tell"
        assert numbers.gate is not None
        assert not numbers.gate.failed


def test_pixels_that_are_all_alike_cannot_tell() -> None:
    """Images that differ by less than noise does: no near copy lies below the cut, whatever is held out."""
    images = (128 + torch.randint(-1, 2, (900, 3, 16, 16))).to(torch.uint8)
    sets = [ImageSet(part, "it") for part in images.split([500, 100, 300])]
    numbers = audit(*sets, extractors=["pixels"]).numbers
    assert numbers.verdict is not None
    assert numbers.verdict.outcome == "cannot_tell"
    assert ["would not see copies" in reason for reason in numbers.verdict.reasons] == [True]


# The command line -------------------------------------------------------------------------------------------


def test_check_decides_on_a_finished_audit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"train": "t", "samples": "s", "held_out": "h"}
    save_audit(audited(REAL), tmp_path / "sound", names)
    save_audit(audited(NOISED), tmp_path / "faulty", names)
    save_audit(audited(REAL[:50]), tmp_path / "few", names)
    expected = {("sound", "0.2"): 0, ("sound", "0"): 1, ("faulty", "0.2"): 1, ("few", "0.2"): 1, ("none", "0.2"): 2}
    for (folder, most), status in expected.items():
        found, printed, said = call(capsys, "check", tmp_path / folder, "--fail-above", most)
        assert found == status, said
        assert said.count("\n") == 1
        if status < 2:
            assert json.loads(printed)["failed"] is bool(status)
    assert "are too few to set a calibrated cut" in call(capsys, "check", tmp_path / "few", "--fail-above", "0.2")[2]


def test_check_is_a_verb_of_its_own(tmp_path: Path) -> None:
    said = run("check", tmp_path, "--fail-above", "0.2")
    assert said.returncode == 2
    assert "audit.json is not there" in said.stderr


def test_a_check_without_a_cut_cannot_tell_and_without_held_out_images_there_is_none() -> None:
    found = check_share(audited(REAL[:50]).numbers, 0.2)
    assert (found.failed, found.cannot_tell) == (True, True)
    with pytest.raises(UserError, match="the audit had no held-out images"):
        check_share(audited(None).numbers, 0.2)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    result = audited(NOISED)
    save_audit(result, tmp_path / "a", {"train": "t", "samples": "s", "held_out": "h"})
    read = read_record(tmp_path / "a" / "audit.json")
    assert read.held_out_check == result.numbers.held_out_check
    assert read.verdict == verdict(read) == result.numbers.verdict


# Parts of a held-out set ------------------------------------------------------------------------------------


def cropped(images: Tensor) -> Tensor:
    """The middle 90 % of each side, at the old size."""
    side = images.shape[-1]
    box = (0.05 * side, 0.05 * side, 0.95 * side, 0.95 * side)
    rows = [Image.fromarray(np.asarray(row.permute(1, 2, 0).squeeze(2))) for row in images]
    return stacked([row.resize((side, side), Image.Resampling.BICUBIC, box) for row in rows])


def with_part(made: Tensor, count: int) -> Tensor:
    """Sound held-out images, of which so many are altered training images."""
    return torch.cat([made[:count], REAL[: 400 - count]])


def test_a_part_that_is_too_close_is_found_out_though_the_area_hardly_moves() -> None:
    numbers = audited(with_part(cropped(TRAIN[:40]), 40), fail_above=0.2).numbers
    assert numbers.held_out_check is not None
    assert all(area.value < 0.6 for area in numbers.held_out_check.nearer.values())
    assert [reason.code for reason in numbers.held_out_check.reasons] == ["close_tail"]
    assert verdict(numbers).outcome == "cannot_tell"
    assert "a part of the held-out images is too close" in verdict(numbers).reasons[0]


def test_a_random_split_has_no_part_that_is_too_close() -> None:
    """250 draws with 2,000 held-out images; the area and each tail are told of less than once in 1,000 draws."""
    assert sum(bool(checked(0, 2000, seed=seed).reasons) for seed in range(250)) <= 1


def test_copies_that_set_the_cut_are_left_out_and_named() -> None:
    """Six near copies of photographs are found by laying them over these; without them the cut is as before."""
    rng = np.random.default_rng(0)
    images = crops(photographs(520, rng), 520, rng)
    train, real, rest = (stacked(part) for part in (images[:300], images[300:450], images[450:]))
    copies = cropped(train[:6])
    sets = ImageSet(train, "train"), ImageSet(rest, "samples")
    sound = audit(*sets, ImageSet(real, "real"), measure_quality=False).numbers
    found = audit(*sets, ImageSet(torch.cat([copies, real]), "real"), measure_quality=False).numbers
    assert sound.calibrated is not None
    assert found.calibrated is not None
    assert sound.held_out_check is not None
    assert sound.held_out_check.left_out == 0
    (told,) = [warning for warning in found.warnings if isinstance(warning, CopiesLeftOut)]
    assert {*told.held_out} <= {*range(6)}
    assert told.cut_with_them is not None
    assert told.cut_with_them < 0.8 * found.calibrated.cut
    assert found.calibrated.cut == pytest.approx(sound.calibrated.cut, rel=0.3)
    assert "number 0" in told.sentence


def test_another_domain_accuses_no_innocent_samples() -> None:
    """Negatives are far from every digit: all samples lie below their cut, and hardly one is a near copy."""
    numbers = audited(255 - REAL, fail_above=0.2).numbers
    assert numbers.calibrated is not None
    assert numbers.calibrated.count == numbers.num_samples
    assert verdict(numbers).outcome == "cannot_tell"
    assert "the cut may be too high" in verdict(numbers).reasons[0]
    assert numbers.gate is not None
    assert numbers.gate.failed


def stacked(images: list[Image.Image]) -> Tensor:
    arrays = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(arrays.reshape(*arrays.shape[:3], -1)).permute(0, 3, 1, 2).contiguous()


# From folders to the exit status ----------------------------------------------------------------------------


def test_held_out_crops_of_the_same_photographs_cannot_tell_and_those_of_others_find_every_copy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 300 samples 30 are squeezed, re-encoded copies. The held-out images of A overlap with training images."""
    rng = np.random.default_rng(1)
    pictures = photographs(150, rng)
    mine, others, further = pictures[:30], pictures[30:90], pictures[90:]
    train = crops(mine, 360, rng)
    samples = [squeezed_copy(image) for image in train[:30]] + crops(further, 270, rng)
    sets = {"train": train, "samples": samples, "a": crops(mine, 300, rng), "b": crops(others, 300, rng)}
    for name, images in sets.items():
        save_mixed(tmp_path / name, images)
    told = {}
    for name in ("a", "b"):
        sources = ("--train", tmp_path / "train", "--samples", tmp_path / "samples", "--held-out", tmp_path / name)
        words = ("audit", *sources, "--no-quality", "--fail-above", "0.05", "--out", tmp_path / f"audit-{name}")
        status, printed, said = call(capsys, *words)
        assert status == 1
        told[name] = json.loads(printed), said
    numbers, said = told["a"]
    assert numbers["verdict"]["outcome"] == "cannot_tell"
    assert numbers["gate"]["failed"]
    assert "cannot tell whether more than 5% are copied" in said
    assert "give held-out images" in said
    numbers, said = told["b"]
    assert numbers["verdict"]["outcome"] == "copies"
    ratios = [float(row["ratio"]) for row in csv.DictReader((tmp_path / "audit-b" / "samples.csv").open())]
    assert sum(ratio < numbers["calibrated"]["cut"] for ratio in ratios[:30]) == 30
    assert call(capsys, "report", tmp_path / "audit-a")[0] == 0
    assert "Check failed: cannot tell" in Page((tmp_path / "audit-a" / "report.html").read_text()).text
