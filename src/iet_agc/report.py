"""Report: the folders of one or several audits -> one HTML page that needs no network, no script and no torch.

The verdict is careful. The calibrated cut is the j-th smallest of H held-out distance ratios, so the
share of real images below it is itself uncertain, distributed as Beta(j, H + 1 - j) (Wilks, 1941).
Copies are called shown only where the interval of the samples lies above that of the false alarms.
"""

import base64
import csv
import io
import json
import math
import re
import shlex
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar

import matplotlib
import matplotlib.style
import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import beta

from iet_agc.files import replace_text

__all__ = ["render", "write_report"]

#: The cut that every audit has, calibrated or not.
_CUT = "0.15"

#: Pictures are enlarged to at least, and shrunk to at most, this many pixels a side.
_SMALLEST, _LARGEST = 96, 256

#: What the page takes from audit.json's quality and names, and from the points of a curve.
_QUALITY, _NAMES = ("extractor", "few_images"), ("train", "samples", "held_out")
_POINT = ("images_seen", "loss", "learning_rate", "skip_rate", "skip_rate_bands")

#: How many pairs and images are shown before "more": whole rows on a wide page.
_SHOWN = {"pairs": 12, "single": 10}

#: Okabe and Ito's colours, told apart by colour-blind readers.
_SAMPLES, _HELD_OUT, _INK, _GRID = "#D55E00", "#0072B2", "#1c1f23", "#e3e6ea"
_MEMBERS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#1c1f23")

#: Points of a curve that a line is drawn through, and columns of the map of timestep bands.
_POINTS, _COLUMNS = 400, 60

_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "iet-agc", "font.size": 9, "axes.labelsize": 9, "axes.edgecolor": "#8a9099",
    "text.color": _INK, "axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": _GRID, "axes.axisbelow": True, "legend.frameon": False,
    "figure.constrained_layout.use": True, "axes.formatter.useoffset": False,
}  # fmt: skip

_T = TypeVar("_T")
_Outcome = Literal["copies", "undecided", "chance", "uncalibrated"]
_LABELS: dict[_Outcome, str] = {
    "copies": "Copies found",
    "undecided": "Undecided",
    "chance": "No excess over real images shown",
    "uncalibrated": "Not calibrated",
}


def render(audits: Mapping[str, Path], title: str = "How much is copied") -> str:
    """Lay out one or several audits on one page.

    Args:
        audits: name for people -> folder that `iet-agc audit` wrote.
        title: of the page.

    Returns:
        A whole HTML document. Pictures and figures are inside it; the same audits give the same text.

    Raises:
        ValueError: no audits, or a folder that holds no audit, a damaged one, or one of another version.
    """
    if not audits:
        raise ValueError("a report needs at least one audit: give a folder that 'iet-agc audit' wrote")
    read = [_read_audit(name, folder) for name, folder in audits.items()]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "number": _number,
        "percent": _percent,
        "ratio": _ratio,
        "cut": _cut,
        "decimal": _decimal,
        "interval": _interval,
    }
    template = environment.from_string(files("iet_agc").joinpath("report.html.j2").read_text(encoding="utf-8"))
    with matplotlib.style.context(["default", _STYLE]):
        figure = _compared(read) if len(read) > 1 else None
        sections = [_section(audit) for audit in read]
    return template.render(
        title=title, sections=sections, compared=figure, differences=_differences(read), shown=_SHOWN, plain_cut=_CUT
    )


def write_report(audits: Mapping[str, Path], file: Path, title: str = "How much is copied") -> Path:
    """Render audits into a file, which appears whole or not at all.

    Args:
        audits: name for people -> folder that `iet-agc audit` wrote.
        file: the page; replaced if it is there.
        title: of the page.

    Returns:
        `file`.

    Raises:
        ValueError: see `render`.
    """
    page = render(audits, title)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, page)
    return file


