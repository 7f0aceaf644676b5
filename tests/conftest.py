"""Fixtures of several test files. What is heavy to import is imported where it is used: a few tests need none of it."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Sums in one order, whatever a test before has set."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers pipeline of a small U-Net with random weights, which draws images of 1 x 8 x 8."""
    import torch

    from iet_agc.diffusion.process import make_scheduler
    from iet_agc.diffusion.unet import build_unet, save_pipeline

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "pipeline"
    save_pipeline(build_unet(8, 1, 8, (1, 2), 1, (), 0.0, 4), make_scheduler(), folder)
    return folder


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images per part on disk, so that ten images are five parts."""
    from iet_agc.sampling import sample_set

    monkeypatch.setattr(sample_set, "_PART", 1)
    monkeypatch.setattr(sample_set, "rows_at_a_time", lambda shape, device: 2)
