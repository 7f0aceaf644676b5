"""A run that is made longer, by more rounds or steps, ends as the one that had as many from the start, bit by bit."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from iet_agc.config.fingerprint import goes_on
from iet_agc.config.overrides import override
from iet_agc.config.run_folder import read_settings
from iet_agc.config.settings import Settings
from iet_agc.runtime.errors import UserError
from iet_agc.sampling.sample_set import sample_run
from iet_agc.training.identity import check_samples, exported_files, is_going_on, read_identity
from iet_agc.training.loop import train
from tests.processes import die, in_child, killed_after
from tests.tiny_runs import CPU, assert_ends_like, assert_same, curve, images, settings, weights

#: Two members, two rounds of six steps; and one member, one round of six.
ENSEMBLE = settings(model__dropout=0.1, model__multipliers=[1])
ALONE = override(ENSEMBLE, {"method.members": "1", "method.rounds": "1"})
ROUNDS, STEPS = override(ENSEMBLE, {"method.rounds": "4"}), override(ALONE, {"train.steps": "12"})
SHORT = {"rounds": ENSEMBLE, "steps": ALONE}
LONG = {"rounds": ROUNDS, "steps": STEPS}
#: Steps of all members before, and in all.
COUNTS = {"rounds": (24, 48), "steps": (6, 12)}


def trained(chosen: Settings, out: Path, on_step: Callable[[int], object] | None = None) -> Path:
    train(chosen, images(), out, CPU, on_step or (lambda steps: None))
    return out


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short and long runs of both kinds."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("longer")
    for name, chosen in {"short": SHORT, "long": LONG}.items():
        for kind in chosen:
            trained(chosen[kind], folder / name / kind)
    return folder


def copy(base: Path, kind: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base / "short" / kind, tmp_path / "run"))


def assert_is(out: Path, whole: Path, kind: str) -> None:
    """Weights, counts, curves and what is written down are those of the long run."""
    if kind == "rounds":
        assert_ends_like(whole, out)
    else:
        for each in ("raw", "ema"):
            assert_same(weights(out, each), weights(whole, each))
        assert (out / "telemetry.csv").read_text() == (whole / "telemetry.csv").read_text()
        assert curve(out, "member-0000") == curve(whole, "member-0000")
    for name in ("config.json", "settings.toml"):
        assert (out / name).read_text() == (whole / name).read_text()
    ours, theirs = read_identity(out) or {}, read_identity(whole) or {}
    assert ours.pop("earlier")
    assert ours == theirs
    assert not is_going_on(out)


@pytest.mark.parametrize("kind", ["rounds", "steps"])
def test_a_finished_run_goes_on(base: Path, tmp_path: Path, kind: str) -> None:
    out, done = copy(base, kind, tmp_path), []
    trained(LONG[kind], out, done.append)
    assert (done[0], sum(done)) == COUNTS[kind]
    assert_is(out, base / "long" / kind, kind)
    again: list[int] = []
    trained(LONG[kind], out, again.append)
    assert again == [COUNTS[kind][1]]  # at once: nothing is left to do


@pytest.mark.parametrize(
    ("kind", "more"), [*(("rounds", more) for more in (0, 1, 5, 13, 24)), *(("steps", more) for more in (0, 1, 3, 6))]
)
def test_killed_while_it_goes_on(base: Path, tmp_path: Path, kind: str, more: int) -> None:
    out = copy(base, kind, tmp_path)
    killed_after(COUNTS[kind][0] + more, lambda counts: trained(LONG[kind], out, counts))
    trained(LONG[kind], out)
    assert_is(out, base / "long" / kind, kind)


@pytest.mark.parametrize("kind", ["rounds", "steps"])
@pytest.mark.parametrize("function", ["rename", "replace"])
@pytest.mark.parametrize("call", [1, 2, 3, 5])
def test_killed_while_it_is_written_down(
    base: Path, tmp_path: Path, kind: str, function: str, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Identity, settings and bundles are written one after the other; the same command goes on from between them."""
    out, calls, honest = copy(base, kind, tmp_path), [], getattr(os, function)

    def deadly(*arguments: object, **options: object) -> object:
        calls.append(1)
        return die() if len(calls) == call else honest(*arguments, **options)

    def doomed() -> None:
        monkeypatch.setattr(os, function, deadly)
        trained(LONG[kind], out)

    ended = in_child(doomed)
    assert ended in (signal.SIGKILL, 0)
    trained(LONG[kind], out)
    assert_is(out, base / "long" / kind, kind)