# What an audit's folder holds ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Share:
    """A share of images with its 95 % interval."""

    count: int
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class _Pair:
    """A sample and the training image nearest to it; pictures uint8 (C, H, W)."""

    sample: int
    seed: str
    ratio: float
    nearest: int
    mirrored: bool
    picture: NDArray[np.uint8]
    original: NDArray[np.uint8]


@dataclass(frozen=True)
class _Trained:
    """A training image; seen and skipped are None where no run told them."""

    image: int
    multiplicity: int
    copied: int
    picture: NDArray[np.uint8]
    seen: int | None = None
    skipped: int | None = None

    @property
    def skip_share(self) -> float:
        return (self.skipped or 0) / max(self.seen or 0, 1)


@dataclass(frozen=True)
class _Audit:
    """All of an audit's folder; ratios float64 (N,) and held_out_ratios float64 (H,)."""

    name: str
    folder: Path
    numbers: dict[str, Any]
    mq: dict[str, _Share]
    held_out_mq: dict[str, _Share] | None
    calibrated: _Share | None
    ratios: NDArray[np.float64]
    held_out_ratios: NDArray[np.float64]
    pairs: list[_Pair]
    top: list[_Trained]
    skipped: list[_Trained]
    curves: dict[str, list[dict[str, Any]]]

    @property
    def cut(self) -> float:
        """Below it a sample is called a copy."""
        return self.numbers["calibrated"]["cut"] if self.calibrated else float(_CUT)

    @property
    def copied(self) -> _Share:
        return self.calibrated or self.mq[_CUT]

    @property
    def false_alarm(self) -> float:
        return self.numbers["calibrated"]["false_alarm"] if self.calibrated else math.nan


def _read_audit(name: str, folder: Path) -> _Audit:
    file = folder / "audit.json"
    if not file.is_file():
        raise ValueError(f"{file} is not there: give a folder that 'iet-agc audit --out' wrote")
    numbers = _attempt(file, _read_json)
    if numbers.get("version") != 1:
        raise ValueError(
            f"{file} has version {numbers.get('version')!r}, this iet-agc reads 1: run 'iet-agc audit' again"
        )
    mq, held_out_mq, calibrated = _attempt(file, lambda _: _shares(numbers))
    rows = _attempt(folder / "samples.csv", partial(_sample_rows, numbers=numbers))
    training = _attempt(folder / "training-images.csv", partial(_training_rows, numbers=numbers))
    pictures = _attempt(folder / "pictures.npz", _read_pictures)
    curves = _attempt(folder / "curves.json", _read_curves)
    pairs = _attempt(folder / "pictures.npz", lambda _: _pairs(rows, pictures))
    top, skipped = (
        _attempt(folder / "pictures.npz", partial(_trained, training, pictures, kind)) for kind in ("top", "skipped")
    )
    ratios, held_out_ratios = np.array([row["ratio"] for row in rows]), pictures["held_out_ratios"]
    return _Audit(
        name, folder, numbers, mq, held_out_mq, calibrated, ratios, held_out_ratios, pairs, top, skipped, curves
    )


def _attempt(file: Path, read: Callable[[Path], _T]) -> _T:
    """Call `read`; whatever shows that the file is damaged becomes one clear line."""
    try:
        return read(file)
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        EOFError,
        zipfile.BadZipFile,
        csv.Error,
    ) as error:
        reason = "not there" if isinstance(error, FileNotFoundError) else f"damaged: {type(error).__name__}: {error}"
        raise ValueError(f"{file} is {' '.join(reason.split())}; run the same 'iet-agc audit' again") from error


def _read_json(file: Path) -> dict[str, Any]:
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__} where an object belongs")
    return content


