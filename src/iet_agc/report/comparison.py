"""Several audits side by side: one row per experiment over its seeds, differences between experiments, and warnings
where they do not compare. Imports no torch.

Every number says how its interval was made. Seeds differ more than draws of one model do, so over several seeds the
interval of a share is Wilson's at the number of samples that the spread over seeds leaves (`share_over_runs`), that of
anything else Student's t, cut off where no value can be. Of a single run only the draws are known: Wilson's interval of
a share, by prompt where prompts repeat. The Fréchet distance of a single run, and whatever else is no share, has none.
Differences of shares follow from the intervals of the two.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iet_agc.config.fingerprint import differences, fingerprint
from iet_agc.config.overrides import override
from iet_agc.config.run_folder import is_run, read_settings
from iet_agc.config.settings import Settings
from iet_agc.metrics.intervals import difference, share, share_over_runs, student, wilson
from iet_agc.report.reader import read_numbers
from iet_agc.runtime.errors import UserError

__all__ = [
    "COLUMNS",
    "Column",
    "Rows",
    "compare",
    "differences_from_first",
    "differing",
    "facts",
    "limits_of_run",
    "listed",
    "mean_interval",
    "table",
    "warnings",
]

#: By experiment, what `compare` tells of it, or `differences_from_first`.
Rows = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Column:
    """A number that is compared.

    Attributes:
        path: where it stands in audit.json; of a share, where its {"count", "share"} stands. "*" is the first of the
            networks in whose features copies were looked for.
        title, better: what people read; `better` is the direction.
        of: what a share is a share of, "num_samples" or "num_held_out"; empty where it is no share.
        unit: what one whole is in the column's unit.
        optional: whether audits of earlier versions may lack it.
        limits: between which values that are no shares lie.
    """

    path: tuple[str, ...]
    title: str
    better: str
    of: str = ""
    unit: float = 1.0
    optional: bool = False
    limits: tuple[float, float] = (-math.inf, math.inf)


_POSITIVE, _PART = (0.0, math.inf), (0.0, 1.0)
_LOWER, _HIGHER, _COPIED_LESS = "lower is better", "higher is better", "lower is less copied"

#: What is compared, in the order of tables.
COLUMNS = {
    "copied": Column(("mq", "0.15"), "ratio below 0.15", _COPIED_LESS, "num_samples"),
    "below_0.30": Column(("mq", "0.30"), "ratio below 0.30", _COPIED_LESS, "num_samples"),
    "calibrated": Column(("calibrated",), "below the calibrated cut", _COPIED_LESS, "num_samples"),
    "frechet_held_out": Column(("quality", "frechet_held_out"), "Fréchet to held-out", _LOWER, limits=_POSITIVE),
    "frechet_train": Column(
        ("quality", "frechet_train"), "Fréchet to train", "copying lowers it, too", limits=_POSITIVE
    ),
    "held_out_copied": Column(
        ("held_out", "mq", "0.15"), "held-out images below 0.15", "what chance looks like", "num_held_out"
    ),
    "d1_d2": Column(("statistics", "d1_d2"), "d1/d2 below 1/3", _COPIED_LESS, "num_samples", optional=True),
    "auth_pct": Column(
        ("statistics", "auth_pct"), "AuthPct, percent", "higher is less copied", "num_samples", 100, optional=True
    ),
    "near": Column(("statistics", "near"), "nearness below its cut", _COPIED_LESS, "num_samples", optional=True),
    "c_t": Column(("statistics", "c_t", "value"), "C_T", "near 0 is ideal, far below copied", optional=True),
    "similar": Column(
        ("feature_spaces", "*", "similarity", "calibrated"),
        "similarity above its cut",
        _COPIED_LESS,
        "num_samples",
        optional=True,
    ),
    "similar_above": Column(
        ("feature_spaces", "*", "similarity", "samples", "above"),
        "similarity above 0.5",
        _COPIED_LESS,
        "num_samples",
        optional=True,
    ),
    "similar_p95": Column(
        ("feature_spaces", "*", "similarity", "samples", "p95", "value"),
        "95th percentile of similarity",
        _COPIED_LESS,
        optional=True,
        limits=(-1.0, 1.0),
    ),
    "aligned": Column(
        ("feature_spaces", "*", "alignment", "train", "percentile", "mean"),
        "alignment with training captions",
        "higher follows prompts, 0.5 is chance; copying raises it",
        optional=True,
        limits=_PART,
    ),
    "aligned_held_out": Column(
        ("feature_spaces", "*", "alignment", "held_out", "percentile", "mean"),
        "alignment with held-out captions",
        "higher follows prompts, 0.5 is chance",
        optional=True,
        limits=_PART,
    ),
    "clip_score": Column(("clip", "score", "mean"), "CLIP score", _HIGHER, optional=True, limits=(0.0, 100.0)),
    "kid_held_out": Column(("quality", "kid_held_out", "mean"), "KID to held-out", _LOWER, optional=True),
    "precision_held_out": Column(
        ("quality", "precision_held_out"), "precision to held-out", _HIGHER, optional=True, limits=_PART
    ),
    "recall_held_out": Column(
        ("quality", "recall_held_out"), "recall to held-out", _HIGHER, optional=True, limits=_PART
    ),
    "mifid_held_out": Column(
        ("quality", "mifid_held_out"), "MiFID to held-out", _LOWER, optional=True, limits=_POSITIVE
    ),
    "mifid_train": Column(("quality", "mifid_train"), "MiFID to train", _LOWER, optional=True, limits=_POSITIVE),
}

#: How an interval was made. Of shares:
_WILSON = "Wilson over the samples of one run"
_PROMPTS = "Wilson over the samples of one run, prompts as clusters"
_WILSON_HELD_OUT = "Wilson over the held-out images"
_RUNS = "Wilson over runs: at the number of samples that their spread leaves, with Student's t"
_RUNS_AND_PROMPTS = f"{_RUNS}; no narrower than one run with prompts as clusters"
_OF_SHARES = "from the intervals of two shares over runs (MOVER), seeds not paired"
_ONE_OF_SHARES = "from the intervals of two shares (MOVER); the single run is taken to vary like the others"
_NEWCOMBE = "Newcombe over the samples of two runs"
_PROMPTS_OF_TWO = "from the intervals of two shares of one run each (MOVER), prompts as clusters"
#: Of other numbers:
_T = "Student's t over runs"
_PAIRED = "Student's t over seeds, paired"
_WELCH = "Welch's t over runs"
_ONE_AGAINST_SEVERAL = "Student's t over runs; the single run is taken to vary like the others"


# Rows -----------------------------------------------------------------------------------------------------


def compare(runs: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Gather the audits of runs that differ in nothing but `train.seed`, and audits without a run.

    Args:
        runs: folders of runs, each with its audit in RUN/audit, or folders of audits. An audit that is named twice
            counts once; RUN/audit stands for its run. Any other audit is an experiment of its own.

    Returns:
        Per experiment, in the order of the runs: "runs", "seeds" (None of an audit without a run), "facts" (what the
        audits were made with; see `warnings`) and the columns, each
        {"values", "mean", "ci95", "interval", "counts", "totals", "clusters", "design_effects"}: "ci95" is the interval
        over runs, None for a single one; "interval" is {"ci95", "method"}, or None where none is known, as of runs that
        agree to the last digit; "counts" of "totals" images are a share's, and where prompts repeat, "clusters" are the
        numbers of prompts of each run, "design_effects" those of its audit.
        A column is None where an audit does not know it. A run's experiment is named after its preset, and after what
        it changes where the same preset was run with other settings before it; an audit's after its folder.

    Raises:
        UserError: a folder that is no run and no audit, a run that was not audited, or a damaged audit.
    """
    once: dict[Path, _Member] = {}
    for member in map(_member, runs):
        once.setdefault(member.file.resolve(), member)
    members, groups = list(once.values()), dict[str, list[_Member]]()
    for name, member in zip(_names(members), members, strict=True):
        groups.setdefault(name, []).append(member)
    return {name: _row(group) for name, group in groups.items()}


