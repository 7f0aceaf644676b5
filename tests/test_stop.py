"""Asked to stop, a run saves after its next step, says where it goes on, and ends like one that was not interrupted."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from iet_agc import cli
from iet_agc.config.overrides import override
from iet_agc.runtime.curves import Meter
from iet_agc.runtime.stop import Stopped, StopRequest
from iet_agc.training.checkpoint import read_bundle
from iet_agc.training.loop import _prepared, train
from iet_agc.training.member import NonFiniteError
from tests.commands import run, started
from tests.processes import Program, in_processes
from tests.tiny_runs import CPU, assert_ends_like, assert_same, curve, images, settings, weights

#: Two members, two rounds of 6 steps: no regular bundle within a round, and a point of the curve after steps 5, 6, 10.
CHOSEN = settings(model__dropout=0.1, model__multipliers=[1], run__log_every=5, run__save_every=1000)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(CHOSEN, images(), folder, CPU)
    return folder


def asking(stop, step, number=signal.SIGTERM):
    """What asks to stop as soon as so many steps are taken in this process, and counts them."""
    steps = []

    def count(done):
        steps.extend([1] * done)
        if len(steps) >= step:
            stop.signal = number

    return count


@pytest.mark.parametrize(
    ("step", "where"),
    [
        (1, "round 0, member 0, step 1"),
        (3, "round 0, member 0, step 3"),
        (6, "round 0, member 1, step 0"),
        (11, "round 0, member 1, step 5"),
        (12, "round 0, its average"),
        (17, "round 1, member 0, step 11"),
        (24, "round 1, its average"),
    ],
)
def test_stopped_after_any_step(tmp_path, whole, step, where):
    out, stop = tmp_path / "run", StopRequest()
    with pytest.raises(Stopped, match=f"the same command goes on from {where}$") as stopped:
        train(CHOSEN, images(), out, CPU, asking(stop, step), stop)
    assert stopped.value.signal == signal.SIGTERM
    counted = []
    train(CHOSEN, images(), out, CPU, counted.append)
    assert sum(counted) == 24
    assert counted[0] == step  # no step is taken twice
    assert_ends_like(whole, out)
    assert sorted(folder.name for folder in (out / "bundles").iterdir()) == ["round-0001", "round-0002"]


def test_stopped_again_and_again(tmp_path, whole):
    """Every session takes three steps, so that a point of the curve is summed over two of them."""
    out = tmp_path / "run"
    for session in range(1, 9):
        stop = StopRequest()
        try:
            train(CHOSEN, images(), out, CPU, asking(stop, 3 * session), stop)
        except Stopped:
            continue
    train(CHOSEN, images(), out, CPU)
    assert_ends_like(whole, out)


def test_stopped_before_the_first_step_nothing_is_promised(tmp_path):
    stop = StopRequest()
    with pytest.raises(Stopped, match="nothing is saved, the same command starts from the beginning"):
        train(CHOSEN, images(), tmp_path / "run", CPU, asking(stop, 0), stop)
    assert not list((tmp_path / "run").glob("bundles/*"))


def test_a_run_that_finished_meanwhile_ends_well(tmp_path, whole):
    stop, finished = StopRequest(), []
    train(CHOSEN, images(), tmp_path / "run", CPU)
    stop.signal = signal.SIGINT
    train(CHOSEN, images(), tmp_path / "run", CPU, finished.append, stop)
    assert finished == [24]
    assert_ends_like(whole, tmp_path / "run")


def test_a_run_that_broke_is_not_saved_when_asked_to_stop(tmp_path):
    out, stop = tmp_path / "run", StopRequest()
    broken = settings(train__learning_rate=1e38, train__warmup_steps=0, run__log_every=100, run__save_every=1000)
    with pytest.raises(NonFiniteError):
        train(broken, images(), out, CPU, asking(stop, 5), stop)
    assert not list(out.glob("bundles/*"))


def test_a_member_asks_before_each_step_and_takes_no_further_one(tmp_path):
    run = _prepared(CHOSEN, images(), tmp_path / "run", CPU, None)
    member, answers = run.members[0], iter([False, False, True])
    assert len(list(member.train(6, run.task.scheduler, lambda: next(answers)))) == 2
    assert member.step == 2


def test_sums_of_a_point_survive_on_disk_and_are_absent_where_there_are_none():
    meter, other = Meter(1000, CPU), Meter(1000, CPU)
    assert meter.state() == {}
    meter.add(torch.tensor([1.0, 3.0]), torch.tensor([True, False]), torch.tensor([0, 99]))
    other.load_state(meter.state())
    for each in (meter, other):
        each.add(torch.tensor([4.0, 6.0]), torch.tensor([True, True]), torch.tensor([100, 999]))
    assert other.point() == meter.point()
    other.load_state({"seen": torch.zeros(3)})
    assert other.steps == 0


# -- several processes


def stopped_in(count, chosen, out, asked, step):
    """Train in so many processes, of which one is asked to stop; what they said, each for itself."""

    def action():
        stop, mine = StopRequest(), int(os.environ["RANK"])
        count_steps = asking(stop, step) if mine == asked else (lambda done: None)
        try:
            train(chosen, images(), out, CPU, count_steps, stop)
        except Stopped as stopped:
            (out.parent / f"said-{mine}").write_text(f"{stopped.signal} {stopped}")

    in_processes(count, action)
    return {(out.parent / f"said-{rank}").read_text() for rank in range(count)}


@pytest.mark.parametrize(("asked", "step"), [(0, 2), (0, 8), (1, 4)])
def test_all_processes_save_and_stop_when_one_is_asked(tmp_path, asked, step):
    """Members 0 and 2 are the first process's. The one that is not asked goes on to the end of the round."""
    chosen = override(CHOSEN, {"method.members": "3"})
    train(chosen, images(), tmp_path / "alone", CPU)
    (said,) = stopped_in(2, chosen, tmp_path / "run", asked, step)
    where = {(0, 2): "member 0, step 2", (0, 8): "member 2, step 2", (1, 4): "member 1, step 4"}[asked, step]
    assert said == f"15 stopped and saved; the same command goes on from round 0, {where}"
    train(chosen, images(), tmp_path / "run", CPU)
    assert_ends_like(tmp_path / "alone", tmp_path / "run")


