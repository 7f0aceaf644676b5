"""Charts of a watch: copied share and quality over images seen, losses, and how far members agree. No torch here."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from iet_agc.metrics.curve import Point, Recommendation
from iet_agc.reporting.charts import EDGE, HELD_OUT, PALETTE, SOFT, Drawing, as_tick, count, inline

__all__ = ["watch_charts"]

_COPIED = PALETTE[0]


def watch_charts(points: Sequence[Point], found: Recommendation | None) -> list[Drawing]:
    """The charts of a watch's points; nothing without points, and no recommended point without a recommendation."""
    if not points:
        return []
    charts = [_copied_and_quality(points, found)]
    charts += [_losses(points)] if any(point.losses for point in points) else []
    charts += [_agreement(points)] if any(point.agreement for point in points) else []
    charts += [_adapter(points)] if any(point.adapter for point in points) else []
    return charts


def _places(points: Sequence[Point]) -> dict[int, int]:
    """Where each point's step stands on the axis: at the images seen, or, where they are not known, at the step."""
    known = all(point.images_seen is not None for point in points)
    return {point.step: (point.images_seen or 0) if known else point.step for point in points}


def _over(points: Sequence[Point]) -> str:
    return "images seen" if all(point.images_seen is not None for point in points) else "training steps"


def _axes(points: Sequence[Point]) -> Axes:
    axes = Figure(figsize=(4.3, 2.9)).add_subplot()
    axes.set(xlabel=_over(points), xlim=(0, 1.03 * max(1, _places(points)[points[-1].step])))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(round(value))))
    return axes


def _copied_and_quality(points: Sequence[Point], found: Recommendation | None) -> Drawing:
    """Both axes begin at 0: the copied share on the left, the distance on the right."""
    axes, places = _axes(points), _places(points)
    seen = [places[point.step] for point in points]
    low, high = zip(*(point.copied.ci95 for point in points), strict=True)
    axes.fill_between(seen, low, high, color=_COPIED, alpha=0.2, linewidth=0)
    axes.plot(seen, [point.copied.share for point in points], color=_COPIED, linewidth=1.4, label="copied share")
    for point in points:
        face = _COPIED if point.above_chance else "none"
        axes.plot([places[point.step]], [point.copied.share], "o", color=_COPIED, markerfacecolor=face, markersize=5)
    axes.axhline(points[-1].copied.false_alarm, color=EDGE, linestyle="--", linewidth=1)
    axes.set(ylabel="copied share", ylim=(0, min(1.0, max(0.05, 1.1 * max(high)))))
    axes.yaxis.set_major_formatter(FuncFormatter(as_tick))
    words = "Copied share with 95\u00a0% interval; filled: above chance; dashed: false alarms of the cut"
    if found is not None and found.step is not None:
        axes.axvline(places[found.step], color=SOFT, linestyle=":", linewidth=1.4)
        words += "; dotted: the recommended point"
    quality = [(places[point.step], point.distance.value) for point in points if point.distance]
    if quality:
        _on_the_right(axes, quality)
        words += ". Right axis, squares: Fréchet distance, low is good"
    assert isinstance(axes.figure, Figure)
    alt = f"Line chart: copied share and Fréchet distance against {_over(points)}; the table has the numbers."
    return Drawing(inline(axes.figure, alt), f"{words}.")


def _on_the_right(axes: Axes, quality: Sequence[tuple[int, float]]) -> None:
    other = axes.twinx()
    other.plot(*zip(*quality, strict=True), "s-", color=HELD_OUT, linewidth=1.2, markersize=3.5, label="distance")
    other.set(ylabel="Fréchet distance", ylim=(0, 1.1 * max(value for _, value in quality)))
    other.yaxis.label.set_color(HELD_OUT)
    other.spines["right"].set_visible(True)
    other.grid(False)


def _losses(points: Sequence[Point]) -> Drawing:
    axes, places = _axes(points), _places(points)
    found = [(places[point.step], point.losses) for point in points if point.losses]
    seen = [images for images, _ in found]
    axes.plot(seen, [each.train for _, each in found], "o-", color=_COPIED, markersize=3.5, label="training images")
    axes.plot(seen, [each.held_out for _, each in found], "s-", color=HELD_OUT, markersize=3.5, label="held-out images")
    least = min(min(each.train, each.held_out) for _, each in found)
    axes.set(ylabel="loss", ylim=(min(0.0, 1.1 * least), None))
    axes.legend(fontsize=8)
    assert isinstance(axes.figure, Figure)
    alt = f"Line chart: loss of training images and of held-out images against {_over(points)}."
    number = count(found[-1][1].num_images)
    caption = f"Mean loss of {number} training images and as many held-out images, at the same noise and timesteps."
    return Drawing(inline(axes.figure, alt), caption)


def _agreement(points: Sequence[Point]) -> Drawing:
    found = {point.step: point.agreement for point in points if point.agreement}
    caption = (
        f"Agreement of {[*found.values()][-1].members} members before they are averaged: 1 where they draw the same "
        "image from a seed, 0 where images of one seed differ as those of different seeds do."
    )
    values = {step: each.value for step, each in found.items()}
    return _alike(points, values, "agreement", "agreement of members", caption)


def _adapter(points: Sequence[Point]) -> Drawing:
    found = {point.step: point.adapter for point in points if point.adapter}
    caption = (
        f"Images of {count([*found.values()][-1].seeds)} seeds at strength 1 of the LoRA beside those at strength 0: 1 "
        "where it changes nothing, 0 where images of one seed differ as those of different seeds do."
    )
    values = {step: each.value for step, each in found.items()}
    return _alike(points, values, "similarity", "similarity of images with and without the LoRA", caption)


def _alike(points: Sequence[Point], values: Mapping[int, float], label: str, what: str, caption: str) -> Drawing:
    """How alike images are, 1 at most, by step."""
    axes, places = _axes(points), _places(points)
    axes.plot([places[step] for step in values], [*values.values()], "o-", color=PALETTE[2], markersize=4)
    axes.set(ylabel=label, ylim=(min(0.0, *values.values()), 1))
    assert isinstance(axes.figure, Figure)
    return Drawing(inline(axes.figure, f"Line chart: {what} against {_over(points)}."), caption)
