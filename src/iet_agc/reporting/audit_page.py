"""Report: the folders of one or several audits -> one HTML page that needs no network, no script and no torch.

The verdict is careful. The calibrated cut comes from some held-out images, so the share of real images
below it is itself uncertain. Copies are called found only where the interval of the samples lies above
the one of false alarms, and no page says that there are none: it says what is not shown.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from iet_agc.auditing.schema import CUT, AuditRecord, Copies, Space
from iet_agc.auditing.verdict import FEWEST, Outcome, doubts, outcome
from iet_agc.auditing.verdict import verdict as judge
from iet_agc.metrics.gate import Gate, Way, sentence
from iet_agc.metrics.intervals import Proportion, difference, hundredths
from iet_agc.metrics.records import MEASURES, Quality, Similarity
from iet_agc.reporting import charts
from iet_agc.reporting.charts import decimal, percent
from iet_agc.reporting.comparison import differing, facts, warned
from iet_agc.reporting.reader import Alikes, Audit, Pair, Trained, read_audit
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import check_replaceable, replace_text, writing

__all__ = ["render", "verdict", "write_report"]

#: What the template begins with, and no other file does.
_MARK = 'content="iet-agc report"'

#: How many pairs and images are shown before "more": whole rows on a wide page.
_SHOWN = {"pairs": 6, "single": 12, "alike": 6}

#: So many samples of a most-copied image are named.
_NAMED = 6

#: The verdicts, in words.
_LABELS: dict[Outcome, str] = {
    "copies": "Copies found",
    "undecided": "Undecided",
    "chance": "No copying beyond chance shown",
    "cannot_tell": "Cannot tell",
}

#: What is said of the share in pixels where something else shows copies.
_BESIDES = {"undecided": "undecided", "chance": "not shown to exceed chance", "cannot_tell": "not known"}

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

#: Of each number of quality: what it says in plain words, and which way is better.
_QUALITY = {
    "frechet": ("how far the two sets are apart as a whole", "lower"),
    "kid": ("the same aim; small sets do not bias it", "lower"),
    "precision": ("share of samples that lie among real images", "higher"),
    "recall": ("share of real images that lie among samples", "higher"),
    "mifid": ("Fréchet distance, raised where samples lie too near to real images", "lower"),
    "inception_score": ("clear and varied; not compared with real images", "higher"),
}

#: What a convention of quality is about, in words.
_TITLES = MEASURES | {"precision_recall": "Precision and recall"}


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


def _section(audit: Audit) -> dict[str, object]:
    """What the template knows of one audit."""
    numbers = audit.numbers
    in_pixels, overall = _outcome(numbers), judge(numbers).outcome
    histogram = charts.histogram(audit.ratios, audit.held_out_ratios, numbers)
    return {
        "audit": audit,
        "outcome": "copies" if _found(audit) or _failed(numbers) else "undecided" if numbers.warnings else overall,
        "label": _label(audit),
        "verdict": _verdict(numbers),
        "gate": _gate(numbers),
        "note": _note(numbers, in_pixels, numbers.gate),
        "warnings": _warnings(numbers),
        "exact": _exact(audit.exact),
        "left_out": _left_out(numbers),
        "elsewhere": [_in_short(name, space, numbers) for name, space in numbers.feature_spaces.items()]
        + _alike_in_short(numbers),
        "pairs": [_shown_pair(pair, numbers.cut) for pair in audit.pairs],
        "pairs_below": sum(pair.ratio < numbers.cut for pair in audit.pairs),
        "shrunk": bool(audit.pairs) and max(audit.pairs[0].picture.shape[1:]) > charts.LARGEST,
        "charts": [charts.mq_chart(numbers, "pixels"), histogram],
        "rows": _mq_rows(numbers),
        "top": [(image, charts.picture(image.picture), _named(image)) for image in audit.top if image.copied],
        "statistics": _statistics(numbers),
        "quality": _quality(numbers.quality),
        "spaces": [_space(name, space, audit) for name, space in numbers.feature_spaces.items()],
        "skipped": [(image, charts.picture(image.picture)) for image in audit.skipped if image.skipped],
        "curves": charts.curve_charts(audit.curves),
        "sets": _sets(numbers),
        "weights": _weights(numbers),
        "conventions": _conventions(numbers),
        "command": _command(numbers, audit.folder.resolve().name),
    }


def _space(name: str, space: Space, audit: Audit) -> dict[str, object]:
    """What the template knows of one feature space; its quality is None where the audit's quality is just that."""
    return {
        "name": name,
        "summary": f"{_with_doubt(_beside(name, audit.numbers), space)}. {_verdict(space)}",
        "note": _note(space, _outcome(audit.numbers, name)),
        "warnings": [_capital(warning.sentence) for warning in space.warnings],
        "chart": charts.mq_chart(space, f"features of {name}"),
        "rows": _mq_rows(space),
        "statistics": _statistics(space),
        "similarity": _similarity(name, space.similarity, audit.alike[name], audit.numbers),
        "aligned": _alignment(space),
        "quality": None if audit.numbers.quality.extractor in (name, None) else _quality(space.quality),
    }


