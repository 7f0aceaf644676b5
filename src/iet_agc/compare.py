"""Several audited runs side by side: one row per experiment, over its seeds."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from iet_agc.config import Settings, differences, fingerprint, override, read_settings

__all__ = ["compare", "mean_interval", "paired_differences", "table"]

#: What is compared: name of a column, and where it stands in audit.json.
_COLUMNS = {
    "copied": ("mq", "0.15", "share"),
    "below_0.30": ("mq", "0.30", "share"),
    "calibrated": ("calibrated", "share"),
    "frechet_held_out": ("quality", "frechet_held_out"),
    "frechet_train": ("quality", "frechet_train"),
    "held_out_copied": ("held_out", "mq", "0.15", "share"),
}


def compare(runs: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Gather the audits of runs that differ in nothing but `train.seed`.

    Args:
        runs: folders of runs, each with its audit in RUN/audit; one that is named twice counts once.

    Returns:
        Per experiment "runs", "seeds" and the columns {"values", "mean", "ci95"}, in the order of the
        runs; None where an audit does not know a column. An experiment is named after its preset, and
        after what it changes where the same preset was run with other settings before it.

    Raises:
        ValueError: a folder that is no run, or was not audited, or whose audit is damaged.
    """
    groups: dict[str, list[tuple[Path, int, dict[str, Any]]]] = {}
    kinds: dict[str, Settings] = {}
    for run in dict.fromkeys(runs):
        settings = read_settings(run)
        kind = override(settings, {"train.seed": "0"})
        key = f"{kind.name} {fingerprint(kind)}"
        kinds.setdefault(key, kind)
        groups.setdefault(key, []).append((run, settings.train.seed, _read_audit(run)))
    return {_label(kinds, key): _row(members) for key, members in groups.items()}


def _label(kinds: dict[str, Settings], key: str) -> str:
    first = next(kind for kind in kinds.values() if kind.name == kinds[key].name)
    changes = differences(first, kinds[key])
    return f"{first.name} ({'; '.join(changes)})" if changes else first.name


def mean_interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean over runs with its 95 % interval by Student's t; None for the bounds of a single run.

    Returns:
        {"values", "mean", "ci95": [low, high] or None}.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"values": list(values), "mean": mean, "ci95": None}
    reach = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return {"values": list(values), "mean": mean, "ci95": [mean - reach, mean + reach]}


def paired_differences(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The first experiment minus each other one that has the same seeds, seed by seed.

    Returns:
        Per other experiment, `mean_interval` of the differences in "copied" and "frechet_held_out".
    """
    names = list(rows)
    if not names:
        return {}
    first = rows[names[0]]
    return {
        name: {column: _difference(first, rows[name], column) for column in ("copied", "frechet_held_out")}
        for name in names[1:]
        if sorted(rows[name]["seeds"]) == sorted(first["seeds"])
    }


def _difference(first: dict[str, Any], other: dict[str, Any], column: str) -> dict[str, Any] | None:
    if first[column] is None or other[column] is None:
        return None
    mine, theirs = (dict(zip(row["seeds"], row[column]["values"], strict=True)) for row in (first, other))
    return mean_interval([mine[seed] - theirs[seed] for seed in first["seeds"]])


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as a Markdown table: mean (each run) [95 % interval]."""
    titles = ["ratio < 0.15", "ratio < 0.30", "below the calibrated cut", "Fréchet, held-out", "Fréchet, train"]
    titles += ["held-out < 0.15"]
    lines = [" | ".join(["| preset | runs", *titles]) + " |", "|---" * (2 + len(titles)) + "|"]
    for name, row in rows.items():
        cells = [_cell(row[column], "{:.3f}" if "frechet" in column else "{:.1%}") for column in _COLUMNS]
        lines.append(" | ".join([f"| {name}", str(len(row["runs"])), *cells]) + " |")
    return "\n".join(lines)


def _cell(values: dict[str, Any] | None, form: str) -> str:
    if values is None:
        return "-"
    each = ", ".join(form.format(value) for value in values["values"])
    interval = f" [{', '.join(form.format(bound) for bound in values['ci95'])}]" if values["ci95"] else ""
    return f"{form.format(values['mean'])} ({each}){interval}"


def _read_audit(run: Path) -> dict[str, Any]:
    file = run / "audit" / "audit.json"
    try:
        audit = json.loads(file.read_text())
        if audit["version"] != 1:
            raise ValueError(f"it has version {audit['version']!r}, not 1")
        return {column: _look_up(audit, path) for column, path in _COLUMNS.items()}
    except OSError:
        raise ValueError(
            f"{run} is not audited: it has no audit/audit.json; run 'iet-agc audit --out {run}/audit'"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged: {type(error).__name__} {error}; audit {run} again") from None


def _look_up(audit: dict[str, Any], path: Sequence[str]) -> float | None:
    """The number at the end of a path; None where a part of the path is null."""
    value: Any = audit
    for key in path:
        value = None if value is None else value[key]
    return None if value is None else float(value)


def _row(members: list[tuple[Path, int, dict[str, Any]]]) -> dict[str, Any]:
    row: dict[str, Any] = {"runs": [str(run) for run, *_ in members], "seeds": [seed for _, seed, _ in members]}
    for column in _COLUMNS:
        values = [audit[column] for *_, audit in members]
        row[column] = None if None in values else mean_interval(values)
    return row
