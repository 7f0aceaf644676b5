"""Report: the folders of one or several audits -> one HTML page that needs no network, no script and no torch.

The verdict is careful. The calibrated cut comes from some held-out images, so the share of real images
below it is itself uncertain. Copies are called found only where the interval of the samples lies above
the one of false alarms, and no page says that there are none: it says what is not shown.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from iet_agc.metrics.gate import fails_by, sentence
from iet_agc.metrics.intervals import difference, hundredths
from iet_agc.report import charts
from iet_agc.report.charts import decimal, percent
from iet_agc.report.comparison import differing, facts
from iet_agc.report.reader import (
    CUT,
    Audit,
    Copies,
    Pair,
    Quality,
    Share,
    Similarity,
    Space,
    Statistic,
    Trained,
    read_audit,
)
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import check_replaceable, replace_text, writing

__all__ = ["render", "write_report"]

#: What the template begins with, and no other file does.
_MARK = 'content="iet-agc report"'

#: How many pairs and images are shown before "more": whole rows on a wide page.
_SHOWN = {"pairs": 6, "single": 12, "alike": 6}

#: A cut with 1 % false alarms is the smallest ratio of 99 held-out images; of fewer, there is none.
_FEWEST = 99

#: So many samples of a most-copied image are named.
_NAMED = 6

_Outcome = Literal["copies", "undecided", "chance", "uncalibrated"]
_LABELS: dict[_Outcome, str] = {
    "copies": "Copies found",
    "undecided": "Undecided",
    "chance": "No copying beyond chance shown",
    "uncalibrated": "Not calibrated",
}

#: What is said of the share in pixels where something else shows copies.
_BESIDES = {"undecided": "undecided", "chance": "not shown to exceed chance", "uncalibrated": "not calibrated"}

#: Of each of the field's other statistics: its title, and what it counts, in plain words.
_STATISTICS = {
    "d1_d2": ("d1/d2 below 1/3", "nearest training image less than a third as far as the second nearest"),
    "auth_pct": ("AuthPct", "authentic: farther from the nearest training image than that one is from its own nearest"),
    "near": ("Nearness", "nearer to a training image than 99\u00a0% of held-out images are to any"),
    "c_t": ("C_T", "how much farther than held-out images samples are from the training images"),
}

#: Whose similarities are shown, and whose captions were prompts, in words.
_ALIKE = {
    "samples": "samples, with training images",
    "held_out": "held-out images, with training images",
    "train": "training images, each with the others",
}
_ALIGNED = {"train": "training images", "held_out": "held-out images"}

#: Of each number of quality: its title, what it says in plain words, which way is better, and its name in audit.json.
_QUALITY = (
    ("Fréchet distance", "how far the two sets are apart as a whole", "lower", "frechet"),
    ("KID", "the same aim; small sets do not bias it", "lower", "kid"),
    ("Precision", "share of samples that lie among real images", "higher", "precision"),
    ("Recall", "share of real images that lie among samples", "higher", "recall"),
    ("MiFID", "Fréchet distance, raised where samples lie too near to real images", "lower", "mifid"),
    ("Inception score", "clear and varied; not compared with real images", "higher", "inception_score"),
)


#: How audit.json names what its numbers of quality compare, and what a convention is about, in words.
_COMPARED = {
    "_train_to_held_out": " of training and held-out images",
    "_train": " to training images",
    "_held_out": " to held-out images",
}
_TITLES = {key: title for title, _, _, key in _QUALITY} | {"precision_recall": "Precision and recall"}


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
    filters = (_count, percent, _interval, _ratio, _cut, decimal, _signed, _value)
    with charts.style():
        return charts.page(
            "audit_page.html.j2",
            {each.__name__.removeprefix("_"): each for each in filters},
            title=title,
            sections=[_section(audit) for audit in read],
            comparison=_comparison(read) if len(read) > 1 else None,
            shown=_SHOWN,
            plain_cut=CUT,
        )


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


def _section(audit: Audit) -> dict[str, Any]:
    """What the template knows of one audit."""
    copies = audit.copies
    outcome = _outcome(copies)
    histogram = charts.histogram(audit.ratios, audit.held_out_ratios, copies)
    return {
        "audit": audit,
        "outcome": "copies" if _found(audit) or _failed(audit) else "undecided" if copies.warnings else outcome,
        "label": _label(audit),
        "verdict": _verdict(copies),
        "gate": _gate(audit),
        "note": _note(copies, outcome, audit.numbers.get("gate")),
        "warnings": _warnings(audit),
        "exact": _exact(audit.exact),
        "left_out": _left_out(audit.numbers),
        "elsewhere": [_in_short(space, audit) for space in audit.spaces] + _alike_in_short(audit),
        "pairs": [_shown_pair(pair, copies.cut) for pair in audit.pairs],
        "pairs_below": sum(pair.ratio < copies.cut for pair in audit.pairs),
        "shrunk": bool(audit.pairs) and max(audit.pairs[0].picture.shape[1:]) > charts.LARGEST,
        "charts": [charts.mq_chart(copies, "pixels"), histogram],
        "rows": _mq_rows(copies),
        "top": [(image, charts.picture(image.picture), _named(image)) for image in audit.top if image.copied],
        "statistics": _statistics(copies),
        "quality": _quality(audit.quality),
        "spaces": [_space(space, audit) for space in audit.spaces],
        "clip": audit.numbers.get("clip"),
        "skipped": [(image, charts.picture(image.picture)) for image in audit.skipped if image.skipped],
        "curves": charts.curve_charts(audit.curves),
        "sets": _sets(audit),
        "weights": _weights(audit),
        "conventions": _conventions(audit),
        "command": _command(audit),
    }


def _space(space: Space, audit: Audit) -> dict[str, Any]:
    """What the template knows of one feature space; its quality is None where the audit's quality is just that."""
    return {
        "space": space,
        "summary": f"{_with_doubt(_beside(space.copies, audit), space.copies)}. {_verdict(space.copies)}",
        "note": _note(space.copies, _outcome(space.copies)),
        "warnings": [_in_words(warning) for warning in space.copies.warnings],
        "chart": charts.mq_chart(space.copies, f"features of {space.name}"),
        "rows": _mq_rows(space.copies),
        "statistics": _statistics(space.copies),
        "similarity": _similarity(space, audit),
        "aligned": _alignment(space),
        "quality": None if space.name == audit.quality.extractor else _quality(space.quality),
    }


