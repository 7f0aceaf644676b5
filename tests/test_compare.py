"""Several runs side by side: grouped by preset, with an interval over seeds."""

import json

import pytest

from iet_agc.compare import compare, mean_interval, paired_differences, table
from iet_agc.config import Settings, claim_folder, override


def audited(folder, preset, share, distance, calibrated=True, held_out=True, **changes):
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    claim_folder(override(Settings(), {"name": preset, **changes}), folder)
    numbers = {
        "version": 1,
        "mq": {"0.15": {"share": share}, "0.30": {"share": share}},
        "held_out": {"mq": {"0.15": {"share": 0.014}}} if held_out else None,
        "calibrated": {"share": share / 2} if calibrated else None,
        "quality": {"frechet_train": distance / 2, "frechet_held_out": distance if held_out else None},
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
    rows = compare([runs[0], *runs])
    assert list(rows) == ["x", "y"]
    assert rows["x"]["copied"]["values"] == [0.2, 0.4]
    assert rows["x"]["frechet_held_out"]["mean"] == 2
    assert rows["y"]["calibrated"]["values"] == [0.05]
    lines = table(rows).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| x | 2 | 30.0% (20.0%, 40.0%) [-97.1%, 157.1%] | 30.0% (")
    assert lines[3].endswith("| 2.000 (2.000) | 1.000 (1.000) | 1.4% (1.4%) |")


def test_other_settings_are_another_experiment_but_another_seed_is_not(tmp_path):
    rows = compare(
        [
            audited(tmp_path / "a", "x", 0.2, 1.0, train__seed="0"),
            audited(tmp_path / "b", "x", 0.1, 1.0, train__seed="1"),
            audited(tmp_path / "c", "x", 0.01, 1.0, train__seed="1", data__num_train="400"),
        ]
    )
    assert list(rows) == ["x", "x (data.num_train None is now 400)"]
    assert rows["x"]["seeds"] == [0, 1]
    assert rows["x"]["copied"]["values"] == [0.2, 0.1]


def test_differences_are_paired_by_seed(tmp_path):
    runs = [audited(tmp_path / f"x{seed}", "x", 0.1 * seed, 1.0, train__seed=str(seed)) for seed in (1, 2)]
    runs += [audited(tmp_path / f"y{seed}", "y", 0.1 * seed + 0.05, 3.0, train__seed=str(seed)) for seed in (2, 1)]
    runs += [audited(tmp_path / "z", "z", 0.5, 3.0, train__seed="9")]
    found = paired_differences(compare(runs))
    assert list(found) == ["y"]
    assert found["y"]["copied"]["values"] == pytest.approx([-0.05, -0.05])
    assert found["y"]["frechet_held_out"]["mean"] == -2
    assert paired_differences({}) == {}


def test_what_an_audit_does_not_know_stays_empty_and_no_more(tmp_path):
    row = compare([audited(tmp_path / "a", "x", 0.2, 1.0, calibrated=False)])["x"]
    assert row["calibrated"] is None
    assert row["frechet_held_out"]["mean"] == 1
    row = compare([audited(tmp_path / "b", "x", 0.2, 1.0, calibrated=False, held_out=False)])["x"]
    assert row["frechet_held_out"] is row["held_out_copied"] is None
    assert "| - | - | 0.500 (0.500) | - |" in table({"x": row})


def test_a_damaged_audit_is_named(tmp_path):
    run = audited(tmp_path / "a", "x", 0.2, 1.0)
    for content in ("{", "{}", "[]", '{"version": 2}', '{"version": 1, "mq": 3}'):
        (run / "audit" / "audit.json").write_text(content)
        with pytest.raises(ValueError, match=r"audit\.json is damaged"):
            compare([run])
