"""The command line, as a process or in this one, and settings under which it takes seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

from iet_agc import cli

TINY = {
    "data.num_train": "200",
    "data.planted_images": "4",
    "data.planted_copies": "5",
    "model.channels": "8",
    "model.groups": "4",
    "method.rounds": "2",
    "train.steps": "3",
    "train.batch_size": "8",
    "sample.num": "60",
    "sample.steps": "2",
    "run.preview_images": "0",
    "run.threads": "1",
    "run.device": "cpu",
}
SETTINGS = [word for name, value in TINY.items() for word in (f"--{name}", value)]


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "iet_agc", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def call(capsys, *arguments):
    """The same in this process, without the seconds that torch takes to import: (status, stdout, stderr)."""
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return exit_.value.code, captured.out, captured.err


def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, *settings: object) -> str:
    """What `iet-agc train` says of a data set that it refuses, before it writes anything."""
    out = tmp_path / "run-that-must-not-be"
    words = [str(word) for word in settings]
    plain = [*SETTINGS, "--data.num_train", "none", "--data.planted_images", "0"]
    status, printed, told = call(capsys, "train", "digits-default", "--out", out, *plain, *words)
    assert (status, printed) == (2, "")
    assert told.startswith("iet-agc: ")
    assert told.count("\n") == 1
    assert not out.exists()
    return told.removeprefix("iet-agc: ").removesuffix("\n")
