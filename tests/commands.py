"""The command line, as a forked process or in this one, and settings under which it takes seconds."""

from functools import partial
from pathlib import Path

import pytest

from iet_agc import cli
from tests.processes import Ended, Program, in_world

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


def started(*arguments: object, folder: Path | None = None) -> Program:
    """A process of the command line, to be sent signals."""
    return Program(partial(cli.main, [*map(str, arguments)]), folder=folder)


def run(*arguments: object, folder: Path | None = None) -> Ended:
    """A process of the command line, to its end."""
    return started(*arguments, folder=folder).ended()


def run_in(count: int, *arguments: object, folder: Path | None = None) -> Ended:
    """The command line in `count` processes, as torchrun starts it: the worst status, and all that they said."""
    ranks = in_world(count, partial(cli.main, [*map(str, arguments)]), folder)
    status = max((rank.returncode for rank in ranks), key=abs)
    return Ended(status, "".join(rank.stdout for rank in ranks), "".join(rank.stderr for rank in ranks))


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
