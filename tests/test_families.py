"""SDXL, SD3 and Flux: miniatures draw what stock diffusers draws, learn by its scripts' loss, and go back to it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

pytest.importorskip("peft")
pytest.importorskip("transformers")

from safetensors.torch import load_file
from torch import Tensor

from iet_agc.auditing.memorized_prompts import detect_prompts
from iet_agc.config.presets import load_preset
from iet_agc.config.settings import Settings, TextSettings
from iet_agc.diffusion.samplers import initial_noise, sampler_of, scheduler_of
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.seeds import generator
from iet_agc.sampling.sample_set import load_samples, sample_run
from iet_agc.text_to_image.family import TextPipeline
from iet_agc.text_to_image.flux import Flux, packed, unpacked
from iet_agc.text_to_image.lora import factors
from iet_agc.text_to_image.pipeline import check_size, draw, load_text_pipeline, save_text_pipelines
from iet_agc.training.batches import draw_batch
from iet_agc.training.captioned import Captioned
from iet_agc.training.initialization import folders_of
from iet_agc.training.loop import train
from iet_agc.training.tasks import TextTask
from iet_agc.training.timesteps import density_of
from tests.miniature import captioned
from tests.miniature_families import assert_alike, save_flux, save_sd3, save_xl
from tests.tiny_runs import CPU, assert_same, killed_after, with_changes

SAVED = {"xl": save_xl, "sd3": save_sd3, "flux": save_flux}
STOCK = {"xl": "StableDiffusionXLPipeline", "sd3": "StableDiffusion3Pipeline", "flux": "FluxPipeline"}
GUIDANCE = {"xl": 5.0, "sd3": 4.0, "flux": 3.5}
#: Arguments of stock pipelines: T5's tokenizer of the miniatures takes no more.
MORE = {"xl": {}, "sd3": {"max_sequence_length": 24}, "flux": {"max_sequence_length": 24}}
PROMPTS = ["a red dog", "a bird with a hat"]
FILE = "pytorch_lora_weights.safetensors"
FAMILIES = pytest.mark.parametrize("family", list(SAVED))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    base = tmp_path_factory.mktemp("pipelines")
    return {name: save(base / name) for name, save in SAVED.items()}


@pytest.fixture(scope="module")
def pipelines(folders: dict[str, Path]) -> dict[str, TextPipeline]:
    return {name: load_text_pipeline(folder) for name, folder in folders.items()}


def chosen(init: Path, **changes: Any) -> Settings:
    content = {
        "model": {"kind": "text-to-image"},
        "init": {"model": str(init)},
        "lora": {"rank": 2},
        "method": {"members": 2, "rounds": 2, "skip_below": 0.8},
        "train": {"steps": 2, "batch_size": 4, "warmup_steps": 0, "learning_rate": 0.03, "ema_decay": 0.9},
        "sample": {"steps": 2, "guidance": 2.0},
        "run": {"log_every": 1, "save_every": 1, "preview_images": 0},
    }
    return with_changes(content, changes)


@pytest.fixture(scope="module")
def runs(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("runs")
    for name, folder in folders.items():
        train(chosen(folder), captioned(), base / name, CPU)
    return {name: base / name for name in folders}


def stock(family: str, folder: Path, **parts: Any) -> Any:
    pipe = getattr(diffusers, STOCK[family]).from_pretrained(folder, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn_by_stock(family: str, pipe: Any, ours: TextPipeline, guidance: float, **more: Any) -> Tensor:
    """Images uint8 of seeds 3 and 4, from our noise, in three steps."""
    noise = initial_noise([3, 4], ours.latent_shape)
    if family == "xl":
        pipe.scheduler = scheduler_of(ours.scheduler, "ddim", 3)
    if family == "flux":
        noise = pipe._pack_latents(noise, 2, *noise.shape[1:])
    asked = {"num_inference_steps": 3, "guidance_scale": guidance, "height": 16, "width": 16, "output_type": "np"}
    images = pipe(PROMPTS, latents=noise, **asked, **(MORE[family] | more)).images
    return (torch.from_numpy(images).permute(0, 3, 1, 2) * 255).round().to(torch.uint8)


def drawn(ours: TextPipeline, guidance: float) -> Tensor:
    return draw(ours, [3, 4], PROMPTS, 3, guidance, sampler=sampler_of(ours.scheduler))


# -- drawing


@FAMILIES
def test_images_are_those_of_stock_diffusers(family: str, folders: dict[str, Path], pipelines: Any) -> None:
    ours, pipe = pipelines[family], stock(family, folders[family])
    found = [drawn(ours, guidance) for guidance in (GUIDANCE[family], 1.0)]
    assert_alike(found[0], drawn_by_stock(family, pipe, ours, GUIDANCE[family]))
    assert_alike(found[1], drawn_by_stock(family, pipe, ours, 1.0))
    assert not torch.equal(*found)


def test_of_xl_no_text_is_zeros_or_the_empty_text_as_the_pipeline_says(tmp_path: Path, pipelines: Any) -> None:
    ours = load_text_pipeline(save_xl(tmp_path / "p", zeros=False))
    found = drawn(ours, 5.0)
    assert_alike(found, drawn_by_stock("xl", stock("xl", tmp_path / "p"), ours, 5.0))
    assert not torch.equal(found, drawn(pipelines["xl"], 5.0))
    save_text_pipelines(ours, {"raw": ours.denoiser}, tmp_path)
    assert json.loads((tmp_path / "raw" / "model_index.json").read_text())["force_zeros_for_empty_prompt"] is False


def test_sd3_does_without_t5(tmp_path: Path) -> None:
    ours = load_text_pipeline(save_sd3(tmp_path / "p", with_t5=False))
    pipe = stock("sd3", tmp_path / "p", text_encoder_3=None, tokenizer_3=None)
    assert_alike(drawn(ours, 4.0), drawn_by_stock("sd3", pipe, ours, 4.0, max_sequence_length=256))


def test_flux_is_cut_into_patches_as_there(pipelines: Any) -> None:
    latents = torch.randn(2, 3, 4, 6)
    theirs = diffusers.FluxPipeline._pack_latents(latents, 2, 3, 4, 6)
    assert torch.equal(packed(latents), theirs)
    assert torch.equal(unpacked(theirs, 4, 6), latents)
    assert isinstance(pipelines["flux"], Flux)


# -- the loss


def stock_loss(family: str, pipe: Any, image: Tensor, lot: Tensor, text: str, at: int, noise: Tensor) -> Tensor:
    """Of one image uint8 (1, 3, 16, 16), by stock parts and the formulas of diffusers' training scripts."""
    vae, empty = pipe.vae, {"device": CPU, "num_images_per_prompt": 1}
    found = vae.encode(image.float() / 127.5 - 1).latent_dist
    latents = (found.mean + found.std * lot - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
    if family == "xl":
        texts, _, pooled, _ = pipe.encode_prompt(text, do_classifier_free_guidance=False, **empty)
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        abar = (1 - betas).cumprod(0)[at]
        noisy = abar.sqrt().float() * latents + (1 - abar).sqrt().float() * noise
        more = {"text_embeds": pooled, "time_ids": torch.tensor([[16.0, 16, 0, 0, 16, 16]])}
        output = pipe.unet(noisy, torch.tensor([at]), encoder_hidden_states=texts, added_cond_kwargs=more).sample
        return (output - noise).square().mean()
    sigma = torch.tensor([(at + 1) / 1000])
    if family == "sd3":
        sigma = 3 * sigma / (1 + 2 * sigma)
        texts, _, pooled, _ = pipe.encode_prompt(
            text, None, None, do_classifier_free_guidance=False, max_sequence_length=24, **empty
        )
        noisy = (1 - sigma) * latents + sigma * noise
        output = pipe.transformer(noisy, texts, pooled, sigma * 1000).sample
        return (output - (noise - latents)).square().mean()
    texts, pooled, text_ids = pipe.encode_prompt(text, None, max_sequence_length=24, **empty)
    noisy, target = (
        pipe._pack_latents(each, 1, 4, 8, 8) for each in ((1 - sigma) * latents + sigma * noise, noise - latents)
    )
    places = pipe._prepare_latent_image_ids(1, 4, 4, CPU, torch.float32)
    given = {"txt_ids": text_ids, "img_ids": places, "guidance": torch.ones(1)}
    output = pipe.transformer(noisy, texts, pooled, sigma, **given).sample
    return (output - target).square().mean()


@FAMILIES
def test_the_loss_is_that_of_the_formula(family: str, folders: dict[str, Path], pipelines: Any) -> None:
    pipeline, pipe, data = pipelines[family], stock(family, folders[family]), captioned()
    assert data.captions is not None
    examples = Captioned(pipeline, data.images, data.captions, TextSettings(captions="first"), flips=False)
    batch = draw_batch(3, 1, 5, len(data), 3, examples.shape, CPU)
    with torch.no_grad():
        losses = examples.losses(pipeline.denoiser, pipeline.scheduler, batch, slice(0, 3))
    rng = generator("text", 3, 1, 5)
    posterior, lots = torch.randn(3, 4, 8, 8, generator=rng), torch.rand(3, generator=rng, dtype=torch.float64)
    for row, position in enumerate(batch.positions.tolist()):
        text = data.captions[position][int(lots[row] * len(data.captions[position]))]
        given = (data.images[position][None], posterior[row], text, int(batch.timesteps[row]), batch.noise[row][None])
        with torch.no_grad():
            expected = stock_loss(family, pipe, *given)
        torch.testing.assert_close(losses[row], expected, rtol=1e-4, atol=1e-5)


@FAMILIES
def test_a_dropped_caption_is_what_stands_for_no_text_in_drawing(family: str, pipelines: Any) -> None:
    pipeline, data = pipelines[family], captioned()
    assert data.captions is not None
    examples = Captioned(pipeline, data.images, data.captions, TextSettings(drop_caption=0.5)).to(CPU)
    nothing = pipeline.unconditional(pipeline.embed(pipeline.tokens([""])))
    assert examples.embeddings is not None
    torch.testing.assert_close(examples.embeddings.embeds[-1:], nothing.embeds)
    torch.testing.assert_close(examples.embeddings.pooled[-1:], nothing.pooled)
    assert (family == "xl") == (not nothing.embeds.any())


# -- training


@FAMILIES
def test_with_agc_off_it_is_a_plain_loop_bitwise(family: str, folders: dict[str, Path], tmp_path: Path) -> None:
    asked = chosen(
        folders[family], method__members=1, method__rounds=1, method__skip_below=0.0, train__steps=3,
        train__timesteps="logit-normal",
    )  # fmt: skip
    train(asked, data := captioned(), tmp_path / "run", CPU)
    task = TextTask(asked, data)
    model: Any = task.initial.raw
    examples = task.examples(torch.arange(len(data))).to(CPU)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0.03, weight_decay=asked.train.weight_decay, fused=True)
    density = density_of(asked.train)
    for step in range(3):
        batch = draw_batch(0, 0, step, len(data), 4, examples.shape, CPU, density)
        examples.losses(model.train(), task.scheduler, batch, slice(0, 4)).mean().backward()
        torch.nn.utils.clip_grad_norm_(learning, asked.train.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
    expected = {f"{task.pipeline.DENOISER}.{name}": value for name, value in factors(model).items()}
    assert_same(load_file(tmp_path / "run" / "raw" / FILE), expected)


@FAMILIES
def test_a_killed_run_resumes_bitwise(
    family: str, folders: dict[str, Path], runs: dict[str, Path], tmp_path: Path
) -> None:
    killed_after(7, chosen(folders[family]), captioned(), tmp_path / "run")  # of 8, after 0
    assert not (tmp_path / "run" / "raw").exists()
    train(chosen(folders[family]), captioned(), tmp_path / "run", CPU)
    for kind in ("raw", "ema"):
        found, whole = (load_file(run / kind / FILE) for run in (tmp_path / "run", runs[family]))
        assert_same(found, whole)
        assert any("lora_B" in name and value.any() for name, value in whole.items())


@pytest.mark.parametrize("family", ["xl", "flux"])
def test_agc_skips(family: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """With the bank the last loss, and a cut far above it, whatever comes at a timestep for the second time."""
    far = {"method__skip_below": 8.0, "method__decay": 0.0, "method__members": 1, "method__rounds": 1}
    train(chosen(folders[family], train__steps=5, train__batch_size=32, **far), captioned(40), tmp_path / "run", CPU)
    skipped = [int(row.split(",")[-1]) for row in (tmp_path / "run" / "telemetry.csv").read_text().splitlines()[1:]]
    assert sum(skipped) > 3


@FAMILIES
def test_a_bundle_holds_the_factors_only(family: str, runs: dict[str, Path]) -> None:
    shared = load_file(runs[family] / "bundles" / "round-0002" / "shared.safetensors")
    assert shared
    assert all("lora_" in name for name in shared)


# -- what is left


@FAMILIES
def test_stock_diffusers_loads_the_factors_and_draws_the_same(
    family: str, folders: dict[str, Path], runs: dict[str, Path]
) -> None:
    merged, ours = stock(family, runs[family] / "raw"), load_text_pipeline(runs[family] / "raw")
    pipe, guidance = stock(family, folders[family]), GUIDANCE[family]
    before = drawn_by_stock(family, pipe, ours, guidance)
    pipe.load_lora_weights(runs[family] / "raw")
    found = drawn_by_stock(family, pipe, ours, guidance)
    assert (found.int() - before.int()).abs().max() > 3
    assert_alike(found, drawn_by_stock(family, merged, ours, guidance))
    assert_alike(found, drawn(ours, guidance))


@FAMILIES
def test_only_the_projections_of_attention_change(family: str, pipelines: Any, runs: dict[str, Path]) -> None:
    before, after = pipelines[family], load_text_pipeline(runs[family] / "raw")
    for name, part in before.parts.items():
        if isinstance(part, torch.nn.Module) and name != before.DENOISER:
            assert_same(part.state_dict(), after.parts[name].state_dict())
    old, new = before.denoiser.state_dict(), after.denoiser.state_dict()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed
    assert all(name.removesuffix(".weight").endswith(tuple(before.PROJECTIONS)) for name in changed)


@pytest.mark.parametrize("family", ["xl", "flux"])
def test_a_run_is_sampled_and_trained_further(family: str, runs: dict[str, Path], tmp_path: Path) -> None:
    sample_run(runs[family], tmp_path / "s", {"num": 2})
    images, seeds = load_samples(tmp_path / "s")
    assert images.images.float().std() > 1
    assert seeds == [0, 1]
    sampler = json.loads((tmp_path / "s" / "samples.json").read_text())["sampler"]
    assert sampler == ("DDIM, eta 0" if family == "xl" else "Euler steps along the flow")
    task = TextTask(chosen(runs[family]), captioned())
    assert_same(task.pipeline.vae.state_dict(), load_text_pipeline(runs[family] / "ema").vae.state_dict())
    assert task.initial.raw is not task.initial.ema


def test_all_weights_are_trained_where_no_rank_is_given(folders: dict[str, Path], tmp_path: Path) -> None:
    one = {"method__members": 1, "method__rounds": 1, "train__steps": 1, "train__learning_rate": 1e-3}
    train(chosen(folders["sd3"], lora__rank=0, **one), captioned(), tmp_path / "run", CPU)
    before, after = (load_text_pipeline(place).denoiser for place in (folders["sd3"], tmp_path / "run" / "raw"))
    changed = [not torch.equal(*pair) for pair in zip(before.parameters(), after.parameters(), strict=True)]
    assert sum(changed) > 0.9 * len(changed)
    assert torch.equal(before.pos_embed.pos_embed, after.pos_embed.pos_embed)
    assert not (tmp_path / "run" / "raw" / FILE).exists()
    assert stock("sd3", tmp_path / "run" / "raw").transformer.config.sample_size == 8


# -- files and refusals


@FAMILIES
def test_a_hub_pipeline_is_fetched_without_pickles(
    family: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def fetched(name: str, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(folders[family])

    monkeypatch.setattr("iet_agc.training.initialization.snapshot_download", fetched)
    monkeypatch.chdir(tmp_path)
    assert folders_of("someone/large", "text-to-image") == [folders[family]]
    assert all(pattern.endswith((".json", "merges.txt")) for pattern in asked[0])
    assert all(pattern.endswith((".json", ".txt", ".safetensors")) for pattern in asked[1])
    files = [file.relative_to(folders[family]) for file in folders[family].rglob("*") if file.is_file()]
    assert all(any(file.match(pattern) for pattern in asked[1]) for file in files)


def test_a_kind_that_is_not_known_is_refused_in_one_line_that_names_the_kinds(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    other = shutil.copytree(folders["sd3"], tmp_path / "other")
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps(index | {"transformer": ["diffusers", "PixArt"]}))
    said = (
        rf"^{other} is no text-to-image pipeline of a known kind, its transformer is a PixArt: known "
        "are DiT, Flux, Stable Diffusion 1 or 2, Stable Diffusion 3, Stable Diffusion XL$"
    )
    with pytest.raises(UserError, match=said):
        load_text_pipeline(other)
    with pytest.raises(UserError, match=said):
        sample_run(other, tmp_path / "s", {"num": 1}, prompts=["a dog"])


@pytest.mark.parametrize(
    ("family", "changes", "what"),
    [
        ("xl", {"text__train_encoder": True}, "text.train_encoder"),
        ("sd3", {"text__embedding_noise": 0.1}, "text.embedding_noise"),
        ("flux", {"text__random_tokens": 2}, "changing captions"),
    ],
)
def test_what_needs_a_single_text_encoder_is_refused(
    family: str, folders: dict[str, Path], changes: dict[str, Any], what: str
) -> None:
    with pytest.raises(UserError, match=rf"^{what} is for Stable Diffusion 1 or 2, not for .*: leave it out$"):
        TextTask(chosen(folders[family], **changes), captioned())


@FAMILIES
def test_prompts_are_neither_changed_nor_detected(family: str, folders: dict[str, Path], tmp_path: Path) -> None:
    said = "is for Stable Diffusion 1 or 2, not for"
    with pytest.raises(UserError, match=f"^changing prompts {said}"):
        sample_run(folders[family], tmp_path / "s", {"num": 1, "random_tokens": 1}, prompts=["a dog"])
    with pytest.raises(UserError, match=f"^the detection of memorized prompts {said}"):
        detect_prompts(folders[family], tmp_path / "d", ["a dog"])


def test_what_a_flow_has_not_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.min_snr is for models that predict noise or v, not for Flux"):
        TextTask(chosen(folders["flux"], train__min_snr=5.0), captioned())
    with pytest.raises(UserError, match=r"is drawn along its flow, not by dpm\+\+: leave out the scheduler"):
        sample_run(folders["sd3"], tmp_path / "s", {"num": 1, "scheduler": "dpm++"}, prompts=["a dog"])
    plain = save_flux(tmp_path / "plain", guidance_embeds=False)
    with pytest.raises(UserError, match=r"drawn without guidance, and sample\.guidance is 2: set it to 1"):
        TextTask(chosen(plain), captioned())
    assert TextTask(chosen(plain, sample__guidance=1.0), captioned()).pipeline.NAME == "Flux"


def test_pipelines_whose_parts_do_not_fit_are_refused(tmp_path: Path) -> None:
    cases = {
        save_xl(tmp_path / "a", cross_attention_dim=32): "takes texts of 32 numbers, its text encoders give 24",
        save_sd3(tmp_path / "b", pooled_projection_dim=24): "pooled texts of 24 numbers, its text encoders give 20",
        save_flux(tmp_path / "c", joint_attention_dim=24): "takes texts of 24 numbers, its T5 gives 32",
    }
    for folder, message in cases.items():
        with pytest.raises(UserError, match=message):
            load_text_pipeline(folder)


def test_sizes_and_long_texts(pipelines: Any) -> None:
    with pytest.raises(UserError, match=r"is 64 x 64, the pipeline takes at most 48 x 48: set data\.convert_to"):
        check_size(pipelines["sd3"], (3, 64, 64), "noise")
    with pytest.raises(UserError, match=r"takes multiples of 4: set data\.convert_to"):
        check_size(pipelines["flux"], (3, 18, 18), "noise")
    for family, length in (("xl", 32), ("sd3", 56), ("flux", 40)):
        pipeline, long = pipelines[family], "a " * 20
        assert pipeline.tokens(PROMPTS).shape == (2, length)
        assert pipeline.num_too_long(["a dog", long]) == 1
        with pytest.raises(UserError, match="has 22 tokens, the text encoder takes 16: shorten it"):
            pipeline.tokens([long])
        assert replace(pipeline, cuts=True).tokens([long]).shape == (1, length)


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
def test_presets_compare_methods_at_equal_numbers_of_images(family: str) -> None:
    plain, agc, both = (load_preset(f"{family}-lora-{method}") for method in ("default", "agc", "iet-agc"))
    seen = {each.method.members * each.method.rounds * each.train.steps for each in (plain, agc, both)}
    assert seen == {2000}
    assert {each.init.model for each in (plain, agc, both)} == {plain.init.model}
    assert all(each.lora.rank == 16 and each.model.kind == "text-to-image" for each in (plain, agc, both))
