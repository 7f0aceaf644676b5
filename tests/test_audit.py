"""The audit on sets whose answer is known."""

import csv
import json

import numpy as np
import pytest
import torch

from iet_agc.auditing.compute import audit, calibrate
from iet_agc.auditing.run import save_audit
from iet_agc.auditing.sources import load_part, read_record
from iet_agc.data.image_set import ImageSet
from iet_agc.metrics.features import Extractor
from iet_agc.metrics.memorization import share_below
from iet_agc.runtime.exposure import TrainingRecord


def noise(count, seed, shape=(1, 8, 8)):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, *shape), generator=rng, dtype=torch.uint8)


def image_set(images, name="set"):
    return ImageSet(images, name)


TRAIN, HELD_OUT, FRESH = noise(120, 1), noise(100, 2), noise(60, 3)


def test_copies_are_counted_and_found():
    samples = torch.cat([TRAIN[[7, 11, 7]], FRESH])
    result = audit(image_set(TRAIN), image_set(samples), image_set(HELD_OUT))
    assert result.numbers.mq["0.15"].count == 3
    assert result.numbers.held_out.mq["0.15"].count == 0
    assert result.nearest[:3].tolist() == [7, 11, 7]
    assert result.distances[:3].tolist() == [0, 0, 0]
    assert result.numbers.calibrated.count >= 3


def test_fresh_samples_are_no_copies():
    numbers = audit(image_set(TRAIN), image_set(FRESH), image_set(HELD_OUT)).numbers
    assert numbers.mq["0.50"].count == 0
    assert numbers.calibrated.ci95[0] < 0.05


def test_an_image_that_is_trained_on_often_is_still_found():
    """The blind spot of MQ: 60 equal references have ratio 1 to their copy."""
    often = torch.cat([TRAIN, TRAIN[:1].repeat(59, 1, 1, 1)])
    result = audit(image_set(often), image_set(torch.cat([TRAIN[:1], FRESH])))
    assert result.numbers.mq["0.15"].count == 1
    assert (result.numbers.num_train, result.numbers.num_train_unique) == (179, 120)
    assert torch.bincount(result.place).tolist() == [60] + [1] * 119
    assert result.place[[0, 150, 1]].tolist() == [0, 0, 1]


def test_mirrored_copies_are_found_when_asked_and_marked():
    samples = image_set(torch.cat([TRAIN[:2].flip(-1), TRAIN[2:3], FRESH]))
    assert audit(image_set(TRAIN), samples).numbers.mq["0.15"].count == 1
    result = audit(image_set(TRAIN), samples, flips=True)
    assert result.numbers.mq["0.15"].count == 3
    assert result.mirrored[:3].tolist() == [True, True, False]
    assert result.numbers.conventions.flips is True


def test_the_calibrated_cut_calls_at_most_one_in_a_hundred_real_images_a_copy():
    """Of 399 images the cut is the 4th smallest ratio: 4 / 400 of further images lie below it on average."""
    result = audit(image_set(TRAIN), image_set(FRESH), image_set(noise(399, 5)))
    cut = result.numbers.calibrated.cut
    assert result.held_out_ratios is not None
    assert share_below(result.held_out_ratios, cut).count == 3
    assert share_below(result.held_out_ratios, np.nextafter(cut, 1)).count == 4
    assert result.numbers.cut == cut
    assert audit(image_set(TRAIN), image_set(FRESH), image_set(noise(98, 5))).numbers.calibrated is None


def test_held_out_images_that_were_trained_on_are_not_held_out():
    leaked = image_set(torch.cat([TRAIN[:30], HELD_OUT]))
    numbers = audit(image_set(TRAIN), image_set(FRESH), leaked).numbers
    assert (numbers.num_held_out, numbers.num_held_out_in_train) == (100, 30)
    assert numbers.calibrated == audit(image_set(TRAIN), image_set(FRESH), image_set(HELD_OUT)).numbers.calibrated
    with pytest.raises(ValueError, match="every held-out image of set stands in the training set"):
        audit(image_set(TRAIN), image_set(FRESH), image_set(TRAIN[:9]))


def test_pixels_of_large_images_are_refused_as_features():
    large = image_set(noise(3, 0, (3, 64, 64)))
    with pytest.raises(ValueError, match="for at most 4096 values, not 3 x 64 x 64: choose a network"):
        audit(large, large, extractors=["pixels"])


