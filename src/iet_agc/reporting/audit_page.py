"""Report: the folders of one or several audits -> one HTML page that needs no network and no torch.

The verdict is careful. The calibrated cut comes from some held-out images, so the share of real images
below it is itself uncertain. Copies are called found only where the interval of the samples lies above
the one of false alarms, and no page says that there are none: it says what is not shown. Here is what the page says;
how it says it stands in templates/audit_page.html.j2 and templates/audit_parts.html.j2.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from iet_agc.auditing.schema import CUT, FLAT, AuditRecord, Copies, Space
from iet_agc.auditing.verdict import FEWEST, Outcome, doubts, outcome
from iet_agc.auditing.verdict import verdict as judge
from iet_agc.metrics.curve import Recommendation, recommend
from iet_agc.metrics.gate import Way, sentence
from iet_agc.metrics.intervals import Proportion, difference, hundredths
from iet_agc.metrics.records import MEASURES, Similarity
from iet_agc.reporting import charts
from iet_agc.reporting.charts import Drawing, capital, count, place
from iet_agc.reporting.comparison import differing, warned
from iet_agc.reporting.curve_charts import watch_charts
from iet_agc.reporting.reader import AlikePair, Alikes, Audit, Pair, read_audit
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import check_replaceable, replace_text, writing

__all__ = ["render", "verdict", "write_report"]

#: What the template begins with, and no other file does.
_MARK = 'content="iet-agc report"'

#: How many pairs and images are shown before "more": whole rows on a wide page; and beside the verdict.
_SHOWN = {"pairs": 6, "single": 12, "alike": 6}
_WORST = 3

#: Tables of up to so many bytes are in the page, to be saved from it.
_LARGEST_TABLE = 2**18

#: The verdicts, in words.
_LABELS: dict[Outcome, str] = {
    "copies": "Copies found",
    "undecided": "Undecided",
    "chance": "No copying beyond chance shown",
    "cannot_tell": "Cannot tell",
}

#: What is said of the share in pixels where something else shows copies.
_BESIDES = {"undecided": "undecided", "chance": "not shown to exceed chance", "cannot_tell": "not known"}

#: The field's other statistics, by their names in the record.
_STATISTICS = {"d1_d2": "d1/d2 below 1/3", "auth_pct": "AuthPct", "near": "Nearness", "c_t": "C_T"}


def render(audits: Mapping[str, Path], title: str = "How much is copied") -> str:
    """Lay out one or several audits on one page.

    Args:
        audits: name for people -> folder that `iet-agc audit` wrote.
        title: of the page.

    Returns:
        A whole HTML document. Pictures and figures are inside it; the same audits give the same text.

    Raises:
        UserError: no audits, or a folder that holds no audit, a damaged one, or one of another version.
    """
    if not audits:
        raise UserError("a report needs at least one audit: give a folder that 'iet-agc audit' wrote")
    read = [read_audit(name, folder) for name, folder in audits.items()]
    filters = (_interval, _ratio, _cut, _signed, _value, sentence)
    with charts.style():
        return charts.page(
            "audit_page.html.j2",
            {each.__name__.removeprefix("_"): each for each in filters},
            title=title,
            sections=[_section(audit) for audit in read],
            comparison=_comparison(read) if len(read) > 1 else None,
            shown=_SHOWN,
            plain_cut=CUT,
            fewest=FEWEST,
            flat=FLAT,
            statistics=_STATISTICS,
            measures=MEASURES | {"precision_recall": "Precision and recall"},
            largest=charts.LARGEST,
        )


def verdict(folder: Path) -> str:
    """What the page of an audit says of it first, in a few words.

    Args:
        folder: that `iet-agc audit` wrote.

    Raises:
        UserError: see `render`.
    """
    return _label(read_audit(folder.name, folder)).replace("\u00a0", " ")


def write_report(audits: Mapping[str, Path], file: Path, title: str = "How much is copied") -> Path:
    """Render audits into a file, which appears whole or not at all.

    Args:
        audits: name for people -> folder that `iet-agc audit` wrote.
        file: the page; replaced if it is there and is one of these; where a link leads to one, that one.
        title: of the page.

    Returns:
        `file`.

    Raises:
        UserError: see `render`; or `file` is a folder, something else than such a page, or cannot be written.
    """
    if file.is_dir():
        raise UserError(f"{file} is a folder, and the page is one file: name a file, such as {file / 'report.html'}")
    with writing(file):
        check_replaceable(file, _MARK, "report")
    page = render(audits, title)
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file.resolve(), page)
    return file


# What it says -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _SpaceSection:
    """What is said of one feature space; `alike_label` is empty where similarities are no verdict."""

    name: str
    found: Space
    alike: Alikes
    outcome: Outcome
    label: str
    alike_label: str
    charts: tuple[Drawing, Drawing]


@dataclass(frozen=True)
class _Section:
    """What is said of one audit.

    Attributes:
        mood: whose colour the verdict has.
        outcome: in pixels.
        worst, worst_by: the pairs beside the verdict, and by whose features; None: by pixels.
        watch, recommendation: of the run that drew the samples, where it was watched.
        tables: those in the page, by file; with None those that are too large.
    """

    audit: Audit
    mood: Outcome
    outcome: Outcome
    label: str
    warnings: Sequence[str]
    worst: Sequence[Pair | AlikePair]
    worst_by: str | None
    charts: Sequence[Drawing]
    curves: Sequence[Drawing]
    watch: Sequence[Drawing]
    recommendation: Recommendation | None
    spaces: Sequence[_SpaceSection]
    command: str
    tables: Mapping[str, Markup | None]


def _section(audit: Audit) -> _Section:
    numbers, worst_by = audit.numbers, _shows_copies(audit.numbers)
    mood = "undecided" if numbers.warnings else judge(numbers).outcome
    histogram = charts.histogram(audit.ratios, audit.held_out_ratios, numbers)
    recommendation = recommend(audit.watch) if audit.watch else None
    return _Section(
        audit=audit,
        mood="copies" if _found(audit) or (numbers.gate and numbers.gate.failed) else mood,
        outcome=_outcome(numbers),
        label=_label(audit),
        warnings=[capital(warning) for warning in warned(numbers)],
        worst=(audit.alike[worst_by].pairs if worst_by else audit.pairs)[:_WORST],
        worst_by=worst_by and place(worst_by),
        charts=[charts.mq_chart(numbers, "pixels"), histogram],
        curves=charts.curve_charts(audit.curves),
        watch=watch_charts(audit.watch, recommendation),
        recommendation=recommendation,
        spaces=[_space(name, space, audit) for name, space in numbers.feature_spaces.items()],
        command=_command(numbers, audit.folder.resolve().name),
        tables={file: _table(audit.folder / file) for file in ("samples.csv", "training-images.csv")},
    )


def _space(name: str, space: Space, audit: Audit) -> _SpaceSection:
    alike, where = audit.alike[name], f"features of {place(name)}"
    return _SpaceSection(
        name=place(name),
        found=space,
        alike=alike,
        outcome=_outcome(audit.numbers, name),
        label=_with_doubt(_beside(name, audit.numbers), space),
        alike_label=_alike_label(name, space.similarity, audit.numbers),
        charts=(charts.mq_chart(space, where), charts.similarities(space.similarity, alike.values, where)),
    )


def _table(file: Path) -> Markup | None:
    """A table as an address; None where it is too large for a page."""
    content = file.read_bytes()
    return Markup(charts.data_uri("text/csv", content)) if len(content) <= _LARGEST_TABLE else None


def _outcome(numbers: AuditRecord, name: str | None = None) -> Outcome:
    """What distance ratios in one space allow to say, by the name of its network; by default in pixels."""
    copies = numbers if name is None else numbers.feature_spaces[name]
    return outcome(copies.calibrated, doubts(numbers, Way(name)))


def _by_detector(name: str, numbers: AuditRecord) -> Outcome | None:
    """What similarities allow to say, where the features were made to find copies."""
    similar, way = numbers.feature_spaces[name].similarity, Way(name, "similarity")
    return outcome(similar.calibrated, doubts(numbers, way)) if similar.copy_detection else None


def _spaces_with_copies(numbers: AuditRecord) -> list[str]:
    return [
        name for name in numbers.feature_spaces if "copies" in (_outcome(numbers, name), _by_detector(name, numbers))
    ]


def _shows_copies(numbers: AuditRecord) -> str | None:
    """By whose features copies are shown where pixels do not show any; None: by pixels, or not at all."""
    return None if _outcome(numbers) == "copies" else next(iter(_spaces_with_copies(numbers)), None)


def _found(audit: Audit) -> list[str]:
    """What shows copies, in words: distance ratios in pixels; else equal pixels, or features."""
    if _outcome(audit.numbers) == "copies":
        return [_LABELS["copies"]]
    exact = f"{count(audit.exact)} exact {'copy' if audit.exact == 1 else 'copies'} found"
    spaces = _spaces_with_copies(audit.numbers)
    features = f"copies found in the features of {' and '.join(map(place, spaces))}"
    return [exact] * bool(audit.exact) + [features] * bool(spaces)


def _label(audit: Audit) -> str:
    """The verdict in two words, or in more where something shows copies and distance ratios in pixels do not."""
    found, numbers = _found(audit), audit.numbers
    if gate := numbers.gate:
        most = f"more than {100 * gate.fail_above:g}\u00a0% copied, chance included"
        checked = f"Check failed: {most}" if gate.failed else f"Check passed: not shown to be {most}"
        checked = "Check failed: cannot tell" if gate.cannot_tell else checked
        return _with_doubt("; ".join([checked, *(f"{each[:1].lower()}{each[1:]}" for each in found)]), numbers)
    in_pixels = _outcome(numbers)
    if found and in_pixels != "copies":
        return _with_doubt(capital(", ".join([*found, f"the share in pixels is {_BESIDES[in_pixels]}"])), numbers)
    judged = judge(numbers)
    if judged.outcome == "cannot_tell":
        return _LABELS["cannot_tell"]
    elsewhere = f" {' and '.join(judged.by)}; cannot tell in pixels" if in_pixels == "cannot_tell" else ""
    return _with_doubt(f"{_LABELS[judged.outcome]}{elsewhere}", numbers)


def _with_doubt(label: str, copies: Copies) -> str:
    """No verdict stands alone that the audit itself does not trust."""
    trusted = not copies.warnings or label.lower().endswith("cannot tell")
    return label if trusted else f"{label}, but not without warning"


def _beside(name: str, numbers: AuditRecord) -> str:
    """The verdict on one more space; that of a gate where one was asked for and it leaves open what that decides."""
    found, way = _outcome(numbers, name), Way(name)
    if found == "undecided" and numbers.gate:
        checked = next((check for check in numbers.gate.checks if check.way == way), None)
        return "Not checked" if checked is None else f"Check {'failed' if checked.failed else 'passed'}"
    return _LABELS[found]


def _alike_label(name: str, similar: Similarity, numbers: AuditRecord) -> str:
    """The verdict by similarity: that of a gate where one was asked for and copies are not found anyway."""
    gate, found = numbers.gate, _by_detector(name, numbers) or outcome(similar.calibrated)
    if gate and similar.copy_detection and found in ("undecided", "chance"):
        return "check failed" if gate.fails_by(name) else "check passed"
    return "not checked" if gate and found == "undecided" else _LABELS[found].lower()


# The command --------------------------------------------------------------------------------------------


def _command(numbers: AuditRecord, out: str) -> str:
    """The commands that give this page; of absolute paths the last part only, since a page is for others."""
    names, conventions = numbers.names, numbers.conventions
    assert names is not None, "what was read from a folder has names"
    words = ["iet-agc", "audit", "--train", place(names.train), "--samples", place(names.samples)]
    words += ["--held-out", place(names.held_out)] if names.held_out else []
    words += ["--flips"] if conventions.flips else []
    for extractor in dict.fromkeys([numbers.quality.extractor, *numbers.feature_spaces]):
        words += ["--extractor", place(extractor)] if extractor else []
    words += [] if numbers.quality.extractor else ["--no-quality"]
    if numbers.groups:
        words += ["--groups"] if numbers.groups.origin == "searched" else ["--groups", f"{out}/training-images.csv"]
    words += ["--transformed"] if numbers.transformed else []
    words += ["--clip", place(numbers.clip.model)] if numbers.clip else []
    words += ["--convert-to", conventions.convert_to] if conventions.convert_to else []
    if numbers.mending:
        words += ["--orient"] if numbers.mending.orient else []
        words += ["--background", numbers.mending.background] if numbers.mending.background else []
        words += ["--on-bad", "skip"] if numbers.mending.on_bad == "skip" else []
        words += ["--resize", numbers.mending.resize] if numbers.mending.resize else []
        words += ["--crop", numbers.mending.crop] if numbers.mending.crop else []
    words += ["--fail-above", f"{numbers.gate.fail_above:g}"] if numbers.gate else []
    words += ["--device", numbers.provenance.device] if numbers.provenance else []
    return shlex.join([*words, "--out", out]) + "\n" + shlex.join(["iet-agc", "report", out])


# Several audits -----------------------------------------------------------------------------------------


def _comparison(audits: Sequence[Audit]) -> dict[str, object]:
    """The copied shares side by side: by the calibrated cut where every audit has one, else by the plain one."""
    shares: dict[str, Proportion] = {each.name: each.numbers.calibrated or each.numbers.mq[CUT] for each in audits}
    rates = {each.numbers.calibrated.false_alarm for each in audits if each.numbers.calibrated}
    calibrated = all(each.numbers.calibrated for each in audits)
    if not calibrated:
        shares, rates = {each.name: each.numbers.mq[CUT] for each in audits}, set()
    return {
        "chart": charts.compared(shares, sorted(rates)),
        "warnings": [each.rstrip(".") for each in differing([(audit.name, audit.numbers) for audit in audits])],
        "differences": [_difference(audits[0].name, audit.name, shares) for audit in audits[1:]],
        "calibrated": calibrated,
    }


def _difference(first: str, other: str, shares: Mapping[str, Proportion]) -> str:
    """How much more or less is copied in another audit than in the first, in one sentence."""
    apart, (low, high) = difference(*((shares[name].share, shares[name].ci95) for name in (other, first)))
    near, far = (low, high) if low <= 0 <= high else sorted((abs(low), abs(high)))
    interval = f"95\u00a0% interval {_points(near)} to {_points(far)}"
    if low <= 0 <= high:
        size = f"{_points(apart)} percentage points ({interval})"
        return f"The copied shares of {other} and {first} are not shown to differ: {size}."
    size = f"{_points(abs(apart))} percentage points {'higher' if low > 0 else 'lower'}"
    return f"The copied share of {other} is {size} than that of {first} ({interval})."


# Numbers ------------------------------------------------------------------------------------------------


def _points(share: float) -> str:
    return f"{100 * share + 0:.1f}".replace("-", "\u2212")


def _interval(share: Proportion) -> str:
    low, high = share.ci95
    return f"{hundredths(low)} to {hundredths(high)}\u00a0%"


def _ratio(value: float) -> str:
    return "<\u00a00.001" if 0 < value < 0.0005 else f"{value:.3f}" if value else "0"


def _cut(value: float) -> str:
    return f"{value:.3g}"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\u2212")


def _value(value: object) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
