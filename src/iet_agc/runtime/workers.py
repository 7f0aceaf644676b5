"""One function on several tasks, in processes of this program or in this one, which say how far they are."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from multiprocessing.sharedctypes import Synchronized
from typing import TypeVar

from iet_agc.runtime.errors import CheckFailed
from iet_agc.runtime.malloc import keep_freed_memory

__all__ = ["advance", "in_workers"]

Result = TypeVar("Result")

#: Seconds between two looks at how far workers are.
_LOOK = 0.5

#: Where a task of this process tells how far it is.
_told: Callable[[float], object] = lambda work: None  # noqa: E731 (replaced while tasks are at work)


def advance(work: float) -> None:
    """Within a task: so much more of it is done, in whatever unit the caller counts."""
    _told(work)


def in_workers(
    function: Callable[..., Result],
    tasks: Sequence[tuple[object, ...]],
    workers: int,
    on_work: Callable[[float], object],
) -> Generator[tuple[int, Result]]:
    """Apply a function to each task, and hand out results as they come.

    Args:
        function: at the top of a module, since other processes import it.
        tasks: the arguments of each call.
        workers: how many processes; with 1 all is done in this one, in order. Processes are spawned: a script that
            calls this needs `if __name__ == "__main__":`. They end with this one, even if it is killed.
        on_work: called now and then with the sum of what tasks told by `advance`.

    Yields:
        (number of the task, what the function returned).

    Raises:
        CheckFailed: the system ended a worker, such as for want of memory.
        Exception: whatever a task raised; the workers are ended then.
    """
    if workers == 1:
        yield from _here(function, tasks, on_work)
        return
    context, others = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
    done = context.Value("d", 0.0)
    with ProcessPoolExecutor(workers, context, _enter, (done,)) as pool:
        pending = {pool.submit(function, *task): number for number, task in enumerate(tasks)}
        try:
            while pending:
                finished, _ = wait(pending, _LOOK, FIRST_COMPLETED)
                on_work(done.value)
                for future in finished:
                    yield pending.pop(future), future.result()
        except BrokenProcessPool:
            raise CheckFailed(
                "the system ended a worker process, perhaps for want of memory: the same command goes on, with fewer "
                "processes it needs less"
            ) from None
        except BaseException:
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()
            raise


def _here(
    function: Callable[..., Result], tasks: Sequence[tuple[object, ...]], on_work: Callable[[float], object]
) -> Iterator[tuple[int, Result]]:
    global _told  # noqa: PLW0603 (where tasks of this process tell)
    before, done = _told, 0.0

    def tell(work: float) -> None:
        nonlocal done
        done += work
        on_work(done)

    _told = tell
    try:
        for number, task in enumerate(tasks):
            yield number, function(*task)
    finally:
        _told = before


def _enter(done: "Synchronized[float]") -> None:
    """In a new worker: give it the sum that the parent watches, and have it end when the parent does."""
    global _told  # noqa: PLW0603 (how a worker process is told)

    def tell(work: float) -> None:
        with done.get_lock():
            done.value += work

    _told = tell
    keep_freed_memory()  # of the whole process, which is ours
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    wait_for([parent.sentinel])
    os._exit(1)
