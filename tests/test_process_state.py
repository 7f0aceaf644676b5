"""Library calls leave the process as it was: generators, threads, environment, the C library's memory."""

import importlib
import os
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ImageFile

from iet_agc import cli
from iet_agc.api import whole_run
from iet_agc.cli import demo
from iet_agc.config.overrides import override
from iet_agc.config.settings import Settings
from iet_agc.diffusion.process import make_scheduler
from iet_agc.diffusion.unet import build_unet, save_pipeline
from iet_agc.runtime import malloc
from iet_agc.runtime.seeds import kept_generators, key_of, seeded
from iet_agc.runtime.threads import num_threads
from iet_agc.sampling import sample_set
from iet_agc.sampling.sample_set import sample_run
from iet_agc.training import loop
from iet_agc.training.loop import start
from tests.audits_on_disk import audit_on_disk

# Whoever imports it first draws from Python's generator, and sets OpenMP's variables.
importlib.import_module("sklearn.datasets")

SMALL = override(
    Settings(),  # pyright: ignore[reportCallIssue]
    {
        "data.num_train": "60",
        "model.channels": "8",
        "model.multipliers": "1,2",
        "model.blocks": "1",
        "model.attention": "",
        "model.groups": "4",
        "method.members": "2",
        "train.steps": "2",
        "train.batch_size": "16",
        "sample.steps": "2",
        "run.preview_images": "2",
        "run.device": "cpu",
    },
)


def state():
    """What a call could leave behind."""
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),
        "python": random.getstate(),
        "threads": torch.get_num_threads(),
        "environment": dict(os.environ),
        "pillow": ImageFile.LOAD_TRUNCATED_IMAGES,
        "precision": (torch.get_default_dtype(), torch.get_float32_matmul_precision()),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
    }


@pytest.fixture
def no_mallopt(monkeypatch):
    monkeypatch.delenv("PYTORCH_NVML_BASED_CUDA_CHECK", raising=False)  # of Lightning: torch would load a library by it
    monkeypatch.setattr(malloc.ctypes, "CDLL", lambda name: pytest.fail("the C library was told something"))


def unchanged(call):
    before = state()
    result = call()
    after = state()
    assert [name for name in before if after[name] != before[name]] == []
    return result


def test_training_sampling_and_auditing_leave_no_trace(tmp_path, no_mallopt):
    torch.manual_seed(5)
    run, threads = tmp_path / "run", torch.get_num_threads()
    settings = override(SMALL, {"run.threads": str(threads + 1), "model.dropout": "0.1"})
    seen = set()
    unchanged(lambda: start(settings, run, lambda steps: seen.add(torch.get_num_threads())))
    assert seen == {threads + 1}  # the conditions under test: threads are set,
    unchanged(lambda: sample_run(run, run / "samples", {"num": 4}, on_images=lambda images: None))
    options: dict[str, Any] = {"extractors": ["efficientnet-lite0", "pixels"], "on_done": lambda share: None}
    unchanged(lambda: audit_on_disk(str(run), str(run / "samples"), None, run / "audit", **options))
    base = settings.init.model_copy(update={"model": str(run)})
    unchanged(lambda: start(settings.model_copy(update={"init": base}), tmp_path / "further", lambda steps: None))


def test_the_command_line_does_what_is_for_the_whole_process(tmp_path, monkeypatch, capsys):
    told, threads = [], []
    for module in (malloc, demo):
        monkeypatch.setattr(module, "keep_freed_memory", lambda: told.append(1))
    places = ((loop, "start"), (sample_set, "sample_run"), (whole_run, "start"), (whole_run, "sample_run"))
    for module, name in places:
        monkeypatch.setattr(module, name, lambda *given, **named: {"seconds": 0})
    monkeypatch.setattr(whole_run, "audit_sources", lambda *given, **named: threads.append(torch.get_num_threads()))
    (tmp_path / "model_index.json").write_text("{}")  # of a pipeline, which is looked for first
    for words in (("train", "digits-default"), ("sample", str(tmp_path))):
        with pytest.raises(SystemExit) as ended:
            cli.main([*words, "--out", str(tmp_path / "out")])
        assert ended.value.code == 0
    settings = override(SMALL, {"run.threads": str(torch.get_num_threads() + 1)})
    whole_run.whole_run(settings, tmp_path / "run")
    monkeypatch.setattr(demo, "in_workers", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        demo.demo(tmp_path / "demo")
    assert told == [1, 1, 1]
    assert threads == [settings.run.threads]  # of the audit as well, which has no such setting


def test_what_a_call_leaves_behind_is_seen():
    for change in (
        lambda: torch.rand(1),
        np.random.rand,
        random.random,
        lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    ):
        threads = torch.get_num_threads()
        with pytest.raises(AssertionError), kept_generators():
            unchanged(change)
        torch.set_num_threads(threads)


def test_a_pipeline_is_made_of_random_layers_which_are_not_drawn_from_the_callers_generator(tmp_path):
    unet = build_unet(8, 1, channels=32, multipliers=(1,), blocks=1, attention=())
    save_pipeline(unet, make_scheduler(), tmp_path / "pipeline")
    before = torch.get_rng_state()
    sample_run(tmp_path / "pipeline", tmp_path / "samples", {"num": 1, "steps": 1}, on_images=lambda images: None)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_identity_draws_as_a_seed_does_and_only_inside():
    torch.manual_seed(3)
    first = torch.rand(2)
    torch.manual_seed(3)
    with seeded("a", 1):
        inside = torch.rand(2)
    assert torch.equal(torch.rand(2), first)
    with kept_generators():
        torch.manual_seed(key_of("a", 1))
        assert torch.equal(torch.rand(2), inside)


def test_threads_come_back_when_work_fails():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), num_threads(before + 1):
        _ = 1 / (torch.get_num_threads() - before - 1)
    with num_threads(0):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before
