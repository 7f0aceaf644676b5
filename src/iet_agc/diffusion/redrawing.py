"""An image is noised until half of its variance is noise, and drawn again: where it was memorized, it comes back.

Of text-to-image it is the latents that are noised, see `iet_agc.text_to_image.redrawing`.

    y = denoise(sqrt(abar_t) x + sqrt(1 - abar_t) e)          abar_t near 1/2, four steps

An image like those that were trained on comes back as one of its kind, with details that the model makes up; one that
was memorized comes back as itself. What is drawn is near x in either case, so it says nothing without the same of
images that were not trained on.

Noising and denoising an image: Meng et al., SDEdit, ICLR 2022, arXiv 2108.01073.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from iet_agc.diffusion.process import (
    Denoiser,
    Scheduler,
    abar_of,
    is_flow,
    make_flow_scheduler,
    predict_noise,
    to_float,
    to_uint8,
)
from iet_agc.diffusion.samplers import Predict, check_images_finite, denoise, rows_at_a_time, scheduler_of
from iet_agc.runtime.fixed_rows import fixed_rows

__all__ = ["REDRAW_STEPS", "Halfway", "redraw"]

#: Evaluations of the model for one image.
REDRAW_STEPS = 4

#: Share of the variance that is left of an image, and sigmas of a flow; the first has as much noise as image.
_LEFT, _SIGMAS = 0.5, (0.5, 0.375, 0.25, 0.125)


@torch.inference_mode()
def redraw(
    model: Denoiser,
    scheduler: Scheduler,
    images: Tensor,
    noise: Tensor,
    labels: Tensor | None = None,
    on_images: Callable[[float], object] = lambda count: None,
) -> Tensor:
    """Noise images and draw them again.

    Args:
        model: predicts the noise, v or the direction of a flow; in evaluation mode.
        scheduler: its noise schedule.
        images: uint8 (N, C, H, W), on the CPU.
        noise: standard normal, float32, as `images`.
        labels: class of each, int64 (N,), of a class-conditional model.
        on_images: called after each step with the finished fraction of images, for progress.

    Returns:
        uint8 (N, C, H, W), on the CPU. What becomes of an image does not depend on the others.

    Raises:
        CheckFailed: images that are not finite.
    """
    device = next(model.parameters()).device  # pyright: ignore[reportFunctionMemberAccess]
    channels, height, width = images.shape[1:]
    found, halfway = [images[:0]], Halfway(scheduler)
    for places, count in fixed_rows(len(images), rows_at_a_time((channels, height, width), device)):
        classes = None if labels is None else labels[places].to(device)

        def predict(seen: Tensor, timesteps: Tensor, classes: Tensor | None = classes) -> Tensor:
            return predict_noise(model, seen, timesteps, classes)

        def on_step(done: float = count / REDRAW_STEPS) -> None:
            on_images(done)

        drawn = halfway.redrawn(predict, to_float(images[places]), noise[places], device, on_step)
        check_images_finite(drawn)
        found.append(to_uint8(drawn)[:count].cpu())
    return torch.cat(found)


@dataclass(frozen=True)
class Halfway:
    """The last four steps of denoising, from where half of the variance is noise.

    Attributes:
        scheduler: has the noise schedule.
    """

    scheduler: Scheduler

    def redrawn(
        self,
        predict: Predict,
        clean: Tensor,
        noise: Tensor,
        device: torch.device,
        on_step: Callable[[], object] = lambda: None,
    ) -> Tensor:
        """Images or latents, float32 (N, C, H, W) on the CPU, noised and denoised on a device; see `denoise`."""
        schedule = self._last_steps(self._steps)
        return denoise(predict, schedule, _noised(schedule, clean, noise).to(device), on_step)

    @cached_property
    def _steps(self) -> int:
        """Of how many steps of DDIM the last four begin where half of the variance is left; 0 of a flow."""
        if is_flow(self.scheduler):
            return 0
        abar = abar_of(self.scheduler)

        def off(steps: int) -> float:
            return abs(float(abar[int(self._last_steps(steps).timesteps[0])]) - _LEFT)

        half = 1 + int((abar - _LEFT).abs().argmin())  # three or four steps from the end, by where timesteps lie
        least, most = (number * len(abar) // half for number in (REDRAW_STEPS - 1, REDRAW_STEPS))
        return min(range(max(REDRAW_STEPS, least - 1), max(REDRAW_STEPS, most + 2) + 1), key=off)

    def _last_steps(self, steps: int) -> Any:
        """A fresh scheduler that takes the last four of so many steps."""
        if is_flow(self.scheduler):  # without a shift, which is for sampling and would move the sigmas
            return scheduler_of(make_flow_scheduler(), "flow", REDRAW_STEPS, {"sigmas": [*_SIGMAS]})
        schedule = scheduler_of(self.scheduler, "ddim", steps)
        schedule.timesteps = schedule.timesteps[-REDRAW_STEPS:]
        return schedule


def _noised(schedule: Any, clean: Tensor, noise: Tensor) -> Tensor:
    """Images at the first level of a schedule."""
    if is_flow(schedule):
        sigma = float(torch.as_tensor(schedule.sigmas)[0])
        return sigma * noise + (1 - sigma) * clean
    return schedule.add_noise(clean, noise, schedule.timesteps[:1].expand(len(clean)))
