"""Whether progress is shown: a switch of the whole process. Nothing is imported for it, so that every verb may ask."""

from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["is_silent", "silenced"]

_silent = False


@contextmanager
def silenced(quiet: bool = True) -> Generator[None]:
    """Within it no progress is shown, if `quiet`; what `progress.say` says is."""
    global _silent  # noqa: PLW0603 (a switch of the process)
    before, _silent = _silent, quiet or _silent
    try:
        yield
    finally:
        _silent = before


def is_silent() -> bool:
    """Whether no progress is to be shown now."""
    return _silent
