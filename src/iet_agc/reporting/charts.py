"""Pages, and what they show: charts as inline SVG, pictures as data URIs, and numbers in words. No torch here.

The same numbers give the same text, and the ids within a chart are those of no other chart on a page.
"""

import base64
import hashlib
import io
import math
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePath

import matplotlib
import matplotlib.style
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from iet_agc.auditing.schema import Copies
from iet_agc.metrics.intervals import Proportion, hundredths, three_digits
from iet_agc.metrics.records import Similarity
from iet_agc.reporting.reader import Point

__all__ = [
    "BEATEN",
    "EDGE",
    "HELD_OUT",
    "LARGEST",
    "PALETTE",
    "SOFT",
    "Drawing",
    "as_tick",
    "capital",
    "compared",
    "count",
    "curve_charts",
    "data_uri",
    "decimal",
    "difference",
    "histogram",
    "inline",
    "mq_chart",
    "on_page",
    "page",
    "percent",
    "picture",
    "place",
    "style",
    "undrawn",
]

#: Whether charts and pictures are drawn, see `undrawn`.
_drawn = ContextVar("drawn", default=True)

#: Pictures are enlarged to at least, and shrunk to at most, this many pixels a side.
_SMALLEST, LARGEST = 128, 256

#: Above this many pixels a side, a picture is no longer kept to the bit: the page would grow to tens of megabytes.
_EXACT = 128

#: Okabe and Ito's colours, told apart by colour-blind readers; of samples and of held-out images, the first two.
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#1c1f23")
_SAMPLES, HELD_OUT, *_ = PALETTE

#: Greys: of text, of notes, of edges and of grids.
_INK, SOFT, EDGE, _GRID = "#1c1f23", "#555b63", "#8a9099", "#e3e6ea"

#: Pale, of the part of a plot where nothing is to be found.
BEATEN = "#f1f2f5"

#: Within a page, colours that depend on its scheme, light or dark: as matplotlib writes them, and in base.html.j2.
_ON_PAGE = {
    _INK: "ink", SOFT: "soft", EDGE: "edge", _GRID: "rule", BEATEN: "pale", HELD_OUT.lower(): "blue",
    "#ffffff": "page", "#000000": "ink",
}  # fmt: skip

#: Points of a curve that a line is drawn through, and columns of the map of timestep bands.
_POINTS, _COLUMNS = 400, 60

#: Names longer than this lose their middle in a chart.
_NAME = 26

_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "iet-agc", "font.size": 9, "axes.labelsize": 9, "axes.edgecolor": EDGE,
    "text.color": _INK, "axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": _GRID, "axes.axisbelow": True, "legend.frameon": False,
    "figure.constrained_layout.use": True, "axes.formatter.useoffset": False,
}  # fmt: skip


@contextmanager
def style() -> Generator[None]:
    """Within it, charts look the same whatever a matplotlibrc says."""
    with matplotlib.style.context(["default", _STYLE]):
        yield


@contextmanager
def undrawn() -> Generator[None]:
    """Within it, charts and pictures are left empty, which is most of the time that a page takes: its text stays."""
    token = _drawn.set(False)
    try:
        yield
    finally:
        _drawn.reset(token)


def page(template: str, filters: Mapping[str, Callable[..., str]], **values: object) -> str:
    """Fill in a template of the package; everything is escaped, and a name that is not there is an error.

    Besides `filters`, every template has `picture`, `difference`, `percent`, `decimal`, `count`, `capital`,
    `on_page` and `place`. The one script that pages have is told to browsers by its hash: they run no other.

    Args:
        template: its file, which extends base.html.j2.
        filters, values: what it knows, by name.
    """
    environment = _environment(tuple(filters.items()))
    assert environment.loader is not None, "it has the package's"
    script, _, _ = environment.loader.get_source(environment, "galleries.js")
    sha256 = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(values, script=Markup(script), script_sha256=sha256)


