"""Training a model further: what it starts from, what fits, what is refused, and how the run is known by it."""

import json
import shutil
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel  # pyright: ignore

from iet_agc.config.overrides import override
from iet_agc.config.run_folder import read_settings
from iet_agc.config.settings import validate
from iet_agc.data.image_set import ImageSet
from iet_agc.diffusion.dropout import BatchDropout
from iet_agc.diffusion.unet import build_unet, load_pipeline
from iet_agc.sampling.sample_set import load_samples, sample_run
from iet_agc.training import initialization
from iet_agc.training.initialization import initial_weights
from iet_agc.training.loop import train
from tests.processes import die, in_child
from tests.tiny_runs import CPU, assert_same, images, settings, train_in, weights

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A finished run whose average differs from its weights."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("base") / "run"
    train(settings(), images(), out, CPU)
    assert not torch.equal(weights(out)["conv_in.weight"], weights(out, "ema")["conv_in.weight"])
    return out


def stock(**changes):
    """A U-Net as of the hub: diffusers' own conventions, which no setting of ours names."""
    torch.manual_seed(3)
    config = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
        "downsample_padding": 0,
        "norm_eps": 1e-5,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "dropout": 0.3,
    }
    return UNet2DModel(**(config | changes))  # pyright: ignore[reportArgumentType]


def stock_folder(folder, scheduler=None, **changes):
    """Written by stock diffusers, with the scheduler that hub models have."""
    DDPMPipeline(unet=stock(**changes), scheduler=scheduler or DDPMScheduler()).save_pretrained(folder)
    return folder


def started(model, **changes):
    return override(settings(**changes), {"init.model": str(model)})


def initial_of(folder, shape=SHAPE, **changes):
    return initial_weights(started(folder, **changes), shape)


# -- what it starts from


def test_a_run_goes_on_from_its_weights_and_its_average(base):
    found = initial_of(base)
    assert_same(found.raw.state_dict(), weights(base))
    assert_same(found.ema.state_dict(), weights(base, "ema"))


def test_a_model_that_is_started_from_is_drawn_in_no_other_way(base):
    found = initial_of(base, model__initialization="ddpm")
    assert_same(found.raw.state_dict(), weights(base))
    assert_same(found.ema.state_dict(), weights(base, "ema"))


def test_members_start_from_both(base, tmp_path, monkeypatch):
    """Before the first step, whatever the number of members."""
    from iet_agc.training import loop

    run = loop._prepared(started(base), images(), tmp_path / "run", CPU, None)
    for member in run.members:
        assert_same(member.model.state_dict(), weights(base))
        assert_same(member.ema.module.state_dict(), weights(base, "ema"))
        assert (member.step, len(member.optimizer.state)) == (0, 0)


def test_a_step_of_no_length_leaves_the_samples_as_they_were(base, tmp_path):
    """The first step of a warm-up has learning rate 0, and this average stands still: nothing may change."""
    chosen = started(base, method__rounds=1, train__steps=1, train__ema_decay=1.0)
    train(chosen, images(), tmp_path / "run", CPU)
    for kind in ("raw", "ema"):
        assert_same(weights(tmp_path / "run", kind), weights(base, kind))
        given = {"num": 4, "weights": kind}
        sample_run(base, tmp_path / f"{kind}-before", given, device="cpu")
        sample_run(tmp_path / "run", tmp_path / f"{kind}-after", given, device="cpu")
        before, after = (load_samples(tmp_path / f"{kind}-{when}")[0].images for when in ("before", "after"))
        assert torch.equal(before, after)


def test_a_pipeline_of_stock_diffusers_keeps_its_conventions(tmp_path):
    folder = stock_folder(tmp_path / "hub")
    found = initial_of(folder, model__dropout=0.25)
    assert found.raw is found.ema
    assert_same(found.raw.state_dict(), stock().state_dict())
    raw: Any = found.raw
    for name in ("norm_eps", "downsample_padding", "flip_sin_to_cos", "freq_shift"):
        assert raw.config[name] == stock().config[name] != build_unet(8, 1, 8, (1, 2), 1, (), 0, 4).config[name]
    x = torch.randn(2, *SHAPE)
    with torch.inference_mode():
        assert torch.equal(found.raw.eval()(x, 7).sample, stock().eval()(x, 7).sample)


