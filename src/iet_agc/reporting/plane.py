"""What plots of copied share and quality have in common: marks that look different, and an axis with room near 0."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iet_agc.reporting.charts import PALETTE

__all__ = ["Mark", "share_ticks", "signed_root", "signed_square"]

#: Six shapes, and each as a character, for keys on pages; with seven colours, 42 things look different.
_MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚"}


@dataclass(frozen=True)
class Mark:
    """How a thing looks in a plot, and in the keys of its page, by its number, from 1."""

    number: int

    @property
    def colour(self) -> str:
        """As CSS calls it."""
        return PALETTE[(self.number - 1) % len(PALETTE)]

    @property
    def marker(self) -> str:
        """Its shape, as matplotlib calls it."""
        return list(_MARKERS)[(self.number - 1) % len(_MARKERS)]

    @property
    def sign(self) -> str:
        """The marker as a character."""
        return _MARKERS[self.marker]


def signed_root(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Makes room where copies are few; negative below 0, so that a mark at 0 is whole."""
    return np.sign(values) * np.sqrt(np.abs(values))


def signed_square(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of `signed_root`."""
    return np.sign(values) * np.square(values)


def share_ticks(most: float) -> list[float]:
    """0 and round shares that stand apart on an axis of square roots that ends a little beyond `most`."""
    ticks = [0.0]
    for tick in (1e-4, 2e-4, 5e-4, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, *np.linspace(0.1, 1, 10).round(1)):
        if tick <= 1.15 * most and tick**0.5 - ticks[-1] ** 0.5 >= 0.11 * most**0.5:
            ticks.append(float(tick))
    return ticks
