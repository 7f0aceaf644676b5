"""Stable Diffusion, taken apart: the U-Net that learns, and the frozen parts that turn images and texts into numbers.

z = s (mean + std e)                                   latents of an image by the VAE; s is its scaling factor
z_t = sqrt(abar_t) z + sqrt(1 - abar_t) noise
v = sqrt(abar_t) noise - sqrt(1 - abar_t) z            what a model predicts in place of noise, if its scheduler says so
u(z_t, "") + g (u(z_t, text) - u(z_t, ""))             guidance by g, of what the U-Net u predicts

Rombach et al., 2022; Salimans and Ho, 2022, appendix D; Ho and Salimans, 2022, equation 6.
"""

import importlib.util
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from iet_agc.diffusion.dropout import with_batch_dropout
from iet_agc.diffusion.process import NUM_TIMESTEPS, Denoiser, predict_noise, to_float, to_uint8
from iet_agc.diffusion.samplers import (
    Sampler,
    check_images_finite,
    denoise,
    initial_noise,
    rows_at_a_time,
    scheduler_of,
)
from iet_agc.diffusion.unet import check_described, check_finite, checked_scheduler, pipeline_index
from iet_agc.runtime.errors import UserError, in_words
from iet_agc.runtime.files import hashes_below, link_or_copy, replacing_folder
from iet_agc.runtime.fixed_rows import fixed_rows
from iet_agc.runtime.paths import check_pipeline_place
from iet_agc.runtime.precision import Precision, autocast, resolved
from iet_agc.runtime.progress import without_bars
from iet_agc.runtime.reading import check_regular_below
from iet_agc.runtime.seeds import generator, kept_generators
from iet_agc.text_to_image.caption_augmentation import UNCHANGED, Changes, Vocabulary, change, vocabulary_of
from iet_agc.text_to_image.lora import merged, save_lora

__all__ = [
    "TextPipeline",
    "UNetAndEncoder",
    "changed_prompts",
    "check_size",
    "config_of",
    "draw",
    "guided",
    "load_text_pipeline",
    "save_text_pipelines",
    "text_weight_files",
]

#: The parts that a pipeline must have, and what each must be.
_PARTS = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "tokenizer": "CLIPTokenizer",
    "scheduler": None,  # of any kind: only its noise schedule matters
}
_LEARN = ("unet", "text_encoder")
_WORDS = {"unet": "U-Net", "vae": "VAE", "text_encoder": "text encoder", "tokenizer": "tokenizer"}


