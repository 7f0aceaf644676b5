"""The main job on embedded data: train two methods, sample and audit both, write one report.

The presets run side by side, one process each, since small models use one core better than two.
"""

import multiprocessing
import os
import time
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from iet_agc.auditing.run import audit_sources
from iet_agc.auditing.schema import AuditRecord
from iet_agc.config.overrides import customized
from iet_agc.config.presets import load_preset
from iet_agc.config.settings import Settings
from iet_agc.reporting.audit_page import write_report
from iet_agc.runtime.malloc import keep_freed_memory
from iet_agc.runtime.progress import progress_bar
from iet_agc.runtime.threads import num_threads
from iet_agc.sampling.sample_set import sample_run
from iet_agc.training.loop import start

__all__ = ["PRESETS", "demo", "run_preset"]

#: What is compared: default training against the method.
PRESETS = ("digits-default", "digits-iet-agc")

#: Work of training on one image, counted in model evaluations of sampling. Measured on the digits
#: presets (forward, backward and optimizer against forward); it only makes the time left honest.
_TRAINING_COST = 3.4


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
    workers = min(len(presets), os.cpu_count() or 1)
    threads = max(1, min(2, (os.cpu_count() or 1) // workers))  # such small models gain nothing from more
    settings = {
        name: customized(load_preset(name), {"run.threads": str(threads), **(overrides or {})}) for name in presets
    }
    context, others = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
    done = context.Value("d", 0.0)
    with ProcessPoolExecutor(workers, context, _share, (done,)) as pool:
        futures = {name: pool.submit(run_preset, settings[name], out / name) for name in presets}
        try:
            _watch(done, sum(_work(one) for one in settings.values()), list(futures.values()))
        except BaseException:
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()  # what it has done is in its bundles
            raise
        audits = {name: future.result() for name, future in futures.items()}
    report = write_report(
        {name: out / name / "audit" for name in presets},
        out / "report.html",
        "Default training and IET-AGC on real digits",
    )
    found = {name: audit.model_dump(mode="json") for name, audit in audits.items()}
    return {"presets": found, "report": str(report), "seconds": round(time.perf_counter() - began, 1)}


def run_preset(settings: Settings, run: Path) -> AuditRecord:
    """Train, sample and audit one run, in RUN, RUN/samples and RUN/audit."""
    keep_freed_memory()
    with num_threads(settings.run.threads):
        start(settings, run, lambda steps: _advance(steps * settings.train.batch_size * _TRAINING_COST))
        sample_run(
            run,
            run / "samples",
            device=settings.run.device,
            on_images=lambda images: _advance(images * settings.sample.steps),
        )
        return audit_sources(str(run), str(run / "samples"), str(run), run / "audit", on_done=lambda share: None)


_progress: "Synchronized[float] | None" = None


def _share(done: "Synchronized[float]") -> None:
    """Give a worker process the counter that the parent watches."""
    global _progress  # noqa: PLW0603 (how a worker process is told)
    _progress = done


def _advance(work: float) -> None:
    if _progress is not None:
        with _progress.get_lock():
            _progress.value += work


def _work(settings: Settings) -> float:
    """All that a preset has to do, in model evaluations of one image."""
    images_seen = settings.total_steps * settings.train.batch_size
    return images_seen * _TRAINING_COST + settings.sample.num * settings.sample.steps


def _watch(done: "Synchronized[float]", total: float, futures: "list[Future[AuditRecord]]") -> None:
    """Keep the bar where the workers are until they have finished, or one has failed."""
    with progress_bar("demo", 1000, unit="") as bar:
        while not all(future.done() for future in futures):
            bar.update(min(1000, int(1000 * done.value / total)) - bar.n)
            for future in futures:
                if future.done():
                    future.result()
            time.sleep(0.5)
        bar.update(1000 - bar.n)