def test_raised_twice_and_killed_in_between(base: Path, tmp_path: Path) -> None:
    out = copy(base, "rounds", tmp_path)
    killed_after(27, lambda counts: trained(override(ENSEMBLE, {"method.rounds": "3"}), out, counts))
    trained(ROUNDS, out)
    assert_is(out, base / "long" / "rounds", "rounds")
    assert len((read_identity(out) or {})["earlier"]) == 2


def test_an_unfinished_run_goes_on_too(base: Path, tmp_path: Path) -> None:
    killed_after(15, lambda counts: trained(ENSEMBLE, tmp_path / "run", counts))
    trained(ROUNDS, tmp_path / "run")
    assert_is(tmp_path / "run", base / "long" / "rounds", "rounds")


def test_before_the_first_new_bundle_the_pipelines_are_those_of_before(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They can be drawn from, and say what they are; they are no samples of the run; the same command goes on."""
    out, short = copy(base, "rounds", tmp_path), base / "short" / "rounds"
    sample_run(out, out / "samples", {"num": 2}, on_images=lambda count: None)
    drawn_from = {name.split("/")[-1]: sha for name, sha in exported_files(out, "raw").items() if "safetensors" in name}
    assert check_samples(out, drawn_from)
    killed_after(25, lambda counts: trained(ROUNDS, out, counts))
    assert_same(weights(out), weights(short))
    assert read_settings(out).method.rounds == 4
    capsys.readouterr()
    sample_run(out, tmp_path / "elsewhere", {"num": 2}, on_images=lambda count: None)
    assert "goes on with more rounds or steps, and" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"was drawn before the rounds or steps of .* were raised"):
        check_samples(out, drawn_from)
    trained(ROUNDS, out)
    with pytest.raises(UserError, match=r"was not drawn from the weights of"):
        check_samples(out, drawn_from)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("rounds", {"method.rounds": "1"}),
        ("rounds", {"train.steps": "7"}),
        ("rounds", {"train.steps": "7", "method.rounds": "3"}),
        ("rounds", {"method.rounds": "3", "train.seed": "1"}),
        ("steps", {"train.steps": "5"}),
        ("steps", {"train.steps": "5", "method.rounds": "2"}),
        ("steps", {"train.steps": "7", "method.members": "2"}),
    ],
)
def test_anything_else_is_refused_and_says_what_can_be_raised(
    base: Path, tmp_path: Path, kind: str, changes: dict[str, str]
) -> None:
    out = copy(base, kind, tmp_path)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match=r"of which method.rounds can be raised, and train.steps of one round of one"):
        trained(override(SHORT[kind], changes), out)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


def test_one_round_of_one_member_takes_both() -> None:
    assert goes_on(ALONE, override(ALONE, {"train.steps": "8", "method.rounds": "2"}))
    assert not goes_on(ALONE, ALONE)
    assert not goes_on(ALONE, override(ALONE, {"method.members": "2"}))


def test_steps_and_rounds_at_once(tmp_path: Path, base: Path) -> None:
    chosen = override(ALONE, {"train.steps": "8", "method.rounds": "2"})
    whole, out = trained(chosen, tmp_path / "whole"), copy(base, "steps", tmp_path)
    trained(chosen, out)
    assert_is(out, whole, "steps")


def test_without_a_bundle_there_is_nothing_to_go_on_from(base: Path, tmp_path: Path) -> None:
    out = copy(base, "rounds", tmp_path)
    shutil.rmtree(out / "bundles")
    with pytest.raises(UserError, match=r"is finished, and .*bundles holds no bundle to go on from: put them back"):
        trained(ROUNDS, out)
    assert read_settings(out).method.rounds == 2
    trained(ENSEMBLE, out)  # stays as it is


def test_a_run_of_before_there_were_identities_goes_on(base: Path, tmp_path: Path) -> None:
    out = copy(base, "rounds", tmp_path)
    (out / "identity.json").unlink()
    killed_after(25, lambda counts: trained(ROUNDS, out, counts))
    trained(ROUNDS, out)
    assert_ends_like(base / "long" / "rounds", out)
    assert json.loads((out / "identity.json").read_text())["earlier"]


def test_a_point_of_the_curve_stands_where_the_run_had_ended(tmp_path: Path) -> None:
    """Weights are those of the longer run; its curve has one point more, where the shorter one had its last."""
    odd = override(ALONE, {"train.steps": "5"})
    trained(odd, tmp_path / "run")
    trained(STEPS, tmp_path / "run")
    assert [point["step"] for point in curve(tmp_path / "run", "member-0000")] == [2, 4, 5, 6, 8, 10, 12]
