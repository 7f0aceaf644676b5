"""A watch on any training loop: what it measures, when, what it keeps, and how it goes on."""

import csv
import functools
import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import iet_agc
from iet_agc.api import memorization_watch
from iet_agc.api.memorization_watch import LossBatch, MemorizationWatch
from iet_agc.auditing.curve import draw_curve
from iet_agc.metrics.curve import Point, recommend
from iet_agc.metrics.watch import Watch, agreement, losses_by_band
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.pace import Pace, next_of
from iet_agc.training.watched import read_points, read_watch
from tests.faulty import contents, forked


def noise(count: int, seed: int, channels: int = 1, side: int = 6) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, channels, side, side), generator=rng, dtype=torch.uint8)


TRAIN, HELD_OUT = noise(40, 0), noise(110, 1)


def honest(seeds: list[int]) -> torch.Tensor:
    """Other images of the same kind."""
    return torch.cat([noise(1, 10_000 + seed) for seed in seeds])


def copying(seeds: list[int]) -> torch.Tensor:
    """Training images."""
    return TRAIN[[seed % len(TRAIN) for seed in seeds]]


def worse_by(amount: float):
    """Losses that depend on images and noise, and grow with an amount."""
    return lambda batch: (batch.images + torch.randn_like(batch.images)).square().mean((1, 2, 3)) + amount


def watch_of(**options) -> MemorizationWatch:
    given: dict[str, Any] = {"images": 20, "losses": 16, "quiet": True} | options
    return MemorizationWatch(TRAIN, HELD_OUT, **given)


# What it measures -------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_watch_of_our_own_runs():
    point = watch_of().measure(7, copying, images_seen=448)
    found = Watch(TRAIN, HELD_OUT).measure(copying([*range(20)]))
    assert {name: getattr(point, name) for name in type(found).model_fields} == dict(found)
    assert (point.step, point.images_seen, point.losses, point.adapter) == (7, 448, None, None)


def test_losses_are_compared_at_the_same_noise_and_the_same_at_each_point():
    asked: list[tuple[LossBatch, torch.Tensor]] = []

    def losses(batch):
        asked.append((batch, drawn := torch.randn(len(batch.images))))
        return drawn.square() + batch.held_out

    watch = watch_of(losses=100, rows=30)
    first, second = (watch.measure(step, honest, losses) for step in (1, 2))
    assert first.losses == second.losses
    assert first.losses is not None
    assert first.losses.gap == pytest.approx(1)
    assert (first.losses.train_bands, first.losses.gap_bands) == ((), [])
    own, held = asked[:4], asked[4:8]
    assert [len(batch.images) for batch, _ in own] == [30, 30, 30, 10]
    assert not any(batch.held_out for batch, _ in own)
    assert all(batch.held_out for batch, _ in held)
    for (_, mine), (_, theirs) in zip(own, held, strict=True):
        assert torch.equal(mine, theirs)
    for parts, real in ((own, TRAIN), (held, HELD_OUT)):
        places = torch.cat([batch.places for batch, _ in parts])
        given = torch.cat([batch.images for batch, _ in parts])
        assert torch.equal(((given + 1) * 127.5).round().to(torch.uint8), real[places])
        counts = torch.bincount(places, minlength=len(real))
        assert counts.max() - counts.min() <= 1  # all in turn


def test_losses_are_the_means_of_what_is_returned():
    expected = losses_by_band(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0]))
    for kind in (torch.tensor, np.array, list):
        point = watch_of(losses=2).measure(
            1, honest, lambda batch, kind=kind: kind([3, 5] if batch.held_out else [1, 2])
        )
        assert point.losses == expected


def test_losses_that_are_not_finite_are_not_compared():
    assert watch_of().measure(1, honest, lambda batch: torch.full((len(batch.images),), torch.nan)).losses is None


def test_an_adapter_is_compared_with_what_it_adapts_which_is_drawn_once():
    calls = []

    def without(seeds):
        calls.append(len(seeds))
        return honest(seeds)

    watch = watch_of(rows=8)
    same, other = (watch.measure(step, draw, without_adapter=without) for step, draw in ((1, honest), (2, copying)))
    assert same.adapter is not None
    assert same.adapter.value == 1
    assert other.adapter == agreement(torch.stack([honest([*range(20)]), copying([*range(20)])]))
    assert calls == [8, 8, 4]


