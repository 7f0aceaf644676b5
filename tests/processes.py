"""Processes of a test, forked from this one so that none imports torch again: a world of several, or one that dies."""

import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from iet_agc.runtime import distributed

#: What torch's generator starts with in a new process.
_SEED = torch.Generator().initial_seed()


@dataclass(frozen=True)
class Ended:
    """How a process ended: as `subprocess.run` says it, a signal as a status below 0."""

    returncode: int
    stdout: str
    stderr: str


class Program:
    """What would be a program of its own, in a fork: it starts in milliseconds, where importing torch takes seconds.

    It has no input, its own streams, and the signal handlers and random numbers that a new program has. What is patched
    here is patched there, too.

    Args:
        action: what it does; it exits like a program would.
        environment: variables to change.
        folder: where it runs.
    """

    def __init__(
        self, action: Callable[[], object], environment: Mapping[str, str] | None = None, folder: Path | None = None
    ) -> None:
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 (closed at its end)
        self._status: int | None = None
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                _become_a_program(self._out, self._err)
                os.environ.update(environment or {})
                os.chdir(folder or ".")
                status = _exit_status(action)
            finally:
                os._exit(status)

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def poll(self) -> int | None:
        """Its status, or None while it runs."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def ended(self, seconds: float = 300) -> Ended:
        """Wait for its end, and read what it said.

        Raises:
            TimeoutError: it took longer, and was killed.
        """
        waited = time.monotonic()
        while (status := self.poll()) is None:
            if time.monotonic() - waited > seconds:
                self.kill()
                raise TimeoutError(f"after {seconds} seconds it said {self._said(self._err)}")
            time.sleep(0.005)
        return Ended(status, self._said(self._out), self._said(self._err))

    @staticmethod
    def _said(stream: BinaryIO) -> str:
        length = os.fstat(stream.fileno()).st_size
        return os.pread(stream.fileno(), length, 0).decode(errors="replace")


def _become_a_program(out: BinaryIO, err: BinaryIO) -> None:
    """In a fork: take streams, signal handlers and random states as a new process has them."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with open(os.devnull, "rb") as nothing:
        for stream, place in ((nothing, 0), (out, 1), (err, 2)):
            os.dup2(stream.fileno(), place)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", encoding="utf-8", buffering=1, closefd=False)
    random.seed()
    np.random.seed()
    torch.manual_seed(_SEED)


def _exit_status(action: Callable[[], object]) -> int:
    """Do it, and say what the process of such a program exits with."""
    status: object = 0
    try:
        action()
    except SystemExit as exit_:
        status = exit_.code
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    if not (status is None or isinstance(status, int)):
        print(status, file=sys.stderr)
        status = 1
    for stream in (sys.stdout, sys.stderr):
        if not stream.closed:
            stream.flush()
    return status or 0


def places(count: int) -> list[dict[str, str]]:
    """The variables by which `count` processes find each other, of each; torchrun sets them so."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def in_world(count: int, action: Callable[[], object], folder: Path | None = None) -> list[Ended]:
    """The same program in `count` processes, as torchrun starts it; how each ended."""
    programs = [Program(action, place, folder) for place in places(count)]
    return [program.ended() for program in programs]


def in_processes(count, action):
    """Run `action` in `count` forked processes that form one gloo world."""
    children = []
    for rank, place in enumerate(places(count)):
        pid = os.fork()
        if pid == 0:
            os.environ.update(place)
            try:
                with distributed.processes(torch.device("cpu")):
                    action()
                os._exit(0)
            except BaseException as error:
                os.write(2, f"rank {rank}: {type(error).__name__}: {error}\n".encode())
                os._exit(1)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * count


def in_child(action):
    """Run in a forked process; the number of the signal that ended it, or 0."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def killed_after(count, action):
    """Run `action` in a forked process; what it is given counts steps, and kills it once they are so many."""
    done = []

    def counts(steps):
        done.append(steps)
        if sum(done) >= count:
            die()

    assert in_child(lambda: action(counts)) == signal.SIGKILL


def die():
    os.kill(os.getpid(), signal.SIGKILL)
