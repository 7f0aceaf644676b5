"""Train, sample and audit, one after the other: what a comparison of methods does for each of its runs."""

from pathlib import Path
from typing import Literal

from iet_agc.auditing.finished import Asked
from iet_agc.auditing.run import audit_sources
from iet_agc.auditing.schema import AuditRecord
from iet_agc.auditing.sources import load_guard
from iet_agc.config.settings import Settings
from iet_agc.runtime.threads import num_threads
from iet_agc.runtime.workers import advance
from iet_agc.sampling.sample_set import sample_run
from iet_agc.training.loop import start

__all__ = ["whole_run", "work_of"]

#: Work of training on one image, counted in model evaluations of sampling. Measured on the digits
#: presets (forward, backward and optimizer against forward); it only makes the time left honest.
_TRAINING_COST = 3.4


def whole_run(settings: Settings, run: Path, sampling: Literal["amg", "guard"] | None = None) -> AuditRecord:
    """Train, sample and audit one run, in RUN, RUN/samples and RUN/audit; the same call again goes on.

    How far it is is told to `runtime.workers.advance`, in the unit of `work_of`.

    Args:
        settings: of the run, and of its samples.
        run: its folder.
        sampling: what keeps samples from training images; both are those of the run, as are held-out images.

    Raises:
        UserError, CheckFailed: what training, sampling or the audit is refused for.
    """
    with num_threads(settings.run.threads):
        start(settings, run, lambda steps: advance(steps * settings.train.batch_size * _TRAINING_COST))
        guard = load_guard(str(run)) if sampling else None
        sample_run(
            run,
            run / "samples",
            device=settings.run.device,
            on_images=lambda images: advance(images * settings.sample.steps),
            guard=guard if sampling == "guard" else None,
            amg=guard if sampling == "amg" else None,
        )
        asked = Asked(str(run), str(run / "samples"), str(run), run / "audit")
        return audit_sources(asked, on_done=lambda share: None)


def work_of(settings: Settings) -> float:
    """All that `whole_run` has to do, in model evaluations of one image; an audit takes next to nothing."""
    images_seen = settings.total_steps * settings.train.batch_size
    return images_seen * _TRAINING_COST + settings.sample.num * settings.sample.steps
