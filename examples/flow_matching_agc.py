"""Flow matching on real digits, in plain PyTorch, with times that are drawn more often in the middle.

The lines marked AGC make it leave memorized images out: python examples/flow_matching_agc.py --steps 500
"""

import argparse
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from iet_agc import AntiGradientControl


class Velocity(nn.Module):
    """Predicts noise - image of a mixture of both, (B, 64), at time t, (B,)."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64 + 16, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.last = nn.Linear(width, 64)

    def forward(self, mixed: Tensor, t: Tensor) -> Tensor:
        phases = t[:, None] * 2.0 ** torch.arange(8)
        return self.last(self.layers(torch.cat([mixed, phases.sin(), phases.cos()], 1)))


def draw_times(count: int) -> Tensor:
    """Logit-normal, as Stable Diffusion 3 is trained."""
    return torch.randn(count).sigmoid()


def main(steps: int, batch_size: int, log: Callable[[dict[str, float], int], object]) -> nn.Module:
    torch.manual_seed(0)
    pixels, _ = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32) / 8 - 1
    model = Velocity()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    edges = draw_times(100_000).quantile(torch.linspace(0, 1, 101))  # AGC: a hundred bins that fill alike
    agc = AntiGradientControl.for_times(edges, skip_below="auto")  # AGC
    for step in range(1, steps + 1):
        clean = images[torch.randint(len(images), (batch_size,))]
        noise, t = torch.randn_like(clean), draw_times(batch_size)
        mixed = torch.lerp(clean, noise, t[:, None])
        losses = (model(mixed, t) - (noise - clean)).square().mean(1)
        keep = agc.keep(losses, t)  # AGC: for the curve
        loss = agc(losses, t, keep=keep)  # AGC: was losses.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            log({"loss": loss.item(), "skipped": 1 - keep.float().mean().item()}, step)
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=64)
    asked = parser.parse_args()
    main(asked.steps, asked.batch_size, lambda values, step: print(f"step {step}: {values}"))