@dataclass(frozen=True)
class TextPipeline:
    """A Stable Diffusion pipeline; every part is float32 and in evaluation mode, and rests on the CPU.

    Attributes:
        unet: what is trained.
        text_encoder: what may be trained with it.
        vae, tokenizer: what is not.
        scheduler: the pipeline's noise schedule and target, sampled by DDIM.
        cuts: whether texts that are too long lose their end; else they are refused.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: Any
    tokenizer: Any
    scheduler: DDIMScheduler
    cuts: bool = False

    @property
    def factor(self) -> int:
        """Pixels along an edge for one latent."""
        return 2 ** (len(config_of(self.vae).block_out_channels) - 1)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that it draws."""
        size = config_of(self.unet).sample_size
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return config_of(self.vae).out_channels, height * self.factor, width * self.factor

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of the latents of these images."""
        _, height, width = self.image_shape
        return config_of(self.vae).latent_channels, height // self.factor, width // self.factor

    def made_for(self, shape: tuple[int, int, int]) -> None:
        """Have the U-Net say in its configuration that it draws images (C, H, W)."""
        # with the version, since stock diffusers overrules sizes under 64 of U-Nets written before 0.9
        self.unet.register_to_config(sample_size=shape[1] // self.factor, _diffusers_version=diffusers.__version__)

    def with_trained(self, model: Any) -> "TextPipeline":
        """The same with another U-Net, or with those of a `UNetAndEncoder`."""
        if isinstance(model, UNetAndEncoder):
            return replace(self, unet=model.unet, text_encoder=model.text_encoder)
        return replace(self, unet=model)

    def to(self, device: torch.device) -> "TextPipeline":
        """Itself, moved."""
        parts: list[nn.Module] = [self.unet, self.vae, self.text_encoder]
        for part in parts:
            part.to(device)
        return self

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Texts as the text encoder takes them, int64 (N, L), filled up to its length.

        Raises:
            UserError: a text that is longer than that, unless such texts are cut.
        """
        length, rows = self._length, self._ids(texts)
        for text, ids in zip(texts, rows, strict=True):
            if len(ids) > length and not self.cuts:
                raise UserError(
                    f"text {_shortened(text)!r} has {len(ids)} tokens, the text encoder takes {length}: shorten it"
                )
        cut = [ids if len(ids) <= length else [*ids[: length - 1], ids[-1]] for ids in rows]
        return torch.tensor(cut, dtype=torch.int64).reshape(len(rows), length)

    def num_too_long(self, texts: Sequence[str]) -> int:
        """How many texts have more tokens than the text encoder takes."""
        return sum(len(ids) > self._length for ids in self._ids(texts))

    @property
    def _length(self) -> int:
        return min(self.tokenizer.model_max_length, config_of(self.text_encoder).max_position_embeddings)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer([*texts], padding="max_length", max_length=self._length).input_ids if texts else []

    def vocabulary(self, changes: Changes) -> Vocabulary | None:
        """What changing captions takes of the tokenizer; None where nothing is changed.

        Raises:
            UserError: a tokenizer without words, or without the digits of numbers.
        """
        if not changes.any:
            return None
        words = self.tokenizer
        found = vocabulary_of(words.get_vocab(), words.all_special_ids, words.eos_token_id, words.pad_token_id)
        if changes.random_numbers and not len(found.digits):
            raise UserError("the tokenizer has no digits: leave out random_numbers")
        return found

    @torch.inference_mode()
    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens int64 (N, L) to what the U-Net is conditioned on, float32 (N, L, D), on the CPU."""
        device = self.text_encoder.device
        return _in_rows(lambda some: self.text_encoder(some.to(device))[0], tokens, 8)

    @torch.inference_mode()
    def moments(self, images: Tensor) -> Tensor:
        """Images uint8 (N, C, H, W) to mean and deviation of their latents, float32 (N, 2, c, h, w), on the CPU."""
        _, channels, height, width = images.shape
        rows = rows_at_a_time((channels, height, width), self.vae.device)

        def encode(some: Tensor) -> Tensor:
            found: Any = self.vae.encode(to_float(some.to(self.vae.device)))
            return torch.stack([found.latent_dist.mean, found.latent_dist.std], dim=1)

        return _in_rows(encode, images, rows)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (N, c, h, w) to images, uint8 (N, C, H, W)."""
        decoded: Any = self.vae.decode(latents / config_of(self.vae).scaling_factor)  # pyright: ignore
        check_images_finite(decoded.sample)
        return to_uint8(decoded.sample)


class UNetAndEncoder(nn.Module):
    """A U-Net and the text encoder that tells it texts, trained together.

    The encoder stays in evaluation mode: dropout is the U-Net's, which replicas of a batch can share.
    """

    def __init__(self, unet: UNet2DConditionModel, text_encoder: Any) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def train(self, mode: bool = True) -> "UNetAndEncoder":
        """Itself, the U-Net in training mode."""
        super().train(mode)
        self.text_encoder.eval()
        return self

    def forward(self, latents: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor) -> Any:
        """As the U-Net, of what `text_encoder` made of the texts."""
        return self.unet(latents, timesteps, encoder_hidden_states=encoder_hidden_states)


