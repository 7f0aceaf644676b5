"""The watch's numbers: those of an audit of the same images, and closed forms."""

import pytest
import torch

from iet_agc.auditing.compute import audit, calibrate
from iet_agc.data.image_set import ImageSet
from iet_agc.metrics.watch import Watch, agreement, losses_by_band
from iet_agc.runtime.errors import UserError


def noise(count: int, seed: int, channels: int = 1, side: int = 8) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, channels, side, side), generator=rng, dtype=torch.uint8)


def image_set(images: torch.Tensor) -> ImageSet:
    return ImageSet(images, "noise")


TRAIN, HELD_OUT = noise(150, 0), noise(250, 1)
SAMPLES = torch.cat([noise(60, 2), TRAIN[:5], TRAIN[7:9].flip(-1)])


@pytest.mark.parametrize("flips", [False, True])
def test_the_share_and_the_distance_are_those_of_an_audit(flips: bool) -> None:
    repeated = torch.cat([TRAIN, TRAIN[:20], TRAIN[:1]])
    held_out = torch.cat([HELD_OUT, TRAIN[:3], HELD_OUT[:2]])  # some stand in the training set, some are repeated
    numbers = audit(image_set(repeated), image_set(SAMPLES), image_set(held_out), flips=flips).numbers
    watch = Watch(repeated, held_out, flips)
    found = watch.measure(SAMPLES)
    assert numbers.calibrated is not None
    assert found.copied == numbers.calibrated
    assert 5 + 2 * flips <= found.copied.count < 12
    assert [pair.distance for pair in found.pairs].count(0) == 5 + 2 * flips
    assert found.source == "held-out images"
    assert found.distance is not None
    assert (found.distance.value, found.distance.to) == (numbers.quality.frechet_held_out, "held-out images")
    assert watch.cut == calibrate(image_set(repeated), image_set(held_out), flips)[1]


def test_reasons_are_those_of_an_audit() -> None:
    numbers = audit(image_set(TRAIN), image_set(SAMPLES), image_set(near := close_to(TRAIN))).numbers
    assert numbers.held_out_check is not None
    assert Watch(TRAIN, near).reasons == numbers.held_out_check.reasons != ()


def close_to(images: torch.Tensor) -> torch.Tensor:
    """Images that are altered ones of a set, too little to be others."""
    changes = noise(len(images), 9).int() // 2 - 64  # so much that d1/d2 does not call them near copies
    return (images.int() + changes).clamp(0, 255).to(torch.uint8)


def test_pairs_name_samples_and_training_images() -> None:
    repeated = torch.cat([TRAIN[:2], TRAIN])
    pairs = Watch(repeated, HELD_OUT).measure(torch.cat([noise(3, 4), TRAIN[10:11], TRAIN[1:2]]), pairs=2).pairs
    assert [(pair.sample, pair.image, pair.ratio, pair.distance) for pair in pairs] == [(3, 12, 0, 0), (4, 1, 0, 0)]


def test_without_held_out_images_the_training_images_set_the_cut() -> None:
    watch = Watch(TRAIN)
    assert (watch.source, watch.false_alarm, watch.num) == ("training images, each against the others", 0.01, 150)
    found = watch.measure(SAMPLES)
    assert 5 <= found.copied.count < 8
    assert found.above_chance
    assert found.distance is not None
    assert found.distance.to == "training images"
    assert not watch.measure(noise(100, 6)).above_chance
    own = sorted(_ratio_among_others(place) for place in range(len(TRAIN)))
    assert watch.cut == pytest.approx(own[0])  # floor(0.01 * 151) = 1


def _ratio_among_others(place: int) -> float:
    others = torch.cat([TRAIN[:place], TRAIN[place + 1 :]]).double() / 255
    squares = (others - TRAIN[place].double() / 255).flatten(1).square().sum(1).sort().values[:50]
    return float(squares[0] / squares.mean())