def _check_numbers(numbers: Mapping[str, Any]) -> None:
    """Whatever the page takes from audit.json as it stands is there, and a number where it should be."""
    quality, names = numbers["quality"], numbers["names"]
    counts = {key: numbers[key] for key in ("num_samples", "num_train", "num_train_unique", "num_held_out")}
    distances = {key: quality[key] for key in ("frechet_train", "frechet_held_out", "frechet_train_to_held_out")}
    for key, value in (counts | {key: value for key, value in distances.items() if value is not None}).items():
        if not isinstance(value, int | float):
            raise ValueError(f"{key} is {value!r}")
    for key, value in {"conventions": numbers["conventions"], "names": names}.items():
        if not isinstance(value, dict):
            raise ValueError(f"{key} is {value!r}")
    absent = [key for key in _QUALITY if key not in quality] + [
        key for key in _NAMES if not isinstance(names.get(key), str)
    ]
    if absent:
        raise ValueError(f"no {absent[0]}")


def _shares(numbers: Mapping[str, Any]) -> tuple[dict[str, _Share], dict[str, _Share] | None, _Share | None]:
    """Shares below the nine cuts, of samples and held-out, and below the calibrated cut."""
    _check_numbers(numbers)
    held_out, calibrated = numbers["held_out"], numbers["calibrated"]
    mq = {cut: _share(numbers["mq"][cut]) for cut in sorted({*numbers["mq"], _CUT}, key=float)}
    held_out_mq = {cut: _share(held_out["mq"][cut]) for cut in mq} if held_out else None
    if calibrated and not (calibrated["cut"] > 0 and 0 < calibrated["false_alarm"] < 1 and _share(calibrated)):
        raise ValueError(f"calibrated is {calibrated!r}")
    return mq, held_out_mq, _share(calibrated) if calibrated else None


def _share(entry: Mapping[str, Any]) -> _Share:
    low, high = entry["ci95"]
    return _Share(int(entry["count"]), float(entry["share"]), float(low), float(high))


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _sample_rows(file: Path, numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {
            "sample": int(row["sample"]),
            "seed": row["seed"],
            "ratio": float(row["ratio"]),
            "nearest": int(row["nearest"]),
            "mirrored": row["mirrored"] == "1",
        }
        for row in _rows(file)
    ]
    if len(rows) != numbers["num_samples"]:
        raise ValueError(f"{len(rows)} rows, audit.json counts {numbers['num_samples']} samples")
    below, told = sum(row["ratio"] < float(_CUT) for row in rows), numbers["mq"][_CUT]["count"]
    if below != told:
        raise ValueError(f"{below} ratios are below {_CUT}, audit.json counts {told}")
    return rows


def _training_rows(file: Path, numbers: Mapping[str, Any]) -> list[dict[str, int]]:
    rows = [{column: int(value) for column, value in row.items()} for row in _rows(file)]
    if len(rows) != numbers["num_train_unique"]:
        raise ValueError(f"{len(rows)} rows, audit.json counts {numbers['num_train_unique']} unique training images")
    return rows


