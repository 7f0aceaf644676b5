"""What tells files apart without reading them: their sizes and times of change."""

import os
from collections.abc import Sequence
from pathlib import Path

__all__ = ["stamps"]


def stamps(places: Sequence[Path]) -> list[tuple[str, int, int]]:
    """(path, bytes, time of change in ns) of every file at or below some places, links followed."""
    found: dict[str, tuple[int, int]] = {}
    seen: set[str] = set()
    for place in places:
        walk = os.walk(place, followlinks=True) if place.is_dir() else [(str(place.parent), [], [place.name])]
        for folder, inner, names in walk:
            seen.add(os.path.realpath(folder))
            inner[:] = [name for name in inner if os.path.realpath(os.path.join(folder, name)) not in seen]
            for name in names:
                path = os.path.abspath(os.path.join(folder, name))
                if os.path.isfile(path):
                    found[path] = (os.stat(path).st_size, os.stat(path).st_mtime_ns)
    return [(path, *found[path]) for path in sorted(found)]
