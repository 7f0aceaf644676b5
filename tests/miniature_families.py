"""Text-to-image pipelines of random weights of the families that came after Stable Diffusion 2; 16 x 16 pixels."""

import string
from pathlib import Path
from typing import Any

import torch

from tests.miniature import WORDS, tokenizer

VAE: dict[str, Any] = {
    "block_out_channels": (8, 16), "down_block_types": ("DownEncoderBlock2D",) * 2, "latent_channels": 4,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 4, "sample_size": 16, "scaling_factor": 0.3,
}  # fmt: skip
#: As those of transformers have it: no convolution around the latents, and a shift.
SHIFTED: dict[str, Any] = {"shift_factor": 0.15, "use_quant_conv": False, "use_post_quant_conv": False}


def t5_tokenizer(length: int = 24) -> Any:
    """T5's kind, of single letters, digits and a few words."""
    from transformers import T5Tokenizer

    marks = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = [(letter, -4.0) for letter in string.ascii_lowercase + string.digits]
    words = [(f"▁{word}", -1.0) for word in WORDS if len(word) > 1]
    return T5Tokenizer(vocab=[*marks, *letters, *words], extra_ids=0, model_max_length=length)


def _clip(kind: Any, width: int, projection: int) -> Any:
    from transformers import CLIPTextConfig

    words = tokenizer()
    return kind(
        CLIPTextConfig(
            vocab_size=len(words), hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=16, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1,
            pad_token_id=len(words) - 1, projection_dim=projection,
        )
    )  # fmt: skip


def _t5(width: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    words = t5_tokenizer()
    return T5EncoderModel(
        T5Config(vocab_size=len(words), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.1)
    )


def save_xl(folder: Path, seed: int = 0, zeros: bool = True, **changes: Any) -> Path:
    """Stable Diffusion XL; further arguments change its U-Net."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    unet: dict[str, Any] = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "block_out_channels": (32, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "norm_num_groups": 8, "attention_head_dim": 8,
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 24,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 12,
    }  # fmt: skip
    schedule = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    )
    second = tokenizer()
    second.pad_token = "a</w>"  # as there: it is not the end of the text
    pipeline: Any = StableDiffusionXLPipeline
    pipeline(
        AutoencoderKL(**VAE), _clip(CLIPTextModel, 8, 8), _clip(CLIPTextModelWithProjection, 16, 12), tokenizer(),
        second, UNet2DConditionModel(**(unet | changes)), schedule, force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def save_sd3(folder: Path, seed: int = 0, with_t5: bool = True, shift: float = 3.0, **changes: Any) -> Path:
    """Stable Diffusion 3; further arguments change its transformer."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextModelWithProjection

    torch.manual_seed(seed)
    transformer: dict[str, Any] = {
        "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2,
        "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 32, "caption_projection_dim": 16,
        "pooled_projection_dim": 20, "pos_embed_max_size": 12, "qk_norm": "rms_norm",
    }  # fmt: skip
    pipeline: Any = StableDiffusion3Pipeline
    pipeline(
        transformer=SD3Transformer2DModel(**(transformer | changes)),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=AutoencoderKL(**VAE, **SHIFTED),
        text_encoder=_clip(CLIPTextModelWithProjection, 8, 8),
        tokenizer=tokenizer(),
        text_encoder_2=_clip(CLIPTextModelWithProjection, 16, 12),
        tokenizer_2=tokenizer(),
        text_encoder_3=_t5(32) if with_t5 else None,
        tokenizer_3=t5_tokenizer() if with_t5 else None,
    ).save_pretrained(folder)
    return folder


def save_flux(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Flux, with guidance that it is given; further arguments change its transformer."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel

    torch.manual_seed(seed)
    transformer: dict[str, Any] = {
        "patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 8, "guidance_embeds": True,
        "axes_dims_rope": (4, 4, 8),
    }  # fmt: skip
    pipeline: Any = FluxPipeline
    pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=8,
            max_image_seq_len=64,
        ),
        vae=AutoencoderKL(**VAE, **SHIFTED),
        text_encoder=_clip(CLIPTextModel, 8, 8),
        tokenizer=tokenizer(),
        text_encoder_2=_t5(32),
        tokenizer_2=t5_tokenizer(),
        transformer=FluxTransformer2DModel(**(transformer | changes)),
    ).save_pretrained(folder)  # fmt: skip
    return folder


#: Classes of `save_dit`: one has two names, one none.
CLASS_NAMES = {0: "dog, hound", 1: "bird"}


def save_dit(folder: Path, seed: int = 0, names: dict[int, str] | None = CLASS_NAMES, **changes: Any) -> Path:
    """DiT over latents that predicts a variance as well; further arguments change its transformer."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(seed)
    transformer: dict[str, Any] = {
        "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 2,
        "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 3, "norm_num_groups": 4,
    }  # fmt: skip
    stock: Any = DiTPipeline
    pipeline = stock(DiTTransformer2DModel(**(transformer | changes)), AutoencoderKL(**VAE), DDIMScheduler())
    if names is not None:
        pipeline.register_to_config(id2label={str(number): name for number, name in names.items()})
    pipeline.save_pretrained(folder)
    return folder


def assert_alike(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Images uint8 that are equal but for a rounding of the last bit of a few pixels."""
    off = (ours.int() - theirs.int()).abs()
    assert off.max() <= 1
    assert (off > 0).float().mean() < 0.01
    assert ours.float().std() > 10
