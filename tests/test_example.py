"""The example is a stock loop, short, and the two marked lines do what they say."""

import torch

from tests.loaded_files import EXAMPLES, load

EXAMPLE = EXAMPLES / "diffusers_agc.py"


def test_it_is_short_and_two_lines_make_it_agc():
    lines = EXAMPLE.read_text().splitlines()
    assert len(lines) <= 60
    assert sum("# AGC" in line for line in lines) == 2


def test_it_trains(capsys):
    example = load(EXAMPLE)
    torch.set_num_threads(1)
    assert 0 < example.main(steps=50, batch_size=16) < 0.6
    assert "step 50: loss " in capsys.readouterr().out
