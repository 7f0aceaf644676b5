"""Several audits side by side: one row per experiment over its seeds, differences between experiments, and warnings
where they do not compare. Imports no torch.

Every number says how its interval was made. Seeds differ more than draws of one model do, so over several seeds the
interval of a share is Wilson's at the number of samples that the spread over seeds leaves (`share_over_runs`), that of
anything else Student's t, cut off where no value can be. Of a single run only the draws are known: the interval of a
share is that of its audit. The Fréchet distance of a single run, and whatever else is no share, has none.
Differences of shares follow from the intervals of the two.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import JsonValue

from iet_agc.auditing.schema import AuditRecord, Space, read_record
from iet_agc.auditing.verdict import reasons
from iet_agc.config.fingerprint import differences, fingerprint
from iet_agc.config.overrides import override
from iet_agc.config.run_folder import is_run, read_settings
from iet_agc.config.settings import Settings
from iet_agc.metrics.intervals import Interval, Proportion, Record, difference, mean, share_over_runs
from iet_agc.metrics.records import Similarity
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.paths import check_compared_place

__all__ = [
    "COLUMNS",
    "NOT_MEASURED",
    "Cell",
    "Column",
    "Differences",
    "Made",
    "Row",
    "Rows",
    "compare",
    "differences_from_first",
    "differing",
    "listed",
    "plain",
    "table",
    "warned",
    "warnings",
]


@dataclass(frozen=True)
class Column:
    """A number that is compared.

    Attributes:
        read: takes it out of an audit; None where the audit does not know it.
        title, better: what people read; `better` is the direction.
        of: what a share is a share of; empty where it is no share.
        unit: what one whole is in the column's unit.
        limits: between which values that are no shares lie.
        about: the part of a page where it belongs.
    """

    read: Callable[[AuditRecord], Proportion | float | None]
    title: str
    better: str
    of: Literal["", "samples", "held-out images"] = ""
    unit: float = 1.0
    limits: tuple[float, float] = (-math.inf, math.inf)
    about: Literal["copies", "quality"] = "copies"


def _quality(name: str, title: str, better: str, limits: tuple[float, float]) -> Column:
    """The column of a number of quality."""

    def read(audit: AuditRecord) -> float | None:
        found = audit.quality.measured(name)
        return found and found[0]

    return Column(read, title, better, limits=limits, about="quality")


def _first(audit: AuditRecord) -> Space | None:
    """The first of the networks in whose features copies were looked for."""
    return next(iter(audit.feature_spaces.values()), None)


def _alike(read: Callable[[Similarity], Proportion | None], title: str) -> Column:
    """The column of a share of similarities."""
    return Column(lambda a: (space := _first(a)) and read(space.similarity), title, _COPIED_LESS, "samples")


def _aligned(images: Literal["train", "held_out"], title: str, better: str) -> Column:
    """The column of alignment with the captions of one set."""

    def read(audit: AuditRecord) -> float | None:
        space = _first(audit)
        found = space and space.alignment and getattr(space.alignment, images)
        return found and found.percentile.mean

    return Column(read, title, better, limits=_PART)


_ANY, _POSITIVE, _PART = (-math.inf, math.inf), (0.0, math.inf), (0.0, 1.0)
_LOWER, _HIGHER, _COPIED_LESS = "lower is better", "higher is better", "lower is less copied"
_FOLLOWS, _REAL = "higher follows prompts, 0.5 is chance", "held-out images below 0.15"

#: What is compared, in the order of tables.
COLUMNS = {
    "copied": Column(lambda a: a.mq["0.15"], "ratio below 0.15", _COPIED_LESS, "samples"),
    "below_0.30": Column(lambda a: a.mq["0.30"], "ratio below 0.30", _COPIED_LESS, "samples"),
    "calibrated": Column(lambda a: a.calibrated, "below the calibrated cut", _COPIED_LESS, "samples"),
    "frechet_held_out": _quality("frechet_held_out", "Fréchet to held-out", _LOWER, _POSITIVE),
    "frechet_train": _quality("frechet_train", "Fréchet to train", "copying lowers it, too", _POSITIVE),
    "held_out_copied": Column(
        lambda a: a.held_out and a.held_out.mq["0.15"], _REAL, "what chance looks like", "held-out images"
    ),
    "d1_d2": Column(lambda a: a.statistics.d1_d2, "d1/d2 below 1/3", _COPIED_LESS, "samples"),
    "auth_pct": Column(lambda a: a.statistics.auth_pct, "AuthPct, percent", "higher is less copied", "samples", 100),
    "near": Column(lambda a: a.statistics.near, "nearness below its cut", _COPIED_LESS, "samples"),
    "c_t": Column(lambda a: a.statistics.c_t and a.statistics.c_t.value, "C_T", "near 0 is ideal, far below copied"),
    "similar": _alike(lambda similar: similar.calibrated, "similarity above its cut"),
    "similar_above": _alike(lambda similar: similar.samples.above, "similarity above 0.5"),
    "similar_p95": Column(
        lambda a: (space := _first(a)) and space.similarity.samples.p95.value,
        "95th percentile of similarity",
        _COPIED_LESS,
        limits=(-1.0, 1.0),
    ),
    "aligned": _aligned("train", "alignment with training captions", f"{_FOLLOWS}; copying raises it"),
    "aligned_held_out": _aligned("held_out", "alignment with held-out captions", _FOLLOWS),
    "clip_score": Column(lambda a: a.clip and a.clip.score.mean, "CLIP score", _HIGHER, limits=(0.0, 100.0)),
    "kid_held_out": _quality("kid_held_out", "KID to held-out", _LOWER, _ANY),
    "precision_held_out": _quality("precision_held_out", "precision to held-out", _HIGHER, _PART),
    "recall_held_out": _quality("recall_held_out", "recall to held-out", _HIGHER, _PART),
    "mifid_held_out": _quality("mifid_held_out", "MiFID to held-out", _LOWER, _POSITIVE),
    "mifid_train": _quality("mifid_train", "MiFID to train", _LOWER, _POSITIVE),
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


class Made(Record):
    """An interval, and how it was made."""

    ci95: Interval
    method: str


class Cell(Record):
    """One column of one experiment, or the difference of two.

    Attributes:
        values: of each run; of a difference seed by seed, empty where the two have other seeds.
        mean: of the values, or the difference of two means.
        shares: what the audits say, of a share.
        interval: None where none is known, as of runs that agree to the last digit.
    """

    values: tuple[float, ...]
    mean: float
    shares: tuple[Proportion, ...] = ()
    interval: Made | None = None

    @property
    def ci95(self) -> Interval | None:
        """The interval alone."""
        return self.interval and self.interval.ci95


class Row(Record):
    """One experiment.

    Attributes:
        runs: their folders.
        audits: the folders of their audits.
        seeds: None of an audit without a run.
        numbers: what the audits say.
        cells: by column; None where an audit does not know it.
    """

    runs: tuple[str, ...]
    audits: tuple[str, ...]
    seeds: tuple[int | None, ...]
    numbers: tuple[AuditRecord, ...]
    cells: dict[str, Cell | None]

    def __getitem__(self, column: str) -> Cell | None:
        """The cell of a column."""
        return self.cells[column]


#: By experiment, what `compare` tells of it; and by other experiment and column, how the first one differs.
Rows = Mapping[str, Row]
Differences = Mapping[str, Mapping[str, Cell | None]]


def plain(rows: Rows) -> dict[str, dict[str, object]]:
    """Rows as plain values: runs, seeds and cells, and what the audits were made with, where they differ, each."""
    found: dict[str, dict[str, object]] = {}
    for name, row in rows.items():
        facts = [{fact: read(audit) for fact, read in _FACTS.items()} for audit in row.numbers]
        told: dict[str, object] = {
            "runs": list(row.runs),
            "seeds": list(row.seeds),
            "facts": [*{json.dumps(each): each for each in facts}.values()],
        }
        found[name] = told | {column: cell and cell.model_dump(mode="json") for column, cell in row.cells.items()}
    return found


def compare(runs: Sequence[Path]) -> dict[str, Row]:
    """Gather the audits of runs that differ in nothing but `train.seed`, and audits without a run.

    Args:
        runs: folders of runs, each with its audit in RUN/audit, or folders of audits. An audit that is named twice
            counts once; RUN/audit stands for its run. Any other audit is an experiment of its own.

    Returns:
        By experiment, in the order of the runs. A run's experiment is named after its preset, and after what it
        changes where the same preset was run with other settings before it; an audit's after its folder.

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
    """One audit: its folder as it was named, the settings of its run but for the seed, its numbers."""

    folder: Path
    file: Path
    kind: Settings | None
    seed: int | None
    numbers: AuditRecord