def test_prompts_come_with_their_seeds():
    asked = []

    def draw(seeds, prompts):
        asked.extend(zip(seeds, prompts, strict=True))
        return honest(seeds)

    watch_of(images=5, rows=3, prompts=["a cat", "a dog"]).measure(1, draw)
    assert asked == [(0, "a cat"), (1, "a dog"), (2, "a cat"), (3, "a dog"), (4, "a cat")]


def test_training_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)

    def draw(seeds):
        torch.manual_seed(9)
        assert not torch.is_grad_enabled()
        return honest(seeds)

    watch_of().measure(1, draw, worse_by(0.0))
    assert torch.equal(torch.rand(4), expected)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("kind", ["NHWC", "grey", "PIL", "folder"])
def test_images_may_be_of_any_kind(tmp_path, kind):
    def given(images):
        if kind == "NHWC":
            return images.permute(0, 2, 3, 1).numpy()
        if kind == "grey":
            return images[:, 0]
        return [Image.fromarray(image[0].numpy()) for image in images]

    reference = given(TRAIN)
    if kind == "folder":
        for number, image in enumerate(reference):
            assert isinstance(image, Image.Image)
            image.save(tmp_path / f"{number:03}.png")
        reference = tmp_path
    watch = MemorizationWatch(reference, given(HELD_OUT), images=20, quiet=True)
    assert watch.measure(1, lambda seeds: given(copying(seeds))) == watch_of().measure(1, copying)


def test_images_of_other_sizes_are_brought_to_one_where_that_is_asked_for():
    large = functools.partial(torch.repeat_interleave, repeats=2, dim=2)
    watch = watch_of(shape=(1, 3, 3))
    assert watch.measure(1, lambda seeds: large(copying(seeds)).repeat_interleave(2, 3)).copied.total == 20


# What it says and keeps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("held_out", [HELD_OUT, HELD_OUT[:9], None], ids=["enough", "few", "none"])
def test_a_model_that_copies_is_told_from_one_that_does_not(held_out, capsys):
    watch = MemorizationWatch(TRAIN, held_out, images=40)
    assert not watch.measure(1, honest).above_chance
    assert watch.measure(2, copying).above_chance
    enough = held_out is not None and len(held_out) > 98
    assert watch.points[0].source == ("held-out images" if enough else "training images, each against the others")
    said = capsys.readouterr().err
    assert said.count("copying begins at step 2: 1e+02 % of the images are copies") == 1
    assert "step 1 is the best so far" in said
    watch.measure(3, copying)
    assert "copying begins" not in capsys.readouterr().err


def test_the_best_has_the_lowest_held_out_loss_of_those_that_do_not_copy(tmp_path):
    saved = []

    def save(path):
        saved.append(path.name)
        path.mkdir()
        (path / "weights").write_text(path.name)

    watch = watch_of(out=tmp_path / "watch", save=save)
    improved = []
    for step, (draw, loss) in enumerate([(honest, 3.0), (honest, 1.0), (copying, 0.5), (honest, 2.0)]):
        watch.measure(step, draw, worse_by(loss))
        improved.append(watch.improved)
    assert improved == [True, True, False, False]
    assert watch.best is not None
    assert watch.best.step == 1
    assert saved == ["step-000000000", "step-000000001"]
    assert watch.best_path == tmp_path / "watch" / "best" / "step-000000001"
    assert [each.name for each in (tmp_path / "watch" / "best").iterdir()] == ["step-000000001"]
    found = watch.recommendation
    assert found is not None
    assert (found.step, found.by, found.copying, found.confidence) == (1, "lowest held-out loss", "later", "high")
    assert json.loads((tmp_path / "watch" / "recommendation.json").read_text()) == found.model_dump(mode="json")
    assert "above chance at one point after it, first at step 2" in found.sentence


