"""The member and the round loop: identities first, then what is written down of a run."""

import csv
import json

import pytest
import torch

from iet_agc.data.duplicates import plant_duplicates
from iet_agc.data.image_set import ImageSet
from iet_agc.diffusion.process import make_scheduler, per_sample_loss, to_float
from iet_agc.diffusion.unet import build_unet
from iet_agc.method.averaging import average_states
from iet_agc.method.sharding import partition
from iet_agc.runtime.seeds import key_of
from iet_agc.training.batches import draw_batch
from iet_agc.training.loop import train
from iet_agc.training.member import Member, NonFiniteError, warmup
from iet_agc.training.pixels import Pixels
from tests.tiny_runs import CPU, assert_same, images, settings, weights


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("flips", [False, True])
def test_default_training_is_a_plain_loop_bitwise(tmp_path, dropout, flips):
    chosen = settings(
        method__members=1, method__rounds=1, method__skip_below=0.0, model__dropout=dropout, data__flips=flips
    )
    data, scheduler = images(), make_scheduler()
    train(chosen, data, tmp_path / "run", CPU)

    torch.manual_seed(key_of("weights", 0))
    model = build_unet(8, 1, 8, (1, 2), 1, (), dropout, 4)
    average = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    for step in range(6):
        batch = draw_batch(0, 0, step, len(data), 8, data.shape, CPU)
        x = to_float(data.images[batch.positions])
        x = torch.where(batch.flips[:, None, None, None] & flips, x.flip(-1), x)
        torch.manual_seed(key_of("dropout", 0, 0, step))
        per_sample_loss(model, scheduler, x, batch.timesteps, batch.noise).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = 1e-3 * min(step / 3, 1)
        optimizer.step()
        optimizer.zero_grad()
        for name, value in model.state_dict().items():
            average[name].lerp_(value, 1 - 0.9)

    assert_same(weights(tmp_path / "run"), model.state_dict())
    for name, value in weights(tmp_path / "run", "ema").items():
        torch.testing.assert_close(value, average[name], rtol=1e-6, atol=1e-7)


def test_one_round_of_iet_is_the_weighted_average_of_members_trained_alone(tmp_path):
    chosen = settings(method__members=3, method__rounds=1)
    data = images(41)
    train(chosen, data, tmp_path / "run", CPU)

    torch.manual_seed(key_of("weights", 0))
    initial = build_unet(8, 1, 8, (1, 2), 1, (), 0.0, 4)
    assert data.labels is not None
    shards = partition(data.labels, 3, "stratified", 0)
    members = [
        Member(i, initial, Pixels(data.images[shard]), chosen.train, chosen.method, CPU)
        for i, shard in enumerate(shards)
    ]
    for member in members:
        for _ in member.train(6, make_scheduler()):
            pass
    mean = average_states([m.model.state_dict() for m in members], [len(shard) for shard in shards])
    assert_same(weights(tmp_path / "run"), mean)
    assert not torch.equal(members[0].agc.mean_loss, members[1].agc.mean_loss)


def test_members_share_weights_after_a_round_and_keep_the_rest(tmp_path):
    from iet_agc.training.checkpoint import read_bundle

    train(settings(), images(), tmp_path / "run", CPU)
    bundle = read_bundle(tmp_path / "run" / "bundles" / "round-0002")
    first, second = bundle.tensors("member-0000"), bundle.tensors("member-0001")
    moments = [name for name in first if name.startswith("optimizer.exp_avg")]
    assert moments
    assert not any(torch.equal(first[name], second[name]) for name in moments)
    assert int(first["step"]) == int(second["step"]) == 12
    assert_same(
        {name.removeprefix("raw."): t for name, t in bundle.tensors("shared").items() if name.startswith("raw.")},
        weights(tmp_path / "run"),
    )


def test_every_image_of_a_shard_comes_once_per_epoch():
    epoch = [draw_batch(0, 1, step, 20, 8, (1, 2, 2), CPU).positions for step in range(5)]  # 40 draws
    drawn = torch.cat(epoch)
    assert sorted(drawn[:20].tolist()) == sorted(drawn[20:].tolist()) == list(range(20))
    assert drawn[:20].tolist() != drawn[20:].tolist()