def _member(folder: Path) -> _Member:
    if folder.name == "audit" and is_run(folder.parent):
        folder = folder.parent
    own = folder / "audit.json"
    if own.is_file() and not is_run(folder):
        return _Member(folder, own, None, None, read_record(own))
    check_compared_place(folder)
    settings, file = read_settings(folder), folder / "audit" / "audit.json"
    if not file.exists():
        raise UserError(
            f"{folder} is not audited: it has no audit/audit.json; run 'iet-agc audit --out {folder}/audit'"
        )
    kind = override(settings, {"train.seed": "0", "init.sha256": "none"})  # each seed may go on from its own model
    return _Member(folder, file, kind, settings.train.seed, read_record(file))


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


def _row(members: Sequence[_Member]) -> Row:
    cells: dict[str, Cell | None] = {}
    for name, column in COLUMNS.items():
        found = [each for member in members if (each := column.read(member.numbers)) is not None]
        cells[name] = _cell_of(found, column) if len(found) == len(members) else None
    return Row(
        runs=tuple(str(member.folder) for member in members),
        audits=tuple(str(member.file.parent) for member in members),
        seeds=tuple(member.seed for member in members),
        numbers=tuple(member.numbers for member in members),
        cells=cells,
    )


def _cell_of(found: Sequence[Proportion | float], column: Column) -> Cell:
    """One column of one experiment, from what each of its audits says."""
    shares = tuple(each for each in found if isinstance(each, Proportion))
    values = tuple(each.share * column.unit if isinstance(each, Proportion) else float(each) for each in found)
    interval = _interval_of_share(shares, column) if shares else _interval(values, column)
    return Cell(values=values, mean=float(np.mean(values)), shares=shares, interval=interval)