def _read_pictures(file: Path) -> dict[str, NDArray[Any]]:
    with np.load(file, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def _read_curves(file: Path) -> dict[str, list[dict[str, Any]]]:
    curves = _read_json(file)
    absent = [key for points in curves.values() for point in points for key in _POINT if key not in point]
    if absent:
        raise ValueError(f"a point without {absent[0]}")
    return curves


def _pairs(rows: Sequence[Mapping[str, Any]], pictures: Mapping[str, NDArray[Any]]) -> list[_Pair]:
    found = zip(pictures["worst"].tolist(), pictures["worst_samples"], pictures["worst_originals"], strict=True)
    return [_Pair(**rows[number], picture=picture, original=original) for number, picture, original in found]


def _trained(
    rows: Sequence[Mapping[str, int]], pictures: Mapping[str, NDArray[Any]], kind: str, _: Path
) -> list[_Trained]:
    found = zip(pictures[kind].tolist(), pictures[f"{kind}_images"], strict=True)
    by_image = {row["image"]: row for row in rows}
    return [_Trained(**by_image[image], picture=picture) for image, picture in found]


# What it says -------------------------------------------------------------------------------------------


def _section(audit: _Audit) -> dict[str, Any]:
    """What the template knows of one audit."""
    return {
        "audit": audit,
        "outcome": (outcome := _outcome(audit)),
        "label": _LABELS[outcome],
        "verdict": _verdict(audit),
        "note": _note(audit, outcome),
        "command": _command(audit),
        "rows": _table(audit),
        "pairs": [
            (pair, _picture(pair.picture), _picture(pair.original), pair.ratio < audit.cut) for pair in audit.pairs
        ],
        "pairs_below": sum(pair.ratio < audit.cut for pair in audit.pairs),
        "top": [(image, _picture(image.picture)) for image in audit.top if image.copied],
        "skipped": [(image, _picture(image.picture)) for image in audit.skipped if image.skipped],
        "shrunk": max((*audit.pairs[0].picture.shape[1:], 0)) > _LARGEST if audit.pairs else False,
        "figures": [_mq_figure(audit), _histogram(audit)],
        "curves": _curve_figures(audit.curves),
    }


def _outcome(audit: _Audit) -> _Outcome:
    """What the numbers allow to say; see the module's docstring."""
    if audit.calibrated is None:
        return "uncalibrated"
    if audit.calibrated.low <= audit.false_alarm:
        return "chance"
    return "copies" if audit.calibrated.low > _most_false_alarms(audit) else "undecided"


def _most_false_alarms(audit: _Audit) -> float:
    """Upper end of the 95 % interval of the share of all real images that fall below the calibrated cut.

    With j - 1 of H held-out images below the cut, that share has the distribution Beta(j, H + 1 - j).
    """
    total, below = len(audit.held_out_ratios), int((audit.held_out_ratios < audit.cut).sum())
    return float(beta.ppf(0.975, below + 1, total - below))


def _verdict(audit: _Audit) -> str:
    """One sentence: how many of how many, how sure, and against what."""
    share = audit.copied
    of = f"{_number(share.count)} of {_number(audit.numbers['num_samples'])} samples"
    of += f" ({_percent(share.share)}, 95\u00a0% interval {_interval(share)})"
    if audit.calibrated is None:
        return (
            f"{of} {'has' if share.count == 1 else 'have'} a distance ratio below {_CUT}, a cut that is not calibrated."
        )
    verb, chance = "is" if share.count == 1 else "are", 100 * audit.false_alarm
    usual = f"{100 - chance:g}\u00a0% of held-out real images"
    return f"{of} {verb} closer to one training image than {usual} are; expected by chance: {chance:g}\u00a0%."


def _note(audit: _Audit, outcome: _Outcome) -> str:
    if outcome == "uncalibrated":
        few = audit.numbers["num_held_out"]
        given = f"Only {few} held-out images were given, too few" if few else "No held-out images were given"
        return f"{given}, so it is not known how many real images would fall below this cut."
    held_out, most = _number(audit.numbers["num_held_out"]), _percent(_most_false_alarms(audit))
    known = f"The cut, a distance ratio of {_cut(audit.cut)}, was set on {held_out} held-out images"
    known += f", so its true false-alarm rate may be up to {most}"
    return {
        "copies": f"{known}; the samples' interval lies above that.",
        "undecided": f"{known}, within the samples' interval or above it: give more held-out images to decide.",
        "chance": f"{known}. The samples' interval reaches down to the rate of real images: copying beyond that is not "
        f"shown; a share of {_percent(audit.copied.high)} is not ruled out.",
    }[outcome]


def _table(audit: _Audit) -> list[dict[str, Any]]:
    """Rows of the MQ table: the calibrated cut first, then the nine."""
    held_out = audit.held_out_mq or {}
    nine = [
        {"cut": cut, "samples": share, "held_out": held_out.get(cut), "below": None} for cut, share in audit.mq.items()
    ]
    if audit.calibrated is None:
        return nine
    below = int((audit.held_out_ratios < audit.cut).sum())
    return [
        {"cut": f"{_cut(audit.cut)}, calibrated", "samples": audit.calibrated, "held_out": None, "below": below},
        *nine,
    ]


def _command(audit: _Audit) -> str:
    names = audit.numbers["names"]
    words = ["iet-agc", "audit", "--train", names["train"], "--samples", names["samples"]]
    words += ["--held-out", names["held_out"]] if names["held_out"] else []
    words += ["--flips"] if audit.numbers["conventions"].get("flips") else []
    words += ["--extractor", audit.numbers["quality"]["extractor"]]
    return shlex.join([*words, "--out", audit.folder.resolve().name])


def _differences(audits: Sequence[_Audit]) -> list[str]:
    """In what audits on one page differ, so that their numbers do not compare."""
    facts: dict[str, Callable[[_Audit], object]] = {
        "the training set": lambda audit: (audit.numbers.get("sha256") or {}).get("train"),
        "the held-out set": lambda audit: (audit.numbers.get("sha256") or {}).get("held_out"),
        "the number of samples": lambda audit: audit.numbers["num_samples"],
        "the extractor": lambda audit: audit.numbers["quality"]["extractor"],
        "the conventions": lambda audit: audit.numbers["conventions"],
    }
    return [what for what, fact in facts.items() if any(fact(audit) != fact(audits[0]) for audit in audits)]


# Numbers and pictures -----------------------------------------------------------------------------------


def _number(value: int) -> str:
    return f"{value:,}"


def _percent(share: float) -> str:
    """0 and 1 only where they are exact."""
    hundred = 100 * share
    if 0 < hundred < 0.05:
        return "<\u00a00.1\u00a0%"
    if 99.95 <= hundred < 100:
        return ">\u00a099.9\u00a0%"
    return f"{hundred:.0f}\u00a0%" if hundred in (0, 100) else f"{hundred:.1f}\u00a0%"


def _interval(share: _Share) -> str:
    return f"{_percent(share.low)} to {_percent(share.high)}"


def _ratio(value: float) -> str:
    return "<\u00a00.001" if 0 < value < 0.0005 else f"{value:.3f}" if value else "0"


def _cut(value: float) -> str:
    return f"{value:.3g}"


def _decimal(value: float | None) -> str:
    """Three decimals, fewer for large numbers; a distance of nothing may be negative by rounding."""
    if value is None:
        return "–"
    return f"{max(value, 0):,.3f}" if value < 10 else f"{value:,.1f}"


def _picture(image: NDArray[np.uint8]) -> str:
    """PNG as a data URI; pixels are repeated a whole number of times, so that a small image is sharp everywhere.

    Args:
        image: uint8 (C, H, W), grey or RGB.
    """
    pixels = np.ascontiguousarray(image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0))
    picture, longest = Image.fromarray(pixels), max(pixels.shape[:2])
    if longest > _LARGEST:
        picture.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    elif (times := math.ceil(_SMALLEST / longest)) > 1:
        picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


