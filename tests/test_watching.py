"""A run that watches itself: the same weights, the same points after a kill and on more processes, and its end."""

import json
import shutil
import signal

import pytest
import torch

from iet_agc.auditing.model_card import write_card
from iet_agc.config.overrides import override
from iet_agc.config.settings import validate
from iet_agc.diffusion.unet import load_pipeline
from iet_agc.metrics.watch import Watch, agreement
from iet_agc.runtime.errors import UserError
from iet_agc.training import identity, watched
from iet_agc.training.loop import _prepared, train
from tests.processes import die, in_child, in_processes, killed_after
from tests.tiny_runs import CPU, assert_ends_like, assert_same, curve, images, settings, weights

HELD_OUT = images(130, seed=5)
WATCH = {"run__watch_every": 4, "run__watch_images": 12, "run__watch_denoising_steps": 2}
ONE = settings(method__members=1, method__rounds=1, train__steps=12, run__keep_watched=True, **WATCH)
TWO = settings(**WATCH | {"run__watch_every": 6})
STOPPING = override(ONE, {"run.stop_when_copying": "true", "run.keep_watched": "false"})


def trained(chosen, out, **options):
    train(chosen, images(), out, CPU, held_out=HELD_OUT, **options)
    return out


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    torch.set_num_threads(1)
    return trained(ONE, tmp_path_factory.mktemp("one") / "run")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    torch.set_num_threads(1)
    return trained(TWO, tmp_path_factory.mktemp("two") / "run")


def text(out):
    return (out / watched.POINTS).read_text()


# Points -----------------------------------------------------------------------------------------------------


def test_one_member_is_watched_at_its_steps(one):
    points = watched.read_points(one)
    assert [(point.step, point.images_seen) for point in points] == [(4, 32), (8, 64), (12, 96)]
    assert all(point.copied.total == 12 and point.agreement is None for point in points)
    assert all(point.losses is not None and point.losses.num_images == 12 for point in points)
    assert [point.seen for point in points] == [32, 64, 96]


def test_the_end_is_watched_whatever_the_steps(tmp_path):
    out = trained(override(ONE, {"run.watch_every": "5", "run.keep_watched": "false"}), tmp_path / "run")
    assert [point.step for point in watched.read_points(out)] == [5, 10, 12]
    assert not (out / "watched").exists()


@pytest.mark.parametrize("change", [{"run.watch_images": "13"}, {"run.watch_denoising_steps": "3"}])
def test_more_images_and_steps_are_other_points(tmp_path, one, change):
    out = trained(override(ONE, {"run.keep_watched": "false"} | change), tmp_path / "run")
    assert [point.step for point in watched.read_points(out)] == [4, 8, 12]
    assert text(out) != text(one)


def test_several_members_are_watched_at_the_ends_of_rounds(two):
    points = watched.read_points(two)
    assert [(point.step, point.images_seen) for point in points] == [(6, 96), (12, 192)]
    assert all(point.agreement is not None and point.agreement.members == 2 for point in points)


@pytest.mark.parametrize(("every", "rounds"), [(1, [1, 2, 3, 4, 5]), (6, [1, 2, 3, 4, 5]), (7, [2, 4, 5]), (99, [5])])
def test_rounds_that_are_watched(tmp_path, every, rounds):
    chosen = settings(method__rounds=5, run__watch_every=every)
    watching = _prepared(chosen, images(), tmp_path / "run", CPU).watching
    assert [number for number in range(1, 6) if watching.is_due_after(number)] == rounds


def test_no_member_is_watched_unless_asked(tmp_path):
    watching = _prepared(settings(method__members=1), images(), tmp_path / "run", CPU).watching
    assert not any(watching.is_due(step) or watching.is_due_after(step) for step in range(1, 20))


def test_a_point_is_what_the_watch_says_of_the_images_of_its_weights(one):
    point = watched.read_points(one)[1]
    model, scheduler = load_pipeline(one / "watched" / "step-000000008" / "raw")
    from iet_agc.diffusion.samplers import sample

    found = Watch(images().images, HELD_OUT.images).measure(sample(model, scheduler, range(12), (1, 8, 8), 2))
    assert point.copied == found.copied
    assert point.distance == found.distance
    assert point.pairs == found.pairs


def test_agreement_is_that_of_the_members_before_the_average(tmp_path, two):
    from iet_agc.diffusion.samplers import sample

    run = _prepared(TWO, images(), tmp_path / "run", CPU)
    for member in run.members:
        list(member.train(6, run.task.scheduler))
    drawn = [sample(each.model.eval(), run.task.scheduler, range(6), (1, 8, 8), 2) for each in run.members]
    assert watched.read_points(two)[0].agreement == agreement(torch.stack(drawn))


