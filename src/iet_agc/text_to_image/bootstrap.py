"""A small text-to-image pipeline from nothing but a training set: what text-to-image starts from where no model is.

Its layout is Stable Diffusion's. The tokenizer knows the words of the captions; the VAE is trained here, on the
training images alone; text encoder and U-Net have random weights, and learn in a run that starts from the pipeline.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from torch.nn.functional import mse_loss

from iet_agc.config.data_settings import DataSettings
from iet_agc.data.datasets.registry import load_dataset
from iet_agc.data.image_set import ImageSet
from iet_agc.diffusion.process import NUM_TIMESTEPS, to_float
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.extras import require
from iet_agc.runtime.files import digest, hashes_below, only_one, put_back, replacing_folder
from iet_agc.runtime.precision import autocast, resolved
from iet_agc.runtime.progress import progress_bar, say
from iet_agc.runtime.reading import read_object
from iet_agc.runtime.result_folder import ResultFolder
from iet_agc.runtime.seal import damaged, unsealed, write_sealed
from iet_agc.runtime.seeds import generator, seeded

__all__ = ["build_pipeline", "decibels"]

#: Says what a folder was built from.
_MARK = "built.json"
_TEXT_WIDTH, _TEXT_LENGTH = 128, 32
_HEADS = 2  # of 64 numbers, as in Stable Diffusion 2
_VAE_WIDTHS, _LATENTS = (32, 32, 64), 8
_UNET_WIDTHS = (64, 128)
_GROUPS = 8
_BATCH, _RATE = 32, 2e-3
#: Latents are worth little unless they are smooth: with 1e-5 reconstructions are as good, and samples are smears.
_KL = 1e-3
_CPU = torch.device("cpu")


def build_pipeline(data: DataSettings, out: Path, steps: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Write a Stable Diffusion pipeline folder, whole or not at all; one that is there already is left as it is.

    The VAE minimises the squared error of its reconstructions and 1e-3 of the divergence of its latents from a
    standard normal distribution (Rombach et al., 2022, appendix G), from random batches of the training images, half
    of them mirrored; its scaling factor makes latents of the training images deviate by 1.

    Args:
        data: squares of 3 channels and a multiple of 8 pixels, with captions. The VAE learns from the training images,
            each once however often it is planted, and is judged by those held out.
        out: the folder.
        steps: of the VAE, 32 images each.
        seed: of all weights, batches and latents.

    Returns:
        What the folder says in built.json: SHA-256 of the training images and of their captions, steps, seed, and the
        peak signal-to-noise ratio of reconstructions, in decibels, of the training images and of those held out.

    Raises:
        UserError: images without captions or of another shape, a folder that holds anything else or in which another
            process is at work, or `transformers` is not installed.
    """
    require("transformers", "text", "text-to-image")
    train, held_out = load_dataset(data.without_copies())
    _check(train)
    captions = digest(train.captions)
    what = {"images": train.fingerprint, "captions": captions, "steps": steps, "seed": seed}
    put_back(out)
    folder = ResultFolder(out, _MARK, "pipeline")
    folder.check(what)
    if folder.is_whole and (about := _built(out / _MARK)):
        return about
    with only_one(out), seeded("pipeline", seed):
        parts = _pipeline(train)
        vae: Any = parts.vae
        _train_vae(vae, train.images, steps, seed)
        vae.eval().requires_grad_(False)
        vae.register_to_config(scaling_factor=1 / _deviation(vae, train.images))
        about = what | {"train_db": decibels(vae, train.images), "held_out_db": decibels(vae, held_out.images)}
        with replacing_folder(out) as unfinished:
            parts.save_pretrained(unfinished)
            write_sealed(unfinished / _MARK, about, hashes_below(unfinished))
    return about


def _check(images: ImageSet) -> None:
    step = 2 ** (len(_VAE_WIDTHS) + len(_UNET_WIDTHS) - 2)
    if images.captions is None:
        raise UserError(f"{images.name} has no captions: a text-to-image pipeline is built from emoji or laion-10k")
    if images.shape[0] != 3 or images.shape[1] % step or images.shape[1] != images.shape[2]:
        raise UserError(
            f"{images.name} has images of {images.size}, a pipeline takes squares of 3 channels and a multiple of "
            f"{step} pixels: set data.convert_to, such as 3x32x32"
        )


def _built(mark: Path) -> dict[str, Any] | None:
    """What a pipeline that is there says of itself; None where it is not as it was built."""
    about = read_object(mark, "remove it")
    if odd := next(damaged(mark, about, None), None):
        say(f"{odd} is not as it was built: the pipeline is built again")
        return None
    say(f"{mark.parent} is built already")
    return unsealed(mark, about, "build it again")


# -- parts