def _interval(values: Sequence[float], column: Column) -> Made | None:
    """The interval of a number that is no share."""
    limits = _student(values)
    return limits and Made(ci95=_within(limits, column.limits), method=_T)


def _student(values: Sequence[float]) -> Interval | None:
    """Student's interval of the mean over runs; None of a single run, and of runs that only differ by rounding."""
    return None if _agree(values) else mean(values).ci95


def _agree(values: Sequence[float]) -> bool:
    return max(values) - min(values) <= 1e-12 * max(map(abs, values))


def _within(limits: Sequence[float], most: tuple[float, float]) -> tuple[float, float]:
    """Limits, cut off where no value can be."""
    low, high = np.clip(limits, *most).tolist()
    return low, high


def _scaled(limits: Interval, unit: float) -> tuple[float, float]:
    return unit * limits[0], unit * limits[1]


def _interval_of_share(shares: Sequence[Proportion], column: Column) -> Made:
    if column.of == "held-out images":  # all runs see the same held-out images, which count once
        limits, method = shares[0].ci95, _WILSON_HELD_OUT
    elif len(shares) == 1:
        limits, method = shares[0].ci95, _PROMPTS if _prompts(shares) else _WILSON
    else:
        limits, method = _over_runs(shares), _RUNS_AND_PROMPTS if _prompts(shares) else _RUNS
    return Made(ci95=_scaled(limits, column.unit), method=method)


def _over_runs(shares: Sequence[Proportion], others: Sequence[Proportion] | None = None) -> tuple[float, float]:
    """Limits of a mean share over runs; a single one varies as the others do."""
    mine, theirs = _counts(shares), _counts(others) if others else None
    return share_over_runs(*mine, theirs, _prompts(shares))


def _counts(shares: Sequence[Proportion]) -> tuple[list[int], list[int]]:
    return [each.count for each in shares], [each.total for each in shares]


def _prompts(shares: Sequence[Proportion]) -> list[tuple[int, float]] | None:
    """Clusters and design effects, where prompts repeat in any run."""
    if not any(each.clusters for each in shares):
        return None
    return [(each.clusters or each.total, each.design_effect or 1.0) for each in shares]


# Differences ----------------------------------------------------------------------------------------------


def differences_from_first(rows: Rows) -> dict[str, dict[str, Cell | None]]:
    """The first experiment minus each other one, in every column that both know.

    Returns:
        By other experiment and column; None where one of the two does not know the column, and of the share of held-out
        images, which are no result of a run. Of shares, the interval follows from those of the two (see
        `intervals.difference`), and a single run against several is taken to vary like them. Of other numbers it is
        Student's t over paired seeds; Welch's t where the seeds are others; Student's t where one side is a single run,
        which is taken to vary like the other side's runs. It is None of two single runs, and of differences that agree
        to the last digit.
    """
    names = list(rows)
    return {name: {column: _difference(rows[names[0]], rows[name], column) for column in COLUMNS} for name in names[1:]}