def test_the_dropout_is_that_of_the_settings_and_one_that_replicas_share(tmp_path):
    """The model's own is 0.3."""
    found = initial_of(stock_folder(tmp_path / "hub"), model__dropout=0.25)
    rates = {type(module): module.p for module in found.raw.modules() if isinstance(module, torch.nn.Dropout)}
    raw: Any = found.raw
    assert rates[BatchDropout] == raw.config["dropout"] == 0.25
    assert set(rates) == {BatchDropout}
    assert initial_of(tmp_path / "hub", model__dropout=0.0).sha256 == found.sha256


def test_a_run_from_a_hub_model_is_one_that_stock_diffusers_loads(tmp_path):
    folder = stock_folder(tmp_path / "hub")
    train(started(folder), images(), tmp_path / "run", CPU)
    model, scheduler = load_pipeline(tmp_path / "run" / "raw")
    assert model.config["flip_sin_to_cos"] is False
    assert scheduler.config["steps_offset"] == 1
    assert not torch.equal(model.conv_in.weight, stock().conv_in.weight)


def test_a_pipeline_may_lie_in_one_folder_as_the_oldest_of_the_hub_do(tmp_path):
    folder = stock_folder(tmp_path / "hub")
    digest = initial_of(folder).sha256
    for part in ("unet", "scheduler"):
        for file in (folder / part).iterdir():
            file.rename(folder / file.name)
        (folder / part).rmdir()
    assert initial_of(folder).sha256 == digest
    sample_run(folder, tmp_path / "samples", {"num": 2, "steps": 2}, device="cpu")
    about = json.loads((tmp_path / "samples" / "samples.json").read_text())
    assert list(about["weights_sha256"]) == ["diffusion_pytorch_model.safetensors"]


def test_a_hub_model_is_fetched_without_pickles(tmp_path, monkeypatch):
    folder, asked = stock_folder(tmp_path / "hub"), []

    def fetched(name, revision, allow_patterns, ignore_patterns):
        assert revision is None
        asked.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr(initialization, "snapshot_download", fetched)
    monkeypatch.chdir(tmp_path)
    assert initial_of("someone/a-model").sha256 == initial_of(folder).sha256
    assert [name for name, _ in asked] == ["someone/a-model"] * 2
    assert all(pattern.endswith(".json") for pattern in asked[0][1])
    assert all(pattern.endswith((".json", ".safetensors")) for pattern in asked[1][1])


def test_a_hub_model_is_taken_at_a_revision_and_its_commit_is_written_down(tmp_path, monkeypatch):
    """The hub keeps a model at main, and another one at the tag v1; each in a folder of its commit."""
    commits = {None: "a" * 40, "v1": "b" * 40}
    for version, commit in enumerate(commits.values()):
        stock_folder(tmp_path / "snapshots" / commit, norm_eps=(1e-5, 1e-6)[version])
    monkeypatch.setattr(
        initialization,
        "snapshot_download",
        lambda name, revision, **_: str(tmp_path / "snapshots" / commits.get(revision, str(revision))),
    )
    monkeypatch.chdir(tmp_path)
    for revision, commit in commits.items():
        out = tmp_path / f"run-{revision}"
        chosen = started("someone/a-model")
        train(override(chosen, {"init.revision": revision or "none"}), images(), out, CPU)
        known = read_settings(out).init
        assert (known.revision, known.sha256) == (commit, initial_of(tmp_path / "snapshots" / commit).sha256)
        train(chosen, images(), out, CPU) if revision is None else None  # the same command goes on
    with pytest.raises(ValueError, match=r"holds another run \(init.sha256 .* is now"):
        train(started("someone/a-model"), images(), tmp_path / "run-v1", CPU)
    local = override(started(tmp_path / "snapshots" / commits["v1"]), {"init.revision": "v1"})
    refused(lambda: train(local, images(), tmp_path / "c", CPU), "init.revision 'v1' has no effect on")
    random = override(validate(settings().model_dump()), {"init.revision": "v1"})
    refused(lambda: train(random, images(), tmp_path / "c", CPU), "init.revision v1 is that of a model: say which")