def _pipeline(images: ImageSet) -> StableDiffusionPipeline:
    """All parts, of random weights from torch's global generator."""
    from transformers import CLIPTextConfig, CLIPTextModel

    assert images.captions is not None
    tokenizer = _tokenizer([text for texts in images.captions for text in texts])
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=_TEXT_WIDTH,
        intermediate_size=2 * _TEXT_WIDTH,
        projection_dim=_TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=_HEADS,
        max_position_embeddings=_TEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    levels = len(_VAE_WIDTHS)
    vae = AutoencoderKL(
        block_out_channels=_VAE_WIDTHS,  # pyright: ignore[reportArgumentType]
        down_block_types=("DownEncoderBlock2D",) * levels,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * levels,  # pyright: ignore[reportArgumentType]
        latent_channels=_LATENTS,
        norm_num_groups=_GROUPS,
        sample_size=images.shape[1],
    )
    unet = UNet2DConditionModel(
        sample_size=images.shape[1] // 2 ** (levels - 1),
        in_channels=_LATENTS,
        out_channels=_LATENTS,
        layers_per_block=1,
        block_out_channels=_UNET_WIDTHS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=_GROUPS,
        attention_head_dim=_HEADS,  # which diffusers takes for their number
        cross_attention_dim=_TEXT_WIDTH,
    )
    scheduler = DDIMScheduler(
        num_train_timesteps=NUM_TIMESTEPS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",  # at high noise an error of the noise is a large one of the image
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae,
        CLIPTextModel(text),
        tokenizer,
        unet,
        scheduler,  # pyright: ignore[reportArgumentType]
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )


def _tokenizer(texts: Sequence[str]) -> Any:
    """CLIP's kind, for any text: every word of these texts is one token, and others are cut into parts of such words.

    Byte pairs are merged by how often they stand in the texts (Sennrich et al., 2016, algorithm 1), equal ones in the
    order of their letters: the library's own training gives other numbers at each call.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    marks = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    cut = CLIPTokenizer(vocab=marks, merges=[]).backend_tokenizer
    words = Counter(
        word for text in texts for word, _ in cut.pre_tokenizer.pre_tokenize_str(cut.normalizer.normalize_str(text))
    )
    letters = sorted(ByteLevel.alphabet())
    merges: Any = _merges(words)
    entries = [*marks, *letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = {entry: number for number, entry in enumerate(dict.fromkeys(entries))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=_TEXT_LENGTH)


def _merges(words: Counter[str]) -> list[tuple[str, str]]:
    """Pairs to merge, in this order, until every word is one; words by how often they occur."""
    cut = {word: [*word[:-1], f"{word[-1]}</w>"] for word in words}
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in cut.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        cut = {word: _merged(parts, best) for word, parts in cut.items() if len(parts) > 1}


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


# -- the VAE


def _train_vae(vae: Any, images: Tensor, steps: int, seed: int) -> None:
    """Adam, its rate up over the first 5 % of the steps and down to zero over all, as half a cosine."""
    optimizer = torch.optim.Adam(vae.parameters(), lr=_RATE, fused=True)
    precision = resolved("auto", _CPU)
    with progress_bar("VAE", steps) as bar:
        for step in range(steps):
            for group in optimizer.param_groups:
                rise = min(1.0, (step + 1) / max(1, steps // 20))
                group["lr"] = _RATE * rise * (1 + math.cos(math.pi * step / steps)) / 2
            batch, rng = _batch(images, seed, step)
            with autocast(precision, _CPU):  # of each step its own, since it keeps the weights that it casts
                found = vae.encode(batch).latent_dist
                mean, deviation = found.mean.float(), found.std.float()
                latents = mean + deviation * torch.randn(mean.shape, generator=rng)
                error = mse_loss(vae.decode(latents).sample.float(), batch)
            divergence = (mean.square() + deviation.square() - 1 - 2 * deviation.log()).mean() / 2
            optimizer.zero_grad()
            (error + _KL * divergence).backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            bar.update()


def _batch(images: Tensor, seed: int, step: int) -> tuple[Tensor, torch.Generator]:
    """Float (B, C, H, W) of random images, half of them mirrored, and what drew them."""
    rng = generator("vae", seed, step)
    batch = to_float(images[torch.randint(len(images), (_BATCH,), generator=rng)])
    return torch.cat([batch[::2], batch[1::2].flip(-1)]), rng


@torch.inference_mode()
def _deviation(vae: Any, images: Tensor) -> float:
    """Root mean square of the latents' mean and noise about their total mean."""
    moments = [vae.encode(to_float(part)).latent_dist for part in images.split(_BATCH)]
    mean, deviation = (torch.cat([getattr(each, name) for each in moments]).double() for name in ("mean", "std"))
    return float((mean.var() + deviation.square().mean()).sqrt())


@torch.inference_mode()
def decibels(vae: Any, images: Tensor) -> float | None:
    """Peak signal-to-noise ratio of reconstructions of images uint8 (N, C, H, W), in dB; None of no images."""
    if not len(images):
        return None
    batches = [to_float(part) for part in images.split(_BATCH)]
    restored = [vae.decode(vae.encode(batch).latent_dist.mean).sample.clamp(-1, 1) for batch in batches]
    errors = [(one - other).double().square().flatten() for one, other in zip(batches, restored, strict=True)]
    return 10 * math.log10(4 / float(torch.cat(errors).mean()))
