"""Memory for pixels, as far as the machine has it."""

import math
import os
import sys

import numpy as np

from iet_agc.runtime.errors import UserError

__all__ = ["room"]


def room(shape: tuple[int, ...], what: str) -> np.ndarray:
    """Memory for uint8 pixels; pages are taken as they are filled."""
    needed = math.prod(shape)
    try:
        if needed > _memory():
            raise MemoryError
        return np.empty(shape, np.uint8)
    except MemoryError:
        sizes = f"{needed / 2**30:.1f} GiB, this machine has {_memory() / 2**30:.1f}"
        raise UserError(f"{what} need {sizes}: give fewer or smaller images") from None


def _memory() -> int:
    """Bytes of memory that the machine has; where it does not tell, no limit."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize
