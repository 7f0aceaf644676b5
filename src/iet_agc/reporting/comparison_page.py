"""The frontier of copied share against quality: a comparison -> one HTML page, PNG and CSV. No torch here.

The front is Pareto's, of the means: the experiments than which no other is both less copied and better in quality.
"""

import io
import math
import shlex
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from iet_agc.metrics.frontier import pareto_set
from iet_agc.reporting.charts import (
    BEATEN,
    EDGE,
    HELD_OUT,
    SOFT,
    as_tick,
    decimal,
    inline,
    page,
    percent,
    place,
    style,
)
from iet_agc.reporting.comparison import COLUMNS, NOT_MEASURED, Cell, Differences, Row, Rows, listed, warnings
from iet_agc.reporting.plane import Mark, share_ticks, signed_root, signed_square
from iet_agc.reporting.reader import first_samples
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import check_replaceable, holds_others, replace_text, replacing, writing
from iet_agc.runtime.tables import table_text

__all__ = ["write_comparison"]

#: What a comparison's folder holds; a kill may have left a part of it.
_FILES = {"html": "comparison.html", "png": "comparison.png", "csv": "comparison.csv", "means": "comparison-means.csv"}

#: What each of them begins with, and no file of somebody else does.
_MARKS = {
    "html": 'content="iet-agc compare"',
    "png": "iet-agc compare",
    "csv": "experiment,run,seed,copied,",
    "means": "experiment,column,runs,mean,",
}

_TITLE = "Copied share against quality"

#: So many samples of the first run of each experiment are shown.
_PICTURES = 12


def write_comparison(rows: Rows, differences: Differences, out: Path) -> dict[str, str]:
    """Write the comparison as a page, a picture and two tables.

    comparison.html has everything; comparison.png the frontier plot; comparison.csv a row per run;
    comparison-means.csv a row per experiment and column, with means, differences from the first, and intervals.

    Args:
        rows: as `compare` returns them.
        differences: as `differences_from_first` returns them.
        out: folder; an earlier comparison in it is replaced, anything else refused.

    Returns:
        The paths, by "html", "png", "csv" and "means".

    Raises:
        UserError: nothing to compare, an experiment of which no Fréchet distance is known, or a folder that is
            taken or cannot be written.
    """
    if not rows:
        raise UserError("there is nothing to compare: give at least one audited run, or the folder of an audit")
    with writing(out):
        _check_out(out)
    with style():
        picture, text = _png(rows), _page(rows, differences, out)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        (out / _FILES["html"]).unlink(missing_ok=True)  # it comes last: with it, the folder is whole
        replace_text(out / _FILES["csv"], table_text(_run_lines(rows)))
        replace_text(out / _FILES["means"], table_text(_mean_lines(rows, differences)))
        with replacing(out / _FILES["png"]) as unfinished:
            unfinished.write_bytes(picture)
        replace_text(out / _FILES["html"], text)
    return {kind: str(out / name) for kind, name in _FILES.items()}


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, and a comparison is a folder of four: choose another output", "out")
    if holds_others(out, set(_FILES.values())):
        raise UserError(f"{out} holds other things than a comparison: choose another output", "out")
    for kind, name in _FILES.items():
        check_replaceable(out / name, _MARKS[kind], "comparison")


# Tables ---------------------------------------------------------------------------------------------------


def _run_lines(rows: Rows) -> list[dict[str, object]]:
    """One line per run: experiment, run, seed and every column; of shares, count and limits of that run alone, too."""
    return [
        {"experiment": name, "run": run, "seed": seed, **_run_cells(row, number)}
        for name, row in rows.items()
        for number, (run, seed) in enumerate(zip(row.runs, row.seeds, strict=True))
    ]


def _run_cells(row: Row, number: int) -> dict[str, float | None]:
    cells: dict[str, float | None] = {}
    for name, column in COLUMNS.items():
        cell = row[name]
        cells[name] = cell.values[number] if cell else None
        if column.of:
            low = high = count = None
            if cell:
                low, high = (column.unit * bound for bound in cell.shares[number].ci95)
                count = cell.shares[number].count
            cells |= {f"{name}_count": count, f"{name}_low": low, f"{name}_high": high}
    return cells


