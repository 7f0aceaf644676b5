"""The forward process and the loss, one number per sample, over a diffusers scheduler.

x_t = sqrt(abar_t) * x_0 + sqrt(1 - abar_t) * noise          (Ho et al., 2020, equation 4)
l_i = mean over (C, H, W) of (noise - model(x_t, t))^2       (equation 14)

A model whose scheduler says v_prediction predicts v = sqrt(abar_t) * noise - sqrt(1 - abar_t) * x_0 in place of the
noise (Salimans and Ho, 2022, appendix D).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DDIMScheduler

__all__ = [
    "NUM_TIMESTEPS",
    "Denoiser",
    "make_scheduler",
    "min_snr_weights",
    "per_sample_loss",
    "predict_noise",
    "to_float",
    "to_uint8",
]

NUM_TIMESTEPS = 1000

#: A diffusers model: (noisy images, timesteps) -> an output with a field `sample`. A class-conditional one takes
#: labels as a further argument, `class_labels`; a text-conditional one embeddings, `encoder_hidden_states`.
Denoiser = Callable[..., Any]


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


def predict_noise(
    model: Denoiser, images: Tensor, timesteps: Tensor, labels: Tensor | None = None, texts: Tensor | None = None
) -> Tensor:
    """The noise, or v, in images (B, C, H, W) by a model, at timesteps (B,).

    It is conditioned on classes, int64 (B,), or embedded texts, float (B, L, D), if it is made for them.
    """
    conditions = {"class_labels": labels, "encoder_hidden_states": texts}
    return model(images, timesteps, **{name: value for name, value in conditions.items() if value is not None}).sample


def per_sample_loss(
    model: Denoiser,
    scheduler: DDIMScheduler,
    images: Tensor,
    timesteps: Tensor,
    noise: Tensor,
    labels: Tensor | None = None,
    texts: Tensor | None = None,
    target: Tensor | None = None,
) -> Tensor:
    """The training loss of each image. Pure: all randomness comes in.

    Args:
        model: predicts the noise, or v.
        scheduler: gives abar, and says which of the two.
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
        ValueError: a target of a model that predicts v.
    """
    noisy = scheduler.add_noise(images, noise, timesteps)  # pyright: ignore[reportArgumentType]
    if scheduler.config.prediction_type == "v_prediction":  # pyright: ignore[reportAttributeAccessIssue]
        if target is not None:
            raise ValueError("a target in place of the noise is for models that predict noise, not v")
        target = scheduler.get_velocity(images, noise, timesteps)  # pyright: ignore[reportArgumentType]
    expected = noise if target is None else target
    error = predict_noise(model, noisy, timesteps, labels, texts).float() - expected
    return error.square().flatten(1).mean(1)


def min_snr_weights(scheduler: DDIMScheduler, gamma: float) -> Tensor:
    """Weight of the loss at each timestep (Hang et al., ICCV 2023, arXiv 2303.09556).

    With SNR = abar / (1 - abar) a squared error of the image weighs min(SNR, gamma). The error of the noise is SNR
    times that of the image, the error of v is SNR + 1 times, so that theirs weighs

        noise   min(SNR, gamma) / SNR
        v       min(SNR, gamma) / (SNR + 1)

    Args:
        scheduler: gives abar, and says which of the two is predicted.
        gamma: above 0; 5 in the paper.

    Returns:
        float32 (1000,), in (0, 1].
    """
    abar = scheduler.alphas_cumprod.double()
    snr = abar / (1 - abar)
    of_image = snr + 1 if scheduler.config.prediction_type == "v_prediction" else snr  # pyright: ignore[reportAttributeAccessIssue]
    return (snr.clamp(max=gamma) / of_image).float()


def to_float(images: Tensor) -> Tensor:
    """uint8 pixels 0 .. 255 to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float images in [-1, 1] to the nearest uint8 pixels; what lies outside is clipped."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
