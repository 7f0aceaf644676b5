"""DiTs and flows as runs: against a plain loop, killed and resumed, drawn by stock diffusers, and what is refused.

diffusers' own classes draw what a run left, by their documented calls and nothing of ours.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from torch import Tensor, nn

from iet_agc.auditing.model_card import write_card
from iet_agc.config.overrides import override
from iet_agc.config.settings import Settings, validate
from iet_agc.diffusion.dit import build_dit
from iet_agc.diffusion.dropout import BatchDropout
from iet_agc.diffusion.process import to_float, to_uint8
from iet_agc.diffusion.unet import image_shape, is_dit, load_pipeline, num_classes, save_pipeline
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.exposure import read_telemetry
from iet_agc.runtime.seeds import key_of
from iet_agc.sampling.sample_set import load_samples, sample_run
from iet_agc.training.batches import draw_batch
from iet_agc.training.initialization import initial_weights
from iet_agc.training.loop import train
from tests.processes import killed_after
from tests.tiny_runs import CPU, assert_ends_like, assert_same, images, weights, with_changes

SHAPE = (1, 8, 8)
DIT = {"network": "dit", "objective": "flow", "patch_size": 4, "width": 8, "depth": 2, "heads": 2, "dropout": 0.0}
UNET = {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [], "dropout": 0.0, "groups": 4}
STEPS = 3
#: So many timesteps around the middle that most come again, and AGC has something to compare with.
NARROW = {"timesteps": "logit-normal", "logit_deviation": 0.1}
#: What the sampler has the model see at once on a CPU: an image is rounded otherwise in a batch of another size.
ROWS = 32


def settings(model: dict[str, Any] = DIT, **changes: Any) -> Settings:
    """A tiny run of two members."""
    content: dict[str, dict[str, Any]] = {
        "model": dict(model),
        "method": {"members": 2, "rounds": 2, "skip_below": 1.0},
        "train": {"steps": 6, "batch_size": 8, "warmup_steps": 3, "learning_rate": 1e-2, "ema_decay": 0.9} | NARROW,
        "sample": {"steps": STEPS, "num": 5},
        "run": {"log_every": 2, "save_every": 4, "preview_images": 0},
    }
    return with_changes(content, changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of an unconditional DiT that learned a flow, with AGC."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("dit") / "run"
    train(settings(), images(), out, CPU)
    return out


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a class-conditional one, one member."""
    out = tmp_path_factory.mktemp("dit") / "conditional"
    train(settings(model__classes=4, method__members=1, run__preview_images=4), images(), out, CPU)
    return out


def first_noise(seeds: Sequence[int]) -> Tensor:
    """Of each seed, filled up to the rows that the sampler has."""
    noise = [torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(noise + [noise[0]] * (ROWS - len(noise)))


def stock_dit(folder: Path) -> DiTTransformer2DModel:
    return DiTTransformer2DModel.from_pretrained(folder / "transformer").eval()


@torch.no_grad()
def drawn_by_diffusers(folder: Path, seeds: Sequence[int], labels: Sequence[int] = ()) -> Tensor:
    """Images, uint8 (N, C, H, W), as docs/method.md says."""
    model = stock_dit(folder)
    kind = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    scheduler: Any = getattr(diffusers, kind).from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(STEPS)
    x, classes = first_noise(seeds), torch.tensor([*labels, *[0] * (ROWS - len(labels))])
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t.expand(ROWS), class_labels=classes).sample, t, x).prev_sample
    return to_uint8(x)[: len(seeds)]


def drawn(out: Path, samples: Path, **given: Any) -> Tensor:
    sample_run(out, samples, given, device="cpu")
    return load_samples(samples)[0].images


# -- training


def test_without_agc_a_run_is_a_plain_loop(tmp_path: Path) -> None:
    """The loop says flow matching again: straight path, direction, timestep 1000 sigma."""
    data = images()
    changes: dict[str, Any] = {"method__members": 1, "method__rounds": 1, "method__skip_below": 0.0}
    train(settings(train__timesteps="uniform", train__logit_deviation=1.0, **changes), data, tmp_path / "run", CPU)
    torch.manual_seed(key_of("weights", 0))
    model: Any = build_dit(8, 1, 4, 8, 2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0, fused=True)
    for step in range(6):
        batch = draw_batch(0, 0, step, len(data), 8, data.shape, CPU)
        sigma = ((batch.timesteps + 1) / 1000)[:, None, None, None]
        x = to_float(data.images[batch.positions])
        noisy = sigma * batch.noise + (1 - sigma) * x
        direction = model(noisy, sigma.flatten() * 1000).sample
        (direction - (batch.noise - x)).square().flatten(1).mean(1).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = 1e-2 * min(step / 3, 1)
        optimizer.step()
        optimizer.zero_grad()
    assert_same(weights(tmp_path / "run"), model.state_dict())


