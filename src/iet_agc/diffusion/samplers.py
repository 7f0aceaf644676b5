"""Seeds to images: DDIM with eta = 0, or Euler steps along a flow, where an image depends on its seed and its class,
and nothing else.

Text-to-image has other samplers, too, none of which draws noise on its way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from iet_agc.diffusion.process import Denoiser, Scheduler, is_flow, predict_noise, to_uint8
from iet_agc.runtime.errors import CheckFailed, UserError
from iet_agc.runtime.fixed_rows import fixed_rows
from iet_agc.runtime.precision import Precision, autocast, resolved

__all__ = [
    "SAMPLERS",
    "Predict",
    "Sampler",
    "check_images_finite",
    "denoise",
    "described",
    "initial_noise",
    "labels_of",
    "rows_at_a_time",
    "sample",
    "sampler_of",
    "scheduler_of",
]

#: A model: (images, timesteps (N,)) -> the noise, or v, in them, or the direction of a flow.
Predict = Callable[[Tensor, Tensor], Tensor]

Sampler = Literal["ddim", "dpm++", "pndm", "euler", "flow"]

#: What each sampler is, for people.
SAMPLERS: dict[Sampler, str] = {
    "ddim": "DDIM, eta 0",
    "dpm++": "DPM-Solver++, order 2",
    "pndm": "PNDM, linear multistep",
    "euler": "Euler",
    "flow": "Euler steps along the flow",
}


def described(scheduler: Any) -> dict[str, Any]:
    """A scheduler's configuration as JSON can say it: diffusers' DPM-Solver has -infinity for "no clipping"."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in scheduler.config.items()
    }


def initial_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """Standard normal noise, one generator per seed, drawn on the CPU whatever the device.

    Args:
        seeds: one integer in [0, 2^32) per image; equal seeds give equal images.
        shape: (C, H, W).

    Returns:
        float32 (N, C, H, W).
    """
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def labels_of(seeds: Sequence[int], classes: int, label: int | None = None) -> list[int]:
    """The class of each seed's image: `label`, or seed % classes, so that consecutive seeds are balanced.

    Args:
        seeds: one per image.
        classes: number of classes of the model.
        label: the same class for all.

    Raises:
        UserError: there is no such class.
    """
    if label is None:
        return [seed % classes for seed in seeds]
    if not 0 <= label < classes:
        raise UserError(f"there is no class {label}: the model has {classes}, from 0 to {classes - 1}")
    return [label] * len(seeds)