def test_a_batch_may_be_larger_than_its_shard():
    positions = draw_batch(0, 0, 3, 5, 16, (1, 2, 2), CPU).positions
    counts = torch.bincount(positions, minlength=5)
    assert counts.sum() == 16
    assert 2 <= counts.min() <= counts.max() <= 4


def test_a_batch_depends_on_seed_member_and_step_only():
    def drawn(seed, member, step):
        return draw_batch(seed, member, step, 20, 8, (1, 2, 2), CPU)

    assert torch.equal(drawn(0, 1, 2).noise, drawn(0, 1, 2).noise)
    for other in ((1, 1, 2), (0, 2, 2), (0, 1, 3)):
        assert not torch.equal(drawn(0, 1, 2).noise, drawn(*other).noise)


def test_warmup_rises_linearly_from_zero():
    assert [warmup(step, 4) for step in (0, 1, 3, 4, 9)] == [0, 0.25, 0.75, 1, 1]
    assert warmup(0, 0) == 1


def test_telemetry_counts_every_draw_once(tmp_path):
    train(settings(method__random_skip=0.5), images(), tmp_path / "run", CPU)
    rows = list(csv.DictReader((tmp_path / "run" / "telemetry.csv").open()))
    assert [int(row["image"]) for row in rows] == list(range(40))
    assert sum(int(row["seen"]) for row in rows) == 2 * 12 * 8
    assert 0.3 < sum(int(row["skipped"]) for row in rows) / (2 * 12 * 8) < 0.7
    labels = images().labels
    assert labels is not None
    shards = partition(labels, 2, "stratified", 0)
    assert all((int(row["member"]) == 1) == (int(row["image"]) in shards[1].tolist()) for row in rows)


def test_copies_are_in_one_shard_only_where_they_are_kept_together(tmp_path):
    """Each of 3 images 12 times among 40: dealt out, both members have copies of all three."""
    data = plant_duplicates(images(40), 3, 12)
    found = {}
    for together in (False, True):
        out = tmp_path / str(together)
        train(settings(method__keep_duplicates_together=together, train__steps=1), data, out, CPU)
        rows = list(csv.DictReader((out / "telemetry.csv").open()))
        places = [
            [int(rows[image]["member"]) for image in (planted, *range(40 + planted, 73, 3))] for planted in range(3)
        ]
        found[together] = [len(set(some)) for some in places]
        assert sorted(int(row["image"]) for row in rows) == list(range(73))
    assert found == {False: [2, 2, 2], True: [1, 1, 1]}


def test_agc_skips_what_is_far_under_the_bank(tmp_path):
    """With a bank set far above any loss, everything is skipped and nothing is learned."""
    chosen = settings(method__members=1)
    torch.manual_seed(0)
    initial = build_unet(8, 1, 8, (1, 2), 1, (), 0.0, 4)
    member = Member(0, initial, Pixels(images().images), chosen.train, chosen.method, CPU)
    member.agc.mean_loss.fill_(1e9)
    for _, keep, _ in member.train(3, make_scheduler()):
        assert not keep.any()
    assert_same(member.model.state_dict(), initial.state_dict())
    assert member.skipped.sum() == member.seen.sum() == 24


def test_curves_have_every_column_at_every_point(tmp_path):
    train(settings(), images(), tmp_path / "run", CPU)
    points = [json.loads(line) for line in (tmp_path / "run" / "curves" / "member-0001.jsonl").read_text().splitlines()]
    assert [point["step"] for point in points] == [2, 4, 6, 8, 10, 12]
    assert [point["images_seen"] for point in points] == [16, 32, 48, 64, 80, 96]
    assert [point["round"] for point in points] == [0, 0, 0, 1, 1, 1]
    assert points[0]["learning_rate"] == pytest.approx(1e-3 * 1 / 3)
    assert all(
        len(point["skip_rate_bands"]) == 10 and point["loss"] > 0 and point["images_per_second"] > 0 for point in points
    )
    assert list((tmp_path / "run" / "tensorboard" / "member-0001").iterdir())


