"""What is said on stderr while work goes on."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

__all__ = ["progress_bar", "say"]


def say(line: str) -> None:
    """One line to the person at the terminal, above any progress bar."""
    tqdm.write(line, file=sys.stderr)


class _Bar(tqdm):  # pyright: ignore[reportMissingTypeArgument]
    """A bar that takes fractions and shows whole numbers."""

    exact, told = 0.0, 0

    def update(self, n: float | None = 1) -> bool | None:
        """Go on by `n`."""
        self.exact += n or 0
        more = round(self.exact) - self.told
        self.told += more
        return super().update(more)


@contextmanager
def progress_bar(
    what: str, total: int | None, done: int = 0, unit: str = "step", shown: bool = True
) -> Iterator["tqdm[Any]"]:
    """A bar on stderr that tells the time left, from the speed of this session's work only."""
    with _Bar(
        total=total, initial=done, desc=what, unit=unit, file=sys.stderr, disable=not shown, smoothing=0.05, delay=1
    ) as bar:
        yield bar