# Figures ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Drawing:
    """A figure, and the line under it."""

    svg: Markup
    caption: str


def _axes(height: float = 2.7, width: float = 4.3) -> Axes:
    """Axes of a figure that is legible at the width of a phone; inches."""
    return Figure(figsize=(width, height)).add_subplot()


def _drawing(axes: Axes, alt: str, caption: str) -> _Drawing:
    """Inline SVG, without dates, and without the ids that would repeat on the page."""
    figure, stream = axes.figure, io.StringIO()
    FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})  # pyright: ignore
    svg = stream.getvalue()
    svg = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL
    )
    svg = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", svg)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    opening = f'<svg {box[0]} role="img" aria-label="{escape(alt)}">'
    return _Drawing(Markup(re.sub(r"^<svg[^>]*>", lambda _: opening, svg, count=1).strip()), caption)


def _in_percent(value: float, _: object = None) -> str:
    return f"{100 * value:.3g} %"


def _legend_above(axes: Axes) -> None:
    """Where it hides no data, whatever the data are."""
    assert isinstance(axes.figure, Figure)
    axes.figure.legend(loc="outside upper right", ncols=3, borderaxespad=0)


def _mq_figure(audit: _Audit) -> _Drawing:
    """Share below each of the nine cuts; the square root makes room where copies are."""
    axes = _axes()
    axes.set_yscale("function", functions=(lambda y: np.sqrt(np.clip(y, 0, None)), np.square))
    for label, mq, colour in (("samples", audit.mq, _SAMPLES), ("held-out", audit.held_out_mq, _HELD_OUT)):
        if mq is not None:
            cuts, shares = [float(cut) for cut in mq], list(mq.values())
            axes.fill_between(
                cuts, [s.low for s in shares], [s.high for s in shares], color=colour, alpha=0.2, linewidth=0
            )
            axes.plot(
                cuts,
                [s.share for s in shares],
                color=colour,
                marker="o" if label == "samples" else "s",
                markersize=3.5,
                label=label,
            )
    axes.set(ylim=(0, 1.02), xlabel="cut on the distance ratio", ylabel="share below the cut")
    axes.set_yticks([0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1])
    axes.yaxis.set_major_formatter(FuncFormatter(_in_percent))
    _legend_above(axes)
    what = "samples and of held-out images" if audit.held_out_mq else "samples"
    alt = f"Line chart: share of {what} below each of nine cuts; the MQ table has the numbers."
    return _drawing(axes, alt, "MQ as a share, with 95\u00a0% intervals. The vertical axis is stretched near 0.")


