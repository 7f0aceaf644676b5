"""scikit-learn's digits."""

from pathlib import Path

import numpy as np
import torch

from iet_agc.config.data_settings import DigitsData
from iet_agc.data.image_set import ImageSet, Parts

__all__ = ["digits_origin", "read_digits"]


def read_digits(data: DigitsData) -> Parts:
    """scikit-learn's digits: 1,797 of 1 x 8 x 8, scaled from 0 .. 16 to 0 .. 255, with labels."""
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)  # (1797, 64), 0 .. 16
    pixels = np.rint(np.asarray(values) * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return ImageSet(torch.from_numpy(pixels), data.name, torch.from_numpy(labels).long()), None


def digits_origin(data: DigitsData) -> list[Path]:
    """Nothing: they come with scikit-learn and are read at once."""
    return []
