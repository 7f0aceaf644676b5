"""Membership inference as a page: how many training images are told from others, at which noise. No torch here."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from iet_agc.metrics.intervals import three_digits
from iet_agc.metrics.membership import Correlation, Found, Membership
from iet_agc.reporting.charts import EDGE, HELD_OUT, PALETTE, Drawing, as_tick, inline, page, style

__all__ = ["MEMBERSHIP_FILES", "render_membership"]

#: What the folder of a result holds, by kind.
MEMBERSHIP_FILES = {"json": "membership.json", "csv": "images.csv", "html": "membership.html"}

_TRAINED = PALETTE[0]


def render_membership(
    found: Membership,
    skips: Correlation | None,
    train: NDArray[np.float64],
    held_out: NDArray[np.float64],
    facts: Mapping[str, str],
) -> str:
    """Lay out what was found.

    Args:
        found: the numbers.
        skips: how scores go with AGC's skips, where that is known.
        train, held_out: scores, (N,) and (M,).
        facts: names of "run" and "model".

    Returns:
        A whole HTML document, with the charts inside it.
    """
    with style():
        return page(
            "membership_page.html.j2",
            {"rate": three_digits},
            title=f"Which training images {facts['run']} gives away",
            found=found,
            skips=skips,
            facts=facts,
            told=[each for each in found.found if isinstance(each, Found)],
            missing=[each for each in found.found if not isinstance(each, Found)],
            charts=[_roc(train, held_out), _histogram(train, held_out, found), _bands(found)],
        )


def _roc(train: NDArray[np.float64], held_out: NDArray[np.float64]) -> Drawing:
    """On logarithmic axes, since what counts is at few false alarms."""
    order = np.sort(held_out)[::-1]
    false = np.arange(1, len(order) + 1) / len(order)
    true = 1 - np.searchsorted(np.sort(train), order, side="left") / len(train)
    least = 1 / max(len(train), len(held_out))
    figure = Figure(figsize=(4.3, 2.9))
    axes = figure.add_subplot()
    axes.step(false, np.clip(true, least / 2, 1), where="post", color=_TRAINED, linewidth=1.5)
    axes.plot([least, 1], [least, 1], color=EDGE, linestyle="--", linewidth=1)
    axes.set(xscale="log", yscale="log", xlim=(least, 1), ylim=(least / 2, 1.1))
    axes.set(xlabel="held-out images called members", ylabel="training images found")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(as_tick)
    alt = "ROC curve on logarithmic axes; the table has its points."
    return Drawing(inline(figure, alt), "ROC curve, both axes logarithmic; dashed: chance.")


def _histogram(train: NDArray[np.float64], held_out: NDArray[np.float64], found: Membership) -> Drawing:
    figure, bins = Figure(figsize=(4.3, 2.9)), np.linspace(0, 1, 41)
    axes = figure.add_subplot()
    for label, each, colour, line in (("training", train, _TRAINED, "-"), ("held-out", held_out, HELD_OUT, "--")):
        share = np.histogram(each, bins)[0] / len(each)
        axes.stairs(share, bins, fill=True, color=colour, alpha=0.18)
        axes.stairs(share, bins, color=colour, linewidth=1.4, linestyle=line, label=label)
    cuts = [each for each in found.found if isinstance(each, Found)]
    for each in cuts[:1]:
        axes.axvline(each.cut, color=PALETTE[-1], linewidth=1.2, linestyle=":")
    axes.set(xlim=(0, 1), xlabel="score", ylabel="share of images")
    axes.yaxis.set_major_formatter(as_tick)
    axes.legend(fontsize=8)
    dotted = f" Dotted: the cut of {as_tick(cuts[0].false_alarm)} false alarms." if cuts else ""
    return Drawing(inline(figure, "Histograms of scores."), f"Scores; high is like a training image.{dotted}")


def _bands(found: Membership) -> Drawing:
    figure = Figure(figsize=(4.3, 2.9))
    axes = figure.add_subplot()
    middles = [(band.low + band.high) / 2 for band in found.bands]
    low, high = zip(*(band.auc.ci95 for band in found.bands), strict=True)
    axes.fill_between(middles, low, high, color=_TRAINED, alpha=0.2, linewidth=0)
    axes.plot(middles, [band.auc.value for band in found.bands], "o-", color=_TRAINED, markersize=4)
    axes.axhline(0.5, color=EDGE, linestyle="--", linewidth=1)
    axes.set(xlim=(0, found.bands[-1].high), ylim=(min(0.4, *low), 1.01))
    axes.set(xlabel="timestep", ylabel="area under the curve")
    caption = (
        "Area under the ROC curve by draws of one band of timesteps alone, with 95\u00a0% intervals; 0.5 is chance."
    )
    return Drawing(inline(figure, "Line chart: area under the ROC curve by timestep."), caption)