@pytest.mark.parametrize("index", ['{"unet": ["diffusers", "UNet2DConditionModel"]}', '{"unet": 3}', "[]", None])
def test_no_weights_of_another_kind_are_fetched(tmp_path, monkeypatch, index):
    asked = []
    monkeypatch.setattr(initialization, "snapshot_download", lambda name, **_: asked.append(name) or str(tmp_path))
    monkeypatch.chdir(tmp_path)
    if index:
        (tmp_path / "model_index.json").write_text(index)
    said = (
        "holds no JSON object"
        if index == "[]"
        else "someone/large of the hub is no pipeline with a UNet2DModel: its U-N"
    )
    refused(lambda: initial_of("someone/large"), said)
    assert len(asked) == 1


# -- what is refused


def refused(action, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the message is compared below)
        action()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_offline_a_hub_model_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.chdir(tmp_path)
    refused(lambda: initial_of("google/ddpm-cifar10-32"), "google/ddpm-cifar10-32 is no folder, and the hub does not ")


@pytest.mark.parametrize("name", ["nowhere", "/no/where/at/all", "a/b/c", "a b/c", "../up", "owner/", "https://a/b"])
def test_what_is_no_model_is_refused_without_asking_the_hub(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(initialization, "snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    refused(lambda: initial_of(name), f"{name} is no run, no folder and no hub id such as google/ddpm-cifar10-32")


def test_a_preset_that_needs_a_model_says_so():
    refused(lambda: initial_of(""), "this preset trains a model further: say which")


def test_an_unfinished_run_is_refused(tmp_path, base):
    shutil.copytree(base, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "ema")
    refused(lambda: initial_of(tmp_path / "run"), "run is not finished: run the same 'iet-agc train' again")


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ({"sample_size": 16}, {}, "hub draws images of 1 x 16 x 16, the training images are 1 x 8 x 8"),
        ({"sample_size": (8, 16)}, {}, "hub draws images of 1 x 8 x 16, the training images are 1 x 8 x 8"),
        ({"in_channels": 3, "out_channels": 3}, {}, "hub draws images of 3 x 8 x 8, the training images are 1 x 8 x 8"),
        ({"out_channels": 2}, {}, "hub predicts 2 channels for 1"),
        ({}, {"model__channels": 16}, "has model.channels 8, the settings say 16: set model.channels 8, or choose"),
        ({}, {"model__multipliers": [1, 1]}, "has model.multipliers 1,2, the settings say 1,1: set model.multipl"),
        ({"block_out_channels": (8, 12)}, {}, "has model.multipliers 1,1.5, the settings say 1,2"),
        ({}, {"model__blocks": 2}, "has model.blocks 1, the settings say 2"),
        ({}, {"model__attention": [4]}, "has model.attention [], the settings say 4: set model.attention []"),
        ({}, {"model__groups": 8}, "has model.groups 4, the settings say 8"),
        ({}, {"model__classes": 4}, "has model.classes none, the settings say 4"),
        ({"num_class_embeds": 5}, {}, "has model.classes 5, the settings say none"),
        ({"class_embed_type": "timestep"}, {}, "its classes are embedded by 'timestep'; only a table"),
    ],
)
def test_another_architecture_is_refused_with_both_values(tmp_path, model, changes, message):
    folder = stock_folder(tmp_path / "hub", **model)
    refused(lambda: train(started(folder, **changes), images(), tmp_path / "run", CPU), message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (
            DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
            "squaredcos_cap_v2, 0.0001 to 0.02 over 1000 timesteps and predicts epsilon, "
            "training here linear, 0.0001 to 0.02 over 1000 timesteps and predicts epsilon",
        ),
        (DDPMScheduler(beta_end=0.03), "linear, 0.0001 to 0.03 over 1000 timesteps and"),
        (DDPMScheduler(num_train_timesteps=500), "over 500 timesteps"),
        (DDPMScheduler(prediction_type="v_prediction"), "predicts v_prediction, training here"),
        (DDPMScheduler(trained_betas=[0.1] * 1000), "given betas"),
        (DDIMScheduler(rescale_betas_zero_snr=True), "rescaled to zero signal at the end"),
    ],
)
def test_another_noise_schedule_is_refused_with_both_values(tmp_path, scheduler, message):
    folder = stock_folder(tmp_path / "hub", scheduler)
    refused(lambda: train(started(folder), images(), tmp_path / "run", CPU), message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "scheduler", [DDPMScheduler(variance_type="fixed_large"), DDPMScheduler(clip_sample=False), DDIMScheduler()]
)
def test_how_a_scheduler_samples_does_not_matter(tmp_path, scheduler):
    assert initial_of(stock_folder(tmp_path / "hub", scheduler)).sha256