def _difference(first: Row, other: Row, name: str) -> Cell | None:
    mine, theirs, column = first[name], other[name], COLUMNS[name]
    if mine is None or theirs is None or column.of == "held-out images":
        return None
    pairs = _pairs(first, other, name)
    interval = _of_shares(mine, theirs, column) if column.of else _of_others(mine, theirs, pairs, column)
    return Cell(values=tuple(pairs), mean=mine.mean - theirs.mean, interval=interval)


def _of_shares(mine: Cell, theirs: Cell, column: Column) -> Made:
    """The interval of a difference of two shares, from the limits of each."""
    sides = [
        (cell.mean / column.unit, _limits_beside(cell, beside, column))
        for cell, beside in ((mine, theirs), (theirs, mine))
    ]
    _, limits = difference(*sides)
    return Made(ci95=_scaled(limits, column.unit), method=_method_of_shares(mine, theirs))


def _limits_beside(cell: Cell, other: Cell, column: Column) -> tuple[float, float]:
    """The limits of a share; of a single run beside several, as if it varied as they do."""
    if len(cell.shares) == 1 < len(other.shares):
        return _over_runs(cell.shares, other.shares)
    assert cell.ci95 is not None, "every share has an interval"
    return cell.ci95[0] / column.unit, cell.ci95[1] / column.unit


def _method_of_shares(mine: Cell, theirs: Cell) -> str:
    runs = sorted(len(cell.shares) for cell in (mine, theirs))
    if runs[0] > 1:
        return _OF_SHARES
    if runs[1] > 1:
        return _ONE_OF_SHARES
    return _PROMPTS_OF_TWO if _prompts([*mine.shares, *theirs.shares]) else _NEWCOMBE


def _pairs(first: Row, other: Row, column: str) -> list[float]:
    """Differences seed by seed, in the order of the first; none where the seeds are others, unknown or repeated."""
    seeds, others = first.seeds, other.seeds
    if None in seeds or set(seeds) != set(others) or not len(set(seeds)) == len(seeds) == len(others):
        return []
    mine, theirs = (dict(zip(row.seeds, cell.values, strict=True)) for row in (first, other) if (cell := row[column]))
    return [mine[seed] - theirs[seed] for seed in seeds]


def _of_others(mine: Cell, theirs: Cell, pairs: Sequence[float], column: Column) -> Made | None:
    """The interval of a difference of means that are no shares; of single runs, none."""
    from scipy import stats

    several = [cell.values for cell in (mine, theirs) if len(cell.values) > 1]
    limits, method = None, _PAIRED
    if len(pairs) > 1:
        limits = _student(pairs)
    elif len(several) == 2 and not all(map(_agree, several)):
        limits, method = stats.ttest_ind(mine.values, theirs.values, equal_var=False).confidence_interval(0.95), _WELCH
    elif len(several) == 1 and not _agree(several[0]):
        count, apart = len(several[0]), mine.mean - theirs.mean
        error = float(np.std(several[0], ddof=1)) * (1 + 1 / count) ** 0.5
        limits, method = stats.t.interval(0.95, count - 1, apart, error), _ONE_AGAINST_SEVERAL
    least, most = column.limits
    return limits and Made(ci95=_within(limits, (least - most, most - least)), method=method)


# Whether they compare -------------------------------------------------------------------------------------

#: The extractor of an audit without quality, in words.
NOT_MEASURED = "not measured"

#: What an audit was made with, and what it warns of, by name; None of what it does not have.
_FACTS: dict[str, Callable[[AuditRecord], JsonValue]] = {
    "num_samples": lambda a: a.num_samples,
    "num_train": lambda a: a.num_train,
    "num_train_unique": lambda a: a.num_train_unique,
    "num_held_out": lambda a: a.num_held_out,
    "train_sha256": lambda a: a.sha256.train,
    "held_out_sha256": lambda a: a.sha256.held_out,
    "extractor": lambda a: a.quality.extractor or NOT_MEASURED,
    "extractor_sha256": lambda a: a.quality.sha256,
    "few_images": lambda a: a.quality.few_images,
    "network": lambda a: (space := _first(a)) and space.sha256,
    "clip_sha256": lambda a: a.clip and a.clip.sha256,
    "false_alarm": lambda a: a.calibrated and a.calibrated.false_alarm,
    "conventions": lambda a: dict(a.conventions),
    "quality_conventions": lambda a: dict(a.quality.conventions),
    "warnings": lambda a: [*warned(a)],
}

