"""Anti-Memorization Guidance: images are pushed away from training images while they are drawn.

At each denoising step the clean image x_0 that the model predicts is compared with the training images. n is the
nearest of them:

    sigma = -|x_0 - n|^2 / (0.5 x mean squared distance to the 50 nearest)

This is -2 times the distance ratio of an audit. Where the ratio is below the threshold of the step, the predicted
noise becomes noise + strength x sqrt(1 - abar_t) x grad sigma, with the gradient in the noisy image, through the model.

Source: Chen, Liu, Xu, "Towards Memorization-Free Diffusion Models", CVPR 2024 (arXiv 2404.00922). The paper's
thresholds rise in similarity towards the end of denoising, with coefficients that it does not print. Here they are
those that 1 % of held-out images pass at that step, and at least the cut of the audit. n and the mean are constants
of the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from iet_agc.diffusion.process import to_float, to_uint8
from iet_agc.diffusion.samplers import Predict
from iet_agc.runtime.fixed_rows import fixed_rows
from iet_agc.runtime.seeds import generator

if TYPE_CHECKING:
    from diffusers import DDIMScheduler

__all__ = ["TrainingImages", "fit_thresholds", "guided", "predicted_images"]

#: Held-out images that thresholds are fit to, at most: 1 % of them are five.
_MOST_FIT = 512


class TrainingImages(Protocol):
    """The training images that are kept away from, such as `iet_agc.auditing.guard.Guard`.

    Attributes:
        references: these images, uint8 (U, C, H, W).
        cut: of the distance ratio, below which an audit calls an image a copy.
        about: what they follow from, JSON values only.
        held_out: real images that were not trained on, uint8 (H, C, H, W).
        labels: class of each of these, int64 (H,), or None.
    """

    @property
    def references(self) -> Tensor:
        """See the class."""
        ...

    @property
    def cut(self) -> float:
        """See the class."""
        ...

    @property
    def about(self) -> dict[str, Any]:
        """See the class."""
        ...

    @property
    def held_out(self) -> Tensor:
        """See the class."""
        ...

    @property
    def labels(self) -> Tensor | None:
        """See the class."""
        ...

    def neighbors(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Of images, uint8 (N, C, H, W): squared L2 to the 50 nearest on [0, 1] pixels, float64 (N, 50), ascending;
        and the nearest itself, mirrored where that is nearer and counts, uint8 (N, C, H, W)."""
        ...

    def threshold(self, images: Tensor) -> float:
        """The distance ratio that 1 % of these, uint8 (H, C, H, W), stay below; see `metrics.calibrated_cut`."""
        ...


def fit_thresholds(
    training: TrainingImages,
    predict: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    scheduler: DDIMScheduler,
    timesteps: Sequence[int],
    rows: int,
    device: torch.device,
) -> dict[int, float]:
    """The distance ratios below which a predicted image is too similar to a training image, by timestep.

    Args:
        training: has the cut, which no threshold is below, and held-out images, of which 512 at most are looked at.
        predict: the model: (noisy images, timesteps, classes where there are any) -> the noise, or v.
        scheduler: has abar, and says what the model predicts.
        timesteps: of the denoising steps.
        rows: how many images the model sees at once.
        device: where the model is.
    """
    clean, labels = to_float(training.held_out[:_MOST_FIT]), training.labels
    noise = torch.randn(clean.shape, generator=generator("amg"))

    def predicted(timestep: int) -> Tensor:
        parts: list[Tensor] = []
        for places, count in fixed_rows(len(clean), rows):
            at = torch.full((len(places),), timestep)
            noisy = scheduler.add_noise(clean[places], noise[places], at).to(device)  # pyright: ignore[reportArgumentType]
            output = predict(noisy, at.to(device), None if labels is None else labels[places].to(device)).float()
            parts.append(to_uint8(predicted_images(scheduler, noisy, timestep, output))[:count].cpu())
        return torch.cat(parts)

    return {timestep: max(training.cut, training.threshold(predicted(timestep))) for timestep in timesteps}


def predicted_images(scheduler: DDIMScheduler, images: Tensor, timestep: int, output: Tensor) -> Tensor:
    """The clean images that a model predicts, in [-1, 1] (Song et al., 2021, equation 9).

    Args:
        scheduler: has abar, and says whether the model predicts the noise or v.
        images: noisy, float32 (N, C, H, W).
        timestep: of all.
        output: of the model, same shape.
    """
    config: Any = scheduler.config
    abar = float(scheduler.alphas_cumprod[timestep])
    if config.prediction_type == "v_prediction":
        return (abar**0.5 * images - (1 - abar) ** 0.5 * output).clamp(-1, 1)
    return ((images - (1 - abar) ** 0.5 * output) / abar**0.5).clamp(-1, 1)


def guided(
    predict: Predict,
    scheduler: DDIMScheduler,
    training: TrainingImages,
    thresholds: Mapping[int, float],
    strength: float,
) -> Predict:
    """A model whose predictions lead away from training images.

    The gradient is taken of all images of a batch where any is too similar, and used for those that are: what becomes
    of an image does not depend on the others.

    Args:
        predict: the model.
        scheduler: has abar, and says what the model predicts.
        training: what to keep away from.
        thresholds: see `fit_thresholds`.
        strength: weight of the gradient, above 0.
    """
    config: Any = scheduler.config
    is_v = config.prediction_type == "v_prediction"

    def with_guidance(images: Tensor, timesteps: Tensor) -> Tensor:
        timestep = int(timesteps[0])
        output = predict(images, timesteps).float()
        distances, nearest = training.neighbors(to_uint8(predicted_images(scheduler, images, timestep, output)).cpu())
        mean = distances.mean(1)
        similar = distances[:, 0] < thresholds[timestep] * mean
        if not similar.any():
            return output
        scale = torch.where(similar, 4 * 0.5 * mean, torch.inf).to(images.device, torch.float32)  # of [-1, 1] pixels
        gradient = _gradient(predict, scheduler, images, timesteps, to_float(nearest).to(images.device), scale)
        abar = float(scheduler.alphas_cumprod[timestep])
        push = strength * (1 - abar) ** 0.5 * gradient
        return output + (push / abar**0.5 if is_v else push)

    return with_guidance


def _gradient(
    predict: Predict, scheduler: DDIMScheduler, images: Tensor, timesteps: Tensor, nearest: Tensor, scale: Tensor
) -> Tensor:
    """Of sigma in the noisy images, float32 (N, C, H, W); 0 where the scale is infinite."""
    with torch.inference_mode(False), torch.enable_grad():
        noisy = images.clone().requires_grad_()  # clones can be differentiated, what inference mode made cannot
        output = predict(noisy, timesteps.clone()).float()
        clean = predicted_images(scheduler, noisy, int(timesteps[0]), output)
        sigma = -(clean - nearest.clone()).square().flatten(1).sum(1) / scale.clone()
        return torch.autograd.grad(sigma.sum(), noisy)[0]