def _histogram(audit: _Audit) -> _Drawing:
    axes, bins = _axes(), np.linspace(0, 1, 41)
    for label, ratios, colour in (("samples", audit.ratios, _SAMPLES), ("held-out", audit.held_out_ratios, _HELD_OUT)):
        if len(ratios):
            share = np.histogram(np.clip(ratios, 0, 1), bins)[0] / len(ratios)
            axes.stairs(share, bins, fill=True, color=colour, alpha=0.18)
            axes.stairs(
                share, bins, color=colour, linewidth=1.4, linestyle="-" if label == "samples" else "--", label=label
            )
    axes.axvline(audit.cut, color=_INK, linewidth=1.2, linestyle=":", label=f"cut {_cut(audit.cut)}")
    axes.set(xlim=(0, 1), xlabel="distance ratio", ylabel="share of images")
    axes.yaxis.set_major_formatter(FuncFormatter(_in_percent))
    _legend_above(axes)
    kind = "calibrated cut" if audit.calibrated else "cut, which is not calibrated"
    what = "samples and held-out images" if len(audit.held_out_ratios) else "samples"
    alt = f"Histogram of the distance ratios of {what}, with the cut marked."
    return _drawing(axes, alt, f"Distance ratios. Left of the dotted {kind}, a sample counts as a copy.")


def _compared(audits: Sequence[_Audit]) -> _Drawing:
    """Copied share of each audit with its interval, one row each."""
    axes = _axes(0.75 + 0.32 * len(audits), 4.9)
    for row, audit in enumerate(audits):
        share = audit.copied
        hollow = "white" if audit.calibrated is None else _SAMPLES
        axes.plot(
            [share.low, share.high], [row, row], color=_SAMPLES, linewidth=2.4, alpha=0.55, solid_capstyle="round"
        )
        axes.plot([share.share], [row], "o", color=_SAMPLES, markerfacecolor=hollow, markersize=6)
    for chance in sorted({audit.false_alarm for audit in audits if audit.calibrated}):
        axes.axvline(chance, color=_HELD_OUT, linestyle="--", linewidth=1.2)
    axes.set_yticks(range(len(audits)), [_short(audit.name) for audit in audits], parse_math=False)
    axes.set(
        ylim=(len(audits) - 0.5, -0.5), xlim=(0, min(1, max(0.02, 1.08 * max(audit.copied.high for audit in audits))))
    )
    axes.set_xlabel("copied share")
    axes.xaxis.set_major_formatter(FuncFormatter(_in_percent))
    axes.grid(False, axis="y")
    alt = "Copied share of each audit with its interval; the table has the numbers."
    plain = (
        " A hollow dot is an uncalibrated share, below 0.15."
        if any(audit.calibrated is None for audit in audits)
        else ""
    )
    return _drawing(
        axes, alt, f"Copied share with 95\u00a0% intervals; the dashed line is the rate of false alarms.{plain}"
    )