def test_the_cut_is_that_of_calibrate():
    leaked = image_set(torch.cat([TRAIN[:30], noise(399, 5)]))
    for flips in (False, True):
        expected = audit(image_set(TRAIN), image_set(FRESH), leaked, flips=flips).numbers.calibrated.cut
        references, cut, _ = calibrate(image_set(torch.cat([TRAIN, TRAIN[:9]])), leaked, flips)
        assert (cut, len(references)) == (expected, 120)
    assert calibrate(image_set(TRAIN), image_set(noise(98, 5)))[1] is None


def test_the_fields_other_numbers_see_copies():
    train, held_out = image_set(TRAIN), image_set(noise(200, 2))
    copies, fresh = image_set(TRAIN[torch.arange(60) % 30]), image_set(noise(200, 4))
    copied, clean = audit(train, copies, held_out).numbers, audit(train, fresh, held_out).numbers
    assert copied.statistics.d1_d2.share == 1
    assert clean.statistics.d1_d2.share == clean.held_out.statistics.d1_d2.share == 0
    assert copied.statistics.auth_pct.percent == 0
    assert 30 < clean.statistics.auth_pct.percent <= 100
    assert copied.statistics.c_t.value < -10 < -4 < clean.statistics.c_t.value < 4
    assert audit(train, copies).numbers.statistics.c_t is None


def test_authentic_is_measured_against_the_nearest_other_training_image():
    """Image 1 is image 0 with one level changed; image 2 is far. By pencil: own distances 1, 1 and far."""
    near = TRAIN[:1].clone()
    near[0, 0, 0, 0] ^= 1
    train = image_set(torch.cat([TRAIN[:1], near, TRAIN[5:6]]))
    two_off = TRAIN[:1].clone()
    two_off[0, 0, 1, :2] ^= 1
    samples = image_set(torch.cat([two_off, TRAIN[5:6]]))  # at 2 > 1 from image 0; at 0 < far from image 2
    assert audit(train, samples).numbers.statistics.auth_pct.count == 1


def test_a_set_of_one_repeated_image_is_refused():
    with pytest.raises(ValueError, match="holds one image only, repeated"):
        audit(image_set(TRAIN[[3, 3, 3]]), image_set(FRESH))


def test_without_held_out_images_nothing_is_calibrated():
    result = audit(image_set(TRAIN), image_set(FRESH))
    assert result.numbers.held_out is result.numbers.calibrated is None
    assert result.numbers.quality.frechet_held_out is None
    assert result.numbers.cut == 0.15


def test_the_interval_is_wilsons():
    """10 of 100, by the textbook formula."""
    share = share_below(torch.arange(100) / 100, 0.1)
    z, p, n = 1.959963984540054, 0.1, 100
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    assert (share.count, share.share, share.ci95) == (10, 0.1, pytest.approx((middle - reach, middle + reach)))


def test_few_training_images_take_all_of_them_as_neighbours():
    assert audit(image_set(TRAIN[:20]), image_set(FRESH)).numbers.conventions.k == 20


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (noise(5, 0, (1, 9, 9)), r"sample set set is 1 x 9 x 9, the training set set is 1 x 8 x 8"),
        (noise(5, 0, (3, 8, 8)), r"is 3 x 8 x 8"),
        (noise(1, 0), r"has 1 images: an audit needs at least 2"),
    ],
)
def test_sets_that_do_not_fit_are_refused(samples, message):
    with pytest.raises(ValueError, match=message):
        audit(image_set(TRAIN), image_set(samples))


def test_the_folder_holds_what_the_audit_found(tmp_path):
    seen = torch.full((120,), 10)
    skipped = torch.zeros(120, dtype=torch.int64)
    skipped[7] = 9
    record = TrainingRecord(seen, skipped, {"member-0000": [{"step": 1, "loss": 0.5}]})
    samples = image_set(torch.cat([FRESH, TRAIN[[7, 7]]]))
    result = audit(image_set(TRAIN), samples, image_set(HELD_OUT), seeds=range(100, 162), record=record)
    save_audit(result, tmp_path / "audit", {"train": "run", "samples": "drawn", "held_out": ""}, most=5)

    numbers = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert (numbers["version"], numbers["names"]) == (2, {"train": "run", "samples": "drawn", "held_out": ""})
    assert list(numbers["mq"]) == ["0.15", "0.20", "0.30", "0.40", "0.50", "0.60", "0.70", "0.80", "0.90"]
    assert set(numbers["calibrated"]) == {"false_alarm", "cut", "num_held_out", "count", "total", "share", "ci95"}
    rows = list(csv.DictReader((tmp_path / "audit" / "samples.csv").open()))
    assert [row["seed"] for row in rows[-2:]] == ["160", "161"]
    assert [float(row["ratio"]) for row in rows] == result.ratios.tolist()
    images = list(csv.DictReader((tmp_path / "audit" / "training-images.csv").open()))
    assert images[7] == {
        "image": "7", "multiplicity": "1", "copied": "2", "seen": "10", "skipped": "9", "file": "",
        "samples": "60 61",
    }  # fmt: skip
    with np.load(tmp_path / "audit" / "pictures.npz", allow_pickle=False) as pictures:
        ratios, nearest = result.ratios[pictures["worst"]], result.nearest[pictures["worst"]]
        assert pictures["worst"][0] == 60  # and 61 is another copy of the same image
        assert (len(ratios), len(nearest.unique())) == (5, 5)
        assert ratios.tolist() == sorted(ratios.tolist())
        assert ratios[1] == result.ratios[result.nearest != 7].min()
        assert np.array_equal(pictures["worst_samples"][0], TRAIN[7].numpy())
        assert np.array_equal(pictures["worst_originals"][0], TRAIN[7].numpy())
        assert pictures["top"][0] == pictures["skipped"][0] == 7


