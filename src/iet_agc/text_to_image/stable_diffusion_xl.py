"""Stable Diffusion XL: a U-Net conditioned on the tokens of two text encoders, a pooled text, and sizes.

The six numbers beside the pooled text are the height and width before scaling, the top and left of the crop, and the
height and width to draw (Podell et al., 2023, arXiv 2307.01952, section 2.2). Here an image has one size, in training
as in drawing, and no crop: what diffusers' pipeline takes where nothing else is said.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from iet_agc.diffusion.process import Denoiser
from iet_agc.text_to_image.conditions import Conditions
from iet_agc.text_to_image.parts import config_of
from iet_agc.text_to_image.stable_diffusion import UNetPipeline

__all__ = ["StableDiffusionXL"]

#: Height, width, top, left, height, width.
_SIZES = 6


@dataclass(frozen=True)
class StableDiffusionXL(UNetPipeline):
    """Stable Diffusion XL; see `TextPipeline`.

    Attributes:
        zeros: whether zeros stand for no text; else the empty text, embedded.
    """

    zeros: bool = True

    NAME: ClassVar[str] = "Stable Diffusion XL"
    STOCK: ClassVar[str] = "StableDiffusionXLPipeline"
    CLASSES: ClassVar[Mapping[str, str | None]] = {
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "tokenizer": "CLIPTokenizer",
        "tokenizer_2": "CLIPTokenizer",
        "scheduler": None,  # of any kind: only its noise schedule matters
    }
    TOKENIZERS: ClassVar[Mapping[str, str]] = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
    PROJECTIONS: ClassVar[Sequence[str]] = ["to_q", "to_k", "to_v", "to_out.0"]

    @classmethod
    def fits(cls, index: Mapping[str, Any]) -> bool:
        """With a second text encoder; see `TextPipeline`."""
        return super().fits(index) and "text_encoder_2" in index

    @classmethod
    def read(cls, folder: Path, index: Mapping[str, Any]) -> Self:
        """See `TextPipeline`."""
        return replace(super().read(folder, index), zeros=bool(index.get("force_zeros_for_empty_prompt", True)))

    @staticmethod
    def check_call(denoiser: Any) -> None:
        """One that is conditioned on something else is refused by `misfit`, in better words; see `TextPipeline`."""
        config, edge = denoiser.config, denoiser.config.sample_size
        if config.addition_embed_type != "text_time" or any(config.get(name) for name in _OTHERS):
            return
        pooled = config.projection_class_embeddings_input_dim - _SIZES * config.addition_time_embed_dim
        more = {"text_embeds": torch.zeros(1, pooled), "time_ids": torch.zeros(1, _SIZES)}
        texts = torch.zeros(1, 2, config.cross_attention_dim)
        latents = torch.zeros(1, config.in_channels, edge, edge)
        denoiser(latents, torch.zeros(1), encoder_hidden_states=texts, added_cond_kwargs=more)

    def _misfit_of_texts(self) -> dict[str, bool]:
        unet, vae = config_of(self.denoiser), config_of(self.vae)
        first, second = (config_of(encoder) for encoder in self.encoders.values())
        width, others = first.hidden_size + second.hidden_size, [name for name in _OTHERS if unet.get(name)]
        kind = unet.addition_embed_type
        if kind != "text_time" or others:
            what = ", ".join([f"addition_embed_type {kind}", *others])
            return {f"its U-Net is not conditioned on a text and sizes alone ({what})": True}
        pooled = unet.projection_class_embeddings_input_dim - _SIZES * unet.addition_time_embed_dim
        lengths = {self.length_of(name) for name in self.encoders}
        return {
            f"its U-Net takes texts of {unet.cross_attention_dim} numbers, its text encoders give {width}": (
                unet.cross_attention_dim != width
            ),
            f"its U-Net takes pooled texts of {pooled} numbers, its text encoder gives {second.projection_dim}": (
                pooled != second.projection_dim
            ),
            f"its text encoders take different numbers of tokens, {sorted(lengths)}": len(lengths) > 1,
            "its VAE has a mean and deviation of latents": vae.get("latents_mean") is not None,
        }

    def encode(self, tokens: Tensor) -> Conditions:
        """The last hidden layer but one of each encoder, side by side; see `TextPipeline`."""
        given = self.split_tokens(tokens)
        found = [self.encoders[name](given[name], output_hidden_states=True) for name in given]
        return Conditions(torch.cat([each.hidden_states[-2] for each in found], dim=-1), found[-1].text_embeds)

    def unconditional(self, empty: Conditions) -> Conditions:
        """See `TextPipeline`."""
        return empty.zeros() if self.zeros else empty

    def predictor(self, denoiser: Denoiser, conditions: Conditions, guidance: float = 1.0) -> Denoiser:
        """See `TextPipeline`."""
        del guidance  # classifier-free

        def predict(latents: Tensor, timesteps: Tensor) -> Any:
            height, width = (edge * self.factor for edge in latents.shape[2:])
            sizes = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)
            more = {"text_embeds": conditions.pooled, "time_ids": sizes.to(latents.device).expand(len(latents), _SIZES)}
            return denoiser(latents, timesteps, encoder_hidden_states=conditions.embeds, added_cond_kwargs=more)

        return predict

    def stock(self) -> StableDiffusionXLPipeline:
        """Without a watermark; see `TextPipeline`."""
        return StableDiffusionXLPipeline(**self.parts, force_zeros_for_empty_prompt=self.zeros, add_watermarker=False)

    def about(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `TextPipeline`."""
        rest, levels = super().about()
        return rest | {"zeros": self.zeros}, levels


#: What else a U-Net may be conditioned on, by the names in its description.
_OTHERS = ("class_embed_type", "time_cond_proj_dim")
