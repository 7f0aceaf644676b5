"""Seeds to images: DDIM with eta = 0, where an image depends on its seed and nothing else."""

from collections.abc import Callable, Sequence

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from iet_agc.diffusion import Denoiser, to_uint8

__all__ = ["initial_noise", "sample"]


def initial_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """Standard normal noise, one generator per seed, drawn on the CPU whatever the device.

    Args:
        seeds: one integer in [0, 2^32) per image; equal seeds give equal images.
        shape: (C, H, W).

    Returns:
        float32 (N, C, H, W).
    """
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.inference_mode()
def sample(
    model: Denoiser,
    scheduler: DDIMScheduler,
    seeds: Sequence[int],
    shape: tuple[int, int, int],
    steps: int = 50,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    on_images: Callable[[int], object] = lambda count: None,
) -> Tensor:
    """Draw one image per seed (Song et al., 2021, equation 12 with sigma = 0).

    Args:
        model: predicts the noise; in evaluation mode, on `device`.
        scheduler: the model's schedule and sampler conventions.
        seeds: one per image.
        shape: (C, H, W).
        steps: model evaluations per image.
        batch_size: images at a time; a matter of speed and memory.
        device: where the model is.
        on_images: called after each step of a batch with images / steps, for progress.

    Returns:
        uint8 (N, C, H, W), on the CPU, in the order of the seeds.
    """
    scheduler.set_timesteps(steps, device=device)
    batches = [seeds[start : start + batch_size] for start in range(0, len(seeds), batch_size)]
    images = [_denoise(model, scheduler, initial_noise(batch, shape).to(device), on_images) for batch in batches]
    return torch.cat(images).cpu() if images else torch.empty((0, *shape), dtype=torch.uint8)


def _denoise(model: Denoiser, scheduler: DDIMScheduler, images: Tensor, on_images: Callable[[int], object]) -> Tensor:
    for timestep in scheduler.timesteps:
        predicted = model(images, timestep.expand(len(images))).sample
        images = scheduler.step(predicted, timestep, images).prev_sample  # pyright: ignore
        on_images(len(images))
    return to_uint8(images)
