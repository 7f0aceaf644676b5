"""The guide's shell loop, around a stock script: K x R runs end in what averages by hand end in, bitwise."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file

from iet_agc import average_states, partition
from iet_agc.data.grids import save_image
from tests import stock_trainer
from tests.similar_images import noise

CHECKOUT = Path(__file__).parents[1]
GUIDE = CHECKOUT / "docs" / "guides" / "adopt.md"
MEMBERS, ROUNDS, STEPS = 2, 2, 3
WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"


def loop() -> str:
    """The only shell block of the guide, made short."""
    (block,) = re.findall(r"```sh\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(block.splitlines()) <= 10
    for old, new in (("K=4 R=10", f"K={MEMBERS} R={ROUNDS}"), ("--max_train_steps 500", f"--max_train_steps {STEPS}")):
        assert old in block
        block = block.replace(old, new)
    return block


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven images, a pipeline to start from, the script, and the commands that the loop calls."""
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(noise(7, 1)):
        save_image(image, tmp_path / "photos" / f"{number}.png")
    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, layers_per_block=1,
    )  # fmt: skip
    DDPMPipeline(model, DDPMScheduler()).save_pretrained(tmp_path / "base")
    shutil.copy(str(stock_trainer.__file__), tmp_path / "train_text_to_image.py")
    (tmp_path / "bin").mkdir()
    for name, words in (("iet-agc", "-m iet_agc"), ("python", "")):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def by_hand(folder: Path) -> dict[str, torch.Tensor]:
    """The same from the functions: `partition`, the script, `average_states`."""
    shards = partition(len([*(folder / "photos").iterdir()]), MEMBERS)
    model = folder / "base"
    for number in range(1, ROUNDS + 1):
        states = []
        for k, shard in enumerate(shards):
            images, out = folder / f"hand-{k}", folder / f"hand-{number}-{k}"
            images.mkdir(exist_ok=True)
            for place in shard.tolist():
                shutil.copy(folder / "photos" / f"{place}.png", images)
            given = {"pretrained_model_name_or_path": model, "train_data_dir": images, "output_dir": out}
            given |= {"max_train_steps": STEPS, "seed": f"{number}{k}"}
            stock_trainer.main([word for name, value in given.items() for word in (f"--{name}", str(value))])
            states.append(load_file(out / WEIGHTS))
        model = shutil.copytree(folder / "base", folder / f"hand-mean-{number}")
        save_file(average_states(states, [len(shard) for shard in shards]), model / WEIGHTS, {"format": "pt"})
    return load_file(model / WEIGHTS)


def test_the_loop_of_the_guide_is_iterative_ensemble_training(folder: Path) -> None:
    environment = os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-euc", loop()], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found, expected = load_file(folder / f"round-{ROUNDS}" / "mean" / WEIGHTS), by_hand(folder)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    start = load_file(folder / "base" / WEIGHTS)
    assert any(not torch.equal(found[name], start[name]) for name in start)
    assert DDPMPipeline.from_pretrained(folder / f"round-{ROUNDS}" / "mean").unet is not None  # pyright: ignore[reportAttributeAccessIssue]