@dataclass(frozen=True)
class _Member:
    """One audit: its folder as it was named, the settings of its run but for the seed, its numbers and facts."""

    folder: Path
    file: Path
    kind: Settings | None
    seed: int | None
    numbers: dict[str, dict[str, Any] | None]
    facts: dict[str, Any]


def _member(folder: Path) -> _Member:
    if folder.name == "audit" and is_run(folder.parent):
        folder = folder.parent
    own = folder / "audit.json"
    if own.is_file() and not is_run(folder):
        return _Member(folder, own, None, None, *_read_audit(own))
    if not (folder / "config.json").exists():
        raise UserError(f"{folder} is not a run: it has no config.json; and no audit: it has no audit.json")
    settings, file = read_settings(folder), folder / "audit" / "audit.json"
    if not file.exists():
        raise UserError(
            f"{folder} is not audited: it has no audit/audit.json; run 'iet-agc audit --out {folder}/audit'"
        )
    kind = override(settings, {"train.seed": "0", "init.sha256": "none"})  # each seed may go on from its own model
    return _Member(folder, file, kind, settings.train.seed, *_read_audit(file))


def _names(members: Sequence[_Member]) -> list[str]:
    """The experiment of each: a preset and what it changes, or as much of an audit's path as tells it apart."""
    first: dict[str, Settings] = {}
    names = [_label(first.setdefault(m.kind.name, m.kind), m.kind) if m.kind else None for m in members]
    own = iter(_short_paths([member.folder.resolve() for member in members if member.kind is None], set(names)))
    return [next(own) if name is None else name for name in names]


