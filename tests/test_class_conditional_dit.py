"""DiT over latents: a miniature draws what stock diffusers draws, learns the noise alone, and goes back to it."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("peft")

from diffusers import DiTPipeline
from safetensors.torch import load_file
from torch import Tensor

from iet_agc.config.presets import load_preset
from iet_agc.config.settings import Settings, TextSettings
from iet_agc.data.image_set import ImageSet
from iet_agc.diffusion.samplers import initial_noise, scheduler_of
from iet_agc.diffusion.unet import is_text_pipeline
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.seeds import generator
from iet_agc.sampling.sample_set import load_samples, sample_run
from iet_agc.text_to_image.class_conditional_dit import ClassConditionalDiT
from iet_agc.text_to_image.lora import factors
from iet_agc.text_to_image.pipeline import check_size, draw, load_text_pipeline
from iet_agc.training.batches import draw_batch
from iet_agc.training.captioned import Captioned
from iet_agc.training.loop import train
from iet_agc.training.tasks import TextTask
from tests.miniature import captioned
from tests.miniature_families import CLASS_NAMES, assert_alike, save_dit
from tests.tiny_runs import CPU, assert_same, killed_after, with_changes

CLASSES = ["hound", "bird", "2"]


def classed(count: int = 12) -> ImageSet:
    """Images whose captions are classes."""
    return replace(captioned(count), captions=tuple((CLASSES[place % 3],) for place in range(count)))


def chosen(init: Path, **changes: Any) -> Settings:
    content = {
        "model": {"kind": "text-to-image"},
        "init": {"model": str(init)},
        "method": {"members": 2, "rounds": 2, "skip_below": 0.8},
        "text": {"drop_caption": 0.1},
        "train": {"steps": 2, "batch_size": 4, "warmup_steps": 0, "learning_rate": 0.01, "ema_decay": 0.9},
        "sample": {"steps": 2, "guidance": 2.0},
        "run": {"log_every": 1, "save_every": 1, "preview_images": 0},
    }
    return with_changes(content, changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return save_dit(tmp_path_factory.mktemp("pipeline") / "dit")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    return load_text_pipeline(folder)


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs") / "run"
    train(chosen(folder), classed(), place, CPU)
    return place


def stock(folder: Path) -> Any:
    pipe = DiTPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn_by_stock(pipe: Any, ours: ClassConditionalDiT, guidance: float, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Images uint8 of seeds 3 and 4, from our noise, in three steps."""
    pipe.scheduler = scheduler_of(ours.scheduler, "ddim", 3)
    noise = initial_noise([3, 4], ours.latent_shape)
    monkeypatch.setattr("diffusers.pipelines.dit.pipeline_dit.randn_tensor", lambda **_: noise)
    # its number for no class is that of ImageNet
    table, count = torch.tensor, pipe.transformer.config.num_embeds_ada_norm
    none = lambda data, **more: table([count if one == 1000 else one for one in data], **more)  # noqa: E731
    monkeypatch.setattr("diffusers.pipelines.dit.pipeline_dit.torch.tensor", none)
    labels = pipe.get_label_ids(["hound", "bird"])
    images = pipe(labels, guidance, num_inference_steps=3, output_type="np").images
    monkeypatch.undo()
    return (torch.from_numpy(images).permute(0, 3, 1, 2) * 255).round().to(torch.uint8)


