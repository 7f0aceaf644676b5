"""Transformed copies: each kind is found and named, one cut keeps its promise, the record follows from the scores."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import iet_agc
from iet_agc.auditing.compute import audit
from iet_agc.auditing.copies import Scores, joined, transformed_of
from iet_agc.auditing.recount import recount
from iet_agc.auditing.run import save_audit
from iet_agc.auditing.schema import TransformedLeftOut, read_record
from iet_agc.auditing.verdict import verdict
from iet_agc.data.image_set import ImageSet
from iet_agc.metrics.calibration import Neighbors
from iet_agc.metrics.joint_cut import joint_scores
from iet_agc.metrics.memorization import calibrated_cut
from iet_agc.metrics.neighbors import mirror
from iet_agc.metrics.registration import resample
from iet_agc.metrics.soundness import SameImages
from iet_agc.metrics.transformed import MOST_LEFT, STATISTICS, Compared, TrainingIndex, is_copy
from iet_agc.metrics.views import shrunk
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.seal import write_sealed
from iet_agc.runtime.tables import read_table
from iet_agc.runtime.threads import num_threads
from tests.packs import edited

SIDE, COUNT = 16, 12


def blobs(count: int, seed: int, channels: int = 1) -> Tensor:
    """Smooth images, no two alike."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 6, 6, generator=rng) * 255
    smooth = torch.nn.functional.interpolate(coarse, size=SIDE, mode="bicubic", align_corners=False)
    return smooth.round().clamp(0, 255).to(torch.uint8)


TRAIN, HELD_OUT, OTHER = blobs(150, 1), blobs(200, 2), blobs(60, 3)
OWN = torch.arange(COUNT) * 7


def placed(images: Tensor, zoom: float, down: float, right: float) -> Tensor:
    """Zoomed, and moved by pixels; what comes in repeats the edge."""
    placement = torch.tensor([zoom, -2 * down / SIDE, zoom, -2 * right / SIDE]).expand(len(images), 4)
    return resample(images.float(), placement)[0].round().clamp(0, 255).to(torch.uint8)


def noisy(images: Tensor, deviation: float) -> Tensor:
    noise = deviation * torch.randn(images.shape, generator=torch.Generator().manual_seed(9))
    return (images + noise).round().clamp(0, 255).to(torch.uint8)


