"""The examples of other people's loops: each is whole, short, and runs; what it leaves behind is looked at."""

from pathlib import Path

import pytest
import torch

from tests.loaded_files import EXAMPLES, load

NAMES = ["flow_matching_agc", "accelerate_agc", "lightning_agc", "transformers_agc"]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_short_and_says_which_lines_are_agc(name: str) -> None:
    lines = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 80
    assert 2 <= sum("# AGC" in line for line in lines) <= 5


def test_flow_matching() -> None:
    curve: dict[int, dict[str, float]] = {}
    load(EXAMPLES / "flow_matching_agc.py").main(100, 32, lambda values, step: curve.update({step: values}))
    assert [*curve] == [50, 100]
    assert curve[100]["loss"] < curve[50]["loss"] < 1.5
    assert all(0 <= point["skipped"] < 0.5 for point in curve.values())


def test_accelerate_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    example = load(EXAMPLES / "accelerate_agc.py")
    first = example.main(steps=4, batch_size=16, micro_batches=2, out=tmp_path)
    assert 0 < (first.mean_loss > 0).sum() <= 4 * 2 * 16
    again = example.main(steps=0, batch_size=16, micro_batches=2, out=tmp_path)
    assert torch.equal(again.mean_loss, first.mean_loss)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_lightning(micro_batches: int, tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    module = load(EXAMPLES / "lightning_agc.py").main(
        3, 16, micro_batches, accelerator="cpu", devices=1, default_root_dir=tmp_path, enable_progress_bar=False
    )
    assert 0 < (module.agc.mean_loss > 0).sum() <= 3 * micro_batches * 16
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert torch.equal(saved["agc.mean_loss"], module.agc.mean_loss)


def test_transformers_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    example = load(EXAMPLES / "transformers_agc.py")
    whole = example.main(4, 16, tmp_path / "whole")
    assert 0 < (whole.agc.mean_loss > 0).sum() <= 4 * 16
    example.main(2, 16, tmp_path / "run")
    resumed = example.main(4, 16, tmp_path / "run", resume=True)
    assert all(torch.equal(resumed.state_dict()[name], tensor) for name, tensor in whole.state_dict().items())
