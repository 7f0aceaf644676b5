"""Duplicates as a page: groups of copies in rows of pictures, the largest first. No torch here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iet_agc.reporting.charts import page, percent, picture

__all__ = ["MOST_GROUPS", "MOST_IMAGES", "ShownGroup", "ShownImage", "render_duplicates"]

#: So many groups are on the page, and so many images of each; so many groups stand before "more".
MOST_GROUPS, MOST_IMAGES = 200, 12
_AT_ONCE = 40


@dataclass(frozen=True)
class ShownImage:
    """An image of a group.

    Attributes:
        name: its file, or its index in the set.
        relation: to the others, for people, such as "centre" or "mirrored".
        kept: whether it is the one of its group that stays.
        pixels: uint8 (C, H, W), grey or RGB.
    """

    name: str
    relation: str
    kept: bool
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class ShownGroup:
    """Copies of one image: how many there are, and those of them that are shown."""

    number: int
    kind: str
    size: int
    images: Sequence[ShownImage]


def render_duplicates(summary: Mapping[str, Any], groups: Sequence[ShownGroup]) -> str:
    """Lay out what was found.

    Args:
        summary: the content of duplicates.json.
        groups: those that are shown, the largest first.

    Returns:
        A whole HTML document, with the pictures inside it.
    """
    rows = [(group, [(image, picture(image.pixels)) for image in group.images]) for group in groups]
    return page(
        "duplicates_page.html.j2",
        {"percent": percent, "count": "{:,}".format},
        summary=summary,
        rows=rows,
        at_once=_AT_ONCE,
    )
