"""What is said on stderr while work goes on: bars on a terminal, a line per 10 % in a log, nothing where silenced."""

import importlib.util
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Protocol

from tqdm import tqdm

from iet_agc.runtime.silence import is_silent

__all__ = ["Bar", "phase", "progress_bar", "say", "without_bars"]

#: Work that takes less, in seconds, is not worth a word.
_DELAY = 1

#: A bar with figures: no room for counts and rate in 80 columns.
_WITH_FIGURES = "{desc}{percentage:.0f}% |{bar}| {remaining} left{postfix}"

#: A bar of shares of all work, which has no unit.
_OF_WORK = "{desc}{percentage:.0f}% |{bar}| {elapsed}, {remaining} left"


class Bar(Protocol):
    """Progress of one piece of work.

    Attributes:
        n: how much is done.
        delay: seconds from the start in which nothing is shown.
    """

    n: int
    delay: float

    def update(self, n: float | None = 1) -> bool | None:
        """Go on by `n`."""

    def name_phase(self, what: str) -> None:
        """Say what is going on now."""

    def show_figures(self, figures: str) -> None:
        """Say a few figures beside the bar, until others come."""


def say(line: str) -> None:
    """One line to the person at the terminal, above any progress bar."""
    tqdm.write(line, file=sys.stderr)


class _Counter:
    """Takes fractions, counts whole numbers: `whole(n)` is how many more there are now."""

    def __init__(self) -> None:
        self.exact, self.told = 0.0, 0

    def whole(self, n: float) -> int:
        self.exact += n
        more = round(self.exact) - self.told
        self.told += more
        return more


class _TerminalBar(tqdm):  # pyright: ignore[reportMissingTypeArgument]
    """A bar that is drawn over and over in one line."""

    def __init__(self, **options: Any) -> None:
        self.counter = _Counter()
        super().__init__(**options)

    def refresh(self, *given: Any, **options: Any) -> None:
        """Draw it anew, after the delay only: a line that is told above it does not make it appear."""
        if time.time() >= self.start_t + self.delay:
            super().refresh(*given, **options)

    def update(self, n: float | None = 1) -> bool | None:
        """See `Bar`."""
        return super().update(self.counter.whole(n or 0))

    def name_phase(self, what: str) -> None:
        """See `Bar`."""
        if not self.disable:
            self.set_description(what)

    def show_figures(self, figures: str) -> None:
        """See `Bar`."""
        if not self.disable:
            self.bar_format = _WITH_FIGURES
            self.set_postfix_str(figures, refresh=False)


class _LogBar:
    """A line for each tenth of the work; where nobody knows how much there is, one at the end."""

    def __init__(self, what: str, total: int | None, done: int, unit: str) -> None:
        self.what, self.total, self.n, self.unit, self.figures = what, total, done, unit, ""
        self.delay, self._first, self._began = float(_DELAY), done, time.monotonic()
        self._counter, self._told = _Counter(), self._tenths()

    def update(self, n: float | None = 1) -> None:
        """See `Bar`."""
        self.n += self._counter.whole(n or 0)
        if self._tenths() > self._told and self._is_due():
            self._told = self._tenths()
            self._say()

    def name_phase(self, what: str) -> None:
        """See `Bar`: the next line has it."""
        self.what = what

    def show_figures(self, figures: str) -> None:
        """See `Bar`: the next line has them."""
        self.figures = figures

    def close(self) -> None:
        """Say how much it was where nothing could be said on the way."""
        if not self.total and self.n and self._is_due():
            self._say()

    def _tenths(self) -> int:
        return 10 * self.n // self.total if self.total else 0

    def _is_due(self) -> bool:
        return self._seconds() >= self.delay

    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _say(self) -> None:
        spent, new = self._seconds(), self.n - self._first
        count = f"{self.n}/{self.total} {self.unit}s" if self.total else f"{self.n} {self.unit}s"
        share = f"{100 * self.n // self.total}%" if self.total else ""
        how_much = f"{share} ({count})" if share and self.unit else share or count
        rest = (self.total or 0) - self.n
        left = f", {_clock(spent * rest / new)} left" if rest > 0 and new else ""
        figures = f", {self.figures}" if self.figures else ""
        say(f"{self.what}: {how_much} in {_clock(spent)}{left}{figures}")


def _clock(seconds: float) -> str:
    return str(tqdm.format_interval(seconds))


@contextmanager
def without_bars() -> Generator[None]:
    """Within it, transformers draws no bars of its own, which would stand beside ours, or before an error."""
    if importlib.util.find_spec("transformers") is None:
        yield
        return
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def progress_bar(what: str, total: int | None, done: int = 0, unit: str = "step", shown: bool = True) -> Generator[Bar]:
    """A bar on stderr that tells the time left, from the speed of this session's work only.

    Args:
        what: goes on, in a word.
        total: how much there is; None where nobody knows.
        done: how much of it is done already.
        unit: of both, in the singular; "" where they are shares of all work.
        shown: whether to show anything; `silenced` shows nothing in any case.
    """
    shown = shown and not is_silent()
    if shown and not sys.stderr.isatty():
        log = _LogBar(what, total, done, unit)
        yield log
        log.close()
        return
    with _TerminalBar(
        total=total, initial=done, desc=what, unit=f" {unit}", file=sys.stderr, disable=not shown, smoothing=0.05,
        delay=_DELAY, bar_format=None if unit else _OF_WORK,
    ) as bar:  # fmt: skip
        yield bar


@contextmanager
def phase(what: str, shown: bool = True) -> Generator[None]:
    """Name work that nothing counts: on a terminal while it lasts, in a log when it has ended, with its time."""
    shown, began = shown and not is_silent(), time.monotonic()
    drawn = shown and sys.stderr.isatty()
    if drawn:
        print(f"{what} ...", end="\r", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if drawn:
            print(" " * len(f"{what} ..."), end="\r", file=sys.stderr, flush=True)
    if shown and not drawn and (spent := time.monotonic() - began) >= _DELAY:
        say(f"{what}: {_clock(spent)}")
