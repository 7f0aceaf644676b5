"""The page of a board: in each arm, each method as a curve of copied share against quality. No torch here."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from iet_agc.metrics.frontier import Difference
from iet_agc.reporting.board import ArmResult, BoardRecord, Estimate, PointResult
from iet_agc.reporting.charts import BEATEN, EDGE, HELD_OUT, SOFT, as_tick, decimal, inline, page, percent, style
from iet_agc.reporting.plane import Mark, share_ticks, signed_root, signed_square
from iet_agc.reporting.reader import first_samples
from iet_agc.runtime.errors import UserError

__all__ = ["board_page"]

#: So many samples of a point's first run are shown.
_PICTURES = 12

#: Inches wide and high of a plot on a page: on a desk, and on a phone.
_SIZES = {"desk": (8.6, 4.2), "phone": (4.3, 3.9)}

#: The share of real images that the cut calls copies.
_CHANCE = 0.01


def board_page(record: BoardRecord, out: Path) -> str:
    """The page.

    Args:
        record: of the board.
        out: its folder, where the runs are whose samples are shown.
    """
    marks = {name: Mark(number) for number, name in enumerate(record.methods, 1)}
    with style():
        plots = {
            arm.name: {name: _svg(arm, marks, record.baseline, *size) for name, size in _SIZES.items()}
            for arm in record.arms
        }
    return page(
        "board_page.html.j2",
        {"estimate": _estimate, "signed_share": _signed_share, "signed": _signed, "short": _short, "times": _times},
        title=record.title,
        record=record,
        marks=marks,
        plots=plots,
        pictures={arm.name: _pictures(arm, record, out) for arm in record.arms},
        bands={name: _width(arm) for arm in record.arms for name in [arm.name]},
        extractors=sorted({cell.extractor for cell in record.cells}),
        command=shlex.join(["iet-agc", "bench", "BOARD", "--out", str(out.name)]),
    )


def _pictures(arm: ArmResult, record: BoardRecord, out: Path) -> dict[str, NDArray[np.uint8]]:
    """First samples of the baseline and of the front, by point; none where an audit is not there any more."""
    shown = [point for point in arm.points if point.method == record.baseline]
    shown += [point for point in arm.front if point not in shown]
    folders = {(c.arm, c.method, str(c.value), c.seed): c.folder for c in record.cells}
    found: dict[str, NDArray[np.uint8]] = {}
    for point in shown:
        folder = folders[arm.name, point.method, str(point.value), point.seeds[0]]
        try:
            images = first_samples(out / folder / "audit")[:_PICTURES]
        except UserError:
            continue
        if len(images):
            found[point.label] = images
    return found


# Drawing --------------------------------------------------------------------------------------------------


def _svg(arm: ArmResult, marks: Mapping[str, Mark], baseline: str, width: float, height: float) -> Markup:
    figure = Figure(figsize=(width, height))
    axes = figure.add_subplot()
    axes.set_xscale("function", functions=(signed_root, signed_square))
    axes.set_xlabel("copied share, below the calibrated cut\nlower is less copied")
    axes.set_ylabel("Fréchet distance to held-out images\nlower is better")
    _set_limits(axes, arm.points)
    _draw_front(axes, arm.front)
    axes.axvline(_CHANCE, color=HELD_OUT, linestyle="--", linewidth=1.1, zorder=1.7)
    for method, mark in marks.items():
        _draw_curve(axes, arm.of(method), mark)
    _name_front(figure, axes, arm.front, list(marks))
    return inline(figure, _alt(arm, baseline))


def _set_limits(axes: Axes, points: Sequence[PointResult]) -> None:
    """Around all means, with room for the nearer part of their intervals."""
    shares, distances = [p.copied.mean for p in points], [p.held_out_distance.mean for p in points]
    most = max(0.02, *shares, min(1.3 * max(shares), max(_ends(p.copied)[1] for p in points)))
    axes.set_xlim(-((0.04 * most**0.5) ** 2), min(1.12 * most, 1.02))
    axes.set_xticks(share_ticks(most))
    axes.xaxis.set_major_formatter(FuncFormatter(as_tick))
    low, high = min(distances), max(distances)
    span = (high - low) or 0.2 * high or 1.0
    bounds = [bound for p in points for bound in _ends(p.held_out_distance)]
    low, high = max(min(bounds), low - 0.3 * span), min(max(bounds), high + 0.3 * span)
    axes.set_ylim(max(low - 0.08 * span, -0.02 * span), high + 0.08 * span)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))


def _ends(found: Estimate) -> tuple[float, float]:
    return found.ci95 or (found.mean, found.mean)


def _draw_front(axes: Axes, front: Sequence[PointResult]) -> None:
    """As a step line, the best distance that was reached with so many copies or fewer; beyond it, pale."""
    corners = [(p.copied.mean, p.held_out_distance.mean) for p in front]
    right, top = axes.get_xlim()[1], axes.get_ylim()[1]
    xs = [corners[0][0], *(x for x, _ in corners), right]
    ys = [top, *(y for _, y in corners), corners[-1][1]]
    axes.fill_between(xs, ys, top, step="post", color=BEATEN, linewidth=0, zorder=0.4)
    axes.plot(xs, ys, drawstyle="steps-post", color=EDGE, linewidth=1.1, zorder=1.6)


def _draw_curve(axes: Axes, points: Sequence[PointResult], mark: Mark) -> None:
    xs, ys = [p.copied.mean for p in points], [p.held_out_distance.mean for p in points]
    axes.plot(xs, ys, color=mark.colour, linewidth=1.4, alpha=0.8, zorder=2.5)
    for point, x, y in zip(points, xs, ys, strict=True):
        axes.plot(_ends(point.copied), [y, y], color=mark.colour, linewidth=1, alpha=0.4, zorder=2)
        axes.plot([x, x], _ends(point.held_out_distance), color=mark.colour, linewidth=1, alpha=0.4, zorder=2)
        (drawn,) = axes.plot([x], [y], mark.marker, color=mark.colour, clip_on=False, zorder=4)
        drawn.set(markersize=8.5 if point.on_front else 6, markeredgecolor="black" if point.on_front else "white")


def _name_front(figure: Figure, axes: Axes, front: Sequence[PointResult], methods: Sequence[str]) -> None:
    """Write method number and value beside the points of the front, below them and in turn further away."""
    figure.draw_without_rendering()  # lays out the axes; from here on they stay where they are
    figure.set_layout_engine("none")
    for turn, point in enumerate(front):
        value = "" if point.knob is None else f" {point.value}"
        axes.annotate(
            f"{methods.index(point.method) + 1}{value}", (point.copied.mean, point.held_out_distance.mean),
            (7, -11 - 10 * (turn % 2)), textcoords="offset points", fontsize=9, fontweight="bold",
            annotation_clip=False, zorder=5, parse_math=False,
            arrowprops={"arrowstyle": "-", "color": SOFT, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4},
        )  # fmt: skip


def _alt(arm: ArmResult, baseline: str) -> str:
    """The plot in words, with its numbers."""
    each = "; ".join(f"{p.label}: {percent(p.copied.mean)}, {decimal(p.held_out_distance.mean)}" for p in arm.points)
    front = ", ".join(point.label for point in arm.front)
    text = (
        f"Curves of methods, {arm.name}: copied share against Fréchet distance to held-out images. {each}. "
        f"On the front: {front}. The baseline is {baseline}."
    )
    return text.replace("\u00a0", " ")


def _width(arm: ArmResult) -> dict[str, str]:
    """The noise floor in words, of each of the two numbers."""
    said = {"copied": lambda value: f"{100 * value:.1f} percentage points", "held_out_distance": decimal}
    return {
        name: said[name](found.deviation) if found.deviation is not None else "" for name, found in arm.noise.items()
    }


# Numbers --------------------------------------------------------------------------------------------------


def _estimate(found: Estimate, is_share: bool) -> Markup:
    """A mean, and its interval under it where one is known."""
    form = percent if is_share else decimal
    if found.ci95 is None:
        return Markup(form(found.mean))
    low, high = found.ci95
    return Markup("{}<br><small>{} to {}</small>").format(form(found.mean), form(low), form(high))


def _signed_share(number: float) -> str:
    """A difference of shares, in percentage points."""
    return _with_sign(number, f"{abs(100 * number):.1f}")


def _signed(number: float) -> str:
    return _with_sign(number, f"{abs(number):.3f}")


def _with_sign(number: float, text: str) -> str:
    sign = "+" if number > 0 else "\u2212"
    return f"{sign}{text}" if text.strip("0.") else text


def _short(difference: Difference, is_share: bool) -> Markup:
    """A difference, bold where its interval does not hold 0, with the interval under it."""
    form = _signed_share if is_share else _signed
    said = Markup("<strong>{}</strong>" if difference.is_sure else "{}").format(form(difference.mean))
    if difference.ci95 is None:
        return said
    low, high = difference.ci95
    return said + Markup("<br><small>{} to {}</small>").format(form(low), form(high))


def _times(factor: float) -> str:
    return f"{factor:.2f}\u00a0×"