def _outcome(numbers: AuditRecord, name: str | None = None) -> Outcome:
    """What distance ratios in one space allow to say, by the name of its network; by default in pixels."""
    copies = numbers if name is None else numbers.feature_spaces[name]
    return outcome(copies.calibrated, doubts(numbers, Way(name)))


def _found(audit: Audit) -> list[str]:
    """What shows copies, in words: distance ratios in pixels; else equal pixels, or features."""
    if _outcome(audit.numbers) == "copies":
        return [_LABELS["copies"]]
    exact = f"{_count(audit.exact)} exact {'copy' if audit.exact == 1 else 'copies'} found"
    spaces = [
        name
        for name, space in audit.numbers.feature_spaces.items()
        if "copies" in (_outcome(audit.numbers, name), _by_detector(name, audit.numbers))
    ]
    features = f"copies found in the features of {' and '.join(spaces)}"
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
        return _with_doubt(_capital(", ".join([*found, f"the share in pixels is {_BESIDES[in_pixels]}"])), numbers)
    judged = judge(numbers)
    if judged.outcome == "cannot_tell":
        return _LABELS["cannot_tell"]
    elsewhere = f" {' and '.join(judged.by)}; cannot tell in pixels" if in_pixels == "cannot_tell" else ""
    return _with_doubt(f"{_LABELS[judged.outcome]}{elsewhere}", numbers)


def _failed(numbers: AuditRecord) -> bool:
    """Whether a gate was asked for, and failed: then that is the verdict."""
    return numbers.gate is not None and numbers.gate.failed


def _gate(numbers: AuditRecord) -> str:
    """What a gate found, one sentence; none where none was asked for."""
    return f"{_capital(sentence(numbers.gate))}." if numbers.gate else ""


def _with_doubt(label: str, copies: Copies) -> str:
    """No verdict stands alone that the audit itself does not trust."""
    return f"{label}, but not without warning" if copies.warnings and label.lower() != "cannot tell" else label


def _warnings(numbers: AuditRecord) -> list[str]:
    """What the audit warns of, sentences without their full stops: of pixels first, then of the features."""
    return [_capital(warning) for warning in warned(numbers)]


def _exact(count: int) -> str:
    """Of copies that need no statistics, one sentence; none of none."""
    equal = "sample equals a training image" if count == 1 else "samples equal training images"
    return f"{_count(count)} {equal} pixel by pixel, mirrored or not." if count else ""


def _left_out(numbers: AuditRecord) -> str:
    """Which held-out images were given and not used, in sentences."""
    trained, again = numbers.num_held_out_in_train, numbers.num_held_out_repeated
    stands = "more held-out image stands" if trained == 1 else "more held-out images stand"
    repeats = "more repeats" if again == 1 else "more repeat"
    told = [f"{_count(trained)} {stands} in the training set and {_was(trained)} left out."] * bool(trained)
    told += [f"{_count(again)} {repeats} other held-out images and {_was(again)} left out."] * bool(again)
    return " ".join(told)


def _was(count: int) -> str:
    return "was" if count == 1 else "were"


def _of_all(copies: Copies) -> str:
    share = copies.copied
    of = f"{_count(share.count)} of {_count(share.total)} samples"
    return f"{of} ({percent(share.share)}, 95\u00a0% interval {_interval(share)})"


def _verdict(copies: Copies) -> str:
    """One sentence: how many of how many, how sure, and against what."""
    verb, have = ("is", "has") if copies.copied.count == 1 else ("are", "have")
    if copies.calibrated is None:
        return f"{_of_all(copies)} {have} a distance ratio below {CUT}, a cut that is not calibrated."
    chance = 100 * copies.calibrated.false_alarm
    usual = f"closer to one training image than {100 - chance:g}\u00a0% of held-out real images are"
    return f"{_of_all(copies)} {verb} {usual}; expected by chance: {chance:g}\u00a0%."