def _short_paths(folders: Sequence[Path], taken: set[str | None]) -> list[str]:
    """As many of the last parts of each path as tell it from the others, and from the names that are taken."""
    for depth in range(1, max((len(folder.parts) for folder in folders), default=0)):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names) and taken.isdisjoint(names):
            return names
    return [str(folder) for folder in folders]


def _label(first: Settings, kind: Settings) -> str:
    changes = differences(first, kind) if fingerprint(first) != fingerprint(kind) else []
    return f"{first.name} ({'; '.join(changes)})" if changes else first.name


def _read_audit(file: Path) -> tuple[dict[str, dict[str, Any] | None], dict[str, Any]]:
    audit = read_numbers(file)
    return {name: _look_up(audit, column) for name, column in COLUMNS.items()}, facts(audit)


def _look_up(audit: dict[str, Any], column: Column) -> dict[str, Any] | None:
    """{"value", "count", "total"} of a column and, where prompts repeat, "clusters" and "design_effect".

    None where a part of its path is null, or may be absent and is.
    """
    found: Any = audit
    for key in column.path:
        if key == "*":
            found = next(iter(found.values()), None)
            continue
        if found is None or (column.optional and key not in found):
            return None
        found = found[key]
    if found is None:
        return None
    if not column.of:
        return {"value": float(found), "count": None, "total": None}
    told = {"value": found["share"] * column.unit, "count": found["count"], "total": audit[column.of]}
    return told | {key: found[key] for key in ("clusters", "design_effect") if key in found}


def _row(members: Sequence[_Member]) -> dict[str, Any]:
    known = [member.facts for member in members]
    row: dict[str, Any] = {
        "runs": [str(member.folder) for member in members],
        "seeds": [member.seed for member in members],
        "facts": [fact for number, fact in enumerate(known) if fact not in known[:number]],
    }
    for name, column in COLUMNS.items():
        found = [each for member in members if (each := member.numbers[name]) is not None]
        row[name] = _cell_of(found, column) if len(found) == len(members) else None
    return row