def test_too_few_held_out_images_set_no_cut() -> None:
    watch = Watch(TRAIN, HELD_OUT[:98])
    assert watch.source == "training images, each against the others"
    found = watch.measure(SAMPLES).distance
    assert found is not None
    assert found.num_real == 98
    assert Watch(TRAIN, HELD_OUT[:0]).cut == Watch(TRAIN, TRAIN[:9]).cut == Watch(TRAIN).cut


def test_few_training_images_tell_a_coarser_cut() -> None:
    watch = Watch(TRAIN[:24])
    assert watch.false_alarm == pytest.approx(1 / 25)
    assert watch.measure(TRAIN[:24]).above_chance
    assert not watch.measure(noise(100, 6)).above_chance


def test_large_images_are_averaged_for_the_distance() -> None:
    train, samples = noise(30, 1, 3, 64), noise(10, 2, 3, 64)
    found = Watch(train).measure(samples).distance
    assert found is not None
    assert found.features == "pixels / 255, averaged to 32 x 32"


@pytest.mark.parametrize("images", [TRAIN[:2], TRAIN[:1].expand(9, -1, -1, -1)])
def test_training_images_that_cannot_set_a_cut_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(UserError, match="3 training images that differ"):
        Watch(images)


def test_other_things_than_images_are_refused() -> None:
    watch = Watch(TRAIN)
    with pytest.raises(ValueError, match="uint8"):
        watch.measure(SAMPLES.float())
    with pytest.raises(ValueError, match="sizes must agree"):
        watch.measure(noise(4, 1, 1, 4))


# Losses -----------------------------------------------------------------------------------------------------


def test_losses_by_band_by_hand() -> None:
    timesteps = torch.tensor([0, 99, 100, 999])
    found = losses_by_band(torch.tensor([1.0, 3.0, 5.0, 7.0]), torch.tensor([2.0, 4.0, 5.0, 9.0]), timesteps, 1000)
    assert (found.train, found.held_out, found.gap, found.num_images) == (4.0, 5.0, 1.0, 4)
    assert found.train_bands == (2.0, 5.0, *[None] * 7, 7.0)
    assert found.gap_bands == [1.0, 0.0, *[None] * 7, 2.0]


def test_continuous_times_have_bands_as_well() -> None:
    found = losses_by_band(torch.ones(3), torch.ones(3), torch.tensor([0.0, 0.15, 1.0]), 1)
    assert [band is not None for band in found.train_bands] == [True, True, *[False] * 7, True]


def test_losses_that_are_not_paired_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 2 losses at 3 timesteps"):
        losses_by_band(torch.ones(3), torch.ones(2), torch.zeros(3), 1000)


# Agreement --------------------------------------------------------------------------------------------------


def test_agreement_is_that_of_all_pairs() -> None:
    images = torch.stack([noise(5, seed) for seed in range(3)])
    rows = images.flatten(2).double() / 255
    same, different = [], []
    for one, other in ((0, 1), (0, 2), (1, 2)):
        for i in range(5):
            for j in range(5):
                (same if i == j else different).append(float((rows[one, i] - rows[other, j]).square().mean()))
    found = agreement(images)
    assert found.same == pytest.approx(sum(same) / len(same))
    assert found.different == pytest.approx(sum(different) / len(different))
    assert found.value == pytest.approx(1 - found.same / found.different)
    assert (found.members, found.seeds) == (3, 5)


def test_equal_images_agree_and_unrelated_ones_do_not() -> None:
    assert agreement(noise(6, 0).expand(2, -1, -1, -1, -1)).value == 1
    assert agreement(torch.zeros(2, 3, 1, 4, 4, dtype=torch.uint8)).value == 1
    assert abs(agreement(torch.stack([noise(200, 1), noise(200, 2)])).value) < 0.02


def test_agreement_needs_two_of_each() -> None:
    with pytest.raises(ValueError, match="not 1 and 4"):
        agreement(noise(4, 0)[None])
