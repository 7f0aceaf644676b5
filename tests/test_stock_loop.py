"""The guide's shell loop, around a stock script: K x R runs end in what averages by hand end in, bitwise.

The shell is real, and so are the words that it gives. What it calls are doors to this process, which does the work:
programs by themselves would take seconds each to import their libraries.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file

from iet_agc import average_states, cli, partition
from iet_agc.data.grids import save_image
from tests import stock_trainer
from tests.similar_images import noise

CHECKOUT = Path(__file__).parents[1]
GUIDE = CHECKOUT / "docs" / "guides" / "adopt.md"
MEMBERS, ROUNDS, STEPS = 2, 2, 3
#: Hands its words over and ends as it is told.
DOOR = '#!/bin/sh\nprintf "%s\\n" "${0##*/}" "$@" > calls\nread status < answers\nexit "$status"\n'
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
    os.mkfifo(tmp_path / "calls")
    os.mkfifo(tmp_path / "answers")
    (tmp_path / "bin").mkdir()
    for name in ("iet-agc", "python"):
        (tmp_path / "bin" / name).write_text(DOOR)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def served(words: list[str]) -> int:
    """What a door was called with, done here; its exit status."""
    program, *given = words
    if program == "python":
        assert given.pop(0) == "train_text_to_image.py"
        stock_trainer.main(given)
        return 0
    with pytest.raises(SystemExit) as end:
        cli.main(given)
    assert isinstance(end.value.code, int)
    return end.value.code


def run_loop(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[list[str]]]:
    """The exit status of the loop, and all that it called."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    calls: list[list[str]] = []
    with subprocess.Popen(["bash", "-euc", f"trap 'echo end > calls' EXIT\n{loop()}"]) as shell:
        while (words := Path("calls").read_text(encoding="utf-8").splitlines()) != ["end"]:
            calls.append(words)
            Path("answers").write_text(f"{served(words)}\n", encoding="utf-8")
    return shell.returncode, calls


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


def test_the_loop_of_the_guide_is_iterative_ensemble_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, calls = run_loop(folder, monkeypatch)
    assert status == 0
    assert len(calls) == 1 + ROUNDS * (MEMBERS + 1)
    found, expected = load_file(folder / f"round-{ROUNDS}" / "mean" / WEIGHTS), by_hand(folder)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    start = load_file(folder / "base" / WEIGHTS)
    assert any(not torch.equal(found[name], start[name]) for name in start)
    assert DDPMPipeline.from_pretrained(folder / f"round-{ROUNDS}" / "mean").unet is not None  # pyright: ignore[reportAttributeAccessIssue]


def test_a_command_that_fails_ends_the_loop(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(folder / "photos")
    status, calls = run_loop(folder, monkeypatch)
    assert (status, [words[:2] for words in calls]) == (2, [["iet-agc", "shards"]])
