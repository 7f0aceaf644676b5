"""Images noised as latents, and drawn again with their captions; see `iet_agc.diffusion.redrawing`."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from iet_agc.diffusion.redrawing import REDRAW_STEPS, Halfway
from iet_agc.diffusion.samplers import rows_at_a_time
from iet_agc.runtime.fixed_rows import fixed_rows
from iet_agc.runtime.precision import Precision, autocast, resolved
from iet_agc.text_to_image.family import TextPipeline
from iet_agc.text_to_image.pipeline import guided

__all__ = ["redraw_captioned"]


@torch.inference_mode()
def redraw_captioned(
    pipeline: TextPipeline,
    images: Tensor,
    captions: Sequence[str],
    noise: Tensor,
    guidance: float = 1.0,
    on_images: Callable[[float], object] = lambda count: None,
    precision: Precision = "float32",
) -> Tensor:
    """Noise the latents of images and draw them again, each with its caption; nothing is compared without it.

    Args:
        pipeline: all its parts on one device.
        images: uint8 (N, C, H, W), on the CPU.
        captions: one for each.
        noise: standard normal, float32 (N, c, h, w).
        guidance: of a denoiser that is given it; of others it has no effect.
        on_images: called after each step with the finished fraction of images, for progress.
        precision: of the denoiser's products.

    Returns:
        uint8 (N, C, H, W), on the CPU. What becomes of an image does not depend on the others.
    """
    device, found, halfway = pipeline.vae.device, [images[:0]], Halfway(pipeline.scheduler)
    precision = resolved(precision, device)
    clean = pipeline.scaled(pipeline.moments(images)[:, 0])
    texts = {text: number for number, text in enumerate(dict.fromkeys(captions))}
    embedded = pipeline.embed(pipeline.tokens([*texts]))
    for places, count in fixed_rows(len(images), rows_at_a_time(pipeline.image_shape, device)):
        conditions = embedded[[texts[captions[place]] for place in places]].to(device)

        def on_step(done: float = count / REDRAW_STEPS) -> None:
            on_images(done)

        with autocast(precision, device):  # around all steps: weights are cast once
            predict = guided(pipeline, conditions, guidance)
            latents = halfway.redrawn(predict, clean[places], noise[places], device, on_step)
        found.append(pipeline.decode(latents)[:count].cpu())
    return torch.cat(found)