def config_of(part: Any) -> Any:
    """The configuration of a part of a pipeline."""
    return part.config


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _in_rows(function: Callable[[Tensor], Tensor], inputs: Tensor, rows: int) -> Tensor:
    """A function of always as many rows, on the CPU; see `fixed_rows`."""
    return torch.cat([function(inputs[places])[:count].cpu() for places, count in fixed_rows(len(inputs), rows)])


# -- files


def load_text_pipeline(folder: Path) -> TextPipeline:
    """Read a diffusers text-to-image pipeline in the layout of Stable Diffusion 1 and 2.

    Weights are read from safetensors only, and kept in float32.

    Raises:
        UserError: `transformers` is not installed, or the folder is no such pipeline; the message names the part.
    """
    _check_parts(folder)
    check_regular_below(folder)
    if importlib.util.find_spec("transformers") is None:
        raise UserError("text-to-image needs the package transformers: pip install 'iet-agc[text]'")
    from transformers import CLIPTextModel, CLIPTokenizer

    try:
        with without_bars():
            pipeline = TextPipeline(
                with_batch_dropout(_described(UNet2DConditionModel, folder / "unet", _denoises)),
                _described(AutoencoderKL, folder / "vae", _decodes),
                _whole(CLIPTextModel, folder / "text_encoder"),
                CLIPTokenizer.from_pretrained(folder / "tokenizer"),
                _scheduler(folder),
            )
    except Exception as error:  # damaged files make their libraries raise nearly anything
        raise UserError(f"{folder} cannot be read as a text-to-image pipeline: {in_words(error)}") from error
    if reason := _misfit(pipeline):
        raise UserError(f"{folder} cannot be trained as a text-to-image pipeline: {reason}")
    return pipeline


def _check_parts(folder: Path) -> None:
    check_pipeline_place(folder)
    index = pipeline_index(folder)
    if not index:
        raise UserError(f"{folder} is not a diffusers pipeline: it has no model_index.json that can be read")
    for part, kind in _PARTS.items():
        found = index.get(part)
        theirs = found[1] if isinstance(found, list) and len(found) == 2 else None
        if theirs is None or not (folder / part).is_dir():
            raise UserError(f"{folder} is no text-to-image pipeline: it has no {_WORDS.get(part, part)}")
        if kind not in (None, theirs, str(theirs).removesuffix("Fast")):
            what = f"its {_WORDS.get(part, part)} is a {theirs}, not a {kind}"
            raise UserError(f"{folder} is no pipeline like Stable Diffusion 1 or 2: {what}")


def _described(kind: Any, folder: Path, call: Callable[[Any], object]) -> Any:
    """A model of diffusers, whose description was looked at."""
    check_described(kind, folder, call)
    return _whole(kind, folder, low_cpu_mem_usage=False)


#: What a U-Net may be conditioned on beside texts, by the names in its description.
_EXTRAS = ("addition_embed_type", "class_embed_type", "time_cond_proj_dim")


def _denoises(unet: Any) -> None:
    """Call a U-Net as sampling does; one that is conditioned on more is refused by `_misfit`, in better words."""
    config, edge = unet.config, unet.config.sample_size
    if any(config.get(name) for name in _EXTRAS):
        return
    latents = torch.zeros(1, config.in_channels, edge, edge)
    unet(latents, torch.zeros(1), encoder_hidden_states=torch.zeros(1, 2, config.cross_attention_dim))


def _decodes(vae: Any) -> None:
    """Encode and decode something small."""
    edge = 4 * 2 ** len(vae.config.block_out_channels)
    vae(torch.zeros(1, vae.config.in_channels, edge, edge))


def _whole(kind: Any, folder: Path, **options: Any) -> Any:
    """A model whose every weight is in the file; what is missing would be filled with random numbers."""
    with kept_generators():
        loaded: Any = kind.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **options)
    model, found = loaded
    if missing := sorted(found["missing_keys"]):
        raise UserError(f"{folder.name} lacks weights of its configuration: {missing[0]}")
    check_finite(model)
    return model.float().eval().requires_grad_(False)


