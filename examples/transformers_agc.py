"""transformers' Trainer: AGC in `compute_loss`. As a part of the model the loss bank is in every checkpoint.

    pip install 'iet-agc[transformers]'
    python examples/transformers_agc.py --steps 200 --out runs/trainer

With gradient_accumulation_steps each micro-batch is a batch of its own: the Trainer has no place for what divides them.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from iet_agc import AntiGradientControl

#: Of the noise schedule of DDPM: how much of the image is left.
ALPHAS = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)


class Denoiser(nn.Module):
    """Predicts the noise in noisy images, (B, 64), at timesteps (B,)."""

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, 256)
        self.first, self.last = nn.Linear(64, 256), nn.Linear(256, 64)
        self.agc = AntiGradientControl(1000, rows_per_rank=batch_size)  # AGC

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        return self.last(nn.functional.silu(self.first(noisy) + self.embedding(timesteps)))


class DiffusionTrainer(Trainer):
    """A Trainer whose model predicts noise."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        clean = inputs["images"]
        timesteps = torch.randint(1000, (len(clean),), device=clean.device)
        noise, left = torch.randn_like(clean), ALPHAS.to(clean.device)[timesteps, None]
        noisy = left.sqrt() * clean + (1 - left).sqrt() * noise
        losses = (model(noisy, timesteps) - noise).square().mean(1)
        assert isinstance(self.model, Denoiser)  # also where `model` is wrapped
        return self.model.agc(losses, timesteps)  # AGC: was losses.mean()


def main(steps: int, batch_size: int, out: Path, resume: bool = False) -> Denoiser:
    torch.manual_seed(0)
    pixels, _ = load_digits(return_X_y=True)
    images = [{"images": image} for image in torch.tensor(pixels, dtype=torch.float32) / 8 - 1]
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        save_steps=steps,
        report_to="none",
        remove_unused_columns=False,
    )
    model = Denoiser(batch_size)
    trainer = DiffusionTrainer(model, arguments, train_dataset=images)  # pyright: ignore[reportArgumentType]
    trainer.train(resume_from_checkpoint=resume)
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUT")
    main(**vars(parser.parse_args()))