def test_losses_are_those_of_the_model_at_the_same_noise(one):
    losses = watched.read_points(one)[-1].losses
    assert losses is not None
    assert losses.train != losses.held_out
    present = [value for value in losses.train_bands if value is not None]
    assert min(present) <= losses.train <= max(present)


def test_without_held_out_images_it_is_said_what_sets_the_cut(tmp_path):
    train(ONE, images(), tmp_path / "run", CPU)
    points = watched.read_points(tmp_path / "run")
    assert {point.source for point in points} == {"training images, each against the others"}
    assert {point.distance.to for point in points} == {"training images"}
    assert all(point.losses is None for point in points)


# Training is left alone -------------------------------------------------------------------------------------


def test_watching_changes_neither_weights_nor_curves(tmp_path, one, two):
    alone = {"run.watch_every": "0", "run.keep_watched": "false"}
    for chosen, watched_run in ((ONE, one), (TWO, two)):
        plain = trained(override(chosen, alone), tmp_path / watched_run.parent.name)
        for kind in ("raw", "ema"):
            assert_same(weights(plain, kind), weights(watched_run, kind))
        assert curve(plain, "member-0000") == curve(watched_run, "member-0000")
        assert (plain / "telemetry.csv").read_text() == (watched_run / "telemetry.csv").read_text()
        assert not (plain / watched.POINTS).exists()


def test_snapshots_are_the_run_with_fewer_steps(tmp_path, one):
    shorter = trained(override(ONE, {"train.steps": "8"}), tmp_path / "run")
    assert [*watched.snapshots(one)] == [4, 8, 12]
    for kind in ("raw", "ema"):
        assert_same(weights(watched.snapshot(one, 8), kind), weights(shorter, kind))
        assert_same(weights(watched.snapshot(one, 12), kind), weights(one, kind))


@pytest.mark.parametrize("step", [3, 4, 5, 9, 12])
def test_killed_after_any_step_it_has_the_same_points(tmp_path, one, step):
    out = tmp_path / "run"
    killed_after(step, lambda counts: trained(ONE, out, on_step=counts))
    trained(ONE, out)
    assert text(out) == text(one)
    assert_same(weights(out), weights(one))
    assert [*watched.snapshots(out)] == [4, 8, 12]


@pytest.mark.parametrize("call", [1, 2, 3])
def test_killed_while_it_watches(tmp_path, two, call, monkeypatch):
    out, calls, honest = tmp_path / "run", [], Watch.measure

    def deadly(self, images):
        calls.append(1)
        found = honest(self, images)
        return die() if len(calls) == call else found

    def doomed():
        monkeypatch.setattr(Watch, "measure", deadly)
        trained(TWO, out)

    assert in_child(doomed) == (signal.SIGKILL if call < 3 else 0)
    trained(TWO, out)
    assert text(out) == text(two)
    assert_ends_like_but_identity(two, out)


