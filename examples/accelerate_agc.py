"""accelerate: several processes and micro-batches are one batch, and checkpoints hold the loss bank.

pip install 'iet-agc[accelerate]'
accelerate launch examples/accelerate_agc.py --steps 200 --out runs/accelerate      # the same again goes on
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from iet_agc import AntiGradientControl

#: Of the noise schedule of DDPM: how much of the image is left.
ALPHAS = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)


class Denoiser(nn.Module):
    """Predicts the noise in noisy images, (B, 64), at timesteps (B,)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, 256)
        self.first, self.last = nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        return self.last(nn.functional.silu(self.first(noisy) + self.embedding(timesteps)))


def losses_of(model: nn.Module, clean: Tensor) -> tuple[Tensor, Tensor]:
    """A loss per image, (B,), and its timestep, (B,)."""
    timesteps = torch.randint(1000, (len(clean),), device=clean.device)
    noise, left = torch.randn_like(clean), ALPHAS.to(clean.device)[timesteps, None]
    return (model(left.sqrt() * clean + (1 - left).sqrt() * noise, timesteps) - noise).square().mean(1), timesteps


def main(steps: int, batch_size: int, micro_batches: int, out: Path) -> AntiGradientControl:
    accelerator = Accelerator(gradient_accumulation_steps=micro_batches)
    torch.manual_seed(accelerator.process_index)
    pixels, _ = load_digits(return_X_y=True)
    images = TensorDataset(torch.tensor(pixels, dtype=torch.float32) / 8 - 1)
    model = Denoiser()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(images, batch_size, shuffle=True))
    agc = AntiGradientControl(1000, rows_per_rank=batch_size).to(accelerator.device)  # AGC
    accelerator.register_for_checkpointing(agc)  # AGC
    step, checkpoint = 0, out / "checkpoint"
    if checkpoint.exists():
        accelerator.load_state(str(checkpoint))
    while step < steps:
        for (clean,) in loader:
            with accelerator.accumulate(model):
                part = agc.accumulate(*losses_of(model, clean))  # AGC: was losses.mean()
                accelerator.backward(part * micro_batches)  # AGC: it divides by them, and finish by what is kept
                if accelerator.sync_gradients:
                    agc.finish(model.parameters())  # AGC
                    step += 1
                optimizer.step()
                optimizer.zero_grad()
            if step == steps:
                break
    accelerator.save_state(str(checkpoint))
    return agc


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--micro-batches", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    main(**vars(parser.parse_args()))
