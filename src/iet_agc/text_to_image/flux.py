"""Flux 1: a transformer over patches of 2 x 2 latents, conditioned on T5's tokens and CLIP's pooled text.

Guidance is distilled: the transformer is given the guidance scale and predicts once. In training it is given 1, as
diffusers' scripts do where nothing else is said.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from iet_agc.diffusion.process import NUM_TIMESTEPS, Denoiser
from iet_agc.runtime.errors import UserError
from iet_agc.text_to_image.conditions import Conditions
from iet_agc.text_to_image.flow import FlowPipeline
from iet_agc.text_to_image.parts import config_of

__all__ = ["Flux", "packed", "unpacked"]

#: Latents along an edge of a patch.
_PATCH = 2
#: Tokens that T5 is given: as many as diffusers' pipeline gives it where nothing else is said.
_T5_TOKENS = 512


@dataclass(frozen=True)
class Flux(FlowPipeline):
    """Flux 1, such as FLUX.1-dev; see `TextPipeline`."""

    NAME: ClassVar[str] = "Flux"
    STOCK: ClassVar[str] = "FluxPipeline"
    CLASSES: ClassVar[Mapping[str, str | None]] = {
        "transformer": "FluxTransformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "T5EncoderModel",
        "tokenizer": "CLIPTokenizer",
        "tokenizer_2": "T5Tokenizer",
        "scheduler": None,
    }
    TOKENIZERS: ClassVar[Mapping[str, str]] = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
    MOST_TOKENS: ClassVar[Mapping[str, int]] = {"text_encoder_2": _T5_TOKENS}
    PROJECTIONS: ClassVar[Sequence[str]] = [
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    ]
    CLASSIFIER_FREE: ClassVar[bool] = False

    @staticmethod
    def check_call(denoiser: Any) -> None:
        """See `TextPipeline`."""
        config = denoiser.config
        denoiser(
            hidden_states=torch.zeros(1, 1, config.in_channels),
            timestep=torch.zeros(1),
            guidance=torch.zeros(1) if config.guidance_embeds else None,
            pooled_projections=torch.zeros(1, config.pooled_projection_dim),
            encoder_hidden_states=torch.zeros(1, 2, config.joint_attention_dim),
            txt_ids=torch.zeros(2, 3),
            img_ids=torch.zeros(1, 3),
        )

    def _misfit_of_transformer(self) -> dict[str, bool]:
        model, vae = config_of(self.denoiser), config_of(self.vae)
        clip, t5 = config_of(self.text_encoder).hidden_size, config_of(self.parts["text_encoder_2"]).d_model
        needed, gives = vae.latent_channels * _PATCH**2, model.out_channels or model.in_channels
        return {
            f"its transformer takes {model.in_channels} numbers of a patch and gives {gives}, a patch of its latents "
            f"has {needed}": not model.in_channels == gives == needed,
            f"its transformer takes texts of {model.joint_attention_dim} numbers, its T5 gives {t5}": (
                model.joint_attention_dim != t5
            ),
            f"its transformer takes pooled texts of {model.pooled_projection_dim} numbers, its CLIP gives {clip}": (
                model.pooled_projection_dim != clip
            ),
        }

    def encode(self, tokens: Tensor) -> Conditions:
        """See the top."""
        given = self.split_tokens(tokens)
        pooled = self.text_encoder(given["text_encoder"]).pooler_output
        return Conditions(self.parts["text_encoder_2"](given["text_encoder_2"])[0], pooled)

    def check_guidance(self, guidance: float) -> None:
        """See `TextPipeline`."""
        if guidance > 1 and not config_of(self.denoiser).guidance_embeds:
            raise UserError(f"this Flux is drawn without guidance, and sample.guidance is {guidance:g}: set it to 1")

    def predictor(self, denoiser: Denoiser, conditions: Conditions, guidance: float = 1.0) -> Denoiser:
        """See `TextPipeline`."""
        takes_guidance = config_of(self.denoiser).guidance_embeds

        def predict(latents: Tensor, timesteps: Tensor) -> Transformer2DModelOutput:
            height, width = latents.shape[2:]
            device = latents.device
            found = denoiser(
                hidden_states=packed(latents),
                timestep=timesteps / NUM_TIMESTEPS,
                guidance=torch.full((len(latents),), guidance, device=device) if takes_guidance else None,
                pooled_projections=conditions.pooled,
                encoder_hidden_states=conditions.embeds,
                txt_ids=torch.zeros(conditions.embeds.shape[1], 3, device=device),
                img_ids=_places(height // _PATCH, width // _PATCH, device),
            )
            return Transformer2DModelOutput(sample=unpacked(found.sample, height, width))

        return predict

    def _how_to_step(self, steps: int) -> dict[str, Any]:
        """Steps of equal length down to 1 / steps, shifted; see `FlowPipeline`."""
        return {"sigmas": np.linspace(1.0, 1 / steps, steps), "mu": self._shift()}

    @property
    def latent_size(self) -> tuple[int, int]:
        """Its VAE says for which size: the transformer does not; see `TextPipeline`."""
        edge = config_of(self.vae).sample_size // self.factor
        return edge, edge

    def made_for(self, shape: tuple[int, int, int]) -> None:
        """See `TextPipeline`."""
        self.vae.register_to_config(sample_size=shape[1])

    @property
    def multiple(self) -> int:
        """See `TextPipeline`."""
        return _PATCH


def packed(latents: Tensor) -> Tensor:
    """Latents (N, c, h, w) as patches (N, h / 2 x w / 2, 4 c), row by row; of a patch channel by channel."""
    count, channels, height, width = latents.shape
    patches = latents.reshape(count, channels, height // _PATCH, _PATCH, width // _PATCH, _PATCH)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(count, -1, channels * _PATCH**2)


def unpacked(patches: Tensor, height: int, width: int) -> Tensor:
    """What `packed` made of latents (N, c, `height`, `width`)."""
    count, _, numbers = patches.shape
    rows = patches.reshape(count, height // _PATCH, width // _PATCH, numbers // _PATCH**2, _PATCH, _PATCH)
    return rows.permute(0, 3, 1, 4, 2, 5).reshape(count, -1, height, width)


def _places(height: int, width: int, device: torch.device) -> Tensor:
    """(0, row, column) of each patch, float32 (height x width, 3)."""
    rows, columns = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).float()