def _outcome(copies: Copies | Similarity) -> _Outcome:
    """What the numbers allow to say; see the module's docstring."""
    if copies.calibrated is None:
        return "uncalibrated"
    if copies.calibrated.low <= copies.false_alarm:
        return "chance"
    return "copies" if copies.calibrated.low > copies.most_false_alarms else "undecided"


def _found(audit: Audit) -> list[str]:
    """What shows copies, in words: distance ratios in pixels; else equal pixels, or features."""
    if _outcome(audit.copies) == "copies":
        return [_LABELS["copies"]]
    exact = f"{_count(audit.exact)} exact {'copy' if audit.exact == 1 else 'copies'} found"
    spaces = [space.name for space in audit.spaces if "copies" in (_outcome(space.copies), _by_detector(space))]
    features = f"copies found in the features of {' and '.join(spaces)}"
    return [exact] * bool(audit.exact) + [features] * bool(spaces)


def _label(audit: Audit) -> str:
    """The verdict in two words, or in more where something shows copies and distance ratios in pixels do not."""
    found, outcome = _found(audit), _outcome(audit.copies)
    if gate := audit.numbers.get("gate"):
        most = f"more than {100 * gate['fail_above']:g}\u00a0% copied, chance included"
        checked = f"Check failed: {most}" if gate["failed"] else f"Check passed: not shown to be {most}"
        return _with_doubt("; ".join([checked, *(f"{each[:1].lower()}{each[1:]}" for each in found)]), audit.copies)
    if outcome == "copies" or not found:
        return _with_doubt(_LABELS[outcome], audit.copies)
    label = ", ".join([*found, f"the share in pixels is {_BESIDES[outcome]}"])
    return _with_doubt(f"{label[:1].upper()}{label[1:]}", audit.copies)


def _failed(audit: Audit) -> bool:
    """Whether a gate was asked for, and failed: then that is the verdict."""
    gate = audit.numbers.get("gate")
    return bool(gate and gate["failed"])


def _gate(audit: Audit) -> str:
    """What a gate found, one sentence; none where none was asked for."""
    gate = audit.numbers.get("gate")
    said = sentence(gate, audit.copies.samples) if gate else ""
    return f"{said[:1].upper()}{said[1:]}." if said else ""