def test_sources_are_runs_sets_or_files(tmp_path):
    assert len(load_part("digits", "train")[0]) == 1797
    with pytest.raises(ValueError, match="digits holds out no images"):
        load_part("digits", "held-out")
    np.save(tmp_path / "images.npy", FRESH.numpy())
    assert torch.equal(load_part(str(tmp_path / "images.npy"), "train")[0].images, FRESH)
    (tmp_path / "telemetry.csv").write_text("of something else")
    assert read_record(str(tmp_path), 60) is None


def test_telemetry_of_other_training_images_is_refused(tmp_path):
    from iet_agc.config.run_folder import claim_folder
    from iet_agc.config.settings import Settings

    claim_folder(Settings(), tmp_path)
    (tmp_path / "telemetry.csv").write_text("image,member,seen,skipped\n0,0,3,1\n1,0,3,0\n")
    assert read_record(str(tmp_path), 2).seen.tolist() == [3, 3]
    with pytest.raises(ValueError, match=r"telemetry.csv has 2 images, the training set of .* has 3"):
        read_record(str(tmp_path), 3)


def test_a_repeated_image_is_ranked_by_all_its_places_and_a_rare_one_does_not_lead(tmp_path):
    """Image 0 stands 3 times, seen 30 and skipped 24; image 5 was seen once and skipped once."""
    train = image_set(torch.cat([TRAIN, TRAIN[:1], TRAIN[:1]]))
    seen, skipped = torch.full((122,), 10), torch.zeros(122, dtype=torch.int64)
    skipped[[0, 120, 121]] = 8
    seen[5] = skipped[5] = 1
    save_audit(audit(train, image_set(FRESH), record=TrainingRecord(seen, skipped, {})), tmp_path / "audit")
    rows = list(csv.DictReader((tmp_path / "audit" / "training-images.csv").open()))
    assert len(rows) == 120
    assert rows[0] == {"image": "0", "multiplicity": "3", "copied": "0", "seen": "30", "skipped": "24"} | {
        "file": "",
        "samples": "",
    }
    with np.load(tmp_path / "audit" / "pictures.npz", allow_pickle=False) as pictures:
        assert pictures["skipped"][:2].tolist() == [0, 5]


