"""What training and sampling will take on this machine, by a few real steps."""

import copy
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from iet_agc.config.first_settings import Machine
from iet_agc.config.settings import Settings
from iet_agc.data.image_set import ImageSet
from iet_agc.diffusion.samplers import rows_at_a_time, sample
from iet_agc.runtime.precision import resolved
from iet_agc.training.member import Member
from iet_agc.training.tasks import make_task

__all__ = ["Trial", "machine", "try_out"]

#: Steps that are timed, after one that warms up; denoising steps that are.
_STEPS, _DENOISING = 2, 2

#: Bytes that a member at rest keeps of each weight: weights, their average, and two moments.
_AT_REST = 16


@dataclass(frozen=True)
class Trial:
    """What was measured.

    Attributes:
        seconds_per_step: of an optimizer step of one member.
        seconds_per_image: of a sampled image, all its denoising steps.
        parameters: weights of the network.
        memory: bytes of the device that the process took at most; on a CPU with all members, as they are kept there.
    """

    seconds_per_step: float
    seconds_per_image: float
    parameters: int
    memory: int


def machine(device: torch.device) -> Machine:
    """What there is to train on: all memory of a GPU that is free, or of the machine."""
    if device.type == "cuda":
        return Machine("cuda", torch.cuda.mem_get_info(device)[0])
    return Machine("cpu", os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def try_out(settings: Settings, images: ImageSet, device: torch.device) -> Trial:
    """Take a few steps of one member, and draw some images by as few steps. Nothing is kept.

    Args:
        settings: of the run.
        images: some or all of its training images.
        device: where.

    Raises:
        UserError: settings that do not fit the images.
    """
    task = make_task(settings, images)
    train = settings.train.model_copy(update={"precision": resolved(settings.train.precision, device)})
    examples = task.examples(torch.arange(len(images)))
    member = Member(0, task.initial.raw, examples, train, settings.method, device)
    member.to(device)
    list(member.train(1, task.scheduler))
    stepping = _timed(lambda: list(member.train(1 + _STEPS, task.scheduler)), device) / _STEPS
    rows = rows_at_a_time(images.shape, device)
    model = copy.deepcopy(member.model).eval()
    drawing = _timed(lambda: sample(model, task.scheduler, range(rows), images.shape, _DENOISING, device), device)
    parameters = sum(each.numel() for each in member.model.parameters())
    others = (settings.method.members - 1) * _AT_REST * parameters
    return Trial(
        seconds_per_step=stepping,
        seconds_per_image=drawing / rows / _DENOISING * settings.sample.steps,
        parameters=parameters,
        memory=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _peak() + others,
    )


def _timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that some work takes."""
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _peak() -> int:
    """Bytes that this process has held at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