def _with_doubt(label: str, copies: Copies) -> str:
    """No verdict stands alone that the audit itself does not trust."""
    return f"{label}, but not without warning" if copies.warnings else label


def _warnings(audit: Audit) -> list[str]:
    """What the audit warns of, sentences without their full stops: of pixels first, then of the features."""
    found = [_in_words(warning) for warning in audit.copies.warnings]
    spaces = [(space.name, warning) for space in audit.spaces for warning in space.copies.warnings]
    return found + [f"In the features of {name}: {warning.rstrip('.')}" for name, warning in spaces]


def _exact(count: int) -> str:
    """Of copies that need no statistics, one sentence; none of none."""
    equal = "sample equals a training image" if count == 1 else "samples equal training images"
    return f"{_count(count)} {equal} pixel by pixel, mirrored or not." if count else ""


def _left_out(numbers: Mapping[str, Any]) -> str:
    """Which held-out images were given and not used, in sentences; old audits do not tell of repeated ones."""
    trained, again = (numbers.get(f"num_held_out_{kind}", 0) for kind in ("in_train", "repeated"))
    stands = "more held-out image stands" if trained == 1 else "more held-out images stand"
    repeats = "more repeats" if again == 1 else "more repeat"
    told = [f"{_count(trained)} {stands} in the training set and {_was(trained)} left out."] * bool(trained)
    told += [f"{_count(again)} {repeats} other held-out images and {_was(again)} left out."] * bool(again)
    return " ".join(told)


def _was(count: int) -> str:
    return "was" if count == 1 else "were"


def _of_all(copies: Copies) -> str:
    share = copies.copied
    of = f"{_count(share.count)} of {_count(copies.samples)} samples"
    return f"{of} ({percent(share.share)}, 95\u00a0% interval {_interval(share)})"


def _verdict(copies: Copies) -> str:
    """One sentence: how many of how many, how sure, and against what."""
    verb, have = ("is", "has") if copies.copied.count == 1 else ("are", "have")
    if copies.calibrated is None:
        return f"{_of_all(copies)} {have} a distance ratio below {CUT}, a cut that is not calibrated."
    chance = 100 * copies.false_alarm
    usual = f"closer to one training image than {100 - chance:g}\u00a0% of held-out real images are"
    return f"{_of_all(copies)} {verb} {usual}; expected by chance: {chance:g}\u00a0%."


def _beside(copies: Copies, audit: Audit) -> str:
    """The verdict on one more space; none that leaves open what a gate has decided by others."""
    outcome = _outcome(copies)
    return "Not checked" if outcome == "undecided" and audit.numbers.get("gate") else _LABELS[outcome]


def _in_short(space: Space, audit: Audit) -> str:
    """The verdict on one more space, for the first screen."""
    share, label = space.copies.copied, _with_doubt(_beside(space.copies, audit).lower(), space.copies)
    return f"In the features of {space.name}: {label}, {percent(share.share)} (95\u00a0% interval {_interval(share)})."


def _by_detector(space: Space) -> _Outcome | None:
    """What similarities allow to say, where the features were made to find copies."""
    similar = space.similarity
    return _outcome(similar) if similar and similar.copy_detection else None


def _alike_in_short(audit: Audit) -> list[str]:
    """The verdict by similarity, of features that were made to find copies."""
    return [
        f"By similarity in the features of {space.name}: {_alike(space, audit)}"
        for space in audit.spaces
        if _by_detector(space)
    ]


def _alike(space: Space, audit: Audit) -> str:
    """How many samples are more alike than chance, and than the field's threshold, in one sentence or two."""
    similar = space.similarity
    assert similar is not None
    above = similar.above["samples"]
    of = f"{percent(above.share)} (95\u00a0% interval {_interval(above)}) are above {similar.threshold}"
    if similar.calibrated is None:
        return f"not calibrated; {of}."
    found, usual = similar.calibrated, 100 * (1 - similar.false_alarm)
    share = f"{_count(found.count)} samples ({percent(found.share)}, 95\u00a0% interval {_interval(found)})"
    more = f"more similar to one training image than {usual:g}\u00a0% of held-out images are, above {similar.cut:.3f}"
    return f"{_alike_label(space.name, similar, audit)}. {share} are {more}; {of}."