def _cell_of(found: Sequence[Mapping[str, Any]], column: Column) -> dict[str, Any]:
    """One column of one experiment, from what each of its audits says."""
    values = [each["value"] for each in found]
    prompts = any("clusters" in each for each in found)
    cell = {
        "values": values,
        "mean": float(np.mean(values)),
        "counts": [each["count"] for each in found] if column.of else None,
        "totals": [each["total"] for each in found] if column.of else None,
        "clusters": [each.get("clusters", each["total"]) for each in found] if prompts else None,
        "design_effects": [each.get("design_effect", 1.0) for each in found] if prompts else None,
    }
    interval = _interval(cell, column)
    return cell | {"ci95": interval["ci95"] if interval and len(values) > 1 else None, "interval": interval}


def mean_interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean over runs with its 95 % interval by Student's t; None for the bounds of a single run.

    Returns:
        {"values", "mean", "ci95": [low, high] or None}.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"values": list(values), "mean": mean, "ci95": None}
    reach = _reach(_deviation(values) / len(values) ** 0.5, len(values) - 1)
    return {"values": list(values), "mean": mean, "ci95": [mean - reach, mean + reach]}


def _deviation(values: Sequence[float]) -> float:
    """Standard deviation of a population that these are drawn from; 0 where they only differ by rounding."""
    spread = max(values) - min(values)
    return float(np.std(values, ddof=1)) if spread > 1e-12 * max(map(abs, values)) else 0.0


def _reach(standard_error: float, freedom: float) -> float:
    """Half the width of a 95 % interval by Student's t."""
    return student(freedom) * standard_error if standard_error else 0.0


def _interval(cell: Mapping[str, Any], column: Column) -> dict[str, Any] | None:
    """The interval to show, and how it was made."""
    if not column.of:
        limits = mean_interval(cell["values"])["ci95"]
        if limits is None or limits[0] == limits[1]:
            return None
        return {"ci95": np.clip(limits, *column.limits).tolist(), "method": _T}
    limits, method = _share_interval(cell, column)
    return {"ci95": [column.unit * bound for bound in limits], "method": method}


def _share_interval(cell: Mapping[str, Any], column: Column) -> tuple[list[float], str]:
    """Limits of a share, and how they were made."""
    counts, totals = cell["counts"], cell["totals"]
    if column.of == "num_held_out":  # all runs see the same held-out images, which count once
        return share(counts[0], totals[0])["ci95"], _WILSON_HELD_OUT
    if len(counts) == 1:
        return limits_of_run(cell, 0), _PROMPTS if cell["clusters"] else _WILSON
    prompts = _prompts(cell)
    return share_over_runs(counts, totals, prompts=prompts), _RUNS_AND_PROMPTS if prompts else _RUNS


def _prompts(cell: Mapping[str, Any]) -> list[tuple[int, float]] | None:
    return [*zip(cell["clusters"], cell["design_effects"], strict=True)] if cell["clusters"] else None


def limits_of_run(cell: Mapping[str, Any], number: int) -> list[float]:
    """95 % limits of the share of one run of a cell, in [0, 1]: they know the draws of that run alone."""
    found = share(cell["counts"][number], cell["totals"][number])
    if not cell["clusters"] or cell["clusters"][number] < 2:
        return found["ci95"]
    draws = cell["totals"][number] / cell["design_effects"][number]
    return wilson(found["share"], draws, cell["clusters"][number] - 1)


# Differences ----------------------------------------------------------------------------------------------


def differences_from_first(rows: Rows) -> dict[str, dict[str, Any]]:
    """The first experiment minus each other one, in every column that both know.

    Returns:
        Per other experiment and column {"values", "mean", "ci95", "method"}; None where one of the two does not know
        the column, and of the share of held-out images, which are no result of a run. "values" are the differences
        seed by seed, empty where the two have other seeds. Of shares, the interval follows from those of the two (see
        `intervals.difference`), and a single run against several is taken to vary like them. Of other numbers
        it is by "method" Student's t over paired seeds; Welch's t where the seeds are others; Student's t where one
        side is a single run, which is taken to vary like the other side's runs. "ci95" and "method" are None of two
        single runs, and of differences that agree to the last digit.
    """
    names = list(rows)
    return {name: {column: _difference(rows[names[0]], rows[name], column) for column in COLUMNS} for name in names[1:]}


