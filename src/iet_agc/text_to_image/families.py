"""Which families of text-to-image pipelines are known."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iet_agc.runtime.errors import UserError
from iet_agc.text_to_image.class_conditional_dit import ClassConditionalDiT
from iet_agc.text_to_image.family import TextPipeline
from iet_agc.text_to_image.flux import Flux
from iet_agc.text_to_image.stable_diffusion import StableDiffusion
from iet_agc.text_to_image.stable_diffusion_3 import StableDiffusion3
from iet_agc.text_to_image.stable_diffusion_xl import StableDiffusionXL

__all__ = ["FAMILIES", "check_single_encoder", "family_of", "for_single_encoder", "has_single_encoder"]

#: The first that fits is a pipeline's.
FAMILIES: tuple[type[TextPipeline], ...] = (
    StableDiffusionXL,
    StableDiffusion,
    StableDiffusion3,
    Flux,
    ClassConditionalDiT,
)


def family_of(source: str | Path, index: Mapping[str, Any]) -> type[TextPipeline]:
    """The family of a pipeline.

    Args:
        source: a folder or hub id, for the message.
        index: what its model_index.json says.

    Raises:
        UserError: it is of none; the message names those that are known.
    """
    if found := next((family for family in FAMILIES if family.fits(index)), None):
        return found
    parts = {"unet": "U-Net", "transformer": "transformer"}
    theirs = [f"its {word} is a {index[part][-1]}" for part, word in parts.items() if TextPipeline.has(index, part)]
    known = ", ".join(sorted(family.NAME for family in FAMILIES))
    raise UserError(
        f"{source} is no text-to-image pipeline of a known kind, {' and '.join(theirs) or 'it has no denoiser'}: "
        f"known are {known}"
    )


def check_single_encoder(pipeline: TextPipeline, what: str) -> None:
    """Refuse what only pipelines with one text encoder can do.

    Args:
        pipeline: any.
        what: such as "text.train_encoder".

    Raises:
        UserError: it has several, or none; the message names the kinds that can.
    """
    if not has_single_encoder(pipeline):
        raise UserError(f"{for_single_encoder(pipeline, what)}: leave it out")


def has_single_encoder(pipeline: TextPipeline) -> bool:
    """Whether a pipeline has one text encoder, no more and no fewer."""
    return len(pipeline.TOKENIZERS) == 1


def for_single_encoder(pipeline: TextPipeline, what: str) -> str:
    """That something is for other pipelines, which have one text encoder, in words."""
    able = ", ".join(family.NAME for family in FAMILIES if len(family.TOKENIZERS) == 1)
    return f"{what} is for {able}, not for {pipeline.NAME}"