def _alike_label(name: str, similar: Similarity, audit: Audit) -> str:
    """The verdict by similarity: that of a gate where one looked at it and copies are not found anyway."""
    outcome, gate = _outcome(similar), audit.numbers.get("gate")
    if gate and similar.copy_detection and outcome != "copies":
        return "check failed" if fails_by(gate, name) else "check passed"
    return _LABELS[outcome].lower()


def _similarity(space: Space, audit: Audit) -> dict[str, Any] | None:
    """What the template knows of similarities in one feature space."""
    similar = space.similarity
    if similar is None:
        return None
    rows = [
        {"title": title, "above": above, "p95": similar.p95[images], "mean": similar.mean[images]}
        for images, title in _ALIKE.items()
        if (above := similar.above.get(images))
    ]
    pairs = [
        {"pair": pair, "sample": charts.picture(pair.picture), "original": charts.picture(pair.original)}
        | {"below": pair.similarity > similar.cut}
        for pair in similar.pairs
    ]
    says, chart = _alike(space, audit), charts.similarities(similar, f"features of {space.name}")
    return {"found": similar, "says": f"{says[:1].upper()}{says[1:]}", "rows": rows, "pairs": pairs, "chart": chart}


def _alignment(space: Space) -> list[dict[str, Any]]:
    """Rows of the table of alignment, one per set of images whose captions were prompts."""
    sets = space.alignment["sets"] if space.alignment else {}
    return [found | {"title": _ALIGNED[images]} for images, found in sets.items()]


def _note(copies: Copies, outcome: _Outcome, gate: Mapping[str, Any] | None = None) -> str:
    """How sure the share is; where a gate was asked for, without another verdict than its own."""
    if outcome == "uncalibrated":
        return f"{_why_uncalibrated(copies)}, so it is not known how many real images would fall below this cut."
    held_out, most = _count(copies.set_by), percent(copies.most_false_alarms)
    known = f"The cut, a distance ratio of {_cut(copies.cut)}, was set on {held_out} held-out images"
    known += f", so its true false-alarm rate may be up to {most}"
    single = ", and single copies may be among the closest pairs" if copies.copied.count else ""
    if gate and (outcome == "undecided" or (gate["failed"] and outcome == "chance")):
        return f"{known}; the check above knows of that."
    return {
        "copies": f"{known}; the samples' interval lies above that.",
        "undecided": f"{known}, within the samples' interval or above it: give more held-out images to decide.",
        "chance": f"{known}. The samples' interval reaches down to the rate of real images: copying beyond that is not "
        f"shown; a share of {percent(copies.copied.high)} is not ruled out{single}.",
    }[outcome]


def _why_uncalibrated(copies: Copies) -> str:
    if not copies.held_out:
        return "No held-out images were given"
    if copies.held_out < _FEWEST:
        return f"Only {_count(copies.held_out)} held-out images were given, too few"
    return f"No cut could be set on the {_count(copies.held_out)} held-out images"


# Parts of a section -------------------------------------------------------------------------------------


def _shown_pair(pair: Pair, cut: float) -> dict[str, Any]:
    differences = pair.differences
    return {
        "pair": pair,
        "sample": charts.picture(pair.picture),
        "original": charts.picture(pair.original),
        "difference": charts.difference(differences),
        "differs": float(differences.mean()) / 255,
        "below": pair.ratio < cut,
    }


def _named(image: Trained) -> str:
    """By which samples it was copied."""
    samples = "sample" if len(image.samples) == 1 else "samples"
    named = ", ".join(str(sample) for sample in image.samples[:_NAMED])
    more = len(image.samples) - _NAMED
    return f"{samples} {named} and {_count(more)} more" if more > 0 else f"{samples} {named}"


def _mq_rows(copies: Copies) -> list[dict[str, Any]]:
    """Rows of the MQ table: the calibrated cut first, then the nine."""
    held_out = copies.held_out_mq or {}
    nine = [
        {"cut": cut, "samples": share, "held_out": held_out.get(cut), "calibrated": False}
        for cut, share in copies.mq.items()
    ]
    if copies.calibrated is None:
        return nine
    return [{"cut": _cut(copies.cut), "samples": copies.calibrated, "held_out": None, "calibrated": True}, *nine]


