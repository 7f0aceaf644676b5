"""CPU threads of torch."""

from collections.abc import Generator
from contextlib import contextmanager

import torch

__all__ = ["num_threads"]


@contextmanager
def num_threads(count: int) -> Generator[None]:
    """A context in which torch computes with so many CPU threads, then with as many as before; 0 changes nothing."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count:
            torch.set_num_threads(before)
