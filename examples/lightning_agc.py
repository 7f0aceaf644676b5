"""Lightning: a line in `training_step`, and a callback where several micro-batches make an optimizer step.

pip install 'iet-agc[lightning]'
python examples/lightning_agc.py --steps 200
"""

import argparse

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from iet_agc import AntiGradientControl

#: Of the noise schedule of DDPM: how much of the image is left.
ALPHAS = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)


class Diffusion(lightning.LightningModule):
    """Learns to predict the noise in noisy images, (B, 64). The loss bank is in its checkpoints."""

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, 256)
        self.first, self.last = nn.Linear(64, 256), nn.Linear(256, 64)
        self.agc = AntiGradientControl(1000, rows_per_rank=batch_size)  # AGC

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        return self.last(nn.functional.silu(self.first(noisy) + self.embedding(timesteps)))

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        (clean,) = batch
        timesteps = torch.randint(1000, (len(clean),), device=self.device)
        noise, left = torch.randn_like(clean), ALPHAS.to(self.device)[timesteps, None]
        noisy = left.sqrt() * clean + (1 - left).sqrt() * noise
        losses = (self(noisy, timesteps) - noise).square().mean(1)
        self.log("kept", self.agc.keep(losses, timesteps).float().mean())
        if self.trainer.accumulate_grad_batches == 1:
            return self.agc(losses, timesteps)  # AGC: was losses.mean()
        return self.agc.accumulate(losses, timesteps) * self.trainer.accumulate_grad_batches  # AGC: with OneBatch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class OneBatch(lightning.Callback):
    """All micro-batches of an optimizer step are one batch: goes before gradients are clipped."""

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if trainer.accumulate_grad_batches > 1 and isinstance(pl_module, Diffusion):
            pl_module.agc.finish(pl_module.parameters())  # AGC


def main(steps: int, batch_size: int, micro_batches: int, **options: object) -> Diffusion:
    lightning.seed_everything(0, verbose=False)
    pixels, _ = load_digits(return_X_y=True)
    images = TensorDataset(torch.tensor(pixels, dtype=torch.float32) / 8 - 1)
    module = Diffusion(batch_size)
    chosen = {"max_steps": steps, "accumulate_grad_batches": micro_batches, "callbacks": [OneBatch()], **options}
    trainer = lightning.Trainer(**chosen)  # pyright: ignore[reportArgumentType]
    trainer.fit(module, DataLoader(images, batch_size, shuffle=True))
    return module


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--micro-batches", type=int, default=2)
    main(**vars(parser.parse_args()))