def _statistics(copies: Copies) -> list[dict[str, Any]]:
    """Rows of the table of the field's other statistics."""
    return [
        {
            "statistic": each,
            "title": _STATISTICS.get(each.key, (each.key, ""))[0],
            "plain": _STATISTICS.get(each.key, (each.key, ""))[1],
            "expected": None if each.null_sd is None else 1.96 * each.null_sd,
        }
        for each in copies.statistics
    ]


def _quality(quality: Quality) -> dict[str, Any]:
    """Rows of the table of quality, and what warns of it."""
    rows = []
    for title, plain, better, key in _QUALITY:
        alone, train, held_out = (quality.values.get(name) for name in (key, f"{key}_train", f"{key}_held_out"))
        if alone or train or held_out:
            rows.append({"title": title, "plain": plain, "better": better} | {"train": train, "held_out": held_out})
            rows[-1]["alone"] = alone
    warnings = quality.warnings or ([_few_images(quality)] if quality.few_images else [])
    warnings = [_in_words(warning) for warning in warnings]
    scale = quality.values.get("frechet_train_to_held_out")
    return {"extractor": quality.extractor, "rows": rows, "warnings": warnings, "scale": scale}


def _in_words(warning: str) -> str:
    """A warning for people: "kid_train" is "KID to training images", and the first letter is large."""
    for key, title in _TITLES.items():
        for ending, words in _COMPARED.items():
            warning = re.sub(rf"\b{key}{ending}\b", f"{title}{words}", warning)
    return f"{warning[:1].upper()}{warning[1:].rstrip('.')}"


def _few_images(quality: Quality) -> str:
    dimensions = f" ({_count(quality.dimensions)})" if quality.dimensions else ""
    return f"There are no more images than dimensions{dimensions}: the Fréchet distances are strongly biased upward."


def _sets(audit: Audit) -> list[tuple[str, str, str, str]]:
    """What was compared: title, how many, where from, and the fingerprint."""
    numbers, names, hashes = audit.numbers, audit.numbers["names"], audit.numbers.get("sha256") or {}
    unique = f"{_count(numbers['num_train'])} ({_count(numbers['num_train_unique'])} unique)"
    rows = [("samples", "samples", f"{_count(numbers['num_samples'])}{_covering(numbers)}")]
    rows.append(("training images", "train", unique))
    if numbers["num_held_out"]:
        rows.append(("held-out images", "held_out", _count(numbers["num_held_out"])))
    return [(title, many, names[key], hashes.get(key) or "") for title, key, many in rows]


def _covering(numbers: Mapping[str, Any]) -> str:
    """How many training images the samples' prompts are about; nothing of samples without prompts."""
    if "prompts" not in numbers:
        return ""
    about, unique = numbers["prompts"], _count(numbers["num_train_unique"])
    covered = f"captions of {_count(about['num_train_images'])} of {unique} unique training images"
    return f" (different prompts: {_count(about['num_prompts'])}, {covered})"


def _weights(audit: Audit) -> list[tuple[str, str]]:
    """Networks with the sha256 of their weights, each once."""
    known = {audit.quality.extractor: audit.quality.sha256} | {space.name: space.sha256 for space in audit.spaces}
    return [(name, sha256) for name, sha256 in known.items() if sha256]


def _conventions(audit: Audit) -> list[tuple[str, Any]]:
    """How the numbers were taken, with the sources of the statistics; what feature spaces share is said once."""
    rows = [(key, value) for key, value in audit.numbers["conventions"].items() if value is not None]
    rows += [(_STATISTICS.get(each.key, (each.key,))[0], _sourced(each)) for each in _every_statistic(audit)]
    rows += _described(audit)
    common = audit.quality.conventions
    rows += [_convention(audit.quality.extractor, key, value) for key, value in common.items()]
    for space in audit.spaces:
        own = {key: value for key, value in space.quality.conventions.items() if common.get(key) != value}
        rows += [_convention(space.name, key, value) for key, value in own.items()]
    return rows


def _convention(extractor: str, key: str, value: object) -> tuple[str, object]:
    """A convention of quality; that of the features goes by the name of the extractor."""
    return (extractor if key == "features" else _TITLES.get(key, f"quality: {key}")), value


