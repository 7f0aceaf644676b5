"""A miniature board from end to end: killed and resumed, side by side, with a damaged and with a failing run."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

import iet_agc
from iet_agc.api import bench, whole_run
from iet_agc.config.board import load_board
from iet_agc.config.overrides import override
from iet_agc.config.run_folder import read_settings
from iet_agc.config.settings import Settings
from iet_agc.runtime.errors import CheckFailed, UserError
from iet_agc.runtime.silence import silenced
from iet_agc.runtime.workers import advance, in_workers
from iet_agc.training.shared import NOT_OF_TRAINING, take_training, training_of
from tests.boards import MINIATURE, written
from tests.commands import call, started
from tests.commands import run as run_command
from tests.pages import Page

FILES = ("board.json", "board.csv", "board.html")


def run(out: Path, text: str = MINIATURE, jobs: int = 1):
    made = load_board(str(written(out.parent / f"{out.name}-board", text)))
    with silenced():
        return bench.run_board(made, out, jobs)


def numbers(out: Path):
    """What a board came to, without seconds, which are never the same twice."""
    content = json.loads((out / "board.json").read_text())
    return [{name: value for name, value in cell.items() if name != "seconds"} for cell in content["cells"]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "board"
    return out, run(out)


def test_a_board_has_a_run_for_each_cell_and_three_files(whole):
    out, record = whole
    assert len(record.cells) == 6
    assert record.failures == ()
    assert {cell.images_seen for cell in record.cells} == {16}
    assert all(cell.seconds > 0 for cell in record.cells)
    for cell in record.cells:
        assert (out / cell.folder / "audit" / "audit.json").is_file()
    assert sorted(each.name for each in out.iterdir() if each.name != ".lock") == sorted([*FILES, "cells"])
    page = Page((out / "board.html").read_text())
    assert len(page.all("img")) >= 12


def test_the_same_again_changes_nothing(whole, monkeypatch):
    out, _ = whole
    before = {name: (out / name).read_bytes() for name in FILES}
    monkeypatch.setattr(bench, "whole_run", lambda *given: pytest.fail("a finished run was looked at again"))
    run(out)
    assert {name: (out / name).read_bytes() for name in FILES} == before


def test_killed_and_resumed_is_the_same(whole, tmp_path, monkeypatch):
    """Once between two runs, and once within one, after its training."""
    out, calls = tmp_path / "board", []

    for module, name in ((bench, "whole_run"), (whole_run, "sample_run")):
        honest = getattr(module, name)

        def killed(*given, honest=honest, **named):
            calls.append(given)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return honest(*given, **named)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, killed)
            calls.clear()
            with pytest.raises(KeyboardInterrupt):
                run(out)
        assert not (out / "board.json").exists()
    run(out)
    assert numbers(out) == numbers(whole[0])


def test_a_real_kill_ends_the_workers_and_side_by_side_is_the_same(whole, tmp_path, request):
    out, file = tmp_path / "board", written(tmp_path)
    command = ["bench", file, "--out", out, "--jobs", 2, "--quiet"]
    killed = started(*command)
    try:
        waited = time.monotonic()
        while not list(out.glob("cells/*/*/**/cell.json")) and time.monotonic() - waited < 300:
            assert killed.poll() is None, killed.ended()
            time.sleep(0.05)
    finally:
        killed.kill()
        killed.ended()
    assert not (out / "board.json").exists()
    request.getfixturevalue("forked_workers")  # those that were killed were spawned
    done = run_command(*command)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["runs"] == 6
    assert numbers(out) == numbers(whole[0])


@pytest.mark.parametrize("name", ["audit/audit.json", "cell.json", "samples/samples.npz"])
def test_a_damaged_run_is_mended(tmp_path_factory, whole, name):
    out, record = whole
    file = out / record.cells[1].folder / name
    before, expected = file.read_bytes(), numbers(out)
    file.write_bytes(before[: len(before) // 2] + b"x" + before[len(before) // 2 + 1 :])
    run(out)
    assert numbers(out) == expected
    if name != "cell.json":
        assert file.read_bytes() == before


FAILING = MINIATURE + '[[method]]\nname = "all"\nsettings = { "data.num_train" = 1797 }\n'


def test_a_failing_run_is_told_and_the_others_go_on(tmp_path, capsys):
    out, file = tmp_path / "board", written(tmp_path, FAILING)
    status, printed, told = call(capsys, "bench", file, "--out", out, "--quiet")
    assert status == 1
    result = json.loads(printed)
    assert result["runs"] == 6
    assert [each["folder"] for each in result["failures"]] == [f"cells/digits/all/seed-{seed}" for seed in (0, 1)]
    assert "\n" not in result["failures"][0]["reason"]
    assert "Traceback" not in told
    assert "2 of 8 runs failed" in Page((out / "board.html").read_text()).text


def test_a_mistake_of_ours_keeps_its_traceback_and_is_tried_again(whole, tmp_path, monkeypatch):
    out, honest = tmp_path / "board", bench.whole_run
    text = MINIATURE.replace("seeds = [0, 1]", "seeds = [0]").replace("[0.1, 0.5]", "[0.1]")

    def broken(settings, folder, sampling):
        return {}["nothing"] if "skip" in folder.parts else honest(settings, folder, sampling)

    with monkeypatch.context() as patch:
        patch.setattr(bench, "whole_run", broken)
        record = run(out, text)
    (failure,) = record.failures
    assert failure.reason == "KeyError: it lacks 'nothing'; its traceback is in seed-0-error.txt"
    file = out / f"{failure.folder}-error.txt"
    assert "KeyError" in file.read_text()
    assert run(out, text).failures == ()
    assert not file.exists()


def test_methods_values_and_seeds_may_be_added(whole, monkeypatch):
    out, _ = whole
    made, honest = [], bench.whole_run

    def noted(settings, folder, sampling):
        made.append(str(folder.relative_to(out)))
        return honest(settings, folder, sampling)

    monkeypatch.setattr(bench, "whole_run", noted)
    record = run(out, MINIATURE.replace("[0.1, 0.5]", "[0.1, 0.3, 0.5]"))
    assert made == [f"cells/digits/skip/0.3/seed-{seed}" for seed in (0, 1)]
    assert [point.label for point in record.arms[0].points] == ["default", "skip 0.1", "skip 0.3", "skip 0.5"]
    run(out)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("budget = 16", "budget = 32"), "budget is 16, not 32"),
        (("samples = 30", "samples = 20"), "samples is 30, not 20"),
        (("num_train = 60", "num_train = 70"), "of other settings"),
        (('name = "digits"', 'name = "digits"\ntimes = 2'), "of other arms"),
        (
            ('methods = ["default"]', '[[method]]\nname = "default"\nsettings = {"model.dropout" = 0.5}'),
            "dropout 0.0 is",
        ),
    ],
)
def test_boards_are_never_mixed(whole, change, told):
    out, _ = whole
    before = (out / "board.json").read_bytes()
    text = MINIATURE.replace(*change)
    if "methods = [" in change[0]:  # tables come after plain keys
        text = MINIATURE.replace(change[0], "") + change[1] + "\n"
    with pytest.raises(UserError, match=told) as refused:
        run(out, text)
    assert "\n" not in str(refused.value)
    assert (out / "board.json").read_bytes() == before


def test_from_python(whole):
    out, record = whole
    file = written(out.parent / "board-board")
    found = iet_agc.bench(file, out=out, quiet=True)
    assert len(found.record.cells) == len(record.cells)
    assert list(found.to_pandas()["seed"]) == [0, 1] * 3
    assert "default" in found._repr_html_()
    with pytest.raises(UserError, match="jobs 0: give 1 or more"):
        iet_agc.bench(file, out=out, jobs=0)


def test_a_bad_board_is_one_line_and_writes_nothing(tmp_path, capsys):
    file = written(tmp_path, MINIATURE.replace("samples", "sample"))
    status, printed, told = call(capsys, "bench", file, "--out", tmp_path / "out")
    assert (status, printed, told.count("\n")) == (2, "", 1)
    assert "unknown key 'sample'; did you mean 'samples'?" in told
    assert not (tmp_path / "out").exists()


# Workers ----------------------------------------------------------------------------------------------------


def add(first, second):
    advance(second)
    return first + second


def end(how):
    os.kill(os.getpid(), how)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_hand_out_results_and_tell_how_far_they_are(workers):
    told: list[float] = []
    found = dict(in_workers(add, [(1, 2.0), (3, 4.0), (5, 6.0)], workers, told.append))
    assert found == {0: 3, 1: 7, 2: 11}
    assert told[-1] == 12
    assert told == sorted(told)


@pytest.mark.usefixtures("forked_workers")
def test_a_worker_that_the_system_ends_is_told_in_words():
    with pytest.raises(CheckFailed, match="the system ended a worker process"):
        list(in_workers(end, [(signal.SIGKILL,), (signal.SIGKILL,)], 2, lambda work: None))


def test_workers_end_when_nobody_waits_for_them():
    others = set(multiprocessing.active_children())
    results = in_workers(time.sleep, [(0,), (600,)], 2, lambda work: None)
    next(results)
    results.close()
    assert set(multiprocessing.active_children()) <= others


ONE_SEED = MINIATURE.replace("seeds = [0, 1]", "seeds = [0]").split("[[method]]")[0]


def left_by_training(run: Path) -> dict[str, bytes]:
    """What follows from training alone, by its place."""
    files = (file for file in sorted(run.rglob("*")) if file.is_file() and not file.name.startswith("."))
    paths = {str(file.relative_to(run)): file for file in files}
    return {name: file.read_bytes() for name, file in paths.items() if name.split("/")[0] not in NOT_OF_TRAINING}


@pytest.mark.usefixtures("forked_workers")
def test_runs_that_differ_in_sampling_only_are_trained_once(tmp_path):
    out = tmp_path / "out"
    amg = '[[method]]\nname = "amg"\nsampling = "amg"\nknob = {setting = "sample.amg_strength", values = [9.0]}\n'
    text = ONE_SEED + amg + '[[method]]\nname = "guard"\nsampling = "guard"\n'
    assert not run(out, text, jobs=2).failures
    runs = {name: out / "cells/digits" / place for name, place in CAREFUL.items()}
    plain = left_by_training(runs["default"])
    assert {"identity.json", "telemetry.csv", "raw/unet/diffusion_pytorch_model.safetensors"} < plain.keys()
    for name, folder in runs.items():  # curves have speeds and event files times: equal ones were copied
        assert left_by_training(folder) == plain, name
        assert json.loads((folder / "config.json").read_text())["name"] == f"digits-{name}"
        about = json.loads((folder / "samples/samples.json").read_text())
        assert [method for method in ("amg", "guard") if about[method]] == ([] if name == "default" else [name])
        assert json.loads((folder / "cell.json").read_text()).get("sampling") == (None if name == "default" else name)

    before = numbers(out), (runs["default"] / "config.json").read_bytes()
    shutil.rmtree(runs["default"])  # in any order: the first is now a copy of another
    run(out, text)
    assert (numbers(out), (runs["default"] / "config.json").read_bytes()) == before
    assert left_by_training(runs["default"]) == plain

    alone = tmp_path / "alone"  # as it is where nothing is there to be copied
    run(alone, ONE_SEED.replace('methods = ["default"]', "").replace('"default"', '"amg"') + amg)
    trained, copied = (left_by_training(each / "cells/digits" / CAREFUL["amg"]) for each in (alone, out))
    dated = {name for name in trained if name.startswith(("curves/", "tensorboard/"))}
    assert {*trained} - dated == {*copied} - {name for name in copied if name.startswith(("curves/", "tensorboard/"))}
    for name in {*trained} - dated - {"identity.json"}:  # which has the digest of the curve
        assert trained[name] == copied[name], name
    for name in ("config.json", "settings.toml", "samples/samples.npz"):
        assert len({(each / "cells/digits" / CAREFUL["amg"] / name).read_bytes() for each in (alone, out)}) == 1


#: Where the runs are, by name of the method.
CAREFUL = {"default": "default/seed-0", "amg": "amg/9.0/seed-0", "guard": "guard/seed-0"}


def test_a_training_that_is_unfinished_or_damaged_is_not_copied(whole, tmp_path):
    out, record = whole
    source, settings = out / record.cells[0].folder, read_settings(out / record.cells[0].folder)
    other = settings.model_copy(update={"train": settings.train.model_copy(update={"learning_rate": 1.0})})
    assert not take_training(source, other, tmp_path / "other")
    copied = tmp_path / "copied"
    assert take_training(source, settings, copied)
    assert not take_training(source, settings, copied)  # it holds a run
    (copied / "telemetry.csv").write_text("")
    assert not take_training(copied, settings, tmp_path / "other")
    (copied / "identity.json").unlink()
    assert not take_training(copied, settings, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"sample.amg_strength": 3.0, "description": "of another method"}, True),
        ({"sample.weights": "ema"}, True),
        ({"sample.weights": "ema", "run.preview_images": 4}, False),
        ({"train.seed": 1}, False),
        ({"run.threads": 2}, False),
    ],
)
def test_what_is_trained_alike(change, same):
    settings = override(Settings(), {"run.preview_images": 0})
    assert (training_of(override(settings, change)) == training_of(settings)) == same


def test_a_board_with_a_gap_goes_on(tmp_path, monkeypatch):
    """The gap is found by training, so the run has more settings than the board's."""
    out, honest = tmp_path / "out", whole_run.sample_run
    text = ONE_SEED + '[[method]]\nname = "gap"\nsettings = {"train.timesteps" = "gap"}\n'

    def killed(run, *given, **named):
        if "gap" in run.parts:
            raise KeyboardInterrupt
        return honest(run, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(whole_run, "sample_run", killed)
        with pytest.raises(KeyboardInterrupt):
            run(out, text)
    assert read_settings(out / "cells/digits/gap/seed-0").train.gap_low is not None
    assert not run(out, text).failures