def rows_at_a_time(shape: tuple[int, int, int], device: torch.device | str) -> int:
    """How many images the model sees at once, by their size and the kind of device; see `fixed_rows`."""
    most = 32 if torch.device(device).type == "cpu" else 512
    return max(1, min(most, most * 32 * 32 // (shape[1] * shape[2])))


@torch.inference_mode()
def sample(
    model: Denoiser,
    scheduler: Scheduler,
    seeds: Sequence[int],
    shape: tuple[int, int, int],
    steps: int = 50,
    device: torch.device | str = "cpu",
    on_images: Callable[[float], object] = lambda count: None,
    labels: Sequence[int] | None = None,
    precision: Precision = "float32",
    guide: Callable[[Predict], Predict] = lambda predict: predict,
) -> Tensor:
    """Draw one image per seed (Song et al., 2021, equation 12 with sigma = 0; Lipman et al., 2023, by Euler's method).

    Args:
        model: predicts the noise, or the direction of a flow; in evaluation mode, on `device`.
        scheduler: the model's schedule and sampler conventions.
        seeds: one per image.
        shape: (C, H, W).
        steps: model evaluations per image.
        device: where the model is.
        on_images: called after each step with the finished fraction of images, for progress.
        labels: class of each image, of a class-conditional model.
        precision: of the model's products.
        guide: changes what the model predicts, such as `guidance.guided`; it may differentiate it.

    Returns:
        uint8 (N, C, H, W), on the CPU, in the order of the seeds.

    Raises:
        CheckFailed: images that are not finite.
    """
    device, precision = torch.device(device), resolved(precision, torch.device(device))
    images = [torch.empty((0, *shape), dtype=torch.uint8)]
    for places, count in fixed_rows(len(seeds), rows_at_a_time(shape, device)):
        noise = initial_noise([seeds[place] for place in places], shape)
        batch = None if labels is None else torch.tensor([labels[place] for place in places], device=device)
        share = count / steps

        def predict(images: Tensor, timesteps: Tensor, batch: Tensor | None = batch) -> Tensor:
            # a clone can be differentiated through, what was made in inference mode cannot
            return predict_noise(model, images, timesteps, None if batch is None else batch.clone())

        with autocast(precision, device):  # around all steps: weights are cast once
            finished = denoise(
                guide(predict),
                scheduler_of(scheduler, sampler_of(scheduler), steps),  # of each batch: that of a flow counts its steps
                noise.to(device),
                lambda s=share: on_images(s),
            )
        check_images_finite(finished)
        images.append(to_uint8(finished[:count]).cpu())
    return torch.cat(images)


def check_images_finite(images: Tensor) -> None:
    """Refuse images, float (N, C, H, W), that would become black.

    Raises:
        CheckFailed: one of them holds NaN or infinity.
    """
    if not images.isfinite().all():
        raise CheckFailed(
            "the model draws images that are not finite, though its weights are: it is broken, or needs precision "
            "float32"
        )


def sampler_of(scheduler: Scheduler) -> Sampler:
    """The sampler of a model over pixels: DDIM, or that of a flow."""
    return "flow" if is_flow(scheduler) else "ddim"


def scheduler_of(
    scheduler: Scheduler, sampler: Sampler, steps: int, how: Mapping[str, Any] = MappingProxyType({})
) -> Any:
    """A fresh scheduler of a sampler for the noise schedule of another, by diffusers' classes.

    A scheduler holds where it is: it is for one call, and the one that it is made of is left as it is.

    Args:
        scheduler: has the noise schedule, and says where timesteps lie.
        sampler: "ddim" (Song et al., 2021), "dpm++" (Lu et al., 2022: second order, multistep),
            "pndm" (Liu et al., 2022: linear multistep from the first step on, as Stable Diffusion came with) or "euler"
            (Karras et al., 2022, algorithm 1, first order and without churn); of a flow, "flow" (Esser et al., 2024).
            All are deterministic.
        steps: that it is set to.
        how: further arguments of its `set_timesteps`, in place of `steps` if sigmas are among them.

    Raises:
        ValueError: a flow with another sampler than its own, or the other way round.
    """
    if is_flow(scheduler) != (sampler == "flow"):
        raise ValueError(f"sampler {sampler!r} is not for a {type(scheduler).__name__}")
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler

    config: Any = scheduler.config
    made: Any
    match sampler:
        case "ddim":
            made = DDIMScheduler.from_config(config)
        case "dpm++":
            made = DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++", solver_order=2)
        case "pndm":
            made = PNDMScheduler.from_config(config, skip_prk_steps=True)
        case "euler":
            made = EulerDiscreteScheduler.from_config(config)
        case "flow":
            made = type(scheduler).from_config(config, stochastic_sampling=False)
    count = {} if "sigmas" in how else {"num_inference_steps": steps}
    made.set_timesteps(**count, **how)  # on the CPU, where a scheduler looks its numbers up
    return made


def denoise(
    predict: Predict,
    scheduler: Any,
    images: Tensor,
    on_step: Callable[[], object] = lambda: None,
) -> Tensor:
    """Noise to images, or latents, by the timesteps that the scheduler is set to.

    Args:
        predict: as `diffusion.predict_noise`.
        scheduler: of diffusers, see `sample` and `scheduler_of`.
        images: standard normal noise, float32 (N, C, H, W).
        on_step: called after each step.

    Returns:
        float32 (N, C, H, W); of pixels in [-1, 1] but for what is to be clipped.
    """
    flow = is_flow(scheduler)  # whose models see images as they are
    images = images if flow else images * float(scheduler.init_noise_sigma)
    for timestep in scheduler.timesteps:
        everywhere = torch.full((len(images),), timestep.item(), device=images.device)
        seen = images if flow else scheduler.scale_model_input(images, timestep)
        predicted = predict(seen, everywhere).float()
        images = scheduler.step(predicted, timestep, images).prev_sample
        on_step()
    return images