def test_killed_it_ends_as_if_it_had_not_been(tmp_path: Path, run: Path) -> None:
    killed_after(15, lambda counts: train(settings(), images(), tmp_path / "run", CPU, counts))
    assert not (tmp_path / "run" / "raw").exists()
    train(settings(), images(), tmp_path / "run", CPU)
    assert_ends_like(run, tmp_path / "run")


def test_agc_skips_samples_of_a_flow(run: Path) -> None:
    seen, skipped = read_telemetry(run / "telemetry.csv")
    assert 0 < int(skipped.sum()) < int(seen.sum())


@pytest.mark.parametrize(("name", "value"), [("objective", "noise"), ("heads", 1)])
def test_weights_follow_from_what_changes_no_shape(tmp_path: Path, run: Path, name: str, value: Any) -> None:
    train(settings(DIT | {name: value}), images(), tmp_path / "run", CPU)
    ours, theirs = weights(tmp_path / "run"), weights(run)
    assert {each: tensor.shape for each, tensor in ours.items()} == {n: t.shape for n, t in theirs.items()}
    assert not any(torch.equal(ours[each], theirs[each]) for each in ours if each.endswith("proj_out_2.weight"))


def test_the_rest_is_what_the_network_is_made_of() -> None:
    """Settings by name, and the entry of diffusers' configuration that each becomes."""
    for name, value, entry in (("patch_size", 2, 2), ("width", 12, 6), ("depth", 3, 3), ("heads", 4, 4)):
        config = {"patch_size": "patch_size", "width": "attention_head_dim", "depth": "num_layers"}
        made: Any = initial_weights(settings(DIT | {name: value}), SHAPE).raw
        assert made.config[config.get(name, "num_attention_heads")] == entry
    assert is_dit(initial_weights(settings(), SHAPE).raw)  # network  # pyright: ignore[reportArgumentType]


# -- what a run leaves


@pytest.mark.parametrize("kind", ["raw", "ema"])
def test_stock_diffusers_loads_it_and_draws_the_same(tmp_path: Path, run: Path, kind: str) -> None:
    ours = drawn(run, tmp_path / "samples", weights=kind)
    assert torch.equal(ours, drawn_by_diffusers(run / kind, range(5)))
    assert ours.float().std() > 10
    about = json.loads((tmp_path / "samples" / "samples.json").read_text())
    assert about["sampler"] == "Euler steps along the flow"
    assert about["scheduler"]["_class_name"] == "FlowMatchEulerDiscreteScheduler"


def test_its_files_are_those_of_diffusers(run: Path) -> None:
    assert sorted(str(file.relative_to(run / "raw")) for file in (run / "raw").rglob("*") if file.is_file()) == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
    ]
    index = json.loads((run / "raw" / "model_index.json").read_text())
    assert index["transformer"] == ["diffusers", "DiTTransformer2DModel"]
    assert index["vae"] == [None, None]


def test_a_class_conditional_one_draws_classes_in_turn(tmp_path: Path, conditional: Path) -> None:
    ours = drawn(conditional, tmp_path / "all")
    assert torch.equal(ours, drawn_by_diffusers(conditional / "raw", range(5), [0, 1, 2, 3, 0]))
    sample_run(conditional, tmp_path / "one", {"num": 2}, device="cpu", label=3)
    of_one = drawn_by_diffusers(conditional / "raw", range(2), [3, 3])
    assert torch.equal(load_samples(tmp_path / "one")[0].images, of_one)
    assert not torch.equal(of_one, ours[:2])
    assert num_classes(load_pipeline(conditional / "raw")[0]) == 4