def _scheduler(folder: Path) -> DDIMScheduler:
    """The noise schedule of a pipeline, with DDIM over latents, which are not clipped."""

    def make() -> Any:
        config: Any = DDIMScheduler.load_config(folder / "scheduler")
        return DDIMScheduler.from_config(config, clip_sample=False, set_alpha_to_one=False)

    return checked_scheduler(folder / "scheduler", make)


def _misfit(pipeline: TextPipeline) -> str | None:
    """Why a pipeline cannot be trained, in words; None if it can."""
    unet, vae, text = (config_of(part) for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder))
    schedule = config_of(pipeline.scheduler)
    extras = [name for name in _EXTRAS if unet.get(name)]
    checks = {
        f"its U-Net takes {unet.in_channels} channels and gives {unet.out_channels}, its latents have "
        f"{vae.latent_channels}": not unet.in_channels == unet.out_channels == vae.latent_channels,
        f"its U-Net takes texts of {unet.cross_attention_dim} numbers, its text encoder gives {text.hidden_size}": (
            unet.cross_attention_dim != text.hidden_size
        ),
        f"its U-Net is conditioned on more than texts ({', '.join(extras)})": bool(extras),
        "its tokenizer does not say how long texts may be": not isinstance(pipeline.tokenizer.model_max_length, int),
        f"it has {schedule.num_train_timesteps} timesteps, not {NUM_TIMESTEPS}": (
            schedule.num_train_timesteps != NUM_TIMESTEPS
        ),
        f"it predicts {schedule.prediction_type!r}, not epsilon or v_prediction": (
            schedule.prediction_type not in ("epsilon", "v_prediction")
        ),
    }
    return next((reason for reason, wrong in checks.items() if wrong), None)


def check_size(pipeline: TextPipeline, shape: tuple[int, int, int], name: str) -> None:
    """Refuse images (C, H, W) that the pipeline cannot encode and halve.

    Raises:
        UserError: the message says which sizes it takes.
    """
    channels = config_of(pipeline.vae).in_channels
    if shape[0] != channels:
        raise UserError(f"{name} has {shape[0]} channels, the pipeline takes {channels}: set data.convert_to")
    step = pipeline.factor * 2 ** (len(config_of(pipeline.unet).block_out_channels) - 1)
    if shape[1] % step or shape[2] % step:
        raise UserError(
            f"{name} is {shape[2]} x {shape[1]}, the pipeline takes multiples of {step}: set data.convert_to, such as "
            f"{channels}x{max(1, round(shape[1] / step)) * step}x{max(1, round(shape[2] / step)) * step}"
        )


