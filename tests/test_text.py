"""Text-to-image: a miniature Stable Diffusion of random weights goes the whole way, from cache to stock diffusers."""

import json
import os
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from diffusers import PNDMScheduler  # pyright: ignore[reportPrivateImportUsage]
from safetensors.torch import load_file, save_file

from iet_agc.auditing.memorized_prompts import detect_prompts
from iet_agc.config.settings import TextSettings, validate
from iet_agc.data.image_set import ImageSet
from iet_agc.runtime.seeds import generator
from iet_agc.sampling import sample_set
from iet_agc.sampling.sample_set import load_samples, sample_run
from iet_agc.text_to_image.pipeline import draw, load_text_pipeline
from iet_agc.text_to_image.stable_diffusion import UNetAndEncoder
from iet_agc.training.batches import draw_batch
from iet_agc.training.captioned import Captioned
from iet_agc.training.initialization import folders_of
from iet_agc.training.loop import train
from iet_agc.training.tasks import TextTask
from tests.drawing import draw_samples
from tests.miniature import captioned, save_captioned, save_miniature
from tests.processes import in_processes
from tests.tiny_runs import CPU, assert_same
from tests.tiny_text_runs import TINY, call, killed, settings, stock, told, unet


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_miniature(tmp_path_factory.mktemp("pipelines") / "epsilon")


@pytest.fixture(scope="module")
def pipeline(folder):
    return load_text_pipeline(folder)


def test_the_layout_of_the_hub_is_read(folder, pipeline, tmp_path):
    """Older files: a vocabulary and its merges, no length, the text encoder's names with a prefix, and position ids."""
    old = shutil.copytree(folder, tmp_path / "old")
    content = json.loads((old / "tokenizer" / "tokenizer.json").read_text())["model"]
    (old / "tokenizer" / "tokenizer.json").unlink()
    (old / "tokenizer" / "vocab.json").write_text(json.dumps(content["vocab"]))
    config = json.loads((old / "tokenizer" / "tokenizer_config.json").read_text())
    del config["model_max_length"]
    (old / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    (old / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, content["merges"])]))
    weights = load_file(old / "text_encoder" / "model.safetensors")
    weights = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in weights.items()}
    weights["text_model.embeddings.position_ids"] = torch.arange(16)[None]
    save_file(weights, old / "text_encoder" / "model.safetensors", {"format": "pt"})
    found, texts = load_text_pipeline(old), ["a red dog", "a bird with a hat"]
    assert torch.equal(found.tokens(texts), pipeline.tokens(texts))
    assert torch.equal(found.embed(found.tokens(texts)).embeds, pipeline.embed(pipeline.tokens(texts)).embeds)
    assert TextTask(settings(old), captioned()).initial.sha256 == TextTask(settings(folder), captioned()).initial.sha256


def test_half_precision_is_trained_in_full(folder, tmp_path):
    half = shutil.copytree(folder, tmp_path / "half")
    for file in half.rglob("*.safetensors"):
        save_file({name: value.half() for name, value in load_file(file).items()}, file, {"format": "pt"})
    task = TextTask(settings(half), captioned())
    assert {tensor.dtype for tensor in task.initial.raw.state_dict().values()} == {torch.float32}


# -- latents, embeddings, loss


