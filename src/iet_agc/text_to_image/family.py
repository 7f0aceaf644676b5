"""What all text-to-image pipelines have in common, and what each family of them says of itself.

z = (mean + std e - m) s         latents of an image by the VAE; s is its scaling factor, m its shift, if it has one

Rombach et al., 2022.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import diffusers
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from iet_agc.diffusion.dropout import with_batch_dropout
from iet_agc.diffusion.process import Denoiser, to_float, to_uint8
from iet_agc.diffusion.samplers import Sampler, check_images_finite, rows_at_a_time, scheduler_of
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.fixed_rows import fixed_rows
from iet_agc.text_to_image.caption_augmentation import Changes, Vocabulary, vocabulary_of
from iet_agc.text_to_image.conditions import Conditions
from iet_agc.text_to_image.lora import factors
from iet_agc.text_to_image.parts import check_vae, config_of, read_described, read_whole

__all__ = ["TextPipeline", "TextTooLongError"]

#: Texts that are embedded at once.
_TEXTS = 8


class TextTooLongError(UserError):
    """A text that has more tokens than a text encoder takes, and is not cut."""


@dataclass(frozen=True)
class TextPipeline(ABC):
    """A text-to-image pipeline; every part is float32 and in evaluation mode, and rests on the CPU.

    A subclass is a family, which says in its class attributes:

    - `NAME`: what it is called.
    - `STOCK`: its class of diffusers.
    - `DENOISER`: the part that learns.
    - `CLASSES`: the class of each part by its name; None where any will do.
    - `OPTIONAL`: parts that may be missing.
    - `TOKENIZERS`: which parts are tokenizers, by the encoders that take their tokens, the first of them CLIP's; none,
      if its texts are classes.
    - `MOST_TOKENS`: how many tokens an encoder is given whose positions have no end.
    - `PROJECTIONS`: the projections of attention, which LoRA gives factors.
    - `FROZEN`: parameters of the denoiser that are never trained.
    - `CLASSIFIER_FREE`: whether guidance compares with a prediction without text; else the denoiser is given it.

    Attributes:
        parts: by the names that diffusers has for them.
        cuts: whether texts that are too long lose their end; else they are refused.
    """

    parts: Mapping[str, Any]
    cuts: bool = False

    NAME: ClassVar[str]
    STOCK: ClassVar[str]
    DENOISER: ClassVar[str]
    CLASSES: ClassVar[Mapping[str, str | None]]
    OPTIONAL: ClassVar[frozenset[str]] = frozenset()
    TOKENIZERS: ClassVar[Mapping[str, str]]
    MOST_TOKENS: ClassVar[Mapping[str, int]] = {}
    PROJECTIONS: ClassVar[Sequence[str]]
    FROZEN: ClassVar[Sequence[str]] = ()
    CLASSIFIER_FREE: ClassVar[bool] = True

    # -- what a family says

    @staticmethod
    @abstractmethod
    def check_call(denoiser: Any) -> None:
        """Call a denoiser without memory as sampling does; see `check_described`."""

    @staticmethod
    @abstractmethod
    def read_scheduler(folder: Path) -> Any:
        """The scheduler of a pipeline folder, for training and sampling."""

    @abstractmethod
    def misfit(self) -> str | None:
        """Why the pipeline cannot be trained, in words; None if it can."""

    @abstractmethod
    def encode(self, tokens: Tensor) -> Conditions:
        """Tokens int64 (N, L), where the encoders are, to what the denoiser is conditioned on."""

    @abstractmethod
    def predictor(self, denoiser: Denoiser, conditions: Conditions, guidance: float = 1.0) -> Denoiser:
        """What a denoiser predicts of noisy latents, each with the condition of its row.

        Args:
            denoiser: this pipeline's, or one like it.
            conditions: one for each latent.
            guidance: of a denoiser that is given it; of others it has no effect.

        Returns:
            (latents (N, c, h, w), timesteps (N,)) -> an output with a field `sample` like the latents.
        """

    @property
    @abstractmethod
    def latent_size(self) -> tuple[int, int]:
        """(h, w) of the latents of the images that it draws."""

    @abstractmethod
    def made_for(self, shape: tuple[int, int, int]) -> None:
        """Have the pipeline say in its configuration that it draws images (C, H, W)."""

    @property
    @abstractmethod
    def multiple(self) -> int:
        """Latents along an edge are a multiple of so many."""

    @abstractmethod
    def about(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What training follows from beside the weights and configurations of models: JSON values, and tensors."""

    @property
    def most_latents(self) -> int | None:
        """Latents along an edge that the denoiser takes at most; None where there is no end."""
        return None

    def check_guidance(self, guidance: float) -> None:
        """Refuse guidance that would have no effect.

        Raises:
            UserError: the denoiser is not made for it.
        """
        del guidance

    def unconditional(self, empty: Conditions) -> Conditions:
        """What stands for no text, of the embedded empty text."""
        return empty

    # -- parts

    @property
    def denoiser(self) -> Any:
        """The part that learns: a module over noisy latents."""
        return self.parts[self.DENOISER]

    @property
    def vae(self) -> AutoencoderKL:
        """Images to latents and back."""
        return self.parts["vae"]

    @property
    def scheduler(self) -> Any:
        """Noise levels, and what is predicted."""
        return self.parts["scheduler"]

    @property
    def text_encoder(self) -> Any:
        """The first of its text encoders, CLIP's."""
        return self.parts["text_encoder"]

    @property
    def encoders(self) -> dict[str, Any]:
        """All its text encoders by name."""
        return {name: self.parts[name] for name in self.TOKENIZERS if name in self.parts}

    @classmethod
    def fits(cls, index: Mapping[str, Any]) -> bool:
        """Whether a model_index.json is that of this family, by its denoiser."""
        return cls.has(index, cls.DENOISER) and index[cls.DENOISER][1] == cls.CLASSES[cls.DENOISER]

    @classmethod
    def takes(cls, part: str, kind: str) -> bool:
        """Whether a part may be of a class, as model_index.json names it."""
        return cls.CLASSES[part] in (None, kind, kind.removesuffix("Fast"))

    @classmethod
    def read(cls, folder: Path, index: Mapping[str, Any]) -> Self:
        """The pipeline of a folder whose model_index.json says that it has the parts of this family."""
        return cls({name: cls._read_part(folder, name) for name in cls.CLASSES if cls.has(index, name)})

    @classmethod
    def has(cls, index: Mapping[str, Any], part: str) -> bool:
        """Whether a model_index.json names a part; those that are optional may stand there as none."""
        found = index.get(part)
        return isinstance(found, list) and len(found) == 2 and found[1] is not None

    @classmethod
    def _read_part(cls, folder: Path, name: str) -> Any:
        kind, place = cls.CLASSES[name], folder / name
        if kind is None:
            return cls.read_scheduler(folder)
        if name == cls.DENOISER:
            return with_batch_dropout(read_described(getattr(diffusers, kind), place, cls.check_call))
        if name == "vae":
            return read_described(AutoencoderKL, place, check_vae)
        theirs = getattr(importlib.import_module("transformers"), kind)
        return theirs.from_pretrained(place) if name in cls.TOKENIZERS.values() else read_whole(theirs, place)

    def with_trained(self, model: Any) -> Self:
        """The same with another denoiser."""
        return replace(self, parts={**self.parts, self.DENOISER: model})

    def to(self, device: torch.device) -> Self:
        """Itself, moved."""
        for part in self.parts.values():
            if isinstance(part, nn.Module):
                part.to(device)
        return self

    def encoders_to(self, device: torch.device | str) -> None:
        """Move the text encoders."""
        for encoder in self.encoders.values():
            encoder.to(device)

    def stock(self) -> Any:
        """As a pipeline of diffusers."""
        return getattr(diffusers, self.STOCK)(**self.parts, **dict.fromkeys(self.OPTIONAL - self.parts.keys()))

    def save_lora(self, folder: Path) -> None:
        """Write the LoRA factors, if there are any, as the file that diffusers' `load_lora_weights` takes."""
        if found := factors(self.denoiser):
            getattr(diffusers, self.STOCK).save_lora_weights(folder, **{f"{self.DENOISER}_lora_layers": found})

    # -- sizes

    @property
    def factor(self) -> int:
        """Pixels along an edge for one latent."""
        return 2 ** (len(config_of(self.vae).block_out_channels) - 1)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of the latents of the images that it draws."""
        return config_of(self.vae).latent_channels, *self.latent_size

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that it draws."""
        height, width = self.latent_size
        return config_of(self.vae).out_channels, height * self.factor, width * self.factor

    # -- sampling

    def sampling_scheduler(self, sampler: Sampler, steps: int) -> Any:
        """A fresh scheduler that is set to so many steps; see `scheduler_of`."""
        return scheduler_of(self.scheduler, sampler, steps)

    # -- texts

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Texts as the text encoders take them, int64 (N, L), filled up to their lengths, one after another.

        Raises:
            TextTooLongError: a text that is longer than that, unless such texts are cut.
        """
        return torch.cat([self._tokens_of(name, texts) for name in self.encoders], dim=1)

    def _tokens_of(self, encoder: str, texts: Sequence[str]) -> Tensor:
        length, rows = self.length_of(encoder), self._ids(encoder, texts)
        for text, ids in zip(texts, rows, strict=True):
            if len(ids) > length and not self.cuts:
                raise TextTooLongError(
                    f"text {_shortened(text)!r} has {len(ids)} tokens, the text encoder takes {length}: shorten it"
                )
        cut = [ids if len(ids) <= length else [*ids[: length - 1], ids[-1]] for ids in rows]
        return torch.tensor(cut, dtype=torch.int64).reshape(len(rows), length)

    def split_tokens(self, tokens: Tensor) -> dict[str, Tensor]:
        """What each text encoder takes of `tokens`, by its name."""
        lengths = {name: self.length_of(name) for name in self.encoders}
        return dict(zip(lengths, tokens.split([*lengths.values()], dim=1), strict=True))

    def num_too_long(self, texts: Sequence[str]) -> int:
        """How many texts have more tokens than a text encoder takes."""
        encoders = {name: self.length_of(name) for name in self.encoders}
        counts = [[len(ids) > length for ids in self._ids(name, texts)] for name, length in encoders.items()]
        return sum(any(row) for row in zip(*counts, strict=True))

    def length_of(self, encoder: str) -> int:
        """How many tokens a text encoder is given."""
        most = self.MOST_TOKENS.get(encoder) or config_of(self.parts[encoder]).max_position_embeddings
        return min(self.parts[self.TOKENIZERS[encoder]].model_max_length, most)

    def _ids(self, encoder: str, texts: Sequence[str]) -> list[list[int]]:
        tokenizer = self.parts[self.TOKENIZERS[encoder]]
        return tokenizer([*texts], padding="max_length", max_length=self.length_of(encoder)).input_ids if texts else []

    def vocabulary(self, changes: Changes) -> Vocabulary | None:
        """What changing captions takes of the tokenizer; None where nothing is changed.

        Raises:
            UserError: a tokenizer without words, or without the digits of numbers.
        """
        if not changes.any:
            return None
        words = self.parts["tokenizer"]
        found = vocabulary_of(words.get_vocab(), words.all_special_ids, words.eos_token_id, words.pad_token_id)
        if changes.random_numbers and not len(found.digits):
            raise UserError("the tokenizer has no digits: leave out random_numbers")
        return found

    @torch.inference_mode()
    def embed(self, tokens: Tensor) -> Conditions:
        """Tokens int64 (N, L) to what the denoiser is conditioned on, float32, on the CPU."""
        device = self.text_encoder.device
        batches = fixed_rows(len(tokens), _TEXTS)
        return Conditions.cat([self.encode(tokens[places].to(device))[:count].to("cpu") for places, count in batches])

    # -- images

    @torch.inference_mode()
    def moments(self, images: Tensor) -> Tensor:
        """Images uint8 (N, C, H, W) to mean and deviation of their latents, float32 (N, 2, c, h, w), on the CPU."""
        _, channels, height, width = images.shape
        rows = rows_at_a_time((channels, height, width), self.vae.device)

        def encode(some: Tensor) -> Tensor:
            found: Any = self.vae.encode(to_float(some.to(self.vae.device)))
            return torch.stack([found.latent_dist.mean, found.latent_dist.std], dim=1)

        return _in_rows(encode, images, rows)

    def scaled(self, latents: Tensor) -> Tensor:
        """What the VAE encoded, as the denoiser takes it: z above."""
        config = config_of(self.vae)
        return (latents if config.shift_factor is None else latents - config.shift_factor) * config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (N, c, h, w) to images, uint8 (N, C, H, W)."""
        config = config_of(self.vae)
        latents = latents / config.scaling_factor
        decoded: Any = self.vae.decode(latents if config.shift_factor is None else latents + config.shift_factor)  # pyright: ignore
        check_images_finite(decoded.sample)
        return to_uint8(decoded.sample)


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _in_rows(function: Callable[[Tensor], Tensor], inputs: Tensor, rows: int) -> Tensor:
    """A function of always as many rows, on the CPU; see `fixed_rows`."""
    return torch.cat([function(inputs[places])[:count].cpu() for places, count in fixed_rows(len(inputs), rows)])
