"""Similarity of descriptors: by pencil, in an audit, on disk, and where a build fails by it."""

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from iet_agc.auditing.compute import audit
from iet_agc.auditing.run import save_audit
from iet_agc.data.image_set import ImageSet
from iet_agc.metrics.features import nearest_features
from iet_agc.metrics.gate import PIXELS, Way, gate, sentence
from iet_agc.metrics.intervals import least_calibrated_share, mean, percentile
from iet_agc.metrics.similarity import Similar, directions, most_similar, similarities
from tests.audits_on_disk import audit_on_disk
from tests.similar_images import FRESH, HELD_OUT, NETWORK, TRAIN, centred


def audited(samples, held_out: torch.Tensor | None = HELD_OUT, train=TRAIN, network=NETWORK, **options):
    real = None if held_out is None else ImageSet(held_out, "real")
    return audit(ImageSet(train, "train"), ImageSet(samples, "samples"), real, extractors=[network], **options)


def cosines(first, second):
    first, second = (functional.normalize(centred(images)[0].double(), dim=1) for images in (first, second))
    return first @ second.T


def similarity(result, name="net"):
    return result.numbers.feature_spaces[name].similarity


# By pencil ------------------------------------------------------------------------------------------------


def test_cosines_by_pencil():
    """(3, 4) and (4, 3) have cosine 24 / 25; lengths do not matter; nothing is like what has length 0 but its like."""
    samples = directions(torch.tensor([[6.0, 8.0], [0.0, 0.0], [-3.0, -4.0]]))
    train = directions(torch.tensor([[4.0, 3.0], [0.0, 0.0], [30.0, 40.0]]))
    found = most_similar(lambda name, rows, k: nearest_features(rows, train, k), samples, train, samples[:1])
    assert found.samples.tolist() == pytest.approx([1, 1, 0], abs=1e-7)
    assert found.nearest.tolist() == [2, 1, 1]
    assert found.train.tolist() == pytest.approx([0.96, 0, 0.96], abs=1e-7)
    assert found.held_out.tolist() == pytest.approx([1], abs=1e-7)


def test_above_is_strict_and_the_cut_is_a_held_out_similarity():
    """Of 199 held-out images the cut is the 2nd largest: 0.98; 3 of 5 samples are above it."""
    real = torch.arange(199, dtype=torch.float64) / 200 - 0.005
    samples = torch.tensor([0.5, 0.98, 0.985, 0.99, 1.0], dtype=torch.float64)
    found = Similar(samples, torch.zeros(5, dtype=torch.int64), samples, real)
    entry = similarities(found)
    assert entry.samples.above.count == 4
    assert entry.calibrated.cut == pytest.approx(0.98)
    assert (entry.calibrated.count, entry.calibrated.num_held_out) == (3, 199)
    assert similarities(found, torch.arange(199) < 98).calibrated is None
    assert similarities(found, torch.arange(199) < 99).calibrated.cut == pytest.approx(0.485)


def test_the_interval_of_a_percentile_is_one_of_order_statistics():
    """Of 100 draws B(100, 0.95) has its 2.5th and 97.5th percentiles at 90 and 99: the 90th and the 100th draw."""
    found = percentile([*range(1, 101)], 0.95, (-1, 1000))
    assert dict(found) == {"value": pytest.approx(95.05), "ci95": (90, 100)}
    assert percentile([*range(1, 72)], 0.95, (-1, 1000)).ci95[1] == 1000  # 0.95^71 > 0.025
    assert percentile([*range(1, 73)], 0.95, (-1, 1000)).ci95[1] == 72
    assert dict(percentile([3.0], 0.95, (-1, 1))) == {"value": 3.0, "ci95": (-1, 1)}
    with pytest.raises(ValueError, match="no percentile"):
        percentile([], 0.95, (0, 1))