def _mean_lines(rows: Rows, differences: Differences) -> list[dict[str, object]]:
    """One line per experiment and column: the mean, its interval, and the first experiment's mean minus it."""
    lines: list[dict[str, object]] = []
    for name, row in rows.items():
        for column in COLUMNS:
            cell, apart = row[column], differences.get(name, {}).get(column)
            line: dict[str, object] = {
                "experiment": name,
                "column": column,
                "runs": len(row.runs),
                "mean": cell and cell.mean,
            }
            line |= _limits("", cell) | {"first_minus_this": apart and apart.mean}
            lines.append(line | _limits("difference_", apart))
    return lines


def _limits(prefix: str, cell: Cell | None) -> dict[str, object]:
    """The interval of a cell, and how it was made."""
    made = cell and cell.interval
    low, high = made.ci95 if made else (None, None)
    return {f"{prefix}low": low, f"{prefix}high": high, f"{prefix}interval": made and made.method}


# What is plotted ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Axis:
    """A column that all experiments know, what it is called, and whether it is the one to choose if one can."""

    column: str
    label: str
    short: str
    first_choice: bool
    hint: str = "lower is better"


@dataclass(frozen=True)
class _Point(Mark):
    """An experiment in the plot: means, intervals or None, and each of its runs; x is quality, y the copied share."""

    name: str
    x: float
    y: float
    x_bar: tuple[float, float] | None
    y_bar: tuple[float, float] | None
    each: list[tuple[float, float]]


@dataclass(frozen=True)
class _Plot:
    """All that the plot shows, read off the rows."""

    quality: _Axis
    share: _Axis
    points: list[_Point]
    chances: list[float]

    @property
    def front(self) -> list[str]:
        return pareto_set({point.name: (point.x, point.y) for point in self.points})


def _plot(rows: Rows) -> _Plot:
    quality, copied = _quality_axis(rows), _share_axis(rows)
    points = [
        _point(name, number, x, y)
        for number, (name, row) in enumerate(rows.items(), 1)
        if (x := row[quality.column]) and (y := row[copied.column])
    ]
    rates = {audit.calibrated.false_alarm for row in rows.values() for audit in row.numbers if audit.calibrated}
    return _Plot(quality, copied, points, sorted(rates) if copied.first_choice else [])


def _share_axis(rows: Rows) -> _Axis:
    if all(row["calibrated"] for row in rows.values()):
        return _Axis("calibrated", "copied share, below the calibrated cut", "copied share", True)
    return _Axis("copied", "copied share, ratio below 0.15 (not calibrated)", "uncalibrated copied share", False)


def _quality_axis(rows: Rows) -> _Axis:
    extractors = {audit.quality.extractor or NOT_MEASURED for row in rows.values() for audit in row.numbers}
    features = f" ({listed([place(extractors.pop())], longest=24)})" if len(extractors) == 1 else ""
    if all(row["frechet_held_out"] for row in rows.values()):
        return _Axis("frechet_held_out", f"Fréchet distance to held-out images{features}", "Fréchet to held-out", True)
    for name, row in rows.items():
        if not row["frechet_train"]:
            raise UserError(f"{name} has no Fréchet distance, so it has no place in the plot: leave it out")
    label, hint = f"Fréchet distance to TRAINING images{features}", "lower is better, but copying lowers it, too"
    return _Axis("frechet_train", label, "Fréchet to train", False, hint)


def _point(name: str, number: int, x: Cell, y: Cell) -> _Point:
    return _Point(number, name, x.mean, y.mean, x.ci95, y.ci95, list(zip(x.values, y.values, strict=True)))


# Drawing --------------------------------------------------------------------------------------------------


def _draw(plot: _Plot, width: float, height: float, bottom: float = 0) -> tuple[Figure, Axes]:
    """The plot without labels, in inches; below it, `bottom` inches stay free."""
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("constrained", rect=(0, bottom / height, 1, 1 - bottom / height), w_pad=0.08, h_pad=0.08)
    axes = figure.add_subplot()
    axes.set_yscale("function", functions=(signed_root, signed_square))
    axes.set_xlabel(f"{plot.quality.label}\n{plot.quality.hint}", parse_math=False)
    axes.set_ylabel(plot.share.label)
    _set_limits(axes, plot.points)
    _draw_front(axes, plot)
    for chance in plot.chances:
        axes.axhline(chance, color=HELD_OUT, linestyle="--", linewidth=1.1, zorder=1.7)
    for point in plot.points:
        _draw_point(axes, point)
    return figure, axes