def test_a_run_that_flips_is_audited_with_flips(tmp_path):
    from iet_agc.config.overrides import override
    from iet_agc.config.run_folder import claim_folder
    from iet_agc.config.settings import Settings
    from tests.audits_on_disk import audit_on_disk

    changes = {"data.num_train": "150", "data.flips": "true"}
    for name, flips in (("plain", "false"), ("flips", "true")):
        claim_folder(override(Settings(), changes | {"data.flips": flips}), tmp_path / name)
    train, _ = load_part(str(tmp_path / "plain"), "train")
    np.save(tmp_path / "samples.npy", train.images[:60].flip(-1).numpy())
    counts = {
        name: audit_on_disk(
            str(tmp_path / name),
            str(tmp_path / "samples.npy"),
            None,
            tmp_path / f"{name}-audit",
            on_done=lambda share: None,
        )
        for name in ("plain", "flips")
    }
    assert counts["flips"].mq["0.15"].count == 60
    assert counts["plain"].mq["0.15"].count < 30
    assert counts["flips"].conventions.flips is True


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("call", range(1, 7))
def test_a_killed_audit_can_be_repeated(tmp_path, monkeypatch, call, again):
    """Died at each of the six files in turn, of a first audit and of a second one over it."""
    import os

    result, calls, honest = audit(image_set(TRAIN), image_set(FRESH)), [], os.replace
    if again:
        save_audit(result, tmp_path / "audit")

    def dies(*arguments):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        honest(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            save_audit(result, tmp_path / "audit")
    assert (tmp_path / "audit" / "audit.json").exists() == again  # the one before stays until the new one is whole
    save_audit(result, tmp_path / "audit")
    assert json.loads((tmp_path / "audit" / "audit.json").read_text())["num_samples"] == 60


def test_mirrored_training_images_are_not_held_out_where_flips_count():
    leaked = image_set(torch.cat([TRAIN[:3].flip(-1), noise(200, 2)]))
    numbers = audit(image_set(TRAIN), image_set(FRESH), leaked, flips=True).numbers
    assert numbers.num_held_out_in_train == 3
    assert numbers.calibrated.cut > 0
    assert audit(image_set(TRAIN), image_set(FRESH), leaked).numbers.num_held_out_in_train == 0


def test_repeated_held_out_images_count_once():
    """Each of 60 stands 5 times: they are 60 draws, not 300."""
    repeated = image_set(torch.cat([noise(60, 5)] * 5 + [TRAIN[:7]]))
    numbers = audit(image_set(TRAIN), image_set(FRESH), repeated).numbers
    given = [getattr(numbers, f"num_held_out{what}") for what in ("", "_in_train", "_repeated")]
    assert given == [60, 7, 240]
    assert numbers.held_out == audit(image_set(TRAIN), image_set(FRESH), image_set(noise(60, 5))).numbers.held_out
    assert numbers.calibrated is None
    assert calibrate(image_set(TRAIN), repeated)[1] is None
    assert [warning.sentence for warning in numbers.warnings] == [
        "60 held-out images that are no copies or near copies of training images are too few to set a calibrated cut, "
        "99 are needed: shares below a calibrated cut are not known"
    ]


def test_near_copies_among_held_out_images_do_not_hide_copies_from_c_t_nor_change_quality():
    """A third of the samples are copies. Half of the held-out images, too, would turn C_T from -5.1 to 4.2."""
    train, clean = noise(300, 20), noise(120, 21)
    copies, near = train[:30].clone(), train[100:220].clone()
    copies[:, :, 0, 0] ^= 2
    near[:, :, 0, 0] ^= 1
    samples = image_set(torch.cat([noise(60, 22), copies]))
    alone, among = (
        audit(image_set(train), samples, image_set(held_out)).numbers for held_out in (clean, torch.cat([clean, near]))
    )
    assert alone.statistics.c_t.value < -3
    for each, near_copies in ((alone, 0), (among, 120)):
        for found in (each.statistics.c_t, each.quality):
            assert (found.num_held_out, found.num_near_copies) == (120, near_copies)
    as_alone = {"num_near_copies": 0}
    assert among.statistics.c_t.model_copy(update=as_alone) == alone.statistics.c_t
    assert among.quality.model_copy(update=as_alone) == alone.quality
    assert "count neither for C_T nor for quality" in among.warnings[0].sentence


def test_near_copies_among_held_out_images_set_no_cut_and_are_said():
    near = TRAIN[:50].clone()
    near[:, :, 0, 0] ^= 1
    clean, copies = noise(200, 5), image_set(torch.cat([TRAIN[60:70] ^ 2, FRESH]))
    before = audit(image_set(TRAIN), copies, image_set(clean)).numbers
    after = audit(image_set(TRAIN), copies, image_set(torch.cat([near, clean]))).numbers
    assert after.calibrated == before.calibrated
    assert after.statistics.near == before.statistics.near
    assert after.calibrated.num_held_out == 200
    assert before.warnings == ()
    assert len(after.warnings) == 1
    assert after.warnings[0].sentence.startswith("50 of 250 held-out images are near copies of training images")
    assert after.held_out.mq["0.15"].count == 50  # MQ takes them as they are
    none_left = audit(image_set(TRAIN), copies, image_set(near)).numbers
    assert none_left.calibrated is None
    assert len(none_left.warnings) == 2


def test_a_feature_space_in_which_real_images_coincide_gets_no_cut_of_zero():
    """The network sees the first row only; 150 of 250 held-out images have that of a training image."""
    blind = noise(250, 5)
    blind[:150, :, 0] = TRAIN[torch.arange(150) % 120, :, 0]
    rows = Extractor("rows", None, 8, "first row", torch.device("cpu"), lambda images: (images[:, 0, 0].float(), None))
    samples = image_set(torch.cat([TRAIN[:20], FRESH]))
    space = audit(image_set(TRAIN), samples, image_set(blind), extractors=[rows]).numbers.feature_spaces["rows"]
    assert space.calibrated.cut > 0
    assert space.statistics.near.cut > 0
    assert space.calibrated.count >= 20
    assert any(warning.sentence.startswith("15") for warning in space.warnings)
