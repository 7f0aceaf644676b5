"""Several runs side by side: grouped by preset, with an interval over seeds."""

import json

import pytest

from iet_agc.compare import compare, mean_interval, table
from iet_agc.config import Settings, claim_folder, override


def audited(folder, preset, share, distance, calibrated=True):
    claim_folder(override(Settings(), {"name": preset}), folder)
    numbers = {
        "mq": {"0.15": {"share": share}},
        "calibrated": {"share": share / 2} if calibrated else None,
        "quality": {"frechet_train": distance / 2, "frechet_held_out": distance if calibrated else None},
    }
    (folder / "audit").mkdir()
    (folder / "audit" / "audit.json").write_text(json.dumps(numbers))
    return folder


def test_the_interval_is_students():
    """Of 1, 2, 3: mean 2, deviation 1, t(0.975, 2) = 4.302653."""
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval["mean"] == 2
    assert interval["ci95"] == pytest.approx([2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5])
    assert mean_interval([5.0]) == {"values": [5.0], "mean": 5.0, "ci95": None}


def test_runs_are_grouped_by_preset(tmp_path):
    runs = [
        audited(tmp_path / "a", "x", 0.2, 1.0),
        audited(tmp_path / "b", "y", 0.1, 2.0),
        audited(tmp_path / "c", "x", 0.4, 3.0),
    ]
    rows = compare(runs)
    assert list(rows) == ["x", "y"]
    assert rows["x"]["copied"]["values"] == [0.2, 0.4]
    assert rows["x"]["frechet_held_out"]["mean"] == 2
    assert rows["y"]["calibrated"]["values"] == [0.05]
    lines = table(rows).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| x | 2 | 30.0% (20.0%, 40.0%) | 15.0% (10.0%, 20.0%) | 2.000 (1.000, 3.000)")


def test_without_held_out_images_the_columns_stay_empty(tmp_path):
    rows = compare([audited(tmp_path / "a", "x", 0.2, 1.0, calibrated=False)])
    assert rows["x"]["calibrated"] is rows["x"]["frechet_held_out"] is None
    assert "| - | - |" in table(rows)


def test_a_damaged_audit_is_named(tmp_path):
    run = audited(tmp_path / "a", "x", 0.2, 1.0)
    (run / "audit" / "audit.json").write_text("{")
    with pytest.raises(ValueError, match=r"audit\.json is damaged"):
        compare([run])