def _difference(first: Mapping[str, Any], other: Mapping[str, Any], column: str) -> dict[str, Any] | None:
    mine, theirs = first[column], other[column]
    if mine is None or theirs is None or COLUMNS[column].of == "num_held_out":
        return None
    pairs = _pairs(first, other, column)
    found = {"values": pairs, "mean": mine["mean"] - theirs["mean"], "ci95": None, "method": None}
    if COLUMNS[column].of:
        return found | _of_shares(mine, theirs, COLUMNS[column])
    standard_error, freedom, method = _spread(mine["values"], theirs["values"], pairs)
    if not standard_error:
        return found
    reach, (least, most) = _reach(standard_error, freedom), COLUMNS[column].limits
    limits = np.clip([found["mean"] - reach, found["mean"] + reach], least - most, most - least)
    return found | {"ci95": limits.tolist(), "method": method}


def _of_shares(mine: Mapping[str, Any], theirs: Mapping[str, Any], column: Column) -> dict[str, Any]:
    """The interval of a difference of two shares, from the limits of each, and how it was made."""
    limits = [_limits_beside(*pair, column) for pair in ((mine, theirs), (theirs, mine))]
    shares = [cell["mean"] / column.unit for cell in (mine, theirs)]
    found = difference(*({"share": p, "ci95": both} for p, both in zip(shares, limits, strict=True)))
    return {"ci95": [column.unit * bound for bound in found["ci95"]], "method": _method_of_shares(mine, theirs)}


def _limits_beside(cell: Mapping[str, Any], other: Mapping[str, Any], column: Column) -> list[float]:
    """The limits of a share; of a single run beside several, as if it varied as they do."""
    if len(cell["counts"]) > 1 or len(other["counts"]) == 1:
        return [bound / column.unit for bound in cell["interval"]["ci95"]]
    return share_over_runs(cell["counts"], cell["totals"], (other["counts"], other["totals"]), _prompts(cell))


