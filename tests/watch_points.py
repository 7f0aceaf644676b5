"""Points of a watch, made by hand."""

from iet_agc.metrics.curve import ClosePair, Distance, Losses, Point, is_above_chance
from iet_agc.metrics.intervals import share
from iet_agc.metrics.records import Calibrated


def point(step: int, copied: int, total: int = 200, *, distance: float = 1.0, losses: Losses | None = None) -> Point:
    """A point at which so many of the samples are below the cut of 497 held-out images."""
    found = Calibrated(**dict(share(copied, total)), false_alarm=0.01, cut=0.13, num_held_out=497)
    return Point.model_validate(
        {
            "copied": found,
            "source": "held-out images",
            **is_above_chance(found),
            "distance": Distance(value=distance, to="held-out images", features="pixels / 255", num_real=497),
            "pairs": (ClosePair(sample=0, image=3, ratio=0.1, distance=0.5),),
            "step": step,
            "images_seen": 64 * step,
            "seen": 64 * step,
            "skipped": 0,
            "skip_rate": 0.0,
            "losses": losses,
            "agreement": None,
        }
    )


def points(*copied: int) -> list[Point]:
    """At steps 100, 200, ..."""
    return [point(100 * number, count) for number, count in enumerate(copied, 1)]
