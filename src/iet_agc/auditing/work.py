"""How the long parts of an audit are done: here and now, or in parts on disk that processes share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from iet_agc.data.image_set import Rows, in_memory
from iet_agc.metrics.calibration import Kept, Once, at_once

__all__ = ["Arrays", "Compute", "Kept", "Maker", "Once", "Work"]

#: Tensors by name, one row per item; and what makes them for some of the items.
Arrays = Mapping[str, Tensor]
Maker = Callable[[slice], Arrays]


class Compute(Protocol):
    """Who has rows made for all items."""

    def __call__(
        self,
        name: str,
        total: int,
        make: Maker,
        on_done: Callable[[int], object],
        *,
        together: int = 1,
        key: object = None,
    ) -> Arrays:
        """Have them made, or find them made.

        Args:
            name: of the work.
            total: how many items there are.
            make: the maker.
            on_done: told the number of items that were found made.
            together: fewer items than this at a time take the maker more time for each.
            key: all that the rows follow from, JSON values: where it is known, they may be kept for other audits.
        """
        ...


def _at_once(
    name: str,
    total: int,
    make: Maker,
    on_done: Callable[[int], object],
    *,
    together: int = 1,
    key: object = None,
) -> Arrays:
    """Make all rows here and now, which needs no name and finds nothing done."""
    del name, on_done, together, key
    return make(slice(0, total))


@dataclass(frozen=True)
class Work:
    """How the long parts of an audit are done. Only the device may change a number: a network rounds differently there.

    Attributes:
        compute: has rows made. It may keep slices on disk, or leave some to other processes.
        once: has numbers made that only one process needs to make. It may keep them on disk.
        memory: bytes of working memory for each search, beyond images and results.
        device: where to search and to extract features.
        on_done: called with a share of all the work, in [0, 1], for progress.
        rows: copies the pixels of some images of a set. It may keep them on disk.
    """

    compute: Compute = _at_once
    once: Once = at_once
    memory: int = 2 * 1024**3
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    on_done: Callable[[float], object] = lambda share: None
    rows: Rows = in_memory