def test_no_class_is_dropped_while_it_trains(conditional: Path) -> None:
    """diffusers drops one in ten, by torch's global generator."""
    ours, stock = load_pipeline(conditional / "raw")[0], stock_dit(conditional / "raw")
    x, t, labels = torch.zeros(200, *SHAPE), torch.full((200,), 500.0), torch.zeros(200, dtype=torch.int64)
    answers = [model.train()(x, t, class_labels=labels).sample for model in (ours, stock)]
    assert torch.equal(answers[0], answers[0][:1].expand_as(answers[0]))
    assert not torch.equal(answers[1], answers[1][:1].expand_as(answers[1]))
    with pytest.raises(ValueError, match="class_labels are missing"):
        ours(x, t)


def test_a_flow_by_a_unet_is_a_pipeline_of_stock_diffusers(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(settings(UNET | {"objective": "flow"}, method__members=1), images(), out, CPU)
    pipeline = DDPMPipeline.from_pretrained(out / "ema")
    assert isinstance(pipeline.scheduler, FlowMatchEulerDiscreteScheduler)
    ours = drawn(out, tmp_path / "samples", weights="ema", num=2)
    generators = [torch.Generator().manual_seed(seed) for seed in [0, 1, *[0] * (ROWS - 2)]]
    theirs = pipeline(
        batch_size=ROWS, generator=generators, num_inference_steps=STEPS, output_type="np", return_dict=False
    )
    assert torch.equal(ours, to_uint8(torch.from_numpy(theirs[0][:2]).permute(0, 3, 1, 2) * 2 - 1))


def test_noise_is_learned_by_a_dit_as_well(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(settings(DIT | {"objective": "noise"}, method__members=1), images(), out, CPU)
    assert type(load_pipeline(out / "raw")[1]) is DDIMScheduler
    assert torch.equal(drawn(out, tmp_path / "samples", num=2), drawn_by_diffusers(out / "raw", range(2)))


def test_the_model_cards_recipe_draws(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_card(run, out=tmp_path / "README.md")
    recipe = (tmp_path / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(run)
    found: dict[str, Any] = {}
    exec(recipe, found)
    assert found["images"].shape == (4, *SHAPE)
    assert found["images"].isfinite().all()


def test_guidance_away_from_training_images_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"AMG is for models that predict noise or v, and .*raw learned a flow"):
        sample_run(run, tmp_path / "samples", amg=SimpleNamespace(), device="cpu")  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "samples").exists()


# -- the network


def test_a_fresh_dit_of_its_authors_says_nothing_and_starts_blocks_as_shortcuts() -> None:
    torch.manual_seed(0)
    model: Any = build_dit(8, 3, 2, 16, 2, 2, initialization="dit", classes=5)
    assert not model(torch.randn(2, 3, 8, 8), torch.tensor([5, 900]), class_labels=torch.tensor([0, 4])).sample.any()
    tokens = model.pos_embed(torch.randn(2, 3, 8, 8))
    block = model.transformer_blocks[0]
    assert torch.equal(block(tokens, timestep=torch.tensor([5, 900]), class_labels=torch.tensor([0, 4])), tokens)
    bound = (6 / (3 * 2 * 2 + 16)) ** 0.5
    assert bound * 0.9 < model.pos_embed.proj.weight.abs().max() <= bound
    embeddings = torch.cat([each.norm1.emb.class_embedder.embedding_table.weight for each in model.transformer_blocks])
    assert float(embeddings.detach().std()) == pytest.approx(0.02, rel=0.2)


def test_dropout_is_that_of_the_batch() -> None:
    kinds = [type(module) for module in build_dit(8, 1, 4, 8, 2, 2, dropout=0.5).modules()]
    assert nn.Dropout not in kinds
    assert kinds.count(BatchDropout) == 2 * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 3}, "model.patch_size 3 does not divide the images' height of 8 px"),
        ({"width": 8, "heads": 3}, "model.width 8 cannot be divided by model.heads 3: choose a multiple of it"),
        ({"width": 6}, "model.width 6 cannot be divided by the positions' sines and cosines, 4"),
    ],
)
def test_a_dit_that_cannot_be_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError) as error:
        initial_weights(settings(DIT | changes), SHAPE)
    assert message in str(error.value)