def test_intervals_cover_as_often_as_they_say():
    """500 and 300 sets of 100 draws each, uniform on [0, 1]."""
    draws = np.random.default_rng(0).random((500, 100))
    covered = [low <= 0.95 <= high for low, high in (percentile([*some], 0.95, (0, 1)).ci95 for some in draws[:300])]
    assert 0.94 <= np.mean(covered) <= 0.995
    means = [mean([*some]).ci95 for some in draws]
    covered = [interval is not None and interval[0] <= 0.5 <= interval[1] for interval in means]
    assert 0.92 <= np.mean(covered) <= 0.98


def test_the_mean_of_few():
    assert mean([2.0]).ci95 is None
    assert mean([2.0, 2.0]).ci95 == (2.0, 2.0)
    with pytest.raises(ValueError, match="no mean"):
        mean([])


# In an audit ----------------------------------------------------------------------------------------------


def test_an_audit_finds_the_most_similar_images():
    copies = TRAIN[[7, 11]].clone()
    copies[:, :, 0] = 0
    often = torch.cat([TRAIN, TRAIN[:5]])  # they count once, and are not each other's background
    result = audited(torch.cat([copies, FRESH]), train=often)
    entry, all_pairs = similarity(result), cosines(torch.cat([copies, FRESH]), TRAIN)
    assert result.similar["net"].samples.tolist() == pytest.approx(all_pairs.amax(1).tolist(), abs=1e-6)
    assert result.similar["net"].nearest.tolist() == all_pairs.argmax(1).tolist()
    own = cosines(TRAIN, TRAIN).fill_diagonal_(-1).amax(1)
    assert result.similar["net"].train.tolist() == pytest.approx(own.tolist(), abs=1e-6)
    assert entry.train.mean.mean == pytest.approx(float(own.mean()), abs=1e-6)
    assert entry.samples.above.count == int((all_pairs.amax(1) > 0.5).sum()) >= 2
    assert entry.samples.p95.value == pytest.approx(float(all_pairs.amax(1).quantile(0.95)), abs=1e-6)
    assert entry.calibrated.count >= 2
    assert entry.copy_detection is False


def test_without_held_out_images_similarity_is_not_calibrated():
    entry = similarity(audited(FRESH, None))
    assert entry.held_out is entry.calibrated is None


def test_mirrored_copies_are_similar_where_flips_count():
    mirrored = TRAIN[:3].flip(-1)
    assert similarity(audited(mirrored, None)).samples.above.count == 0
    result = audited(mirrored, None, flips=True)
    assert similarity(result).samples.above.count == 3
    assert result.similar["net"].nearest.tolist() == [0, 1, 2]
    assert float(result.similar["net"].train.max()) < 0.9  # its own mirror image is no other image


def test_near_copies_among_held_out_images_set_no_cut_on_similarity():
    near = TRAIN[:50].clone()
    near[:, :, 0, 0] ^= 1
    before, after = (similarity(audited(FRESH, real)) for real in (HELD_OUT, torch.cat([near, HELD_OUT])))
    assert after.calibrated == before.calibrated
    assert after.held_out.above.count >= 50


def test_the_folder_names_the_most_similar_pairs(tmp_path):
    copies = TRAIN[[7, 11, 7]].clone()
    copies[2, :, 0] = 0
    result = audited(torch.cat([FRESH, copies]))
    save_audit(result, tmp_path / "a", most=5)
    rows = (tmp_path / "a" / "samples.csv").read_text().splitlines()
    assert rows[0].endswith("similarity_0,nearest_0,nearest_file_0")
    assert rows[-3].split(",")[-3:-1] == ["1.0", "7"]
    with np.load(tmp_path / "a" / "pictures.npz") as pictures:
        assert pictures["similar_0_pairs"][:2].tolist() == [60, 61]
        assert pictures["similar_0_nearest"][:2].tolist() == [7, 11]
        assert len(set(pictures["similar_0_nearest"].tolist())) == 5
        assert np.array_equal(pictures["similar_0_pair_originals"][1], TRAIN[11].numpy())
        assert pictures["similar_0_samples"].tolist() == result.similar["net"].samples.tolist()
        assert (len(pictures["similar_0_train"]), len(pictures["similar_0_held_out"])) == (120, 199)