def test_without_losses_the_best_has_the_lowest_distance():
    watch = watch_of()
    watch.measure(1, honest)
    watch.measure(2, lambda seeds: honest(seeds) // 4)  # darker
    assert watch.recommendation is not None
    assert (watch.recommendation.step, watch.recommendation.by) == (1, "lowest distance")


def test_where_all_points_copy_none_is_the_best(tmp_path):
    watch = watch_of(out=tmp_path / "watch", save=lambda path: path.write_text("no"))
    watch.measure(1, copying)
    assert watch.best is watch.best_path is None
    assert not watch.improved
    assert not (tmp_path / "watch" / "best").exists()


def test_it_stops_after_two_points_that_copy():
    watch, stops = watch_of(), []
    for step, draw in enumerate([copying, honest, copying, copying, honest]):
        watch.measure(step, draw)
        stops.append(watch.should_stop)
    assert stops == [False, False, False, True, False]


def test_before_any_point_there_is_nothing():
    watch = watch_of()
    assert (watch.points, watch.best, watch.recommendation, watch.figures, watch.should_stop) == (
        [],
        None,
        None,
        {},
        False,
    )


def test_figures_are_for_any_board_of_curves():
    watch = watch_of()
    point = watch.measure(1, copying, worse_by(0.0))
    assert point.losses is not None
    assert watch.figures["copied"] == 1
    assert watch.figures["loss/held_out"] == point.losses.held_out
    assert "skip_rate" not in watch.figures


# When -------------------------------------------------------------------------------------------------------


def test_every_so_many_steps():
    watch = watch_of(every=3)
    taken = [step for step in range(1, 10) if watch(step, honest) is not None]
    assert taken == [3, 6, 9] == [point.step for point in watch.points]


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_by_default_it_takes_a_twentieth_of_the_time(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(memorization_watch, "Pace", functools.partial(Pace, clock=clock))

    def draw(seeds):
        clock.now += 0.1 * len(seeds)
        return honest(seeds)

    def losses(batch):
        clock.now += 0.05 * len(batch.images)
        return torch.ones(len(batch.images))

    watch, costs = watch_of(quiet=False), []
    for step in range(1, 501):
        clock.now += 1.0
        if watch(step, draw, losses) is not None:
            costs.append(watch.cost)
    # The trial takes 8 x 0.1 + 8 x 0.05 s, a point 20 x 0.1 + 2 x 16 x 0.05 = 3.6 s
    steps = [point.step for point in watch.points]
    assert steps[0] == pytest.approx(1 + (1.2 + 3.6) / 0.05, abs=1)
    assert [later - before for before, later in pairwise(steps)] == [pytest.approx(72, abs=1)] * 5
    assert max(costs) <= 0.05 + 1e-9
    assert watch.cost == pytest.approx((1.2 + 6 * 3.6) / 499)
    said = capsys.readouterr().err
    assert "a point takes about 3.6 s, so there is one about every 72 s of training, which is 5 % of it" in said
    assert "watching took 5.0 % of the time" in said


def test_of_a_known_number_of_steps_points_are_closer_together_early_on(monkeypatch, capsys):
    """They are spread geometrically, the last at the end, and take at most a twentieth of the whole."""
    clock = Clock()
    monkeypatch.setattr(memorization_watch, "Pace", functools.partial(Pace, clock=clock))

    def draw(seeds):
        clock.now += 0.1 * len(seeds)
        return honest(seeds)

    watch = watch_of(steps=500, quiet=False)
    for step in range(1, 701):
        clock.now += 1.0
        watch(step, draw)
        if step == 500:
            assert watch.cost <= 0.05
    steps = [point.step for point in watch.points]
    # The trial takes 0.8 s, a point 2 s: 12 points in a twentieth of 500 s, from a fiftieth of the steps on
    assert steps[:12] == [14, 20, 28, 39, 54, 75, 103, 142, 195, 267, 366, 500]
    ratios = [later / before for before, later in pairwise([10, *steps[:12]])]
    assert ratios == [pytest.approx(50 ** (1 / 12), rel=0.06)] * 12
    # what goes on longer than it said is watched by time
    assert [later - before for before, later in pairwise(steps[12:])] == [pytest.approx(40, abs=1)] * 4
    assert "there are as many as take 5 % of the whole training, closer together early on" in capsys.readouterr().err


def test_a_training_too_short_for_a_point_has_none(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(memorization_watch, "Pace", functools.partial(Pace, clock=clock))

    def draw(seeds):
        clock.now += 0.1 * len(seeds)
        return honest(seeds)

    watch = watch_of(steps=40)
    for step in range(1, 41):
        clock.now += 1.0
        watch(step, draw)
    assert watch.points == []


def test_steps_of_several_sessions_are_one_training():
    clock = Clock()
    pace = Pace(0.05, around=100.0, work=1.0, clock=clock)
    pace.begin()
    clock.now, pace.expected = 50.0, 2.0
    assert pace.left_of(200, 25) == (0.05 * (100 + 50 + 400) - 1) // 2
    assert pace.left_of(0, 25) == (0.05 * 150 - 1) // 2
    assert (next_of(10, 1000, 2), next_of(10, 1000, 1), next_of(1000, 1000, 3)) == (100, 1000, 1000)


def test_a_pace_counts_what_is_around_the_work_and_the_work():
    clock = Clock()
    pace = Pace(0.5, around=10.0, work=3.0, clock=clock)
    assert (pace.around, pace.share, pace.is_affordable) == (10, 0.3, False)
    pace.expected = 2.0
    assert pace.is_affordable
    pace.begin()
    clock.now = 4.0
    with pace.working():
        clock.now = 9.0
    pace.begin()
    assert (pace.around, pace.work, pace.is_affordable) == (14, 8, False)


# Going on ---------------------------------------------------------------------------------------------------


def test_it_goes_on_where_it_was_left(tmp_path):
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    watch = watch_of(out=whole)
    for step in range(1, 7):
        for each in (watch, watch_of(out=parted)):  # the second is made anew at each step
            each.measure(step, copying if step > 4 else honest, worse_by(abs(step - 3)))
    assert (whole / "watch.jsonl").read_text() == (parted / "watch.jsonl").read_text()
    again = watch_of(out=parted)
    assert again.points == watch.points == read_points(whole)
    assert again.best == watch.best
    assert again.should_stop
    record = read_watch(parted)
    assert record is not None
    assert record.seconds_watching > record.seconds_training > 0


def test_a_point_that_is_measured_again_is_replaced(tmp_path):
    watch = watch_of(out=tmp_path / "watch")
    for step in (1, 2, 3):
        watch.measure(step, honest)
    watch = watch_of(out=tmp_path / "watch")
    watch.measure(2, copying)
    assert [(point.step, point.above_chance) for point in watch.points] == [(1, False), (2, True), (3, False)]
    assert read_points(tmp_path / "watch") == watch.points


def test_killed_while_it_saves_it_measures_again(tmp_path):
    def dies(path):
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch_of(out=tmp_path / "watch", save=dies).measure(1, honest)
    watch = watch_of(out=tmp_path / "watch", save=lambda path: path.write_text("whole"))
    assert watch.points == []
    watch.measure(1, honest)
    assert watch.best_path is not None
    assert watch.best_path.read_text() == "whole"


def test_killed_before_any_change_of_the_disk_it_ends_as_if_it_had_not_been(tmp_path):
    def trained(out):
        watch = watch_of(out=out, save=lambda path: path.write_text(path.name))
        for step in range(1, 4):
            watch.measure(step, honest, worse_by(-step))

    def left(out):
        return {name: each for name, each in contents(out).items() if name != "memorization-watch.json"}

    changes = forked(lambda: trained(tmp_path / "whole")).changes
    assert changes > 10
    for before in range(1, changes, 4):
        out = tmp_path / f"{before}"
        assert forked(lambda out=out: trained(out), before=before).killed
        trained(out)
        assert left(out) == left(tmp_path / "whole")
    assert "best/step-000000003" in left(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"reference": noise(40, 5)}, "reference images"),
        ({"held_out": HELD_OUT[:100]}, "held-out images"),
        ({"held_out": None}, "held-out images"),
        ({"images": 21}, "images"),
        ({"losses": 17}, "losses"),
        ({"flips": True}, "flips"),
        ({"prompts": ["a"]}, "prompts"),
    ],
)
def test_the_folder_of_another_watch_is_refused(tmp_path, changes, what):
    watch_of(out=tmp_path / "watch")
    given = {"reference": TRAIN, "held_out": HELD_OUT, "images": 20, "losses": 16} | changes
    with pytest.raises(UserError, match=f"holds a watch with other {what}: choose another folder"):
        MemorizationWatch(out=tmp_path / "watch", quiet=True, **given)


