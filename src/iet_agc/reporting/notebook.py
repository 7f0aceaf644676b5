"""A result in a notebook: what came out, its figures and a few pictures, as a piece of HTML. No torch here."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iet_agc.reporting.charts import page

__all__ = ["result_html"]

#: Larger pictures are shrunk, in pixels a side: a notebook keeps them all. Smaller ones are shown enlarged.
_LARGEST, _SMALLEST = 640, 96


def result_html(
    title: str,
    figures: Sequence[tuple[str, str]],
    pictures: Sequence[tuple[str, Sequence[NDArray[np.uint8]]]],
) -> str:
    """Lay out a result.

    Args:
        title: what came out, in a few words.
        figures: name and value of each.
        pictures: captions, and the images over each, uint8 (C, H, W), grey or RGB.

    Returns:
        HTML without a document around it, the pictures inside, for light and dark notebooks.
    """
    shown = [(caption, [_embedded(image) for image in images]) for caption, images in pictures]
    return page("result.html.j2", {}, title=title, figures=figures, pictures=shown)


def _embedded(pixels: NDArray[np.uint8]) -> tuple[str, int]:
    """A PNG as a data URI, and the width that it is shown at."""
    drawn = Image.fromarray(np.ascontiguousarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)))
    drawn.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    drawn.save(stream, "PNG", optimize=True)
    uri = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
    return uri, max(drawn.width, _SMALLEST)
