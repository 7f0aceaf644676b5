"""A few of the faults that `make faults` gives every verb, and a process of two that is killed in training."""

import os
import random
import signal
import socket
import time
from pathlib import Path

import pytest
import torch

from iet_agc import cli
from tests import faults
from tests.faulty import Outcome, forked
from tests.tiny_runs import assert_same, weights


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("inputs")
    faults.prepare(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("verb", sorted({*faults.COMMANDS} - {"report-watch", "sample-png"}))
def test_killed_or_without_room_the_same_command_ends_as_it_should(inputs: Path, tmp_path: Path, verb: str) -> None:
    """Killed before a change of the disk, and without room for the largest file."""
    one = faults.Faults(verb, inputs, tmp_path)
    assert one.killed(random.Random(1), 0).killed
    refused = one.without_room(0 if verb == "shards" else one.sizes()[-1])  # whose largest files are links
    assert refused.status == 2
    assert "cannot be written: File too large; make room there, or choose another output" in refused.said


def test_an_outcome_tells_lines_from_one_line() -> None:
    faults.check_one_line(Outcome(2, "read: 3%| | 1\riet-agc: it cannot be\n", 0))
    for said in ("iet-agc: it cannot be\nand more\n", "Traceback (most recent call last):\niet-agc: it", ""):
        with pytest.raises(AssertionError):
            faults.check_one_line(Outcome(2, said, 0))
    with pytest.raises(AssertionError):
        faults.check_one_line(Outcome(1, "iet-agc: it cannot be\n", 0))


@pytest.mark.slow
def test_one_process_of_two_is_killed_and_the_other_ends_with_one_line(inputs: Path, tmp_path: Path) -> None:
    """Within a minute; and the same command goes on to the same weights."""
    train = faults.words_of("train", inputs, tmp_path / "run")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])

    def join(rank: int) -> None:
        os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"

    def die() -> None:
        join(1)
        from iet_agc.training import loop

        honest = loop._Run._train_round

        def until_the_second_round(run: loop._Run, *arguments: object) -> None:
            if run.round == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            honest(run, *arguments)  # pyright: ignore[reportArgumentType]

        loop._Run._train_round = until_the_second_round  # pyright: ignore[reportAttributeAccessIssue]
        cli.main(train)

    def live() -> None:
        join(0)
        cli.main(train)

    pid = os.fork()
    if pid == 0:
        os._exit(0 if forked(die).killed else 1)
    began = time.monotonic()
    outcome = forked(live)
    assert os.waitpid(pid, 0)[1] == 0
    assert time.monotonic() - began < 60
    faults.check_one_line(outcome)
    assert "another process of this run has ended" in outcome.said
    assert not (tmp_path / "run" / "raw").exists()
    assert forked(lambda: cli.main(train)).status == 0
    for kind in ("raw", "ema"):
        assert_same(weights(tmp_path / "run", kind), weights(inputs / "run", kind))