def test_previews_are_drawn_after_each_round(tmp_path):
    train(settings(run__preview_images=4), images(), tmp_path / "run", CPU)
    assert sorted(file.name for file in (tmp_path / "run" / "previews").iterdir()) == [
        "round-0001.png",
        "round-0002.png",
    ]


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_a_non_finite_step_changes_nothing_and_is_named(tmp_path, monkeypatch, poison):
    """The 8th step of member 1 goes wrong: round 1, step 7, after one good round."""
    from iet_agc.training import pixels

    chosen, honest = settings(), pixels.per_sample_loss
    calls = []

    def spoiled(*arguments):
        calls.append(1)
        losses = honest(*arguments)
        if len(calls) != 6 + 6 + 6 + 2:  # member 0, member 1, member 0, then two of member 1
            return losses
        return losses * torch.nan if poison == "loss" else Explode.apply(losses)

    monkeypatch.setattr(pixels, "per_sample_loss", spoiled)
    with pytest.raises(NonFiniteError, match="member 1, round 1, step 7;"):
        train(chosen, images(), tmp_path / "run", CPU)
    bundles = sorted(folder.name for folder in (tmp_path / "run" / "bundles").iterdir())
    assert bundles == ["round-0001", "round-0001-member-0000-step-000000008"]

    monkeypatch.setattr(pixels, "per_sample_loss", honest)
    train(chosen, images(), tmp_path / "run", CPU)
    train(chosen, images(), tmp_path / "whole", CPU)
    assert_same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


class Explode(torch.autograd.Function):
    """The identity, with an infinite gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, *grad_outputs):
        (gradient,) = grad_outputs
        return gradient * torch.inf


def test_weights_stand_still_from_the_bad_step_on():
    chosen = settings(method__members=1)
    torch.manual_seed(0)
    initial = build_unet(8, 1, 8, (1, 2), 1, (), 0.0, 4)
    member = Member(0, initial, Pixels(images().images), chosen.train, chosen.method, CPU)
    seen = []
    with pytest.raises(NonFiniteError):  # noqa: PT012 (the loop is what raises, at its end)
        for number, _ in enumerate(member.train(5, make_scheduler())):
            seen.append({name: value.clone() for name, value in member.model.state_dict().items()})
            if number == 1:
                next(iter(member.agc.buffers())).fill_(torch.nan)  # nan >= nan is False: all skipped, silently
                member.examples = Pixels(images().images.float() * torch.inf)
    assert_same(seen[1], seen[4])
    assert not torch.equal(seen[0]["conv_in.weight"], seen[1]["conv_in.weight"])


def test_only_the_member_being_trained_is_on_the_device(tmp_path, monkeypatch):
    """Each of three members goes there and back before the next one goes."""
    moves, honest = [], Member.to

    def to(member, device):
        moves.append((member.index, device.index))
        honest(member, CPU)

    monkeypatch.setattr(Member, "to", to)
    chosen = settings(method__members=3, method__rounds=1)
    train(chosen, images(), tmp_path / "run", torch.device("cpu", 0))  # told apart from the host by its index
    assert moves == [(0, 0), (0, None), (1, 0), (1, None), (2, 0), (2, None)]


def test_images_that_are_not_square_are_refused_before_anything_is_written(tmp_path):
    wide = ImageSet(images().images.repeat(1, 1, 1, 2), "wide")
    with pytest.raises(ValueError, match="wide is 16 x 8: only square images"):
        train(settings(), wide, tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()


def test_a_step_reads_nothing_on_the_host():
    """`item` and `nonzero` wait for the device; blocking copies do as well, but a CPU cannot show them."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            name = str(function)
            assert "_local_scalar_dense" not in name
            assert "nonzero" not in name
            return function(*args, **(kwargs or {}))

    torch.manual_seed(0)
    initial = build_unet(8, 1, 8, (1, 2), 1, (), 0.0, 4)
    chosen, bad = settings(method__members=1), torch.zeros(())
    member = Member(0, initial, Pixels(images().images), chosen.train, chosen.method, CPU)
    member._one_step(make_scheduler(), bad)
    with Watch():
        member._one_step(make_scheduler(), bad)
    with pytest.raises(AssertionError), Watch():
        bad.item()
