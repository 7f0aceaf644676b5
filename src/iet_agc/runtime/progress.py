"""What is said on stderr while work goes on."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

__all__ = ["progress_bar", "say", "without_bars"]


def say(line: str) -> None:
    """One line to the person at the terminal, above any progress bar."""
    tqdm.write(line, file=sys.stderr)


class _Bar(tqdm):  # pyright: ignore[reportMissingTypeArgument]
    """A bar that takes fractions and shows whole numbers."""

    exact, told = 0.0, 0

    def refresh(self, *given: Any, **options: Any) -> None:
        """Draw it anew, after the delay only: a line that is told above it does not make it appear."""
        if time.time() >= self.start_t + self.delay:
            super().refresh(*given, **options)

    def update(self, n: float | None = 1) -> bool | None:
        """Go on by `n`."""
        self.exact += n or 0
        more = round(self.exact) - self.told
        self.told += more
        return super().update(more)


@contextmanager
def without_bars() -> Iterator[None]:
    """Within it, transformers draws no bars of its own, which would stand beside ours, or before an error."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def progress_bar(
    what: str, total: int | None, done: int = 0, unit: str = "step", shown: bool = True
) -> Iterator["tqdm[Any]"]:
    """A bar on stderr that tells the time left, from the speed of this session's work only."""
    with _Bar(
        total=total, initial=done, desc=what, unit=unit, file=sys.stderr, disable=not shown, smoothing=0.05, delay=1
    ) as bar:
        yield bar
