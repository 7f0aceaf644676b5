"""Which timesteps a run trains at, and how often."""

import torch
from torch import Tensor

from iet_agc.config.settings import Settings, TrainSettings
from iet_agc.data.image_set import ImageSet, unique_images
from iet_agc.diffusion.noise_levels import danger_zone, gap_density, logit_normal_density, u_shaped_density
from iet_agc.diffusion.process import NUM_TIMESTEPS, to_float
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.progress import say

__all__ = ["density_of", "with_gap"]


def density_of(train: TrainSettings) -> Tensor | None:
    """Probabilities of the timesteps, float64 (1000,); None where all are alike."""
    if train.timesteps == "u-shaped":
        return u_shaped_density(NUM_TIMESTEPS, train.u_sharpness)
    if train.timesteps == "logit-normal":
        return logit_normal_density(NUM_TIMESTEPS, train.logit_mean, train.logit_deviation)
    if train.timesteps == "gap":
        assert train.gap_low is not None
        assert train.gap_high is not None  # see `with_gap`
        return gap_density(NUM_TIMESTEPS, train.gap_low, train.gap_high, train.gap_density)
    return None


def with_gap(settings: Settings, images: ImageSet, held_out: ImageSet | None, abar: Tensor) -> TrainSettings:
    """Section train with both ends of the gap: those that no one gave are those of the danger zone of the images.

    Args:
        settings: of the run.
        images: the training set; of copies one counts, and with `data.flips` so do mirrored images.
        held_out: what is held out from it.
        abar: of the noise schedule, (1000,).

    Raises:
        UserError: the zone is of latents, there are no held-out images, or no zone.
    """
    train = settings.train
    if train.timesteps != "gap" or None not in (train.gap_low, train.gap_high):
        return train
    if settings.model.kind == "text-to-image":
        raise UserError("the gap of text-to-image is not computed from images: set train.gap_low and train.gap_high")
    if not held_out:
        raise UserError(
            "train.timesteps gap finds its gap from images that are held out, and there are none: set train.gap_low "
            "and train.gap_high, or hold some out"
        )
    unique = to_float(images.images[unique_images(images.images)[0]])
    seen = torch.cat([unique, unique.flip(-1)]) if settings.data.flips else unique
    try:
        first, last = danger_zone(seen, to_float(held_out.images), abar)
    except UserError as error:
        raise UserError(f"{error}. Set train.gap_low and train.gap_high") from None
    ends = {"gap_low": first, "gap_high": last} | train.model_dump(include={"gap_low", "gap_high"}, exclude_none=True)
    if ends["gap_low"] > ends["gap_high"]:
        raise UserError(f"the gap from {ends['gap_low']} to {ends['gap_high']} is empty: set both ends, or none")
    say(f"timesteps {ends['gap_low']} to {ends['gap_high']} are trained less: the danger zone of {images.name}")
    return train.model_copy(update=ends)