@lru_cache(maxsize=8)
def _environment(filters: tuple[tuple[str, Callable[..., str]], ...]) -> Environment:
    """Templates with these filters; it holds them compiled, which takes as long as to draw the charts of a page."""
    environment = Environment(
        loader=PackageLoader("iet_agc.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    common = (picture, difference, percent, decimal, count, capital, on_page, place)
    environment.filters |= {each.__name__: each for each in common}
    environment.filters |= dict(filters)
    return environment


# Pictures -----------------------------------------------------------------------------------------------


def picture(image: NDArray[np.uint8]) -> str:
    """A data URI; pixels are repeated a whole number of times, so that a small image is sharp everywhere.

    Args:
        image: uint8 (C, H, W), grey or RGB.

    Returns:
        A PNG, exact, of an image of up to 128 pixels a side; above, a JPEG of at most 256 pixels a side.
    """
    if not _drawn.get():
        return data_uri("image/png", b"")
    pixels = np.ascontiguousarray(image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0))
    drawn, longest, stream = Image.fromarray(pixels), max(pixels.shape[:2]), io.BytesIO()
    if longest > _EXACT:
        drawn.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
        drawn.save(stream, "JPEG", quality=85, optimize=True)
        return data_uri("image/jpeg", stream.getvalue())
    if (times := math.ceil(_SMALLEST / longest)) > 1:
        drawn = drawn.resize((drawn.width * times, drawn.height * times), Image.Resampling.NEAREST)
    drawn.save(stream, "PNG", optimize=True)
    return data_uri("image/png", stream.getvalue())


def data_uri(kind: str, content: bytes) -> str:
    """Content of a MIME type as an address that needs no network."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def difference(differences: NDArray[np.uint8]) -> str:
    """A picture of absolute differences, the largest of the channels: white where there is none, black at 255.

    Args:
        differences: uint8 (C, H, W).
    """
    return picture(255 - differences.max(axis=0, keepdims=True))


# Numbers ------------------------------------------------------------------------------------------------


def percent(share: float) -> str:
    """A share for people; "0 %" and "100 %" only where they are exact."""
    return f"{hundredths(share)}\u00a0%"


def count(number: int) -> str:
    """A number of things."""
    return f"{number:,}"


def place(name: str) -> str:
    """Where something lies, without what is private of this machine: of an absolute path, the last part."""
    return PurePath(name).name if PurePath(name).is_absolute() else name


def capital(text: str) -> str:
    """The beginning of a sentence."""
    return text[:1].upper() + text[1:]  # of markup, markup


def decimal(value: float) -> str:
    """Few decimals of large numbers, more of small ones; "0" only where it is exact; a dash for what is no number."""
    if math.isnan(value) or not value:
        return "0" if value == 0 else "–"
    digits = 4 if abs(value) < 0.1 else 3 if abs(value) < 10 else 1
    text = f"{value:,.{digits}f}"
    return text.replace("-", "\u2212" if text.strip("-0.") else "")


def as_tick(share: float, _: object = None) -> str:
    """A share on an axis, as matplotlib asks for it."""
    return three_digits(share)


# Charts -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawing:
    """A chart, and the line under it."""

    svg: Markup
    caption: str


def _axes(height: float = 2.7, width: float = 4.3) -> Axes:
    """Axes of a chart that is legible at the width of a phone; inches."""
    return Figure(figsize=(width, height)).add_subplot()


def _drawing(axes: Axes, alt: str, caption: str) -> Drawing:
    assert isinstance(axes.figure, Figure)
    return Drawing(inline(axes.figure, alt), caption)


def inline(figure: Figure, alt: str) -> Markup:
    """A figure as inline SVG: without dates and style sheets, and with ids that repeat in no other chart.

    Args:
        figure: the chart.
        alt: what it shows, for those who cannot see it.
    """
    if not _drawn.get():
        return Markup("<svg></svg>")
    stream = io.StringIO()
    FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})  # pyright: ignore
    svg = stream.getvalue()
    svg = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL
    )
    svg = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", svg)
    own = hashlib.sha256(f"{alt}{svg}".encode()).hexdigest()[:8]
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>c{own}-", svg)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    svg = re.sub(r'style="[^"]*"', lambda style: re.sub("#[0-9a-f]{6}", lambda found: on_page(found[0]), style[0]), svg)
    opening = f'<svg {box[0]} role="img" aria-label="{escape(alt)}">'
    return Markup(re.sub(r"^<svg[^>]*>", lambda _: opening, svg, count=1).strip())


def on_page(colour: str) -> str:
    """A colour as pages write it: where it depends on the scheme, by its name in base.html.j2."""
    name = _ON_PAGE.get(colour.lower())
    return f"var(--{name})" if name else colour


def _legend_above(axes: Axes) -> None:
    """Where it hides no data, whatever the data are."""
    assert isinstance(axes.figure, Figure)
    axes.figure.legend(loc="outside upper right", ncols=3, borderaxespad=0)


def mq_chart(copies: Copies, where: str) -> Drawing:
    """Share below each of the nine cuts; the square root makes room where copies are."""
    axes = _axes()
    axes.set_yscale("function", functions=(lambda y: np.sqrt(np.clip(y, 0, None)), np.square))
    _mq_line(axes, copies.mq, "samples", _SAMPLES, "o")
    if copies.held_out:
        _mq_line(axes, copies.held_out.mq, "held-out", HELD_OUT, "s")
    axes.set(ylim=(0, 1.02), xlabel="cut on the distance ratio", ylabel="share below the cut")
    axes.set_yticks([0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1])
    axes.yaxis.set_major_formatter(FuncFormatter(as_tick))
    _legend_above(axes)
    what = "samples and of held-out images" if copies.held_out else "samples"
    alt = f"Line chart, {where}: share of {what} below each of nine cuts; the MQ table has the numbers."
    caption = "MQ: what share lies below each cut, with 95\u00a0% intervals. The vertical axis is stretched near 0."
    return _drawing(axes, alt, caption)


def _mq_line(axes: Axes, mq: Mapping[str, Proportion], label: str, colour: str, marker: str) -> None:
    cuts, shares = [float(cut) for cut in mq], list(mq.values())
    low, high = zip(*(s.ci95 for s in shares), strict=True)
    axes.fill_between(cuts, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(cuts, [s.share for s in shares], color=colour, marker=marker, markersize=3.5, label=label)


def histogram(ratios: NDArray[np.float64], held_out_ratios: NDArray[np.float64], copies: Copies) -> Drawing:
    """Distance ratios of samples and held-out images, each adding up to 1, with the cut."""
    axes, bins = _axes(), np.linspace(0, 1, 41)
    for label, each, colour, line in (
        ("samples", ratios, _SAMPLES, "-"),
        ("held-out", held_out_ratios, HELD_OUT, "--"),
    ):
        if len(each):
            share = np.histogram(np.clip(each, 0, 1), bins)[0] / len(each)
            axes.stairs(share, bins, fill=True, color=colour, alpha=0.18)
            axes.stairs(share, bins, color=colour, linewidth=1.4, linestyle=line, label=label)
    axes.axvline(copies.cut, color=_INK, linewidth=1.2, linestyle=":", label=f"cut {copies.cut:.3g}")
    axes.set(xlim=(0, 1), xlabel="distance ratio", ylabel="share of images")
    axes.yaxis.set_major_formatter(FuncFormatter(as_tick))
    _legend_above(axes)
    kind = "calibrated cut" if copies.calibrated else "cut, which is not calibrated"
    what = "samples and held-out images" if len(held_out_ratios) else "samples"
    alt = f"Histogram of the distance ratios of {what}, with the cut marked."
    return _drawing(axes, alt, f"Left of the dotted {kind}, a sample counts as a copy.")


def similarities(similar: Similarity, values: Mapping[str, NDArray[np.float64]], where: str) -> Drawing:
    """Histograms of the similarity with the most similar training image, each adding up to 1, with the cut."""
    low = min((float(each.min()) for each in values.values() if len(each)), default=0.0)
    axes, bins = _axes(), np.linspace(math.floor(10 * max(-1.0, low)) / 10, 1, 41)
    for images, label, colour, line in (
        ("samples", "samples", _SAMPLES, "-"),
        ("held_out", "held-out", HELD_OUT, "--"),
        ("train", "training", PALETTE[2], "-."),
    ):
        if len(each := values[images]):
            share = np.histogram(np.clip(each, bins[0], 1), bins)[0] / len(each)
            axes.stairs(share, bins, fill=True, color=colour, alpha=0.14)
            axes.stairs(share, bins, color=colour, linewidth=1.4, linestyle=line, label=label)
    axes.axvline(similar.threshold, color=EDGE, linewidth=1)
    if similar.calibrated:
        axes.axvline(similar.calibrated.cut, color=_INK, linewidth=1.2, linestyle=":")
    axes.set(xlim=(bins[0], 1), xlabel="cosine similarity", ylabel="share of images")
    axes.yaxis.set_major_formatter(FuncFormatter(as_tick))
    _legend_above(axes)
    alt = f"Histograms, {where}: similarity of samples and of real images with the most similar training image."
    dotted = f"; dotted: the calibrated cut, {similar.calibrated.cut:.3f}" if similar.calibrated else ""
    return _drawing(
        axes, alt, f"Similarity with the most similar training image. Grey line: {similar.threshold}{dotted}."
    )


def compared(shares: Mapping[str, Proportion], chance: Sequence[float]) -> Drawing:
    """One row per audit: its copied share with the interval; dashed lines at the rates of false alarms."""
    axes = _axes(0.75 + 0.32 * len(shares), 4.9)
    for row, share in enumerate(shares.values()):
        axes.plot(share.ci95, [row, row], color=_SAMPLES, linewidth=2.4, alpha=0.55, solid_capstyle="round")
        axes.plot([share.share], [row], "o", color=_SAMPLES, markersize=6)
    for rate in chance:
        axes.axvline(rate, color=HELD_OUT, linestyle="--", linewidth=1.2)
    axes.set_yticks(range(len(shares)), [_short(name) for name in shares], parse_math=False)
    most = max(share.ci95[1] for share in shares.values())
    axes.set(ylim=(len(shares) - 0.5, -0.5), xlim=(0, min(1, max(0.02, 1.08 * most))), xlabel="copied share")
    axes.xaxis.set_major_formatter(FuncFormatter(as_tick))
    axes.grid(False, axis="y")
    dashed = "; the dashed line is the rate of false alarms" if chance else ""
    alt = "Copied share of each audit with its interval; the table has the numbers."
    return _drawing(axes, alt, f"Copied share with 95\u00a0% intervals{dashed}.")


def _short(name: str) -> str:
    half = _NAME // 2
    return name if len(name) <= _NAME else f"{name[: half - 1]}…{name[-half:]}"


# Training curves ----------------------------------------------------------------------------------------


def _in_powers(value: float, _: object = None) -> str:
    return re.sub(r"e-0*", "e-", f"{value:.1e}") if value else "0"


#: How the vertical axis of a curve is labelled.
_UNITS = {"skip_rate": as_tick, "learning_rate": _in_powers}


def curve_charts(curves: Mapping[str, Sequence[Point]]) -> list[Drawing]:
    """Loss, learning rate and, where something was skipped, skip rates; nothing without points."""
    drawn = {member: points for member, points in curves.items() if points}
    if not drawn:
        return []
    charts = [_lines(drawn, "loss", "loss", "Mean training loss, skipped samples included")]
    charts += [_lines(drawn, "learning_rate", "learning rate", "Learning rate")]
    if any(point.skip_rate for points in drawn.values() for point in points):
        charts += [_lines(drawn, "skip_rate", "skip rate", "Share of samples that AGC skipped"), _band_map(drawn)]
    return charts


def _lines(curves: Mapping[str, Sequence[Point]], key: str, label: str, caption: str) -> Drawing:
    """One line per member over the images that it has seen."""
    axes, few = _axes(), len(curves) <= len(PALETTE)
    for number, points in enumerate(curves.values()):
        thin = points[:: math.ceil(len(points) / _POINTS)]
        colour = PALETTE[number] if few else matplotlib.colormaps["viridis"](number / len(curves))
        axes.plot(
            [p.images_seen for p in thin], [getattr(p, key) for p in thin], color=colour, linewidth=1.3 if few else 0.9
        )
    axes.set(xlabel="images seen", ylabel=label, ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _thousands(value)))
    if key in _UNITS:
        axes.yaxis.set_major_formatter(FuncFormatter(_UNITS[key]))
    if few and len(curves) > 1 and key != "learning_rate":  # its lines coincide
        lines = axes.legend(
            axes.get_lines(), [_member(name) for name in curves], ncols=2 if len(curves) > 3 else 1, fontsize=8
        )
        _ = [text.set_parse_math(False) for text in lines.get_texts()]
    return _drawing(
        axes, f"Line chart: {label} against images seen, one line per member.", f"{caption}{_of_members(curves)}."
    )


def _band_map(curves: Mapping[str, Sequence[Point]]) -> Drawing:
    """Skip rate by timestep band and images seen, the mean over members."""
    last = max(point.images_seen for points in curves.values() for point in points)
    mean = _band_means(curves, last)
    axes, bands = _axes(), len(mean)
    axes.set_facecolor(_GRID)
    image = axes.imshow(
        mean, origin="lower", aspect="auto", extent=(0, last, 0, bands), cmap="cividis", vmin=0, interpolation="nearest"
    )
    assert isinstance(axes.figure, Figure)
    axes.figure.colorbar(image, ax=axes, format=FuncFormatter(as_tick), label="skip rate")
    axes.set(xlabel="images seen", yticks=(0.5, bands - 0.5))
    axes.set_yticklabels(["little\nnoise", "much\nnoise"])
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _thousands(value)))
    axes.grid(False)
    mean_of = ", mean over members" if len(curves) > 1 else ""
    alt = f"Heat map: skip rate for {bands} bands of timesteps against images seen."
    blank = " Pale grey: no sample had such a timestep." if np.isnan(mean).any() else ""
    return _drawing(axes, alt, f"Skip rate in {bands} bands of timesteps{mean_of}.{blank}")


def _band_means(curves: Mapping[str, Sequence[Point]], last: float) -> NDArray[np.float64]:
    """Mean skip rates, (bands, columns); NaN where no sample had such a timestep."""
    columns = min(_COLUMNS, max(len(points) for points in curves.values()))
    bands = max(len(point.skip_rate_bands) for points in curves.values() for point in points)
    total, count = np.zeros((bands, columns)), np.zeros((bands, columns))
    for point in (point for points in curves.values() for point in points):
        column = min(columns - 1, max(0, math.ceil(point.images_seen * columns / last) - 1))
        rates = np.array([math.nan if rate is None else rate for rate in point.skip_rate_bands], dtype=np.float64)
        total[: len(rates), column] += np.nan_to_num(rates)
        count[: len(rates), column] += ~np.isnan(rates)
    return np.divide(total, count, out=np.full_like(total, math.nan), where=count > 0)


def _thousands(value: float) -> str:
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"


def _member(name: str) -> str:
    found = re.fullmatch(r"member-0*(\d+)", name)
    return f"member {found[1]}" if found else name


def _of_members(curves: Mapping[str, object]) -> str:
    return f", one line for each of {len(curves)} members" if len(curves) > 1 else ""