def _beside(name: str, numbers: AuditRecord) -> str:
    """The verdict on one more space; that of a gate where one was asked for and it leaves open what that decides."""
    found, way = _outcome(numbers, name), Way(name)
    if found == "undecided" and numbers.gate:
        checked = next((check for check in numbers.gate.checks if check.way == way), None)
        return "Not checked" if checked is None else f"Check {'failed' if checked.failed else 'passed'}"
    return _LABELS[found]


def _in_short(name: str, space: Space, numbers: AuditRecord) -> str:
    """The verdict on one more space, for the first screen."""
    share, label = space.copied, _with_doubt(_beside(name, numbers).lower(), space)
    return f"In the features of {name}: {label}, {percent(share.share)} (95\u00a0% interval {_interval(share)})."


def _by_detector(name: str, numbers: AuditRecord) -> Outcome | None:
    """What similarities allow to say, where the features were made to find copies."""
    similar, way = numbers.feature_spaces[name].similarity, Way(name, "similarity")
    return outcome(similar.calibrated, doubts(numbers, way)) if similar.copy_detection else None


def _alike_in_short(numbers: AuditRecord) -> list[str]:
    """The verdict by similarity, of features that were made to find copies."""
    return [
        f"By similarity in the features of {name}: {_alike(name, space.similarity, numbers)}"
        for name, space in numbers.feature_spaces.items()
        if _by_detector(name, numbers)
    ]


def _alike(name: str, similar: Similarity, numbers: AuditRecord) -> str:
    """How many samples are more alike than chance, and than the field's threshold, in one sentence or two."""
    above, found = similar.samples.above, similar.calibrated
    of = f"{percent(above.share)} (95\u00a0% interval {_interval(above)}) are above {similar.threshold}"
    if found is None:
        return f"not calibrated; {of}."
    usual = 100 * (1 - found.false_alarm)
    share = f"{_count(found.count)} samples ({percent(found.share)}, 95\u00a0% interval {_interval(found)})"
    more = f"more similar to one training image than {usual:g}\u00a0% of held-out images are, above {found.cut:.3f}"
    return f"{_alike_label(name, similar, numbers)}. {share} are {more}; {of}."


def _alike_label(name: str, similar: Similarity, numbers: AuditRecord) -> str:
    """The verdict by similarity: that of a gate where one was asked for and copies are not found anyway."""
    gate, found = numbers.gate, _by_detector(name, numbers) or outcome(similar.calibrated)
    if gate and similar.copy_detection and found in ("undecided", "chance"):
        return "check failed" if gate.fails_by(name) else "check passed"
    return "not checked" if gate and found == "undecided" else _LABELS[found].lower()


def _similarity(name: str, similar: Similarity, alike: Alikes, numbers: AuditRecord) -> dict[str, object]:
    """What the template knows of similarities in one feature space."""
    found = {"samples": similar.samples, "held_out": similar.held_out, "train": similar.train}
    pairs = [
        {"pair": pair, "sample": charts.picture(pair.picture), "original": charts.picture(pair.original)}
        | {"below": similar.calibrated is not None and pair.similarity > similar.calibrated.cut}
        for pair in alike.pairs
    ]
    return {
        "found": similar,
        "says": _capital(_alike(name, similar, numbers)),
        "rows": [{"title": _ALIKE[images], "found": each} for images, each in found.items() if each],
        "pairs": pairs,
        "chart": charts.similarities(similar, alike.values, f"features of {name}"),
    }


def _alignment(space: Space) -> list[dict[str, object]]:
    """Rows of the table of alignment, one per set of images whose captions were prompts."""
    sets = [(title, getattr(space.alignment, images, None)) for images, title in _ALIGNED.items()]
    return [{"title": title, "found": found} for title, found in sets if found]


