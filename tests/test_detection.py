"""The planted test set in small: what must be detected, what must not, and that the right original is named."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from iet_agc.config.data_settings import DataSettings
from iet_agc.metrics.intervals import share
from iet_agc.metrics.neighbors import mirror
from tests.loaded_files import load

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "detection.py"


detection = load(BENCHMARK)
SIZES = detection.Sizes(900, 399, 498, 100)


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    """Of each space, the counts by kind."""
    return {
        space: {row["kind"]: row for row in detection.look("digits", 0, space, SIZES)["kinds"]}
        for space in ("pixels", "flips", "transformed")
    }


@pytest.mark.parametrize("space", ["pixels", "flips"])
@pytest.mark.parametrize(
    "kind",
    [
        "exact",
        "one pixel by one level",
        "noise, sd 1",
        "noise, sd 5",
        "JPEG, quality 90",
        "stands 50 times; noise, sd 5",
    ],
)
def test_copies_and_near_copies_are_detected_by_every_rule_and_named(found: Any, space: str, kind: str) -> None:
    row = found[space][kind]
    assert row["samples"] == 100
    assert [row[rule] for rule in ("calibrated", "below 0.15", "d1/d2", "named")] == [100] * 4
    assert row["authentic"] == 0
    assert row["c_t"]["value"] < -4


def test_mirrored_copies_are_detected_with_flips_only(found: Any) -> None:
    with_flips, without = found["flips"]["mirrored"], found["pixels"]["mirrored"]
    assert (with_flips["calibrated"], with_flips["named"], with_flips["authentic"]) == (100, 100, 0)
    assert without["calibrated"] <= 3
    assert without["named"] <= 20


def test_false_alarms_are_one_in_a_hundred(found: Any) -> None:
    for space in ("pixels", "flips"):
        row = found[space]["unrelated"]
        low, high = share(row["calibrated"], row["samples"]).ci95
        assert low <= 0.01
        assert high < 0.03
        assert row["named"] is None
        assert abs(row["c_t"]["value"]) < 5 * row["c_t"]["null_sd"]


def test_stronger_noise_is_detected_less(found: Any) -> None:
    detected = [found["pixels"][f"noise, sd {deviation}"]["calibrated"] for deviation in (1, 2, 5, 10, 20, 40, 80)]
    assert detected == sorted(detected, reverse=True)
    assert detected[-1] == 0


@pytest.mark.parametrize("kind", ["shifted by 2 px", "cropped to 75 %", "half of an image", "contrast halved"])
def test_what_is_documented_as_not_detected_is_not(found: Any, kind: str) -> None:
    assert found["pixels"][kind]["calibrated"] <= 3


def test_near_copies_in_the_training_set_hide_a_copy_from_all_but_nearness_and_c_t(found: Any) -> None:
    """The nearest image is named rightly, but 50 images are as near: no ratio is small."""
    row = found["pixels"]["has 49 near copies; noise, sd 5"]
    assert (row["calibrated"], row["below 0.15"], row["d1/d2"], row["named"]) == (0, 0, 0, 100)
    assert row["near"] == 100
    assert row["c_t"]["value"] < -4


def test_groups_find_it_again_and_all_else_as_well(found: Any) -> None:
    row = found["transformed"]["has 49 near copies; noise, sd 5"]
    assert [row[rule] for rule in ("calibrated", "below 0.15", "near", "named")] == [100] * 4
    for kind in ("exact", "noise, sd 10", "stands 50 times; noise, sd 5", "unrelated"):
        assert found["transformed"][kind]["calibrated"] == pytest.approx(found["pixels"][kind]["calibrated"], abs=2)


@pytest.mark.parametrize(
    "kind",
    [
        "mirrored",
        "noise, sd 10",
        "contrast halved",
        "shifted by 1 px",
        "shifted by 4 px",
        "cropped to 90 %",
        "half of an image",
        "blend 50 : 50 of two",
        "has 49 near copies; noise, sd 5",
    ],
)
def test_what_hides_from_pixels_is_detected_where_transformed_copies_are_looked_for(found: Any, kind: str) -> None:
    row = found["transformed"][kind]
    assert row["transformed"] >= 95
    assert row["named"] >= 95


def test_one_cut_of_all_ways_raises_one_false_alarm_in_a_hundred(found: Any) -> None:
    row = found["transformed"]["unrelated"]
    assert share(row["transformed"], row["samples"]).ci95[0] <= 0.01


def test_planted_shares_come_back() -> None:
    result = detection.look("digits", 1, "pixels", SIZES)
    assert len(result["held_out"]) == 2
    for row in result["mixtures"]:
        low, high = share(row["calibrated"], row["samples"]).ci95
        assert low <= row["planted"] + 0.01
        assert high >= row["planted"]
    values = [row["c_t"]["value"] for row in result["mixtures"]]
    assert values == sorted(values, reverse=True)


def test_the_ways_to_change_an_image_by_hand() -> None:
    ramp = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8)
    rng = torch.Generator().manual_seed(0)
    assert detection.shifted(ramp, 2)[0, 0, 0].tolist() == [0, 0, 0, 1, 2, 3, 4, 5]
    assert detection.half(ramp, mirror(ramp))[0, 0, 0].tolist() == [0, 1, 2, 3, 3, 2, 1, 0]
    assert detection.blended(ramp, ramp + 100, 0.8)[0, 0, 0].tolist() == list(range(20, 28))
    assert (detection.one_level(ramp, rng).int() - ramp.int()).abs().sum() == 1
    assert detection.cropped(ramp, 0.75).shape == detection.compressed(ramp, 50).shape == ramp.shape
    many = detection.noised(torch.full((1, 1, 100, 100), 128, dtype=torch.uint8), 10, rng).double()
    assert many.mean().item() == pytest.approx(128, abs=0.5)
    assert many.std().item() == pytest.approx(10, abs=0.5)


def test_near_copies_and_duplicates_are_as_told() -> None:
    where = detection.split("digits", 0, SIZES)
    assert torch.bincount(where.owner)[where.nearly].tolist() == [detection.COPIES]
    assert torch.bincount(where.owner)[where.single].unique().tolist() == [1]
    flat = where.train.flatten(1)
    assert len(flat.unique(dim=0)) == len(flat)
    distances = (flat.float() - flat[where.owner].float()).square().mean(1).sqrt()
    assert distances.max() < 4


def test_the_command_prints_tables_and_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["detection.py", "--data", "digits", "--seeds", "0", "1", "--spaces", "pixels", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", [*command, "--sizes", "300", "199", "200", "30"])
    detection.main()
    out, err = capsys.readouterr()
    numbers = json.loads(out)
    assert [result["seed"] for result in numbers["results"]] == [0, 1]
    exact = numbers["pooled"]["digits"]["kinds"]["pixels"][0]
    assert (exact["kind"], exact["samples"]) == ("exact", 60)
    assert exact["calibrated"] == share(60, 60).model_dump(mode="json")
    assert "| exact | 100.0 |" in err
    assert "| 20 % planted |" in err


def test_data_that_are_not_there_are_named_and_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(data: DataSettings) -> None:
        raise ValueError(f"{data.name} is not here: install it")

    monkeypatch.setattr(detection, "load_dataset", absent)
    monkeypatch.setattr(sys, "argv", ["detection.py", "--threads", "1", "--data", "digits", "fashion-mnist", "emoji"])
    detection.main()
    out, err = capsys.readouterr()
    assert json.loads(out)["results"] == []
    assert "fashion-mnist is left out: fashion-mnist is not here: install it" in err
