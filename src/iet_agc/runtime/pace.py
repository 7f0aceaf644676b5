"""Work beside other work, such as measuring beside training: what it costs, and when more of it is affordable."""

import math
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

__all__ = ["Pace", "next_of"]


class Pace:
    """Seconds of some work beside those of all that goes on around it.

    Args:
        most: the work may take at most this share of the time around it; above 0.
        around, work: seconds of either in earlier sessions.
        clock: seconds, from any start.

    Attributes:
        work: seconds of the work.
        expected: seconds that the next piece of work is expected to take; None until it is known.
    """

    def __init__(
        self, most: float, around: float = 0.0, work: float = 0.0, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.most, self.work, self.expected = most, work, None
        self._clock, self._earlier, self._began, self._here = clock, around, None, 0.0

    expected: float | None
    _began: float | None

    def begin(self) -> None:
        """What goes on around the work begins now; only the first call counts."""
        if self._began is None:
            self._began = self._clock()

    @property
    def around(self) -> float:
        """Seconds around the work, all sessions together."""
        now = 0.0 if self._began is None else self._clock() - self._began - self._here
        return self._earlier + now

    @property
    def share(self) -> float:
        """The work's seconds over those around it; 0 where there are none yet."""
        return self.work / self.around if self.around > 0 else 0.0

    @property
    def is_affordable(self) -> bool:
        """Whether another piece of work, as long as expected, keeps to the share."""
        return self.expected is not None and self.work + self.expected <= self.most * self.around

    def left_of(self, steps: int, taken: int) -> int:
        """How many pieces of work as long as expected are affordable until an end that is known.

        Args:
            steps: what goes on around the work has so many steps left.
            taken: so many has it taken in this session, 1 or more; the others will take as long.
        """
        if self.expected is None:
            return 0
        whole = self.around + (self.around - self._earlier) * steps / taken
        return max(0, math.floor((self.most * whole - self.work) / max(self.expected, 1e-9)))

    @contextmanager
    def working(self) -> Generator[None]:
        """Count what is done within it as work; not within itself."""
        began = self._clock()
        try:
            yield
        finally:
            spent = self._clock() - began
            self.work += spent
            if self._began is not None:
                self._here += spent


def next_of(before: int, end: int, left: int) -> int:
    """The next of some steps that are spread geometrically up to an end.

    Args:
        before: the step before them, 1 or more.
        end: the last of them.
        left: how many there are, 1 or more.
    """
    return min(end, math.ceil(before * (end / before) ** (1 / left) - 1e-6)) if before < end else end
