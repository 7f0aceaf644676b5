"""Stable Diffusion 3 and 3.5: a transformer conditioned on two CLIP text encoders and, where it is there, T5.

The tokens of both CLIPs stand side by side, filled up with zeros to the width of T5's, which follow them; the pooled
texts of both CLIPs stand side by side as well (Esser et al., 2024, arXiv 2403.03206, section 4). Without T5 zeros stand
for its tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from iet_agc.diffusion.process import Denoiser
from iet_agc.text_to_image.conditions import Conditions
from iet_agc.text_to_image.flow import FlowPipeline
from iet_agc.text_to_image.parts import config_of

__all__ = ["StableDiffusion3"]

#: Tokens that T5 is given: as many as diffusers' pipeline gives it where nothing else is said.
_T5_TOKENS = 256


@dataclass(frozen=True)
class StableDiffusion3(FlowPipeline):
    """Stable Diffusion 3 or 3.5; see `TextPipeline`."""

    NAME: ClassVar[str] = "Stable Diffusion 3"
    STOCK: ClassVar[str] = "StableDiffusion3Pipeline"
    CLASSES: ClassVar[Mapping[str, str | None]] = {
        "transformer": "SD3Transformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "text_encoder_3": "T5EncoderModel",
        "tokenizer": "CLIPTokenizer",
        "tokenizer_2": "CLIPTokenizer",
        "tokenizer_3": "T5Tokenizer",
        "scheduler": None,
    }
    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"text_encoder_3", "tokenizer_3"})
    TOKENIZERS: ClassVar[Mapping[str, str]] = {
        "text_encoder": "tokenizer",
        "text_encoder_2": "tokenizer_2",
        "text_encoder_3": "tokenizer_3",
    }
    MOST_TOKENS: ClassVar[Mapping[str, int]] = {"text_encoder_3": _T5_TOKENS}
    PROJECTIONS: ClassVar[Sequence[str]] = [
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    ]

    #: Positions. diffusers has them as a buffer; a parameter that is frozen is held once, and is in no bundle: of 3.5
    #: they are 0.9 GB.
    FROZEN: ClassVar[Sequence[str]] = ["pos_embed.pos_embed"]

    @classmethod
    def read(cls, folder: Path, index: Mapping[str, Any]) -> Self:
        """See `TextPipeline`."""
        pipeline = super().read(folder, index)
        patches = pipeline.denoiser.pos_embed
        table: Tensor = patches.pos_embed
        del patches.pos_embed
        patches.pos_embed = nn.Parameter(table, requires_grad=False)
        return pipeline

    @staticmethod
    def check_call(denoiser: Any) -> None:
        """See `TextPipeline`."""
        config = denoiser.config
        denoiser(
            hidden_states=torch.zeros(1, config.in_channels, config.sample_size, config.sample_size),
            timestep=torch.zeros(1),
            encoder_hidden_states=torch.zeros(1, 2, config.joint_attention_dim),
            pooled_projections=torch.zeros(1, config.pooled_projection_dim),
        )

    def _misfit_of_transformer(self) -> dict[str, bool]:
        model, vae = config_of(self.denoiser), config_of(self.vae)
        clips = [config_of(self.parts[name]) for name in ("text_encoder", "text_encoder_2")]
        width, pooled = sum(clip.hidden_size for clip in clips), sum(clip.projection_dim for clip in clips)
        lengths = [self.length_of(name) for name in ("text_encoder", "text_encoder_2")]
        t5 = config_of(self.parts["text_encoder_3"]).d_model if "text_encoder_3" in self.parts else None
        return {
            f"its transformer takes {model.in_channels} channels and gives {model.out_channels}, its latents have "
            f"{vae.latent_channels}": not model.in_channels == model.out_channels == vae.latent_channels,
            f"its transformer takes texts of {model.joint_attention_dim} numbers, its text encoders give {width} and "
            f"{t5}": width > model.joint_attention_dim or t5 not in (None, model.joint_attention_dim),
            f"its transformer takes pooled texts of {model.pooled_projection_dim} numbers, its text encoders give "
            f"{pooled}": pooled != model.pooled_projection_dim,
            f"its CLIP text encoders take different numbers of tokens, {lengths}": lengths[0] != lengths[1],
        }

    def encode(self, tokens: Tensor) -> Conditions:
        """See the top."""
        given = self.split_tokens(tokens)
        clips = [
            self.parts[name](given[name], output_hidden_states=True) for name in ("text_encoder", "text_encoder_2")
        ]
        both = torch.cat([clip.hidden_states[-2] for clip in clips], dim=-1)
        width = config_of(self.denoiser).joint_attention_dim
        if "text_encoder_3" in given:
            last = self.parts["text_encoder_3"](given["text_encoder_3"])[0]
        else:
            last = both.new_zeros(len(both), _T5_TOKENS, width)
        embeds = torch.cat([pad(both, (0, width - both.shape[-1])), last], dim=1)
        return Conditions(embeds, torch.cat([clip.text_embeds for clip in clips], dim=-1))

    def predictor(self, denoiser: Denoiser, conditions: Conditions, guidance: float = 1.0) -> Denoiser:
        """See `TextPipeline`."""
        del guidance  # classifier-free

        def predict(latents: Tensor, timesteps: Tensor) -> Any:
            return denoiser(
                hidden_states=latents,
                timestep=timesteps,
                encoder_hidden_states=conditions.embeds,
                pooled_projections=conditions.pooled,
            )

        return predict

    @property
    def latent_size(self) -> tuple[int, int]:
        """See `TextPipeline`."""
        edge = config_of(self.denoiser).sample_size
        return edge, edge

    def made_for(self, shape: tuple[int, int, int]) -> None:
        """Its table of positions, of the size that it was first made for, is a weight; see `TextPipeline`."""
        self.denoiser.register_to_config(sample_size=shape[1] // self.factor)

    @property
    def multiple(self) -> int:
        """See `TextPipeline`."""
        return config_of(self.denoiser).patch_size

    @property
    def most_latents(self) -> int | None:
        """See `TextPipeline`."""
        return config_of(self.denoiser).pos_embed_max_size * self.multiple