#: Audits, each with the name of its experiment.
_Audits = Sequence[tuple[str, AuditRecord]]

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

#: The conventions of an audit, and those of its quality; some have the same name.
_CONVENTIONS: tuple[Callable[[AuditRecord], Mapping[str, object]], ...] = (
    lambda audit: dict(audit.conventions),
    lambda audit: audit.quality.conventions,
)


def warned(audit: AuditRecord) -> list[str]:
    """What an audit warns of, in pixels and in feature spaces: sentences without their full stops."""
    found = [f"{way}, {reason.sentence}" for way, each in reasons(audit).items() for reason in each]
    found += [warning.sentence for warning in audit.warnings]
    found += [
        f"In the features of {name}: {warning.sentence}"
        for name, space in audit.feature_spaces.items()
        for warning in space.warnings
    ]
    return [f"{each[:1].upper()}{each[1:]}" for each in found]


def warnings(rows: Rows) -> list[str]:
    """Why the numbers of these experiments do not all compare, or are not to be trusted; empty where they may be.

    Besides what `differing` tells: Fréchet distances of few images, seeds that are repeated, and what the audits
    themselves warn of.
    """
    audits = [(name, audit) for name, row in rows.items() for audit in row.numbers]
    return [*_told(audits), *differing(audits), *_few_images(audits), *_repeated(rows)]


def _told(audits: _Audits) -> list[str]:
    """What the audits themselves warn of, each sentence once."""
    holders: dict[str, list[str]] = {}
    for name, audit in audits:
        for warning in warned(audit):
            holders.setdefault(warning, []).append(name)
    return [f"{warning} ({listed(names)})." for warning, names in holders.items()]


def differing(audits: _Audits) -> list[str]:
    """In what audits differ, so that their numbers do not compare; empty where nothing speaks against it.

    Compared are SHA-256 and sizes of the training and held-out sets, number of samples, extractor, false-alarm rate
    and conventions.

    Args:
        audits: each with its name, or that of its experiment.

    Returns:
        Sentences that name who has which value.
    """
    found = []
    for what, names, consequence in _EQUAL:
        parts = (_holders(audits, _FACTS[name], unit) for name, unit in names.items())
        if part := next(filter(None, parts), ""):
            found.append(f"{what} differs ({part}): {consequence}.")
    return found + [sentence for read in _CONVENTIONS for sentence in _differing_conventions(audits, read)]


def _differing_conventions(audits: _Audits, read: Callable[[AuditRecord], Mapping[str, object]]) -> Iterator[str]:
    for key in dict.fromkeys(key for _, audit in audits for key in read(audit)):
        if part := _holders(audits, lambda audit, key=key: read(audit).get(key)):
            yield f"The convention '{key}' differs ({part})."


def _holders(audits: _Audits, read: Callable[[AuditRecord], object], unit: str = "") -> str:
    """Who has which value, where there are several: "1,024 in a and b; 512 in c"."""
    holders: dict[str, list[str]] = {}
    for holder, audit in audits:
        if (value := read(audit)) is not None:
            holders.setdefault(_said(value), []).append(holder)
    parts = [f"{value}{unit} in {listed(names)}" for value, names in holders.items()]
    return "; ".join(parts) if len(parts) > 1 else ""


def _said(value: object) -> str:
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


def _few_images(audits: _Audits) -> list[str]:
    few = [name for name, audit in audits if audit.quality.few_images]
    if not few:
        return []
    return [f"With no more images than the extractor has dimensions, distances are biased upward: {listed(few)}."]


def _repeated(rows: Rows) -> list[str]:
    """Runs of the same settings and the same seed are no independent draws."""
    repeats = {
        name: sorted({seed for seed in row.seeds if seed is not None and row.seeds.count(seed) > 1})
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
        lines.append(" | ".join([f"| {name}", str(len(row.runs)), *cells]) + " |")
    return "\n".join(lines)


def _cell(cell: Cell | None, form: str) -> str:
    if cell is None:
        return "-"
    each = ", ".join(form.format(value) for value in cell.values)
    limits = cell.ci95 if len(cell.values) > 1 else None
    interval = f" [{', '.join(form.format(bound) for bound in limits)}]" if limits else ""
    return f"{form.format(cell.mean)} ({each}){interval}"
