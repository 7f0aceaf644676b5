"""An attack as a page: how many training images each way recovers, and of held-out images. No torch here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from iet_agc.metrics.attacks import WAYS, Attack, Attacks, Way
from iet_agc.reporting.charts import HELD_OUT, PALETTE, Drawing, as_tick, inline, page, style

__all__ = ["ATTACK_FILES", "MOST_SHOWN", "Shown", "render_attack"]

#: What the folder of a result holds, by kind.
ATTACK_FILES = {"json": "attack.json", "csv": "images.csv", "html": "attack.html"}

#: Pictures of each way are of at most so many images.
MOST_SHOWN = 12

#: Colour and line of each way.
_LINES: dict[Way, tuple[str, str]] = {
    "sampling": (PALETTE[1], "--"),
    "redrawing": (PALETTE[0], "-"),
    "ranking": (PALETTE[2], "-"),
    "embeddings": (PALETTE[3], "-."),
}


@dataclass(frozen=True)
class Shown:
    """A training image that was recovered.

    Attributes:
        image: where it stands first in the training set.
        multiplicity: how often it stands there.
        score: of what was drawn.
        trained, drawn: uint8 (C, H, W).
    """

    image: int
    multiplicity: int
    score: float
    trained: NDArray[np.uint8]
    drawn: NDArray[np.uint8]


def render_attack(
    found: Attacks,
    scores: tuple[NDArray[np.float64], NDArray[np.float64]],
    pictures: Mapping[Way, Sequence[Shown]],
    facts: Mapping[str, str | int],
    prompting: Mapping[str, object] | None = None,
) -> str:
    """Lay out what was found.

    Args:
        found: the numbers.
        scores: of redrawn training images and held-out images.
        pictures: of each way, those recovered.
        facts: names of "run" and "model"; "steps" and evaluations ("per_sample") of a plain sample, "draws" of each
            target, "redraw_steps" of each.
        prompting: of text-to-image, how it was prompted: "guidance", and numbers of each further way by its name.

    Returns:
        A whole HTML document, with charts and pictures inside it.
    """
    with style():
        return page(
            "attack_page.html.j2",
            {"limits": _limits, "rate": _rate},
            title=f"Training images that {facts['run']} gives back",
            found=found,
            ways=WAYS,
            pictures=pictures,
            facts=facts,
            prompting=prompting,
            beyond=[each for each in found.attacks if each.is_beyond_chance],
            charts=[_found_after(found), _histogram(scores, found.attacks[1])],
        )


def _rate(value: float) -> str:
    """A rate in three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _limits(interval: tuple[float, float]) -> str:
    """Limits of a rate, for people."""
    return " to ".join(_rate(limit) for limit in interval)


def _found_after(found: Attacks) -> Drawing:
    figure = Figure(figsize=(4.3, 2.9))
    axes = figure.add_subplot()
    most = max(each.evaluations for each in found.attacks)
    for each in found.attacks:
        colour, line = _LINES[each.way]
        reached = [0, *each.found_after, each.evaluations]
        counts = [*range(each.train.count + 1), each.train.count]
        axes.step(reached, counts, line, where="post", color=colour, linewidth=1.5, label=WAYS[each.way])
    axes.set(xlim=(0, most), xlabel="evaluations of the model", ylabel="training images recovered")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.locator_params(axis="x", nbins=5)
    axes.legend(fontsize=8)
    caption = "Different training images recovered so far, by the cuts of the whole attack."
    return Drawing(inline(figure, "Line chart: training images recovered, by evaluations of the model."), caption)


def _histogram(scores: tuple[NDArray[np.float64], NDArray[np.float64]], redrawing: Attack) -> Drawing:
    """On a logarithmic axis, since what counts is near 0."""
    figure = Figure(figsize=(4.3, 2.9))
    axes = figure.add_subplot()
    least = max(1e-3, min(float(each.min()) for each in scores))
    bins = np.geomspace(least, max(1.0, *(float(each.max()) for each in scores)), 41)
    for label, each, colour, line in (
        ("training", scores[0], PALETTE[0], "-"),
        ("held-out", scores[1], HELD_OUT, "--"),
    ):
        share = np.histogram(np.clip(each, least, None), bins)[0] / len(each)
        axes.stairs(share, bins, fill=True, color=colour, alpha=0.18)
        axes.stairs(share, bins, color=colour, linewidth=1.4, linestyle=line, label=label)
    axes.axvline(max(redrawing.cut, least), color=PALETTE[-1], linewidth=1.2, linestyle=":")
    axes.set(xscale="log", xlim=(bins[0], bins[-1]), xlabel="score of redrawn images", ylabel="share of images")
    axes.yaxis.set_major_formatter(as_tick)
    axes.legend(fontsize=8)
    caption = "Scores of redrawn images; low is a copy. Dotted: the cut, below which an image counts as recovered."
    return Drawing(inline(figure, "Histograms of scores."), caption)