def save_text_pipelines(
    pipeline: TextPipeline, models: dict[str, Any], out: Path, own: Mapping[str, Collection[str]] | None = None
) -> dict[str, dict[str, str]]:
    """Write a Stable Diffusion pipeline folder `out`/name per trained model, each whole or not at all.

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
        whole = replace(trained, unet=merged(trained.unet), text_encoder=merged(trained.text_encoder))
        with replacing_folder(out / name, (own or {}).get(name, ())) as unfinished:
            if not written:
                _assembled(whole).save_pretrained(unfinished)
            else:
                learnt = [part for part in _LEARN if getattr(whole, part) is not getattr(pipeline, part)]
                first, files = next(iter(written.items()))
                _link_frozen(out / first, files, unfinished, learnt)
                for part in learnt:
                    getattr(whole, part).save_pretrained(unfinished / part)
            save_lora(unfinished, trained.unet, trained.text_encoder)
            written[name] = hashes_below(unfinished)
    return written


def _assembled(pipeline: TextPipeline) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        pipeline.vae,
        pipeline.text_encoder,
        pipeline.tokenizer,
        pipeline.unet,
        pipeline.scheduler,  # pyright: ignore[reportArgumentType]
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )


def _link_frozen(folder: Path, files: Collection[str], target: Path, learnt: Collection[str]) -> None:
    """Have the files of a pipeline that were written, but for what was trained, in another one as well."""
    for file in map(Path, files):
        if file.parts[0] not in (*learnt, "pytorch_lora_weights.safetensors"):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(folder / file, target / file)


def text_weight_files(folder: Path) -> list[Path]:
    """The files of a text-to-image pipeline that its images follow from."""
    return sorted(file for part in _PARTS for file in (folder / part).iterdir() if file.is_file())


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
        steps: of the sampler: evaluations of the U-Net per image, twice as many with guidance (and one more of "pndm").
        guidance: see above; as in diffusers, there is none up to 1.
        on_images: called after each step with the finished fraction of images, for progress.
        precision: of the U-Net's products.
        sampler: see `samplers.scheduler_of`.
        changes: what is changed about prompts, as a mitigation, by the image's seed and prompt alone.
        embedding_noise: deviation of Gaussian noise on the embedded prompt, as a mitigation, drawn likewise.

    Returns:
        uint8 (N, C, H, W), on the CPU.
    """
    device = pipeline.vae.device
    precision = resolved(precision, device)
    generators = _generators(seeds, prompts)
    tokens, nothing = _changed(pipeline, prompts, changes, generators), pipeline.embed(pipeline.tokens([""]))
    texts = {row.numpy().tobytes(): row for row in tokens}
    embedded = dict(zip(texts, pipeline.embed(torch.stack([*texts.values()])), strict=True)) if texts else {}
    images = [torch.empty((0, *pipeline.image_shape), dtype=torch.uint8)]
    for places, count in fixed_rows(len(seeds), rows_at_a_time(pipeline.image_shape, device)):
        noise = initial_noise([seeds[place] for place in places], pipeline.latent_shape)
        conditions = torch.stack([embedded[tokens[place].numpy().tobytes()] for place in places])
        for row, place in enumerate(places[:count]):
            if embedding_noise > 0:
                conditions[row] += embedding_noise * torch.randn(conditions[row].shape, generator=generators[place])
        both = torch.cat([nothing.expand_as(conditions), conditions]) if guidance > 1 else conditions
        scheduler = scheduler_of(pipeline.scheduler, sampler, steps)  # of each batch: some look back
        share = count / len(scheduler.timesteps)
        with autocast(precision, device):  # around all steps: weights are cast once
            predict = guided(pipeline.unet, both.to(device), guidance)
            latents = denoise(predict, scheduler, noise.to(device), lambda s=share: on_images(s))
        images.append(pipeline.decode(latents)[:count].cpu())
    return torch.cat(images)


def changed_prompts(
    pipeline: TextPipeline, seeds: Sequence[int], prompts: Sequence[str], changes: Changes
) -> list[str]:
    """What `draw` tells the U-Net in place of each prompt, as the tokenizer spells it."""
    tokens = _changed(pipeline, prompts, changes, _generators(seeds, prompts))
    return pipeline.tokenizer.batch_decode(tokens, skip_special_tokens=True)


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
    unet: Denoiser,
    texts: Tensor,
    guidance: float,
    on_both: Callable[[Tensor, Tensor], object] = lambda without, conditional: None,
) -> Callable[[Tensor, Tensor], Tensor]:
    """What `denoise` asks of N latents.

    Args:
        unet: what predicts.
        texts: embedded, (N, L, D); or (2N, L, D), none and then those of the prompts.
        guidance: as of `draw`; of texts alone it has no effect.
        on_both: is shown the predictions of 2N texts, without and with text, float32 (N, c, h, w) each.
    """

    def predict(latents: Tensor, timesteps: Tensor) -> Tensor:
        times = len(texts) // len(latents)
        found = predict_noise(unet, latents.repeat(times, 1, 1, 1), timesteps.repeat(times), texts=texts).float()
        if times == 1:
            return found
        without, conditional = found.chunk(2)
        on_both(without, conditional)
        return without + guidance * (conditional - without) if guidance > 1 else conditional

    return predict