def _set_limits(axes: Axes, points: Sequence[_Point]) -> None:
    """Around all marks, and around intervals as long as these leave room for the marks."""
    xs = [x for point in points for x, _ in [*point.each, (point.x, 0)]]
    bars = [bound for point in points for bound in point.x_bar or ()]
    span = (max(xs) - min(xs)) or 0.2 * abs(xs[0]) or 1
    low, high = max(min([*xs, *bars]), min(xs) - span), min(max([*xs, *bars]), max(xs) + span)
    margin = 0.06 * ((high - low) or span)
    axes.set_xlim(max(low - margin, -margin / 2) if min(xs) >= 0 else low - margin, high + margin)
    most = max(y for point in points for _, y in [*point.each, (0, point.y)])
    most = max(0.02, most, min(max([0, *(bound for point in points for bound in point.y_bar or ())]), 2.5 * most))
    axes.set_ylim(-((0.05 * most**0.5) ** 2), min(1.15 * most, 1.02))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set_yticks(share_ticks(most))
    axes.yaxis.set_major_formatter(FuncFormatter(as_tick))


def _draw_front(axes: Axes, plot: _Plot) -> None:
    """As a step line, the least share that was reached at a quality as good as x or better; beyond it, pale."""
    where = {point.name: (point.x, point.y) for point in plot.points}
    corners = [where[name] for name in plot.front]
    top = axes.get_ylim()[1]
    xs = [corners[0][0], *(x for x, _ in corners), axes.get_xlim()[1]]
    ys = [top, *(y for _, y in corners), corners[-1][1]]
    axes.fill_between(xs, ys, top, step="post", color=BEATEN, linewidth=0, zorder=0.4)
    axes.plot(xs, ys, drawstyle="steps-post", color=EDGE, linewidth=1.1, zorder=1.6)


def _draw_point(axes: Axes, point: _Point) -> None:
    for x, y in point.each if len(point.each) > 1 else []:
        (one,) = axes.plot([x], [y], point.marker, color=point.colour, clip_on=False, zorder=2.5)
        one.set(markersize=3.8, alpha=0.6, markeredgewidth=0)
    for along_x, bar in ((True, point.x_bar), (False, point.y_bar)):
        if bar is not None:
            _draw_bar(axes, point, along_x, bar)
    (mark,) = axes.plot([point.x], [point.y], point.marker, color=point.colour, clip_on=False, zorder=4)
    mark.set(markersize=7.5, markeredgecolor="white")


def _draw_bar(axes: Axes, point: _Point, along_x: bool, bar: tuple[float, float]) -> None:
    """An interval; an arrow where it goes on outside of the axes."""
    low, high = axes.get_xlim() if along_x else axes.get_ylim()
    ends = [max(bar[0], low), min(bar[1], high)]
    line = (ends, [point.y] * 2) if along_x else ([point.x] * 2, ends)
    axes.plot(*line, color=point.colour, linewidth=1.5, alpha=0.75, solid_capstyle="butt", zorder=3)
    for end, beyond, arrow in zip(ends, (bar[0] < low, bar[1] > high), "<>" if along_x else "v^", strict=True):
        if beyond:
            x, y = (end, point.y) if along_x else (point.x, end)
            axes.plot([x], [y], arrow, color=point.colour, markersize=4.5, clip_on=False, zorder=3)


#: A box in points of the figure: left, bottom, right, top.
_Box = tuple[float, float, float, float]


def _label(figure: Figure, axes: Axes, points: Sequence[_Point]) -> list[_Box]:
    """Write the number of each experiment beside its mark, where it hides nothing; a line leads there from afar.

    Returns:
        The boxes of the labels, in points of the figure.
    """
    figure.draw_without_rendering()  # lays out the axes; from here on they stay where they are
    figure.set_layout_engine("none")
    marks = {point.number: _place(axes, point.x, point.y) for point in points}
    frame, busy, boxes = _frame(axes), list(_busy(axes, points)), []
    for point in points:
        (x, y), half = marks[point.number], (2.9 * len(str(point.number)) + 1, 5.0)
        options = {offset: _around(x + offset[0], y + offset[1], *half) for offset in _OFFSETS}
        offset = min(options, key=lambda each: _cost(options[each], busy, frame) + 0.6 * math.hypot(*each))
        boxes.append(options[offset])
        busy.append((boxes[-1], 8.0))
        leader = {"arrowstyle": "-", "color": SOFT, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 3.5}
        axes.annotate(
            str(point.number), (point.x, point.y), offset, textcoords="offset points", ha="center", va="center",
            fontsize=9, fontweight="bold", annotation_clip=False, zorder=5,
            arrowprops=leader if math.hypot(*offset) > 16 else None,
        )  # fmt: skip
    return boxes


