"""Text-to-image runs on the miniature pipeline, and what is compared of them."""

from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]

from iet_agc import cli
from iet_agc.text_to_image.pipeline import load_text_pipeline
from iet_agc.text_to_image.stable_diffusion import UNetAndEncoder
from iet_agc.training.loop import train
from iet_agc.training.tasks import TextTask
from tests.miniature import captioned
from tests.tiny_runs import CPU, with_changes

TINY = [
    *("--data.convert-to", "3x16x16", "--method.rounds", "1", "--train.steps", "2", "--train.batch-size", "2"),
    *("--run.preview-images", "0", "--sample.num", "3", "--sample.steps", "2", "--run.device", "cpu"),
]


def settings(init, **changes):
    content = {
        "model": {"kind": "text-to-image"},
        "init": {"model": str(init)},
        "method": {"members": 2, "rounds": 2, "skip_below": 0.8},
        "train": {"steps": 4, "batch_size": 4, "warmup_steps": 0, "learning_rate": 1e-3, "ema_decay": 0.9},
        "sample": {"steps": 2},
        "run": {"log_every": 2, "save_every": 2, "preview_images": 0},
    }
    return with_changes(content, changes)


def stock(folder) -> Any:
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def unet(run, kind="raw"):
    return load_text_pipeline(run / kind).denoiser.state_dict()


def told(folder, data, batch, **changes):
    """What the U-Net is told, and the losses, of one batch."""
    task, seen = TextTask(settings(folder, **changes), data), []
    honest = task.pipeline.denoiser.forward

    def listening(*arguments, **named):
        seen.append(named["encoder_hidden_states"])
        return honest(*arguments, **named)

    task.pipeline.denoiser.forward = listening
    examples, model = task.examples(torch.arange(len(data))), task.pipeline.denoiser
    if task.settings.text.train_encoder:
        model = UNetAndEncoder(model, task.pipeline.text_encoder)
    with torch.no_grad():
        losses = examples.losses(model, task.scheduler, batch, slice(2, 8))
    return seen[0], losses


def killed(chosen, out):
    """Train until the second member's second round, and no further."""
    steps = []

    def dies(count):
        steps.append(count)
        if len(steps) == 15:  # of 16, after 0
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(chosen, captioned(), out, CPU, dies)


def call(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return stop.value.code, out, err.strip().splitlines()[-1] if err.strip() else ""
