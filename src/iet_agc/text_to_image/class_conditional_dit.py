"""DiT over latents (Peebles and Xie, ICCV 2023, arXiv 2212.09748): a transformer conditioned on a class.

Its texts are classes: a name that its model_index.json has for one ("tench", one of those that a comma parts), or a
number. No text stands for the class of none, with which DiT was trained for guidance. Every block has an embedding of
the class of its own, so that there is no embedded text, and a condition is the class's number.

Where it predicts a variance as well, as DiT-XL does, that is not trained on: the loss is that of the noise alone, and
no sampler here takes the variance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import DDIMScheduler, DiTPipeline
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from safetensors.torch import save_file
from torch import Tensor

from iet_agc.diffusion.dit import with_classes_kept
from iet_agc.diffusion.process import Denoiser
from iet_agc.runtime.errors import UserError
from iet_agc.text_to_image.conditions import Conditions
from iet_agc.text_to_image.family import TextPipeline
from iet_agc.text_to_image.lora import FILE_NAME, factors
from iet_agc.text_to_image.parts import config_of, misfit_of_schedule, read_noise_schedule

__all__ = ["ClassConditionalDiT"]

#: What the class was called before it had a name of its own; diffusers' oldest pipelines still say so.
_OLD_NAME = "Transformer2DModel"


@dataclass(frozen=True)
class ClassConditionalDiT(TextPipeline):
    """DiT over latents, such as facebook/DiT-XL-2-256; see `TextPipeline`.

    Attributes:
        names: names of each class, parted by commas, as its model_index.json has them; none, if it has none.
    """

    names: Mapping[int, str] = field(default_factory=dict[int, str])

    NAME: ClassVar[str] = "DiT"
    STOCK: ClassVar[str] = "DiTPipeline"
    DENOISER: ClassVar[str] = "transformer"
    CLASSES: ClassVar[Mapping[str, str | None]] = {
        "transformer": "DiTTransformer2DModel",
        "vae": "AutoencoderKL",
        "scheduler": None,  # of any kind: only its noise schedule matters
    }
    TOKENIZERS: ClassVar[Mapping[str, str]] = {}
    PROJECTIONS: ClassVar[Sequence[str]] = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"]

    @classmethod
    def fits(cls, index: Mapping[str, Any]) -> bool:
        """By the pipeline's name where the transformer has that which it had before; see `TextPipeline`."""
        old = cls.has(index, cls.DENOISER) and index[cls.DENOISER][1] == _OLD_NAME
        return super().fits(index) or (old and index.get("_class_name") == cls.STOCK)

    @classmethod
    def takes(cls, part: str, kind: str) -> bool:
        """See `TextPipeline`."""
        return super().takes(part, kind) or (part == cls.DENOISER and kind == _OLD_NAME)

    @classmethod
    def read(cls, folder: Path, index: Mapping[str, Any]) -> Self:
        """See `TextPipeline`."""
        pipeline = super().read(folder, index)
        with_classes_kept(pipeline.denoiser)
        return replace(pipeline, names=_names(index.get("id2label") or {}))

    @staticmethod
    def read_scheduler(folder: Path) -> DDIMScheduler:
        """See `TextPipeline`."""
        return read_noise_schedule(folder)

    @staticmethod
    def check_call(denoiser: Any) -> None:
        """See `TextPipeline`."""
        config = denoiser.config
        latents = torch.zeros(1, config.in_channels, config.sample_size, config.sample_size)
        denoiser(latents, torch.zeros(1), class_labels=torch.zeros(1, dtype=torch.int64))

    def misfit(self) -> str | None:
        """See `TextPipeline`."""
        model, vae = config_of(self.denoiser), config_of(self.vae)
        channels, gives = vae.latent_channels, model.out_channels or model.in_channels
        checks = {
            f"its transformer takes {model.in_channels} channels and gives {gives}, its latents have {channels}": (
                model.in_channels != channels or gives not in (channels, 2 * channels)
            ),
            "its transformer has no classes": not model.num_embeds_ada_norm,
            f"its model_index.json names class {max(self.names, default=0)}, its transformer has "
            f"{model.num_embeds_ada_norm}": max(self.names, default=-1) >= (model.num_embeds_ada_norm or 0),
            **misfit_of_schedule(self.scheduler),
        }
        return next((reason for reason, wrong in checks.items() if wrong), None)

    # -- classes

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """The class of each text, int64 (N, 1); of no text, that of none; see `TextPipeline`.

        Raises:
            UserError: a text that names no class.
        """
        numbers = self._numbers
        if odd := [text for text in texts if text not in numbers]:
            example = f"such as {next(iter(numbers))!r}, " if self.names else ""
            known = f"a class's name, {example}or number, 0 to {config_of(self.denoiser).num_embeds_ada_norm - 1}"
            raise UserError(f"{odd[0]!r} is no class of the pipeline: give {known}")
        return torch.tensor([numbers[text] for text in texts], dtype=torch.int64).reshape(-1, 1)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """The class of each text that names one; a name before a number."""
        names = [(name.strip(), number) for number, names in self.names.items() for name in names.split(",")]
        count = config_of(self.denoiser).num_embeds_ada_norm
        return {**dict(names), **{str(number): number for number in range(count)}, "": count}

    def encode(self, tokens: Tensor) -> Conditions:
        """The number of each class, (N, 1, 1); see `TextPipeline`."""
        return Conditions(tokens[:, :, None].float())

    def embed(self, tokens: Tensor) -> Conditions:
        """There is nothing to wait for, and no part of the pipeline that does it; see `TextPipeline`."""
        return self.encode(tokens.cpu())

    def predictor(self, denoiser: Denoiser, conditions: Conditions, guidance: float = 1.0) -> Denoiser:
        """The noise, without the variance; see `TextPipeline`."""
        del guidance  # classifier-free
        classes = conditions.embeds[:, 0, 0].long()

        def predict(latents: Tensor, timesteps: Tensor) -> Transformer2DModelOutput:
            found = denoiser(latents, timesteps, class_labels=classes).sample
            return Transformer2DModelOutput(sample=found[:, : latents.shape[1]])

        return predict

    # -- sizes

    @property
    def latent_size(self) -> tuple[int, int]:
        """See `TextPipeline`."""
        edge = config_of(self.denoiser).sample_size
        return edge, edge

    @property
    def multiple(self) -> int:
        """It has one size: its positions are those of so many patches; see `TextPipeline`."""
        return config_of(self.denoiser).sample_size

    @property
    def most_latents(self) -> int:
        """See `TextPipeline`."""
        return config_of(self.denoiser).sample_size

    def made_for(self, shape: tuple[int, int, int]) -> None:
        """It draws them already; see `TextPipeline`."""
        assert shape == self.image_shape

    def about(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `TextPipeline`."""
        rest = {"predicts": config_of(self.scheduler).prediction_type}
        return rest, {"abar": self.scheduler.alphas_cumprod}

    # -- files

    def stock(self) -> DiTPipeline:
        """With the names of its classes; see `TextPipeline`."""
        pipeline = DiTPipeline(**self.parts, id2label=dict(self.names))
        pipeline.register_to_config(id2label={str(number): names for number, names in self.names.items()})
        return pipeline

    def save_lora(self, folder: Path) -> None:
        """By the names that diffusers has for a transformer's; its DiT itself reads no LoRA. See `TextPipeline`."""
        if found := factors(self.denoiser):
            tensors = {f"{self.DENOISER}.{name}": value.contiguous() for name, value in found.items()}
            save_file(tensors, folder / FILE_NAME, metadata={"format": "pt"})


def _names(described: Any) -> dict[int, str]:
    """The names of classes in a model_index.json: {number as text: names}.

    Raises:
        UserError: something else.
    """
    if not isinstance(described, dict):
        raise UserError("id2label of its model_index.json is no object of classes and names")
    entries: list[tuple[Any, Any]] = [*described.items()]
    if odd := [key for key, value in entries if not (key.isdecimal() and isinstance(value, str))]:
        raise UserError(f"id2label of its model_index.json has {odd[0]!r}, which is no class with a name")
    return {int(key): value for key, value in entries}
