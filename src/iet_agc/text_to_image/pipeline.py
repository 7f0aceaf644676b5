"""Text-to-image pipelines of the families that are known: read from folders, written to them, and drawn from.

u(z_t, "") + g (u(z_t, text) - u(z_t, ""))             guidance by g, of what the denoiser u predicts

Ho and Salimans, 2022, equation 6.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iet_agc.diffusion.process import predict_noise
from iet_agc.diffusion.samplers import Sampler, denoise, initial_noise, rows_at_a_time
from iet_agc.diffusion.unet import pipeline_index
from iet_agc.runtime.errors import UserError, in_words
from iet_agc.runtime.extras import require
from iet_agc.runtime.files import hashes_below, link_or_copy, replacing_folder
from iet_agc.runtime.fixed_rows import fixed_rows
from iet_agc.runtime.paths import check_pipeline_place
from iet_agc.runtime.precision import Precision, autocast, resolved
from iet_agc.runtime.progress import without_bars
from iet_agc.runtime.reading import check_regular_below
from iet_agc.runtime.seeds import generator
from iet_agc.text_to_image.caption_augmentation import UNCHANGED, Changes, change
from iet_agc.text_to_image.conditions import Conditions
from iet_agc.text_to_image.families import family_of
from iet_agc.text_to_image.family import TextPipeline
from iet_agc.text_to_image.lora import FILE_NAME, merged
from iet_agc.text_to_image.parts import config_of

__all__ = [
    "changed_prompts",
    "check_size",
    "compares",
    "draw",
    "draw_embedded",
    "guided",
    "load_text_pipeline",
    "save_text_pipelines",
    "text_weight_files",
]

_WORDS = {"unet": "U-Net", "vae": "VAE", "text_encoder": "text encoder"}


# -- files


def load_text_pipeline(folder: Path) -> TextPipeline:
    """Read a diffusers text-to-image pipeline of a family that is known.

    Weights are read from safetensors only, and kept in float32.

    Raises:
        UserError: `transformers` is not installed, or the folder is no such pipeline; the message names the part.
    """
    check_pipeline_place(folder)
    index = pipeline_index(folder)
    if not index:
        raise UserError(f"{folder} is not a diffusers pipeline: it has no model_index.json that can be read")
    family = family_of(folder, index)
    _check_parts(folder, index, family)
    check_regular_below(folder)
    if family.TOKENIZERS:
        require("transformers", "text", "text-to-image")
    try:
        with without_bars():
            pipeline = family.read(folder, index)
    except Exception as error:  # damaged files make their libraries raise nearly anything
        raise UserError(f"{folder} cannot be read as a text-to-image pipeline: {in_words(error)}") from error
    if reason := pipeline.misfit():
        raise UserError(f"{folder} cannot be trained as a text-to-image pipeline: {reason}")
    return pipeline


def _check_parts(folder: Path, index: Mapping[str, Any], family: type[TextPipeline]) -> None:
    for part, kind in family.CLASSES.items():
        if part in family.OPTIONAL and not family.has(index, part):
            continue
        if not family.has(index, part) or not (folder / part).is_dir():
            raise UserError(f"{folder} is no text-to-image pipeline: it has no {_WORDS.get(part, part)}")
        theirs = str(index[part][1])
        if not family.takes(part, theirs):
            what = f"its {_WORDS.get(part, part)} is a {theirs}, not a {kind}"
            raise UserError(f"{folder} is no pipeline like {family.NAME}: {what}")


def check_size(pipeline: TextPipeline, shape: tuple[int, int, int], name: str) -> None:
    """Refuse images (C, H, W) that the pipeline cannot encode, and halve or cut into patches.

    Raises:
        UserError: the message says which sizes it takes.
    """
    channels = config_of(pipeline.vae).in_channels
    if shape[0] != channels:
        raise UserError(f"{name} has {shape[0]} channels, the pipeline takes {channels}: set data.convert_to")
    step = pipeline.factor * pipeline.multiple
    if shape[1] % step or shape[2] % step:
        raise UserError(
            f"{name} is {shape[2]} x {shape[1]}, the pipeline takes multiples of {step}: set data.convert_to, such as "
            f"{channels}x{max(1, round(shape[1] / step)) * step}x{max(1, round(shape[2] / step)) * step}"
        )
    most = pipeline.most_latents
    if most is not None and max(shape[1:]) > (largest := most * pipeline.factor):
        raise UserError(
            f"{name} is {shape[2]} x {shape[1]}, the pipeline takes at most {largest} x {largest}: set data.convert_to"
        )


def save_text_pipelines(
    pipeline: TextPipeline, models: dict[str, Any], out: Path, own: Mapping[str, Collection[str]] | None = None
) -> dict[str, dict[str, str]]:
    """Write a pipeline folder `out`/name per trained model, each whole or not at all.

    LoRA is merged into the weights; its factors are beside them, for `load_lora_weights` of the pipeline that training
    started from. The frozen parts are written once; later folders hold hard links to the first one's, where links can
    be made. A safety checker is not among them: whoever deploys the model adds one.

    Args:
        pipeline: what training started from.
        models: what was trained of it, by name.
        out: where. What else stands in these folders stays.
        own: by name, paths below it that an earlier call wrote, which go.

    Returns:
        What was written: name -> path below its folder -> SHA-256.
    """
    written: dict[str, dict[str, str]] = {}
    for name, model in models.items():
        trained = pipeline.with_trained(model)
        plain: dict[str, Any] = {
            part: merged(it) if isinstance(it, nn.Module) else it for part, it in trained.parts.items()
        }
        whole = replace(trained, parts=plain)
        with replacing_folder(out / name, (own or {}).get(name, ())) as unfinished:
            if not written:
                whole.stock().save_pretrained(unfinished)
            else:
                learnt = [part for part in plain if plain[part] is not pipeline.parts[part]]
                first, files = next(iter(written.items()))
                _link_frozen(out / first, files, unfinished, learnt)
                for part in learnt:
                    plain[part].save_pretrained(unfinished / part)
            trained.save_lora(unfinished)
            written[name] = hashes_below(unfinished)
    return written


def _link_frozen(folder: Path, files: Collection[str], target: Path, learnt: Collection[str]) -> None:
    """Have the files of a pipeline that were written, but for what was trained, in another one as well."""
    for file in map(Path, files):
        if file.parts[0] not in (*learnt, FILE_NAME):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(folder / file, target / file)


def text_weight_files(folder: Path) -> list[Path]:
    """The files of a text-to-image pipeline that its images follow from."""
    parts = (folder / part for part in family_of(folder, pipeline_index(folder)).CLASSES)
    return sorted(file for part in parts if part.is_dir() for file in part.iterdir() if file.is_file())


# -- sampling


@torch.inference_mode()
def draw(
    pipeline: TextPipeline,
    seeds: Sequence[int],
    prompts: Sequence[str],
    steps: int = 50,
    guidance: float = 7.5,
    *,
    on_images: Callable[[float], object] = lambda count: None,
    precision: Precision = "float32",
    sampler: Sampler = "ddim",
    changes: Changes = UNCHANGED,
    embedding_noise: float = 0.0,
) -> Tensor:
    """Draw one image per seed and prompt, where the pipeline's parts are.

    Args:
        pipeline: all its parts on one device.
        seeds: one per image; equal seeds and prompts give equal images, whatever the others are.
        prompts: one per image.
        steps: of the sampler: evaluations of the denoiser per image, twice as many with guidance that compares (and one
            more of "pndm").
        guidance: see above; as in diffusers, there is none up to 1.
        on_images: called after each step with the finished fraction of images, for progress.
        precision: of the denoiser's products.
        sampler: see `samplers.scheduler_of`.
        changes: what is changed about prompts, as a mitigation, by the image's seed and prompt alone.
        embedding_noise: deviation of Gaussian noise on the embedded prompt, as a mitigation, drawn likewise.

    Returns:
        uint8 (N, C, H, W), on the CPU.
    """
    generators = _generators(seeds, prompts)
    tokens = _changed(pipeline, prompts, changes, generators)
    texts = {row.numpy().tobytes(): row for row in tokens}
    numbers = {text: number for number, text in enumerate(texts)}
    embedded = pipeline.embed(torch.stack([*texts.values()]) if texts else pipeline.tokens([""]))

    def conditions(places: Sequence[int], count: int) -> Conditions:
        found = embedded[[numbers[tokens[place].numpy().tobytes()] for place in places]]
        if embedding_noise > 0:
            for embeds, place in zip(found.embeds, places[:count], strict=False):
                embeds += embedding_noise * torch.randn(embeds.shape, generator=generators[place])
        return found

    return _drawn(pipeline, seeds, conditions, steps, guidance, on_images, precision, sampler)


@torch.inference_mode()
def draw_embedded(
    pipeline: TextPipeline,
    seeds: Sequence[int],
    embedded: Conditions,
    steps: int = 50,
    guidance: float = 7.5,
    *,
    on_images: Callable[[float], object] = lambda count: None,
    precision: Precision = "float32",
    sampler: Sampler = "ddim",
) -> Tensor:
    """Draw one image per seed and row of `embedded`, on the CPU; all else as of `draw`."""

    def conditions(places: Sequence[int], count: int) -> Conditions:
        del count
        return embedded[[*places]]

    return _drawn(pipeline, seeds, conditions, steps, guidance, on_images, precision, sampler)


def _drawn(
    pipeline: TextPipeline,
    seeds: Sequence[int],
    conditions_of: Callable[[Sequence[int], int], Conditions],
    steps: int,
    guidance: float,
    on_images: Callable[[float], object],
    precision: Precision,
    sampler: Sampler,
) -> Tensor:
    """See `draw`; the conditions are those of places, of which so many are new, see `fixed_rows`."""
    device = pipeline.vae.device
    precision = resolved(precision, device)
    nothing = pipeline.unconditional(pipeline.embed(pipeline.tokens([""])))
    images = [torch.empty((0, *pipeline.image_shape), dtype=torch.uint8)]
    for places, count in fixed_rows(len(seeds), rows_at_a_time(pipeline.image_shape, device)):
        noise = initial_noise([seeds[place] for place in places], pipeline.latent_shape)
        conditions = conditions_of(places, count)
        both = conditions
        if compares(pipeline, guidance):
            both = Conditions.cat([nothing.expand(len(conditions)), conditions])
        scheduler = pipeline.sampling_scheduler(sampler, steps)  # of each batch: some look back
        share = count / len(scheduler.timesteps)
        with autocast(precision, device):  # around all steps: weights are cast once
            predict = guided(pipeline, both.to(device), guidance)
            latents = denoise(predict, scheduler, noise.to(device), lambda s=share: on_images(s))
        images.append(pipeline.decode(latents)[:count].cpu())
    return torch.cat(images)


def compares(pipeline: TextPipeline, guidance: float) -> bool:
    """Whether guidance takes a second prediction at each step, without text."""
    return guidance > 1 and pipeline.CLASSIFIER_FREE


def changed_prompts(
    pipeline: TextPipeline, seeds: Sequence[int], prompts: Sequence[str], changes: Changes
) -> list[str]:
    """What `draw` tells the text encoder in place of each prompt, as the tokenizer spells it."""
    tokens = _changed(pipeline, prompts, changes, _generators(seeds, prompts))
    return pipeline.parts["tokenizer"].batch_decode(tokens, skip_special_tokens=True)


def _generators(seeds: Sequence[int], prompts: Sequence[str]) -> list[torch.Generator]:
    return [generator("prompt", seed, prompt) for seed, prompt in zip(seeds, prompts, strict=True)]


def _changed(
    pipeline: TextPipeline, prompts: Sequence[str], changes: Changes, generators: Sequence[torch.Generator]
) -> Tensor:
    """The tokens of prompts, changed, int64 (N, L); each has a generator of its own."""
    tokens, vocabulary = pipeline.tokens(prompts), pipeline.vocabulary(changes)
    if vocabulary is None:
        return tokens
    rows = [change(row[None], changes, vocabulary, rng) for row, rng in zip(tokens, generators, strict=True)]
    return torch.cat([tokens[:0], *rows])


def guided(
    pipeline: TextPipeline,
    conditions: Conditions,
    guidance: float,
    on_both: Callable[[Tensor, Tensor], object] = lambda without, conditional: None,
) -> Callable[[Tensor, Tensor], Tensor]:
    """What `denoise` asks of N latents.

    Args:
        pipeline: its denoiser predicts.
        conditions: N of them; or 2N, none and then those of the prompts.
        guidance: as of `draw`; of N conditions alone it has an effect where the denoiser is given it.
        on_both: is shown the predictions of 2N conditions, without and with text, float32 (N, c, h, w) each.
    """
    denoiser = pipeline.predictor(pipeline.denoiser, conditions, guidance)

    def predict(latents: Tensor, timesteps: Tensor) -> Tensor:
        times = len(conditions) // len(latents)
        found = predict_noise(denoiser, latents.repeat(times, 1, 1, 1), timesteps.repeat(times)).float()
        if times == 1:
            return found
        without, conditional = found.chunk(2)
        on_both(without, conditional)
        return without + guidance * (conditional - without) if guidance > 1 else conditional

    return predict
