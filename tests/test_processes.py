"""A program in a fork is to a test what a process of its own would be."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.processes import Program, in_world


@pytest.mark.parametrize(
    "body",
    [
        "print('out'); import sys; print('err', file=sys.stderr)",
        "print(input())",
        "import sys; sys.exit(3)",
        "import sys; sys.exit('no')",
        "1 / 0",
        "raise KeyboardInterrupt",
        "import os; os.kill(os.getpid(), 15)",
        "import os; os.write(1, b'raw'); os._exit(4)",
    ],
)
def test_it_ends_and_says_as_a_process_does(body: str) -> None:
    real = subprocess.run(
        [sys.executable, "-c", body], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    forked = Program(lambda: exec(body)).ended()
    assert (forked.returncode, forked.stdout) == (real.returncode, real.stdout)
    assert forked.stderr.splitlines()[-1:] == real.stderr.splitlines()[-1:]


def test_it_hears_signals_and_ends_when_it_takes_too_long(tmp_path: Path) -> None:
    asleep = Program(lambda: time.sleep(600))
    assert asleep.poll() is None
    asleep.send_signal(signal.SIGTERM)
    assert asleep.ended().returncode == -signal.SIGTERM
    asleep.kill()  # of what has ended nothing is asked
    late = Program(lambda: (print("late", file=sys.stderr), (tmp_path / "ready").touch(), time.sleep(600)))
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    with pytest.raises(TimeoutError, match="said late"):
        late.ended(0)


def test_it_has_its_own_folder_variables_and_random_numbers(tmp_path: Path) -> None:
    def action() -> None:
        print(os.getcwd(), os.environ["ONE"], torch.initial_seed(), random.random(), np.random.random())

    torch.manual_seed(5)
    first, second = (Program(action, {"ONE": "1"}, tmp_path).ended().stdout.split() for _ in range(2))
    assert first[:3] == second[:3] == [str(tmp_path), "1", str(torch.Generator().initial_seed())]
    assert not {*first[3:]} & {*second[3:]}
    assert "ONE" not in os.environ


def test_several_know_their_places() -> None:
    found = in_world(2, lambda: print(os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["MASTER_PORT"]))
    first, second = (each.stdout.split() for each in found)
    assert (first[:2], second[:2]) == (["0", "2"], ["1", "2"])
    assert first[2] == second[2]
