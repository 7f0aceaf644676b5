"""Fixtures of several test files. What is heavy to import is imported where it is used: a few tests need none of it."""

import multiprocessing
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

#: Audits say when they were made: in tests and the processes that these start, always then.
os.environ["SOURCE_DATE_EPOCH"] = "1767225600"

#: In memory nothing waits for a disk: tests write thousands of small files, each of which is synchronized.
if "PYTEST_DEBUG_TEMPROOT" not in os.environ and os.path.isdir("/dev/shm") and shutil.disk_usage("/dev/shm").free > 4e9:
    os.environ["PYTEST_DEBUG_TEMPROOT"] = "/dev/shm"

#: Files whose tests train, draw, look at thousands of images, or start processes and browsers; `make check` leaves
#: them out.
SLOW = {
    "test_agc_auto", "test_agc_checkpoints", "test_agc_processes", "test_alignment", "test_amg", "test_api",
    "test_attack_text",
    "test_audits", "test_bench", "test_differential_privacy", "test_generalization_gap", "test_heap",
    "test_browser", "test_captions", "test_classes", "test_cli",
    "test_curve_of_a_run", "test_datasets", "test_detection", "test_dist", "test_duplicates", "test_e2e",
    "test_emoji", "test_engine", "test_example", "test_exchange", "test_families", "test_faults", "test_features",
    "test_finished", "test_frontier", "test_fuzz", "test_hugging_face", "test_identity", "test_imports",
    "test_initial", "test_longer", "test_loop_examples", "test_lora", "test_loss_weights", "test_memorized_prompts",
    "test_model_card", "test_models", "test_neighbors", "test_one_caption", "test_package", "test_parity",
    "test_precision", "test_process_state", "test_quality", "test_recipes", "test_report", "test_resume",
    "test_samples", "test_sampling", "test_schedules", "test_seal", "test_settings", "test_similarity",
    "test_similarity_page", "test_soundness", "test_stop", "test_streams", "test_summary", "test_targets",
    "test_text", "test_timesteps", "test_torchmetrics", "test_walkthrough", "test_watching",
    "test_average_files", "test_pack", "test_shard_folders", "test_stock_loop",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow files."""
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker(pytest.mark.slow)


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


@pytest.fixture(scope="module")
def small_networks() -> Iterator[None]:
    """TorchScript is shown images of 32 pixels a side, not of 288; tests/test_features.py has the real size."""
    from iet_agc.metrics import features

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "SCRIPT_SIDE", 32)
        yield


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are forked and not spawned: nothing is imported again. Some test of each use spawns them as users do."""
    honest = multiprocessing.get_context
    monkeypatch.setattr(
        multiprocessing, "get_context", lambda method=None: honest("fork" if method == "spawn" else method)
    )


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images per part on disk, so that ten images are five parts."""
    from iet_agc.sampling import sample_set

    monkeypatch.setattr(sample_set, "_PART", 1)
    monkeypatch.setattr(sample_set, "rows_at_a_time", lambda shape, device: 2)