def assert_ends_like_but_identity(whole, out):
    assert_ends_like(whole, out)
    assert (out / "recommendation.json").read_text() == (whole / "recommendation.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_the_points_do_not_depend_on_the_number_of_processes(tmp_path, two, count):
    """Three processes share a member, whose sums are rounded differently."""
    out = tmp_path / "run"

    def action():
        run = _prepared(TWO, images(), out, CPU, lambda steps: None, None, HELD_OUT)
        run.resume()
        run.to_the_end()

    in_processes(count, action)
    mine, theirs = watched.read_points(out), watched.read_points(two)
    assert mine == theirs or count == 3
    for own, other in zip(mine, theirs, strict=True):
        assert (own.step, own.seen, own.skipped) == (other.step, other.seen, other.skipped)
        assert own.distance.value == pytest.approx(other.distance.value, rel=1e-2)
        assert own.agreement.value == pytest.approx(other.agreement.value, abs=1e-2)


# The end ----------------------------------------------------------------------------------------------------


def test_the_recommendation_is_left_beside_the_points(one):
    content = json.loads((one / "recommendation.json").read_text())
    assert content["points"] == 3
    assert content["sentence"].startswith("Recommended: step 12")


@pytest.fixture
def copies(monkeypatch):
    """Of the points, the second and those after it copy, whatever is drawn."""
    calls, honest = [], Watch.measure

    def measure(self, drawn):
        calls.append(1)
        return honest(self, self.train[: len(drawn)] if len(calls) > 1 else drawn)

    monkeypatch.setattr(Watch, "measure", measure)


def test_a_run_stops_when_it_copies_and_leaves_the_weights_of_before(tmp_path, copies, one):
    out = trained(STOPPING, tmp_path / "run")
    assert [(point.step, point.above_chance) for point in watched.read_points(out)] == [(4, False), (8, True)]
    assert identity.stopped(out) == {"step": 8, "weights_of_step": 4}
    for kind in ("raw", "ema"):
        assert_same(weights(out, kind), weights(watched.snapshot(one, 4), kind))
    assert [*watched.snapshots(out)] == [4]
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    trained(STOPPING, out)  # does nothing
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")} == before
    assert len(watched.read_points(out)) == 2
    (out / "raw" / "unet" / "config.json").write_text("{}")
    trained(STOPPING, out)  # exports again
    assert_same(weights(out), weights(watched.snapshot(one, 4)))
    with pytest.raises(UserError, match="stopped at step 8, as it copies"):
        trained(override(STOPPING, {"train.steps": "20"}), out)


def test_the_card_of_a_stopped_run_says_where_it_stopped(tmp_path, copies):
    out = trained(STOPPING, tmp_path / "run")
    write_card(out)
    card = (out / "README.md").read_text()
    assert "| optimizer steps | 4, of all members in all rounds; the run was to stop when it copies" in card
    assert "did so at step 8 of a member, and left the weights of step 4 |" in card
    assert "| images seen | 32, in batches of 8 |" in card


def test_a_stopped_run_goes_on_where_it_is_not_to_stop(tmp_path, copies, one):
    out = trained(STOPPING, tmp_path / "run")
    trained(override(STOPPING, {"run.stop_when_copying": "false"}), out)
    assert identity.stopped(out) is None
    for kind in ("raw", "ema"):
        assert_same(weights(out, kind), weights(one, kind))
    assert (out / "telemetry.csv").read_text() == (one / "telemetry.csv").read_text()


def test_a_run_that_copies_from_the_start_leaves_what_it_is(tmp_path, monkeypatch, one):
    honest = Watch.measure
    monkeypatch.setattr(Watch, "measure", lambda self, drawn: honest(self, self.train[: len(drawn)]))
    out = trained(STOPPING, tmp_path / "run")
    assert identity.stopped(out) == {"step": 4, "weights_of_step": 4}
    assert_same(weights(out), weights(watched.snapshot(one, 4)))
    assert not watched.snapshots(out)


def test_members_stop_at_the_end_of_a_round(tmp_path, copies):
    chosen = override(TWO, {"method.rounds": "4", "run.stop_when_copying": "true"})
    out = trained(chosen, tmp_path / "run")
    assert identity.stopped(out) == {"step": 12, "weights_of_step": 6}
    assert [file.name for file in sorted((out / "bundles").iterdir())] == ["round-0001", "round-0002"]


@pytest.mark.slow
def test_all_processes_stop_together(tmp_path, copies):
    chosen = override(TWO, {"method.rounds": "4", "run.stop_when_copying": "true"})
    out = tmp_path / "run"

    def action():
        train(chosen, images(), out, CPU, lambda steps: None, None, HELD_OUT)
        train(chosen, images(), out, CPU, lambda steps: None, None, HELD_OUT)  # does nothing

    in_processes(2, action)
    assert identity.stopped(out) == {"step": 12, "weights_of_step": 6}
    assert [file.name for file in sorted((out / "bundles").iterdir())] == ["round-0001", "round-0002"]


def test_a_damaged_snapshot_is_not_exported(tmp_path, copies):
    out = trained(STOPPING, tmp_path / "run")
    shutil.rmtree(out / "raw")
    next(watched.snapshot(out, 4).rglob("*.safetensors")).write_bytes(b"")
    with pytest.raises(UserError, match="not as it was written: restore it"):
        trained(STOPPING, out)


def test_damaged_points_are_named(tmp_path, one):
    out = tmp_path / "run"
    shutil.copytree(one, out)
    (out / watched.POINTS).write_text(text(one) + '{"step": 3}\n')
    with pytest.raises(UserError, match="line 4 is no point"):
        watched.read_points(out)


@pytest.mark.parametrize("name", ["keep_watched", "stop_when_copying"])
def test_what_needs_a_watch_is_refused_without(name):
    with pytest.raises(UserError, match=f"{name} has no effect on a run that is not watched"):
        validate({"run": {name: True}})
