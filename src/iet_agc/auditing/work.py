"""How the long parts of an audit are done: here and now, or in parts on disk that processes share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from iet_agc.metrics.calibration import Kept, Once, at_once

__all__ = ["Arrays", "Compute", "Kept", "Maker", "Once", "Work"]

#: Tensors by name, one row per item; what makes them for some of the items; and who has them made for all: it takes
#: the name of the work, the number of items, the maker, and whom to tell the number of items that were found made.
Arrays = Mapping[str, Tensor]
Maker = Callable[[slice], Arrays]
Compute = Callable[[str, int, Maker, Callable[[int], object]], Arrays]


def _at_once(name: str, total: int, make: Maker, on_done: Callable[[int], object]) -> Arrays:
    """Make all rows here and now, which needs no name and finds nothing done."""
    del name, on_done
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
    """

    compute: Compute = _at_once
    once: Once = at_once
    memory: int = 2 * 1024**3
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    on_done: Callable[[float], object] = lambda share: None
