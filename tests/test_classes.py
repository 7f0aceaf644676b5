"""Models that are told classes: in training, on many processes, after a kill, in previews and in sample sets."""

import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ConsistencyModelPipeline, DDIMPipeline  # pyright: ignore[reportPrivateImportUsage]

from iet_agc import cli
from iet_agc.data.image_set import ImageSet
from iet_agc.diffusion.process import make_scheduler, per_sample_loss, predict_noise, to_float
from iet_agc.diffusion.samplers import labels_of, sample
from iet_agc.diffusion.unet import build_unet, load_pipeline, num_classes, save_pipeline
from iet_agc.method.sharding import partition
from iet_agc.runtime.seeds import key_of
from iet_agc.sampling import sample_set
from iet_agc.sampling.sample_set import load_samples, sample_run
from iet_agc.training import loop, tasks
from iet_agc.training.batches import draw_batch
from iet_agc.training.loop import train
from iet_agc.training.member import Member
from iet_agc.training.pixels import Pixels
from tests.drawing import draw_samples
from tests.processes import die, in_child, in_processes
from tests.tiny_runs import CPU, assert_ends_like, assert_same, ends, images, settings, train_in, uninterrupted, weights


def told(**changes):
    """As `settings`, of the 4 classes that `images` has."""
    return settings(model__classes=4, **changes)


