"""The main job on embedded data: train two methods, sample and audit both, write one report.

The presets run side by side, one process each, since small models use one core better than two.
"""

import os
import time
from pathlib import Path

from iet_agc.api.whole_run import whole_run, work_of
from iet_agc.auditing.schema import AuditRecord
from iet_agc.config.overrides import customized
from iet_agc.config.presets import load_preset
from iet_agc.reporting.audit_page import write_report
from iet_agc.runtime.malloc import keep_freed_memory
from iet_agc.runtime.progress import progress_bar
from iet_agc.runtime.workers import in_workers

__all__ = ["PRESETS", "demo"]

#: What is compared: default training against the method.
PRESETS = ("digits-default", "digits-iet-agc")


def demo(out: Path, presets: tuple[str, ...] = PRESETS, overrides: dict[str, str] | None = None) -> dict[str, object]:
    """Train, sample, audit and report every preset.

    Args:
        out: folder for the runs and report.html. The same call again resumes.
        presets: what to run.
        overrides: settings to replace in each, as in `settings.customized`.

    Returns:
        {"presets": {name: content of audit.json}, "report": path, "seconds": elapsed}.
    """
    began = time.perf_counter()
    keep_freed_memory()
    workers = min(len(presets), os.cpu_count() or 1)
    threads = max(1, min(2, (os.cpu_count() or 1) // workers))  # such small models gain nothing from more
    settings = {
        name: customized(load_preset(name), {"run.threads": str(threads), **(overrides or {})}) for name in presets
    }
    tasks = [(settings[name], out / name) for name in presets]
    audits: dict[str, AuditRecord] = {}
    with progress_bar("demo", 1000, unit="") as bar:
        total = sum(work_of(one) for one in settings.values())
        for number, audit in in_workers(
            whole_run, tasks, workers, lambda done: bar.update(min(1000, int(1000 * done / total)) - bar.n)
        ):
            audits[presets[number]] = audit
        bar.update(1000 - bar.n)
    report = write_report(
        {name: out / name / "audit" for name in presets},
        out / "report.html",
        "Default training and IET-AGC on real digits",
    )
    found = {name: audits[name].model_dump(mode="json") for name in presets}
    return {"presets": found, "report": str(report), "seconds": round(time.perf_counter() - began, 1)}
