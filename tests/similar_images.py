"""Images of noise and networks of one line, for what is similar by descriptors."""

import torch

from iet_agc.metrics.features import Extractor


def noise(count, seed, shape=(1, 8, 8)):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, *shape), generator=rng, dtype=torch.uint8)


def centred(images):
    """Features that point anywhere: unrelated images have cosines near 0."""
    return images[:, 0].flatten(1).float() - 127.5, None


TRAIN, HELD_OUT, FRESH = noise(120, 1), noise(199, 2), noise(60, 3)
NETWORK = Extractor("net", None, 64, "centred", torch.device("cpu"), centred)
DETECTOR = Extractor("sscd.pt", None, 64, "centred", torch.device("cpu"), centred, copy_detection=True)