def test_replicas_stop_after_the_same_step(tmp_path):
    chosen = override(CHOSEN, {"method.members": "1", "method.rounds": "1"})
    for out, step in ((tmp_path / "a" / "run", 4), (tmp_path / "b" / "run", 100)):
        out.parent.mkdir()
        if step < 6:
            (said,) = stopped_in(3, chosen, out, asked=2, step=step)
            assert said.endswith("round 0, member 0, step 4")
        in_processes(3, lambda out=out: train(chosen, images(), out, CPU, lambda done: None))
    for kind in ("raw", "ema"):
        assert_same(weights(tmp_path / "a" / "run", kind), weights(tmp_path / "b" / "run", kind))
    assert curve(tmp_path / "a" / "run", "member-0000") == curve(tmp_path / "b" / "run", "member-0000")


# -- signals

CHANGES = {
    "model.channels": 8,
    "model.multipliers": "1",
    "model.blocks": 1,
    "model.attention": "",
    "model.groups": 4,
    "method.members": 2,
    "method.rounds": 2,
    "train.steps": 40,
    "train.batch_size": 8,
    "sample.steps": 2,
    "run.threads": 1,
    "run.log_every": 3,
    "run.save_every": 100_000,
    "run.preview_images": 4,
    "run.device": "cpu",
}
SMALL = ["train", "digits-iet", *(f"--{name}={value}" for name, value in CHANGES.items())]


@pytest.fixture(scope="module")
def whole_by_command(tmp_path_factory):
    out = tmp_path_factory.mktemp("command") / "run"
    assert run(*SMALL, "--out", out).returncode == 0
    return out


def interrupt(process, out, number):
    """Send a signal to a run as soon as its curve has two points."""
    file = out / "curves" / "member-0000.jsonl"
    while not (file.exists() and file.read_text().count("\n") >= 2):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)


def assert_resumes(whole, out):
    assert run(*SMALL, "--out", out).returncode == 0
    assert_ends_like(whole, out)
    for number in (1, 2):
        preview = f"previews/round-000{number}.png"
        assert (out / preview).read_bytes() == (whole / preview).read_bytes()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_the_first_regular_bundle(tmp_path, whole_by_command, number, status):
    out = tmp_path / "run"
    process = started(*SMALL, "--out", out)
    interrupt(process, out, number)
    ended = process.ended()
    assert ended.returncode == status
    said = ended.stderr
    where = re.search(
        r"iet-agc: stopped and saved; the same command goes on from round 0, member 0, step (\d+)\s*$", said
    )
    assert where, said
    assert "a second signal ends this at once" in said
    (bundle,) = (out / "bundles").iterdir()
    assert bundle.name == f"round-0000-member-0000-step-{int(where[1]):09d}"
    assert int(read_bundle(bundle).tensors("member-0000")["step"]) == int(where[1])
    assert_resumes(whole_by_command, out)


def torchrun(words):
    """What `torchrun --standalone --nproc-per-node=2 -m iet_agc` does, with forks for its workers."""
    launched = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, run_id="stopped", rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", start_method="fork", max_restarts=0,
    )  # fmt: skip
    elastic_launch(launched, cli.main)(words)


def test_torchrun_passes_the_signal_on(tmp_path, whole_by_command):
    out = tmp_path / "run"
    process = Program(lambda: torchrun([*SMALL, "--out", str(out)]))
    interrupt(process, out, signal.SIGTERM)
    ended = process.ended()
    assert ended.returncode != 0
    said = ended.stderr
    assert re.search(r"goes on from round 0, member 0, step \d+, member 1, step \d+$", said, re.MULTILINE), said
    assert said.count("stopped and saved") == 1
    assert len(list((out / "bundles").iterdir())) == 2
    assert_resumes(whole_by_command, out)


BUSY = """
import hashlib, signal
from iet_agc.runtime.stop import StopRequest
request = StopRequest((signal.SIGINT, signal.SIGTERM), lambda: print("asked", request.signal, flush=True))
with request.listening():
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # minutes in C, where no Python handler runs
"""


def test_a_second_signal_ends_at_once_wherever_the_main_thread_is():
    process = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "busy\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "asked 2\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143


def test_signals_are_heard_within_the_block_only():
    before = signal.getsignal(signal.SIGUSR1)
    heard = []
    request = StopRequest((signal.SIGUSR1,), lambda: heard.append(1))
    with request.listening():
        os.kill(os.getpid(), signal.SIGUSR1)
        while not heard:
            time.sleep(0.001)
    assert request.signal == signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) == before
    assert signal.set_wakeup_fd(-1) == -1
