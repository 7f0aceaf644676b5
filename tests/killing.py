"""Death at a chosen moment: before the n-th call that changes something on the disk."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

#: What Python tells an audit hook of before it does it, and what of it changes nothing.
_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

#: What a child that was killed exits with.
DEAD = 77


def killed_before(number: int, action: Callable[[], object]) -> bool:
    """Do something in a fork, which dies like one that is killed before so many changes of the disk.

    Returns:
        Whether it died; else it did all, with fewer changes.
    """
    pid = os.fork()
    if pid == 0:
        count = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            writes = event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & _WRITES)
            if event in _CHANGES or writes:
                count += 1
                if count == number:
                    os._exit(DEAD)

        try:
            sys.addaudithook(hook)
            action()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, DEAD), status
    return status == DEAD


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, at any depth, by their paths below it; none where there is no folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