def _short(name: str) -> str:
    return name if len(name) <= 22 else f"{name[:21]}…"


# Training curves ----------------------------------------------------------------------------------------


def _in_powers(value: float, _: object = None) -> str:
    return re.sub(r"e-0*", "e-", f"{value:.1e}") if value else "0"


#: How the vertical axis of a curve is labelled.
_UNITS = {"skip_rate": _in_percent, "learning_rate": _in_powers}


def _curve_figures(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[_Drawing]:
    """Loss, learning rate and, where something was skipped, skip rates; nothing without points."""
    drawn = {member: points for member, points in curves.items() if points}
    if not drawn:
        return []
    figures = [_lines(drawn, "loss", "loss", "Mean training loss, skipped samples included")]
    figures += [_lines(drawn, "learning_rate", "learning rate", "Learning rate")]
    if any(point["skip_rate"] for points in drawn.values() for point in points):
        figures += [_lines(drawn, "skip_rate", "skip rate", "Share of samples that AGC skipped"), _band_map(drawn)]
    return figures


def _lines(curves: Mapping[str, Sequence[Mapping[str, Any]]], key: str, label: str, caption: str) -> _Drawing:
    """One line per member over the images that it has seen."""
    axes, few = _axes(), len(curves) <= len(_MEMBERS)
    for number, points in enumerate(curves.values()):
        thin = points[:: math.ceil(len(points) / _POINTS)]
        colour = _MEMBERS[number] if few else matplotlib.colormaps["viridis"](number / len(curves))
        axes.plot([p["images_seen"] for p in thin], [p[key] for p in thin], color=colour, linewidth=1.3 if few else 0.9)
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


def _band_map(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> _Drawing:
    """Skip rate by timestep band and images seen, the mean over members."""
    last = max(point["images_seen"] for points in curves.values() for point in points)
    columns = min(_COLUMNS, max(len(points) for points in curves.values()))
    bands = max(len(point["skip_rate_bands"]) for points in curves.values() for point in points)
    total, count = np.zeros((bands, columns)), np.zeros((bands, columns))
    for point in (point for points in curves.values() for point in points):
        column = min(columns - 1, max(0, math.ceil(point["images_seen"] * columns / last) - 1))
        rates = np.array([math.nan if rate is None else rate for rate in point["skip_rate_bands"]], dtype=np.float64)
        total[: len(rates), column] += np.nan_to_num(rates)
        count[: len(rates), column] += ~np.isnan(rates)
    mean = np.divide(total, count, out=np.full_like(total, math.nan), where=count > 0)
    axes = _axes()
    axes.set_facecolor(_GRID)
    image = axes.imshow(
        mean, origin="lower", aspect="auto", extent=(0, last, 0, bands), cmap="cividis", vmin=0, interpolation="nearest"
    )
    assert isinstance(axes.figure, Figure)
    axes.figure.colorbar(image, ax=axes, format=FuncFormatter(_in_percent), label="skip rate")
    axes.set(xlabel="images seen", yticks=(0.5, bands - 0.5))
    axes.set_yticklabels(["little\nnoise", "much\nnoise"])
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _thousands(value)))
    axes.grid(False)
    mean_of = ", mean over members" if len(curves) > 1 else ""
    alt = f"Heat map: skip rate for {bands} bands of timesteps against images seen."
    blank = " Pale grey: no sample had such a timestep." if np.isnan(mean).any() else ""
    return _drawing(axes, alt, f"Skip rate in {bands} bands of timesteps{mean_of}.{blank}")


def _thousands(value: float) -> str:
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"


def _member(name: str) -> str:
    found = re.fullmatch(r"member-0*(\d+)", name)
    return f"member {found[1]}" if found else name


def _of_members(curves: Mapping[str, object]) -> str:
    return f", one line for each of {len(curves)} members" if len(curves) > 1 else ""
