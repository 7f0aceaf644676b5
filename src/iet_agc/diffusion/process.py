"""The forward process and the loss, one number per sample, over a diffusers scheduler.

x_t = sqrt(abar_t) * x_0 + sqrt(1 - abar_t) * noise          (Ho et al., 2020, equation 4)
l_i = mean over (C, H, W) of (noise - model(x_t, t))^2       (equation 14)

A model whose scheduler says v_prediction predicts v = sqrt(abar_t) * noise - sqrt(1 - abar_t) * x_0 in place of the
noise (Salimans and Ho, 2022, appendix D).

Flow matching takes the straight path from an image to noise, and predicts its direction (Lipman et al., 2023, arXiv
2210.02747; Liu et al., 2023, arXiv 2209.03003; Esser et al., 2024, arXiv 2403.03206, equations 2 and 13):

    x_t = (1 - sigma_t) * x_0 + sigma_t * noise
    l_i = mean over (C, H, W) of (noise - x_0 - model(x_t, 1000 sigma_t))^2

Noise levels are counted alike in all cases: an integer t in [0, 1000), with more noise the larger it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

__all__ = [
    "NUM_TIMESTEPS",
    "Denoiser",
    "Scheduler",
    "abar_of",
    "add_noise",
    "flow_sigmas",
    "is_flow",
    "make_flow_scheduler",
    "make_scheduler",
    "min_snr_weights",
    "per_sample_loss",
    "predict_noise",
    "scheduler_for",
    "to_float",
    "to_uint8",
]

NUM_TIMESTEPS = 1000

#: A diffusers model: (noisy images, timesteps) -> an output with a field `sample`. A class-conditional one takes
#: labels as a further argument, `class_labels`; a text-conditional one embeddings, `encoder_hidden_states`.
Denoiser = Callable[..., Any]

#: What gives noise levels, and says by its class and configuration what a model predicts.
Scheduler: TypeAlias = "DDIMScheduler | FlowMatchEulerDiscreteScheduler"


def make_scheduler() -> DDIMScheduler:
    """The noise schedule of the paper, with the sampler conventions of its authors.

    Linear betas 1e-4 .. 0.02 over 1000 timesteps. The last five arguments make diffusers' DDIM equal
    the authors' own (clipped prediction, timesteps 1, 21, 41, ... for 50 steps, and the first alpha
    instead of 1 at the end); diffusers' defaults differ.
    """
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=NUM_TIMESTEPS,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        clip_sample=True,
        timestep_spacing="leading",
        steps_offset=1,
        set_alpha_to_one=False,
    )


def make_flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The noise levels of flow matching, 0.001, 0.002, .. 1, with diffusers' conventions for sampling."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=NUM_TIMESTEPS)


def scheduler_for(objective: Literal["noise", "flow"]) -> Scheduler:
    """The noise levels of an objective; it also says what is predicted."""
    return make_flow_scheduler() if objective == "flow" else make_scheduler()


def is_flow(scheduler: Scheduler) -> TypeGuard[FlowMatchEulerDiscreteScheduler]:
    """Whether a model of this scheduler learns a flow; else it predicts the noise, or v."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return isinstance(scheduler, FlowMatchEulerDiscreteScheduler)


def flow_sigmas(scheduler: FlowMatchEulerDiscreteScheduler) -> Tensor:
    """The share of noise at each noise level t, float32 (1000,), rising to 1.

    It is (t + 1) / 1000, shifted as the scheduler says. diffusers' own table, which training scripts index, falls: its
    entry 999 - t is entry t here. A shift that depends on the resolution is of sampling only, as it is there.
    """
    config: Any = scheduler.config
    shift: float = 1.0 if config.use_dynamic_shifting else config.shift
    sigmas = torch.arange(1, config.num_train_timesteps + 1) / config.num_train_timesteps
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def abar_of(scheduler: Scheduler) -> Tensor:
    """abar at each noise level, (1000,); of a flow that at which images have as much noise beside them.

    (1 - sigma) x + sigma e is sqrt(abar) x + sqrt(1 - abar) e, but for its scale, with
    abar = (1 - sigma)^2 / ((1 - sigma)^2 + sigma^2). At the last level of a flow it is 0.
    """
    if is_flow(scheduler):
        sigmas = flow_sigmas(scheduler).double()
        return (1 - sigmas).square() / ((1 - sigmas).square() + sigmas.square())
    schedule: Any = scheduler
    return schedule.alphas_cumprod