def test_images_are_those_of_stock_diffusers(folder: Path, pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = stock(folder)
    found = [draw(pipeline, [3, 4], ["dog", "1"], 3, guidance) for guidance in (4.0, 1.0)]
    assert_alike(found[0], drawn_by_stock(pipe, pipeline, 4.0, monkeypatch))
    assert_alike(found[1], drawn_by_stock(pipe, pipeline, 1.0, monkeypatch))
    assert not torch.equal(*found)


def test_without_texts_transformers_is_not_needed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert isinstance(load_text_pipeline(folder), ClassConditionalDiT)


def test_a_class_has_names_and_a_number(pipeline: Any) -> None:
    assert pipeline.tokens(["dog", "hound", "0", "bird", "2", ""]).flatten().tolist() == [0, 0, 0, 1, 2, 3]
    with pytest.raises(UserError, match=r"^'cat' is no class of the pipeline: give a class's name, such as 'dog', or"):
        pipeline.tokens(["bird", "cat"])
    with pytest.raises(UserError, match=r"'3' is no class of the pipeline: give a class's name, or number, 0 to 2$"):
        replace(pipeline, names={}).tokens(["3"])


def test_the_loss_is_that_of_the_noise_alone(folder: Path, pipeline: Any) -> None:
    pipe, data = stock(folder), classed()
    assert data.captions is not None
    examples = Captioned(pipeline, data.images, data.captions, TextSettings(drop_caption=0.5), flips=False)
    batch = draw_batch(3, 1, 5, len(data), 6, examples.shape, CPU)
    with torch.no_grad():
        losses = examples.losses(pipeline.denoiser, pipeline.scheduler, batch, slice(0, 6))
    rng = generator("text", 3, 1, 5)
    posterior = torch.randn(6, 4, 8, 8, generator=rng)
    dropped = torch.rand(2, 6, generator=rng, dtype=torch.float64)[1] < 0.5
    assert dropped.any()
    assert not dropped.all()
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0).float()
    for row, position in enumerate(batch.positions.tolist()):
        label = 3 if dropped[row] else position % 3
        with torch.no_grad():
            found = pipe.vae.encode(data.images[position][None].float() / 127.5 - 1).latent_dist
            latents = (found.mean + found.std * posterior[row]) * pipe.vae.config.scaling_factor
            level, noise = abar[batch.timesteps[row]], batch.noise[row][None]
            noisy = level.sqrt() * latents + (1 - level).sqrt() * noise
            output = pipe.transformer(noisy, batch.timesteps[row][None], torch.tensor([label])).sample
        expected = (output[:, :4] - noise).square().mean()
        torch.testing.assert_close(losses[row], expected, rtol=1e-4, atol=1e-5)


def test_with_agc_off_it_is_a_plain_loop_bitwise(folder: Path, tmp_path: Path) -> None:
    asked = chosen(folder, method__members=1, method__rounds=1, method__skip_below=0.0, train__steps=3)
    train(asked, data := classed(), tmp_path / "run", CPU)
    task = TextTask(asked, data)
    model: Any = task.initial.raw
    examples = task.examples(torch.arange(len(data))).to(CPU)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=asked.train.weight_decay, fused=True)
    for step in range(3):
        batch = draw_batch(0, 0, step, len(data), 4, examples.shape, CPU)
        examples.losses(model.train(), task.scheduler, batch, slice(0, 4)).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), asked.train.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
    assert_same(load_text_pipeline(tmp_path / "run" / "raw").denoiser.state_dict(), model.state_dict())


def test_a_killed_run_resumes_bitwise(folder: Path, run: Path, tmp_path: Path) -> None:
    killed_after(7, chosen(folder), classed(), tmp_path / "run")  # of 8, after 0
    assert not (tmp_path / "run" / "raw").exists()
    train(chosen(folder), classed(), tmp_path / "run", CPU)
    for kind in ("raw", "ema"):
        file = f"{kind}/transformer/diffusion_pytorch_model.safetensors"
        assert_same(load_file(tmp_path / "run" / file), load_file(run / file))


def test_stock_diffusers_draws_what_was_trained(
    folder: Path, run: Path, monkeypatch: pytest.MonkeyPatch, pipeline: Any
) -> None:
    ours, pipe = load_text_pipeline(run / "raw"), stock(run / "raw")
    assert isinstance(ours, ClassConditionalDiT)
    found = draw(ours, [3, 4], ["hound", "bird"], 3, 4.0)
    assert_alike(found, drawn_by_stock(pipe, ours, 4.0, monkeypatch))
    assert (found.int() - draw(pipeline, [3, 4], ["hound", "bird"], 3, 4.0).int()).abs().max() > 3
    assert pipe.labels == {"dog": 0, "hound": 0, "bird": 1}
    assert ours.names == CLASS_NAMES
    assert is_text_pipeline(folder)