# Pages ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    watch = watch_of(out=tmp_path / "watch")
    for step, draw in ((100, honest), (200, honest), (300, copying)):
        watch.measure(step, draw, worse_by(abs(step - 200)), without_adapter=honest)
    return tmp_path / "watch"


def test_a_report_and_a_curve_are_made_of_its_folder(folder):
    page = iet_agc.report(folder).read_text()
    assert page == (folder / "report.html").read_text()
    points = read_points(folder)
    assert recommend(points, by_quality=True).sentence in page
    assert page.count("<svg") == 3
    assert "training steps" in page
    assert "images seen" not in page
    assert "watching took" in page
    found = draw_curve(folder, folder / "curve")
    assert found["recommendation"]["step"] == 200
    content = json.loads((folder / "curve" / "curve.json").read_text())
    assert [Point.model_validate_json(json.dumps(each)) for each in content["points"]] == points
    rows = list(csv.DictReader((folder / "curve" / "curve.csv").open()))
    assert [(row["step"], row["images_seen"], row["adapter"]) for row in rows][:1] == [("100", "", "1.0")]


def test_pictures_show_drawn_images_above_the_nearest_training_images(folder):
    picture = np.asarray(Image.open(folder / "pairs" / "step-000000300.png"))
    assert picture.shape == (2 * 98 + 2, 8 * 98 + 2, 3)
    assert np.array_equal(picture[2:98], picture[100:196])  # copies
    other = np.asarray(Image.open(folder / "pairs" / "step-000000100.png"))
    assert not np.array_equal(other[2:98], other[100:196])