def _sourced(statistic: Statistic) -> str:
    return f"{statistic.convention}. Source: {statistic.source}"


def _every_statistic(audit: Audit) -> list[Statistic]:
    found = [each for copies in (audit.copies, *(space.copies for space in audit.spaces)) for each in copies.statistics]
    return list({each.key: each for each in reversed(found)}.values())[::-1]


def _described(audit: Audit) -> list[tuple[str, str]]:
    """Conventions of similarity, alignment and the CLIP score, each once, where the audit has them."""
    known = {"Similarity": next((space.similarity for space in audit.spaces if space.similarity), None)}
    rows = [(title, f"{each.convention}. Source: {each.source}") for title, each in known.items() if each]
    entries = {"Prompt alignment": next((space.alignment for space in audit.spaces if space.alignment), None)}
    entries |= {"CLIP score": (audit.numbers.get("clip") or {}).get("score")}
    return rows + [
        (title, f"{each['convention']}. Source: {each['source']}") for title, each in entries.items() if each
    ]


def _command(audit: Audit) -> str:
    numbers, out = audit.numbers, audit.folder.resolve().name
    names, conventions = numbers["names"], numbers["conventions"]
    words = ["iet-agc", "audit", "--train", names["train"], "--samples", names["samples"]]
    words += ["--held-out", names["held_out"]] if names["held_out"] else []
    words += ["--flips"] if conventions.get("flips") else []
    for extractor in dict.fromkeys([audit.quality.extractor, *(space.name for space in audit.spaces)]):
        words += ["--extractor", extractor]
    words += ["--clip", numbers["clip"]["model"]] if numbers.get("clip") else []
    words += ["--convert-to", str(conventions["convert_to"])] if conventions.get("convert_to") else []
    words += ["--fail-above", f"{numbers['gate']['fail_above']:g}"] if numbers.get("gate") else []
    return shlex.join([*words, "--out", out]) + "\n" + shlex.join(["iet-agc", "report", out])


# Several audits -----------------------------------------------------------------------------------------


def _comparison(audits: Sequence[Audit]) -> dict[str, Any]:
    """The copied shares side by side: by the calibrated cut where every audit has one, else by the plain one."""
    calibrated = all(audit.copies.calibrated for audit in audits)
    shares = {audit.name: audit.copies.copied if calibrated else audit.copies.mq[CUT] for audit in audits}
    chance = sorted({audit.copies.false_alarm for audit in audits}) if calibrated else []
    return {
        "chart": charts.compared(shares, chance),
        "warnings": [each.rstrip(".") for each in differing([(audit.name, facts(audit.numbers)) for audit in audits])],
        "differences": [_difference(audits[0], audit, shares) for audit in audits[1:]],
        "by": "the calibrated cut of each audit" if calibrated else f"the cut {CUT}, as not every audit is calibrated",
    }


def _difference(first: Audit, other: Audit, shares: Mapping[str, Share]) -> str:
    """How much more or less is copied in another audit than in the first, in one sentence."""
    one, two = shares[first.name], shares[other.name]
    found = difference(*({"share": share.share, "ci95": (share.low, share.high)} for share in (two, one)))
    low, high = found["ci95"]
    near, far = (low, high) if low <= 0 <= high else sorted((abs(low), abs(high)))
    interval = f"95\u00a0% interval {_points(near)} to {_points(far)}"
    if low <= 0 <= high:
        size = f"{_points(found['difference'])} percentage points ({interval})"
        return f"The copied shares of {other.name} and {first.name} are not shown to differ: {size}."
    size = f"{_points(abs(found['difference']))} percentage points {'higher' if low > 0 else 'lower'}"
    return f"The copied share of {other.name} is {size} than that of {first.name} ({interval})."


def _points(share: float) -> str:
    return f"{100 * share + 0:.1f}".replace("-", "\u2212")


# Numbers ------------------------------------------------------------------------------------------------


def _count(value: int) -> str:
    return f"{value:,}"


def _interval(share: Share) -> str:
    return f"{hundredths(share.low)} to {hundredths(share.high)}\u00a0%"


def _ratio(value: float) -> str:
    return "<\u00a00.001" if 0 < value < 0.0005 else f"{value:.3f}" if value else "0"


def _cut(value: float) -> str:
    return f"{value:.3g}"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\u2212")


def _value(value: object) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
