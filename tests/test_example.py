"""The example is a stock loop, short, and the two marked lines do what they say."""

import importlib.util
from pathlib import Path

import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
EXAMPLE = EXAMPLES / "diffusers_agc.py"


def load(file):
    """An example as a module."""
    spec = importlib.util.spec_from_file_location("example", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_short_and_two_lines_make_it_agc():
    lines = EXAMPLE.read_text().splitlines()
    assert len(lines) <= 60
    assert sum("# AGC" in line for line in lines) == 2


def test_it_trains(capsys):
    example = load(EXAMPLE)
    torch.set_num_threads(1)
    assert 0 < example.main(steps=50, batch_size=16) < 0.6
    assert "step 50: loss " in capsys.readouterr().out