def test_what_a_page_cannot_be_made_of(tmp_path, folder):
    watch_of(out=tmp_path / "empty")
    with pytest.raises(UserError, match="has no points yet"):
        iet_agc.report(tmp_path / "empty")
    with pytest.raises(UserError, match="is a watch, which has a page of its own: give it alone"):
        iet_agc.report([folder, folder])
    with pytest.raises(UserError, match="is a watch, which holds no models to draw with"):
        draw_curve(folder, tmp_path / "curve", 8)
    (folder / "report.html").write_text("a thesis")
    with pytest.raises(UserError, match="is no curve of ours"):
        iet_agc.report(folder)
    (folder / "memorization-watch.json").write_text('{"kind": "iet-agc watch"}')
    with pytest.raises(UserError, match="is damaged: reference is not what a watch writes"):
        draw_curve(folder, tmp_path / "curve")


# Bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every is a whole number of 1 or more, not 0"),
        ({"steps": 100, "every": 10}, "steps has no effect beside every: give one of the two"),
        ({"images": 2.5}, "images is a whole number of 1 or more, not 2.5"),
        ({"rows": True}, "rows is a whole number of 1 or more, not True"),
        ({"most_time": 0.0}, "most_time is a share of the training's time above 0, not 0.0"),
        ({"save": print}, "a checkpoint is saved below out: give a folder as well"),
        ({"held_out": noise(5, 1, side=8)}, r"held-out images are 1 x 8 x 8, reference images 1 x 6 x 6: give shape="),
        ({"held_out": TRAIN.float()}, "held_out .*the range of other numbers is not guessed"),
        ({"reference": TRAIN[:2]}, "a watch needs 3 training images that differ, not 2"),
        ({"reference": "nowhere"}, "nowhere is not a folder of images"),
        ({"held_out": HELD_OUT[:0]}, "held_out holds no images, its shape is "),
    ],
)
def test_what_a_watch_cannot_be_made_of(options, message):
    with pytest.raises(UserError, match=message):
        MemorizationWatch(**{"reference": TRAIN} | options)


@pytest.mark.parametrize(
    ("draw", "losses", "message"),
    [
        (lambda seeds: honest(seeds)[:-1], None, "draw returned 19 images for 20 seeds: return one for each"),
        (lambda seeds: honest(seeds).float() / 255, None, "draw .*the range of other numbers is not guessed"),
        (
            lambda seeds: noise(len(seeds), 1, side=8),
            None,
            "images that are drawn are 1 x 8 x 8, reference images 1 x 6",
        ),
        (lambda seeds: None, None, "draw is of type NoneType"),
        (honest, lambda batch: batch.images.mean(), r"losses returned \(\) for 16 images: return the loss of each"),
        (honest, lambda batch: "low", "losses returned str: return a number for each image"),
    ],
)
def test_what_a_loop_must_not_return(draw, losses, message):
    watch = watch_of()
    with pytest.raises(UserError, match=message):
        watch.measure(1, draw, losses)
    assert watch.points == []


def test_losses_need_held_out_images():
    with pytest.raises(UserError, match="losses are compared with those of held-out images: give held_out as well"):
        MemorizationWatch(TRAIN, images=4).measure(1, honest, worse_by(0))


def test_steps_are_not_negative():
    with pytest.raises(UserError, match="step is 0 or more, not -1"):
        watch_of().measure(-1, honest)


def test_other_folders_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is not empty and holds no watch"):
        watch_of(out=tmp_path)