# -- settings


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"width": 64}}, "setting model: width has no effect with network 'unet', it is of 'dit'"),
        (
            {"model": {"network": "dit", "channels": 64}},
            "setting model: channels has no effect with network 'dit', it is of 'unet'",
        ),
        (
            {"model": {"network": "dit", "initialization": "ddpm"}},
            "setting model: initialization 'ddpm' is not of network 'dit': choose diffusers or dit",
        ),
        (
            {"model": {"initialization": "dit"}},
            "setting model: initialization 'dit' is not of network 'unet': choose diffusers or ddpm",
        ),
        ({"model": {"network": "vit"}}, "setting model.network: input should be 'unet' or 'dit' (it is 'vit')"),
        (
            {"model": {"objective": "flow"}, "train": {"target": "ambient"}},
            "train.target ambient takes the place of noise, and a flow predicts none: leave it out, or set "
            "model.objective noise",
        ),
        (
            {"model": {"objective": "flow"}, "train": {"min_snr": 5}},
            "train.min_snr weighs pure noise with 0, where a flow starts to draw: leave it out, or use "
            "train.timesteps logit-normal",
        ),
        (
            {"model": {"kind": "text-to-image", "objective": "flow"}},
            "setting model: model.objective has no effect on text-to-image, whose U-Net is that of init.model: leave "
            "it out",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(content: dict[str, dict[str, object]], message: str) -> None:
    with pytest.raises(UserError) as error:
        validate(content)
    assert message in str(error.value)


# -- going on from a model, and what is no such model


def test_training_goes_on_from_a_dit(run: Path) -> None:
    found: Any = initial_weights(override(settings(DIT | {"dropout": 0.5}), {"init.model": str(run)}), SHAPE)
    assert_same(found.raw.state_dict(), weights(run))
    assert_same(found.ema.state_dict(), weights(run, "ema"))
    assert found.raw.config["dropout"] == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 3}, "has model.depth 2, the settings say 3: set model.depth 2, or choose another model"),
        ({"classes": 4}, "has model.classes none, the settings say 4"),
        ({"objective": "noise"}, "has model.objective flow, the settings say noise: set model.objective flow, or"),
    ],
)
def test_another_model_than_the_settings_say_is_refused(run: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        initial_weights(override(settings(DIT | changes), {"init.model": str(run)}), SHAPE)
    assert message in str(error.value)


def test_another_network_is_refused(run: Path) -> None:
    with pytest.raises(UserError, match=r"has model\.network dit, the settings say unet: set"):
        initial_weights(override(settings(UNET | {"objective": "flow"}), {"init.model": str(run)}), SHAPE)


def test_a_shifted_path_has_other_noise_levels(tmp_path: Path, run: Path) -> None:
    model, _ = load_pipeline(run / "raw")
    save_pipeline(model, FlowMatchEulerDiscreteScheduler(shift=3.0), tmp_path / "model")
    with pytest.raises(UserError, match="has a noise schedule straight, shift 3 over 1000 timesteps and predicts the"):
        initial_weights(override(settings(), {"init.model": str(tmp_path / "model")}), SHAPE)


def test_a_dit_over_latents_is_refused(tmp_path: Path, run: Path) -> None:
    shutil.copytree(run / "raw", tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    (tmp_path / "model" / "model_index.json").write_text(json.dumps(index | {"vae": ["diffusers", "AutoencoderKL"]}))
    with pytest.raises(UserError, match="it draws latents that a VAE decodes: only models over pixels are read"):
        load_pipeline(tmp_path / "model")


def test_a_network_of_another_kind_is_refused(tmp_path: Path, run: Path) -> None:
    shutil.copytree(run / "raw", tmp_path / "model")
    file = tmp_path / "model" / "transformer" / "config.json"
    file.write_text(file.read_text().replace("DiTTransformer2DModel", "SD3Transformer2DModel"))
    with pytest.raises(UserError, match="its network is a SD3Transformer2DModel, not a UNet2DModel or a DiTTransfor"):
        load_pipeline(tmp_path / "model")


def test_a_description_of_more_weights_than_there_are_is_refused(tmp_path: Path, run: Path) -> None:
    shutil.copytree(run / "raw", tmp_path / "model")
    file = tmp_path / "model" / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_layers": 20}))
    with pytest.raises(UserError, match=r"its config\.json describes"):
        load_pipeline(tmp_path / "model")


def test_a_unet_is_told_from_a_dit(run: Path) -> None:
    assert is_dit(load_pipeline(run / "raw")[0])
    assert not is_dit(UNet2DModel(8, 1, 1, block_out_channels=(8, 8, 8, 8), norm_num_groups=4))
    assert image_shape(load_pipeline(run / "raw")[0]) == SHAPE