def _note(copies: Copies, outcome: Outcome, gate: Gate | None = None) -> str:
    """How sure the share is; where a gate was asked for, without another verdict than its own."""
    if copies.calibrated is None:
        return f"{_why_uncalibrated(copies)}, so it is not known how many real images would fall below this cut."
    held_out, most = _count(copies.calibrated.num_held_out), percent(copies.calibrated.most_false_alarms)
    known = f"The cut, a distance ratio of {_cut(copies.cut)}, was set on {held_out} held-out images"
    known += f", so its true false-alarm rate may be up to {most}"
    single = ", and single copies may be among the closest pairs" if copies.copied.count else ""
    if gate and (outcome == "undecided" or (gate.failed and outcome == "chance")):
        return f"{known}; the check above knows of that."
    return {
        "copies": f"{known}; the samples' interval lies above that.",
        "undecided": f"{known}, within the samples' interval or above it: give more held-out images to decide.",
        "cannot_tell": f"The cut, a distance ratio of {_cut(copies.cut)}, was set on {held_out} held-out images; it "
        "cannot be trusted, as the warnings say.",
        "chance": f"{known}. The samples' interval reaches down to the rate of real images: copying beyond that is not "
        f"shown; a share of {percent(copies.copied.ci95[1])} is not ruled out{single}.",
    }[outcome]


def _why_uncalibrated(copies: Copies) -> str:
    if not copies.total_held_out:
        return "No held-out images were given"
    if copies.total_held_out < FEWEST:
        return f"Only {_count(copies.total_held_out)} held-out images were given, too few"
    return f"No cut could be set on the {_count(copies.total_held_out)} held-out images"


# Parts of a section -------------------------------------------------------------------------------------


def _shown_pair(pair: Pair, cut: float) -> dict[str, object]:
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


def _mq_rows(copies: Copies) -> list[dict[str, object]]:
    """Rows of the MQ table: the calibrated cut first, then the nine."""
    held_out = copies.held_out.mq if copies.held_out else {}
    nine = [
        {"cut": cut, "samples": share, "held_out": held_out.get(cut), "calibrated": False}
        for cut, share in copies.mq.items()
    ]
    if copies.calibrated is None:
        return nine
    return [{"cut": _cut(copies.cut), "samples": copies.calibrated, "held_out": None, "calibrated": True}, *nine]


def _statistics(copies: Copies) -> list[dict[str, object]]:
    """Rows of the table of the field's other statistics."""
    real, rows = copies.held_out.statistics if copies.held_out else None, []
    for key, (title, plain) in _STATISTICS.items():
        if found := getattr(copies.statistics, key):
            is_share = isinstance(found, Proportion)
            row = {"title": title, "plain": plain, "found": found, "is_share": is_share}
            rows.append(row | {"held_out": getattr(real, key, None)})
    return rows


def _quality(quality: Quality) -> dict[str, object]:
    """Rows of the table of quality, and what warns of it."""
    rows = []
    for key, (plain, better) in _QUALITY.items():
        found = [quality.measured(name) if hasattr(quality, name) else None for name in _names_of(key)]
        if any(found):
            row = {"title": MEASURES[key], "plain": plain, "better": better}
            rows.append(row | dict(zip(("alone", "train", "held_out"), found, strict=True)))
    warnings = [_capital(warning.sentence) for warning in quality.warnings]
    scale = quality.frechet_train_to_held_out
    return {"extractor": quality.extractor, "rows": rows, "warnings": warnings, "scale": scale}


def _names_of(measure: str) -> tuple[str, str, str]:
    """How `Quality` calls a number that is compared with nothing, with training images, with held-out images."""
    return measure, f"{measure}_train", f"{measure}_held_out"


def _sets(numbers: AuditRecord) -> list[tuple[str, str, str, str]]:
    """What was compared: title, how many, where from, and the fingerprint."""
    unique = f"{_count(numbers.num_train)} ({_count(numbers.num_train_unique)} unique)"
    rows = [("samples", "samples", f"{_count(numbers.num_samples)}{_covering(numbers)}")]
    rows.append(("training images", "train", unique))
    if numbers.num_held_out:
        rows.append(("held-out images", "held_out", _count(numbers.num_held_out)))
    return [(title, many, getattr(numbers.names, key), getattr(numbers.sha256, key) or "") for title, key, many in rows]


def _covering(numbers: AuditRecord) -> str:
    """How many training images the samples' prompts are about; nothing of samples without prompts."""
    if numbers.prompts is None:
        return ""
    about, unique = numbers.prompts, _count(numbers.num_train_unique)
    covered = f"captions of {_count(about.num_train_images)} of {unique} unique training images"
    return f" (different prompts: {_count(about.num_prompts)}, {covered})"