def test_attention_is_read_off_the_blocks(tmp_path):
    kinds = {"down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D"), "attention_head_dim": None}
    folder = stock_folder(tmp_path / "hub", up_block_types=("AttnUpBlock2D", "AttnUpBlock2D"), **kinds)
    assert initial_of(folder, model__attention=[4, 8]).sha256  # in any order


def test_a_pickle_is_not_opened(tmp_path):
    folder = stock_folder(tmp_path / "hub")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(stock().state_dict(), file.with_suffix(".bin"))
    file.unlink()
    refused(lambda: initial_of(folder), "cannot be read as a diffusers pipeline")


# -- the run is known by its start


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    train(started(base, model__dropout=0.1), images(), out, CPU)
    return out


def test_the_hash_is_written_down(base, whole):
    written = read_settings(whole).init
    assert written.model == str(base)
    assert written.sha256 == initial_of(base).sha256
    assert f'sha256 = "{written.sha256}"' in (whole / "settings.toml").read_text()
    assert f'model = "{base}"' in (whole / "settings.toml").read_text()


@pytest.mark.parametrize("step", [3, 14])
def test_killed_and_started_again_it_ends_the_same(base, whole, tmp_path, step):
    chosen, out, steps = started(base, model__dropout=0.1), tmp_path / "run", []
    in_child(
        lambda: train(chosen, images(), out, CPU, lambda n: die() if len(steps) + n > step else steps.extend([1] * n))
    )
    assert not (out / "raw").exists()
    train(chosen, images(), out, CPU)
    for kind in ("raw", "ema"):
        assert_same(weights(out, kind), weights(whole, kind))


def test_another_start_or_none_is_refused(base, whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    digest = initial_of(base).sha256
    train(settings(train__seed=1), images(), tmp_path / "other", CPU)
    other = started(tmp_path / "other", model__dropout=0.1)
    for chosen, now in ((other, initial_of(tmp_path / "other").sha256), (settings(model__dropout=0.1), None)):
        refused(
            lambda c=chosen: train(c, images(), out, CPU),
            f"{out} holds another run (init.sha256 {digest} is now {now}): choose another output",
        )
    refused(lambda: train(started(out), images(), base, CPU), f"{base} holds another run (init.sha256 None is now ")
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


def test_a_model_that_moved_is_the_same(base, whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    shutil.copytree(base, tmp_path / "moved")
    train(started(tmp_path / "moved", model__dropout=0.1), images(), out, CPU)
    assert_same(weights(out), weights(whole))


def test_the_settings_of_a_run_are_a_preset_that_insists_on_its_model(base, whole, tmp_path):
    from iet_agc.config.presets import load_preset

    again = load_preset(str(whole / "settings.toml"))
    train(again, images(), tmp_path / "again", CPU)
    assert_same(weights(tmp_path / "again"), weights(whole))
    train(settings(train__seed=1), images(), tmp_path / "other", CPU)
    changed = override(again, {"init.model": str(tmp_path / "other")})
    refused(lambda: train(changed, images(), tmp_path / "b", CPU), f"init.sha256 is {again.init.sha256}")
    refused(lambda: train(override(again, {"init.model": "none"}), images(), tmp_path / "b", CPU), "say which")
    assert not (tmp_path / "b").exists()


def test_a_hash_is_64_digits():
    refused(lambda: validate({"init": {"model": "a", "sha256": "abc"}}), "setting init.sha256: ")


def test_members_on_ranks_start_from_the_same(base, tmp_path):
    chosen = started(base, method__members=3, model__dropout=0.1)
    train(chosen, images(), tmp_path / "alone" / "run", CPU)
    train_in(2, chosen, tmp_path / "many" / "run")
    for kind in ("raw", "ema"):
        assert_same(weights(tmp_path / "many" / "run", kind), weights(tmp_path / "alone" / "run", kind))


def test_images_of_the_base_do_not_matter(base, tmp_path):
    """It is the model that is trained further, on whatever images fit it."""
    train(started(base), ImageSet(images(seed=5).images, "others"), tmp_path / "run", CPU)
    assert (tmp_path / "run" / "raw").exists()
