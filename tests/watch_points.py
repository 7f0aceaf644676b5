"""Points of a watch, made by hand, and the folder of a watch on any loop."""

from pathlib import Path

import torch

from iet_agc.api.memorization_watch import LossBatch, MemorizationWatch
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


def write_watch(folder: Path) -> Path:
    """The folder of a watch with three points, of which the last copies."""
    images = torch.randint(256, (60, 1, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    watch = MemorizationWatch(images[:40], images[40:], out=folder, images=12, losses=12, quiet=True)
    for step, first in ((100, 40), (200, 44), (300, 0)):
        watch.measure(step, lambda seeds, first=first: images[first : first + len(seeds)], _losses)
    return folder


def _losses(batch: LossBatch) -> torch.Tensor:
    return batch.images.square().mean((1, 2, 3))
