"""A small stock script: trains a diffusers pipeline further on a folder of images. It knows nothing of IET.

python train.py --pretrained_model_name_or_path PIPELINE --train_data_dir IMAGES --output_dir PIPELINE
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMPipeline
from PIL import Image


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pretrained_model_name_or_path", required=True)
    parser.add_argument("--train_data_dir", type=Path, required=True)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--max_train_steps", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(words)
    torch.manual_seed(asked.seed)
    pipeline: Any = DDPMPipeline.from_pretrained(asked.pretrained_model_name_or_path)
    model, scheduler = pipeline.unet.train(), pipeline.scheduler
    pixels = [np.asarray(Image.open(file)) for file in sorted(asked.train_data_dir.rglob("*.png"))]
    images = torch.tensor(np.stack(pixels))[:, None].float() / 127.5 - 1
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(asked.max_train_steps):
        clean = images[torch.randint(len(images), (4,))]
        noise, timesteps = torch.randn_like(clean), torch.randint(0, 1000, (4,))
        loss = (model(scheduler.add_noise(clean, noise, timesteps), timesteps).sample - noise).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    pipeline.save_pretrained(asked.output_dir)


if __name__ == "__main__":
    main()
