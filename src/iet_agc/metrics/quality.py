"""Fréchet distance between two image sets, in pixel space or in the features of a network.

    |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))

With the pool features of torch-fidelity's Inception network this is FID (Heusel et al., 2017). Tiny
images mean nothing to such a network; there the features are the pixels themselves.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.utils import create_feature_extractor

__all__ = ["EXTRACTORS", "default_extractor", "features", "frechet_distance"]

#: Extractors by name, with the layer that is used. "pixels" needs no network.
EXTRACTORS = {
    "pixels": "",
    "inception-v3-compat": "2048",
    "vgg16": "fc2_relu",
    "clip-vit-b-32": "clip",
    "dinov2-vit-b-14": "dinov2",
}

#: Up to this many values, an image is tiny; beyond the second number, a covariance of pixels is no use.
_TINY, _MOST_PIXELS = 1024, 4096


def default_extractor(shape: tuple[int, int, int]) -> str:
    """ "pixels" for images of at most 1,024 values, such as 1 x 28 x 28; torch-fidelity's Inception above."""
    channels, height, width = shape
    return "pixels" if channels * height * width <= _TINY else "inception-v3-compat"


def features(
    images: Tensor, extractor: str, batch_size: int = 64, on_images: Callable[[int], object] = lambda count: None
) -> Tensor:
    """One row of features per image.

    Args:
        images: uint8 (N, C, H, W), grey or RGB.
        extractor: a key of `EXTRACTORS`.
        batch_size: images at a time.
        on_images: called with a number of finished images, for progress.

    Returns:
        float64 (N, D). For "pixels", the pixels divided by 255.

    Raises:
        ValueError: unknown extractor, or its weights are not there and cannot be downloaded.
    """
    if extractor not in EXTRACTORS:
        raise ValueError(f"unknown extractor {extractor!r}: use one of {', '.join(EXTRACTORS)}")
    if extractor == "pixels":
        if images[0].numel() > _MOST_PIXELS:
            size = " x ".join(map(str, images.shape[1:]))
            raise ValueError(f"extractor 'pixels' is for at most {_MOST_PIXELS} values, not {size}: choose a network")
        on_images(len(images))
        return images.flatten(1).double() / 255
    network = _network(extractor)
    rows = []
    for batch in images.expand(-1, 3, -1, -1).split(batch_size):
        rows.append(network(batch)[0].double())
        on_images(len(batch))
    return torch.cat(rows)


def _network(extractor: str) -> Callable[[Tensor], tuple[Tensor, ...]]:
    try:
        return create_feature_extractor(extractor, [EXTRACTORS[extractor]], cuda=False, verbose=False)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"the weights of extractor {extractor!r} are not in torch's hub cache and cannot be downloaded ({reason}): "
            "audit once where there is a network, or choose 'pixels'"
        ) from error


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Fréchet distance of two normal distributions fitted to two sets of features.

    Args:
        first: float64 (N, D), N >= 2.
        second: float64 (M, D), M >= 2.

    Returns:
        At least 0, up to rounding; in squared units of the features. Low is good. It is biased upward
        for small sets, so compare only at equal sizes.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError(f"a Fréchet distance needs 2 images on each side, not {len(first)} and {len(second)}")
    one, two = fid_features_to_statistics(first.cpu()), fid_features_to_statistics(second.cpu())
    return fid_statistics_to_metric(one, two, verbose=False)[KEY_METRIC_FID]