# On disk --------------------------------------------------------------------------------------------------


class _Centred(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(images, (8, 8))[:, 0].flatten(1)


class _Unscaled(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = functional.interpolate(images, (8, 8))[:, 0].flatten(1)
        rows = rows - rows.mean(1, keepdim=True)
        return rows / (rows * rows).sum(1, keepdim=True).sqrt()


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Arrays in the working directory, and a descriptor; 12 samples are copies."""
    monkeypatch.chdir(tmp_path)
    np.save("train.npy", TRAIN.numpy())
    np.save("samples.npy", torch.cat([(TRAIN[:12] * 0.5 + 64).to(torch.uint8), FRESH]).numpy())
    np.save("real.npy", HELD_OUT.numpy())
    torch.jit.script(_Centred()).save("sscd.pt")


def run(out, **options: Any):
    options = {"device": "cpu", "on_done": lambda share: None, **options}
    return audit_on_disk("train.npy", "samples.npy", "real.npy", out, **options)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_a_build_fails_by_a_copy_detector_and_not_by_another_network(files, tmp_path, capsys):
    shares = []
    numbers = run(tmp_path / "a", extractors=["pixels", "sscd.pt"], flips=True, on_done=shares.append)
    assert sum(shares) == pytest.approx(1)
    entry = numbers.feature_spaces["sscd.pt"].similarity
    assert entry.copy_detection is True
    assert entry.calibrated.count >= 12
    found = {PIXELS: numbers.calibrated, Way("sscd.pt", "similarity"): entry.calibrated}
    checks = gate(found, 0.05)
    assert [check.space for check in checks.checks] == [None, "sscd.pt"]
    alike = checks.checks[1]
    assert alike.failed
    assert alike.least == least_calibrated_share(alike.count, 72, 0.01, entry.num_calibrating, 0.0125)
    found[PIXELS] = numbers.calibrated.model_copy(update={"count": 0, "share": 0.0})  # as if pixels saw none
    checks = gate(found, 0.05)
    said = sentence(checks)
    assert checks.failed
    assert f"check failed: {alike.count} of 72 samples are above the calibrated cut on similarity by sscd.pt (" in said
    assert "below the calibrated cut" not in said
    assert " where nothing is copied, by check" in said
    assert not gate(found, alike.least).failed
    assert not gate({PIXELS: found[PIXELS]}, 0).failed


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_a_gate_cannot_tell_where_held_out_images_are_near_copies_in_features(files, tmp_path):
    """The descriptor is blind to brightness, so that halved training images are near copies in its features alone."""
    dark = (TRAIN[:9] * 0.5).to(torch.uint8)
    np.save("real.npy", torch.cat([HELD_OUT[:95], dark]).numpy())
    torch.jit.script(_Unscaled()).save("sscd.pt")
    found = run(tmp_path / "a", extractors=["sscd.pt"], fail_above=0.5)
    assert found.calibrated.num_held_out == 104
    assert (found.gate.failed, found.gate.cannot_tell) == (True, True)
    (why,) = found.gate.without_cut
    assert re.match(r"on similarity by sscd.pt, 95 held-out .* 99 are needed", why)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_parts_change_no_similarity(files, tmp_path, monkeypatch):
    from iet_agc.auditing import run as audits

    whole = run(tmp_path / "a", extractors=["sscd.pt"])
    monkeypatch.setattr(audits, "_SHORTEST_PART", 16)
    assert run(tmp_path / "b", extractors=["sscd.pt"], memory=20_000) == whole
    assert json.loads((tmp_path / "b" / "audit.json").read_text())["feature_spaces"]["sscd.pt"]["similarity"]
