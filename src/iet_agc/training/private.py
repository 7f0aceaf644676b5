"""What a run of DP-SGD guarantees, in words and numbers; see `method.differential_privacy`."""

from typing import TypedDict

from iet_agc.config.settings import Settings
from iet_agc.method.differential_privacy import epsilon_of
from iet_agc.runtime.errors import UserError

__all__ = ["Privacy", "privacy_of"]


class Privacy(TypedDict):
    """The guarantee of a run, of its weights alone: curves, counts per image and audits are not covered.

    Attributes:
        epsilon, delta: of any one entry of the training set, added or removed. An image that stands there k times is k
            entries.
        noise_multiplier, sampling_rate, steps: what it follows from, under Poisson sampling.
        accountant: what computed it.
    """

    epsilon: float
    delta: float
    noise_multiplier: float
    sampling_rate: float
    steps: int
    accountant: str


def privacy_of(settings: Settings, num_images: int) -> Privacy | None:
    """The guarantee of a finished run of one member; None where there is no noise on its gradients.

    It takes the noise, and which images each step draws, for secret. Both follow from train.seed here, so that a run
    resumes bitwise: it holds against those who do not know that seed.

    Raises:
        UserError: more images per step than there are, a delta that guarantees nothing, or opacus is not installed.
    """
    train = settings.train
    if not train.dp_noise:
        return None
    if train.batch_size > num_images:
        raise UserError(
            f"train.dp_noise draws each of {num_images} images with probability train.batch_size / {num_images}, and "
            f"train.batch_size is {train.batch_size}: set it lower"
        )
    if train.dp_delta * num_images >= 1:
        raise UserError(
            f"train.dp_delta {train.dp_delta:g} allows that one of {num_images} images is given away: set it well "
            f"below 1 / {num_images}"
        )
    rate = train.batch_size / num_images
    return Privacy(
        epsilon=epsilon_of(train.dp_noise, rate, settings.total_steps, train.dp_delta),
        delta=train.dp_delta,
        noise_multiplier=train.dp_noise,
        sampling_rate=rate,
        steps=settings.total_steps,
        accountant="Renyi differential privacy, Poisson sampling (opacus)",
    )
