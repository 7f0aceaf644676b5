"""Several audited runs side by side: one row per preset, over its seeds."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from iet_agc.config import read_settings

__all__ = ["compare", "mean_interval", "table"]


def compare(runs: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Gather the audits of runs, by the preset that they started from.

    Args:
        runs: folders of runs, each with its audit in RUN/audit.

    Returns:
        Per preset: the runs, and for the copied share (ratio < 0.15), the share under the calibrated
        cut and both Fréchet distances {"values", "mean", "ci95"}, in the order of the runs.

    Raises:
        ValueError: a folder that is no run, or was not audited.
    """
    groups: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for run in runs:
        groups.setdefault(read_settings(run).name, []).append((run, _read_audit(run)))
    return {name: _row(members) for name, members in groups.items()}


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


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| preset | runs | ratio < 0.15 | below the calibrated cut | Fréchet, held-out | Fréchet, train |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        shares = [_cell(row[key], "{:.1%}") for key in ("copied", "calibrated")]
        distances = [_cell(row[key], "{:.3f}") for key in ("frechet_held_out", "frechet_train")]
        lines.append(" | ".join([f"| {name}", str(len(row["runs"])), *shares, *distances]) + " |")
    return "\n".join(lines)


def _cell(values: dict[str, Any] | None, form: str) -> str:
    if values is None:
        return "-"
    each = ", ".join(form.format(value) for value in values["values"])
    return f"{form.format(values['mean'])} ({each})"


def _read_audit(run: Path) -> dict[str, Any]:
    file = run / "audit" / "audit.json"
    try:
        return json.loads(file.read_text())
    except OSError:
        raise ValueError(
            f"{run} is not audited: it has no audit/audit.json; run 'iet-agc audit --out {run}/audit'"
        ) from None
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from None


def _row(members: list[tuple[Path, dict[str, Any]]]) -> dict[str, Any]:
    audits = [audit for _, audit in members]
    calibrated = all(audit["calibrated"] for audit in audits)
    return {
        "runs": [str(run) for run, _ in members],
        "copied": mean_interval([audit["mq"]["0.15"]["share"] for audit in audits]),
        "calibrated": mean_interval([audit["calibrated"]["share"] for audit in audits]) if calibrated else None,
        "frechet_held_out": mean_interval([audit["quality"]["frechet_held_out"] for audit in audits])
        if calibrated
        else None,
        "frechet_train": mean_interval([audit["quality"]["frechet_train"] for audit in audits]),
    }
