"""A training loop on sixty handwritten threes that is told when it starts to copy them, and keeps its best model.

python examples/memorization_watch.py --steps 2000 --out threes
"""

import argparse
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DModel
from sklearn.datasets import load_digits

import iet_agc


def main(steps: int, out: Path, every: int | None = None) -> iet_agc.MemorizationWatch:
    torch.manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    threes = (torch.tensor(pixels[labels == 3]) * 255 / 16).round().to(torch.uint8).reshape(-1, 1, 8, 8)
    train, held_out = threes[:60], threes[60:]
    images = train.float() / 127.5 - 1
    scheduler = DDIMScheduler(1000)
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

    def losses_of(clean: torch.Tensor) -> torch.Tensor:
        noise, timesteps = torch.randn_like(clean), torch.randint(0, 1000, (len(clean),))
        noisy = scheduler.add_noise(clean, noise, timesteps)  # pyright: ignore[reportArgumentType]
        return (model(noisy, timesteps).sample - noise).square().mean((1, 2, 3))

    def draw(seeds: list[int]) -> torch.Tensor:
        noises = [torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        drawn = torch.stack(noises)
        scheduler.set_timesteps(20)
        for timestep in scheduler.timesteps:
            predicted = model(drawn, timestep).sample
            drawn = scheduler.step(predicted, int(timestep), drawn).prev_sample  # pyright: ignore
        return ((drawn.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)

    def save(path: Path) -> None:
        torch.save(model.state_dict(), path)

    watch = iet_agc.MemorizationWatch(train, held_out, out=out, save=save, steps=None if every else steps, every=every)
    for step in range(1, steps + 1):
        losses_of(images[torch.randint(0, len(images), (64,))]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        watch(step, draw, lambda batch: losses_of(batch.images))
        if watch.should_stop:
            break
    if watch.recommendation:
        print(watch.recommendation.sentence)
        print(f"the model is {watch.best_path}, and {iet_agc.report(out)} shows the curve")
    return watch


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("threes"))
    arguments = parser.parse_args()
    main(arguments.steps, arguments.out)
