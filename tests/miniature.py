"""A Stable Diffusion pipeline of random weights that is small enough to train in a test, and images with captions."""

import json
import string
from pathlib import Path
from typing import Any

import torch

from iet_agc.data.grids import save_image
from iet_agc.data.image_set import ImageSet

WORDS = ["a", "red", "blue", "green", "dog", "cat", "bird", "house", "with", "hat"]


def tokenizer(length: int = 16) -> Any:
    """CLIP's kind, of single letters, digits and the words above."""
    from transformers import CLIPTokenizer

    letters = [*string.ascii_lowercase, *string.digits]
    merges, whole = [], []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            if (pair := (parts[0], parts[1])) not in merges:
                merges.append(pair)
            parts = ["".join(parts[:2]), *parts[2:]]
            whole.append(parts[0])
    entries = [*letters, *(f"{letter}</w>" for letter in letters), *dict.fromkeys(whole)]
    vocabulary = {entry: number for number, entry in enumerate(dict.fromkeys(entries))}
    for mark in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[mark] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)


def save_miniature(
    folder: Path, seed: int = 0, prediction: Any = "epsilon", scheduler: Any = None, **changes: Any
) -> Path:
    """Write the pipeline; 16 x 16 pixels, 8 x 8 latents. Further arguments change its U-Net."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    words = tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1,
        pad_token_id=len(words) - 1,
    )  # fmt: skip
    unet: dict[str, Any] = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "block_out_channels": (32, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "norm_num_groups": 8, "attention_head_dim": 8,
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 16,
    }  # fmt: skip
    vae: dict[str, Any] = {
        "block_out_channels": (8, 16), "down_block_types": ("DownEncoderBlock2D",) * 2, "latent_channels": 4,
        "up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 4, "sample_size": 16,
    }  # fmt: skip
    schedule = scheduler or DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=prediction,
    )  # fmt: skip
    pipeline: Any = StableDiffusionPipeline
    pipeline(
        AutoencoderKL(**vae), CLIPTextModel(config), words, UNet2DConditionModel(**(unet | changes)), schedule,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def captioned(count: int = 12, size: int = 16) -> ImageSet:
    """Random images, of one to three captions each."""
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, size, size), generator=rng, dtype=torch.uint8)
    texts = [f"a {WORDS[1 + n % 3]} {WORDS[4 + n % 4]}" for n in range(count)]
    captions = tuple(tuple([text, f"{text} with a hat", "a bird"][: 1 + n % 3]) for n, text in enumerate(texts))
    return ImageSet(pixels, "noise", captions=captions)


def save_captioned(folder: Path, images: ImageSet) -> Path:
    """In the layout of LAION-10k."""
    folder.mkdir()
    names = [f"{number:03d}.png" for number in range(len(images))]
    for name, image in zip(names, images.images, strict=True):
        save_image(image, folder / name)
    assert images.captions is not None
    (folder / "captions.json").write_text(json.dumps(dict(zip(names, images.captions, strict=True))))
    return folder


def save_clip(folder: Path) -> Path:
    """A CLIP model of random weights, with its processor, as transformers saves them."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    words = tokenizer()
    both = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(words), "max_position_embeddings": 16, "eos_token_id": len(words) - 1}
    text |= {"bos_token_id": len(words) - 2, "pad_token_id": len(words) - 1}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(text_config=both | text, vision_config=both | {"image_size": 8, "patch_size": 4}, projection_dim=8)
    )
    model.save_pretrained(folder)
    sizes = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    CLIPProcessor(sizes, words).save_pretrained(folder)
    return folder