def test_lora_is_merged_and_beside_it(folder: Path, tmp_path: Path) -> None:
    one = {"method__members": 1, "method__rounds": 1, "train__steps": 2, "train__learning_rate": 0.03}
    train(chosen(folder, lora__rank=2, **one), classed(), tmp_path / "run", CPU)
    task = TextTask(chosen(folder, lora__rank=2, **one), classed())
    written = load_file(tmp_path / "run" / "raw" / "pytorch_lora_weights.safetensors")
    assert written.keys() == {f"transformer.{name}" for name in factors(task.initial.raw)}
    before, after = (load_text_pipeline(place).denoiser for place in (folder, tmp_path / "run" / "raw"))
    name = "transformer_blocks.0.attn1.to_q.weight"
    up, down = (written[f"transformer.transformer_blocks.0.attn1.to_q.lora_{side}.weight"] for side in "BA")
    torch.testing.assert_close(after.state_dict()[name], before.state_dict()[name] + up @ down)


def test_a_run_is_sampled_and_trained_further(run: Path, tmp_path: Path) -> None:
    sample_run(run, tmp_path / "s", {"num": 2})
    images, _ = load_samples(tmp_path / "s")
    assert images.images.float().std() > 1
    assert images.captions == (("hound",), ("bird",))
    assert TextTask(chosen(run), classed()).initial.raw is not TextTask(chosen(run), classed()).initial.ema


def test_the_name_that_its_transformer_had_before_is_read(folder: Path, pipeline: Any, tmp_path: Path) -> None:
    old = shutil.copytree(folder, tmp_path / "old")
    for file, changes in {
        "model_index.json": {"transformer": ["diffusers", "Transformer2DModel"]},
        "transformer/config.json": {"_class_name": "Transformer2DModel", "norm_type": "ada_norm_zero"},
    }.items():
        (old / file).write_text(json.dumps(json.loads((old / file).read_text()) | changes))
    assert_same(load_text_pipeline(old).denoiser.state_dict(), pipeline.denoiser.state_dict())


def test_what_does_not_fit_is_refused_in_one_line(folder: Path, pipeline: Any, tmp_path: Path) -> None:
    cases = {
        save_dit(tmp_path / "a", in_channels=3, out_channels=3): "takes 3 channels and gives 3, its latents have 4",
        save_dit(tmp_path / "b", names={9: "cat"}): "its model_index.json names class 9, its transformer has 3",
        save_dit(tmp_path / "c", names={}, num_embeds_ada_norm=0): "its transformer has no classes",
    }
    for place, message in cases.items():
        with pytest.raises(UserError, match=message):
            load_text_pipeline(place)
    odd = shutil.copytree(folder, tmp_path / "d")
    index = json.loads((odd / "model_index.json").read_text())
    for names, message in (([1], "is no object of classes"), ({"x": "cat"}, "has 'x', which is no class")):
        (odd / "model_index.json").write_text(json.dumps(index | {"id2label": names}))
        with pytest.raises(UserError, match=f"id2label of its model_index.json {message}"):
            load_text_pipeline(odd)
    for shape in ((3, 8, 8), (3, 32, 32)):
        with pytest.raises(UserError, match=r"set data\.convert_to"):
            check_size(pipeline, shape, "noise")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text__train_encoder": True}, r"^text\.train_encoder is for Stable Diffusion 1 or 2, not for DiT: leave"),
        ({"text__embedding_noise": 0.1}, r"^text\.embedding_noise is for Stable Diffusion 1 or 2, not for DiT: leave"),
        ({"text__random_tokens": 2}, "^changing captions is for Stable Diffusion 1 or 2, not for DiT: leave it out$"),
        ({"text__too_long": "cut"}, r"^text\.too_long cut has no effect on DiT, whose texts are classes: leave it out"),
    ],
)
def test_what_is_for_texts_is_refused(folder: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        TextTask(chosen(folder, **changes), classed())


def test_captions_that_are_no_classes_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"is no class of the pipeline: give a class's name, such as 'dog', or number"):
        TextTask(chosen(folder), captioned())


def test_presets_compare_methods_at_equal_numbers_of_images() -> None:
    plain, agc, both = (load_preset(f"dit-{method}") for method in ("default", "agc", "iet-agc"))
    assert {each.method.members * each.method.rounds * each.train.steps for each in (plain, agc, both)} == {2000}
    assert {each.init.model for each in (plain, agc, both)} == {"facebook/DiT-XL-2-256"}
    assert all(each.model.kind == "text-to-image" and not each.lora.rank for each in (plain, agc, both))
