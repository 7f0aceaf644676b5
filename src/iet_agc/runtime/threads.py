"""CPU threads: those of torch, and ours over blocks of rows."""

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

__all__ = ["in_blocks", "num_threads"]

Result = TypeVar("Result")


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


def in_blocks(
    work: Callable[[slice], Result],
    total: int,
    length: int,
    on_done: Callable[[float], object] = lambda share: None,
) -> list[Result]:
    """Work on blocks of rows, as many at a time as torch has threads, each with one thread of torch.

    Threads that share one small operation wait for each other more than they compute. Threads with blocks of their own
    wait only for Python, which torch lets go while it computes. Results do not depend on the number of threads.

    Args:
        work: takes the rows of a block.
        total: number of rows.
        length: rows of a block; the last one has what is left.
        on_done: called in this thread, block by block, with the share of all rows that are in the block.

    Returns:
        The results, in the order of the blocks.
    """
    blocks = [slice(start, min(start + length, total)) for start in range(0, total, length)]
    pool = ThreadPoolExecutor(torch.get_num_threads())
    results: list[Result] = []
    try:
        with num_threads(1):
            for block, result in zip(blocks, pool.map(work, blocks), strict=True):
                results.append(result)
                on_done((block.stop - block.start) / total)
    finally:
        pool.shutdown(cancel_futures=True)
    return results