def _weights(numbers: AuditRecord) -> list[tuple[str, str]]:
    """Networks with the sha256 of their weights, each once."""
    known = {numbers.quality.extractor: numbers.quality.sha256}
    known |= {name: space.sha256 for name, space in numbers.feature_spaces.items()}
    return [(name, sha256) for name, sha256 in known.items() if name and sha256]


def _conventions(numbers: AuditRecord) -> list[tuple[str, object]]:
    """How the numbers were taken, with the sources of the statistics; what feature spaces share is said once."""
    rows: list[tuple[str, object]] = [(key, value) for key, value in numbers.conventions if value is not None]
    for name, found in (numbers.mending.sets if numbers.mending else {}).items():
        rows.append(
            (f"files of {name.replace('_', '-')}", ", ".join(f"{count} {what}" for what, count in found.items()))
        )
    rows += _described(numbers)
    common = numbers.quality.conventions
    rows += [_convention(numbers.quality.extractor, key, value) for key, value in common.items()]
    for name, space in numbers.feature_spaces.items():
        own = {key: value for key, value in space.quality.conventions.items() if common.get(key) != value}
        rows += [_convention(name, key, value) for key, value in own.items()]
    return rows


def _convention(extractor: str | None, key: str, value: object) -> tuple[str, object]:
    """A convention of quality; that of the features goes by the name of the extractor."""
    return (extractor or "" if key == "features" else _TITLES.get(key, f"quality: {key}")), value


def _described(numbers: AuditRecord) -> list[tuple[str, str]]:
    """Conventions of statistics, similarity, alignment and the CLIP score, each once, where the audit has them."""
    spaces = [*numbers.feature_spaces.values()]
    known = {
        title: next((found for copies in (numbers, *spaces) if (found := getattr(copies.statistics, key))), None)
        for key, (title, _) in _STATISTICS.items()
    }
    known["Similarity"] = next((space.similarity for space in spaces), None)
    known["Prompt alignment"] = next((space.alignment for space in spaces if space.alignment), None)
    known["CLIP score"] = numbers.clip and numbers.clip.score
    return [(title, f"{each.convention}. Source: {each.source}") for title, each in known.items() if each]


def _command(numbers: AuditRecord, out: str) -> str:
    names, conventions = numbers.names, numbers.conventions
    assert names is not None, "what was read from a folder has names"
    words = ["iet-agc", "audit", "--train", names.train, "--samples", names.samples]
    words += ["--held-out", names.held_out] if names.held_out else []
    words += ["--flips"] if conventions.flips else []
    for extractor in dict.fromkeys([numbers.quality.extractor, *numbers.feature_spaces]):
        words += ["--extractor", extractor] if extractor else []
    words += [] if numbers.quality.extractor else ["--no-quality"]
    words += ["--clip", numbers.clip.model] if numbers.clip else []
    words += ["--convert-to", conventions.convert_to] if conventions.convert_to else []
    if numbers.mending:
        words += ["--orient"] if numbers.mending.orient else []
        words += ["--background", numbers.mending.background] if numbers.mending.background else []
        words += ["--on-bad", "skip"] if numbers.mending.on_bad == "skip" else []
        words += ["--resize", numbers.mending.resize] if numbers.mending.resize else []
        words += ["--crop", numbers.mending.crop] if numbers.mending.crop else []
    words += ["--fail-above", f"{numbers.gate.fail_above:g}"] if numbers.gate else []
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
        "warnings": [each.rstrip(".") for each in differing([(audit.name, facts(audit.numbers)) for audit in audits])],
        "differences": [_difference(audits[0].name, audit.name, shares) for audit in audits[1:]],
        "by": "the calibrated cut of each audit" if calibrated else f"the cut {CUT}, as not every audit is calibrated",
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


def _points(share: float) -> str:
    return f"{100 * share + 0:.1f}".replace("-", "\u2212")


# Numbers ------------------------------------------------------------------------------------------------


def _count(value: int) -> str:
    return f"{value:,}"


def _interval(share: Proportion) -> str:
    low, high = share.ci95
    return f"{hundredths(low)} to {hundredths(high)}\u00a0%"


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def _ratio(value: float) -> str:
    return "<\u00a00.001" if 0 < value < 0.0005 else f"{value:.3f}" if value else "0"


def _cut(value: float) -> str:
    return f"{value:.3g}"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\u2212")


def _value(value: object) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