IMAGES = TRAIN[OWN]
KINDS: dict[str, tuple[Tensor, set[str]]] = {
    "exact": (IMAGES, {"in_place"}),
    "noise": (noisy(IMAGES, 10), {"in_place"}),
    "darker": ((IMAGES * 0.7).round().to(torch.uint8), {"in_place"}),
    "flatter": ((IMAGES * 0.5 + 60).round().to(torch.uint8), {"in_place"}),
    "mirrored": (mirror(IMAGES), {"moved"}),
    "shifted": (placed(IMAGES, 1, 3, -4), {"moved"}),
    "cropped": (placed(IMAGES, 0.8, 0, 0), {"in_place", "moved"}),  # so smooth are these
    "half": (torch.cat([IMAGES[..., : SIDE // 2], OTHER[:COUNT, ..., SIDE // 2 :]], dim=-1), {"half"}),
    "half elsewhere": (torch.cat([OTHER[:COUNT, ..., : SIDE // 2], IMAGES[..., : SIDE // 2]], dim=-1), {"half"}),
    "upper half": (torch.cat([IMAGES[:, :, : SIDE // 2], OTHER[:COUNT, :, SIDE // 2 :]], dim=2), {"half"}),
    "blend": ((0.5 * IMAGES + 0.5 * IMAGES.roll(1, 0)).round().to(torch.uint8), {*STATISTICS}),
}


@pytest.fixture(scope="module")
def index() -> TrainingIndex:
    return TrainingIndex(TRAIN)


@pytest.fixture(scope="module")
def real(index: TrainingIndex) -> Tensor:
    return index.compare(HELD_OUT).statistics


def below(real: Tensor, found: Compared) -> tuple[Tensor, Tensor]:
    """Which images are below the cut of all statistics, and by which each is rarest."""
    held_out, samples = joint_scores(real, found.statistics, [1.0] * len(STATISTICS))
    cut = calibrated_cut(held_out.amin(dim=1))
    assert cut is not None
    below = samples < cut
    return below.any(1), torch.where(below.any(1), below.int().argmax(1), samples.argmin(1))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_found_and_its_original_named(kind: str, index: TrainingIndex, real: Tensor) -> None:
    samples, ways = KINDS[kind]
    found = index.compare(samples)
    copied, by = below(real, found)
    assert int(copied.sum()) >= COUNT - 1
    named = found.references.gather(1, by[:, None])[:, 0]
    originals = torch.stack([OWN, OWN.roll(1)], dim=1) if kind == "blend" else OWN[:, None]
    assert int((named[:, None] == originals).any(1).sum()) >= COUNT - 1
    assert sum(STATISTICS[at] in ways for at in by.tolist()) >= COUNT - 2


def test_how_an_image_was_moved_is_told_in_pixels(index: TrainingIndex) -> None:
    moved, flipped = (index.compare(KINDS[kind][0]) for kind in ("shifted", "mirrored"))
    zoom, shift = moved.placement[:, 0::2], moved.placement[:, 1::2]
    assert (zoom.median(0).values - 1).abs().max() < 0.02
    assert (shift.median(0).values * SIDE / 2 - torch.tensor([-3.0, 4.0])).abs().max() < 0.2
    assert "moved +3.0 down, -4.0 right" in [
        moved.in_words(row, "moved", (1, SIDE, SIDE))[-27:] for row in range(COUNT)
    ]
    assert flipped.mirrored.sum() >= COUNT - 1
    assert flipped.in_words(0, "moved", (1, SIDE, SIDE)) == "mirrored"
    halves = index.compare(KINDS["half elsewhere"][0])
    assert "half of the columns, from 0 on, stands from 8 on" in [
        halves.in_words(row, "half", (1, SIDE, SIDE)) for row in range(COUNT)
    ]


def test_both_images_of_a_blend_are_named_the_larger_part_first() -> None:
    """Of few training images all are candidates."""
    train = blobs(5, 4)
    samples = (0.3 * train[[0, 1]] + 0.7 * train[[3, 4]]).round().to(torch.uint8)
    index = TrainingIndex(train)
    found = index.compare(samples)
    pairs = torch.stack([found.references[:, STATISTICS.index("blend")], found.second], dim=1)
    assert pairs.tolist() == [[3, 0], [4, 1]]


def test_statistics_are_those_of_the_literal_form() -> None:
    """Shares of variance by least squares with a gain and an offset, of all training images, for one pair of halves."""
    train, sample = blobs(10, 7)[:, :, :8, :8], blobs(1, 8)[:, :, :8, :8]
    sample[..., :4] = train[5:6, ..., 4:]
    found, half = TrainingIndex(train).compare(sample), STATISTICS.index("half")
    left, target = [], sample[0, 0, :, :4].double().flatten().numpy()
    target -= target.mean()
    for image in train[:, 0, :, 4:].double().flatten(1).numpy():
        image = image - image.mean()
        product = max(float(image @ target), 0.0)  # no negatives
        rest = target @ target - product**2 / (image @ image + 32)  # each pixel rounds by one level
        left.append((rest + 32) / (target @ target + 32))
    assert found.halves.tolist() == [[2, 0, 4]]
    assert int(found.references[0, half]) == int(np.argmin(left)) == 5
    assert float(found.statistics[0, half]) == pytest.approx(sorted(left)[0] / sorted(left)[8], rel=1e-3)


def test_no_number_depends_on_threads_or_on_other_images(index: TrainingIndex) -> None:
    images = torch.cat([samples for samples, _ in KINDS.values()])
    whole = index.compare(images)
    with num_threads(1):
        parts = [index.compare(images[start : start + 50]) for start in range(0, len(images), 50)]
    for name, values in vars(whole).items():
        assert torch.equal(values, torch.cat([vars(part)[name] for part in parts])), name


def test_colours_and_few_images_are_compared_too() -> None:
    train = blobs(3, 5, channels=3)
    found = TrainingIndex(train).compare(mirror(train))
    moved = STATISTICS.index("moved")
    assert found.references[:, moved].tolist() == [0, 1, 2]
    assert found.statistics[:, moved].max() < 0.05
    assert found.statistics.min() > 0
    assert found.statistics.max() <= 1
    large = torch.nn.functional.interpolate(train.float(), size=(70, 40)).to(torch.uint8)
    assert shrunk(large).shape == (3, 3, 32, 32)
    assert TrainingIndex(large).compare(large).references[:, :2].tolist() == [[0, 0], [1, 1], [2, 2]]
    with pytest.raises(ValueError, match="2 or more"):
        TrainingIndex(train[:1])


@pytest.mark.parametrize("kind", KINDS)
def test_whole_images_that_are_copies_beyond_doubt_are_told_by_themselves(kind: str, index: TrainingIndex) -> None:
    found = index.compare(KINDS[kind][0])
    sure = int(is_copy(found.statistics, found.left).sum())
    if kind != "noise":  # some are, some are not
        assert sure == 0 if "half" in kind or kind == "blend" else sure >= COUNT - 2
    alone = index.compare(KINDS[kind][0][3:4])
    assert torch.equal(is_copy(alone.statistics, alone.left), is_copy(found.statistics, found.left)[3:4])


def test_real_images_are_no_copies(index: TrainingIndex) -> None:
    found = index.compare(HELD_OUT)
    assert not is_copy(found.statistics, found.left).any()
    assert found.left.min() > MOST_LEFT


def test_images_of_one_colour_are_no_copies_of_each_other() -> None:
    """Nearly all of their variance is between channels, and any other image of that colour explains it."""
    rng = torch.Generator().manual_seed(4)
    train = blobs(40, 5, channels=3)
    train[:2] = torch.tensor([0, 80, 160], dtype=torch.uint8)[:, None, None] + torch.randint(
        6, (2, 3, SIDE, SIDE), generator=rng, dtype=torch.uint8
    )
    found = TrainingIndex(train[1:]).compare(train[:1])
    assert found.statistics[0, STATISTICS.index("moved")] < 0.02
    assert found.left[0] > 0.1


def test_what_is_left_over_of_a_mirrored_image_is_that_of_the_literal_form() -> None:
    train = blobs(12, 7)[:, :, :8, :8]
    found = TrainingIndex(train).compare(mirror(train[5:6]))
    pixels = train[5].double().flatten().numpy()
    variance = float(np.sum((pixels - pixels.mean()) ** 2))
    rest = variance - variance**2 / (variance + 64)  # each pixel rounds by one level
    assert float(found.left[0]) == pytest.approx((rest + 64) / (variance + 64), rel=1e-3)


# One cut ----------------------------------------------------------------------------------------------------


def slow_log_tail(others: list[float], value: float) -> float:
    """A tail probability among other values, as `joint_cut` describes it; the decadic logarithm."""
    ordered = np.log(np.sort(others))
    most = min(len(ordered), max(5, round(0.1 * len(ordered))))
    edge, log = ordered[most - 1], np.log(value)
    if log < edge:
        slope = max(float(np.mean(edge - ordered[:most])), 1e-6)
        natural = np.log((most + 1) / (len(ordered) + 1)) + (log - edge) / slope
    else:
        natural = np.log((np.sum(ordered <= log) + 1) / (len(ordered) + 1))
    return float(natural / np.log(10))


def test_scores_are_the_tail_probabilities_of_the_literal_form() -> None:
    rng = torch.Generator().manual_seed(1)
    held_out, samples = (torch.rand(count, 2, generator=rng, dtype=torch.float64) ** 2 for count in (80, 30))
    real, found = joint_scores(held_out, samples, [1.0, 3.0])
    for column, weight in enumerate((1.0, 3.0)):
        values = held_out[:, column].tolist()
        expected = [slow_log_tail(values, value) - np.log10(weight) for value in samples[:, column].tolist()]
        assert found[:, column].tolist() == pytest.approx(expected)
        alone = [slow_log_tail([*values[:at], *values[at + 1 :]], value) for at, value in enumerate(values)]
        assert real[:, column].tolist() == pytest.approx([each - np.log10(weight) for each in alone])


@pytest.mark.parametrize("correlated", [False, True])
def test_the_whole_procedure_raises_one_false_alarm_in_a_hundred(correlated: bool) -> None:
    """Five statistics, of which each by itself would raise one: without one cut, up to five."""
    rng, rates, apart = torch.Generator().manual_seed(2), [], []
    for _ in range(100):
        values = torch.rand(1399, 5, generator=rng, dtype=torch.float64)
        values = values[:, :1] ** torch.arange(1, 6) if correlated else values
        held_out, samples = values[:399], values[399:]
        real, found = joint_scores(held_out, samples, [1.0, 3.0, 1.0, 1.0, 1.0])
        cut = calibrated_cut(real.amin(dim=1))
        assert cut is not None
        rates.append(float((found.amin(dim=1) < cut).double().mean()))
        each = torch.stack([torch.tensor(calibrated_cut(column)) for column in held_out.T])
        apart.append(float((samples < each).any(1).double().mean()))
    assert 0.007 < np.mean(rates) < 0.0115
    assert correlated or np.mean(apart) > 0.035


def test_held_out_images_alarm_as_often_as_promised(index: TrainingIndex, real: Tensor) -> None:
    """Images like the held-out ones, over 40 splits of all of them."""
    statistics = torch.cat([real, index.compare(blobs(200, 6)).statistics])
    rng, rates = torch.Generator().manual_seed(3), []
    for _ in range(40):
        order = torch.randperm(len(statistics), generator=rng)
        held_out, found = joint_scores(statistics[order[:199]], statistics[order[199:]], [1.0, 3.0, 1.0, 1.0])
        cut = calibrated_cut(held_out.amin(dim=1))
        assert cut is not None
        rates.append(float((found.amin(dim=1) < cut).double().mean()))
    assert np.mean(rates) < 0.015


def test_held_out_images_that_are_copies_neither_set_the_cut_nor_are_ranked(index: TrainingIndex) -> None:
    """One mirrored image would be the rarest by far; two set the cut of 200."""
    samples = index.compare(KINDS["mirrored"][0])
    plain = index.compare(HELD_OUT)
    twins = index.compare(mirror(TRAIN[[3, 10, 17]]))
    distances = torch.arange(1, 51, dtype=torch.float64).expand(203, 50) + torch.arange(203)[:, None]
    own = torch.ones(203)

    def scores(real: Compared, count: int) -> Scores:
        found = Neighbors(distances[:COUNT], distances[:COUNT].long(), own[:COUNT], distances[:count], own[:count])
        return Scores(
            found=found,
            transformed=samples.statistics,
            transformed_held_out=real.statistics,
            transformed_left=real.left,
        )

    both = Compared(
        *(torch.cat([one, other]) for one, other in zip(vars(plain).values(), vars(twins).values(), strict=True))
    )
    without, with_twins = scores(plain, 200), scores(both, 203)
    expected, found = joined(without), joined(with_twins)
    assert expected is not None
    assert found is not None
    assert (found.cut, found.samples.tolist()) == (expected.cut, expected.samples.tolist())
    assert (found.samples < found.cut).sum() >= COUNT - 1
    of_before = joined(replace(with_twins, transformed_left=None))
    assert of_before is not None
    assert (of_before.samples < of_before.cut).sum() < COUNT / 2
    assert with_twins.held_out_copies is not None
    assert with_twins.held_out_copies.nonzero()[:, 0].tolist() == [200, 201, 202]
    distances[202, 0] = 1  # a near copy as it is sets no cut already
    near = scores(both, 203).held_out_copies
    assert near is not None
    assert near.nonzero()[:, 0].tolist() == [200, 201]


# Audits -----------------------------------------------------------------------------------------------------

#: Training images of which the mirror image is held out.
TWINS = [3, 10, 17]

SETS = (
    ImageSet(TRAIN, "train"),
    ImageSet(torch.cat([KINDS["mirrored"][0], OTHER]), "samples"),
    ImageSet(torch.cat([HELD_OUT, mirror(TRAIN[TWINS])]), "real"),
)


def test_too_few_held_out_images_are_refused() -> None:
    for real in (None, ImageSet(HELD_OUT[:50], "real")):
        with pytest.raises(UserError, match="held-out"):
            audit(*SETS[:2], real, transformed=True, measure_quality=False)


def test_copies_of_an_image_with_near_copies_are_found_by_groups() -> None:
    train = ImageSet(torch.cat([TRAIN, noisy(TRAIN[7:8].repeat(20, 1, 1, 1), 2)]), "train")
    samples = ImageSet(mirror(noisy(TRAIN[7:8].repeat(6, 1, 1, 1), 3)), "samples")
    counts = []
    for groups in (False, True):
        found = audit(train, samples, SETS[2], groups=groups, transformed=True, measure_quality=False).numbers
        assert found.transformed is not None
        assert found.transformed.calibrated is not None
        counts.append(found.transformed.calibrated.count)
    assert counts == [0, 6]


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("arrays")
    for name, images in zip(("train", "samples", "real"), SETS, strict=True):
        np.savez(place / f"{name}.npz", images=images.images.permute(0, 2, 3, 1).numpy())
    return place


@pytest.fixture(scope="module")
def parts(arrays: Path) -> list[str]:
    return [str(arrays / f"{name}.npz") for name in ("train", "samples", "real")]


@pytest.fixture(scope="module")
def audited(arrays: Path, parts: list[str]) -> Path:
    iet_agc.audit(*parts, out=arrays / "audit", transformed=True, extractors=["pixels"], quiet=True)
    return arrays / "audit"


def test_mirrored_copies_are_told_by_the_record_the_table_and_the_page(audited: Path) -> None:
    record = json.loads((audited / "audit.json").read_text())
    found = record["transformed"]
    assert record["calibrated"]["count"] <= 2
    assert found["calibrated"]["count"] >= COUNT - 1
    assert found["by"]["moved"] >= COUNT - 1
    assert found["others"]["count"] >= COUNT - 2
    assert record["verdict"]["by"] == ["in pixels, transformed"]
    rows = read_table(audited / "samples.csv")
    told = [(row["copied_by"], int(row["transformed_nearest"])) for row in rows[:COUNT]]
    assert sum(each == ("moved", int(own)) for each, own in zip(told, OWN, strict=True)) >= COUNT - 1
    assert rows[0]["transformed_how"] == "mirrored"
    page = iet_agc.report(audited).read_text()
    assert "are copies as they are or transformed" in page
    assert page.count("transformed to be sample") >= COUNT - 1
    assert "<strong>mirrored</strong>" in page
    assert "--transformed" in page


def test_held_out_images_that_are_transformed_copies_are_counted_and_named(audited: Path) -> None:
    record = read_record(audited / "audit.json")
    assert record.transformed is not None
    assert record.transformed.num_held_out_copies == len(TWINS)
    assert record.transformed.calibrated is not None
    assert record.transformed.calibrated.num_held_out == len(HELD_OUT)
    (told,) = [each for each in record.warnings if isinstance(each, TransformedLeftOut)]
    assert told.held_out == (200, 201, 202)
    cut = record.transformed.calibrated.cut
    assert told.cut == cut
    assert told.cut_with_them is not None
    assert told.cut_with_them < cut
    assert "3 of 203 held-out images are training images again" in told.sentence
    page = iet_agc.report(audited).read_text()
    assert "3 of the held-out images are transformed copies of training images beyond doubt" in page
    damaged = dict(record) | {"transformed": record.transformed.model_copy(update={"num_held_out_copies": 4})}
    with pytest.raises(ValueError, match="set no cut"):
        type(record).model_validate(damaged)


def test_an_audit_of_before_they_were_counted_is_counted_as_it_was(tmp_path: Path) -> None:
    """Without such images it lacks a key and an array, and nothing else."""
    found = audit(*SETS[:2], ImageSet(HELD_OUT, "real"), transformed=True, measure_quality=False)
    folder = save_audit(found, tmp_path / "audit")
    record = json.loads((folder / "audit.json").read_text())
    assert record["transformed"].pop("num_held_out_copies") == 0
    with np.load(folder / "scores.npz") as archive:
        kept = {name: array for name, array in archive.items() if name != "pixels_transformed_left"}
    np.savez(folder / "scores.npz", **kept)
    write_sealed(folder / "audit.json", record, record.pop("seal")["files"])
    again = read_record(folder / "audit.json")
    assert again.transformed is not None
    assert again.transformed.num_held_out_copies is None
    assert recount(folder).differences == []


def test_pictures_show_the_training_image_as_the_sample_has_it(audited: Path) -> None:
    with np.load(audited / "pictures.npz") as archive:
        pictures = dict(archive)
    samples, overlaid = (pictures[f"transformed_{name}"].astype(int) for name in ("samples", "overlaid"))
    inner = np.abs(samples - overlaid)[:, :, 2:-2, 2:-2].mean((1, 2, 3))  # edges are not laid over
    mirrored = pictures["transformed"] < COUNT
    assert mirrored.sum() >= COUNT - 1
    assert inner[mirrored].max() < 8
    assert (np.abs(samples - pictures["transformed_originals"]).mean((1, 2, 3))[mirrored] > 8).all()


def _overlay(image: Tensor, first: Tensor, **known: Any) -> Tensor:
    fields = {"placement": torch.tensor([[1.0, 0.0, 1.0, 0.0]]), "mirrored": torch.tensor([False])}
    fields |= {"halves": torch.tensor([[1, 0, 0]]), "second": torch.tensor([0]), "left": torch.ones(1)}
    by, second = known.pop("by"), known.pop("second_image", first)
    none = torch.zeros(1, 4)
    return Compared(none, none, **(fields | known)).overlaid(0, by, image, first, second)


def test_a_training_image_is_laid_over_as_each_statistic_says() -> None:
    first, second = TRAIN[0], TRAIN[1]
    brighter = (first.float() * 0.5 + 60).round().to(torch.uint8)
    assert (_overlay(brighter, first, by="in_place").int() - brighter.int()).abs().max() <= 1
    assert torch.equal(_overlay(brighter, first, by="as_it_is"), first)
    size = first.shape[-1]
    right = torch.cat([second[..., : size // 2], first[..., : size // 2]], dim=-1)
    half = _overlay(right, first, by="half", halves=torch.tensor([[2, size // 2, 0]]))
    assert (half[..., : size // 2] == 255).all()
    assert (half.int() - right.int())[..., size // 2 :].abs().max() <= 1
    even = ((first.int() + second.int()) // 2).to(torch.uint8)
    assert (_overlay(even, first, by="blend", second_image=second).int() - even.int()).abs().max() <= 1
    left = torch.cat([first[..., 2:], first[..., -2:]], dim=-1)
    shifted = _overlay(left, first, by="moved", placement=torch.tensor([[1.0, 0.0, 1.0, 4 / size]]))
    assert (shifted.int() - left.int())[..., 2:-4][:, 2:-2].abs().max() <= 1


def test_a_doubt_of_the_held_out_images_is_told_once(audited: Path) -> None:
    record = read_record(audited / "audit.json")
    doubt = SameImages(exact=True, count=50, total=100, among_train=0.0)
    assert record.held_out_check is not None
    doubted = record.held_out_check.model_copy(update={"reasons": (doubt,)})
    found = verdict(record.model_copy(update={"held_out_check": doubted}))
    assert found.reasons == (f"In pixels: {doubt.sentence}",)


def test_without_being_asked_for_no_number_changes(parts: list[str], audited: Path, tmp_path: Path) -> None:
    iet_agc.audit(*parts, out=tmp_path / "plain", extractors=["pixels"], quiet=True)
    plain, both = (json.loads((each / "audit.json").read_text()) for each in (tmp_path / "plain", audited))
    assert plain.pop("transformed") is None
    both.pop("transformed")
    assert [each["code"] for each in both["warnings"] if each not in plain["warnings"]] == ["transformed_left_out"]
    both["warnings"] = [each for each in both["warnings"] if each in plain["warnings"]]
    differ = {name for name in plain if plain[name] != both[name]}
    assert differ <= {"made_of", "provenance", "seal", "verdict"}


Lie = Callable[[Any], None]


def fewer(record: Any) -> None:
    record["transformed"]["others"]["count"] -= 1
    record["transformed"]["others"]["share"] = record["transformed"]["others"]["count"] / 72
    record["transformed"]["num_held_out_copies"] = 0


def lower(record: Any) -> None:
    record["transformed"]["calibrated"]["cut"] -= 0.25


@pytest.mark.parametrize(
    ("lie", "named"),
    [
        (fewer, {"transformed.others.count", "transformed.num_held_out_copies"}),
        (lower, {"transformed.calibrated.cut"}),
    ],
)
def test_a_pack_counts_and_measures_transformed_copies_again(
    audited: Path, parts: list[str], tmp_path: Path, lie: Lie, named: set[str]
) -> None:
    pack = tmp_path / "pack"
    iet_agc.pack(audited, out=pack)
    if lie is fewer:
        found = iet_agc.verify(pack, *parts, quiet=True)
        assert found.sound, found
        assert not found.only_images
    changed = iet_agc.verify(edited(pack, tmp_path / "edited", "audits/audit/audit.json", lie), quiet=True)
    told = "\n".join(map(str, changed.differences))
    assert [each for each in named if each not in told] == []


def test_scores_without_transformed_copies_count_none() -> None:
    plain = audit(*SETS, measure_quality=False)
    scores: Scores = plain.scores[0]
    assert transformed_of(scores, plain.numbers.calibrated, None) is None
