"""The examples are stock loops, short, and what is added to them does what it says."""

import torch

from tests.loaded_files import EXAMPLES, load

EXAMPLE = EXAMPLES / "diffusers_agc.py"
WATCHED = EXAMPLES / "memorization_watch.py"


def test_it_is_short_and_two_lines_make_it_agc():
    lines = EXAMPLE.read_text().splitlines()
    assert len(lines) <= 60
    assert sum("# AGC" in line for line in lines) == 2


def test_it_trains(capsys):
    example = load(EXAMPLE)
    torch.set_num_threads(1)
    assert 0 < example.main(steps=50, batch_size=16) < 0.6
    assert "step 50: loss " in capsys.readouterr().out


def test_a_loop_with_a_watch_is_short_and_leaves_a_model_and_a_page(tmp_path, capsys):
    assert len(WATCHED.read_text().splitlines()) <= 80
    example = load(WATCHED)
    torch.set_num_threads(1)
    watch = example.main(steps=6, out=tmp_path / "threes", every=3)
    assert [point.step for point in watch.points] == [3, 6]
    assert watch.points[0].losses.held_out > watch.points[1].losses.held_out
    assert watch.best_path == tmp_path / "threes" / "best" / "step-000000006"
    assert torch.load(watch.best_path).keys()
    assert "Recommended: step 6" in capsys.readouterr().out
    assert (tmp_path / "threes" / "report.html").is_file()
