"""Faults at a chosen moment: death before the n-th change of the disk, or after a time; and files that cannot grow."""

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

#: Of what Python tells an audit hook before it does it, all that changes the disk; and how a file is opened for it.
_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass(frozen=True)
class Outcome:
    """How a fork ended.

    Attributes:
        status: what it exited with; below 0, the signal that killed it.
        said: on stdout and stderr.
        changes: of the disk that it made, where it was not killed.
    """

    status: int
    said: str
    changes: int

    @property
    def killed(self) -> bool:
        """Whether it was killed before its end."""
        return self.status == -signal.SIGKILL


def forked(
    action: Callable[[], object], before: int = 0, seconds: float | None = None, largest: int | None = None
) -> Outcome:
    """Do something in a fork, with a process group of its own.

    Args:
        action: whatever it raises is said on its stderr; it exits like a program would.
        before: kill it before so many changes of the disk.
        seconds: kill it after so long.
        largest: no file may grow beyond so many bytes, as on a full disk.
    """
    told, counted = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.dup2(told[1], 1)
        os.dup2(told[1], 2)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(place), "w", buffering=1) for place in (1, 2))
        os._exit(_child(action, before, largest, counted[1]))
    os.close(told[1])
    os.close(counted[1])
    if seconds is not None:
        time.sleep(seconds)
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:  # it was forked just now, and is no group of its own yet
            os.kill(pid, signal.SIGKILL)
    with os.fdopen(told[0], "rb") as stream, os.fdopen(counted[0], "rb") as count:
        said = stream.read().decode(errors="replace")
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return Outcome(status, said, int(count.read() or 0))


def _child(action: Callable[[], object], before: int, largest: int | None, counted: int) -> int:
    changes = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal changes
        writes = event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & _WRITES)
        if event in _CHANGES or (writes and arguments[0] != os.devnull):
            changes += 1
            if changes == before:
                os.kill(os.getpid(), signal.SIGKILL)

    if largest is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    sys.addaudithook(hook)
    status: object = 0
    try:
        action()
    except SystemExit as error:
        status = error.code or 0
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    sys.stderr.flush()
    os.write(counted, str(changes).encode())
    return status if isinstance(status, int) else 1


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, at any depth, by their paths below it; none where there is no folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