#: Places for a label around its mark, in points, the best ones first.
_OFFSETS = [
    (radius * math.cos(math.radians(angle)), radius * math.sin(math.radians(angle)))
    for radius in (12.5, 19, 27, 37)
    for angle in (45, 135, 315, 225, 20, 160, 340, 200, 70, 110, 290, 250)
]


def _busy(axes: Axes, points: Sequence[_Point]) -> Iterator[tuple[_Box, float]]:
    """What a label should not hide, and how bad it would be."""
    for point in points:
        yield _around(*_place(axes, point.x, point.y), 5, 5), 4
        yield from ((_around(*_place(axes, x, y), 2, 2), 0.5) for x, y in point.each)
        bars = ([(x, point.y) for x in point.x_bar or ()], [(point.x, y) for y in point.y_bar or ()])
        for (left, bottom), (right, top) in ([_place(axes, *end) for end in ends] for ends in bars if ends):
            yield (left - 1, bottom - 1, right + 1, top + 1), 2


def _cost(box: _Box, busy: Sequence[tuple[_Box, float]], frame: _Box) -> float:
    """How bad a place is for a label: what it hides there, and whether it leaves the axes."""
    outside = box[0] < frame[0] or box[1] < frame[1] or box[2] > frame[2] or box[3] > frame[3]
    return sum(weight * _overlap(box, other) for other, weight in busy) + 200 * outside


def _place(axes: Axes, x: float, y: float) -> tuple[float, float]:
    """Where a point lies, in points of the figure."""
    found = axes.transData.transform((x, y)) * 72 / axes.get_figure(root=True).dpi  # pyright: ignore
    return float(found[0]), float(found[1])


def _frame(axes: Axes) -> _Box:
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    return (*_place(axes, left, bottom), *_place(axes, right, top))


def _around(x: float, y: float, half_width: float, half_height: float) -> _Box:
    return x - half_width, y - half_height, x + half_width, y + half_height


def _overlap(one: _Box, other: _Box) -> float:
    """The area that two boxes share."""
    width, height = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0


#: Inches wide and high of the plot on a page: on a desk, and on a phone.
_SIZES = {"desk": (8.6, 4.4), "phone": (4.3, 3.7)}


def _svg(plot: _Plot, width: float, height: float) -> Markup:
    figure, axes = _draw(plot, width, height)
    _label(figure, axes, plot.points)
    return inline(figure, _alt(plot))


#: The picture: inches wide, dots per inch, and inches high of the plot, of a name, of a further line of it, of a note.
_WIDE, _DPI = 7.2, 200
_PLOT, _NAME, _FURTHER, _NOTE = 4.4, 0.185, 0.14, 0.155


def _png(rows: Rows) -> bytes:
    """The plot as a picture that stands alone: with a legend, what its marks mean, and a word of caution."""
    plot = _plot(rows)
    names = [textwrap.fill(f"{p.number}  {p.name}", 96, subsequent_indent="     ") for p in plot.points]
    columns = 2 if len(names) > 3 and max(map(len, names)) < 44 else 1
    caution = ["Mind the warnings in comparison.html."] if warnings(rows) else []
    notes = textwrap.wrap(" ".join([*_caption(plot), *caution]), 122)
    below = _NOTE * len(notes) + 0.15
    bottom = below + _NAME * math.ceil(len(names) / columns) + _FURTHER * sum(name.count("\n") for name in names) + 0.1
    figure, axes = _draw(plot, _WIDE, _PLOT + bottom, bottom)
    _label(figure, axes, plot.points)
    marks = [Line2D([], [], color=p.colour, marker=p.marker, linestyle="", markersize=6.5) for p in plot.points]
    legend = figure.legend(
        marks, names, loc="lower left", bbox_to_anchor=(0.01, below / (_PLOT + bottom)), ncols=columns,
        fontsize=8.5, handletextpad=0.3, labelspacing=0.4, borderaxespad=0, borderpad=0,
    )  # fmt: skip
    _ = [text.set_parse_math(False) for text in legend.get_texts()]
    figure.text(0.016, 0.1 / (_PLOT + bottom), "\n".join(notes), va="bottom", fontsize=7.5, color=SOFT, linespacing=1.3)
    stream = io.BytesIO()
    about = {"Software": _MARKS["png"], "Title": _TITLE, "Description": _alt(plot)}
    FigureCanvasAgg(figure).print_figure(stream, format="png", dpi=_DPI, metadata=about)
    return stream.getvalue()


