"""At which noise levels a training set is memorized, and densities of timesteps that train less there.

The model that minimizes the training loss is known (the posterior mean over the training set). At noise level
sigma = sqrt((1 - abar) / abar) it weighs training image x_i, for a noised image y, by

    w_i(y) = softmax_i(-|y - x_i|^2 / 2 sigma^2)

Two figures say what that means at a level (Dodson et al., 2026, arXiv 2602.17846):

    sharpness  W(sigma) = mean over training images x and noise z of max_i w_i(x + sigma z)
    coverage   C(sigma) = share of noised held-out images x + sigma z inside the shell of some training image,
                          sigma sqrt(d - 2 sqrt(c d)) <= |x + sigma z - x_i| <= sigma sqrt(d + 2 sqrt(c d) + 2 c)

with d the number of pixels and channels and c = 5. Where the noise is small, a sampler does not come into a shell (C is
low); where it is large, no image stands out (W is low). In between, where both are high, is the *danger zone*: what is
learnt there is what gets copied.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass

import torch
from torch import Tensor

from iet_agc.runtime.errors import UserError
from iet_agc.runtime.seeds import generator

__all__ = [
    "Noised",
    "coverage",
    "danger_zone",
    "drawn_timesteps",
    "gap_density",
    "logit_normal_density",
    "noised",
    "sharpness",
    "sigma_of",
    "u_shaped_density",
]

#: c of the shells, as in the paper.
_SHELL = 5.0

#: So many images are noised, at most, drawn from the set: a share then has a standard error of 0.016 or less.
_MOST_NOISED = 1024


def sigma_of(abar: Tensor) -> Tensor:
    """Standard deviation of the noise beside images as they are, sqrt((1 - abar) / abar), float64."""
    return ((1 - abar.double()) / abar.double()).sqrt()


@dataclass(frozen=True)
class Noised:
    """Noised images, and how far they are from training images at any noise level.

    Two products of matrices serve all levels:

        |x + sigma z - x_i|^2 = |x - x_i|^2 + 2 sigma <z, x - x_i> + sigma^2 |z|^2

    Attributes:
        apart: |x - x_i|^2, float64 (M, N).
        along: <z, x - x_i>, float64 (M, N).
        noise: |z|^2, float64 (M,).
        size: d, values per image.
    """

    apart: Tensor
    along: Tensor
    noise: Tensor
    size: int

    def squared(self, sigma: float) -> Tensor:
        """|x + sigma z - x_i|^2, float64 (M, N)."""
        return self.apart + 2 * sigma * self.along + sigma**2 * self.noise[:, None]


def noised(images: Tensor, training: Tensor, noise: Tensor) -> Noised:
    """Put noise on images.

    Args:
        images: x, float (M, ...), in [-1, 1].
        training: x_i, float (N, ...), in [-1, 1].
        noise: z, standard normal, as `images`.
    """
    x, y, z = (each.flatten(1).double() for each in (images, training, noise))
    apart = x.square().sum(1)[:, None] - 2 * x @ y.T + y.square().sum(1)
    along = (z * x).sum(1)[:, None] - z @ y.T
    return Noised(apart.clamp(min=0), along, z.square().sum(1), x.shape[1])


def sharpness(training: Noised, sigma: float) -> float:
    """W(sigma), in (0, 1]: how far one training image outweighs all others; in float64, by logsumexp.

    Args:
        training: noised training images.
        sigma: the noise level, above 0.
    """
    logits = training.squared(sigma) / (-2 * sigma**2)
    return float((logits.amax(1) - logits.logsumexp(1)).exp().mean())


def coverage(held_out: Noised, sigma: float) -> float:
    """C(sigma), in [0, 1]: how much of what is new lies where some training image was seen with this much noise.

    Args:
        held_out: noised held-out images.
        sigma: the noise level, above 0.
    """
    d, spread = held_out.size, 2 * math.sqrt(_SHELL * held_out.size)
    in_units = held_out.squared(sigma) / sigma**2
    inside = (in_units >= d - spread) & (in_units <= d + spread + 2 * _SHELL)
    return float(inside.any(1).double().mean())


def danger_zone(training: Tensor, held_out: Tensor, abar: Tensor, threshold: float = 0.8) -> tuple[int, int]:
    """The timesteps at which both sharpness and coverage exceed a threshold.

    Sharpness falls and coverage rises with the noise, so each end is found by bisection. The same noise, a function of
    nothing else, is used at all levels.

    Args:
        training: unique training images, float (N, C, H, W), in [-1, 1]. Copies would share the weight of one image.
        held_out: float (M, C, H, W), in [-1, 1].
        abar: of the noise schedule, (T,), falling; levels at which it is 0 have no image left, and are in no zone.
        threshold: 0.8 in the paper, which also tries 0.7 and 0.9.

    Returns:
        The first and the last of these timesteps.

    Raises:
        UserError: there are none.
    """
    sigmas = sigma_of(abar[abar > 0]).tolist()
    seen, new = (_with_noise(images, training, kind) for images, kind in ((training, "training"), (held_out, "new")))
    first = bisect_left(sigmas, True, key=lambda sigma: coverage(new, sigma) > threshold)
    last = bisect_left(sigmas, True, key=lambda sigma: sharpness(seen, sigma) <= threshold) - 1
    if first > last:
        raise UserError(
            f"no timestep has a sharpness and a coverage above {threshold:g}: of {len(training)} images the first "
            f"falls below it at timestep {last + 1}, and the second exceeds it from {first} on"
        )
    return first, last


def _with_noise(images: Tensor, training: Tensor, kind: str) -> Noised:
    rng = generator("danger zone", kind)
    some = images[torch.randperm(len(images), generator=rng)[:_MOST_NOISED]]
    return noised(some, training, torch.randn(some.shape, generator=rng))


def gap_density(count: int, first: int, last: int, inside: float) -> Tensor:
    """Timesteps of a gap are drawn `inside` times as often as by a uniform density, all others more often in turn.

    Args:
        count: timesteps of the noise schedule.
        first, last: of the gap, both in it.
        inside: rho of the paper, in [0, 1].

    Returns:
        Probabilities, float64 (count,).

    Raises:
        ValueError: there is nothing outside of the gap.
    """
    size = last - first + 1
    if not 0 <= first <= last < count or size == count:
        raise ValueError(f"a gap from {first} to {last} leaves nothing of {count} timesteps, or is not among them")
    density = torch.full((count,), (1 - inside * size / count) / (count - size), dtype=torch.float64)
    density[first : last + 1] = inside / count
    return density


def u_shaped_density(count: int, sharpness: float) -> Tensor:
    """The symmetric exponential density over u = t / T: p(u) ~ exp(-sharpness u) + exp(-sharpness (1 - u)).

    Rao and Moyer, 2026 (arXiv 2603.13421) draw the times of a rectified flow so, against memorization; Lee et al., 2024
    (arXiv 2405.20320) with sharpness 4, for other reasons. Timestep t stands for u = (t + 1/2) / count.

    Returns:
        Probabilities, float64 (count,).
    """
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    density = (-sharpness * u).exp() + (-sharpness * (1 - u)).exp()
    return density / density.sum()


def logit_normal_density(count: int, mean: float, deviation: float) -> Tensor:
    """u = t / T is drawn as 1 / (1 + exp(-n)), n normal (Esser et al., 2024, arXiv 2403.03206, section 3.1).

    Timestep t stands for u in [t / T, (t + 1) / T). There is more noise the larger u is, as in the paper; diffusers'
    training scripts count from the other end, so that their mean has the other sign.

    Args:
        count: timesteps of the noise schedule.
        mean, deviation: of n; 0 and 1 in the paper. A larger mean draws more noise.

    Returns:
        Probabilities, float64 (count,).
    """
    edges = torch.logit(torch.arange(count + 1, dtype=torch.float64) / count)
    return torch.special.ndtr((edges - mean) / deviation).diff()


def drawn_timesteps(density: Tensor, lots: Tensor) -> Tensor:
    """Timesteps of a density, by the inverse of its distribution function.

    Args:
        density: probabilities, float64 (T,).
        lots: uniform in [0, 1), float64 (B,).

    Returns:
        int64 (B,); never one of probability 0.
    """
    below = density.cumsum(0)
    return torch.searchsorted(below / below[-1], lots, right=True)
