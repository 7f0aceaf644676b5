"""Images of noise, smooth pictures, and networks of one line, for what is similar by descriptors or by pixels."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from iet_agc.metrics.features import Extractor


def noise(count, seed, shape=(1, 8, 8)):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, *shape), generator=rng, dtype=torch.uint8)


def scenes(count: int, shape: tuple[int, int, int] = (3, 32, 32), seed: int = 0) -> Tensor:
    """Smooth pictures, no two alike: noise of few pixels, enlarged."""
    coarse = torch.rand(count, shape[0], 7, 7, generator=torch.Generator().manual_seed(seed))
    return (interpolate(coarse, shape[1:], mode="bicubic").clamp(0, 1) * 255).round().to(torch.uint8)


def centred(images):
    """Features that point anywhere: unrelated images have cosines near 0."""
    return images[:, 0].flatten(1).float() - 127.5, None


TRAIN, HELD_OUT, FRESH = noise(120, 1), noise(199, 2), noise(60, 3)
NETWORK = Extractor("net", None, 64, "centred", torch.device("cpu"), centred)
DETECTOR = Extractor("sscd.pt", None, 64, "centred", torch.device("cpu"), centred, copy_detection=True)