def _caption(plot: _Plot) -> list[str]:
    """What the marks of the plot mean, in sentences."""
    several = [len(point.each) > 1 for point in plot.points]
    lines = ["The grey step line is the front: beyond it, something else is less copied and as good or better."]
    if any(several):
        lines += ["Bars are 95 % intervals over runs, small marks the runs."]
    if not all(several):
        single = "Of an experiment of one run, they are" if any(several) else "Bars are"
        lines += [f"{single} 95 % intervals over samples; for Fréchet distances of one run none is known."]
    if plot.chances:
        rates = " and ".join(f"{100 * chance:g} %" for chance in plot.chances)
        lines += [f"The dashed line is the share of real images that would be called copies, {rates}."]
    return [*lines, "The vertical axis is stretched near 0."]


def _alt(plot: _Plot) -> str:
    """The plot in words, with its numbers."""
    each = "; ".join(
        f"{p.number} {p.name}: {percent(p.y)}{_bounds(p.y_bar, percent)}, {decimal(p.x)}{_bounds(p.x_bar, decimal)}"
        for p in plot.points
    )
    axes = f"{plot.share.label} against {plot.quality.label}, with 95 % intervals"
    leading = listed(plot.front, len(plot.points), 1000)
    return f"Scatter plot of {axes}. {each}. On the front: {leading}.".replace("\u00a0", " ")


def _bounds(bar: tuple[float, float] | None, form: Callable[[float], str]) -> str:
    return f" ({form(bar[0])} to {form(bar[1])})" if bar else ""


# The page -------------------------------------------------------------------------------------------------


def _page(rows: Rows, differences: Differences, out: Path) -> str:
    plot = _plot(rows)
    known = [name for name in COLUMNS if any(row[name] for row in rows.values())]
    main = [plot.share.column, plot.quality.column]
    runs = [run for row in rows.values() for run in row.runs]
    return page(
        "comparison_page.html.j2",
        {"value": _value, "interval": _interval, "signed": _signed},
        title=_TITLE,
        rows=rows,
        differences=differences,
        warnings=warnings(rows),
        plot=plot,
        points={point.name: point for point in plot.points},
        plots={name: _svg(plot, *size) for name, size in _SIZES.items()},
        pictures={name: first_samples(Path(row.audits[0]))[:_PICTURES] for name, row in rows.items()},
        caption=_caption(plot),
        titled=_titled,
        main=main,
        single=any(cell and not cell.ci95 for row in rows.values() for cell in map(row.__getitem__, known)),
        others={
            title: [name for name in known if name not in main and COLUMNS[name].about == about]
            for title, about in (("More on copies", "copies"), ("More on quality", "quality"))
        },
        methods=_methods(rows, differences),
        command=shlex.join(["iet-agc", "compare", *map(place, runs), "--out", place(str(out))]),
    )


def _titled(names: Sequence[str], directed: bool = True) -> list[Markup]:
    """Heads of columns; `directed`: with which way is better."""
    better = Markup("<br><small>{}</small>")
    return [
        Markup("{}{}").format(COLUMNS[name].title, better.format(COLUMNS[name].better) if directed else "")
        for name in names
    ]


def _methods(rows: Rows, differences: Differences) -> list[str]:
    """How the intervals on the page were made: each way once."""
    cells = [row[name] for row in rows.values() for name in COLUMNS]
    cells += [cell for columns in differences.values() for cell in columns.values()]
    return list(dict.fromkeys(cell.interval.method for cell in cells if cell and cell.interval))


def _value(number: float, name: str) -> str:
    """A number of a column, in the column's form."""
    return percent(number) if COLUMNS[name].of and COLUMNS[name].unit == 1 else decimal(number)


def _interval(cell: Cell, name: str) -> str:
    """The interval of a cell; nothing where none is known."""
    if cell.ci95 is None:
        return ""
    low, high = cell.ci95
    return f"{_value(low, name)} to {_value(high, name)}"


def _signed(number: float, name: str) -> str:
    """A difference; of shares, in percentage points."""
    shown = 100 * number / COLUMNS[name].unit if COLUMNS[name].of else number
    text = f"{abs(shown):,.1f}" if COLUMNS[name].of or abs(shown) >= 10 else f"{abs(shown):.3f}"
    sign = "+" if shown > 0 else "\u2212"
    return f"{sign}{text}" if text.strip("0.") else text
