"""Processes: the result does not depend on how many there are. Real gloo processes on the loopback."""

import pytest
import torch

from iet_agc.runtime import distributed
from iet_agc.training import loop
from tests.processes import die, in_child
from tests.tiny_runs import CPU, assert_same, ends, images, settings, train_in, weights


@pytest.mark.parametrize(("members", "count"), [(4, 1), (4, 2), (4, 3), (8, 8)])
def test_members_on_ranks_end_bitwise_equal(tmp_path, members, count):
    chosen = settings(method__members=members, model__dropout=0.1, model__multipliers=[1], train__steps=3)
    loop.train(chosen, images(), tmp_path / "alone" / "run", CPU)
    train_in(count, chosen, tmp_path / "many" / "run")
    for kind in ("raw", "ema"):
        assert_same(weights(tmp_path / "many" / "run", kind), weights(tmp_path / "alone" / "run", kind))
    assert (tmp_path / "many/run/telemetry.csv").read_text() == (tmp_path / "alone/run/telemetry.csv").read_text()


@pytest.mark.parametrize("members", [1, 3])
def test_replicas_have_the_gradient_of_one_process(tmp_path, members):
    """8 processes are a team of 8, or of 3, 3 and 2. After one step the first moment is 0.1 of the gradient."""
    chosen = settings(method__members=members, method__rounds=1, model__dropout=0.1, train__steps=1)
    for count, name in ((1, "alone"), (8, "many")):
        train_in(count, chosen, tmp_path / name / "run")
    alone, many = (ends(tmp_path / name / "run", "optimizer.exp_avg.") for name in ("alone", "many"))
    for member in range(members):
        assert len(many[member]) == len(range(member, 8, members))
        for name, gradient in alone[member][0].items():
            torch.testing.assert_close(many[member][0][name], gradient, rtol=1e-4, atol=1e-7)


def test_replicas_end_with_the_same_bits_and_the_losses_of_one_process(tmp_path):
    chosen = settings(method__members=3, model__dropout=0.1, model__multipliers=[1])
    for count, name in ((1, "alone"), (8, "many")):
        train_in(count, chosen, tmp_path / name / "run")
    for replicas in ends(tmp_path / "many/run", "").values():
        assert "agc.mean_loss" in replicas[0]
        for replica in replicas[1:]:
            assert_same(replica, replicas[0])
    alone, many = (ends(tmp_path / name / "run", "agc.mean_loss") for name in ("alone", "many"))
    for member in range(3):
        torch.testing.assert_close(
            many[member][0]["agc.mean_loss"], alone[member][0]["agc.mean_loss"], rtol=1e-3, atol=1e-5
        )
    assert (tmp_path / "many/run/telemetry.csv").read_text() == (tmp_path / "alone/run/telemetry.csv").read_text()


def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    chosen, out, steps = settings(method__members=3, model__multipliers=[1]), tmp_path / "run", []
    in_child(
        lambda: loop.train(
            chosen, images(), out, CPU, lambda done: die() if len(steps) + done > 11 else steps.extend([1] * done)
        )
    )
    train_in(2, chosen, out)
    loop.train(chosen, images(), tmp_path / "alone", CPU)
    assert_same(weights(out), weights(tmp_path / "alone"))


def test_rows_of_replicas_cover_a_batch():
    teams = [distributed.Replicas(index, 3).rows(8) for index in range(3)]
    assert [list(range(8))[rows] for rows in teams] == [[0, 1], [2, 3, 4], [5, 6, 7]]
    assert distributed.Replicas().rows(8) == slice(0, 8)


def test_alone_everything_is_the_identity():
    state = {"w": torch.ones(2)}
    assert (distributed.rank(), distributed.size(), distributed.gather(3)) == (0, 1, [3])
    assert distributed.broadcast_state(state, 0) is state
    assert distributed.replicas_of(1, 8) == distributed.Replicas()


def test_a_device_that_is_not_there_is_refused():
    if torch.cuda.is_available():
        assert distributed.choose_device("auto").type == "cuda"
    else:
        with pytest.raises(ValueError, match=r"run\.device is 'cuda', but torch sees no GPU"):
            distributed.choose_device("cuda")
    assert distributed.choose_device("cpu") == CPU


def test_more_replicas_than_rows_are_refused(monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 9)
    with pytest.raises(ValueError, match="5 processes cannot share batches of 4: start at most 8 processes"):
        distributed.replicas_of(2, 4)
