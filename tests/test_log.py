"""Curves on disk and the sums behind them."""

import json
import sys
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from iet_agc.runtime.curves import BANDS, Curves, Meter, read_curve
from iet_agc.runtime.progress import phase, progress_bar, say
from iet_agc.runtime.silence import silenced


def test_a_meter_counts_by_bands_and_means_over_steps():
    meter = Meter(1000, torch.device("cpu"))
    meter.add(torch.tensor([1.0, 3.0]), torch.tensor([True, False]), torch.tensor([0, 99]))
    meter.add(torch.tensor([4.0, 6.0]), torch.tensor([True, True]), torch.tensor([100, 999]))
    point = meter.point()
    assert point["loss"] == pytest.approx((2 + 5) / 2)
    assert point["skip_rate"] == 0.25
    assert point["skip_rate_bands"] == [0.5, 0.0, *[None] * (BANDS - 3), 0.0]
    meter.reset()
    meter.add(torch.tensor([7.0]), torch.tensor([True]), torch.tensor([5]))
    assert meter.point()["loss"] == 7


def curve_of(run, steps, start=0):
    curves = Curves(run, 1, start)
    for step in steps:
        curves.add({"step": step, "loss": step / 2, "skip_rate_bands": [None, 0.5]})
    curves.close()
    return curves


def test_points_are_kept_up_to_where_the_member_stands(tmp_path):
    curves = curve_of(tmp_path, [2, 4, 6])
    curve_of(tmp_path, [6, 8], start=4)
    assert [point["step"] for point in read_curve(curves.file)] == [2, 4, 6, 8]


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path):
    curves = curve_of(tmp_path, [2, 4])
    with curves.file.open("a") as stream:
        stream.write('{"step": 6, "lo')
    assert [point["step"] for point in read_curve(curves.file)] == [2, 4]
    curve_of(tmp_path, [6], start=4)
    assert [json.loads(line)["step"] for line in curves.file.read_text().splitlines()] == [2, 4, 6]


@pytest.mark.parametrize(
    "line",
    [
        "[1]",
        "3",
        "{}",
        '{"step": "2"}',
        '{"step": 2, "loss": "low"}',
        '{"step": 2, "loss": NaN}',
        '{"step": 2,',
        "\xff",
    ],
)
def test_a_line_that_is_no_point_is_named(tmp_path, line):
    """The last line may be what a kill left; no other, and not without an end."""
    file = curve_of(tmp_path, [1, 2]).file
    whole = file.read_bytes()
    file.write_bytes(whole + line.encode("latin-1"))
    assert [point["step"] for point in read_curve(file)] == [1, 2]
    file.write_bytes(whole + line.encode("latin-1") + b"\n" + whole)
    with pytest.raises(
        ValueError, match=r"member-0001\.jsonl is damaged: line 3 is no point of a curve; remove the file"
    ):
        read_curve(file)


def test_tensorboard_gets_the_same_numbers_and_the_grids(tmp_path):
    curves = Curves(tmp_path, 1, 0)
    curves.add({"step": 3, "loss": 0.5, "skip_rate_bands": [None, 0.25]})
    curves.add_grid(torch.zeros(3, 4, 4, dtype=torch.uint8), 3)
    curves.close()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "member-0001")).Reload()
    tags: Any = events.Tags()
    assert set(tags["scalars"]) == {"loss", "skip_rate_bands/1"}
    assert [(event.step, event.value) for event in events.Scalars("skip_rate_bands/1")] == [(3, 0.25)]
    assert tags["images"] == ["preview"]


def test_progress_and_words_go_to_stderr(capsys):
    with progress_bar("work", 4, done=2) as bar:
        bar.delay = 0
        bar.update(1)
    say("a line")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "a line" in captured.err
    assert bar.n == 3


def test_a_log_gets_a_line_for_each_tenth_with_phase_and_figures(capsys):
    with progress_bar("train", 200, done=40) as bar:
        bar.delay = 0
        for step in range(160):
            bar.show_figures(f"loss {step}")
            bar.update()
        bar.name_phase("more")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" in ")[0] for line in lines] == [f"train: {10 * k}% ({20 * k}/200 steps)" for k in range(3, 11)]
    assert lines[0].endswith(" left, loss 19")
    assert "left" not in lines[-1]


def test_a_log_says_what_nobody_could_count_at_the_end_and_nothing_of_short_work(capsys):
    with progress_bar("read", None, unit="image") as bar:
        bar.delay = 0
        bar.update(3)
        assert capsys.readouterr().err == ""
    assert capsys.readouterr().err.startswith("read: 3 images in ")
    with progress_bar("draw", 10) as bar, phase("export"):
        bar.update(10)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_one_bar_that_names_its_phase_and_figures(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress_bar("train", 4) as bar, phase("export"):
        bar.delay = 0
        bar.show_figures("loss 1")
        bar.name_phase("preview")
        bar.update(4)
    told = capsys.readouterr().err
    assert "preview: 0% |" in told
    assert "loss 1" in told
    assert "export ...\r" in told
    with silenced(), progress_bar("train", 4) as bar, phase("export"):
        bar.delay = 0
        bar.show_figures("loss 1")
        bar.name_phase("preview")
        bar.update(4)
    assert capsys.readouterr().err == ""


def test_a_kill_while_a_curve_is_cut_back_loses_nothing(tmp_path, monkeypatch):
    import os

    curves = curve_of(tmp_path, [2, 4, 6])
    monkeypatch.setattr(os, "replace", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        Curves(tmp_path, 1, 4)
    assert [point["step"] for point in read_curve(curves.file)] == [2, 4, 6]


def test_a_bar_takes_fractions_and_shows_whole_numbers(capsys):
    with progress_bar("draw", 10, done=2, unit="image") as bar:
        bar.delay = 0
        for _ in range(80):
            bar.update(0.1)
            assert isinstance(bar.n, int)
        assert bar.n == 10
    with progress_bar("draw", 10, unit="image", shown=False) as bar:
        bar.update(0.5)  # a bar that is not shown takes them, too
    assert "10/10" in capsys.readouterr().err
