"""Blocks on several threads: all of them, in order, each with one thread of torch; and errors end the work."""

from collections.abc import Iterator
from threading import Barrier, Event

import pytest
import torch

from iet_agc.runtime.threads import in_blocks, num_threads


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    with num_threads(2):
        yield


def test_results_come_in_the_order_of_the_blocks() -> None:
    shares: list[float] = []
    last_is_done = Event()

    def work(some: slice) -> tuple[int, int]:
        if some.start:
            last_is_done.set()
        else:
            assert last_is_done.wait(30)
        return some.start, some.stop

    assert in_blocks(work, 5, 3, shares.append) == [(0, 3), (3, 5)]
    assert shares == [0.6, 0.4]
    assert in_blocks(work, 0, 3, shares.append) == []


def test_blocks_run_side_by_side_each_with_one_thread_of_torch() -> None:
    both = Barrier(2, timeout=30)

    def work(some: slice) -> int:
        both.wait()  # broken if the other block does not run at the same time
        return torch.get_num_threads()

    assert in_blocks(work, 4, 1) == [1, 1, 1, 1]
    assert torch.get_num_threads() == 2


def test_an_error_ends_the_work() -> None:
    begun: list[int] = []

    def work(some: slice) -> None:
        begun.append(some.start)
        raise ValueError(f"block {some.start}")

    with pytest.raises(ValueError, match="block 0"):
        in_blocks(work, 10_000, 1)
    assert len(begun) < 10_000
    assert torch.get_num_threads() == 2
