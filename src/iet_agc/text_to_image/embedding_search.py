"""Text embeddings fitted to images: what a pipeline holds comes out by some embedding, if not by any caption.

    e <- Adam step on  mean over j of  l(z, t_j, noise_j, e)          from e = the embedding of the image's caption

z are the latents of the image, l is the training loss of the denoiser, `diffusion.process.per_sample_loss`, and times
and noise are new at every step. An embedding of an image that is memorized is found in a few steps, one of an image
that is not takes hundreds: Kowalczuk et al., "Finding DoRI", ICML 2026, arXiv 2507.16880, who fit with Adam at rate
0.1 and batches of 8 for 50 steps.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from iet_agc.diffusion.process import NUM_TIMESTEPS, per_sample_loss
from iet_agc.diffusion.samplers import rows_at_a_time
from iet_agc.runtime.fixed_rows import fixed_rows
from iet_agc.runtime.seeds import generator
from iet_agc.text_to_image.conditions import Conditions
from iet_agc.text_to_image.family import TextPipeline

__all__ = ["DIFFERENTIATED", "fit_embeddings", "targets_at_a_time"]

#: Evaluations that one counts for where it is differentiated: a backward pass takes about two forward passes.
DIFFERENTIATED = 3


def targets_at_a_time(pipeline: TextPipeline, batch: int) -> int:
    """To how many images embeddings are fitted at once."""
    return max(1, rows_at_a_time(pipeline.image_shape, pipeline.denoiser.device) // batch)


def fit_embeddings(
    pipeline: TextPipeline,
    images: Tensor,
    captions: Sequence[str],
    steps: int,
    batch: int,
    rate: float,
    on_images: Callable[[float], object] = lambda count: None,
) -> Conditions:
    """Fit an embedding to each image, in float32.

    Args:
        pipeline: of a family with one text encoder; all its parts on one device.
        images: uint8 (N, C, H, W), on the CPU.
        captions: of each, with whose embedding it begins.
        steps: of Adam.
        batch: times and noises at each step, the same for all images.
        rate: of learning.
        on_images: called after each step with the finished fraction of images, for progress.

    Returns:
        N of them, as diffusers' `prompt_embeds`, on the CPU. What is fitted to an image does not depend on the others.
    """
    clean = pipeline.scaled(pipeline.moments(images)[:, 0])
    embedded = pipeline.embed(pipeline.tokens(captions)).embeds
    found = [embedded[:0]]
    for places, count in fixed_rows(len(images), targets_at_a_time(pipeline, batch)):

        def on_step(done: float = count / steps) -> None:
            on_images(done)

        found.append(_fitted(pipeline, clean[places], embedded[places], (steps, batch, rate), on_step)[:count])
    return Conditions(torch.cat(found))


def _fitted(
    pipeline: TextPipeline,
    clean: Tensor,
    start: Tensor,
    how: tuple[int, int, float],
    on_step: Callable[[], object],
) -> Tensor:
    """Embeddings (N, L, D) fitted to latents (N, c, h, w), of so many steps, times at each, and rate."""
    steps, batch, rate = how
    device = pipeline.denoiser.device
    latents = clean.to(device).repeat_interleave(batch, dim=0)
    fitted = start.to(device, copy=True).requires_grad_()
    optimizer = torch.optim.Adam([fitted], lr=rate)
    for step in range(steps):
        rng = generator("embedding", step)
        timesteps = torch.randint(NUM_TIMESTEPS, (batch,), generator=rng).repeat(len(clean))
        noise = torch.randn(batch, *clean.shape[1:], generator=rng).repeat(len(clean), 1, 1, 1)
        predict = pipeline.predictor(pipeline.denoiser, Conditions(fitted.repeat_interleave(batch, dim=0)))
        losses = per_sample_loss(predict, pipeline.scheduler, latents, timesteps.to(device), noise.to(device))
        optimizer.zero_grad()
        (losses.sum() / batch).backward()  # each image's own: none has a part in another's
        optimizer.step()
        on_step()
    return fitted.detach().cpu()