def unet(classes: int | None = 4):
    torch.manual_seed(0)
    return build_unet(8, 1, 8, (1, 2), 1, (), 0.0, 4, classes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return uninterrupted(told(model__dropout=0.1, run__preview_images=9), tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """Random weights, but a class that shows."""
    folder = tmp_path_factory.mktemp("model") / "pipeline"
    save_pipeline(unet(), make_scheduler(), folder)
    return folder


# -- training


def test_default_training_is_a_plain_loop_that_tells_classes_bitwise(tmp_path):
    chosen = told(method__members=1, method__rounds=1, method__skip_below=0.0)
    data, scheduler = images(), make_scheduler()
    train(chosen, data, tmp_path / "run", CPU)

    torch.manual_seed(key_of("weights", 0))
    model = build_unet(8, 1, 8, (1, 2), 1, (), 0.0, 4, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    for step in range(6):
        batch = draw_batch(0, 0, step, len(data), 8, data.shape, CPU)
        x = to_float(data.images[batch.positions])
        noisy = scheduler.add_noise(x, batch.noise, batch.timesteps)  # pyright: ignore[reportArgumentType]
        predicted = model(noisy, batch.timesteps, class_labels=data.labels[batch.positions]).sample  # pyright: ignore
        (predicted - batch.noise).square().flatten(1).mean(1).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = 1e-3 * min(step / 3, 1)
        optimizer.step()
        optimizer.zero_grad()
    assert_same(weights(tmp_path / "run"), model.state_dict())


def test_a_shard_takes_its_own_labels(tmp_path):
    """Labels in another order than the images', so that a shard that took the first ones would differ."""
    data = images()
    shuffled = data.take(torch.randperm(40, generator=torch.Generator().manual_seed(1)))
    shards = partition(shuffled.labels, 2, "stratified", 0)  # pyright: ignore[reportArgumentType]
    run = loop._prepared(told(), shuffled, tmp_path / "run", CPU, None)
    for member, shard in zip(run.members, shards, strict=True):
        examples = member.examples
        assert torch.equal(examples.labels, shuffled.labels[shard])  # pyright: ignore
        for image, label in zip(examples.images, examples.labels, strict=True):  # pyright: ignore
            where = (data.images == image).flatten(1).all(1).nonzero().item()
            assert data.labels[where] == label  # pyright: ignore[reportOptionalSubscript]


def test_other_labels_make_another_model_and_classless_training_ignores_them(tmp_path):
    data = images()
    other = ImageSet(data.images, "noise", (data.labels + 1) % 4)  # pyright: ignore[reportOptionalOperand]
    found = {}
    for name, chosen in (
        ("told", told(method__sharding="contiguous")),
        ("not", settings(method__sharding="contiguous")),
    ):
        for which, these in (("own", data), ("other", other)):
            train(chosen, these, tmp_path / name / which, CPU)
            found[name, which] = weights(tmp_path / name / which)
    assert_same(found["not", "own"], found["not", "other"])
    changed = [
        name for name, value in found["told", "own"].items() if not torch.equal(value, found["told", "other"][name])
    ]
    assert len(changed) == len(found["told", "own"])


@pytest.mark.parametrize("step", [5, 13, 23])
def test_killed_after_any_step(tmp_path, whole, step):
    chosen, out, steps = told(model__dropout=0.1, run__preview_images=9), tmp_path / "run", []
    in_child(
        lambda: train(chosen, images(), out, CPU, lambda n: die() if len(steps) + n > step else steps.extend([1] * n))
    )
    train(chosen, images(), out, CPU)
    assert_ends_like(whole, out)
    for name in ("round-0001.png", "round-0002.png"):
        assert (out / "previews" / name).read_bytes() == (whole / "previews" / name).read_bytes()


def test_other_labels_are_another_run(tmp_path, whole):
    import shutil

    out = tmp_path / "run"
    shutil.copytree(whole, out)
    data = images()
    other = ImageSet(data.images, "noise", data.labels.flip(0))  # pyright: ignore[reportOptionalMemberAccess]
    with pytest.raises(ValueError, match="belongs to a run with other settings or images"):
        train(told(model__dropout=0.1), other, out, CPU)


def test_members_on_ranks_end_bitwise_equal(tmp_path):
    """Of three processes one has two members; tests/test_dist.py has more of either."""
    chosen = told(method__members=4, model__dropout=0.1, model__multipliers=[1], train__steps=3)
    train(chosen, images(), tmp_path / "alone" / "run", CPU)
    train_in(3, chosen, tmp_path / "many" / "run")
    for kind in ("raw", "ema"):
        assert_same(weights(tmp_path / "many" / "run", kind), weights(tmp_path / "alone" / "run", kind))


def test_replicas_end_with_the_same_bits_and_the_gradient_of_one_process(tmp_path):
    """8 processes on 3 members, one step: the first moment is 0.1 of the gradient, that of the classes included."""
    chosen = told(method__members=3, method__rounds=1, model__dropout=0.1, train__steps=1)
    for count, name in ((1, "alone"), (8, "many")):
        train_in(count, chosen, tmp_path / name / "run")
    for replicas in ends(tmp_path / "many" / "run", "").values():
        for replica in replicas[1:]:
            assert_same(replica, replicas[0])
    alone, many = (ends(tmp_path / name / "run", "optimizer.exp_avg.") for name in ("alone", "many"))
    assert alone[0][0]["optimizer.exp_avg.class_embedding.weight"].abs().sum(1).min() > 0
    for member, name in itertools.product(range(3), alone[0][0]):
        torch.testing.assert_close(many[member][0][name], alone[member][0][name], rtol=1e-4, atol=1e-7)


def test_a_step_reads_nothing_on_the_host():
    """A lookup of classes does not wait for the device."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert not any(word in str(function) for word in ("_local_scalar_dense", "nonzero"))
            return function(*args, **(kwargs or {}))

    data = images()
    chosen = told(method__members=1)
    member = Member(0, unet(), Pixels(data.images, data.labels), chosen.train, chosen.method, CPU)
    member._one_step(make_scheduler(), torch.zeros(()))
    with Watch():
        member._one_step(make_scheduler(), torch.zeros(()))


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (None, 4, "noise has no class labels, and model.classes is 4: set it to none"),
        (torch.arange(40) % 4, 3, "noise has classes 0 to 3, model.classes 3 allows 0 to 2: set it to 4"),
        (torch.arange(40) % 4 - 1, 4, "noise has classes -1 to 2, model.classes 4 allows 0 to 3"),
        (torch.arange(40) % 4, 5, "noise has no image of class 4, and model.classes is 5"),
        (torch.arange(40) % 4 * 2, 7, "noise has no image of class 1, and model.classes is 7"),
    ],
)
def test_classes_that_the_images_do_not_have_are_refused(tmp_path, labels, classes, message):
    data = ImageSet(images().images, "noise", labels)
    with pytest.raises(ValueError, match=message):
        train(settings(model__classes=classes), data, tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()


# -- previews


@pytest.mark.parametrize(
    ("count", "classes", "labels", "columns"),
    [
        (9, 4, [0, 0, 1, 1, 2, 2, 3, 3], 2),
        (8, 4, [0, 0, 1, 1, 2, 2, 3, 3], 2),
        (7, 4, [0, 1, 2, 3], None),
        (3, 4, [0, 1, 2], None),
        (5, 1, [0] * 5, 5),
        (6, None, None, None),
    ],
)
def test_each_row_of_a_preview_is_of_one_class(count, classes, labels, columns):
    assert tasks._by_class(count, classes) == (labels, columns)


def test_a_preview_shows_the_classes(whole):
    """4 rows of 2 images of 32 pixels, with frames of 2."""
    from PIL import Image

    assert Image.open(whole / "previews" / "round-0002.png").size == (2 * 34 + 2, 4 * 34 + 2)


# -- sampling


def test_the_class_of_a_seed():
    assert labels_of(range(3, 9), 4) == [3, 0, 1, 2, 3, 0]
    assert labels_of(range(3), 4, 2) == [2, 2, 2]
    for label in (-1, 4):
        with pytest.raises(ValueError, match=f"there is no class {label}: the model has 4, from 0 to 3"):
            labels_of(range(3), 4, label)


def drawn(pipeline, out, seeds=range(10), **options):
    return load_samples(draw_samples(pipeline, seeds, out, steps=3, **options))[0]


def test_an_image_depends_on_its_seed_and_class_only(pipeline, tmp_path):
    all_in_turn = drawn(pipeline, tmp_path / "turn")
    assert all_in_turn.labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    late = drawn(pipeline, tmp_path / "late", range(5, 8))
    assert late.labels.tolist() == [1, 2, 3]
    assert torch.equal(late.images, all_in_turn.images[5:8])
    of_one = drawn(pipeline, tmp_path / "one", label=1)
    assert of_one.labels.tolist() == [1] * 10
    same = all_in_turn.labels == 1
    assert torch.equal(of_one.images[same], all_in_turn.images[same])
    assert not any(torch.equal(a, b) for a, b in zip(of_one.images[~same], all_in_turn.images[~same], strict=True))


@pytest.mark.parametrize("count", [2, 3])
def test_many_processes_draw_the_same_set(pipeline, tmp_path, count, monkeypatch):
    monkeypatch.setattr(sample_set, "_PART", 1)
    monkeypatch.setattr(sample_set, "rows_at_a_time", lambda shape, device: 2)
    in_processes(count, lambda: draw_samples(pipeline, range(10), tmp_path / "many", steps=3))
    many, one = load_samples(tmp_path / "many")[0], drawn(pipeline, tmp_path / "one")
    assert torch.equal(many.images, one.images)
    assert many.labels.tolist() == one.labels.tolist()


@pytest.mark.parametrize("file_format", ["npz", "png"])
def test_a_sample_set_keeps_its_labels(pipeline, tmp_path, file_format):
    found = drawn(pipeline, tmp_path / "a", range(2, 7), file_format=file_format)
    assert found.labels.dtype == torch.int64
    about = json.loads((tmp_path / "a" / "samples.json").read_text())
    assert about["labels"] == found.labels.tolist() == [2, 3, 0, 1, 2]
    assert (about["classes"], about["class"]) == (4, None)
    if file_format == "npz":
        with np.load(tmp_path / "a" / "samples.npz", allow_pickle=False) as content:
            assert content["labels"].tolist() == [2, 3, 0, 1, 2]
            assert content["labels"].dtype == np.int64


def test_a_guarded_set_has_the_labels_of_its_seeds(pipeline, tmp_path):
    class Guard:
        references, about = torch.zeros(1, 1, 8, 8), {}

        def passes(self, these):
            return torch.arange(len(these)) % 3 != 1  # turns every third down

    found, seeds = load_samples(draw_samples(pipeline, range(8), tmp_path / "a", steps=2, guard=Guard()))  # pyright: ignore
    assert seeds is not None
    assert found.labels.tolist() == [seed % 4 for seed in seeds] != [seed % 4 for seed in range(8)]


def test_a_set_of_a_model_without_classes_has_none(tmp_path):
    save_pipeline(unet(None), make_scheduler(), tmp_path / "pipeline")
    assert drawn(tmp_path / "pipeline", tmp_path / "a").labels is None
    assert "labels" not in json.loads((tmp_path / "a" / "samples.json").read_text())
    with np.load(tmp_path / "a" / "samples.npz", allow_pickle=False) as content:
        assert set(content) == {"images", "seeds"}


def test_a_class_that_there_is_not_is_refused(pipeline, tmp_path):
    with pytest.raises(ValueError, match="there is no class 4: the model has 4, from 0 to 3"):
        drawn(pipeline, tmp_path / "a", label=4)
    save_pipeline(unet(None), make_scheduler(), tmp_path / "plain")
    with pytest.raises(ValueError, match="plain is not class-conditional: leave out class 0"):
        drawn(tmp_path / "plain", tmp_path / "a", label=0)
    assert not (tmp_path / "a").exists()


def test_another_class_is_another_set(pipeline, tmp_path):
    drawn(pipeline, tmp_path / "a", label=1)
    with pytest.raises(ValueError, match=r"another sample set \(class is 1, not 2\)"):
        drawn(pipeline, tmp_path / "a", label=2)


@pytest.mark.parametrize("labels", [[1], "abc", [0.5] * 10, [None] * 10])
def test_damaged_labels_are_named(pipeline, tmp_path, labels):
    drawn(pipeline, tmp_path / "a")
    file = tmp_path / "a" / "samples.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"labels": labels}))
    with pytest.raises(ValueError, match=r"samples\.json .*: sample again"):
        load_samples(tmp_path / "a")


def test_the_command_line_draws_one_class(whole, tmp_path, capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as exit_:
            cli.main([str(argument) for argument in arguments])
        return exit_.value.code, capsys.readouterr()

    status, said = call("sample", whole, "--out", tmp_path / "a", "--num", "5", "--class", "3", "--device", "cpu")
    assert status == 0
    assert json.loads(said.out)["class"] == 3
    assert load_samples(tmp_path / "a")[0].labels.tolist() == [3] * 5  # pyright: ignore[reportOptionalMemberAccess]
    status, said = call("sample", whole, "--out", tmp_path / "b", "--num", "5", "--class", "9", "--device", "cpu")
    assert (status, said.err) == (2, "iet-agc: there is no class 9: the model has 4, from 0 to 3\n")
    assert not (tmp_path / "b").exists()


# -- others load it


def test_stock_diffusers_draws_the_same_images_by_class(whole, tmp_path):
    """`DDIMPipeline` cannot pass classes on; `ConsistencyModelPipeline` can, and uses the scheduler it is given."""
    sample_run(whole, tmp_path / "a", {"num": 6}, device="cpu")
    ours = load_samples(tmp_path / "a")[0]
    pipe: Any = ConsistencyModelPipeline.from_pretrained(whole / "raw")
    pipe.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(seed) for seed in range(6)]
    theirs = pipe(6, class_labels=ours.labels, num_inference_steps=2, generator=seeds, output_type="np").images
    difference = np.round(theirs.transpose(0, 3, 1, 2) * 255) - ours.images.numpy()
    assert abs(difference).max() <= 1
    with pytest.raises(ValueError, match="class_labels should be provided"):
        DDIMPipeline.from_pretrained(whole / "raw")(num_inference_steps=2)


def test_a_model_without_classes_is_the_one_it_was():
    """To the bit, and without the argument: any function of two will do."""
    model, x, t = unet(None).eval(), torch.randn(2, 1, 8, 8), torch.tensor([3, 900])
    assert num_classes(model) is None
    assert torch.equal(predict_noise(model, x, t), model(x, t).sample)
    assert per_sample_loss(lambda x, t: type("Output", (), {"sample": x}), make_scheduler(), x, t, x).shape == (2,)


def test_the_sampler_tells_classes_row_by_row(pipeline):
    model, scheduler = load_pipeline(pipeline)
    whole = sample(model, scheduler, range(4), (1, 8, 8), 2, labels=[3, 1, 1, 0])
    alone = sample(model, scheduler, range(1, 2), (1, 8, 8), 2, labels=[1])
    assert torch.equal(whole[1:2], alone)