def add_noise(scheduler: Scheduler, images: Tensor, timesteps: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a model is asked, and what it is to answer.

    Args:
        scheduler: gives the noise levels, and says what is predicted.
        images: float (B, ...): pixels in [-1, 1], or latents.
        timesteps: int64 (B,), in [0, 1000).
        noise: standard normal, as `images`.

    Returns:
        The noisy images; the timesteps that a model is given, as diffusers' pipelines give them, (B,): `timesteps`, or
        1000 sigma of a flow; and the noise, v or direction that is to be predicted.
    """
    if is_flow(scheduler):
        sigmas = flow_sigmas(scheduler).to(images.device, non_blocking=True)[timesteps]
        sigma = sigmas.reshape(-1, *[1] * (images.ndim - 1))
        return sigma * noise + (1 - sigma) * images, sigmas * NUM_TIMESTEPS, noise - images
    schedule: Any = scheduler
    noisy = schedule.add_noise(images, noise, timesteps)
    if schedule.config.prediction_type == "v_prediction":
        return noisy, timesteps, schedule.get_velocity(images, noise, timesteps)
    return noisy, timesteps, noise


def predict_noise(
    model: Denoiser, images: Tensor, timesteps: Tensor, labels: Tensor | None = None, texts: Tensor | None = None
) -> Tensor:
    """The noise, v or direction of images (B, C, H, W) by a model, at timesteps (B,).

    It is conditioned on classes, int64 (B,), or embedded texts, float (B, L, D), if it is made for them.
    """
    conditions = {"class_labels": labels, "encoder_hidden_states": texts}
    return model(images, timesteps, **{name: value for name, value in conditions.items() if value is not None}).sample


def per_sample_loss(
    model: Denoiser,
    scheduler: Scheduler,
    images: Tensor,
    timesteps: Tensor,
    noise: Tensor,
    labels: Tensor | None = None,
    texts: Tensor | None = None,
    target: Tensor | None = None,
) -> Tensor:
    """The training loss of each image. Pure: all randomness comes in.

    Args:
        model: predicts the noise, v or the direction of a flow.
        scheduler: gives the noise levels, and says which of these.
        images: float (B, C, H, W): pixels in [-1, 1], or latents.
        timesteps: int64 (B,), in [0, 1000).
        noise: standard normal, same shape as `images`.
        labels: class of each, int64 (B,), of a class-conditional model.
        texts: embedded text of each, float (B, L, D), of a text-conditional model.
        target: of a model that predicts the noise, what it is trained towards in its place, as `noise`; see
            `diffusion.targets`.

    Returns:
        float32 (B,): mean squared error over (C, H, W).

    Raises:
        ValueError: a target of a model that does not predict the noise.
    """
    noisy, at, expected = add_noise(scheduler, images, timesteps, noise)
    if target is not None and expected is not noise:
        raise ValueError("a target in place of the noise is for models that predict noise, not v or a flow")
    error = predict_noise(model, noisy, at, labels, texts).float() - (expected if target is None else target)
    return error.square().flatten(1).mean(1)


def min_snr_weights(scheduler: Scheduler, gamma: float) -> Tensor:
    """Weight of the loss at each timestep (Hang et al., ICCV 2023, arXiv 2303.09556).

    With SNR = abar / (1 - abar) a squared error of the image weighs min(SNR, gamma). The error of the noise is SNR
    times that of the image, the error of v is SNR + 1 times, so that theirs weighs

        noise   min(SNR, gamma) / SNR
        v       min(SNR, gamma) / (SNR + 1)

    A flow is not weighed so: its images are drawn from pure noise, which has no signal and would weigh nothing.

    Args:
        scheduler: gives abar, and says which of the two is predicted.
        gamma: above 0; 5 in the paper.

    Returns:
        float32 (1000,), in (0, 1].

    Raises:
        ValueError: a flow.
    """
    if is_flow(scheduler):
        raise ValueError("min-SNR weights are for models that predict noise or v")
    config: Any = scheduler.config
    abar = abar_of(scheduler).double()
    snr = abar / (1 - abar)
    of_image = snr + 1 if config.prediction_type == "v_prediction" else snr
    return (snr.clamp(max=gamma) / of_image).float()


def to_float(images: Tensor) -> Tensor:
    """uint8 pixels 0 .. 255 to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float images in [-1, 1] to the nearest uint8 pixels; what lies outside is clipped."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
