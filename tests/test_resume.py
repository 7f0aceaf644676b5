"""Killed anywhere and started again, a run ends with the weights of an uninterrupted one, bit by bit."""

import os
import shutil
import signal

import pytest
import torch

from iet_agc.config.overrides import override
from iet_agc.training import checkpoint
from iet_agc.training.loop import train
from tests.processes import die, in_child, killed_after
from tests.tiny_runs import CPU, assert_ends_like, assert_same, images, settings, weights

CHOSEN = settings(model__dropout=0.1, model__multipliers=[1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(CHOSEN, images(), folder, CPU)
    return folder


@pytest.mark.parametrize("step", [1, 5, 6, 11, 13, 23, 24])
def test_killed_after_any_step(tmp_path, whole, step):
    out = tmp_path / "run"
    killed_after(step, lambda counts: train(CHOSEN, images(), out, CPU, counts))
    train(CHOSEN, images(), out, CPU)
    assert_ends_like(whole, out)


@pytest.mark.parametrize("function", ["rename", "replace", "fsync"])
@pytest.mark.parametrize("call", [1, 2, 3, 5])
def test_killed_while_writing(tmp_path, whole, function, call, monkeypatch):
    out, calls, honest = tmp_path / "run", [], getattr(os, function)

    def deadly(*arguments, **options):
        calls.append(1)
        return die() if len(calls) == call else honest(*arguments, **options)

    def doomed():
        monkeypatch.setattr(os, function, deadly)
        train(CHOSEN, images(), out, CPU)

    assert in_child(doomed) == signal.SIGKILL
    train(CHOSEN, images(), out, CPU)
    assert_ends_like(whole, out)


def stopped_after(out, step):
    """A run that was killed after so many steps."""
    steps = []
    in_child(
        lambda: train(
            CHOSEN, images(), out, CPU, lambda done: die() if len(steps) + done > step else steps.extend([1] * done)
        )
    )


@pytest.mark.parametrize("harm", ["flip a bit", "cut short", "remove"])
def test_a_damaged_bundle_is_named_and_the_one_before_it_used(tmp_path, whole, harm, capsys):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    file = out / "bundles" / "round-0002" / "shared.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    {
        "flip a bit": lambda: file.write_bytes(content),
        "cut short": lambda: file.write_bytes(content[:-9]),
        "remove": file.unlink,
    }[harm]()
    train(CHOSEN, images(), out, CPU)
    said = [line for line in capsys.readouterr().err.splitlines() if "round-0002" in line]
    assert len(said) == 1
    assert "damaged" in said[0]
    assert_ends_like(whole, out)


def test_a_damaged_bundle_of_one_member_falls_back_to_its_older_one(tmp_path, whole, capsys):
    out = tmp_path / "run"
    stopped_after(out, 5)
    partial = out / "bundles" / "round-0000-member-0000-step-000000004"
    (partial / "bundle.json").write_text("{")
    train(CHOSEN, images(), out, CPU)
    assert "step-000000004" in capsys.readouterr().err
    assert_ends_like(whole, out)


@pytest.mark.parametrize("change", [("train.seed", "7"), ("method.skip_below", "0.75"), ("model.channels", "16")])
def test_other_settings_are_refused_by_name(tmp_path, whole, change):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    with pytest.raises(ValueError, match=rf"another run \({change[0]} .* is now {change[1]}\)"):
        train(override(CHOSEN, dict([change])), images(), out, CPU)
    assert_ends_like(whole, out)


def test_other_images_are_refused(tmp_path, whole):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    before = (out / "config.json").read_bytes()
    with pytest.raises(checkpoint.BundleError, match="other settings or images"):
        train(override(CHOSEN, {"data.root": "elsewhere"}), images(seed=1), out, CPU)
    assert (out / "config.json").read_bytes() == before


def test_settings_that_change_no_weight_may_change(tmp_path, whole):
    out = tmp_path / "run"
    stopped_after(out, 10)
    train(override(CHOSEN, {"run.log_every": "3", "run.save_every": "1", "sample.steps": "3"}), images(), out, CPU)
    for kind in ("raw", "ema"):
        assert_same(weights(out, kind), weights(whole, kind))


def test_only_what_a_resume_needs_is_kept(tmp_path, whole):
    assert sorted(folder.name for folder in (whole / "bundles").iterdir()) == ["round-0001", "round-0002"]


def test_other_files_beside_the_bundles_do_no_harm(tmp_path, whole):
    (tmp_path / "run").mkdir()
    stopped_after(tmp_path / "run", 20)
    (tmp_path / "run" / "bundles" / ".DS_Store").write_text("")
    (tmp_path / "run" / "bundles" / "notes").mkdir()
    train(CHOSEN, images(), tmp_path / "run", CPU)
    assert_ends_like(whole, tmp_path / "run")


def test_a_bundle_without_one_before_it_says_so(tmp_path, capsys):
    (tmp_path / "round-0001").mkdir()
    assert checkpoint.newest_bundle(tmp_path, "round-????", {}, print) is None
    assert capsys.readouterr().out.rstrip().endswith("there is none before it")


@pytest.mark.parametrize("step", [13, 23])
def test_every_round_has_its_preview_after_a_kill(tmp_path, step):
    chosen, out, steps = override(CHOSEN, {"run.preview_images": "2"}), tmp_path / "run", []
    in_child(
        lambda: train(chosen, images(), out, CPU, lambda n: die() if len(steps) + n > step else steps.extend([1] * n))
    )
    train(chosen, images(), out, CPU)
    assert sorted(file.name for file in (out / "previews").iterdir()) == ["round-0001.png", "round-0002.png"]


def test_a_finished_run_opens_no_further_curves(tmp_path, whole):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    before = sorted((out / "tensorboard").rglob("*"))
    train(CHOSEN, images(), out, CPU)
    assert sorted((out / "tensorboard").rglob("*")) == before
