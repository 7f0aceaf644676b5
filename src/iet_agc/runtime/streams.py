"""Standard output and standard error that do not change what an exit status says.

A reader that has gone (`| head -1`) or a stream that was closed (`>&-`) has said that it wants no more: what is left is
thrown away in silence. A result that a full disk takes no more is an error. What is told on the way, on standard error,
is never a reason to stop.
"""

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

__all__ = ["kept_apart", "put"]


@contextmanager
def kept_apart() -> Generator[None]:
    """Within it, both streams are there, nothing said on standard error can fail, and none of it lands elsewhere."""
    _fill_gaps()
    before = sys.stdout, sys.stderr
    results, told = sys.stdout or _nothing(), _Unfailing(sys.stderr or _nothing())
    sys.stdout, sys.stderr = results, told  # pyright: ignore[reportAttributeAccessIssue] (it has all that is used)
    try:
        yield
    finally:
        told.flush()
        _Unfailing(results).flush()  # what a library printed: `put` has flushed its own
        sys.stdout, sys.stderr = before


def put(text: str, status: int) -> int:
    """Print a result on standard output, at once.

    Args:
        text: of it, without the last line's end. Characters that the stream's encoding has not are written as escapes.
        status: what to exit with, by the result itself.

    Returns:
        `status`; 2 in place of 0 where the result could not be written, after one line on standard error.
    """
    stream = sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
    except BrokenPipeError:
        _discard(stream)
    except OSError as error:
        _discard(stream)
        reason = error.strerror or type(error).__name__
        print(f"iet-agc: the result cannot be written to standard output: {reason}", file=sys.stderr)
        return status or 2
    return status


class _Unfailing:
    """A stream to tell people something; from the first error on, what is written to it is thrown away."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written."""
        try:
            self._stream.write(text)
        except OSError:
            _discard(self._stream)
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        try:
            self._stream.flush()
        except OSError:
            _discard(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _fill_gaps() -> None:
    """Of a closed descriptor 0, 1 or 2 the next file that is opened would take the place, and get what is printed."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _nothing() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def _discard(stream: TextIO) -> None:
    """Lead a stream's descriptor nowhere, so that what it still holds does not fail when the process ends."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