def _method_of_shares(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    runs = sorted(len(cell["counts"]) for cell in (mine, theirs))
    if runs[0] > 1:
        return _OF_SHARES
    if runs[1] > 1:
        return _ONE_OF_SHARES
    return _NEWCOMBE if mine["clusters"] is theirs["clusters"] is None else _PROMPTS_OF_TWO


def _pairs(first: Mapping[str, Any], other: Mapping[str, Any], column: str) -> list[float]:
    """Differences seed by seed, in the order of the first; none where the seeds are others, unknown or repeated."""
    seeds, others = first["seeds"], other["seeds"]
    if None in seeds or set(seeds) != set(others) or not len(set(seeds)) == len(seeds) == len(others):
        return []
    mine, theirs = (dict(zip(row["seeds"], row[column]["values"], strict=True)) for row in (first, other))
    return [mine[seed] - theirs[seed] for seed in seeds]


def _spread(mine: Sequence[float], theirs: Sequence[float], pairs: Sequence[float]) -> tuple[float, float, str]:
    """Standard error of a difference of means, its degrees of freedom, and the method; of single runs, none."""
    if len(pairs) > 1:
        return _deviation(pairs) / len(pairs) ** 0.5, len(pairs) - 1, _PAIRED
    several = [values for values in (mine, theirs) if len(values) > 1]
    if len(several) == 2:
        one, two = (_deviation(values) ** 2 / len(values) for values in several)
        freedom = (one + two) ** 2 / (one**2 / (len(mine) - 1) + two**2 / (len(theirs) - 1)) if one + two else 1
        return (one + two) ** 0.5, freedom, _WELCH
    if several:
        count = len(several[0])
        return _deviation(several[0]) * (1 + 1 / count) ** 0.5, count - 1, _ONE_AGAINST_SEVERAL
    return 0.0, 0, ""


# Whether they compare -------------------------------------------------------------------------------------

#: What an audit was made with: name of a fact, where it stands in audit.json.
_FACTS = {
    "num_samples": ("num_samples",),
    "num_train": ("num_train",),
    "num_train_unique": ("num_train_unique",),
    "num_held_out": ("num_held_out",),
    "train_sha256": ("sha256", "train"),
    "held_out_sha256": ("sha256", "held_out"),
    "extractor": ("quality", "extractor"),
    "extractor_sha256": ("quality", "sha256"),
    "few_images": ("quality", "few_images"),
    "network": ("feature_spaces", "*", "sha256"),
    "clip_sha256": ("clip", "sha256"),
    "false_alarm": ("calibrated", "false_alarm"),
    "conventions": ("conventions",),
    "quality_conventions": ("quality", "conventions"),
}

#: By name of an experiment, what one of its audits was made with.
_Facts = Sequence[tuple[str, Mapping[str, Any]]]

#: What has to be equal, in words; the facts that tell, with the unit of each; and what does not compare otherwise.
_EQUAL = (
    (
        "The training set",
        {"train_sha256": "", "num_train": " images", "num_train_unique": " unique images"},
        "copies of other images are counted",
    ),
    (
        "The held-out set",
        {"held_out_sha256": "", "num_held_out": " images"},
        "calibrated cuts and distances to held-out images do not compare",
    ),
    ("The number of samples", {"num_samples": ""}, "Fréchet distances depend on it"),
    ("The extractor", {"extractor": "", "extractor_sha256": ""}, "quality does not compare"),
    ("The network of similarities", {"network": ""}, "similarities and alignment do not compare"),
    ("The CLIP model", {"clip_sha256": ""}, "CLIP scores do not compare"),
    ("The false-alarm rate", {"false_alarm": ""}, "calibrated shares do not compare"),
)


def facts(audit: Mapping[str, Any]) -> dict[str, Any]:
    """What an audit was made with, and what it warns of.

    Args:
        audit: the content of audit.json, as `read_numbers` gives it.

    Returns:
        Facts by name, None where the audit does not say; "warnings" are sentences.
    """
    found = {}
    for name, path in _FACTS.items():
        value: Any = audit
        for key in path:
            if value is not None:
                value = next(iter(value.values()), None) if key == "*" else value.get(key)
        found[name] = value
    return found | {"warnings": _own_warnings(audit)}


def _own_warnings(audit: Mapping[str, Any]) -> list[str]:
    """What an audit warns of, in pixels and in feature spaces."""
    spaces = audit.get("feature_spaces") or {}
    entries = {"": audit} | {f"In the features of {name}: ": entry for name, entry in spaces.items()}
    found = [(where, warning) for where, entry in entries.items() for warning in entry.get("warnings", [])]
    sentences = (where + warning.rstrip(".") for where, warning in found)
    return [f"{each[:1].upper()}{each[1:]}" for each in sentences]


def warnings(rows: Rows) -> list[str]:
    """Why the numbers of these experiments do not all compare, or are not to be trusted; empty where they may be.

    Besides what `differing` tells: Fréchet distances of few images, seeds that are repeated, and what the audits
    themselves warn of.
    """
    each = [(name, fact) for name, row in rows.items() for fact in row["facts"]]
    return [*_told(each), *differing(each), *_few_images(each), *_repeated(rows)]


def _told(each: _Facts) -> list[str]:
    """What the audits themselves warn of, each sentence once."""
    holders: dict[str, list[str]] = {}
    for name, fact in each:
        for warning in fact["warnings"]:
            holders.setdefault(warning, []).append(name)
    return [f"{warning} ({listed(names)})." for warning, names in holders.items()]


def differing(each: _Facts) -> list[str]:
    """In what audits differ, so that their numbers do not compare; empty where nothing speaks against it.

    Compared are SHA-256 and sizes of the training and held-out sets, number of samples, extractor, false-alarm rate
    and conventions. What an audit of an earlier version does not say is taken for equal, which is said as well.

    Args:
        each: for every audit its name, or that of its experiment, and its `facts`.

    Returns:
        Sentences that name who has which value.
    """
    found = []
    for what, names, consequence in _EQUAL:
        parts = (_holders(each, name, unit=unit) for name, unit in names.items())
        if part := next(filter(None, parts), ""):
            found.append(f"{what} differs ({part}): {consequence}.")
    for kind in ("conventions", "quality_conventions"):
        keys = dict.fromkeys(key for _, fact in each for key in fact[kind] or {})
        found += [f"The convention '{key}' differs ({part})." for key in keys if (part := _holders(each, kind, key))]
    return [*found, *_unsaid(each)]


def _holders(each: _Facts, name: str, key: str = "", unit: str = "") -> str:
    """Who has which value of a fact, where there are several: "1,024 in a and b; 512 in c"."""
    holders: dict[str, list[str]] = {}
    for holder, fact in each:
        value = (fact[name] or {}).get(key) if key else fact[name]
        if value is not None:
            holders.setdefault(_said(value), []).append(holder)
    parts = [f"{value}{unit} in {listed(names)}" for value, names in holders.items()]
    return "; ".join(parts) if len(parts) > 1 else ""


def _said(value: Any) -> str:
    """A fact as people read it; of a hash, its beginning."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value[:12]}…" if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else str(value)


def listed(names: Sequence[str], most: int = 2, longest: int = 48) -> str:
    """Names as people list them, "a, b and 5 others"; long ones are cut off."""
    names = [name if len(name) <= longest else f"{name[: longest - 1]}…" for name in dict.fromkeys(names)]
    shown = names if len(names) <= most + 1 else [*names[:most], f"{len(names) - most} others"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _unsaid(each: _Facts) -> list[str]:
    silent = [name for name, fact in each if fact["train_sha256"] is None]
    if not silent or len(each) < 2:
        return []
    return [f"Audits of an earlier version do not say which images they saw, only how many: {listed(silent)}."]


def _few_images(each: _Facts) -> list[str]:
    few = [name for name, fact in each if fact["few_images"]]
    if not few:
        return []
    return [f"With no more images than the extractor has dimensions, distances are biased upward: {listed(few)}."]


def _repeated(rows: Rows) -> list[str]:
    """Runs of the same settings and the same seed are no independent draws."""
    repeats = {
        name: sorted({seed for seed in row["seeds"] if seed is not None and row["seeds"].count(seed) > 1})
        for name, row in rows.items()
    }
    return [
        f"{name} has several runs of seed {', '.join(map(str, seeds))}: they are counted as if they were independent."
        for name, seeds in repeats.items()
        if seeds
    ]


# Tables ---------------------------------------------------------------------------------------------------


def table(rows: Rows) -> str:
    """The rows as a Markdown table: mean (each run) [95 % interval over runs]."""
    titles = {
        "copied": "ratio < 0.15",
        "below_0.30": "ratio < 0.30",
        "calibrated": "below the calibrated cut",
        "frechet_held_out": "Fréchet, held-out",
        "frechet_train": "Fréchet, train",
        "held_out_copied": "held-out < 0.15",
    }
    lines = [" | ".join(["| preset | runs", *titles.values()]) + " |", "|---" * (2 + len(titles)) + "|"]
    for name, row in rows.items():
        cells = [_cell(row[column], "{:.3f}" if "frechet" in column else "{:.1%}") for column in titles]
        lines.append(" | ".join([f"| {name}", str(len(row["runs"])), *cells]) + " |")
    return "\n".join(lines)


def _cell(values: Mapping[str, Any] | None, form: str) -> str:
    if values is None:
        return "-"
    each = ", ".join(form.format(value) for value in values["values"])
    interval = f" [{', '.join(form.format(bound) for bound in values['ci95'])}]" if values["ci95"] else ""
    return f"{form.format(values['mean'])} ({each}){interval}"
