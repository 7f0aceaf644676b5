"""Processes of a test: one world of several, or a child that dies."""

import os
import signal
import socket

import torch

from iet_agc.runtime import distributed


def in_processes(count, action):
    """Run `action` in `count` forked processes that form one gloo world."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    children = []
    for rank in range(count):
        pid = os.fork()
        if pid == 0:
            os.environ.update(
                RANK=str(rank),
                WORLD_SIZE=str(count),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
                GLOO_SOCKET_IFNAME="lo",
            )
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
