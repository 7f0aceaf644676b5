"""What a model that predicts noise is trained towards, other than the noise itself.

Both targets are from papers that put noise of standard deviation sigma on images as they are. Here an image is scaled
as well, x_t = sqrt(abar_t) (x + sigma_t e) with sigma_t = sqrt((1 - abar_t) / abar_t), and e is predicted. A predicted
image D is a predicted noise (y - D) / sigma_t, of y = x + sigma_t e.
"""

import torch
from torch import Tensor

from iet_agc.diffusion.noise_levels import sigma_of

__all__ = ["NEIGHBORS", "ambient", "nearest", "smoothed"]

#: How many images a smoothed target is a mean of, the image itself included; as in the paper.
NEIGHBORS = 100

#: Images whose neighbours are looked for at a time.
_SLICE = 256


def ambient(noise: Tensor, fixed: Tensor, timesteps: Tensor, abar: Tensor, level: int) -> tuple[Tensor, Tensor]:
    """Noise and target of Ambient Diffusion for high noise (Shah et al., ICML 2025, arXiv 2502.21278).

    At levels above sigma_n a model sees an image x only as x_n = x + sigma_n n, with one noise n for all times:
    y = x_n + sqrt(sigma^2 - sigma_n^2) e. A predicted image D(y) implies the prediction

        r y + (1 - r) D(y),  r = sigma_n^2 / sigma^2

    of x_n, which is compared with x_n, by an error that weighs (sigma^2 / (sigma^2 - sigma_n^2))^2 = (1 - r)^-2 more.

    As predicted noise: D(y) = y - sigma p, so the prediction of x_n is y - (1 - r) sigma p, and its error is
    sqrt(1 - r) sigma e - (1 - r) sigma p. Weighed it is sigma (e / sqrt(1 - r) - p). The loss of the noise weighs
    1 / sigma^2 of that of the image, so what is left is |e / sqrt(1 - r) - p|^2: an ordinary loss whose

        noise   sqrt(r) n + sqrt(1 - r) e    (put on x)
        target  e / sqrt(1 - r)

    Given the noise on x, the mean of the target over n and e is that noise. At levels up to sigma_n both are e, on the
    image as it is.

    Args:
        noise: e, standard normal, (B, C, H, W).
        fixed: n, standard normal and one per image, as `noise`.
        timesteps: int64 (B,).
        abar: of the noise schedule, (T,).
        level: the timestep of sigma_n.

    Returns:
        The noise to put on images, and the target; both as `noise`.
    """
    sigma = sigma_of(abar).to(noise.device)
    r = (sigma[level] / sigma[timesteps]).square().clamp(max=1)
    clean = (timesteps <= level)[:, None, None, None]
    from_fixed, from_step = (part.sqrt().to(noise.dtype)[:, None, None, None] for part in (r, 1 - r))
    put_on = torch.where(clean, noise, from_fixed * fixed + from_step * noise)
    return put_on, torch.where(clean, noise, noise / from_step)


def smoothed(
    images: Tensor, neighbors: Tensor, noise: Tensor, timesteps: Tensor, abar: Tensor, collapse: int
) -> Tensor:
    """The temperature-smoothed target (Zhou et al., CVPR 2026, arXiv 2601.19285).

    Training on one image x at a time teaches, in the mean, the posterior mean over the training set, whose weights
    softmax(f), f_j = -|y - x_j|^2 / 2 sigma^2, collapse onto one image as sigma falls. Below sigma_collapse the target
    is the mean of the nearest training images under smoothed weights:

        D = sum_j softmax_j(f / temperature) x_j,  temperature = max(sigma_collapse / sigma, 1)

    As predicted noise that is (y - D) / sigma = e + (x - D) / sigma. Above sigma_collapse it is e.

    Args:
        images: x, float (B, C, H, W), in [-1, 1].
        neighbors: the nearest of each among the training images, itself included, (B, K, C, H, W).
        noise: e, standard normal, as `images`.
        timesteps: int64 (B,).
        abar: of the noise schedule, (T,).
        collapse: the timestep of sigma_collapse; up to it targets are smoothed.

    Returns:
        As `noise`.
    """
    sigmas = sigma_of(abar).to(noise.device)
    sigma = sigmas[timesteps].to(noise.dtype)[:, None, None, None]
    temperature = (sigmas[collapse] / sigmas[timesteps]).clamp(min=1).to(noise.dtype)
    squared = (images + sigma * noise - neighbors.transpose(0, 1)).square().flatten(2).sum(2)  # (K, B)
    weights = (squared / (-2 * sigma.flatten().square() * temperature)).softmax(0)
    mean = torch.einsum("kb,bkchw->bchw", weights, neighbors)
    is_smoothed = (timesteps <= collapse)[:, None, None, None]
    return torch.where(is_smoothed, noise + (images - mean) / sigma, noise)


def nearest(images: Tensor, count: int = NEIGHBORS) -> Tensor:
    """The nearest images of each by pixels, itself included.

    Args:
        images: float (N, C, H, W).
        count: how many; all, where there are fewer images.

    Returns:
        Their numbers, int64 (N, min(count, N)), the nearest first.
    """
    flat = images.flatten(1)
    parts = [torch.cdist(some, flat).topk(min(count, len(flat)), largest=False).indices for some in flat.split(_SLICE)]
    return torch.cat(parts)