def test_what_is_cached_is_what_stock_diffusers_computes(folder, pipeline):
    data, pipe = captioned(), stock(folder)
    assert data.captions is not None
    for flips in (False, True):
        examples = Captioned(pipeline, data.images, data.captions, TextSettings(), flips=flips).to(CPU)
        for mirrored in range(1 + flips):
            pixels = data.images.flip(-1) if mirrored else data.images
            with torch.no_grad():
                found = pipe.vae.encode(pixels.float() / 127.5 - 1).latent_dist
            torch.testing.assert_close(examples.moments[mirrored, :, 0], found.mean, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(examples.moments[mirrored, :, 1], found.std, rtol=1e-4, atol=1e-5)
    for number, texts in enumerate(data.captions):
        assert examples.counts[number] == len(texts)
        for place, text in enumerate(texts):
            with torch.no_grad():
                expected = pipe.encode_prompt(text, CPU, 1, do_classifier_free_guidance=False)[0][0]
            cached = examples.embeddings.embeds[examples.choices[number, place]]
            torch.testing.assert_close(cached, expected, rtol=1e-4, atol=1e-5)


def test_an_encoding_does_not_depend_on_the_others(pipeline):
    data = captioned()
    whole = pipeline.moments(data.images)
    assert torch.equal(pipeline.moments(data.images[5:7]), whole[5:7])
    tokens = pipeline.tokens([texts[0] for texts in data.captions])
    assert torch.equal(pipeline.embed(tokens[5:7]).embeds, pipeline.embed(tokens).embeds[5:7])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("flips", [False, True])
def test_the_loss_is_that_of_the_formula(tmp_path, prediction, flips):
    """By hand, image by image, with stock parts: latents drawn from the VAE, one caption of several, the target."""
    pipe = stock(save_miniature(tmp_path / "p", prediction=prediction))
    pipeline, data = load_text_pipeline(tmp_path / "p"), captioned()
    assert data.captions is not None
    examples = Captioned(pipeline, data.images, data.captions, TextSettings(), flips=flips)
    batch = draw_batch(3, 1, 5, len(data), 8, examples.shape, CPU)
    with torch.no_grad():
        losses = examples.losses(pipeline.denoiser, pipeline.scheduler, batch, slice(0, 8))
    rng = generator("text", 3, 1, 5)
    posterior, lots = torch.randn(8, 4, 8, 8, generator=rng), torch.rand(8, generator=rng, dtype=torch.float64)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = (1 - betas).cumprod(0)[batch.timesteps]
    chosen = set()
    for row, position in enumerate(batch.positions.tolist()):
        image = data.images[position : position + 1].float() / 127.5 - 1
        image = image.flip(-1) if flips and batch.flips[row] else image
        place = int(lots[row] * len(data.captions[position]))
        chosen.add(place)
        with torch.no_grad():
            found = pipe.vae.encode(image).latent_dist
            latents = (found.mean + found.std * posterior[row]) * pipe.vae.config.scaling_factor
            text = pipe.encode_prompt(data.captions[position][place], CPU, 1, False)[0]
            signal, spread = abar[row].sqrt().float(), (1 - abar[row]).sqrt().float()
            noisy = signal * latents + spread * batch.noise[row]
            predicted = pipe.unet(noisy, batch.timesteps[row], encoder_hidden_states=text).sample
        v = signal * batch.noise[row] - spread * latents
        target = batch.noise[row] if prediction == "epsilon" else v
        expected = (predicted - target).square().mean()
        torch.testing.assert_close(losses[row], expected, rtol=1e-3, atol=1e-5)
    assert len(chosen) > 1


def test_replicas_of_a_batch_see_the_rows_of_one_batch(pipeline):
    data = captioned()
    assert data.captions is not None
    examples = Captioned(pipeline, data.images, data.captions, TextSettings(), flips=True)
    batch = draw_batch(0, 0, 0, len(data), 8, examples.shape, CPU)
    with torch.no_grad():
        whole, part = (
            examples.losses(pipeline.denoiser, pipeline.scheduler, batch, rows) for rows in (slice(0, 8), slice(3, 8))
        )
    torch.testing.assert_close(part, whole[3:], rtol=1e-4, atol=1e-6)


def test_text_mitigations_do_what_they_say(folder, pipeline):
    data = captioned()
    batch = draw_batch(0, 0, 0, len(data), 8, (4, 8, 8), CPU)
    plain, losses = told(folder, data, batch)
    first, _ = told(folder, data, batch, text__captions="first")
    noisy, other_losses = told(folder, data, batch, text__embedding_noise=0.1)
    places = batch.positions[2:8].tolist()
    expected = pipeline.embed(pipeline.tokens([data.captions[place][0] for place in places])).embeds
    torch.testing.assert_close(first, expected)
    assert not torch.equal(plain, first)
    rng = generator("text", 0, 0, 0)
    _ = torch.randn(8, 4, 8, 8, generator=rng), torch.rand(2, 8, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(noisy, plain + 0.1 * torch.randn(8, *plain.shape[1:], generator=rng)[2:8])
    assert not torch.equal(losses, other_losses)


@pytest.mark.parametrize("how", [{}, {"text__repeat_words": 1}, {"text__train_encoder": True}])
def test_dropped_captions_are_the_empty_text(folder, pipeline, how):
    data = captioned()
    batch = draw_batch(0, 0, 0, len(data), 8, (4, 8, 8), CPU)
    plain, _ = told(folder, data, batch, **how)
    found, _ = told(folder, data, batch, text__drop_caption=0.5, **how)
    nothing = pipeline.embed(pipeline.tokens([""])).embeds[0]
    dropped = [torch.allclose(row, nothing, atol=1e-5) for row in found]
    rng = generator("text", 0, 0, 0)
    torch.randn(8, 4, 8, 8, generator=rng)
    assert dropped == (torch.rand(2, 8, generator=rng, dtype=torch.float64)[1] < 0.5)[2:8].tolist()
    assert 0 < sum(dropped) < 6
    assert torch.equal(found[~torch.tensor(dropped)], plain[~torch.tensor(dropped)])


def test_a_shard_takes_its_own_captions(folder, pipeline):
    data = captioned()
    examples = TextTask(settings(folder), data).examples(torch.tensor([5, 2])).to(CPU)
    assert isinstance(examples, Captioned)
    expected = pipeline.embed(pipeline.tokens([data.captions[place][0] for place in (5, 2)])).embeds
    torch.testing.assert_close(examples.embeddings.embeds[examples.choices[:, 0]], expected)
    assert torch.equal(examples.images, data.images[[5, 2]])


def test_images_alone_take_no_text_settings(tmp_path):
    with pytest.raises(ValueError, match="section text have no effect on images alone"):
        train(validate({"text": {"captions": "first"}}), captioned(), tmp_path / "run", CPU)


@pytest.mark.parametrize("learns", [False, True])
def test_a_loss_reads_nothing_on_the_host(pipeline, learns):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert not any(word in str(function) for word in ("_local_scalar_dense", "nonzero"))
            return function(*args, **(kwargs or {}))

    data = captioned()
    assert data.captions is not None
    examples = Captioned(pipeline, data.images, data.captions, TextSettings(train_encoder=learns), flips=True).to(CPU)
    batch = draw_batch(0, 0, 0, len(data), 8, examples.shape, CPU)
    model = UNetAndEncoder(pipeline.denoiser, pipeline.text_encoder) if learns else pipeline.denoiser
    with torch.no_grad():
        examples.losses(model, pipeline.scheduler, batch, slice(0, 8))
        with Watch():
            examples.losses(model, pipeline.scheduler, batch, slice(0, 8))


def test_a_hub_pipeline_is_fetched_without_pickles(folder, tmp_path, monkeypatch):
    asked = []

    def fetched(name, revision, allow_patterns, ignore_patterns):
        asked.append(allow_patterns)
        return str(folder)

    monkeypatch.setattr("iet_agc.training.initialization.snapshot_download", fetched)
    monkeypatch.chdir(tmp_path)
    assert folders_of("someone/stable", "text-to-image") == [folder]
    assert all(pattern.endswith((".json", "merges.txt")) for pattern in asked[0])
    assert all(pattern.endswith((".json", ".txt", ".safetensors")) for pattern in asked[1])
    files = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
    assert all(any(file.match(pattern) for pattern in asked[1]) for file in files)


# -- training


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A finished run, and what it should have been started with."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "run"
    train(settings(folder, run__preview_images=2), captioned(), out, CPU)
    return out


def test_a_run_learns_and_leaves_frozen_parts_alone(folder, run):
    before, after = load_text_pipeline(folder), load_text_pipeline(run / "raw")
    assert_same(before.vae.state_dict(), after.vae.state_dict())
    assert_same(before.text_encoder.state_dict(), after.text_encoder.state_dict())
    changed = [not torch.equal(before.denoiser.state_dict()[name], value) for name, value in unet(run).items()]
    assert all(changed)
    assert not torch.equal(unet(run)["conv_in.weight"], unet(run, "ema")["conv_in.weight"])
    assert (run / "previews" / "round-0002.png").exists()
    rows = (run / "telemetry.csv").read_text().splitlines()
    assert len(rows) == 1 + 12


def test_frozen_parts_are_on_the_disk_once(run):
    for part in ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        assert os.path.samefile(run / "raw" / part, run / "ema" / part)
    file = "unet/diffusion_pytorch_model.safetensors"
    assert not os.path.samefile(run / "raw" / file, run / "ema" / file)


def test_a_file_system_without_links_gets_copies(pipeline, tmp_path, monkeypatch):
    from iet_agc.text_to_image.pipeline import save_text_pipelines

    def refuses(*arguments, **options):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuses)
    save_text_pipelines(pipeline, {"a": pipeline.denoiser, "b": pipeline.denoiser}, tmp_path)
    assert_same(load_text_pipeline(tmp_path / "b").vae.state_dict(), pipeline.vae.state_dict())


def test_an_old_unet_keeps_the_size_that_it_was_trained_on(folder, tmp_path):
    """Stock diffusers takes small sizes of U-Nets from before 0.9 for a mistake, and puts 64 in their place."""
    from iet_agc.text_to_image.pipeline import save_text_pipelines

    old = shutil.copytree(folder, tmp_path / "old")
    configured("unet", "config.json", _diffusers_version="0.6.0", sample_size=64)(old)
    pipeline = TextTask(settings(old), captioned()).pipeline
    save_text_pipelines(pipeline, {"raw": pipeline.denoiser}, tmp_path)
    assert stock(tmp_path / "raw").unet.config.sample_size == 8


def test_a_killed_run_resumes_bitwise(folder, run, tmp_path):
    killed(settings(folder), tmp_path / "run")
    assert not (tmp_path / "run" / "raw").exists()
    train(settings(folder), captioned(), tmp_path / "run", CPU)
    for kind in ("raw", "ema"):
        assert_same(unet(tmp_path / "run", kind), unet(run, kind))


def test_flips_of_latents_change_what_is_learnt_and_nothing_else(folder, run, tmp_path):
    """As the presets have it, flips and first captions: the same after a kill, and on two processes."""
    asked = settings(folder, data__flips=True, text__captions="first")
    train(asked, captioned(), tmp_path / "a", CPU)
    killed(asked, tmp_path / "b")
    train(asked, captioned(), tmp_path / "b", CPU)
    in_processes(2, lambda: train(asked, captioned(), tmp_path / "c", CPU))
    for kind in ("raw", "ema"):
        for other in ("b", "c"):
            assert_same(unet(tmp_path / other, kind), unet(tmp_path / "a", kind))
    train(settings(folder, text__captions="first"), captioned(), tmp_path / "plain", CPU)
    assert not torch.equal(unet(tmp_path / "a")["conv_in.weight"], unet(tmp_path / "plain")["conv_in.weight"])
    symmetric = captioned()
    symmetric = replace(
        symmetric, images=torch.cat([symmetric.images[..., :8], symmetric.images[..., :8].flip(-1)], -1)
    )
    for name, flips in (("d", True), ("e", False)):  # of images that are their mirror images flips change nothing
        short = settings(folder, data__flips=flips, method__members=1, method__rounds=1)
        train(short, symmetric, tmp_path / name, CPU)
    assert_same(unet(tmp_path / "d"), unet(tmp_path / "e"))


def test_two_processes_train_the_same_model(folder, run, tmp_path):
    in_processes(2, lambda: train(settings(folder), captioned(), tmp_path / "run", CPU))
    assert_same(unet(tmp_path / "run"), unet(run))


def test_replicas_train_the_same_model_to_rounding(tmp_path):
    """Two processes per member, which drop the same units: else weights would differ by whole steps of 1e-3."""
    folder = save_miniature(tmp_path / "dropping", dropout=0.1)
    short = settings(folder, train__steps=2)
    train(short, captioned(), tmp_path / "one", CPU)
    in_processes(4, lambda: train(short, captioned(), tmp_path / "four", CPU))
    one, four = unet(tmp_path / "one"), unet(tmp_path / "four")
    assert max(float((one[name] - four[name]).abs().max()) for name in one) < 5e-4


def test_agc_skips_latents(folder, tmp_path):
    """With the bank the last loss, and a cut far above it, whatever comes at a timestep for the second time."""
    chosen = settings(
        folder, method__members=1, method__rounds=1, train__steps=20, train__batch_size=16, run__preview_images=0,
        method__skip_below=8.0, method__decay=0.0,
    )  # fmt: skip
    train(chosen, captioned(), tmp_path / "run", CPU)
    skipped = [int(row.split(",")[-1]) for row in (tmp_path / "run" / "telemetry.csv").read_text().splitlines()[1:]]
    assert sum(skipped) > 20


def test_other_captions_are_another_run(folder, run):
    data = captioned()
    other = ImageSet(data.images, data.name, captions=(("a dog",), *data.captions[1:]))
    with pytest.raises(ValueError, match="belongs to a run with other settings or images"):
        train(settings(folder), other, run, CPU)


def test_another_pipeline_is_another_run(run, tmp_path):
    with pytest.raises(ValueError, match="holds another run"):
        train(settings(save_miniature(tmp_path / "other", seed=1)), captioned(), run, CPU)


def test_a_run_is_trained_further_with_its_average(run, tmp_path):
    chosen = settings(run, method__members=1, method__rounds=1, train__learning_rate=1e-9, train__ema_decay=1.0)
    train(chosen, captioned(), tmp_path / "further", CPU)
    assert_same(unet(tmp_path / "further", "ema"), unet(run, "ema"))


# -- the text encoder, trained


def encoder(run, kind="raw"):
    return load_text_pipeline(run / kind).text_encoder.state_dict()


def learning(init, **changes):
    return settings(init, text__train_encoder=True, text__embedding_noise=0.1, **changes)


@pytest.mark.parametrize("part", ["vae", "tokenizer", "text_encoder"])
def test_every_part_of_an_exported_pipeline_is_compared_and_mended(folder, run, tmp_path, part):
    """A person's files stay where they are, in raw alone."""
    out = shutil.copytree(run, tmp_path / "run")
    (out / "raw" / part / "README.md").write_text("a person's")
    file = next(file for file in sorted((out / "raw" / part).iterdir()) if file.name != "README.md")
    whole = file.read_bytes()
    file.unlink()
    file.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    for use in (lambda: sample_run(out, tmp_path / "a"), lambda: detect_prompts(out, tmp_path / "b", ["a red dog"])):
        with pytest.raises(ValueError, match=rf"raw/{part}/{file.name} is not as it was exported: run the same"):
            use()
    train(settings(folder), captioned(), out, CPU)
    assert file.read_bytes() == whole
    assert (out / "raw" / part / "README.md").read_text() == "a person's"
    assert not (out / "ema" / part / "README.md").exists()
    sample_run(out, tmp_path / "a", {"num": 2, "steps": 2}, prompts=["a red dog"], on_images=lambda images: None)


@pytest.fixture(scope="module")
def taught(folder, tmp_path_factory):
    """A finished run whose text encoder was trained."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "taught"
    train(learning(folder), captioned(), out, CPU)
    return out


def test_a_text_encoder_learns_if_it_is_trained(folder, taught):
    before, raw, ema = load_text_pipeline(folder), encoder(taught), encoder(taught, "ema")
    for name, value in before.text_encoder.state_dict().items():
        assert not torch.equal(value, raw[name]), name
        assert not torch.equal(raw[name], ema[name]), name
    assert_same(load_text_pipeline(taught / "raw").vae.state_dict(), before.vae.state_dict())
    assert os.path.samefile(*(taught / kind / "vae/diffusion_pytorch_model.safetensors" for kind in ("raw", "ema")))
    names = set(load_file(taught / "bundles" / "round-0002" / "shared.safetensors"))
    parts = {".".join(name.split(".")[:2]) for name in names}
    assert parts == {f"{kind}.{part}" for kind in ("raw", "ema") for part in ("unet", "text_encoder")}


def test_texts_are_embedded_in_the_step_as_they_would_be_before(folder, pipeline):
    """The same losses as from the cache; and a gradient."""
    data, both = captioned(), UNetAndEncoder(pipeline.denoiser, pipeline.text_encoder).train()
    batch = draw_batch(0, 0, 0, len(data), 8, (4, 8, 8), CPU)
    assert data.captions is not None
    cached = Captioned(pipeline, data.images, data.captions, TextSettings(embedding_noise=0.1), flips=True)
    text = TextSettings(embedding_noise=0.1, train_encoder=True)
    live = Captioned(pipeline, data.images, data.captions, text, flips=True)
    expected = cached.losses(pipeline.denoiser, pipeline.scheduler, batch, slice(2, 8))
    found = live.losses(both, pipeline.scheduler, batch, slice(2, 8))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert live.embeddings is None
    assert pipeline.denoiser.training
    assert not pipeline.text_encoder.training  # whose dropout would differ between replicas
    initial = TextTask(learning(folder), data).initial.raw
    live.losses(initial, pipeline.scheduler, batch, slice(2, 8)).mean().backward()
    assert all(parameter.grad is not None for parameter in initial.parameters())
    pipeline.denoiser.eval()


def test_a_killed_run_with_its_text_encoder_resumes_bitwise(folder, taught, tmp_path):
    killed(learning(folder), tmp_path / "run")
    train(learning(folder), captioned(), tmp_path / "run", CPU)
    for kind in ("raw", "ema"):
        assert_same(unet(tmp_path / "run", kind), unet(taught, kind))
        assert_same(encoder(tmp_path / "run", kind), encoder(taught, kind))


def test_two_processes_train_the_same_text_encoder(folder, taught, tmp_path):
    in_processes(2, lambda: train(learning(folder), captioned(), tmp_path / "run", CPU))
    for kind in ("raw", "ema"):
        assert_same(unet(tmp_path / "run", kind), unet(taught, kind))
        assert_same(encoder(tmp_path / "run", kind), encoder(taught, kind))


def test_a_run_with_its_text_encoder_is_trained_further(taught, tmp_path):
    """With both text encoders, or with one that is said."""
    few = {"method__members": 1, "method__rounds": 1, "train__learning_rate": 1e-9, "train__ema_decay": 1.0}
    train(learning(taught, **few), captioned(), tmp_path / "further", CPU)
    assert_same(encoder(tmp_path / "further", "ema"), encoder(taught, "ema"))
    assert_same(unet(tmp_path / "further", "ema"), unet(taught, "ema"))
    with pytest.raises(ValueError, match=r"trained its text encoder.*: set text\.train_encoder true, or start"):
        train(settings(taught), captioned(), tmp_path / "frozen", CPU)
    one = TextTask(settings(taught / "raw"), captioned()).initial.sha256
    assert one != TextTask(settings(taught / "ema"), captioned()).initial.sha256


# -- drawing


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("done", ["run", "taught"])
def test_stock_diffusers_draws_the_same_from_the_exported_pipeline(done, guidance, request):
    run = request.getfixturevalue(done)
    seeds, prompts = [3, 4, 5], ["a red dog", "a bird", "a blue house"]
    ours = draw(load_text_pipeline(run / "raw"), seeds, prompts, 4, guidance)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    theirs = stock(run / "raw")(
        prompts, num_inference_steps=4, guidance_scale=guidance, generator=generators, output_type="np"
    ).images
    theirs = (torch.from_numpy(theirs).permute(0, 3, 1, 2) * 255).round().to(torch.uint8)
    assert ours.shape == theirs.shape == (3, 3, 16, 16)
    difference = (ours.int() - theirs.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.01
    assert ours.float().std() > 1


def test_prompts_and_guidance_have_an_effect(pipeline):
    images = [draw(pipeline, [1], [text], 2, guidance)[0] for text in ("a dog", "a red cat") for guidance in (1.0, 7.5)]
    assert len({image.numpy().tobytes() for image in images}) == 4


def test_bfloat16_draws_and_trains_nearly_the_same(folder, pipeline, tmp_path):
    images = [draw(pipeline, [1], ["a dog"], 2, 1.0, precision=name).float() for name in ("float32", "bfloat16")]
    assert not torch.equal(*images)
    torch.testing.assert_close(*images, rtol=0, atol=16)
    weights = []
    for name in ("float32", "bfloat16"):
        chosen = settings(folder, train__precision=name, method__members=1, method__rounds=1, run__preview_images=0)
        train(chosen, captioned(), tmp_path / name, CPU)
        weights.append(unet(tmp_path / name)["conv_in.weight"])
    assert not torch.equal(*weights)
    torch.testing.assert_close(*weights, rtol=0, atol=1e-2)


def test_an_image_depends_on_its_seed_and_prompt_only(run, tmp_path):
    prompts = ["a red dog", "a bird", "a cat"]
    whole, seeds = load_samples(draw_samples(run / "raw", range(7), tmp_path / "a", 2, prompts=prompts))
    late, _ = load_samples(draw_samples(run / "raw", range(4, 6), tmp_path / "b", 2, prompts=prompts))
    assert seeds == list(range(7))
    assert torch.equal(late.images, whole.images[4:6])
    assert whole.captions == tuple((prompts[seed % 3],) for seed in range(7))
    assert late.captions == (("a bird",), ("a cat",))
    alone, _ = load_samples(draw_samples(run / "raw", range(4, 5), tmp_path / "c", 2, prompts=["a bird"]))
    assert torch.equal(alone.images[0], whole.images[4])


def test_a_killed_draw_goes_on(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sample_set, "_PART", 1)
    monkeypatch.setattr("iet_agc.sampling.sample_set.rows_at_a_time", lambda shape, device: 2)
    calls = []
    arguments: dict[str, Any] = {"steps": 2, "prompts": ["a dog", "a cat", "a bird"]}

    def dies(share):
        calls.append(share)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_samples(run / "raw", range(6), tmp_path / "a", on_images=dies, **arguments)
    with pytest.raises(ValueError, match="unfinished sample set"):
        load_samples(tmp_path / "a")
    with pytest.raises(ValueError, match="holds another sample set"):
        draw_samples(run / "raw", range(6), tmp_path / "a", steps=2, prompts=["a dog", "a cat", "a hat"])
    with pytest.raises(ValueError, match=r"another sample set \(guidance is 7.5, not 2"):
        draw_samples(run / "raw", range(6), tmp_path / "a", settings={"guidance": 2}, **arguments)
    draw_samples(run / "raw", range(6), tmp_path / "a", **arguments)
    whole = draw_samples(run / "raw", range(6), tmp_path / "b", **arguments)
    assert torch.equal(load_samples(tmp_path / "a")[0].images, load_samples(whole)[0].images)


def test_a_run_draws_its_training_captions(run, tmp_path):
    """First the first ones of all images, so that few samples are of many images; seeds beyond all begin again."""
    captions, count = captioned().captions, len(captioned())
    turns = [[texts[turn] for texts in captions if len(texts) > turn] for turn in range(3)]
    assert [len(turn) for turn in turns] == [count, 8, 4]
    summary = sample_run(run, tmp_path / "s", {"num": 5})
    assert (summary["prompts"], summary["guidance"]) == (count + 8 + 4, 7.5)
    images, _ = load_samples(tmp_path / "s")
    assert images.captions == tuple((text,) for text in turns[0][:5])
    expected = [text for turn in turns for text in turn]
    sample_run(run, tmp_path / "late", {"num": 4, "first_seed": count - 2})
    assert load_samples(tmp_path / "late")[0].captions == tuple((text,) for text in expected[count - 2 : count + 2])
    sample_run(run, tmp_path / "again", {"num": 2, "first_seed": len(expected) - 1})
    assert load_samples(tmp_path / "again")[0].captions == ((expected[-1],), (expected[0],))
    sample_run(run, tmp_path / "unguided", {"num": 5, "guidance": 1})
    assert not torch.equal(load_samples(tmp_path / "unguided")[0].images, images.images)


def test_a_run_that_was_told_first_captions_draws_no_others(folder, tmp_path):
    train(settings(folder, text__captions="first", method__rounds=1, train__steps=1), captioned(), tmp_path / "r", CPU)
    assert sample_run(tmp_path / "r", tmp_path / "s", {"num": 1})["prompts"] == len(captioned())


@pytest.mark.parametrize("content", ["[]", "{}", '["a dog"]', '[["a dog", 1]]', '{"a": ["b"]}', "[[]]", "[", "\xff"])
def test_captions_of_a_run_that_are_none(run, tmp_path, content):
    (tmp_path / "captions.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"captions\.json (holds no captions|is .*): give prompts"):
        sample_set._captions_of(tmp_path, first=False)


def test_a_damaged_sample_set_is_named(run, tmp_path):
    draw_samples(run / "raw", range(2), tmp_path / "s", 2, prompts=["a dog"])
    about = json.loads((tmp_path / "s" / "samples.json").read_text())
    (tmp_path / "s" / "samples.json").write_text(json.dumps(about | {"prompts": ["a dog"]}))
    with pytest.raises(ValueError, match=r"samples\.json .* sample again"):
        load_samples(tmp_path / "s")


def test_pixels_take_no_prompts(capsys, tmp_path):
    from iet_agc.diffusion.process import make_scheduler
    from iet_agc.diffusion.unet import build_unet, save_pipeline

    save_pipeline(build_unet(8, 1, 8, (1, 2), 1, (), 0.0, 4), make_scheduler(), tmp_path / "pixels")
    for words in (("--prompt", "a dog"), ("--guidance", "3")):
        status, _, line = call(capsys, "sample", tmp_path / "pixels", "--out", tmp_path / "s", "--num", "1", *words)
        assert (status, "is no text-to-image pipeline: leave out the" in line) == (2, True)


# -- the command line


def test_the_presets_train_and_sample(capsys, folder, tmp_path):
    root = save_captioned(tmp_path / "laion", captioned())
    for name, members in (("sd21-laion10k-default", 1), ("sd21-laion10k-iet-agc", 4)):
        out = tmp_path / name
        status, text, _ = call(capsys, "train", name, "--out", out, "--init", folder, "--data.root", root, *TINY)
        assert status == 0
        assert json.loads(text)["steps"] == members * 2
        status, text, _ = call(capsys, "sample", out, "--out", out / "samples", "--prompt", "a red dog")
        assert status == 0
        assert load_samples(out / "samples")[0].captions == (("a red dog",),) * 3


def without(part):
    def change(folder):
        index = json.loads((folder / "model_index.json").read_text())
        index[part] = [None, None]
        (folder / "model_index.json").write_text(json.dumps(index))
        shutil.rmtree(folder / part)

    return change


def other_kind(part, kind):
    def change(folder):
        index = json.loads((folder / "model_index.json").read_text())
        index[part][1] = kind
        (folder / "model_index.json").write_text(json.dumps(index))

    return change


def configured(part, file, **changes):
    def change(folder):
        config = json.loads((folder / part / file).read_text())
        (folder / part / file).write_text(json.dumps(config | changes))

    return change


def truncated(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("text_encoder"), "is no text-to-image pipeline: it has no text encoder"),
        (without("vae"), "is no text-to-image pipeline: it has no VAE"),
        (other_kind("text_encoder", "T5EncoderModel"), "its text encoder is a T5EncoderModel, not a CLIPTextModel"),
        (other_kind("unet", "UNet2DModel"), "of a known kind, its U-Net is a UNet2DModel: known are"),
        (configured("scheduler", "scheduler_config.json", prediction_type="sample"), "it predicts 'sample', not eps"),
        (configured("scheduler", "scheduler_config.json", num_train_timesteps=500), "it has 500 timesteps, not 1000"),
        (configured("tokenizer", "tokenizer_config.json", model_max_length={}), "does not say how long texts may be"),
        (configured("unet", "config.json", in_channels=9), "cannot be read as a text-to-image pipeline"),
        (configured("unet", "config.json", layers_per_block=2), "lacks weights of its configuration"),
        (truncated, "cannot be read as a text-to-image pipeline"),
        (lambda folder: (folder / "model_index.json").unlink(), "is not a diffusers pipeline"),
    ],
)
def test_pipelines_that_cannot_be_trained(capsys, folder, tmp_path, change, message):
    broken = shutil.copytree(folder, tmp_path / "broken")
    change(broken)
    root = save_captioned(tmp_path / "laion", captioned())
    words = ("train", "sd21-laion10k-default", "--out", tmp_path / "run", "--init", broken, "--data.root", root)
    status, _, line = call(capsys, *words, *TINY)
    assert status == 2
    assert message in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "this preset trains a model further: say which (--init)"),
        (["--init", "{folder}", "--data.convert-to", "3x18x18"], "takes multiples of 4: set data.convert_to, such as"),
        (["--init", "{folder}", "--data.convert-to", "1x16x16"], "has 1 channels, the pipeline takes 3"),
        (["--init", "{folder}", "--model.channels", "64"], "model.channels has no effect on text-to-image"),
        (["--init", "{folder}", "--init.sha256", "0" * 64], "has the hash"),
    ],
)
def test_settings_that_do_not_fit(capsys, folder, tmp_path, words, message):
    root = save_captioned(tmp_path / "laion", captioned())
    given = [word.format(folder=folder) for word in words]
    start = ("train", "sd21-laion10k-default", "--out", tmp_path / "run", "--data.root", root)
    status, _, line = call(capsys, *start, *TINY, *given)
    assert status == 2
    assert message in line
    assert not (tmp_path / "run").exists()


def test_captions_that_do_not_fit(folder, tmp_path):
    data = captioned()
    with pytest.raises(ValueError, match=r"noise has no captions, and model\.kind is text-to-image"):
        train(settings(folder), ImageSet(data.images, "noise"), tmp_path / "run", CPU)
    long = ImageSet(data.images, "noise", captions=(("a " * 40,), *data.captions[1:]))
    with pytest.raises(ValueError, match=r"text 'a a a .*\.\.\.' has 42 tokens, the text encoder takes 16: shorten it"):
        train(settings(folder), long, tmp_path / "run", CPU)
    empty = ImageSet(data.images, "noise", captions=((" ",), *data.captions[1:]))
    with pytest.raises(ValueError, match="image 0 of noise has no caption, or an empty one"):
        train(settings(folder), empty, tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no prompts"),
        (b"a dog\n\na cat\n", "has no prompt in line 2"),
        ("ein Bär".encode("latin-1"), "is not UTF-8, at byte 5"),
    ],
)
def test_prompt_files_that_cannot_be_read(capsys, run, tmp_path, content, message):
    (tmp_path / "prompts.txt").write_bytes(content)
    words = ("sample", run, "--out", tmp_path / "s", "--prompts", tmp_path / "prompts.txt")
    status, _, line = call(capsys, *words)
    assert status == 2
    assert message in line
    assert not (tmp_path / "s").exists()


def test_prompts_that_do_not_fit(capsys, run, tmp_path):
    cases = {
        ("--prompt", "a " * 40): "has 42 tokens, the text encoder takes 16",
        ("--prompt", " "): "a prompt is empty",
        ("--prompt", "a\udcff"): "prompt 'a\\udcff' is not UTF-8: write it so",
        ("--class", "1"): "is not class-conditional",
        ("--prompt", "a", "--prompts", "b"): "not allowed with argument",
    }
    for words, message in cases.items():
        status, _, line = call(capsys, "sample", run, "--out", tmp_path / "s", *words)
        assert (status, message in line) == (2, True), line
    status, _, line = call(capsys, "sample", run / "raw", "--out", tmp_path / "s")
    assert (status, "draws by prompts: give some (--prompts)" in line) == (2, True)
    assert not (tmp_path / "s").exists()


def test_a_pipeline_with_another_scheduler_keeps_its_noise(tmp_path):
    schedule = PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True)
    found: Any = load_text_pipeline(save_miniature(tmp_path / "p", scheduler=schedule)).scheduler
    assert torch.equal(found.alphas_cumprod, schedule.alphas_cumprod)
    assert found.config.clip_sample is False
    assert found.config.prediction_type == "epsilon"


def test_without_transformers_it_is_one_line(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package transformers: pip install 'iet-agc\[text\]'"):
        load_text_pipeline(folder)
