"""Stable Diffusion 1 and 2: a U-Net conditioned on the tokens of one text encoder.

z_t = sqrt(abar_t) z + sqrt(1 - abar_t) noise
v = sqrt(abar_t) noise - sqrt(1 - abar_t) z            what a model predicts in place of noise, if its scheduler says so

Rombach et al., 2022; Salimans and Ho, 2022, appendix D.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from iet_agc.diffusion.process import Denoiser
from iet_agc.text_to_image.conditions import Conditions
from iet_agc.text_to_image.family import TextPipeline
from iet_agc.text_to_image.lora import factors
from iet_agc.text_to_image.parts import config_of, misfit_of_schedule, read_noise_schedule

__all__ = ["StableDiffusion", "UNetAndEncoder", "UNetPipeline"]

#: What a U-Net may be conditioned on beside texts, by the names in its description.
_EXTRAS = ("addition_embed_type", "class_embed_type", "time_cond_proj_dim")


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


@dataclass(frozen=True)
class UNetPipeline(TextPipeline):
    """What families with a U-Net have in common: a noise schedule, sampled by DDIM, and noise or v predicted."""

    DENOISER: ClassVar[str] = "unet"

    @staticmethod
    def read_scheduler(folder: Path) -> DDIMScheduler:
        """See `TextPipeline`."""
        return read_noise_schedule(folder)

    @property
    def latent_size(self) -> tuple[int, int]:
        """See `TextPipeline`."""
        size = config_of(self.denoiser).sample_size
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return height, width

    def made_for(self, shape: tuple[int, int, int]) -> None:
        """See `TextPipeline`."""
        # with the version, since stock diffusers overrules sizes under 64 of U-Nets written before 0.9
        self.denoiser.register_to_config(sample_size=shape[1] // self.factor, _diffusers_version=diffusers.__version__)

    @property
    def multiple(self) -> int:
        """Each level but the last halves; see `TextPipeline`."""
        return 2 ** (len(config_of(self.denoiser).block_out_channels) - 1)

    def about(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `TextPipeline`."""
        predicts = config_of(self.scheduler).prediction_type
        rest = {"predicts": predicts, "unet_dropout": config_of(self.denoiser).dropout}
        return rest, {"abar": self.scheduler.alphas_cumprod}

    def misfit(self) -> str | None:
        """See `TextPipeline`."""
        unet, vae = config_of(self.denoiser), config_of(self.vae)
        checks = {
            f"its U-Net takes {unet.in_channels} channels and gives {unet.out_channels}, its latents have "
            f"{vae.latent_channels}": not unet.in_channels == unet.out_channels == vae.latent_channels,
            **self._misfit_of_texts(),
            "its tokenizer does not say how long texts may be": not all(
                isinstance(self.parts[name].model_max_length, int) for name in self.TOKENIZERS.values()
            ),
            **misfit_of_schedule(self.scheduler),
        }
        return next((reason for reason, wrong in checks.items() if wrong), None)

    @abstractmethod
    def _misfit_of_texts(self) -> dict[str, bool]:
        """What may be wrong about the conditioning, and whether it is."""


@dataclass(frozen=True)
class StableDiffusion(UNetPipeline):
    """Stable Diffusion 1 or 2."""

    NAME: ClassVar[str] = "Stable Diffusion 1 or 2"
    STOCK: ClassVar[str] = "StableDiffusionPipeline"
    CLASSES: ClassVar[Mapping[str, str | None]] = {
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
        "scheduler": None,  # of any kind: only its noise schedule matters
    }
    TOKENIZERS: ClassVar[Mapping[str, str]] = {"text_encoder": "tokenizer"}
    #: Of the U-Net, and of CLIP's text encoder.
    PROJECTIONS: ClassVar[Sequence[str]] = [
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("q_proj", "k_proj", "v_proj", "out_proj"),
    ]

    @staticmethod
    def check_call(denoiser: Any) -> None:
        """One that is conditioned on more is refused by `misfit`, in better words; see `TextPipeline`."""
        config, edge = denoiser.config, denoiser.config.sample_size
        if any(config.get(name) for name in _EXTRAS):
            return
        latents = torch.zeros(1, config.in_channels, edge, edge)
        denoiser(latents, torch.zeros(1), encoder_hidden_states=torch.zeros(1, 2, config.cross_attention_dim))

    def _misfit_of_texts(self) -> dict[str, bool]:
        unet, text = config_of(self.denoiser), config_of(self.text_encoder)
        extras = [name for name in _EXTRAS if unet.get(name)]
        return {
            f"its U-Net takes texts of {unet.cross_attention_dim} numbers, its text encoder gives {text.hidden_size}": (
                unet.cross_attention_dim != text.hidden_size
            ),
            f"its U-Net is conditioned on more than texts ({', '.join(extras)})": bool(extras),
        }

    def encode(self, tokens: Tensor) -> Conditions:
        """See `TextPipeline`."""
        return Conditions(self.text_encoder(tokens)[0])

    def predictor(self, denoiser: Denoiser, conditions: Conditions, guidance: float = 1.0) -> Denoiser:
        """See `TextPipeline`."""
        del guidance  # classifier-free

        def predict(latents: Tensor, timesteps: Tensor) -> Any:
            return denoiser(latents, timesteps, encoder_hidden_states=conditions.embeds)

        return predict

    def with_trained(self, model: Any) -> "StableDiffusion":
        """The same with another U-Net, or with those of a `UNetAndEncoder`."""
        if isinstance(model, UNetAndEncoder):
            trained = {"unet": model.unet, "text_encoder": model.text_encoder}
            return replace(self, parts={**self.parts, **trained})
        return super().with_trained(model)

    def stock(self) -> StableDiffusionPipeline:
        """Without a safety checker: whoever deploys the model adds one; see `TextPipeline`."""
        return StableDiffusionPipeline(
            **self.parts,
            safety_checker=None,  # pyright: ignore[reportArgumentType]
            feature_extractor=None,  # pyright: ignore[reportArgumentType]
            requires_safety_checker=False,
        )

    def save_lora(self, folder: Path) -> None:
        """Those of the text encoder, too, if it has any; see `TextPipeline`."""
        if found := factors(self.denoiser):
            of_text: Any = factors(self.text_encoder)  # tensors, which diffusers' annotation leaves out
            StableDiffusionPipeline.save_lora_weights(folder, dict(found), of_text)
