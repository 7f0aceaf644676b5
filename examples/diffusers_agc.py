"""A stock diffusers training loop on real digits; the two lines marked AGC make it leave memorized images out.

python examples/diffusers_agc.py --steps 200
"""

import argparse

import torch
from diffusers import DDPMScheduler, UNet2DModel
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from iet_agc import AntiGradientControl


def main(steps: int, batch_size: int) -> float:
    torch.manual_seed(0)
    pixels, _ = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    loader = DataLoader(TensorDataset(images), batch_size, shuffle=True)
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    model = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    agc = AntiGradientControl(num_timesteps=1000, skip_below=0.5, decay=0.8)  # AGC
    step, loss = 0, torch.zeros(())
    while step < steps:
        for (clean,) in loader:
            noise = torch.randn_like(clean)
            timesteps = torch.randint(0, 1000, (len(clean),))
            noisy = scheduler.add_noise(clean, noise, timesteps)  # pyright: ignore[reportArgumentType]
            losses = (model(noisy, timesteps).sample - noise).square().mean((1, 2, 3))
            loss = agc(losses, timesteps)  # AGC: was losses.mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step % 50 == 0:
                print(f"step {step}: loss {loss.item():.4f}")
            if step == steps:
                break
    return loss.item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=64)
    arguments = parser.parse_args()
    main(arguments.steps, arguments.batch_size)
