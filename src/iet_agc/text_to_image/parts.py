"""The parts of a diffusers pipeline, read from its folder: every weight from safetensors, in float32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler

from iet_agc.diffusion.process import NUM_TIMESTEPS
from iet_agc.diffusion.unet import check_described, check_finite, checked_scheduler
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.seeds import kept_generators

__all__ = ["check_vae", "config_of", "misfit_of_schedule", "read_described", "read_noise_schedule", "read_whole"]


def config_of(part: Any) -> Any:
    """The configuration of a part of a pipeline."""
    return part.config


def read_described(kind: Any, folder: Path, call: Callable[[Any], object]) -> Any:
    """A model of diffusers, whose description was looked at; see `check_described`."""
    check_described(kind, folder, call)
    return read_whole(kind, folder, low_cpu_mem_usage=False)


def check_vae(vae: Any) -> None:
    """Encode and decode something small."""
    edge = 4 * 2 ** len(vae.config.block_out_channels)
    vae(torch.zeros(1, vae.config.in_channels, edge, edge))


def read_whole(kind: Any, folder: Path, **options: Any) -> Any:
    """A model whose every weight is in the file; what is missing would be filled with random numbers.

    Raises:
        UserError: weights are missing or not finite.
    """
    with kept_generators():
        loaded: Any = kind.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **options)
    model, found = loaded
    if missing := sorted(found["missing_keys"]):
        raise UserError(f"{folder.name} lacks weights of its configuration: {missing[0]}")
    check_finite(model)
    return model.float().eval().requires_grad_(False)


def read_noise_schedule(folder: Path) -> DDIMScheduler:
    """The noise schedule of a pipeline, with DDIM over latents, which are not clipped."""

    def make() -> Any:
        config: Any = DDIMScheduler.load_config(folder / "scheduler")
        return DDIMScheduler.from_config(config, clip_sample=False, set_alpha_to_one=False)

    return checked_scheduler(folder / "scheduler", make)


def misfit_of_schedule(scheduler: Any) -> dict[str, bool]:
    """What may be wrong about a noise schedule, in words, and whether it is."""
    schedule = config_of(scheduler)
    count, predicts = schedule.num_train_timesteps, schedule.prediction_type
    return {
        f"it has {count} timesteps, not {NUM_TIMESTEPS}": count != NUM_TIMESTEPS,
        f"it predicts {predicts!r}, not epsilon or v_prediction": predicts not in ("epsilon", "v_prediction"),
    }
